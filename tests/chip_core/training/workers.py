"""Trainings of a tiny model for the tests of several workers, and the program that is all of them.

python workers.py OUT ROUND…        each [how many workers, [case, …]] in JSON

The program imports once, which takes seconds, and is forked into the workers of one round after
the other.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import families  # noqa: E402
from trainings import train  # noqa: E402

from chip_core.config.trial import TrialConfig  # noqa: E402
from chip_core.data.preferences import Pairs, PreferencePair  # noqa: E402
from chip_core.models import loading  # noqa: E402
from chip_core.models.adapters import attach_adapters, save_model  # noqa: E402
from chip_core.models.precision import convert_weights  # noqa: E402
from chip_core.training import fsdp  # noqa: E402
from chip_core.training.parallel import Compute  # noqa: E402
from chip_core.training.trainer import TrainingResult  # noqa: E402
from chip_core.utils.files import read_records  # noqa: E402
from chip_core.utils.workers import Workers, join_workers  # noqa: E402


@dataclass(frozen=True)
class Case:
    """One training."""

    kind: str  # a Parallelism
    changes: str = "full"  # which of CHANGES
    dtype: str = "float64"
    checkpoint_every: int = 0
    micro_batch: int = 1
    resume: str = ""  # another case's folder
    family: str = "llava"
    separate_disks: bool = False  # whether every worker has a disk of its own
    steps: int = 20
    loads: str = ""  # "all" or "first": which workers load the weights, from files
    mixed: bool = False  # whether workers are numbered across machines, not machine by machine

    @property
    def name(self) -> str:
        more = [*(["resumed"] if self.resume else [])]
        more += [] if self.family == "llava" else [self.family]
        more += [f"{self.loads}_loads"] if self.loads else []
        more += ["mixed"] if self.mixed else []
        return "-".join([self.kind, self.changes, self.dtype, *more])


CHANGES: dict[str, dict[str, Any]] = {
    "full": {"vision_encoder": "trained"},
    "lora": {"language_model": "lora", "lora": {"rank": 2, "alpha": 4}},
    "everywhere": {
        "vision_encoder": "lora",
        "projector": "lora",
        "language_model": "lora",
        "lora": {"rank": 2, "alpha": 4},
        "optimizer": {"lr": 5e-3, "warmup": 0.1, "clip": 1.0},  # else it trains slowly
    },
    "staged": {"vision_encoder": "staged", "language_model": "lora", "lora": {"rank": 2}},
    "recomputed": {"vision_encoder": "trained", "engine": {"gradient_checkpointing": True}},
    "each_pass": {"vision_encoder": "trained"},  # gradients come together in each
    "released": {
        "vision_encoder": "trained",
        "training": {"label_rule": "released", "augment": "released"},
    },
    # Losses that look at other pairs.
    "aot": {"objective": {"preset": "aot", "beta": 0.5}},
    "aot_unpaired": {"objective": {"preset": "aot_unpaired", "beta": 0.5}},
    "sft": {"objective": "sft"},
    "mpo": {"objective": {"preset": "mpo", "method": {"shift": True}}},
    "dama": {"objective": {"preset": "dama", "beta": 0.5}},
    "bf16": {"model": {"path": "shapes", "dtype": "bf16"}, "vision_encoder": "trained"},
    "bf16_gradients": {
        "model": {"path": "shapes", "dtype": "bf16"},
        "training": {"gradients": "bf16"},
    },
    "bf16_lora": {
        "model": {"path": "shapes", "dtype": "bf16"},
        "language_model": "lora",
        "lora": {"rank": 2, "alpha": 4},
    },
    "bf16_staged": {
        "model": {"path": "shapes", "dtype": "bf16"},
        "vision_encoder": "staged",
        "language_model": "lora",
        "lora": {"rank": 2},
    },
}


class ListPairs(Pairs):
    """Pairs that are there."""

    def __init__(self, pairs: list[PreferencePair]) -> None:
        self._pairs = pairs
        self.lengths = [len(pair.chosen) + len(pair.rejected) for pair in pairs]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> PreferencePair:  # type: ignore[override]
        return self._pairs[index]


def make_config(case: Case) -> TrialConfig:
    """Make a trial of three pairs a step, one a pass: of two workers' four passes one is empty."""
    changes = CHANGES[case.changes]
    return TrialConfig.model_validate(
        {
            "model": "shapes",
            "objective": {"preset": "chip", "weights": {"segment": 3, "token": 0.1}},
            "optimizer": {"lr": 1e-3, "warmup": 0.1, "clip": 1.0},
            "training": {"batch_size": 3, "epochs": case.steps, **changes.get("training", {})},
            **{name: value for name, value in changes.items() if name != "training"},
            "engine": {
                "micro_batch": case.micro_batch,
                "parallel": "auto" if case.kind == "single" else case.kind,
                "checkpoint_every": case.checkpoint_every or None,
                **changes.get("engine", {}),
            },
        }
    )


def make_scored_pairs() -> list[PreferencePair]:
    """Make the families' pairs with scores of image and text."""
    return [
        dataclasses.replace(
            pair,
            scores={"image_text_scores/chosen": 0.3 * place, "image_text_scores/rejected": 0.1},
        )
        for place, pair in enumerate(families.make_pairs())
    ]


def run_case(case: Case, out: Path, workers: Workers) -> TrainingResult:
    """Train; leave curves, checkpoints and the model in a folder of the case's name."""
    fsdp._fits_gradients = lambda root, device: case.changes != "each_pass"
    config = make_config(case)
    if case.loads:
        model, processor = load_model(case, config, out / "files" / case.family, workers)
    else:
        model, processor = families.build(case.family)
        if case.dtype == "bfloat16":
            model = convert_weights(model, "bf16")
        else:
            model = model.to(getattr(torch, case.dtype))
    model = attach_adapters(model, config)
    folder = out / case.name
    if case.separate_disks and not workers.is_main:
        folder = out / "elsewhere" / case.name
    trained = train(
        config,
        model=model,
        processor=processor,
        pairs=ListPairs(make_scored_pairs()),
        folder=folder,
        compute=Compute(workers=workers, parallelism=case.kind),  # type: ignore[arg-type]
        resume_from=out / case.resume if case.resume else None,
    )
    save_model(model, processor, folder / "model", config, write=workers.is_main)
    return trained


def load_model(case: Case, config: TrialConfig, folder: Path, workers: Workers) -> tuple[Any, Any]:
    """Return (model, processor) as a trial has them: of all workers, or of the first alone."""
    source = config.model.model_copy(update={"path": str(folder)})
    if case.loads == "all" or workers.is_main:
        return loading.load(source)
    model, processor = loading.load_empty(source)
    assert all(parameter.is_meta for parameter in model.parameters())
    return model, processor


def read_curve(out: Path, case: Case) -> list[dict[str, float]]:
    """Read a training's figures by step, but for those that are times."""
    timed = {"tokens_per_second", "data_wait"}
    return [
        {name: value for name, value in record["figures"].items() if name not in timed}
        for record in read_records(out / case.name / "curves.jsonl")
    ]


def run_rounds(out: Path, *rounds: tuple[int, Sequence[Case]], within: float = 1200.0) -> None:
    """Run rounds of trainings, each by so many processes, and wait for them."""
    told = [json.dumps([workers, [vars(case) for case in cases]]) for workers, cases in rounds]
    done = subprocess.run(
        [sys.executable, __file__, str(out), *told],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=within,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def main(out: Path, rounds: Sequence[tuple[int, Sequence[Case]]]) -> None:
    """Be every worker: forked before torch has any thread, which no fork would take along."""
    forked = multiprocessing.get_context("fork")
    for workers, cases in rounds:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = [
            forked.Process(target=run_worker, args=(out, cases, rank, workers, port), daemon=True)
            for rank in range(workers)
        ]
        for process in started:
            process.start()
        left = {process.sentinel: process for process in started}
        while left:
            for sentinel in wait(list(left)):
                if left.pop(sentinel).exitcode:  # type: ignore[call-overload]
                    sys.exit(1)  # which ends the others


def run_worker(out: Path, cases: Sequence[Case], rank: int, workers: int, port: int) -> None:
    """Be one of the workers."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(workers), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    with join_workers() as joined:
        for case in cases:  # two on each machine
            os.environ["GROUP_RANK"] = str(rank % 2 if case.mixed else rank // 2)
            run_case(case, out, joined)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        [
            (workers, [Case(**each) for each in cases])
            for workers, cases in map(json.loads, sys.argv[2:])
        ],
    )
