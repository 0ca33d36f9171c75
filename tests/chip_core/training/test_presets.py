"""Presets that are sums of losses of margins, as they are trained: against the plain truth."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.preferences import PreferencePair
from chip_core.models.packing import use_packed_attention
from chip_core.models.parts import set_trained
from chip_core.objectives.methods import METHODS
from chip_core.objectives.parts import VIEWS
from chip_core.training import policy as policies
from chip_core.training.policy import Policy
from chip_core.training.states import pack
from chip_core.utils.files import read_records

from .. import families
from ..naive_forward import compute_naive_loss
from ..trainings import train

OBJECTIVES: dict[str, Any] = {
    **{name: name for name in METHODS if ":" not in name},
    "rdpo_released": {"preset": "rdpo", "form": "released"},
    "rdpo": "rdpo",
    "bco_pair_shift": {"preset": "bco_pair", "method": {"shift": True}},
    "mpo_shift": {"preset": "mpo", "method": {"shift": True}},
    "tpo_multiplied": {"preset": "tpo", "method": {"token_weights": "multiplied"}},
    "vdpo_reference": {"preset": "vdpo", "method": {"guidance": "reference", "gamma": 1.5}},
    "two of TRL's": {"preset": "mpo", "method": {"losses": {"aot": 0.5, "hinge": 1.0}}},
}


def make_full_pairs() -> list[PreferencePair]:
    """Make pairs with all that an objective may read."""
    made = []
    for number, pair in enumerate(families.make_pairs()):
        other = ["a blue tree .", "the dog is on a red car .", "a cat ."][number]
        scores: dict[str, Any] = {
            "clip_scores/chosen": 0.7, "clip_scores/rejected": 0.2 + 0.3 * number,
            "image_text_scores/chosen": 0.4 * number, "image_text_scores/rejected": 0.1,
            "opa_scores/rejected_score": [(pair.rejected, 1.5)],
            "opa_scores/revised_score": [(other[:5], 2.5), (other[5:], 1.0)],
            "opa_scores/revised_image": [(other, 3.0)],
        }  # fmt: skip
        made.append(
            dataclasses.replace(
                pair,
                other=other,
                second_image=Image.new("RGB", (40 + 9 * number, 50), (20 * number, 90, 10)),
                second_prompt="what is on the car ?" if number else None,
                scores=scores,
            )
        )
    return made


PAIRS = make_full_pairs()


@cache
def build_model(family: str) -> tuple[Any, Any]:
    return families.build(family)


def make_moved_model(family: str) -> Any:
    model = copy.deepcopy(build_model(family)[0])
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=draw)
    return model


def compute_gradient(loss: torch.Tensor, trained: list[Any]) -> torch.Tensor:
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(parameter) if one is None else one).flatten()
            for parameter, one in zip(trained, found, strict=True)
        ]
    )


def assert_step_equals_naive(
    family: str, config: TrialConfig, pairs: Sequence[PreferencePair]
) -> None:
    """Compare loss and gradient of the fast step, with and without shared prefixes."""
    reference, processor = build_model(family)
    batch = PairEncoder(processor, config, pairs).encode_batch(range(3))
    model = make_moved_model(family)
    trained = set_trained(model, config)
    torch.manual_seed(0)  # DAMA draws
    true = compute_naive_loss(model, reference, batch, config, processor.tokenizer.eos_token_id)
    true_gradient = compute_gradient(true, trained)
    for shared in (False, True):
        policy = Policy(model, config.objective, prefix_sharing=shared, logits_chunk=5)
        frozen = Policy(copy.deepcopy(reference), config.objective, prefix_sharing=shared)
        with ExitStack() as stack:
            for each in (policy, frozen) if shared else ():
                stack.enter_context(use_packed_attention(each.model))
            torch.manual_seed(0)
            loss = policy(batch, frozen.reference_scores(batch), frozen.head).loss.mean()
            found = compute_gradient(loss, trained)
        assert loss.item() == pytest.approx(true.item(), rel=1e-5)
        assert float((found - true_gradient).norm()) <= 1e-5 * float(true_gradient.norm())


#: Of a family that counts positions otherwise, those of each kind of view in the gate.
VIEWED = ("symmpo", "vdpo_reference", "tpo_multiplied", "opadpo", "mpo", "sft")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *((name, "llava") for name in OBJECTIVES),
        *(
            pytest.param(name, "qwen2_5_vl", marks=[] if name in VIEWED else [pytest.mark.slow])
            for name in OBJECTIVES
        ),
    ],
)
def test_the_step_equals_the_plain_truth(family: str, name: str) -> None:
    config = TrialConfig.model_validate(
        {"model": "x", "objective": OBJECTIVES[name], "vision_encoder": "trained"}
    )
    assert_step_equals_naive(family, config, PAIRS)


@pytest.mark.parametrize(
    ("objective", "policy", "reference"),
    [
        ("sft", {"chosen"}, set()),
        ("mpo", {"chosen", "rejected"}, {"chosen", "rejected"}),
        (
            {"preset": "vdpo", "method": {"guidance": "reference"}},
            {"chosen", "rejected"},
            {"chosen", "rejected", "rejected_image", "rejected_image_rejected"},
        ),
        ({"preset": "vdpo", "method": {"gamma": 1.0}}, *[{"chosen", "rejected"}] * 2),
        (
            "symmpo",
            *[{"chosen", "rejected", "other", "second_image", "second_image_other"}] * 2,
        ),
    ],
)
def test_nothing_is_computed_that_nobody_declares(
    monkeypatch: pytest.MonkeyPatch, objective: Any, policy: set[str], reference: set[str]
) -> None:
    asked: list[set[str]] = []
    true = policies.compute_response_states

    def noted(*given: Any, views: Any, **named: Any) -> Any:
        asked.append(set(views))
        return true(*given, views=views, **named)

    monkeypatch.setattr(policies, "compute_response_states", noted)
    config = TrialConfig.model_validate({"model": "x", "objective": objective})
    model, processor = build_model("llava")
    batch = PairEncoder(processor, config, PAIRS).encode_batch(range(3))
    made = Policy(model, config.objective)
    made(batch, made.reference_scores(batch))
    assert asked == [*([reference] if reference else []), policy]
    images = {"image", *(VIEWS[view][0] for view in policy | reference)}
    assert (batch.rejected_image_prompts is not None) == ("rejected_image" in images)
    assert (batch.second_image_prompts is not None) == ("second_image" in images)


def test_a_further_response_costs_its_own_tokens_alone() -> None:
    config = TrialConfig.model_validate({"model": "x", "objective": "symmpo"})
    batch = PairEncoder(build_model("llava")[1], config, PAIRS).encode_batch(range(3))
    lengths = {view: int(of.mask.sum()) for view, of in batch.responses.items()}
    prompts = {
        name: int(batch.select_prompts(name).mask.sum()) for name in ("image", "second_image")
    }
    row = pack(batch, model=None)
    assert row.input_ids.shape[1] == sum(prompts.values()) + sum(lengths.values())
    two = pack(batch, model=None, views=("chosen", "rejected"))
    three = pack(batch, model=None, views=("chosen", "rejected", "other"))
    assert three.input_ids.shape[1] - two.input_ids.shape[1] == lengths["other"]


@pytest.mark.parametrize(
    "objective",
    ["aot", "aot_unpaired", "sft", {"preset": "mpo", "method": {"shift": True}}, "dama"],
)
def test_the_division_of_a_batch_changes_nothing(objective: Any, tmp_path: Path) -> None:
    curves = {}
    for name, micro_batch in (("whole", 8), ("two", 2), ("one", 1)):
        curves[name] = train_model(objective, tmp_path / name, micro_batch)
    assert len(curves["whole"]) == STEPS
    losses = [figures["loss"] for figures in curves["whole"]]
    assert max(losses) - min(losses) > 0.01  # it does train
    for name in ("two", "one"):
        for one, other in zip(curves[name], curves["whole"], strict=True):
            for figure in ("loss", "grad_norm"):
                assert one[figure] == pytest.approx(other[figure], rel=1e-9)


@pytest.mark.parametrize("objective", [{"preset": "mpo", "method": {"shift": True}}, "dama"])
def test_running_means_go_on_from_a_checkpoint(objective: Any, tmp_path: Path) -> None:
    # In fp32, which is what checkpoints hold.
    kept = {"checkpoint_every": 2, "dtype": torch.float32}
    whole = train_model(objective, tmp_path / "whole", 2, **kept)
    went_on = train_model(objective, tmp_path / "on", 2, **kept, resume_from=tmp_path / "whole")
    assert went_on == whole


def test_marks_in_a_response_leave_each_token_its_sentence() -> None:
    """A mark of the model's family is text: it takes several tokens, all of its sentence."""
    processor = build_model("llava")[1]
    mark = processor.tokenizer.eos_token
    sentences = [("a cat .", 2.5), (f"the {mark} dog is red .", 1.0)]
    scores = {**PAIRS[0].scores, "opa_scores/rejected_score": sentences}
    rejected = " ".join(text for text, _ in sentences)
    pair = dataclasses.replace(PAIRS[0], rejected=rejected, scores=scores)
    config = TrialConfig.model_validate({"model": "x", "objective": "opadpo"})
    batch = PairEncoder(processor, config, [pair]).encode_batch([0])
    tokens = int(batch.rejected.mask.sum())
    assert tokens > 3 + 6
    said = batch.fields["opa_scores/rejected_score"].tolist()
    assert said == [[2.5] * 3 + [1.0] * (tokens - 3)]


STEPS = 5


def train_model(
    objective: Any,
    folder: Path,
    micro_batch: int,
    *,
    checkpoint_every: int = 0,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> list[dict[str, float]]:
    """Train on three pairs a step; return the curve without times."""
    config = TrialConfig.model_validate(
        {
            "model": "shapes",
            "objective": objective,
            "optimizer": {"lr": 3e-3},
            "training": {"batch_size": 3, "epochs": STEPS},
            "engine": {"micro_batch": micro_batch, "checkpoint_every": checkpoint_every or None},
        }
    )
    model, processor = families.build("llava")
    pairs = families.ListPairs(PAIRS)
    train(
        config,
        model=model.to(dtype),
        processor=processor,
        pairs=pairs,
        folder=folder,
        **options,
    )
    timed = {"tokens_per_second", "data_wait"}
    return [
        {name: value for name, value in record["figures"].items() if name not in timed}
        for record in read_records(folder / "curves.jsonl")
    ]
