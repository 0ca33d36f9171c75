"""Check that trainings on this GPU are correct, and measure their speed, without network.

    python -m benchmarks.gpu_acceptance --out DIR
    python -m benchmarks.gpu_acceptance --out DIR --size tiny --device cpu   # the same code, no GPU

It needs torch, transformers, peft, safetensors, numpy, pillow, pydantic and pyyaml, and writes
DIR/acceptance.json. Models are built from their configuration with random weights. A part that
fails is a row with its reason; the others continue.

exact fp32, exact bf16   a packed row against separate passes; a reference that was written and read
                         against a live one; the log-ratio before the first step
repeat, resume           two equal trainings; one that was stopped and went on: weights to the bit
fsdp                     FSDP2 with one rank against none
lora, full               the trainer's own steps: tokens/s, MFU, peak memory against the estimate
ways                     naive, live and stored reference, TRL where it is there (benchmarks.gpu)
answers                  items answered a second

The first four parts are of a small model on the device, the others of `--size`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import tempfile
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import SIZES, find_peak_operations, measure
from benchmarks.machine import describe_machine, format_machine
from benchmarks.workload import Workload
from chip_core.config.trial import TrialConfig
from chip_core.data.preferences import Pairs, PreferencePair
from chip_core.data.tensors import PairBatch
from chip_core.models.adapters import attach_adapters
from chip_core.models.packing import use_packed_attention
from chip_core.models.parts import set_trained
from chip_core.models.precision import DTYPES
from chip_core.objectives.scores import ReferenceScores, ResponseReference
from chip_core.results import CURVES
from chip_core.training.footprint.estimate import estimate_footprint, estimate_operations
from chip_core.training.footprint.step import RowShape
from chip_core.training.parallel import Compute
from chip_core.training.policy import Policy
from chip_core.training.trainer import Trainer
from chip_core.utils.errors import StoppedError
from chip_core.utils.seeding import seed_process

#: The model of the exact comparisons: hidden 256, 2 layers.
CLOSE = {"hidden": 256, "layers": 2, "image_tokens": 144, "vocabulary": 4000}
#: Words of an answer, and of a sample's chosen and rejected responses.
WORDS, CHOSEN, REJECTED = 24, 100, 110
#: The chat template of the workload's processor.
TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}{% endfor %}"
    "{% if message.role == 'assistant' %}</s>{% endif %}{% endfor %}"
)


class ListPairs(list[PreferencePair], Pairs):
    """Pairs that are all in memory."""


@dataclass(frozen=True)
class Setting:
    """What is trained, and on which device."""

    workload: Workload
    device: torch.device
    folder: Path

    def config(
        self, *, steps: int, dtype: str = "fp32", train: str = "lora", compiled: bool = False
    ) -> TrialConfig:
        """Return a trial of CHiP with a live reference, two pairs a batch, one a pass."""
        bf16_gradients = dtype == "bf16" and train == "full"
        int8 = bf16_gradients and importlib.util.find_spec("torchao") is not None
        return TrialConfig.model_validate(
            {
                "model": {"path": "acceptance", "dtype": dtype},
                "language_model": "lora" if train == "lora" else "full",
                "vision_encoder": "frozen",
                "reference_cache": "off",
                "optimizer": {"lr": 1e-4, "states": "int8" if int8 else "fp32"},
                "training": {
                    "batch_size": 2,
                    "max_steps": steps,
                    "epochs": steps,
                    "gradients": "bf16" if bf16_gradients else "fp32",
                },
                "engine": {
                    "micro_batch": 1,
                    "gradient_checkpointing": True,
                    "log_every": 1,
                    "device": self.device.type,
                    "compile": "layers" if compiled else "off",
                },
            }
        )

    def model(self, config: TrialConfig) -> Any:
        """Return the model with its adapters; the same weights each time."""
        seed_process(0)
        return attach_adapters(self.workload.built(DTYPES[config.model.dtype], self.device), config)

    def processor(self) -> Any:
        """Return the model's processor, with a template."""
        processor = self.workload.processor()
        processor.chat_template = processor.tokenizer.chat_template = TEMPLATE
        return processor

    def pairs(self, number: int) -> ListPairs:
        """Return pairs of one length."""
        rows = replace(self.workload, chosen=(CHOSEN,), rejected=(REJECTED,)).rows(number)
        return ListPairs(
            PreferencePair(
                id=str(place),
                image=row["images"][0],
                prompt=row["prompt"].replace("<image> ", ""),
                chosen=row["chosen"].removesuffix(" </s>"),
                rejected=row["rejected"].removesuffix(" </s>"),
            )
            for place, row in enumerate(rows)
        )

    @contextmanager
    def trainer(self, config: TrialConfig, name: str, compute: Compute) -> Iterator[Trainer]:
        """Open a trainer of a new model; its files go to a folder of that name."""
        folder = self.folder / name
        folder.mkdir()
        with Trainer(
            config,
            model=self.model(config),
            processor=self.processor(),
            pairs=self.pairs(4),
            folder=folder,
            compute=compute,
        ) as trainer:
            yield trainer

    @property
    def here(self) -> Compute:
        """One process on the device."""
        return Compute(device=self.device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts; return 1 if one of them failed or is not exact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=list(SIZES), default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=4, help="of each training that is timed")
    parser.add_argument("--peak-tflops", type=float, help="the device's, dense bf16")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is here: name --device cpu, with --size tiny")
    report: dict[str, Any] = {"benchmark": "gpu_acceptance", "machine": _describe_machine()}
    report["settings"] = {name: str(value) for name, value in vars(given).items()}
    given.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    report["parts"] = rows
    with tempfile.TemporaryDirectory(prefix="acceptance-") as folder:
        for name, part in _iter_parts(given, device, Path(folder)):
            rows.append(_run_part(name, part))
            if device.type == "cuda":
                torch.cuda.empty_cache()
            (given.out / "acceptance.json").write_text(json.dumps(report, indent=1) + "\n")
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return 0 if all(row["ok"] for row in rows) else 1


def _describe_machine() -> dict[str, Any]:
    try:
        machine = describe_machine()
        print(format_machine(machine), flush=True)
    except ModuleNotFoundError:  # a minimal environment has no psutil
        machine = {"torch": torch.__version__}
        if torch.cuda.is_available():
            machine["gpu"] = torch.cuda.get_device_name()
    return machine


def _run_part(name: str, part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a part; an exception becomes its row."""
    began = time.perf_counter()
    try:
        found = {"ok": True, **part()}
    except Exception as error:  # any error of a device or a library is a result
        traceback.print_exc()
        found = {"ok": False, "failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {"part": name, **found, "seconds": round(time.perf_counter() - began, 1)}


def _iter_parts(
    given: Namespace, device: torch.device, folder: Path
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    close = Setting(Workload(chosen=(9, 5), rejected=(7, 12), **CLOSE), device, folder)
    size = {"image_tokens": 576, **SIZES[given.size]}
    whole = Setting(Workload(chosen=(CHOSEN,), rejected=(REJECTED,), **size), device, folder)
    peak = find_peak_operations(given.peak_tflops, device)
    yield "exact fp32", lambda: check_exactness(close, "fp32", 1e-5)
    yield "exact bf16", lambda: check_exactness(close, "bf16", 2e-2)
    yield "repeat", lambda: check_repeatability(close)
    yield "resume", lambda: check_resumption(close)
    yield "fsdp", lambda: check_fsdp(close)
    for train in ("lora", "full"):
        yield train, lambda train=train: time_training(whole, train, given.steps, peak)  # type: ignore[misc]
    if device.type == "cuda":  # on a CPU it takes minutes and gains little
        yield (
            "lora compiled",
            lambda: time_training(whole, "lora", given.steps, peak, compiled=True),
        )
    ways = Namespace(
        size=given.size, device=given.device, train="lora", objective="dpo", pairs=1,
        image_tokens=size["image_tokens"], rounds=3, peak_tflops=given.peak_tflops,
    )  # fmt: skip
    yield "ways", lambda: measure(ways, device)
    yield "answers", lambda: time_answers(whole, items=16)


def check_exactness(setting: Setting, dtype: str, limit: float) -> dict[str, Any]:
    """Compare a packed row with separate passes, and a reference that is read with one that is not.

    Raises:
        ArithmeticError: rows are further apart than the limit, the log-ratio is not 0, or a
            reference that is read gives another loss.
    """
    config = setting.config(steps=1, dtype=dtype, train="full")
    model = setting.model(config)
    model.eval()
    trained = set_trained(model, config)
    policy = Policy(model, config.objective)
    batch = setting.workload.batch(visual=True).to(setting.device)
    found: dict[bool, tuple[Tensor, Tensor]] = {}
    with use_packed_attention(model):
        for shared in (False, True):
            policy.prefix_sharing = shared
            live = policy.reference_scores(batch)
            result = policy(batch, live)
            gradients = torch.autograd.grad(result.loss.mean(), trained)
            norms = torch.stack([part.float().norm() for part in gradients])
            known = [one.logps for one in live.views.values() if one.logps is not None]
            found[shared] = torch.cat([logps.float().flatten() for logps in known]), norms
            ratio = max(float(part.abs().max()) for part in _list_rewards(result))
            if ratio:
                raise ArithmeticError(f"the log-ratio before the first step is {ratio}, not 0")
            stored = policy(batch, _write_and_read(live, setting)).loss
            if not torch.equal(stored, result.loss):
                raise ArithmeticError("a reference that was written and read gives another loss")
    apart = [
        float((one - other).norm() / other.norm())
        for one, other in zip(found[True], found[False], strict=True)
    ]
    if not max(apart) <= limit:
        raise ArithmeticError(f"log p and gradient norms are {apart} apart, allowed is {limit}")
    return {"log p apart": apart[0], "gradient norms apart": apart[1], "log-ratio at step 0": 0.0}


def _write_and_read(scores: ReferenceScores, setting: Setting) -> ReferenceScores:
    """Return a reference's scores after writing them to a file and reading them back."""
    from safetensors.torch import load_file, save_file

    file = setting.folder / "reference.safetensors"
    save_file(
        {
            f"{view}/{name}": value.contiguous()
            for view, said in scores.views.items()
            for name, value in vars(said).items()
            if value is not None
        },
        file,
    )
    read: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(file).items():
        view, _, what = name.partition("/")
        read.setdefault(view, {})[what] = value.to(setting.device)
    return ReferenceScores(views={view: ResponseReference(**said) for view, said in read.items()})


def _list_rewards(result: Any) -> list[Tensor]:
    return [
        part.detach() for part in (result.chosen_reward, result.rejected_reward) if part is not None
    ]


def check_repeatability(setting: Setting) -> dict[str, Any]:
    """Run the same training twice.

    Raises:
        ArithmeticError: the weights differ.
    """
    config = setting.config(steps=3)
    hashes = [_train_and_hash(setting, config, f"repeat-{number}") for number in (1, 2)]
    return _require_same(*hashes)


def check_resumption(setting: Setting) -> dict[str, Any]:
    """Stop a training after its second step and resume it from the checkpoint.

    Raises:
        ArithmeticError: the weights differ from those of an uninterrupted training.
    """
    config = setting.config(steps=4)
    whole = _train_and_hash(setting, config, "whole")
    with setting.trainer(config, "stopped", setting.here) as trainer:
        asked = iter((False, True))
        with suppress(StoppedError):
            trainer.train(on_step=lambda *_: None, stop=lambda: next(asked))
    with setting.trainer(config, "resumed", setting.here) as trainer:
        trainer.train(on_step=lambda *_: None, resume_from=setting.folder / "stopped")
        return _require_same(whole, _hash_weights(trainer.model))


def check_fsdp(setting: Setting) -> dict[str, Any]:
    """Train with FSDP2 on one rank, and in one process.

    Raises:
        ArithmeticError: the last losses differ by more than rounding.
    """
    config = setting.config(steps=3)
    losses = []
    backend = "nccl" if setting.device.type == "cuda" else "gloo"
    for name in ("single", "fsdp"):
        if name == "fsdp":
            torch.distributed.init_process_group(
                backend, store=torch.distributed.HashStore(), rank=0, world_size=1
            )
        try:
            compute = Compute(device=setting.device, parallelism=name)  # type: ignore[arg-type]
            with setting.trainer(config, f"of-{name}", compute) as trainer:
                trainer.train(on_step=lambda *_: None)
        finally:
            if name == "fsdp":
                torch.distributed.destroy_process_group()
        losses.append(_read_curve(setting.folder / f"of-{name}")[-1]["loss"])
    apart = abs(losses[1] - losses[0]) / abs(losses[0])
    if not apart <= 1e-4:
        raise ArithmeticError(f"the last losses are {losses}")
    return {"loss apart": apart}


def time_training(
    setting: Setting, train: str, steps: int, peak: float | None, *, compiled: bool = False
) -> dict[str, Any]:
    """Time the trainer's own steps; the first two, in which kernels are chosen, do not count."""
    config = setting.config(steps=steps + 2, dtype="bf16", train=train, compiled=compiled)
    cuda = setting.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    name = f"{train}-compiled" if compiled else train
    with setting.trainer(config, name, setting.here) as trainer:
        shape = _find_row_shape(
            trainer.batches.encode_shortest_pair(), setting.workload.image_token
        )
        done = trainer.train(on_step=lambda *_: None)
        model_config = trainer.model.config
    curve = _read_curve(setting.folder / name)[2:]
    rate = sum(point["tokens_per_second"] for point in curve) / len(curve)
    size = config.training.batch_size
    found: dict[str, Any] = {
        "tokens/s": round(rate),
        "waits for data": round(sum(point["data_wait"] for point in curve) / len(curve), 4),
        "states": config.optimizer.states,
        "prefix sharing": done.engine["prefix_sharing"],
    }
    estimate = estimate_footprint(model_config, config, shape, stored=False)
    found["estimated GiB"] = {
        name: round(part / 2**30, 3) for name, part in estimate.parts.items()
    } | {"all": round(estimate.total / 2**30, 3)}
    if cuda:
        found["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    if peak is not None:
        made = estimate_operations(model_config, config, shape)
        seconds = size * _count_trained_tokens(shape) / rate
        # The live reference computes a forward pass more.
        found["mfu"] = round(size * (made.step + made.forward) / seconds / peak, 4)
    return found


def _find_row_shape(batch: PairBatch, image_token: int) -> RowShape:
    image = int((batch.prompts.ids == image_token).sum())
    return RowShape(
        image=image,
        text=int(batch.prompts.mask.sum()) - image,
        chosen=int(batch.chosen.mask.sum()),
        rejected=int(batch.rejected.mask.sum()),
    )


def _count_trained_tokens(shape: RowShape) -> int:
    """Tokens of a pair as the trainer counts them: a prompt once for each response."""
    return 3 * shape.prompt + 2 * shape.chosen + shape.rejected


def time_answers(setting: Setting, items: int) -> dict[str, Any]:
    """Answer questions on pictures of their own, in one batch."""
    # Imported here: if a minimal environment lacks a part of it, only this part fails.
    from chip_core.evaluation.inference import generate
    from chip_core.evaluation.task import Item, Picture

    config = setting.config(steps=1, dtype="bf16")
    model = setting.model(config)
    asked = [
        Item(
            id=pair.id,
            prompt=pair.prompt,
            pictures=(Picture(key=pair.id, read=lambda image=pair.image: image),),  # type: ignore[misc]
        )
        for pair in setting.pairs(items)
    ]
    processor = setting.processor()
    settings = {"max_new_tokens": WORDS, "batch_size": items, "bf16": True}
    generate(model, processor, asked[:2], **settings)
    began = time.perf_counter()
    generate(model, processor, asked, **settings)
    seconds = time.perf_counter() - began
    return {"items/s": round(items / seconds, 3), "new tokens": WORDS}


def _train_and_hash(setting: Setting, config: TrialConfig, name: str) -> str:
    with setting.trainer(config, name, setting.here) as trainer:
        trainer.train(on_step=lambda *_: None)
        return _hash_weights(trainer.model)


def _hash_weights(model: Any) -> str:
    found = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _require_same(one: str, other: str) -> dict[str, Any]:
    if one != other:
        raise ArithmeticError(f"weights differ: {one[:12]} and {other[:12]}")
    return {"weights": one[:12]}


def _read_curve(folder: Path) -> list[dict[str, float]]:
    lines = (folder / CURVES).read_text(encoding="utf-8").splitlines()
    return [json.loads(each)["figures"] for each in lines]


if __name__ == "__main__":
    raise SystemExit(main())
