"""Run a trial's rounds: sample the model, train it on its pairs, and sample it again.

Each round is a separate training, from the model of the round before and with that model as its
reference: policy and reference are equal at its first step. This is iterative DPO (Xu et al., arXiv
2312.16682; Yuan et al., arXiv 2401.10020), as RLAIF-V (arXiv 2405.17220) does it for multimodal
models.

`rounds/N/` in an attempt's folder holds a round's pairs, its curves, and its model until the last
round is trained. The last round's training is the trial's own, in the same place as in any trial.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from chip_core.config.identity import fingerprint, model_identity
from chip_core.config.trial import DataConfig, TrialConfig
from chip_core.data.checks import ProcessorChecker
from chip_core.data.preferences import Pairs, load_pairs
from chip_core.evaluation.task import Item
from chip_core.models import loading
from chip_core.models.adapters import save_model
from chip_core.pairs.make import PAIRS, SampledModel, make_pairs
from chip_core.pairs.prompts import prompts_identity, read_prompts
from chip_core.pairs.ranking import Ranker, open_ranker
from chip_core.results import CHECKPOINTS, MODEL, SAMPLED, Progress
from chip_core.selection import kept_models
from chip_core.trained import (
    TrainedModel,
    compute_training_fingerprint,
    find_model_problem,
    has_model,
    hash_model_files,
    read_trained,
    write_trained,
)
from chip_core.training.checkpoint import remove_all
from chip_core.training.parallel import Compute
from chip_core.training.trainer import Trainer
from chip_core.trial_context import PhaseTimer, TrialContext
from chip_core.utils.errors import TrialError, UserError
from chip_core.utils.files import file_sha256
from chip_core.utils.seeding import derive_seed

ROUNDS = "rounds"  # folder within an attempt's


@dataclass(kw_only=True)
class Rounds:
    """The rounds of one attempt at a trial."""

    config: TrialConfig
    context: TrialContext
    device: torch.device
    model: Any  # trained in place
    processor: Any
    report: Callable[[Progress], None]
    timer: PhaseTimer
    sampled: int = 0  # answers sampled by this attempt
    steps: int = 0  # updates of all rounds but the last
    notes: list[str] = field(default_factory=list)
    _taken_over: bool = False  # whether an earlier attempt sampled an answer

    def run_rounds(self) -> Pairs:
        """Train the model through all rounds but the last; return the last one's pairs.

        Raises:
            TrialError: a round cannot be sampled or trained.
            StoppedError: a stop was requested.
        """
        self._adopt_earlier()
        try:
            prompts = read_prompts(self.config.data)
            ranker = self._open_ranker()
        except UserError as error:
            raise TrialError(f"pairs: {_format_error(error)}") from None
        done = self._last_trained_round()
        if done:
            self._resume_from(done)
        last = self.config.pairs.rounds
        if done < last - 1 or not (self._round_folder(last) / PAIRS).is_file():
            self._reset_last_round()
        for number in range(done + 1, last + 1):  # rounds without a complete model
            shutil.rmtree(self._round_folder(number) / MODEL, ignore_errors=True)
            if number > done + 1:
                shutil.rmtree(self._round_folder(number), ignore_errors=True)
        for number in range(done + 1, last):
            self._train(number, self._sample_pairs(number, prompts, ranker))
        pairs = self._sample_pairs(last, prompts, ranker)
        if done or self._taken_over:
            self.notes.append("resumed in its rounds: earlier samples are reused")
        return pairs

    def _round_folder(self, number: int) -> Path:
        return self.context.folder / ROUNDS / str(number)

    def _open_ranker(self) -> Ranker:
        settings, data_paths = self.config.pairs, self.context.data_paths
        return open_ranker(settings, self.config.data.source, data_paths, self.report)

    def _adopt_earlier(self) -> None:
        """Move the newest earlier attempt's rounds here; if killed, they stay complete."""
        rounds_folder = self.context.folder / ROUNDS
        resumed = [] if self.context.resume_from is None else [self.context.resume_from]
        for earlier in (*self.context.earlier, *resumed):
            if not rounds_folder.exists() and (earlier / ROUNDS).is_dir():
                rounds_folder.parent.mkdir(parents=True, exist_ok=True)
                (earlier / ROUNDS).replace(rounds_folder)

    def _reset_last_round(self) -> None:
        """Remove what attempts left of the last round's training, because its pairs change.

        This happens before the new pairs are made, so that no later attempt continues it with them.
        """
        resumed = [] if self.context.resume_from is None else [self.context.resume_from]
        for attempt in (self.context.folder, *resumed, *self.context.earlier):
            remove_all(attempt)
            kept_models.remove_all(attempt)

    def _last_trained_round(self) -> int:
        """Return the last round that, like those before it, has a complete model; 0 if none has."""
        for number in range(1, self.config.pairs.rounds):
            folder = self._round_folder(number)
            if not has_model(folder) or find_model_problem(folder / MODEL, self.config) is not None:
                return number - 1
        return self.config.pairs.rounds - 1

    def _resume_from(self, number: int) -> None:
        trusted = self.config.model.trust_remote_code
        loading.read_weights(
            self.model, self._round_folder(number) / MODEL, trust_remote_code=trusted
        )
        for before in range(1, number + 1):
            trained = read_trained(self._round_folder(before))
            self.steps += 0 if trained is None else trained.steps

    def _sample_pairs(self, number: int, prompts: Sequence[Item], ranker: Ranker) -> Pairs:
        """Sample a round's answers and make pairs of them; existing ones are kept."""
        config, folder = self.config, self._round_folder(number)
        if number == 1:
            model = model_identity(config.model, loading.identity(config.model))
        else:
            model = {"files": fingerprint(hash_model_files(self._round_folder(number - 1) / MODEL))}
        rounds = config.pairs.rounds
        previous_hash = _content_hash(folder / PAIRS)

        def report_progress(progress: Progress) -> None:  # as one phase over all rounds
            total = progress.total
            self.report(
                replace(progress, done=(number - 1) * total + progress.done, total=rounds * total)
            )

        try:
            result = make_pairs(
                SampledModel(
                    model=self.model,
                    processor=self.processor,
                    weights=fingerprint(model),
                    bf16=config.model.dtype == "bf16",
                    batch_size=config.engine.generation_batch,
                ),
                _round_prompts(prompts, config, number),
                config.pairs,
                ranker,
                seed=derive_seed("round", config.seed, number),
                folder=folder,
                model_facts={
                    "model": model,
                    "prompts": prompts_identity(config.data),
                    "round": number,
                },
                report=report_progress,
                replace=True,
            )
        except UserError as error:
            raise TrialError(f"pairs, round {number}: {_format_error(error)}") from None
        self.sampled += result.sampled
        self._taken_over |= result.sampled < result.prompts * config.pairs.answers
        if _content_hash(folder / PAIRS) != previous_hash:
            remove_all(folder)  # a round's own checkpoints belong to the pairs before
            if number == rounds:
                self._reset_last_round()
        pairs = load_pairs(
            DataConfig(
                source=str(folder / PAIRS),
                format="jsonl",
                transparency=config.data.transparency,
                on_bad_row="skip",
            ),
            model=ProcessorChecker(self.processor),
        )
        self.timer.end(SAMPLED)
        return pairs

    def _train(self, number: int, pairs: Pairs) -> None:
        """Train the model on a round's pairs, with its current state as reference; save it."""
        config, folder = self.config, self._round_folder(number)
        rounds_left = config.pairs.rounds - number + 1  # rounds, including this one
        with Trainer(
            config,
            model=self.model,
            processor=self.processor,
            pairs=pairs,
            folder=folder,
            compute=Compute(device=self.device),
        ) as trainer:
            result = trainer.train(
                on_step=lambda step, total, figures: self.report(
                    Progress(
                        phase="train",
                        done=self.steps + step,
                        total=self.steps + rounds_left * total,
                        figures=figures,
                    )
                ),
                resume_from=folder if (folder / CHECKPOINTS).is_dir() else None,
                stop=self.context.stop,
            )
        del trainer  # frees the optimizer's state and the reference
        save_model(self.model, self.processor, folder / MODEL, config)
        self.timer.end("train")
        self.steps += result.steps
        self.notes += [f"round {number}: {note}" for note in result.notes]
        write_trained(
            folder,
            TrainedModel(
                steps=result.steps,
                seconds=self.timer.seconds["train"],
                files=hash_model_files(folder / MODEL),
                training=compute_training_fingerprint(config),
            ),
        )
        remove_all(folder)


def remove_round_models(folder: Path) -> None:
    """Remove the rounds' models once the trial's exists."""
    for model in (folder / ROUNDS).glob(f"*/{MODEL}"):
        shutil.rmtree(model, ignore_errors=True)


def _content_hash(file: Path) -> str | None:
    return file_sha256(file) if file.is_file() else None


def _round_prompts(prompts: Sequence[Item], config: TrialConfig, number: int) -> list[Item]:
    """Return a round's prompts: the next ones in an order by the trial's seed, cyclically."""
    count = config.pairs.prompts
    if count is None:
        return list(prompts)
    order = list(prompts)
    random.Random(derive_seed("prompts", config.seed)).shuffle(order)
    begin = (number - 1) * count
    return [order[(begin + offset) % len(order)] for offset in range(min(count, len(order)))]


def _format_error(error: UserError) -> str:
    return "; ".join(str(error).splitlines())
