"""Make preference pairs from a model's answers: sample, rank, pair best with worst, write.

A folder of pairs holds `pairs.jsonl`, the `images/` that its rows name, and `provenance.json`. The
same settings give the same files to the byte, wherever the work was interrupted: existing samples
are not sampled again.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chip_core.config.pairs import PairsConfig
from chip_core.data.rows import PreferenceTexts, RowError, check_text, check_texts
from chip_core.evaluation.inference import Decoder, make_batches
from chip_core.evaluation.inference.answer_files import (
    AnswerFile,
    answers_fingerprint,
    read_stored_answers,
)
from chip_core.evaluation.inference.sampling import Sampling
from chip_core.evaluation.task import Decoding, Item, Picture
from chip_core.pairs.ranking import Ranker, Score
from chip_core.results import Progress
from chip_core.utils.errors import UserError
from chip_core.utils.files import read_json, write_atomically, write_bytes, write_json

#: A hidden folder within a folder of pairs, so that only the pairs are its data.
SAMPLES_FOLDER = ".sampled"
_NAME = "pairs"


@dataclass(frozen=True, kw_only=True)
class SampledModel:
    """A model to sample from."""

    model: Any
    processor: Any
    weights: str  # identifies the weights: answers of other weights are not reused
    bf16: bool = False
    batch_size: int = 64  # answers generated together


def make_sampling(settings: PairsConfig, seed: int) -> Sampling:
    """Return the sampling settings."""
    return Sampling(temperature=settings.temperature, top_p=settings.top_p, seed=seed)


def sample_answers(
    sampled: SampledModel,
    prompts: Sequence[Item],
    settings: PairsConfig,
    *,
    seed: int,
    folder: Path,
    report: Callable[[Progress], None],
) -> tuple[list[list[str]], int]:
    """Return each prompt's answers, `settings.answers` of them, and how many were sampled now.

    An answer is a function of the weights, its prompt's text and id, its number among the prompt's
    answers, and the seed; in bf16 also of its batch: batches are the same however often the work
    was interrupted.

    Args:
        sampled: the model.
        prompts: with ids of their own.
        settings: how answers are sampled.
        seed: of all random draws.
        folder: keeps answers as they are sampled.
        report: called with the progress and the seconds left.
    """
    prompt_items = [
        [Item(id=f"{prompt.id}#{number}", prompt=prompt.prompt, pictures=prompt.pictures)
         for number in range(settings.answers)]
        for prompt in prompts
    ]  # fmt: skip
    items = [item for group in prompt_items for item in group]
    decoding = Decoding(max_new_tokens=settings.max_new_tokens)
    sampling = make_sampling(settings, seed)
    fingerprint = answers_fingerprint(
        {
            "weights": sampled.weights,
            "bf16": sampled.bf16,
            "batch": sampled.batch_size if sampled.bf16 else None,
            "decoding": asdict(decoding),
            "sampling": asdict(sampling),
        }
    )
    answers = read_stored_answers([folder / SAMPLES_FOLDER], [_NAME], [fingerprint], items)
    decoder = Decoder(
        sampled.model,
        sampled.processor,
        decoding,
        bf16=sampled.bf16,
        share_prefix=True,
        sampling=sampling,
    )
    began, reused, phase = time.perf_counter(), len(answers), "sample answers"
    report(Progress(phase=phase, done=reused, total=len(items)))
    with AnswerFile(folder / SAMPLES_FOLDER, _NAME, fingerprint, 0) as file:
        for batch in make_batches(items, size=sampled.batch_size):
            missing_ids = {item.id for item in batch.items} - answers.keys()
            if not missing_ids:
                continue
            results = zip(batch.items, decoder.generate_responses(batch), strict=True)
            new = [(item, response) for item, response in results if item.id in missing_ids]
            file.add(new)
            answers.update((item.id, response) for item, response in new)
            rate = (len(answers) - reused) / max(time.perf_counter() - began, 1e-9)
            figures = {
                "items_per_second": rate,
                "seconds_left": (len(items) - len(answers)) / rate,
            }
            report(Progress(phase=phase, done=len(answers), total=len(items), figures=figures))
    texts = [[answers[item.id].text for item in group] for group in prompt_items]
    return texts, len(answers) - reused


PAIRS, PROVENANCE, IMAGES = "pairs.jsonl", "provenance.json", "images"

#: Why a prompt gives no pair.
ONE_ANSWER = "fewer than two different answers"
UNRANKED = "fewer than two answers that were ranked"
TIE = "tie: best and worst are equal"
NARROW = "best and worst differ by less than the margin"
UNFIT = "cannot be trained on"


@dataclass(frozen=True, kw_only=True)
class SamplingResult:
    """The result of sampling."""

    prompts: int
    sampled: int  # answers that did not exist before
    pairs: int
    dropped: Mapping[str, int]  # reason -> prompts
    folder: Path

    def as_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return {**asdict(self), "folder": str(self.folder), "dropped": dict(self.dropped)}


def make_pairs(  # noqa: PLR0913 (inputs and outputs)
    sampled: SampledModel,
    prompts: Sequence[Item],
    settings: PairsConfig,
    ranker: Ranker,
    *,
    seed: int,
    folder: Path,
    model_facts: Mapping[str, Any],
    report: Callable[[Progress], None],
    replace: bool = False,
) -> SamplingResult:
    """Sample answers to prompts and write preference pairs of them.

    Args:
        sampled: the model.
        prompts: the prompts.
        settings: how answers are sampled and pairs chosen.
        ranker: ranks them.
        seed: of all random draws.
        folder: gets pairs, images and provenance; answers are kept in it as they are sampled.
        model_facts: facts of model and prompts, for the provenance.
        report: called with the progress.
        replace: whether to replace pairs of other settings in the folder, instead of refusing.

    Raises:
        UserError: there is no pair, and then none is written; or the folder holds something else.
        TrialError: a judge does not reply, or an image cannot be read.
    """
    sampling = make_sampling(settings, seed)
    provenance: dict[str, Any] = {
        **model_facts,
        "answers": settings.answers,
        "decoding": {**asdict(sampling), "max_new_tokens": settings.max_new_tokens},
        "ranker": dict(ranker.identity),
        "rule": {"pair": "best against worst", "ties": "dropped", "margin": settings.margin},
    }
    if not replace:
        check_pairs_folder(folder, provenance)
    answers, new_answers = sample_answers(
        sampled, prompts, settings, seed=seed, folder=folder, report=report
    )
    distinct = [_drop_duplicates(texts) for texts in answers]
    scores = ranker.rank(prompts, distinct)
    rows, dropped = [], Counter[str]()
    for prompt, texts, text_scores in zip(prompts, distinct, scores, strict=True):
        pair = choose_pair(texts, text_scores, settings.margin)
        if isinstance(pair, str):
            dropped[pair] += 1
            continue
        try:
            rows.append(_make_row(prompt, *pair))
        except RowError:
            dropped[UNFIT] += 1
    if not rows:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in sorted(dropped.items()))
        raise UserError(
            f"no pair: of {len(prompts)} prompts {reasons}: sample more answers, use a higher "
            "temperature, or rank them differently"
        )
    result = SamplingResult(
        prompts=len(prompts),
        sampled=new_answers,
        pairs=len(rows),
        dropped=dict(sorted(dropped.items())),
        folder=folder,
    )
    prompts_by_id = {prompt.id: prompt for prompt in prompts}
    for row in rows:
        row["image"] = _keep_image(prompts_by_id[row["id"]].pictures[0], folder)
    counts = {"prompts": result.prompts, "pairs": result.pairs, "dropped": result.dropped}
    write_json(folder / PROVENANCE, {**provenance, "counts": counts})
    write_atomically(folder / PAIRS, "".join(json.dumps(row) + "\n" for row in rows))
    return result


def choose_pair(
    texts: Sequence[str], scores: Sequence[Score | None], margin: float
) -> tuple[str, str, Score, Score] | str:
    """Return the best and worst of a prompt's answers and their scores, or why there is no pair.

    Among several best ones, the one with the larger further score, then the first; among several
    worst ones, the first.

    Args:
        texts: different answers.
        scores: of each.
        margin: least difference.
    """
    if len(texts) < 2:
        return ONE_ANSWER
    ranked = [(text, score) for text, score in zip(texts, scores, strict=True) if score is not None]
    if len(ranked) < 2:
        return UNRANKED
    best, high = max(ranked, key=lambda entry: (entry[1].value, entry[1].tie_break))
    worst, low = min(ranked, key=lambda entry: entry[1].value)
    if high.value == low.value:
        return TIE
    if high.value - low.value < margin:
        return NARROW
    return best, worst, high, low


def check_pairs_folder(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Check that a folder holds nothing but the pairs that are about to be written there.

    Raises:
        UserError: it holds something else.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign_files = sorted(
        name for name in names - {PAIRS, PROVENANCE, IMAGES} if not name.startswith(".")
    )
    if foreign_files:
        raise UserError(
            f"{folder} holds {foreign_files[0]}, which does not belong to the pairs: name a new "
            "folder"
        )
    if PAIRS not in names:
        return
    try:
        written = read_json(folder / PROVENANCE)
        written.pop("counts", None)
    except (OSError, ValueError, AttributeError):
        written = None
    if written != json.loads(json.dumps(provenance)):
        raise UserError(
            f"{folder} holds pairs of another model, other prompts or settings: name a new folder, "
            f"or remove {folder / PAIRS}"
        )


def _drop_duplicates(texts: Sequence[str]) -> list[str]:
    """Return the answers that can be trained on, without duplicates, in order."""
    unique = dict[str, None]()
    for text in texts:
        try:
            check_text("answer", text)
        except RowError:
            continue
        unique[text] = None
    return list(unique)


def _make_row(prompt: Item, best: str, worst: str, high: Score, low: Score) -> dict[str, Any]:
    check_texts(PreferenceTexts(id=prompt.id, prompt=prompt.prompt, chosen=best, rejected=worst))
    return {
        "id": prompt.id,
        "image": "",
        "prompt": prompt.prompt,
        "chosen": best,
        "rejected": worst,
        "score_chosen": float(high.value),
        "score_rejected": float(low.value),
    }


def _keep_image(picture: Picture, folder: Path) -> str:
    """Copy an image into the folder, named by its content; return its path there."""
    if picture.file is not None:
        content, suffix = picture.file.read_bytes(), picture.file.suffix.lower()
    else:
        buffer = io.BytesIO()
        picture.read().save(buffer, format="PNG")
        content, suffix = buffer.getvalue(), ".png"
    name = f"{IMAGES}/{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
    if not (folder / name).exists():
        write_bytes(folder / name, content)
    return name
