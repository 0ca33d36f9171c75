"""The strategies by name, and a user's own by `module:attr`."""

from __future__ import annotations

import inspect
from typing import Any

from chip_core.data.rejected_images.base import ImageStrategy, PixelStrategy, Strategy
from chip_core.utils import plugins
from chip_core.utils.errors import ConfigError
from chip_core.utils.registry import Registry

StrategyClass = type[Strategy[Any]]

REJECTED_IMAGES: Registry[StrategyClass] = Registry("rejected-image strategy")


def strategy_class(name: str) -> StrategyClass:
    """Return the strategy of a name, shipped or `module:attr`.

    Raises:
        KeyError: there is none of that name.
        ValueError: the user's own cannot be imported.
        ConfigError: the user's own is no strategy.
    """
    if not plugins.is_plugin(name):
        return REJECTED_IMAGES[name]
    found = plugins.load(name)
    if not (isinstance(found, type) and issubclass(found, (ImageStrategy, PixelStrategy))):
        raise ConfigError(
            [
                f"'{name}' is no rejected-image strategy: make it a subclass of "
                "chip_core.data.rejected_images.ImageStrategy or PixelStrategy"
            ]
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ConfigError([f"'{name}' is not whole: it lacks {missing}()"])
    return found
