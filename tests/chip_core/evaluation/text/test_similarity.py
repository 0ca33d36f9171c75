"""Word similarities from a table and from a stand-in for spaCy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chip_core.evaluation.text import similarity
from chip_core.evaluation.text.similarity import SpacySimilarity, TableSimilarity
from chip_core.utils.errors import UserError


def test_a_table(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    file.write_text('{"cat|dog": 0.81, "tree|bush": 1, "sky|sky": 0.5}')
    near = TableSimilarity.from_file(file)
    assert near("dog", "cat") == near("cat", "dog") == 0.81
    assert near("bush", "tree") == 1.0
    assert near("cat", "tree") == 0.0
    assert near("sky", "sky") == near("x", "x") == 1.0  # equal words, whatever stands there
    same = TableSimilarity({("bush", "tree"): 1.0, ("dog", "cat"): 0.81, ("sky", "sky"): 0.5})
    assert same.name == near.name != TableSimilarity({}).name


@pytest.mark.parametrize("held", [[], {"cat": 1}, {"cat|dog": "1"}, {"cat|dog": True}])
def test_no_table(tmp_path: Path, held: Any) -> None:
    (tmp_path / "table.json").write_text(json.dumps(held))
    with pytest.raises(UserError, match="table.json"):
        TableSimilarity.from_file(tmp_path / "table.json")


def test_spacy_is_asked_once_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Text:
        def __init__(self, word: str) -> None:
            self.word = word

        def similarity(self, other: Text) -> float:
            asked.append((self.word, other.word))
            return 0.9

    class Pipeline:
        meta = {"version": "3.8"}

        def __call__(self, word: str) -> Text:
            return Text(word)

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: Pipeline()))
    monkeypatch.setattr(similarity, "spacy_problems", lambda model: [])
    near = SpacySimilarity()
    assert [near("cat", "dog"), near("cat", "dog")] == [0.9, 0.9]
    assert asked == [("cat", "dog")]
    assert near.name == "spacy en_core_web_lg 3.8"
