from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from chip_core.config.identity import (
    evaluation_identity,
    find_inert_keys,
    fingerprint,
    training_identity,
    untrained_identity,
)
from chip_core.config.trial import BenchmarkConfig, EvaluationConfig, TrialConfig
from chip_core.reference_cache.spec import list_cache_specs

MODEL = {"content": "abc"}
DATA = {"source": "shapes"}


def make_config(**changes: Any) -> TrialConfig:
    return TrialConfig.model_validate({"model": "shapes", **changes})


OWN = {"files": [["a.jsonl", "abc"]], "format": "jsonl"}


def fingerprint_on_files(data: dict[str, Any], content: dict[str, Any] | None = None) -> str:
    """Make the fingerprint of a training on a user's own files."""
    changed = make_config(data={"source": "a.jsonl", **data})
    return fingerprint(training_identity(changed, MODEL, content or OWN))


def make_fingerprint(**changes: Any) -> str:
    return fingerprint(training_identity(make_config(**changes), MODEL, DATA))


def iter_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from iter_fields(kind, f"{prefix}{name}.")


def test_every_field_is_declared_in_or_out() -> None:
    undeclared = [
        path
        for path, field in iter_fields(TrialConfig)
        if not isinstance(field.json_schema_extra, dict)
        or field.json_schema_extra.get("fingerprint") not in ("in", "out")
    ]
    assert not undeclared


def test_what_the_released_form_fixes_is_inert() -> None:
    released = {"form": "released"}
    scoped = {**released, "segment": {"scope": "sequence"}}
    assert make_fingerprint(objective=released) == make_fingerprint(objective=scoped)
    assert "objective.segment.scope" in find_inert_keys(make_config(objective=released))
    assert make_fingerprint(objective={"form": "one_sigmoid"}) != make_fingerprint(
        objective=released
    )


def test_the_untrained_model_and_an_evaluation_have_their_own() -> None:
    base = [
        fingerprint(untrained_identity(make_config(model=model).model, MODEL))
        for model in ("shapes", "./elsewhere", {"path": "shapes", "dtype": "bf16"})
    ]
    assert base[0] == base[1] != base[2]  # where it lies is not in it
    plain, limited = BenchmarkConfig(name="shapes"), BenchmarkConfig(name="shapes", limit=3)
    found = {
        fingerprint(evaluation_identity(side, benchmark, {}, EvaluationConfig()))
        for side in ("select", "report")
        for benchmark in (plain, limited)
    }
    assert len(found) == 4


def test_which_engine_answers_is_part_of_an_evaluation_and_of_no_training() -> None:
    served = {"kind": "openai", "server": "vllm", "version": "0.12.0", "base_url": "http://a/v1"}

    def of(generator: Any, **parity: Any) -> str:
        answering = EvaluationConfig(generator=generator, parity=parity)
        assert make_fingerprint(evaluation=answering) == make_fingerprint()
        benchmark = BenchmarkConfig(name="shapes")
        return fingerprint(evaluation_identity("report", benchmark, {}, answering))

    plain = of("transformers")
    # As it was before there was such a key: nothing that is finished is answered again for it.
    assert plain == of({}) == of({}, share=0.5) and plain.startswith("62e291509df5")
    assert of(served) == of({**served, "base_url": "http://b/v1", "concurrency": 1})
    options = {"max_model_len": 512}
    others = [{**served, "version": "0.12.1"}, "vllm", {"kind": "vllm", "options": options}]
    assert len({plain, of(served), of(served, share=0.5), *map(of, others)}) == 6


def test_what_is_sent_to_a_judge_counts_where_it_says_something() -> None:
    def of(**judge: Any) -> str:
        benchmark = BenchmarkConfig(name="mmhal", judge={"model": "m", **judge})
        return fingerprint(evaluation_identity("report", benchmark, {}, EvaluationConfig()))

    # As it was before there was such a key: nothing that is finished is scored again for it.
    assert of() == of(send={}) and of().startswith("398067250672")
    assert len({of(), of(send={"max_tokens": None}), of(send={"reasoning_effort": "low"})}) == 3


def test_every_field_says_what_it_is() -> None:
    assert not [path for path, field in iter_fields(TrialConfig) if not field.description]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"vision_encoder": "trained"},
        {"objective": "dpo"},
        {"objective": {"weights": {"segment": 2}}},
        {"objective": {"beta": 0.2}},
        {"rejected_image": "black"},
        {"rejected_image": {"diffusion": {"timestep": 400}}},
        {"rejected_image": {"corruption_seed": "per_trial"}},
        {"optimizer": {"lr": 1e-6}},
        {"training": {"batch_size": 8}},
        {"model": {"path": "shapes", "dtype": "bf16"}},
        {"data": {"limit": 10}},
        {"language_model": "lora"},
        {"vision_encoder": "staged"},
        {"vision_encoder": "lora"},
        {"projector": "lora"},
        {"optimizer": {"projector_lr": 1e-6}},
        {"reference_cache": "bf16"},
    ],
)
def test_what_changes_figures_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert make_fingerprint(**change) != make_fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"engine": {"micro_batch": 1}},
        {"engine": {"threads": 2, "device": "cpu", "log_every": 5}},
        {"engine": {"workers_per_trial": 2, "parallel": "fsdp", "bucket": False}},
        {"engine": {"loader_workers": 2}},
        {"engine": {"checkpoint_every": 5, "gradient_checkpointing": True, "attention": "eager"}},
        {"model": {"path": "/elsewhere/shapes"}},  # the content counts, not the place
        {"benchmarks": {"report": ["shapes"]}},  # scored under the training, not part of it
        {"objective": {"preset": "hdpo", "terms": ["response", "segment", "token", "visual"]}},
        {"reference_cache": "off"},  # kept or not, it is fp32
    ],
)
def test_what_changes_no_figure_does_not(change: dict[str, Any]) -> None:
    assert make_fingerprint(**change) == make_fingerprint()


@pytest.mark.parametrize(
    ("one", "other", "inert"),
    [
        (
            {"objective": {"preset": "dpo", "weights": {"segment": 1}}},
            {"objective": {"preset": "dpo", "weights": {"segment": 3}}},
            "objective.weights.segment",
        ),
        (
            {"objective": "hdpo", "rejected_image": "black"},
            {"objective": "hdpo", "rejected_image": "diffusion"},
            "rejected_image",
        ),
        (
            {"rejected_image": {"strategy": "black", "diffusion": {"timestep": 1}}},
            {"rejected_image": {"strategy": "black", "diffusion": {"timestep": 2}}},
            "rejected_image.diffusion",
        ),
        (
            {"rejected_image": {"strategy": "black", "corruption_seed": "per_trial"}},
            {"rejected_image": {"strategy": "black"}},
            "rejected_image.corruption_seed",
        ),
        (
            {"objective": "cmdpo", "reference_cache": "bf16"},
            {"objective": "cmdpo", "reference_cache": "fp32"},
            "reference_cache",
        ),
        ({"lora": {"rank": 4}}, {"lora": {"targets": ["q_proj"]}}, "lora"),
        (
            {"vision_encoder": "lora", "lora": {"targets": ["q_proj"]}},
            {"vision_encoder": "lora"},
            "lora.targets",
        ),
        ({"staged": {"share": 0.1}}, {"vision_encoder": "frozen"}, "staged"),
        ({"optimizer": {"vision_lr": 1e-6}}, {}, "optimizer.vision_lr"),
        (
            {"projector": "frozen", "optimizer": {"projector_lr": 1e-6}},
            {"projector": "frozen"},
            "optimizer.projector_lr",
        ),
    ],
)
def test_inert_keys_are_named_and_left_out(
    one: dict[str, Any], other: dict[str, Any], inert: str
) -> None:
    assert inert in find_inert_keys(make_config(**one))
    assert make_fingerprint(**one) == make_fingerprint(**other)


def test_the_rank_counts_wherever_there_are_adapters() -> None:
    for part in ("vision_encoder", "projector", "language_model"):
        assert make_fingerprint(**{part: "lora", "lora": {"rank": 4}}) != make_fingerprint(
            **{part: "lora"}
        )
    # As it was when the language model alone could have them.
    assert make_fingerprint(language_model="lora").startswith("66d131dbae98")


def test_what_is_in_fp32_is_what_it_was_before_precision_had_more_keys() -> None:
    """These fingerprints are of the build before."""
    assert make_fingerprint().startswith("7a8c9c5f96af")
    assert fingerprint(untrained_identity(make_config().model, MODEL)).startswith("b17195441883")
    keys = [spec.key[:8] for spec in list_cache_specs(make_config(), MODEL, DATA)]
    assert keys == ["c88aeab0", "deff0174", "1e076ac6", "cec275a1"]
    assert make_fingerprint(training={"master": "fp32", "gradients": "fp32"}) == make_fingerprint()
    assert make_fingerprint(optimizer={"states": "fp32"}) == make_fingerprint()


def test_bf16_counts_by_how_weights_gradients_and_moments_are_held() -> None:
    """Once it was autocast over weights in fp32: those figures are not taken for these."""
    bf16 = {"path": "shapes", "dtype": "bf16"}
    before = "0c9de8cc6cce"  # of that build
    found = [
        make_fingerprint(model=bf16),
        make_fingerprint(model=bf16, training={"gradients": "bf16"}),
        make_fingerprint(model=bf16, optimizer={"states": "int8"}),
        make_fingerprint(optimizer={"states": "int8"}),
        make_fingerprint(),
    ]
    assert len(set(found)) == 5
    assert not any(each.startswith(before) for each in found)
    old = {spec.key[:8] for spec in list_cache_specs(make_config(), MODEL, DATA)} | {
        "1fc07ce0",
        "e4124c48",
    }
    assert old.isdisjoint(
        spec.key[:8] for spec in list_cache_specs(make_config(model=bf16), MODEL, DATA)
    )
    # Its hidden states are bf16, whatever they are kept in.
    assert make_fingerprint(model=bf16, reference_cache="bf16") == make_fingerprint(
        model=bf16, reference_cache="off"
    )
    assert "reference_cache" in find_inert_keys(make_config(model=bf16))
    hidden = [spec.hidden for spec in list_cache_specs(make_config(model=bf16), MODEL, DATA)]
    assert hidden[0] == "bf16"


def test_gradients_in_bf16_are_of_weights_in_bf16() -> None:
    with pytest.raises(ValueError, match="gradients is bf16, but model.dtype is fp32: write"):
        make_config(training={"gradients": "bf16"})


def test_data_counts_by_content_not_by_place() -> None:
    assert fingerprint_on_files({}) != make_fingerprint()
    assert fingerprint_on_files({"source": "/elsewhere/a.jsonl"}) == fingerprint_on_files({})
    assert fingerprint_on_files({"image_root": "/elsewhere"}) == fingerprint_on_files({})
    # The format that was found.
    assert fingerprint_on_files({"format": "jsonl"}) == fingerprint_on_files({})
    assert fingerprint_on_files({"limit": 3}) != fingerprint_on_files({})
    assert fingerprint_on_files({"on_bad_row": "skip"}) != fingerprint_on_files({})
    assert fingerprint_on_files({}, {**OWN, "files": [["a.jsonl", "def"]]}) != fingerprint_on_files(
        {}
    )


def test_data_read_as_before_there_was_a_choice_are_what_they_were() -> None:
    """Transparency was dropped: figures on white are new, those of `drop` are found again."""
    before = "bfc15545028bd8f8d520f9a2e4e0ed36f5d7313867eb795df956d844d129b183"  # of that build
    assert fingerprint_on_files({"transparency": "drop"}) == before
    assert fingerprint_on_files({}) == fingerprint_on_files({"transparency": "white"}) != before


def test_shapes_ignores_what_is_for_files() -> None:
    assert {"data.split", "data.transparency"} <= find_inert_keys(make_config()).keys()
    assert (
        make_fingerprint(data={"split": "test", "on_bad_row": "skip", "format": "trl"})
        == make_fingerprint()
    )
    assert make_fingerprint(data={"transparency": "drop"}) == make_fingerprint()
    # As the build had it that knew no transparency.
    assert make_fingerprint() == "7a8c9c5f96af12d335e3ef735e9fe4d1a25a3f56593ccdeb587040bbcd1cf87d"
