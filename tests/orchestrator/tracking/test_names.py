"""Any name, param, tag and text as MLflow takes it, held against MLflow's own rules and a store."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import (
    MAX_ENTITY_KEY_LENGTH,
    MAX_EXPERIMENT_NAME_LENGTH,
    MAX_PARAM_VAL_LENGTH,
    MAX_TAG_VAL_LENGTH,
    path_not_unique,
    validate_param_and_metric_name,
)

from orchestrator.tracking.names import (
    EXPERIMENT,
    KEY,
    PARAM,
    RUN,
    TAG,
    TextKind,
    encode_invalid,
    encode_name,
)

KINDS = (KEY, RUN, EXPERIMENT, PARAM, TAG)
#: One of each kind of name that MLflow refuses as a key.
REFUSED = (
    "right@1 (strict), %", "", ".", "..", "../x", "..x", "./x", "x/", "x/.", "x/../y", "a//b", "/x",
    "//x", "x\ny", "x\n", "\0", "\x1b[31m", "x" * 251, "/" * 251, "F₁ ≥ 90", "e\u0301", "\ud800",
    "a=b", "a,b", "a|b", "`a`", "日本語、二", "‮abc", "a\u200bb", "🙂",
)  # fmt: skip
#: And of those it takes.
TAKEN = (
    "shapes/chair_i", "my_lab.mod:Bench/right", "a b", "a.", ".a", "a..b", "a/..b", " ", "é",
    "日本", "x" * 250, "a - b: c", "-", "a--0123456789abcde", "--", "train/loss",
)  # fmt: skip

names = st.one_of(
    st.text(),
    st.text(alphabet="ab./ :-_@\n\0é日", max_size=12),
    st.text(alphabet=st.characters(), min_size=1).map(lambda text: text * 300),
    st.sampled_from([*REFUSED, *TAKEN]),
)


def is_accepted(name: str) -> bool:
    """Return whether MLflow takes a key, by its own rules."""
    return bool(validate_param_and_metric_name(name)) and not path_not_unique(name)


@settings(max_examples=400)
@given(names)
@example("x" * 232 + "/..y")
def test_mlflow_takes_every_key(name: str) -> None:
    key = encode_name(name)
    assert is_accepted(key)
    assert 0 < len(key) <= MAX_ENTITY_KEY_LENGTH


@settings(max_examples=400)
@given(names)
def test_a_key_that_mlflow_takes_stays(name: str) -> None:
    # MLflow's rule, which ends in `$`, lets a line's end through at a key's: no name to keep.
    fine = is_accepted(name) and len(name) <= MAX_ENTITY_KEY_LENGTH and not name.endswith("\n")
    assert (encode_name(name) == name) == fine


@settings(max_examples=400)
@given(st.lists(names, unique=True, max_size=8), st.sampled_from(KINDS))
def test_two_names_never_become_one(given_names: Sequence[str], kind: TextKind) -> None:
    once = [encode_name(name, kind) for name in given_names]
    # What was spelled otherwise may be somebody's name, too.
    every = list(dict.fromkeys([*given_names, *once]))
    assert len({encode_name(name, kind) for name in every}) == len(every)


@settings(max_examples=200)
@given(names, st.sampled_from(KINDS))
def test_what_is_spelled_can_be_stored(name: str, kind: TextKind) -> None:
    text = encode_name(name, kind)
    text.encode()  # as a driver does: no half of a sign
    assert "\0" not in text  # which PostgreSQL refuses
    assert len(text) <= kind.max_length
    assert text or kind.empty


def test_the_limits_are_mlflows() -> None:
    assert KEY.max_length == MAX_ENTITY_KEY_LENGTH
    assert PARAM.max_length == MAX_PARAM_VAL_LENGTH
    assert TAG.max_length == MAX_TAG_VAL_LENGTH
    assert EXPERIMENT.max_length <= MAX_EXPERIMENT_NAME_LENGTH
    # Columns of its databases, narrower than its checks: PostgreSQL refuses what is longer.
    from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlRun

    assert EXPERIMENT.max_length == SqlExperiment.__table__.c.name.type.length
    assert RUN.max_length == SqlRun.__table__.c.name.type.length


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_is_refused_is_one(name: str) -> None:
    fine = is_accepted(name) and len(name) <= MAX_ENTITY_KEY_LENGTH
    assert fine == (name == "x\n")  # see above
    assert encode_name(name) != name


@pytest.mark.parametrize("name", TAKEN)
def test_a_name_that_is_taken_is_one(name: str) -> None:
    assert encode_name(name) == name


def test_a_name_can_still_be_read() -> None:
    assert encode_name("shapes/right@1 (strict), %").startswith("shapes/right_1 _strict_ _--")
    assert encode_name("../x").startswith("_/x--")
    assert encode_name("a\ud800", RUN).startswith("a\N{REPLACEMENT CHARACTER}--")
    long = encode_name("x" * 9000, TAG)
    assert long.startswith("x" * (8000 - 2 - 16) + "--")


def test_those_that_are_spelled_otherwise_are_told() -> None:
    assert encode_invalid(["a", "b%", "c"]) == {"b%": encode_name("b%")}


def test_a_store_takes_them(workdir) -> None:  # type: ignore[no-untyped-def]
    client = MlflowClient(f"sqlite:///{workdir}/mlflow.db")
    every = [*REFUSED, *TAKEN]
    experiment = client.create_experiment(encode_name("\ud800" * 300, EXPERIMENT))
    run = client.create_run(experiment).info.run_id
    client.log_batch(
        run,
        metrics=[Metric(encode_name(name), 1.0, 1, 0) for name in every],
        params=[Param(encode_name(name), encode_name(name * 50, PARAM)) for name in every],
        tags=[RunTag(encode_name(name), encode_name(name * 50, TAG)) for name in every],
    )
    data = client.get_run(run).data
    assert set(data.metrics) == set(data.params) == {encode_name(name) for name in every}
    assert data.params[encode_name("a,b")] == "a,b" * 50
    shown = {
        client.create_run(experiment, tags={"mlflow.runName": encode_name(name, RUN)}).info.run_name
        for name in every
    }
    assert shown == {encode_name(name, RUN) for name in every}
