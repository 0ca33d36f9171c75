"""The similarity of two words in meaning, for AMBER: from a table, or spaCy's word vectors."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chip_core.evaluation.reading import read_json
from chip_core.evaluation.text.language import require, spacy_problems
from chip_core.utils.errors import UserError

SPACY_VECTORS = "en_core_web_lg"  # used by AMBER's script


class TableSimilarity:
    """Similarities of word pairs; equal words have 1, pairs that are not in the table 0."""

    def __init__(self, pairs: Mapping[tuple[str, str], float]) -> None:
        self._pairs = {tuple(sorted(pair)): value for pair, value in pairs.items()}
        listed = sorted([*pair, value] for pair, value in self._pairs.items())
        self.name = f"table {hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:12]}"

    @classmethod
    def from_file(cls, path: Path) -> TableSimilarity:
        """Read a JSON object of `"one|other": similarity`.

        Raises:
            UserError: the file does not have that form.
        """
        table = read_json(path)
        if not isinstance(table, dict):
            raise UserError(f'{path}: not a JSON object of "word|word": similarity')
        pairs = {}
        for key, value in table.items():
            one, bar, other = key.partition("|")
            if not bar or not _is_number(value):
                raise UserError(f'{path}: {key!r}: {value!r}: write "word|word": 0.83')
            pairs[one, other] = float(value)
        return cls(pairs)

    def __call__(self, one: str, other: str) -> float:
        """Return the similarity of two words."""
        if one == other:
            return 1.0
        return self._pairs.get((one, other) if one < other else (other, one), 0.0)


class SpacySimilarity:
    """Cosines of a spaCy model's word vectors."""

    def __init__(self, model: str = SPACY_VECTORS) -> None:
        require(
            [f"{lack}, or name a table by --similarity" for lack in spacy_problems(model)],
            "AMBER's word similarity",
        )
        import spacy

        self._pipeline = spacy.load(model)
        self._texts: dict[str, Any] = {}
        self._known: dict[tuple[str, str], float] = {}
        self.name = f"spacy {model} {self._pipeline.meta['version']}"

    def __call__(self, one: str, other: str) -> float:
        """Return the similarity of two words."""
        if (one, other) not in self._known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a word without a vector: 0
                self._known[one, other] = float(self._text(one).similarity(self._text(other)))
        return self._known[one, other]

    def _text(self, word: str) -> Any:
        if word not in self._texts:
            self._texts[word] = self._pipeline(word)
        return self._texts[word]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
