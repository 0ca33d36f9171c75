"""The plain way, which every faster one is compared with: each response alone, whole logits."""

from __future__ import annotations

from typing import Any

import torch

from chip_core.config.trial import TrialConfig
from chip_core.data.tensors import PairBatch, Prompts, Responses
from chip_core.objectives import ObjectiveConfig
from chip_core.objectives.forms import BatchObjective, compute_objective
from chip_core.objectives.from_logits import PairLogits, batch_from_logits
from chip_core.objectives.losses import Inputs
from chip_core.objectives.parts import COLUMNS, VIEWS
from chip_core.objectives.scores import ResponseScores
from chip_core.training.policy import LiveReference, Policy, ReferenceSource
from chip_core.training.states import PaddedRows, pad


def compute_view_objective(
    config: ObjectiveConfig, **views: ResponseScores | None
) -> BatchObjective:
    """Return the objective of views by name; None: it is not there."""
    given = {view: scores for view, scores in views.items() if scores is not None}
    return compute_objective(config, Inputs(views=given))


def pad_rows(batch: PairBatch, what: str) -> PaddedRows:
    """Return `chosen`, `rejected` or `rejected_image` sequences of a batch, one response a row."""
    prompts = batch.rejected_image_prompts if what == "rejected_image" else batch.prompts
    assert prompts is not None
    return pad(prompts, getattr(batch, what))


def compute_logits(model: Any, batch: PairBatch, what: str = "chosen") -> torch.Tensor:
    """Return whole logits of a batch, as the model itself gives them, (B, T, V)."""
    part = pad_rows(batch, what)
    with torch.no_grad():
        return model(
            input_ids=part.input_ids, attention_mask=part.attention_mask, **part.inputs
        ).logits


def compute_original_logits(reference: LiveReference, model: Any, batch: PairBatch) -> torch.Tensor:
    """Return whole logits of the chosen responses, of a live reference."""
    part = pad_rows(batch, "chosen")
    ids, mask = part.input_ids, part.attention_mask
    return reference.original(model, input_ids=ids, attention_mask=mask, **part.inputs).logits


def compute_policy_objective(policy: Policy, reference: ReferenceSource, batch: PairBatch) -> Any:
    """Return the product's objective of a batch."""
    return policy(batch, reference.scores(batch), reference.head)


def _compute_row_logits(
    model: Any, prompts: Prompts, responses: Responses, row: int
) -> torch.Tensor:
    """Return one pair's logits of one response, computed without any padding."""
    prompt = prompts.ids[row][prompts.mask[row]]
    ids = torch.cat([prompt, responses.ids[row][responses.mask[row]]])[None]
    inputs = {}
    for name, value in prompts.inputs.items():
        if name.endswith("token_type_ids"):
            own = value[row][prompts.mask[row]]
            inputs[name] = torch.nn.functional.pad(own, (0, ids.shape[1] - len(own)))[None]
        else:
            inputs[name] = _select_row_entries(prompts, name, row)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0]
    return logits.float() if logits.dtype == torch.bfloat16 else logits


def _select_row_entries(prompts: Prompts, name: str, row: int) -> torch.Tensor:
    """Return the entries that are one pair's of an input with one entry an image, or a patch."""
    value = prompts.inputs[name]
    if len(value) == len(prompts.ids):
        return value[row : row + 1]
    ends = prompts.inputs["image_grid_thw"].prod(-1).cumsum(0).tolist()
    return value[ends[row - 1] if row else 0 : ends[row]]


def compute_naive_loss(
    policy: Any, reference: Any, batch: PairBatch, config: TrialConfig, eos_id: int
) -> torch.Tensor:
    """Return the mean objective of a batch from whole logits, each view alone."""
    views = config.objective.views
    pairs = []
    for row in range(len(batch)):
        given: dict[str, dict[str, torch.Tensor]] = {}
        for who, model, grad in (("policy", policy, True), ("reference", reference, False)):
            with torch.set_grad_enabled(grad):
                given[who] = {
                    view: _compute_row_logits(
                        model, batch.select_prompts(*batch.prefix(view)), batch.responses[view], row
                    )
                    for view in views
                }
        pairs.append(_make_pair_logits(batch, row, given, config))
    return batch_from_logits(config.objective, pairs, eos_id=eos_id).loss


def _make_pair_logits(
    batch: PairBatch, row: int, logits: dict[str, dict[str, torch.Tensor]], config: TrialConfig
) -> PairLogits:
    """Return a pair as the slow truth takes it; every prompt is as long as the first here."""
    own = {
        VIEWS[view][1]: of.ids[row][of.mask[row]] for view, of in batch.responses.items()
    }  # fmt: skip
    length = int(batch.prompts.mask[row].sum())
    fields: dict[str, dict[str, Any]] = {}
    for name, values in batch.fields.items():
        column, _, key = name.partition("/")
        response = COLUMNS[column][key]
        value = values[row] if response is None else values[row, : len(own[response])]
        fields.setdefault(column, {})[key] = value.tolist()
    for by_view in logits.values():
        for view, rows in by_view.items():
            start = int(batch.select_prompts(*batch.prefix(view)).mask[row].sum())
            # The truth knows one prompt: what another is longer by, or shorter, is not looked at.
            kept = rows[start - 1 :]
            by_view[view] = torch.cat([kept.new_zeros(length - 1, kept.shape[1]), kept])
    return PairLogits(
        prompt_ids=batch.prompts.ids[row][batch.prompts.mask[row]],
        chosen_ids=own["chosen"],
        rejected_ids=own["rejected"],
        other_ids=own.get("other"),
        policy=logits["policy"],
        reference=logits["reference"],
        fields=fields,
    )
