"""The benchmarks, one folder each: `items` has its questions, `score` scores the answers.

Importing a folder registers its benchmark.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    if _module.ispkg:
        importlib.import_module(f"{__name__}.{_module.name}")
