"""`Configured`: an object that remembers the arguments it was made with, as its config has them.

Notable: this is how a preparation that is resumed knows whether its config is still the same, and how the
manifest can show it; classes of one's own need to do nothing for it.
"""

from __future__ import annotations

import inspect
from typing import Any, Self


class Configured:
    """Base of what a config chooses by `class_path`."""

    arguments: dict[str, Any]
    """Of the constructor, defaults included."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        instance = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs)
        except TypeError:  # wrong arguments, which `__init__` will refuse; or a copy, whose state comes after
            return instance
        bound.apply_defaults()
        instance.arguments = dict(list(bound.arguments.items())[1:])
        return instance
