"""The similarity of two words in meaning, for AMBER: from a table, or spaCy's word vectors."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chip_core.evaluation.reading import read_json
from chip_core.evaluation.text.language import require_tools, spacy_problems
from chip_core.utils.errors import UserError

SPACY_VECTORS = "en_core_web_lg"  # used by AMBER's script


class TableSimilarity:
    """Similarities of word pairs; equal words have 1, pairs that are not in the table 0."""

    def __init__(self, pairs: Mapping[tuple[str, str], float]) -> None:
        self._pairs = {tuple(sorted(pair)): value for pair, value in pairs.items()}
        entries = sorted([*pair, value] for pair, value in self._pairs.items())
        self.name = f"table {hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:12]}"

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
            first, separator, second = key.partition("|")
            if not separator or not _is_number(value):
                raise UserError(f'{path}: {key!r}: {value!r}: write "word|word": 0.83')
            pairs[first, second] = float(value)
        return cls(pairs)

    def __call__(self, first: str, second: str) -> float:
        """Return the similarity of two words."""
        if first == second:
            return 1.0
        return self._pairs.get((first, second) if first < second else (second, first), 0.0)


class SpacySimilarity:
    """Cosines of a spaCy model's word vectors."""

    def __init__(self, model: str = SPACY_VECTORS) -> None:
        require_tools(
            [f"{problem}, or give a table with --similarity" for problem in spacy_problems(model)],
            "AMBER's word similarity",
        )
        import spacy

        pipeline = spacy.load(model)
        self.name = f"spacy {model} {pipeline.meta['version']}"
        self._parse = functools.cache(pipeline)
        self._compare = functools.cache(self._compute_similarity)

    def __call__(self, first: str, second: str) -> float:
        """Return the similarity of two words."""
        return self._compare(first, second)

    def _compute_similarity(self, first: str, second: str) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a word without a vector: 0
            return float(self._parse(first).similarity(self._parse(second)))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
