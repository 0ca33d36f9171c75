"""The benchmarks, one a folder: `items` asks its questions, `score` scores the answers.

A folder here is a benchmark: importing it registers it.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    if _module.ispkg:
        importlib.import_module(f"{__name__}.{_module.name}")
