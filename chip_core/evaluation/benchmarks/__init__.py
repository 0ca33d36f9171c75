"""The benchmarks, one module or folder each: its questions, and the score of the answers.

Importing one registers it.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
