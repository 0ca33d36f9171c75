"""AMBER's corrected figures against a second count: plain sets and fractions, nothing shared."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.scorer import Answer, Resources
from chip_core.evaluation.text.similarity import TableSimilarity

RELATION = {"dog": ["puppy"], "tree": ["bush"], "bush": ["tree"], "sky": [], "cat": [], "car": []}
SAFE = {"sky", "cat"}
PICTURES = {1: ({"dog", "tree"}, {"cat"}), 2: ({"sky", "bush"}, {"dog", "car"})}
QUESTIONS = {
    3: ("existence", "no"),
    4: ("state", "yes"),
    5: ("action", "no"),
    6: ("relation", "no"),
}
KINDS = {
    "existence": "discriminative-hallucination",
    "state": "discriminative-attribute-state",
    "action": "discriminative-attribute-action",
    "relation": "discriminative-relation",
}
PARTS = {
    "": set(KINDS),
    "existence/": {"existence"},
    "attribute/": {"state", "action"},
    "state/": {"state"},
    "number/": set(),
    "action/": {"action"},
    "relation/": {"relation"},
}
NOUNS = ["dog", "dogs", "Puppy", "tree", "Bush", "sky", "cats", "car", "kite"]
MEANT = {"dogs": "dog", "Puppy": "puppy", "Bush": "bush", "cats": "cat"}
#: what is said -> what it means
SAID = {
    "Yes": "yes",
    "yes, it is": "yes",
    "No": "no",
    "no.": "no",
    "'No'": "no",
    "": "",
    "Not sure": "",
}

words = st.lists(st.sampled_from(NOUNS), max_size=6).map(", ".join)
answers = st.fixed_dictionaries(
    {},
    optional={
        **{item: words for item in PICTURES},
        **{item: st.sampled_from(sorted(SAID)) for item in QUESTIONS},
    },
)
pairs = st.lists(st.tuples(st.sampled_from(sorted(RELATION)), st.sampled_from(sorted(RELATION))))


def count_by_definition(said: dict[int, str], near: set[frozenset[str]]) -> dict[str, float | None]:
    """Count AMBER's figures from the paper's definitions."""

    def means(noun: str, thing: str) -> bool:
        return any(
            noun == word or frozenset((noun, word)) in near for word in {thing, *RELATION[thing]}
        )

    vocabulary = set(RELATION) | {word for listed in RELATION.values() for word in listed}
    wrong = nouns = covered = objects = hallucinated = described = expected = 0
    for item, (truth, targets) in PICTURES.items():
        if item not in said:
            continue
        named = [MEANT.get(word, word) for word in said[item].split(", ") if word]
        named = [noun for noun in named if noun in vocabulary]
        right = [noun for noun in named if any(means(noun, thing) for thing in truth)]
        judged = [noun for noun in named if noun in right or noun not in SAFE]
        false = [noun for noun in judged if noun not in right]
        wrong, nouns = wrong + len(false), nouns + len(judged)
        covered += sum(any(means(noun, thing) for noun in named) for thing in truth)
        objects += len(truth)
        hallucinated, described = hallucinated + bool(false), described + 1
        expected += sum(any(means(noun, thing) for thing in targets) for noun in false)
    figures: dict[str, float | None] = {}
    asked = [item for item in QUESTIONS if item in said]
    if described or not asked:
        figures = {
            "chair": compute_percent(wrong, nouns),
            "cover": compute_percent(covered, objects),
            "hal": compute_percent(hallucinated, described),
            "cog": compute_percent(expected, nouns),
        }
    for part, kinds in PARTS.items():
        mine = [item for item in asked if QUESTIONS[item][0] in kinds]
        if not mine and said:
            continue
        pairs = [(SAID[said[item]], QUESTIONS[item][1]) for item in mine]
        hits = pairs.count(("no", "no"))
        precision = compute_percent(hits, sum(saying == "no" for saying, _ in pairs))
        recall = compute_percent(hits, sum(truth == "no" for _, truth in pairs))
        figures[f"{part}accuracy"] = compute_percent(sum(a == b for a, b in pairs), len(pairs))
        figures[f"{part}precision"], figures[f"{part}recall"] = precision, recall
        figures[f"{part}f1"] = compute_percent(
            2 * hits, sum(saying == "no" for saying, _ in pairs) + sum(t == "no" for _, t in pairs)
        )
    if "chair" in figures and "f1" in figures:
        chair, f1 = figures["chair"], figures["f1"]
        figures["amber_score"] = None if chair is None or f1 is None else (100 - chair + f1) / 2
    return figures


def compute_percent(numerator: int, denominator: int) -> float | None:
    return float(100 * Fraction(numerator, denominator)) if denominator else None


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"id": item, "type": "generative", "truth": sorted(truth), "hallu": sorted(targets)}
        for item, (truth, targets) in PICTURES.items()
    ]
    rows += [
        {"id": item, "type": KINDS[kind], "truth": truth}
        for item, (kind, truth) in QUESTIONS.items()
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    (tmp_path / "relation.json").write_text(json.dumps(RELATION))
    (tmp_path / "safe_words.txt").write_text("\n".join(sorted(SAFE)))
    return tmp_path


@given(said=answers, near=pairs)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_a_second_count(
    data: Path, plain_language: None, said: dict[int, str], near: list[tuple[str, str]]
) -> None:
    scored = BENCHMARKS["amber"].score(
        [Answer(item=str(item), response=text) for item, text in said.items()],
        data=data,
        protocol="corrected",
        resources=Resources(similarity=TableSimilarity({pair: 0.9 for pair in near})),
    )
    expected = count_by_definition(said, {frozenset(pair) for pair in near})
    assert set(scored.values) == set(expected)
    for name, value in expected.items():
        assert scored.values[name] == (None if value is None else pytest.approx(value)), name
    assert (scored.n, scored.missing) == (len(said), len(PICTURES) + len(QUESTIONS) - len(said))
