"""Encoded prompts are kept up to a bound, and never another model's; which tokens are scored."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.encodings import (
    ENTRY_OVERHEAD,
    EncodingCache,
    ProcessEncodings,
    encode_response,
)
from chip_core.models.adapters import attach_adapters
from chip_core.models.packing import use_packed_attention
from chip_core.models.parts import set_trained
from chip_core.objectives.parts import changed_tokens
from chip_core.training.policy import LiveReference, Policy
from chip_core.utils.errors import TrialError

from .. import families


def make_encoder(made: list[str], name: str, floats: int) -> Callable[[], Sequence[Tensor]]:
    def encode() -> Sequence[Tensor]:
        made.append(name)
        return [torch.zeros(floats)]

    return encode


def test_what_fits_is_encoded_once_and_the_rest_each_time() -> None:
    made: list[str] = []
    encodings = EncodingCache(2 * (ENTRY_OVERHEAD + 400))  # of two entries of 100 numbers in fp32
    for _ in range(2):
        for name in ("a", "b", "c"):
            encodings.get(name, make_encoder(made, name, 100), lambda tensors: tensors)
    assert made == ["a", "b", "c", "c"]


def test_nothing_is_kept_before_it_is_asked_for() -> None:
    kept = ProcessEncodings()
    assert kept.for_model("model") is None
    kept.enable()
    assert kept.for_model("model") is kept.for_model("model") is not None
    kept.disable()
    assert kept.for_model("model") is None


def test_those_of_another_model_are_dropped() -> None:
    kept = ProcessEncodings()
    kept.enable()
    first = kept.for_model("model")
    assert kept.for_model("other") is not first
    assert kept.for_model("model") is not first


PAIRS = families.make_pairs()
RULES = ["clean", "released"]


@pytest.fixture(scope="module")
def muffin() -> tuple[Any, Any]:
    return families.build("muffin")


def make_config(rule: str, **changes: Any) -> TrialConfig:
    tree: dict[str, Any] = {
        "model": "x",
        "objective": {"weights": {"segment": 3.0, "token": 0.5}},
        "vision_encoder": "trained",
        "training": {"label_rule": rule, "max_length": 256},
    }
    return TrialConfig.model_validate({**tree, **changes})


def test_a_response_and_its_end_are_what_other_families_score() -> None:
    _, processor = families.build("llava")
    made = encode_response(processor, {}, [], "a red dog", "clean")
    words = processor.tokenizer.convert_ids_to_tokens(made.ids)
    assert (words, made.closing, made.leading) == (["a", "red", "dog", "</s>"], 1, ())
    with pytest.raises(
        TrialError, match="label_rule: released: a LlavaProcessor scores only the resp"
    ):
        PairEncoder(processor, make_config("released"), PAIRS)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_scored_is_what_the_labels_say(muffin: tuple[Any, Any], rule: Any) -> None:
    processor = muffin[1]
    batch = PairEncoder(processor, make_config(rule), PAIRS).encode_batch(range(3))
    for row, pair in enumerate(PAIRS):
        prompt = batch.prompts.ids[row][batch.prompts.mask[row]].tolist()
        for side in ("chosen", "rejected"):
            content = [{"type": "image"}, {"type": "text", "text": pair.prompt}]
            said = [
                {"role": "user", "content": content},
                {"role": "assistant", "content": getattr(pair, side)},
            ]
            whole, labels = processor.labels(said, rule)
            part = getattr(batch, side)
            assert part.ids[row][part.mask[row]].tolist() == [x for x in labels if x != -100]
            behind = part.without_leading
            spelled = [*prompt, *behind.ids[row][behind.mask[row]].tolist()]
            assert spelled == whole[: len(spelled)]
            if part.leading is None:
                assert rule == "clean"
                continue
            # The question's first two tokens, and what names the answer's speaker: a word a token
            # is counted alone as it stands, but for the <s> that this tokenizer does not add.
            places = part.leading[row].tolist()
            assert [whole[place] for place in places] == part.ids[row, : len(places)].tolist()
            words = processor.tokenizer.convert_ids_to_tokens([whole[place] for place in places])
            assert words == ["###", "Human", "###", "Assistant", ":"]


def test_a_rule_changes_no_segment(muffin: tuple[Any, Any]) -> None:
    marked = {}
    for rule in RULES:
        batch = PairEncoder(muffin[1], make_config(rule), PAIRS).encode_batch(range(3))
        marked[rule] = [part.ids[part.changed].tolist() for part in (batch.chosen, batch.rejected)]
    assert marked["clean"] == marked["released"]
    assert any(marked["clean"][0])
    # Whole sequences are compared with what ends them.
    whole = make_config("released", objective={"form": "released"})
    batch = PairEncoder(muffin[1], whole, PAIRS[:1]).encode_batch([0])
    (prompt,), chosen, rejected = batch.prompts.ids.tolist(), batch.chosen, batch.rejected
    image = muffin[1].image_token_id
    short = [x for place, x in enumerate(prompt) if x != image or prompt[place - 1] != image]
    wanted = changed_tokens(
        "sequence",
        short,
        chosen.without_leading.ids[0].tolist(),
        rejected.without_leading.ids[0].tolist(),
    )
    found = [
        part.without_leading.changed[0].nonzero().flatten().tolist() for part in (chosen, rejected)
    ]
    assert tuple(found) == wanted


def make_trained_policy(built: tuple[Any, Any], trial: TrialConfig) -> tuple[Policy, LiveReference]:
    """Make a policy that has moved away from its reference."""
    model = attach_adapters(copy.deepcopy(built[0]), trial)
    policy = Policy(model, trial.objective)
    reference = LiveReference(policy, trial)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in set_trained(model, trial):
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.02)
    return policy, reference


def test_the_log_probabilities_are_those_of_whole_logits(muffin: tuple[Any, Any]) -> None:
    model, processor = muffin
    batch = PairEncoder(processor, make_config("released"), PAIRS).encode_batch(range(3))
    policy = Policy(model, make_config("released").objective)
    scores = policy.reference_scores(batch)
    for row, pair in enumerate(PAIRS):
        for side in ("chosen", "rejected"):
            content = [{"type": "image"}, {"type": "text", "text": pair.prompt}]
            said = [
                {"role": "user", "content": content},
                {"role": "assistant", "content": getattr(pair, side)},
            ]
            ids, labels = (torch.tensor([part]) for part in processor.labels(said, "released"))
            image = processor(images=[pair.image], return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                logits = model(input_ids=ids, pixel_values=image).logits
            kept = labels[0, 1:] != -100
            wanted = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0][kept]
            part = getattr(batch, side)
            found = scores.views[side].logps[row][part.mask[row]]
            assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_a_shared_prompt_gives_the_same_loss_and_gradients(
    muffin: tuple[Any, Any], form: str
) -> None:
    objective = {"form": form, "weights": {"segment": 3.0, "token": 0.5}}
    trial = make_config("released", objective=objective)
    batch = PairEncoder(muffin[1], trial, PAIRS).encode_batch(range(3))
    found = []
    for shared in (False, True):
        policy, reference = make_trained_policy(muffin, trial)
        trained = set_trained(policy.model, trial)
        if shared:
            with use_packed_attention(policy.model):
                policy.prefix_sharing = True
                loss = policy(batch, reference.scores(batch), reference.head).loss.mean()
                loss.backward()
        else:
            loss = policy(batch, reference.scores(batch), reference.head).loss.mean()
            loss.backward()
        gradients = [p.grad.flatten() for p in trained if p.grad is not None]
        found.append((float(loss.detach()), torch.cat(gradients)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert float((found[0][1] - found[1][1]).norm() / found[0][1].norm()) <= 1e-5


def test_what_leads_a_response_says_the_same_for_both(muffin: tuple[Any, Any]) -> None:
    trial = make_config("released", objective="dpo")
    batch = PairEncoder(muffin[1], trial, PAIRS).encode_batch(range(3))
    policy, _ = make_trained_policy(muffin, trial)
    scores = policy.reference_scores(batch)
    assert batch.chosen.leading is not None
    first = batch.chosen.leading.shape[1]
    before, after = (
        [scores.views[side].logps[:, part] for side in ("chosen", "rejected")]
        for part in (slice(first), slice(first, first + 3))
    )
    assert torch.allclose(*before, atol=1e-5)
    assert not torch.allclose(*after, atol=1e-3)


def test_a_response_is_cut_and_what_leads_it_stays(muffin: tuple[Any, Any]) -> None:
    trial = make_config("released")
    whole = PairEncoder(muffin[1], trial, PAIRS).encode_batch([1])
    room = int(whole.prompts.mask.sum()) + 2
    short = make_config("released", training={"label_rule": "released", "max_length": room})
    batch = PairEncoder(muffin[1], short, PAIRS).encode_batch([1])
    assert batch.chosen.leading is not None
    assert int(batch.chosen.mask.sum()) == batch.chosen.leading.shape[1] + 2
    assert [cut[:2] for cut in batch.cut_responses] == [("1", "chosen"), ("1", "rejected")]
    assert dataclasses.replace(batch).to(torch.device("cpu")).chosen.leading is not None


def test_a_response_that_respells_its_prompt_is_refused() -> None:
    class Odd:
        def labels(self, conversation: Any, rule: str) -> tuple[list[int], list[int]]:
            return [1, 9, 3], [-100, -100, 3]

    with pytest.raises(TrialError, match="the response 'a' changes how the tokens of its prompt"):
        encode_response(Odd(), {}, [1, 2], "a", "clean")
