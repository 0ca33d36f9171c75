"""Decoder layers that are compiled, against the same layers as they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chip_core.config.trial import TrialConfig
from chip_core.config.validation import parse_trial_config
from chip_core.data.batches import PairEncoder
from chip_core.evaluation.readiness import find_unmet_requirements
from chip_core.models import layers
from chip_core.models.adapters import attach_adapters
from chip_core.models.layers import compile_layers, recompute_layers
from chip_core.models.packing import use_packed_attention
from chip_core.models.parts import set_trained
from chip_core.training.policy import LiveReference, Policy
from chip_core.trial import run_trial
from chip_core.utils.errors import ConfigError, TrialError
from chip_core.utils.files import read_records

from .. import families
from ..training.test_exactness import PAIRS, make_config


class GraphCounter:
    """A backend that leaves a graph as it is and counts how many it was given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward  # type: ignore[no-any-return]


class PolicyStep:
    """A step of a policy: its loss and its gradient, as one vector."""

    def __init__(self, config: TrialConfig, *, shared: bool) -> None:
        model, processor = families.build("llava")
        self.model = attach_adapters(model, config).eval()
        if config.engine.gradient_checkpointing:
            recompute_layers(self.model)
        self._config = config
        self.compute()
        self._policy = Policy(self.model, config.objective, prefix_sharing=shared)
        self._reference = LiveReference(self._policy, config)
        self._encoder = PairEncoder(processor, config, PAIRS)

    def compute(self, *, encoder_alone: bool = False) -> None:
        """Be at a stage of a training."""
        self._trained = set_trained(self.model, self._config, encoder_alone=encoder_alone)

    def __call__(self, places: list[int]) -> tuple[float, Tensor]:
        batch = self._encoder.encode_batch(places)
        known = self._reference.scores(batch)
        loss = self._policy(batch, known, self._reference.head).loss.sum()
        gradients = torch.autograd.grad(loss, self._trained, allow_unused=True)
        return loss.item(), torch.cat([part.flatten() for part in gradients if part is not None])


def make_layers_config(
    language_model: str, *, again: bool, vision_encoder: str = "frozen"
) -> TrialConfig:
    return make_config(
        language_model=language_model,
        vision_encoder=vision_encoder,
        engine={"gradient_checkpointing": again, "compile": "layers"},
    )


#: Operators for `varlen_attn` and its gradient, as a compiler sees them: with nothing to look into.
@torch.library.custom_op("chip_test::sequences", mutates_args=())
def attend_sequences(
    query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor, scale: float
) -> Tensor:
    return _attend_by_definition(query, key, value, queries, keys, scale, None)[0]


@torch.library.custom_op("chip_test::sequences_backward", mutates_args=())
def attend_sequences_backward(
    of_made: Tensor, query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    _, *gradients = _attend_by_definition(query, key, value, queries, keys, scale, of_made)
    return tuple(gradients)


def _attend_by_definition(
    query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor, scale: float,
    of_made: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    """Compute softmax(q kᵀ) v of each sequence, (T, H, d), and its gradients, written out."""
    made = torch.empty_like(query)
    gradients = [torch.zeros_like(part) for part in (query, key, value)]
    groups = query.shape[1] // key.shape[1]
    for row, seen in zip(
        queries.unfold(0, 2, 1).tolist(), keys.unfold(0, 2, 1).tolist(), strict=True
    ):
        rows, places = slice(*row), slice(*seen)
        q = query[rows].transpose(0, 1)
        k, v = (part[places].repeat_interleave(groups, 1).transpose(0, 1) for part in (key, value))
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        p = (q @ k.mT * scale).masked_fill(~mask, -torch.inf).softmax(-1)
        made[rows] = (p @ v).transpose(0, 1)
        if of_made is None:
            continue
        of = of_made[rows].transpose(0, 1)
        of_p = of @ v.mT
        of_scores = p * (of_p - (of_p * p).sum(-1, keepdim=True)) * scale
        for gradient, place, part in zip(
            gradients,
            (rows, places, places),
            (of_scores @ k, of_scores.mT @ q, p.mT @ of),
            strict=True,
        ):
            one = part.transpose(0, 1)
            gradient[place] += one.unflatten(1, (gradient.shape[1], -1)).sum(2)
    return [made, *gradients]


attend_sequences.register_fake(lambda query, *others: torch.empty_like(query))
attend_sequences_backward.register_fake(
    lambda of, q, k, v, *others: tuple(map(torch.empty_like, (q, k, v)))
)
attend_sequences.register_autograd(
    lambda ctx, of: (
        *attend_sequences_backward(of, *ctx.saved_tensors, ctx.scale),
        None,
        None,
        None,
    ),
    setup_context=lambda ctx, inputs, output: _save_for_backward(ctx, *inputs),
)


def _save_for_backward(ctx: Any, *inputs: Any) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.scale = inputs[5]


@pytest.fixture
def fused_kernel_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernel of a GPU on a CPU, in fp32."""

    def kernel(*given: Any, scale: float, **others: Any) -> Tensor:
        return attend_sequences(*given[:5], scale)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    monkeypatch.setattr("chip_core.models.packing._HALF_DTYPES", (torch.float32,))


@pytest.mark.parametrize(
    ("language_model", "again", "rows"),
    [
        ("lora", True, "fused"),
        pytest.param("lora", True, "pieces", marks=pytest.mark.slow),
        pytest.param("full", False, "pieces", marks=pytest.mark.slow),
        pytest.param("full", True, "separate", marks=pytest.mark.slow),
    ],
)
def test_rows_of_all_lengths_take_the_code_of_the_first_and_nothing_is_left_behind(
    fused_kernel_on_cpu: None, language_model: str, again: bool, rows: str
) -> None:
    """What is compiled is known by then: with gradients and without, adapters on and off."""
    shared = rows != "separate"
    step = PolicyStep(make_layers_config(language_model, again=again), shared=shared)
    with use_packed_attention(step.model, fused=rows == "fused"):
        batches = [[0], [1], [2, 1], [0, 1, 2]]
        plain = [step(places) for places in batches]
        backend, made = GraphCounter(), []
        with compile_layers(step.model, backend):
            for places in batches:
                before = backend.graphs
                made.append(step(places))
                first = places == batches[0]
                if first or (places == [2, 1] and not shared):  # rows of one are of their own kind
                    assert backend.graphs > before
                else:
                    assert backend.graphs == before
        for (loss, gradient), (own, of_own) in zip(plain, made, strict=True):
            assert own == pytest.approx(loss, rel=1e-6)
            assert float((of_own - gradient).norm() / gradient.norm()) < 1e-6
        if again:  # they are computed again by transformers, as before
            recompute_layers(step.model)
        if rows == "fused":  # a graph a layer, and all layers share it
            assert backend.graphs <= 4
        after = step(batches[0])
        assert backend.graphs and after[0] == plain[0][0]
        assert torch.equal(after[1], plain[0][1])


@pytest.mark.parametrize("language_model", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_staged_training_calls_its_layers_in_fewer_ways_than_torch_makes_code_for(
    fused_kernel_on_cpu: None, language_model: str
) -> None:
    """The encoder alone and then all, rows of all lengths, the reference computed beside them."""
    step = PolicyStep(
        make_layers_config(language_model, again=True, vision_encoder="staged"), shared=True
    )
    batches = [[0], [1], [2, 1], [0, 1, 2]]

    def steps() -> list[tuple[float, Tensor]]:
        made = []
        for encoder_alone in (True, False):
            step.compute(encoder_alone=encoder_alone)
            made += [step(places) for places in batches]
        return made

    with use_packed_attention(step.model, fused=True):
        plain = steps()
        backend = GraphCounter()
        with compile_layers(step.model, backend):
            made = steps()
            graphs = backend.graphs
            assert steps() and backend.graphs == graphs  # again, and nothing is made anew
        assert 2 <= graphs < torch.compiler.config.recompile_limit  # type: ignore[attr-defined]
    for (loss, gradient), (own, of_own) in zip(plain, made, strict=True):
        assert own == pytest.approx(loss, rel=1e-6)
        assert float((of_own - gradient).norm() / gradient.norm()) < 1e-6


def test_layers_that_torch_would_leave_uncompiled_end_the_training(
    fused_kernel_on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: Any = torch.compiler.config
    monkeypatch.setattr(settings, "recompile_limit", 1)
    step = PolicyStep(make_layers_config("lora", again=False), shared=True)
    told = (
        "engine.compile: layers: this training calls its layers in more than 1 ways, and each "
        "way is compiled separately: write engine.compile: off"
    )
    with use_packed_attention(step.model, fused=True):
        with pytest.raises(TrialError) as refused, compile_layers(step.model, GraphCounter()):
            step([0])  # without gradients and with them
        assert str(refused.value) == told
        assert not settings.fail_on_recompile_limit_hit  # as before
        assert step([0])


def test_a_decoder_without_known_layers_is_refused() -> None:
    class Model(nn.Module):
        def get_decoder(self) -> nn.Module:
            return nn.Linear(1, 1)

    told = pytest.raises(TrialError, match="has no layers that transformers marks as layers")
    with told, compile_layers(Model()):
        pass


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        (
            {"engine": {"compile": "layers", "workers_per_trial": 2}},
            "trial: engine: compile is layers, which is for one worker, but workers_per_trial is "
            "2: write compile: off, or workers_per_trial: 1",
        ),
        (
            {"engine": {"compile": "layers"}, "model": {"path": "x", "quantize": "nf4"},
             "language_model": "lora"},
            "trial: engine.compile is layers, but layers with model.quantize nf4 are not "
            "compiled: write engine.compile: off, or model.quantize: none",
        ),
        (
            {"engine": {"compile": "all"}},
            "trial: engine.compile: unknown level 'all': choices: layers, off",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_in_a_line(beside: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_trial_config({"model": "x", **beside}, "trial")
    (line,) = refused.value.problems
    assert line == told


def test_missing_requirements_of_compiling_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = make_config(engine={"compile": "layers"})
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/" + name)
    assert find_unmet_requirements(wanted) == []
    monkeypatch.setattr("shutil.which", lambda name: None)
    (line,) = find_unmet_requirements(wanted)
    assert re.match(r"engine.compile is layers, but there is no C\+\+ compiler here \(.*\): ", line)
    monkeypatch.setattr("chip_core.evaluation.readiness.find_spec", lambda name: None)
    (line,) = find_unmet_requirements(make_config(engine={"compile": "layers", "device": "cuda"}))
    assert line.startswith("engine.compile is layers, but triton is not installed here")


@pytest.mark.slow
def test_a_trial_is_compiled_and_the_next_one_of_its_slot_is_not(
    shapes_config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """By the compiler that a training takes; on a quiet machine it is half a minute."""
    settings = {"training__max_steps": 2, "language_model": "lora"}
    made = [
        run_trial(shapes_config(engine__compile=how, **settings), folder=tmp_path / str(number))
        for number, how in enumerate(("off", "layers", "off"))
    ]
    assert [result.engine.get("compile") for result in made] == [None, "layers", None]
    curves = [read_records(tmp_path / str(number) / "curves.jsonl") for number in range(3)]
    plain, own, after = ([point["figures"]["loss"] for point in curve] for curve in curves)
    assert own == pytest.approx(plain, rel=1e-5)
    assert after == plain


@pytest.mark.slow
def test_code_that_does_not_compute_what_the_layers_do_is_refused(
    shapes_config: Callable[..., TrialConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(graph: Any, inputs: Any) -> Callable[..., Any]:
        def off(part: Any) -> Any:  # sizes go through as they are
            return part * 1.001 if isinstance(part, Tensor) and part.requires_grad else part

        return lambda *given: [off(part) for part in graph.forward(*given)]

    monkeypatch.setattr(layers, "INDUCTOR", wrong)
    with pytest.raises(TrialError, match="hidden states differ by .*write engine.compile: off"):
        run_trial(shapes_config(engine__compile="layers"), folder=tmp_path)
