"""The fast step against whole logits of separate passes, in every family and by every switch."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.tensors import PairBatch
from chip_core.models import packing
from chip_core.models.adapters import attach_adapters
from chip_core.models.layers import recompute_layers
from chip_core.models.packing import use_packed_attention
from chip_core.models.parts import set_trained
from chip_core.models.precision import convert_weights
from chip_core.objectives.scores import ReferenceScores, ResponseReference
from chip_core.results import read_result
from chip_core.training.exactness import SHARING_ON, find_prefix_sharing_problem, share_prefixes
from chip_core.training.policy import LiveReference, Policy, ReferenceSource
from chip_core.trial import run_trial
from chip_core.utils.workers import Workers

from .. import families
from ..naive_forward import compute_naive_loss

PAIRS = families.make_pairs()
EXACT, IN_BF16 = 1e-5, 1.25  # relative, of the global norm; times as far as separate passes

#: What is switched on, beside logits of responses alone, which always are.
SWITCHES: dict[str, dict[str, Any]] = {
    "logits": {},
    "chunks": {"chunk": 5},
    "prefix": {"shared": True},
    "stored": {"stored": True},
    "adapter": {"language_model": "lora"},
    "adapters of images": {"vision_encoder": "lora", "projector": "lora"},
    "layers again": {"again": True},
    "all": {"chunk": 5, "shared": True, "stored": True, "again": True},
    "all with an adapter": {"chunk": 5, "shared": True, "language_model": "lora", "again": True},
    "all with adapters everywhere": {
        "chunk": 5, "shared": True, "again": True,
        "language_model": "lora", "vision_encoder": "lora", "projector": "lora",
    },
}  # fmt: skip
PARTS = ("vision_encoder", "projector", "language_model")


@cache
def build_model(family: str, held: str = "fp32") -> tuple[Any, Any]:
    model, processor = families.build(family)
    return hold_weights(model, held), processor


def hold_weights(model: Any, held: str) -> Any:
    """Hold weights in fp32, in bf16, or `rounded`: in fp32 what bf16 holds."""
    if held != "fp32":
        convert_weights(model, "bf16")
    model.as_in_bf16 = held != "fp32"
    return model if held == "bf16" else convert_weights(model, "fp32")


EACH = [
    pytest.param(family, marks=pytest.mark.slow) if family in families.BY_HAND else family
    for family in sorted(families.FAMILIES)
]


@pytest.fixture(params=EACH)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_config(**changes: Any) -> TrialConfig:
    objective = {"weights": {"segment": 3.0, "token": 0.5}}
    tree = {"model": "x", "objective": objective, "vision_encoder": "trained", "lora": {"rank": 2}}
    return TrialConfig.model_validate({**tree, **changes})


def make_policy_model(family: str, config: TrialConfig, held: str = "fp32") -> Any:
    """Make a model that moved away from the reference, adapters too, by the config's seed."""
    model = attach_adapters(copy.deepcopy(build_model(family)[0]), config)
    draw = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        for parameter in set_trained(model, config):
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.add_(noise, alpha=0.02)
    return hold_weights(model, held)


class StoredReference:
    """A reference pass that was computed before, each pair by itself."""

    def __init__(self, model: Any, encoder: PairEncoder, policy: Policy) -> None:
        self._scorer = Policy(model, policy.objective)
        self.head = self._scorer.head
        self._known = [
            self._scorer.reference_scores(encoder.encode_batch([place])) for place in range(3)
        ]

    def scores(self, batch: PairBatch) -> ReferenceScores:
        def padded(values: list[torch.Tensor]) -> torch.Tensor:
            one_by_one = [value[0] for value in values]
            return torch.nn.utils.rnn.pad_sequence(one_by_one, batch_first=True)

        def response(what: str) -> ResponseReference | None:
            known = [self._known[place].views.get(what) for place in batch.indices]
            if known[0] is None:
                return None
            hidden = None if known[0].hidden is None else padded([k.hidden for k in known])
            return ResponseReference(logps=padded([k.logps for k in known]), hidden=hidden)

        known = {what: response(what) for what in ("chosen", "rejected", "rejected_image")}
        return ReferenceScores(
            views={what: said for what, said in known.items() if said is not None}
        )


def compute_fast(
    family: str, config: TrialConfig, encoder: PairEncoder, batch: PairBatch, *,
    held: str = "fp32", chunk: int = 512, shared: bool = False, stored: bool = False,
    again: bool = False,
) -> tuple[float, torch.Tensor]:  # fmt: skip
    """Return loss and all gradients of the product's step."""
    model = make_policy_model(family, config, held)
    if again:
        recompute_layers(model)
    policy = Policy(model, config.objective, logits_chunk=chunk)
    reference: ReferenceSource
    with ExitStack() as stack:
        if shared:
            stack.enter_context(use_packed_attention(model))
            policy.prefix_sharing = True
        if stored:
            reference = StoredReference(build_model(family, held)[0], encoder, policy)
        else:
            reference = make_original_reference(family, config, policy)
        loss = policy(batch, reference.scores(batch), reference.head).loss.mean()
        return loss.item(), compute_gradient(loss, select_compared(model, config))


def select_compared(model: Any, config: TrialConfig) -> list[Any]:
    """Select what is trained; in bf16 but for the embeddings.

    Their gradient is torch's own: on a CPU it is added up in bf16, one token after the other, so
    that it is further off the more tokens a batch has; on CUDA in fp32.
    """
    trained = set_trained(model, config)
    embeddings = model.get_input_embeddings().weight
    if not model.as_in_bf16:
        return trained
    return [parameter for parameter in trained if parameter is not embeddings]


def make_original_reference(family: str, config: TrialConfig, policy: Policy) -> LiveReference:
    """Make a live reference of the weights before they moved."""
    model = policy.model
    moved = {name: value.clone() for name, value in model.state_dict().items()}
    start = attach_adapters(copy.deepcopy(build_model(family)[0]), config).state_dict()
    model.load_state_dict(start)
    reference = LiveReference(policy, config)
    model.load_state_dict(moved)
    return reference


def compute_naive(
    family: str, config: TrialConfig, batch: PairBatch, *, held: str = "fp32"
) -> tuple[float, torch.Tensor]:
    """Return loss and all gradients from whole logits of separate passes, pair by pair."""
    model = make_policy_model(family, config, held)
    reference, processor = build_model(family, held)
    loss = compute_naive_loss(model, reference, batch, config, processor.tokenizer.eos_token_id)
    return loss.item(), compute_gradient(loss, select_compared(model, config))


@cache
def compute_expected(family: str, *parts: tuple[str, str]) -> tuple[float, torch.Tensor]:
    """Return what `compute_naive` gives for the three pairs and these parts' training.

    It is computed once for all switches.
    """
    config = make_config(**dict(parts))
    return compute_naive(
        family, config, PairEncoder(build_model(family)[1], config, PAIRS).encode_batch(range(3))
    )


def compute_gradient(loss: torch.Tensor, trained: list[Any]) -> torch.Tensor:
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(parameter) if gradient is None else gradient).flatten()
            for parameter, gradient in zip(trained, found, strict=True)
        ]
    )


def compute_relative_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("switches", SWITCHES)
def test_every_switch_gives_the_plain_loss_and_gradients(family: str, switches: str) -> None:
    chosen = dict(SWITCHES[switches])
    parts = {part: chosen.pop(part) for part in PARTS if part in chosen}
    config = make_config(**parts)
    encoder = PairEncoder(build_model(family)[1], config, PAIRS)
    batch = encoder.encode_batch(range(3))
    loss, gradient = compute_fast(family, config, encoder, batch, **chosen)
    true_loss, true_gradient = compute_expected(family, *parts.items())
    assert loss == pytest.approx(true_loss, rel=EXACT)
    assert compute_relative_distance(gradient, true_gradient) <= EXACT


# Rounding scatters: one draw's ratio says little, least where few weights are trained.
@pytest.mark.parametrize(
    ("family", "switches", "draws"),
    [
        *((family, "all", 2) for family in sorted(families.FAMILIES)),
        *((family, "all with an adapter", 8) for family in ("llava", "qwen3_vl")),
    ],
)
def test_bf16_is_no_further_from_the_truth_than_separate_passes(
    family: str, switches: str, draws: int
) -> None:
    chosen = dict(SWITCHES[switches])
    language_model = chosen.pop("language_model", "full")
    squares = torch.zeros(2, dtype=torch.float64)
    for seed in range(draws):
        config = make_config(language_model=language_model, seed=seed)
        encoder = PairEncoder(build_model(family)[1], config, PAIRS)
        batch = encoder.encode_batch(range(3))
        _, true = compute_naive(family, config, batch, held="rounded")
        _, separate = compute_naive(family, config, batch, held="bf16")
        _, ours = compute_fast(family, config, encoder, batch, held="bf16", **chosen)
        squares += (
            torch.tensor(
                [compute_relative_distance(ours, true), compute_relative_distance(separate, true)]
            )
            ** 2
        )
    ours_apart, separate_apart = squares.sqrt().tolist()
    assert ours_apart <= IN_BF16 * separate_apart


WORDS = ["a", "red", "dog", "cat", "car", "on", "the", "."]
texts = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)  # "": an end of turn alone


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@given(
    responses=st.lists(st.tuples(texts, texts), min_size=1, max_size=4),
    alike=st.booleans(),
    objective=st.sampled_from(["dpo", "chip", "tdpo", "cmdpo"]),
    chunk=st.sampled_from([3, 512]),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_lengths_and_batches(
    family: str, responses: list[tuple[str, str]], alike: bool, objective: str, chunk: int
) -> None:
    pairs = [
        dataclasses.replace(PAIRS[place % 3], chosen=chosen, rejected=chosen if alike else rejected)
        for place, (chosen, rejected) in enumerate(responses)
    ]
    config = make_config(objective=objective)
    encoder = PairEncoder(build_model(family)[1], config, pairs)
    batch = encoder.encode_batch(range(len(pairs)))
    loss, gradient = compute_fast(family, config, encoder, batch, chunk=chunk, shared=True)
    true_loss, true_gradient = compute_naive(family, config, batch)
    assert loss == pytest.approx(true_loss, rel=EXACT, abs=1e-6)
    # Equal responses cancel in DPO: what is left of the gradient is rounding of its two parts.
    scale = max(float(true_gradient.norm()), 0.1)
    assert float((gradient - true_gradient).norm()) <= EXACT * scale


@pytest.fixture
def policy() -> Policy:
    return Policy(copy.deepcopy(build_model("llava")[0]), make_config().objective)


@pytest.fixture
def pair() -> PairBatch:
    return PairEncoder(build_model("llava")[1], make_config(), PAIRS).encode_batch([0])


def get_attention_kind(policy: Policy) -> str:
    return str(policy.model.get_decoder().config._attn_implementation)


def test_what_is_exact_is_on_for_as_long_as_it_is_asked(policy: Policy, pair: PairBatch) -> None:
    marks = [parameter.requires_grad for parameter in policy.parameters()]
    with share_prefixes(policy, pair) as outcome:
        assert outcome == SHARING_ON
        assert policy.prefix_sharing
        assert get_attention_kind(policy) == packing.PACKED_ATTENTION
        assert marks == [parameter.requires_grad for parameter in policy.parameters()]
        assert all(parameter.grad is None for parameter in policy.parameters())
    assert not policy.prefix_sharing
    assert get_attention_kind(policy) == "sdpa"


def test_prefix_sharing_can_be_switched_off(policy: Policy, pair: PairBatch) -> None:
    with share_prefixes(policy, pair, "off") as outcome:
        assert outcome == "off (engine.prefix_sharing: off)"
        assert not policy.prefix_sharing


def test_another_attention_is_left_alone(policy: Policy, pair: PairBatch) -> None:
    policy.model.set_attn_implementation("eager")
    with share_prefixes(policy, pair) as outcome:
        assert outcome == "off (its attention is eager, not sdpa)"
    assert get_attention_kind(policy) == "eager"


def test_what_the_attention_cannot_do_is_refused(policy: Policy, pair: PairBatch) -> None:
    layers = policy.model.get_decoder().layers

    def windowed(module: Any, given: Any, named: dict[str, Any]) -> Any:
        return given, {**named, "sliding_window": 4}

    layers[0].self_attn.register_forward_pre_hook(windowed, with_kwargs=True)
    assert find_prefix_sharing_problem(policy, pair) == "its attention has sliding_window"


def test_a_wrong_mask_is_found(
    policy: Policy, pair: PairBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = packing.attention

    def wrong(*given: Any, packing: Any = None, **named: Any) -> Any:
        return right(*given, **named)  # every token sees all before it

    monkeypatch.setattr(packing, "attention", wrong)
    reason = find_prefix_sharing_problem(policy, pair)
    assert reason is not None and reason.startswith("hidden states differ by ")


def test_a_model_that_scales_its_logits_is_refused(policy: Policy, pair: PairBatch) -> None:
    policy.model.lm_head.register_forward_hook(lambda module, given, made: made * 0.5)
    with (
        pytest.raises(Exception, match="logits are not its last hidden states times"),
        share_prefixes(policy, pair),
    ):
        pass


def test_running_out_of_memory_is_no_inexactness(
    policy: Policy, pair: PairBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("chip_core.training.exactness.compute_response_states", full)
    with pytest.raises(torch.OutOfMemoryError):
        find_prefix_sharing_problem(policy, pair)


@pytest.mark.gpu
@pytest.mark.parametrize("held", ["fp32", "bf16"])
def test_the_fast_step_is_exact_on_a_gpu(family: str, held: str) -> None:
    config = make_config()
    policy = Policy(copy.deepcopy(build_model(family, held)[0]).cuda(), config.objective)
    pair = (
        PairEncoder(build_model(family)[1], config, PAIRS)
        .encode_batch([0])
        .to(torch.device("cuda"))
    )
    assert find_prefix_sharing_problem(policy, pair) is None


@pytest.mark.parametrize("wanted", ["auto", "off"])
def test_a_trial_says_how_it_was_trained(
    shapes_config: Callable[..., TrialConfig], tmp_path: Path, wanted: str
) -> None:
    config = shapes_config(engine__prefix_sharing=wanted, training__max_steps=1)
    run_trial(config, folder=tmp_path)
    result = read_result(tmp_path)
    assert result is not None
    said = {"auto": "on", "off": "off (engine.prefix_sharing: off)"}
    assert result.engine == {
        "reference": "live",
        "image_features": "computed",
        "prefix_sharing": said[wanted],
    }


def test_a_result_of_before_is_read(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"steps": 1, "evaluations": {}, "seconds": {}}')
    result = read_result(tmp_path)
    assert result is not None and result.engine == {}


class TwoWorkers(Workers):
    """This worker and one more, which says of everything what it is told to."""

    said: Any = None

    def gather_results(self, make: Callable[[], Any]) -> list[Any]:
        return [make(), type(self).said]


def test_where_one_worker_cannot_share_prefixes_none_does(policy: Policy, pair: PairBatch) -> None:
    class Other(TwoWorkers):
        said = "its GPU rounds otherwise"

    with share_prefixes(policy, pair, "auto", Other(size=2)) as sharing:
        assert sharing == "off (its GPU rounds otherwise)"
        assert not policy.prefix_sharing
    with share_prefixes(policy, pair, "auto", TwoWorkers(size=2)) as sharing:
        assert sharing == SHARING_ON
