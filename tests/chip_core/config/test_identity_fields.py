"""Every field of the configuration: an edit of it changes the fingerprint, or not, as declared."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from chip_core.config.identity import fingerprint, training_identity
from chip_core.config.trial import TrialConfig
from chip_core.config.validation import set_key
from chip_core.objectives.methods import METHODS

MODEL, DATA = {"content": "abc"}, {"files": [["a.jsonl", "def"]], "format": "jsonl"}
#: Where as many fields count as can at a time: every term, a staged encoder, adapters.
BASE: dict[str, Any] = {
    "model": "shapes",
    "data": {"source": "a.jsonl"},
    "objective": {"terms": ["response", "segment", "token", "visual", "anchor"]},
    "vision_encoder": "staged",
    "language_model": "lora",
}
#: A field that can change figures -> another value than its default, at which it counts in BASE.
COUNTS: dict[str, Any] = {
    "model.dtype": "bf16",
    "model.quantize": "nf4",
    "data.split": "test",
    "data.limit": 7,
    "data.transparency": "drop",
    "data.on_bad_row": "skip",
    "objective.form": "one_sigmoid",
    "objective.terms": ["response", "token", "visual"],
    "objective.weights.response": 2.0,
    "objective.weights.segment": 2.0,
    "objective.weights.token": 2.0,
    "objective.weights.visual": 2.0,
    "objective.beta": 0.2,
    "objective.betas.response": 0.3,
    "objective.betas.segment": 0.3,
    "objective.betas.token": 0.3,
    "objective.betas.visual": 0.3,
    "objective.betas.anchor": 0.3,
    "objective.segment.normalize": "changed_tokens",
    "objective.segment.insertions": True,
    "objective.segment.scope": "sequence",
    "objective.token.form": "sigmoid",
    "objective.anchor.delta": 0.5,
    "objective.anchor.weight": 2.0,
    "objective.average_logps": True,
    "rejected_image.strategy": "crop",
    "rejected_image.diffusion.timestep": 100,
    "rejected_image.diffusion.schedule": "linear",
    "rejected_image.redraw": "each_epoch",
    "rejected_image.corruption_seed": "per_trial",
    "vision_encoder": "trained",
    "staged.share": 0.5,
    "projector": "frozen",
    "language_model": "full",
    "lora.rank": 4,
    "lora.alpha": 8.0,
    "lora.targets": ["q_proj"],
    "reference_cache": "bf16",
    "optimizer.lr": 1e-3,
    "optimizer.betas": [0.8, 0.99],
    "optimizer.eps": 1e-7,
    "optimizer.weight_decay": 0.1,
    "optimizer.schedule": "constant",
    "optimizer.warmup": 0.5,
    "optimizer.clip": 1.0,
    "optimizer.vision_lr": 1e-3,
    "optimizer.projector_lr": 1e-3,
    "optimizer.states": "int8",
    "training.epochs": 2,
    "training.max_steps": 9,
    "training.batch_size": 2,
    "training.max_length": 64,
    "training.label_rule": "released",
    "training.augment": "released",
    "training.score_at": [0.5],
    "seed": 5,
}
#: The same of fields that count under another strategy alone.
UNDER_STRATEGY: dict[str, Any] = {
    "crop.width": 10,
    "crop.height": 10,
    "crop.share": 0.5,
    "rotate.low": 20.0,
    "rotate.high": 90.0,
    "lighting.low": 0.2,
    "lighting.high": 0.5,
    "occlusion.boxes": 2,
    "occlusion.share": 0.2,
    "occlusion.fill": "black",
    "blur.radius": 0.5,
    "mixup.weight": 0.3,
}
#: Settings of presets that are sums of losses of margins -> (a preset that has it, a value).
UNDER_PRESET: dict[str, tuple[str, Any]] = {
    "losses": ("ipo", {"hinge": 1.0}),
    "label_smoothing": ("robust", 0.2),
    "tau": ("discopop", 0.1),
    "f_divergence": ("ipo", "forward_kl"),
    "f_alpha": ("alpha_divergence", 0.3),
    "ld_alpha": ("ld_dpo", 0.3),
    "shift": ("bco_pair", True),
    "symmetric": ("symmpo", 1.0),
    "second_beta": ("symmpo", 0.2),
    "consistency": ("symmpo", 0.0),
    "token_weights": ("tpo", "multiplied"),
    "gamma": ("vdpo", 1.5),
    "guidance": ("vdpo", "reference"),
    "keep": ("dama", 0.5),
    "score_mean": ("dama", 0.1),
    "momentum": ("dama", 0.5),
    "smallest_beta": ("dama", 0.01),
    "alpha": ("dadpo", 0.5),
    "length": ("opadpo", 24),
    "masked": ("opadpo", 0.3),
}
#: Settings of pairs of the model's own answers, which count where there are rounds of them.
UNDER_ROUNDS: dict[str, Any] = {
    "prompts": 9,
    "answers": 3,
    "temperature": 0.7,
    "top_p": 0.9,
    "max_new_tokens": 9,
    "ranker": "chip_core.pairs.make:choose_pair",  # any function
    "margin": 2.0,
}
#: Fields that count by what they come to, and the test of that.
RESOLVED = {
    "model.path": "by its weights: test_identity",
    "model.revision": "by its weights: test_identity",
    "model.trust_remote_code": "with the code that comes with the weights: test_own",
    "data.source": "by its content: test_identity",
    "data.revision": "by its content: test_identity",
    "data.format": "the one that was found: test_identity",
    "training.master": "it has one level",
    "training.pick": "with training.score_at alone: test_selection",
    "training.gradients": "with model.dtype bf16 alone: test_identity",
    "pairs.rounds": "it allows one worker: below",
    "pairs.judge": "under its ranker: test_rounds",
    "objective.preset": "by its terms: test_identity",
    "objective.custom": "with the source of each term: test_registry",
    "rejected_image.parameters": "with the source of the strategy: test_registry",
    "rejected_image.inpaint": "with the hash of its pipeline: test_configuration",
    "benchmarks": "scored under the training, with a fingerprint of their own: test_identity",
    "evaluation": "as benchmarks: test_identity",
}
#: Fields that change how the work is done -> another value.
CHANGES_NOTHING: dict[str, Any] = {
    "data.image_root": "/elsewhere",
    "engine.micro_batch": 1,
    "engine.device": "cpu",
    "engine.threads": 3,
    "engine.workers_per_trial": 2,
    "engine.gpus_per_worker": 1.0,
    "engine.cpus_per_worker": 2,
    "engine.parallel": "fsdp",
    "engine.bucket": False,
    "engine.loader_workers": 3,
    "engine.generation_batch": 3,
    "engine.retries": 1,
    "engine.fresh_process": True,
    "engine.stall_after": 60.0,
    "engine.log_every": 7,
    "engine.checkpoint_every": 7,
    "engine.gradient_checkpointing": True,
    "engine.prefix_sharing": "off",
    "engine.feature_cache": "on",
    "engine.logits_chunk": 3,
    "engine.compile": "layers",
    "engine.attention": "eager",
}


def iter_leaves(model: type[BaseModel], prefix: str = "", declared: str = "in") -> Iterator[Any]:
    """Yield (path, "in" or "out") of every field that is no section; below "out" all is out."""
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, Mapping), f"{prefix}{name} is declared neither in nor out"
        own = "out" if declared == "out" else str(extra["fingerprint"])
        kind = field.annotation
        if f"{prefix}{name}" in RESOLVED:
            yield f"{prefix}{name}", own
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from iter_leaves(kind, f"{prefix}{name}.", own)
        else:
            below = [one for one in get_args(kind) if isinstance(one, type)]
            assert not any(issubclass(one, BaseModel) for one in below), f"{prefix}{name}"
            yield f"{prefix}{name}", own


def make_fingerprint(edits: Mapping[str, Any]) -> str:
    tree: dict[str, Any] = {key: _copy_tree(value) for key, value in BASE.items()}
    for path, value in sorted(edits.items()):
        set_key(tree, path, value)
    return fingerprint(training_identity(TrialConfig.model_validate(tree), MODEL, DATA))


def _copy_tree(value: Any) -> Any:
    return (
        {key: _copy_tree(below) for key, below in value.items()}
        if isinstance(value, dict)
        else value
    )


plain = functools.cache(lambda: make_fingerprint({}))


def test_every_field_is_in_one_of_the_tables() -> None:
    found = dict(iter_leaves(TrialConfig))
    counts = {*COUNTS, *RESOLVED, *(f"rejected_image.{name}" for name in UNDER_STRATEGY)}
    counts |= {f"objective.method.{name}" for name in UNDER_PRESET}
    counts |= {f"pairs.{name}" for name in UNDER_ROUNDS}
    assert {path for path, declared in found.items() if declared == "in"} == counts
    assert {path for path, declared in found.items() if declared == "out"} == set(CHANGES_NOTHING)


@pytest.mark.parametrize("path", COUNTS)
def test_an_edit_of_a_field_that_counts_makes_another_trial(path: str) -> None:
    under = {
        "objective.form": {"objective.terms": ["response"]},
        "model.quantize": {"language_model": "lora"},
    }.get(path, {})
    assert make_fingerprint({**under, path: COUNTS[path]}) != make_fingerprint(under)


@pytest.mark.parametrize("path", UNDER_STRATEGY)
def test_a_strategys_setting_counts_under_that_strategy_alone(path: str) -> None:
    under = {"rejected_image.strategy": path.split(".")[0]}
    edit = {f"rejected_image.{path}": UNDER_STRATEGY[path]}
    assert make_fingerprint({**under, **edit}) != make_fingerprint(under)
    assert make_fingerprint(edit) == plain()


@pytest.mark.parametrize("name", UNDER_ROUNDS)
def test_a_setting_of_sampled_pairs_counts_where_there_are_rounds(name: str) -> None:
    edit = {f"pairs.{name}": UNDER_ROUNDS[name]}
    under = {"pairs.rounds": 1}
    assert make_fingerprint({**under, **edit}) != make_fingerprint(under) != plain()
    assert make_fingerprint(edit) == plain()


@pytest.mark.parametrize("name", UNDER_PRESET)
def test_a_presets_setting_counts_under_presets_that_have_it_alone(name: str) -> None:
    preset, value = UNDER_PRESET[name]
    edit = {f"objective.method.{name}": value}
    under = {"objective": preset}
    assert make_fingerprint({**under, **edit}) != make_fingerprint(under)
    assert make_fingerprint(edit) == plain()
    default = METHODS[preset].settings[name]
    # Null means it.
    assert make_fingerprint({**under, f"objective.method.{name}": default}) == make_fingerprint(
        under
    )


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(sorted(CHANGES_NOTHING)), min_size=1))
def test_edits_that_change_no_figure_keep_the_fingerprint(paths: set[str]) -> None:
    assert make_fingerprint(make_neutral_edits(paths)) == plain()


def make_neutral_edits(paths: set[str]) -> dict[str, Any]:
    """Make edits that change no figure; layers are compiled for one worker alone."""
    alone = {"engine.workers_per_trial"} if "engine.compile" in paths else set()
    return {path: CHANGES_NOTHING[path] for path in paths - alone}


#: Edits that go together: none makes another one inert, and no form refuses them.
TOGETHER = sorted(
    path
    for path in COUNTS.keys() - {"model.quantize"}  # which takes adapters
    if path.split(".")[0] in ("model", "data", "optimizer", "training", "seed", "lora")
    or path.startswith(("objective.weights.", "objective.betas.", "rejected_image.diffusion."))
)


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.sampled_from(TOGETHER)),
    st.sets(st.sampled_from(TOGETHER)),
    st.sets(st.sampled_from(sorted(CHANGES_NOTHING))),
)
def test_fingerprints_are_equal_where_the_edits_that_count_are(
    one: set[str], other: set[str], beside: set[str]
) -> None:
    with_more = make_neutral_edits(beside)
    ours = make_fingerprint({path: COUNTS[path] for path in one})
    theirs = make_fingerprint({**with_more, **{path: COUNTS[path] for path in other}})
    assert (ours == theirs) == (one == other)
