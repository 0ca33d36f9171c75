"""Names that a study file may use, and suggestions for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return `did you mean 'x'? choices: …` for a name that is not among the choices."""
    names = sorted(str(choice) for choice in choices)
    matches = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    choices_text = f"choices: {join_names(names)}"
    return f"did you mean '{matches[0]}'? {choices_text}" if matches else choices_text


def join_names(names: Iterable[str]) -> str:
    """Return names joined by commas; quoted if one is empty or contains a comma or a space."""
    texts = [str(name) for name in names]
    if any(not name or "," in name or " " in name for name in texts):
        texts = [f"'{name}'" for name in texts]
    return ", ".join(texts) or "none"


class Registry(Mapping[str, T], Generic[T]):
    """A read-mostly mapping of names; a failed lookup suggests similar names."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its object as `name`."""

        def decorator(entry: T) -> T:
            assert name not in self._entries, f"{self.kind} {name} is registered twice"
            self._entries[name] = entry
            return entry

        return decorator

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise KeyError(
                f"unknown {self.kind} '{name}': {suggest(name, self._entries)}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
