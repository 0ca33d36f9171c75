"""Which trials share a pass, and how often each reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chip_core.config.trial import TrialConfig
from chip_core.reference_cache.spec import (
    AvailableCaches,
    CacheSpec,
    build_config,
    count_samples_read,
    group_specs,
    list_cache_specs,
)

MODEL = {"content": "abc"}
DATA = {"source": "shapes"}


def make_config(**changes: Any) -> TrialConfig:
    """Make a trial without passes of features, unless it is asked for them."""
    engine = {"feature_cache": "off", **changes.pop("engine", {})}
    return TrialConfig.model_validate({"model": "shapes", "engine": engine, **changes})


def list_specs(**changes: Any) -> tuple[CacheSpec, ...]:
    return list_cache_specs(make_config(**changes), MODEL, DATA)


def list_keys(**changes: Any) -> list[str]:
    return [one.key for one in list_specs(**changes)]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"objective": "dpo"}, ["text"]),
        ({"objective": "cmdpo"}, ["text", "rejected image diffusion"]),
        ({"objective": "hdpo"}, ["text, hidden states in fp32"]),
        ({"objective": "hdpo", "reference_cache": "bf16"}, ["text, hidden states in bf16"]),
        ({"objective": "chip"}, ["text, hidden states in fp32", "rejected image diffusion"]),
        ({"objective": {"weights": {"visual": 0, "token": 0}}}, ["text"]),
        (
            {
                "objective": "cmdpo",
                "rejected_image": {"redraw": "each_epoch"},
                "training": {"epochs": 2},
            },
            ["text", "rejected image diffusion, epoch 0", "rejected image diffusion, epoch 1"],
        ),
        (
            {"objective": "cmdpo", "rejected_image": {"corruption_seed": "per_trial"}, "seed": 3},
            ["text", "rejected image diffusion, seed 3"],
        ),
        (  # nothing is drawn: one image for all epochs and seeds
            {
                "objective": "cmdpo",
                "rejected_image": {
                    "strategy": "black",
                    "redraw": "each_epoch",
                    "corruption_seed": "per_trial",
                },
                "training": {"epochs": 2},
                "seed": 3,
            },
            ["text", "rejected image black"],
        ),
    ],
)
def test_a_trial_has_the_passes_that_its_terms_read(
    changes: dict[str, Any], names: list[str]
) -> None:
    assert [one.name for one in list_specs(**changes)] == names


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"vision_encoder": "trained"},
        {"language_model": "lora"},
        {"objective": {"beta": 0.5, "weights": {"segment": 3}}},
        {"objective": {"form": "one_sigmoid"}},
        {"optimizer": {"lr": 1e-6}},
        {"training": {"epochs": 3, "batch_size": 8}},
        {"engine": {"micro_batch": 1, "gpus_per_worker": 1}},
        {"model": {"path": "/elsewhere"}},
        {"benchmarks": {"report": ["shapes"]}},
        {"rejected_image": {"crop": {"width": 10}}},
    ],
)
def test_trials_that_differ_otherwise_share_all(change: dict[str, Any]) -> None:
    assert list_keys(**change) == list_keys()


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"path": "shapes", "dtype": "bf16"}},
        {"data": {"limit": 10}},
        {"training": {"max_length": 100}},
        {"engine": {"attention": "eager"}},
        {"engine": {"prefix_sharing": "off"}},
        {"engine": {"compile": "layers"}},
    ],
)
def test_another_reference_shares_nothing(change: dict[str, Any]) -> None:
    assert not set(list_keys(**change)) & set(list_keys())


def test_presets_of_margins_share_what_others_have() -> None:
    text, image = list_keys(objective="cmdpo")
    released = {"preset": "rdpo", "form": "released"}
    assert list_keys(objective="mpo") == list_keys(objective="dpo") == [text]
    assert list_keys(objective="vdpo") == [text]  # the policy alone is asked without the image
    assert list_keys(objective={"preset": "vdpo", "method": {"guidance": "reference"}})[:2] == (
        [text, image]
    )
    assert list_keys(objective="sft") == []
    assert [one.name for one in list_specs(objective="tpo")] == [
        "text",
        "rejected, logits",
        "chosen, logits",
        "rejected image, logits, rejected image diffusion",
        "rejected image rejected, logits, rejected image diffusion",
    ]
    assert [one.name for one in list_specs(objective=released)] == [
        "text",
        "rejected, best other",
        "rejected image, best other, rejected image diffusion",
    ]
    assert set(list_keys(objective="tpo")) & set(list_keys(objective=released)) == {text}


def test_content_counts() -> None:
    for other in (({"content": "def"}, DATA), (MODEL, {"files": ["a"]})):
        assert not set(list_keys()) & {one.key for one in list_cache_specs(make_config(), *other)}


@pytest.mark.parametrize(
    "change",
    [
        {"strategy": "black"},
        {"diffusion": {"timestep": 400}},
        {"corruption_seed": "per_trial"},
        {"redraw": "each_epoch"},
    ],
)
def test_another_rejected_image_shares_the_text(change: dict[str, Any]) -> None:
    (text, image), (other_text, other_image) = list_keys(), list_keys(rejected_image=change)
    assert text == other_text
    assert image != other_image


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"objective": "dpo"}, ["text", "image features"]),
        (
            {"objective": "cmdpo"},
            [
                "text",
                "image features",
                "rejected image diffusion",
                "features of rejected image diffusion",
            ],
        ),
        ({"objective": "dpo", "vision_encoder": "trained"}, ["text"]),
        ({"objective": "dpo", "vision_encoder": "staged"}, ["text"]),
        ({"objective": "dpo", "engine": {"gpus_per_worker": 1}}, ["text"]),
        (
            {"objective": "dpo", "engine": {"gpus_per_worker": 1, "device": "cpu"}},
            ["text", "image features"],
        ),
        (
            {"objective": "dpo", "engine": {"gpus_per_worker": 1, "feature_cache": "on"}},
            ["text", "image features"],
        ),
    ],
)
def test_a_frozen_tower_is_kept_where_it_is_computed_on_a_cpu(
    changes: dict[str, Any], names: list[str]
) -> None:
    engine = {"feature_cache": "auto", **changes.get("engine", {})}
    assert [one.name for one in list_specs(**{**changes, "engine": engine})] == names


@pytest.mark.parametrize("family", ["muffin", "qwen2_5_vl", "llava"])
def test_a_tower_with_a_trained_projector_in_it_is_not_kept(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))

    def names(feature_cache: str, projector: str) -> list[str]:
        engine = {"feature_cache": feature_cache}
        made = make_config(model=str(tmp_path), objective="dpo", projector=projector, engine=engine)
        return [one.name for one in list_cache_specs(made, MODEL, DATA)]

    kept = ["text", "image features"]
    assert names("auto", "trained") == (kept if family == "llava" else ["text"])
    assert names("auto", "lora") == names("auto", "trained")
    assert names("auto", "frozen") == kept
    assert names("on", "trained") == kept  # and the pass says why it cannot be made


def test_features_are_the_same_for_any_length_and_route() -> None:
    def of_tower(**changes: Any) -> str:
        engine = {"feature_cache": "on", **changes.pop("engine", {})}
        return list_keys(objective="dpo", engine=engine, **changes)[1]

    assert of_tower(training={"max_length": 100}) == of_tower()
    assert of_tower(engine={"prefix_sharing": "off"}) == of_tower()
    assert of_tower(model={"path": "shapes", "dtype": "bf16"}) != of_tower()


def test_rows_left_out_for_want_of_a_rejected_image_make_other_pairs() -> None:
    skip = {"data": {"source": "a.jsonl", "on_bad_row": "skip"}, "objective": "cmdpo"}
    assert list_keys(**skip, rejected_image="given")[0] != list_keys(**skip)[0]
    fail = {"data": {"source": "a.jsonl"}, "objective": "cmdpo"}
    assert list_keys(**fail, rejected_image="given")[0] == list_keys(**fail)[0]


def test_passes_of_the_same_samples_are_made_together() -> None:
    drawn = {
        "objective": "chip",
        "rejected_image": {"redraw": "each_epoch"},
        "training": {"epochs": 2},
        "engine": {"feature_cache": "on"},
    }
    groups = group_specs(
        [*list_specs(**drawn), *list_specs(**{**drawn, "data": {"limit": 10}})[:1]]
    )
    assert [[one.name for one in group] for group in groups] == [
        [
            "text, hidden states in fp32",
            "image features",
            "rejected image diffusion, epoch 0",
            "features of rejected image diffusion, epoch 0",
        ],
        ["rejected image diffusion, epoch 1", "features of rejected image diffusion, epoch 1"],
        ["text, hidden states in fp32"],  # of other pairs
    ]
    # The features are the same.
    shorter = list_specs(**{**drawn, "training": {"max_length": 100}})[:2]
    assert [len(group) for group in group_specs([*list_specs(**drawn)[:2], shorter[0]])] == [2, 1]


def test_a_group_is_made_with_what_each_of_its_passes_needs() -> None:
    dpo = make_config(objective="dpo", vision_encoder="trained", training={"max_length": 100})
    chip = make_config(
        objective="chip",
        rejected_image={"strategy": "crop", "corruption_seed": "per_trial"},
        seed=7,
        engine={"feature_cache": "on"},
    )
    text = list_cache_specs(dpo, MODEL, DATA)[0]
    by_kind = {one.kind: one for one in list_cache_specs(chip, MODEL, DATA)}
    made = build_config([(text, dpo), (by_kind["rejected_image_features"], chip)])
    assert made.training.max_length == 100  # the text's
    assert (made.rejected_image.strategy, made.seed) == ("crop", 7)
    assert made.objective.needs_rejected_image
    assert made.vision_encoder == "frozen"  # as whose features are kept has it
    assert build_config([(text, dpo)]) == dpo


def test_what_leaves_nothing_to_compute() -> None:
    drawn = {
        "objective": "cmdpo",
        "rejected_image": {"redraw": "each_epoch"},
        "training": {"epochs": 2},
    }
    text, first, second = list_specs(**drawn)

    def covers(*ones: CacheSpec, **changes: Any) -> bool:
        return AvailableCaches(cache=Path(), passes=ones).covers(make_config(**changes))

    assert covers(text, first, second, **drawn)
    assert not covers(text, first, **drawn)
    assert not covers(first, second, **drawn)
    assert covers(text, objective="dpo")
    assert covers(*list_specs(objective="chip"), objective="chip")
    assert not covers(objective="dpo")


def test_how_often_a_pass_is_read() -> None:
    def read(samples: int, **training: Any) -> list[int]:
        trial = make_config(
            objective="cmdpo",
            rejected_image={"redraw": "each_epoch"},
            training={"batch_size": 4, "epochs": 2, **training},
        )
        return [
            count_samples_read(one, trial, samples) for one in list_cache_specs(trial, MODEL, DATA)
        ]

    # 10 samples are 2 batches of 4 an epoch: 2 epochs × 8; each epoch's images are read 8 times
    assert read(10) == [16, 8, 8]
    assert read(10, max_steps=3) == [12, 8, 4]
    assert read(10, max_steps=2) == [8, 8, 0]
    assert read(3) == [0, 0, 0]
