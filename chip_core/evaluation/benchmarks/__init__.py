"""The benchmarks, one folder each: `score` scores answers, `items` adds the questions.

A scorer in `score` knows all that scoring a file of answers takes; the benchmark in `items` is that
scorer with questions and pictures. Importing a folder registers its benchmark.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
