"""Check that another engine answers as transformers does, with this arm's weights.

Before a benchmark's figures count, both answer a seeded sample of its questions. Prompts with
different tokens mean another template, image processor or picture, and the check ends there. An
engine that ignored an adapter answers as the model does without it, so transformers also answers
without it, and answers that tell the two apart are checked. What is left is rounding; the study
declares how much of it is accepted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from chip_core.config.benchmark import ParityConfig
from chip_core.evaluation.generators.base import AnsweringModel
from chip_core.evaluation.inference.decoder import generation_settings
from chip_core.evaluation.inference.encoder import Encoder
from chip_core.evaluation.inference.prompts import common_length
from chip_core.evaluation.inference.rows import next_logits
from chip_core.evaluation.task import Decoding, Item, Response
from chip_core.utils.errors import TrialError

_MAX_DIFFERENCES = 8  # differing answers whose first differing tokens are recorded


@dataclass(frozen=True, kw_only=True)
class ParityAnswers:
    """The answers to the same questions that are compared, by item id."""

    items: Sequence[Item]
    measure: Mapping[str, Response]  # by transformers
    engine: Mapping[str, Response]
    #: by transformers without the arm's adapter; None: it has none
    bare: Mapping[str, Response] | None = None


def compare_answers(
    answered: ParityAnswers, model: AnsweringModel, decoding: Decoding, config: ParityConfig
) -> dict[str, Any]:
    """Compare an engine's answers with those of transformers.

    Returns:
        `items`, `equal`, `least` (the declared share), `prompts` (`compared` by `by`: "ids" or
        "count"; `differ`), `adapter` if there is one (of answers that it changes, `differ`: how
        many are `trained` and how many `bare`), and `first_differences` (see
        `_find_first_difference`).
    """
    equal = [
        item
        for item in answered.items
        if answered.measure[item.id].text == answered.engine[item.id].text
    ]
    differing = [item for item in answered.items if item not in equal]
    prompts = _compare_prompts(answered, model)
    comparison = {
        "items": len(answered.items),
        "equal": len(equal),
        "least": config.share,
        "prompts": prompts,
    }
    if answered.bare is not None:
        comparison["adapter"] = _compare_adapter(answered, answered.bare)
    if not prompts["differ"]:
        comparison["first_differences"] = [
            _find_first_difference(answered, item, model, decoding)
            for item in differing[:_MAX_DIFFERENCES]
        ]
    return comparison


def check_parity(parity: Mapping[str, Any], benchmark: str, label: str) -> None:
    """Raise if an engine does not answer as transformers does.

    Raises:
        TrialError: it does not; one line.
    """
    prompts, adapter = parity["prompts"], parity.get("adapter")
    if prompts["differ"]:
        raise TrialError(
            f"{benchmark}: {label} reads different prompts than transformers: {prompts['differ']} "
            f"of {prompts['compared']} have other tokens ({prompts['example']}): give the server "
            "this model's own chat template and image processor"
        )
    if adapter is not None and adapter["bare"] > adapter["trained"]:
        raise TrialError(
            f"{benchmark}: {label} does not apply the arm's adapter: of {adapter['differ']} "
            f"answers that it changes, {adapter['bare']} are as without it, and "
            f"{adapter['trained']} as with it: check which adapter the server has under that name"
        )
    items, equal = parity["items"], parity["equal"]
    if equal < parity["least"] * items:
        raise TrialError(
            f"{benchmark}: {label} answers {equal} of {items} questions like transformers, but "
            f"evaluation.parity.share is {parity['least']:g}{_format_first_difference(parity)}: "
            "serve the same weights in the same precision, or declare a lower share"
        )


def hash_prompt(ids: Sequence[int]) -> str:
    """Return a hash of a prompt's ids."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]


def _compare_prompts(answered: ParityAnswers, model: AnsweringModel) -> dict[str, Any]:
    encoder = Encoder(model.processor)
    compared, differing, methods = 0, [], set[str]()
    for item in answered.items:
        engine_response = answered.engine[item.id]
        if engine_response.prompt_tokens is None:
            continue
        (prompt,) = encoder.encode([item])
        compared += 1
        methods.add("count" if engine_response.prompt_ids is None else "ids")
        is_equal = engine_response.prompt_tokens == len(prompt.ids)
        if not is_equal or engine_response.prompt_ids not in (None, hash_prompt(prompt.ids)):
            differing.append(
                f"item {item.id}: {len(prompt.ids)} here, {engine_response.prompt_tokens} there"
            )
    comparison: dict[str, Any] = {"compared": compared, "differ": len(differing)}
    if methods:
        comparison["by"] = "count" if "count" in methods else "ids"
    if differing:
        comparison["example"] = differing[0]
    return comparison


def _compare_adapter(answered: ParityAnswers, bare: Mapping[str, Response]) -> dict[str, int]:
    changed = [
        item.id for item in answered.items if answered.measure[item.id].text != bare[item.id].text
    ]
    engine = answered.engine
    return {
        "differ": len(changed),
        "trained": sum(engine[item].text == answered.measure[item].text for item in changed),
        "bare": sum(engine[item].text == bare[item].text for item in changed),
    }


@torch.inference_mode()
def _find_first_difference(
    answered: ParityAnswers, item: Item, model: AnsweringModel, decoding: Decoding
) -> dict[str, Any]:
    """Return where two answers diverge, and transformers' preference of the two tokens there.

    The tokens are those of the texts: `token` counts from 0, `margin` is by how much, under
    transformers, the log-probability of its own next token exceeds that of the engine's.
    """
    tokenizer = model.processor.tokenizer
    _, end_tokens = generation_settings(model.model, tokenizer, decoding)
    rows = [
        [
            *tokenizer(responses[item.id].text, add_special_tokens=False)["input_ids"],
            *sorted(end_tokens)[:1],
        ]
        for responses in (answered.measure, answered.engine)
    ]
    position = common_length(*rows)
    if position == min(map(len, rows)):  # the same tokens: decoding made the texts differ
        return {"item": item.id, "token": None}
    (prompt,) = Encoder(model.processor).encode([item])
    reference_token, engine_token = (row[position] for row in rows)
    logps = next_logits(model.model, prompt, rows[0][:position]).log_softmax(-1)
    return {
        "item": item.id,
        "token": position,
        "transformers": tokenizer.decode([reference_token]),
        "engine": tokenizer.decode([engine_token]),
        "margin": round(float(logps[reference_token] - logps[engine_token]), 4),
    }


def _format_first_difference(parity: Mapping[str, Any]) -> str:
    differences = parity.get("first_differences", ())
    first = next((entry for entry in differences if entry["token"] is not None), None)
    if first is None:
        return ""
    return (
        f" (item {first['item']}, token {first['token']}: '{first['engine']}' for "
        f"'{first['transformers']}', whose log-probability is {first['margin']:+.2g} from it)"
    )
