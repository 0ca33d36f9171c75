"""Compare TRL's DPOTrainer on the same model, weights and pairs: its step and losses.

TRL is in the extra `benchmarks` only.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.workload import Workload
from chip_core.data.tensors import PairBatch, Prompts, Responses
from chip_core.models.packing import use_packed_attention
from chip_core.objectives.config import ObjectiveConfig
from chip_core.training.policy import Policy


def make_trainer(
    policy: Any,
    reference: Any,
    workload: Workload,
    pairs: int,
    *,
    bf16: bool = False,
    use_cpu: bool = True,
) -> Any:
    """Return a DPOTrainer over generated pairs, without features that the comparison lacks.

    Without a reference, TRL switches the policy's adapter off, or copies the policy.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    settings = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=len(workload.chosen),
        max_length=None,
        beta=0.1,
        bf16=bf16,
        use_cpu=use_cpu,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
    )
    return DPOTrainer(
        model=policy,
        ref_model=reference,
        args=settings,
        train_dataset=Dataset.from_list(workload.rows(pairs)),
        processing_class=workload.processor(),
    )


def collate_pairs(trainer: Any, first: int, workload: Workload) -> dict[str, Tensor]:
    """Return a batch of pairs, in their order, as TRL collates it."""
    places = range(first, first + len(workload.chosen))
    batch = trainer.data_collator([trainer.train_dataset[place] for place in places])
    return dict(batch)


def to_pair_batch(inputs: dict[str, Tensor], workload: Workload) -> PairBatch:
    """Convert TRL's batch to ours: the same token ids, the same pixels."""
    ids, mask, response = (
        inputs[name] for name in ("input_ids", "attention_mask", "completion_mask")
    )
    pairs = len(ids) // 2
    prompts, responses = [], []
    for row in range(2 * pairs):
        prompts.append(ids[row][mask[row].bool() & ~response[row].bool()])
        responses.append(ids[row][response[row].bool()])
        assert int((prompts[-1] == workload.image_token).sum()) == workload.image_tokens

    def stacked(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        return padded, torch.arange(padded.shape[1]) < lengths[:, None]

    def answers(rows: list[Tensor]) -> Responses:
        padded, kept = stacked(rows)
        return Responses(ids=padded, mask=kept, changed=torch.zeros_like(kept))

    padded, kept = stacked(prompts[:pairs])
    pixels = inputs["pixel_values"]
    return PairBatch(
        indices=tuple(range(pairs)),
        epoch=0,
        prompts=Prompts(ids=padded, mask=kept, inputs={"pixel_values": pixels[: len(pixels) // 2]}),
        chosen=answers(responses[:pairs]),
        rejected=answers(responses[pairs:]),
        rejected_image_prompts=None,
        rejected_image=None,
    )


def compare_losses(workload: Workload, steps: int, rate: float) -> dict[str, Any]:
    """Train twice from the same weights, with TRL's loss and ours; return the losses of both."""
    policy, _ = workload.model()
    policy.load_state_dict(workload.model()[1].state_dict())
    reference = copy.deepcopy(policy).requires_grad_(False)
    theirs = make_trainer(copy.deepcopy(policy), copy.deepcopy(reference), workload, steps)
    theirs.model.train()
    objective = ObjectiveConfig(preset="dpo")
    ours, frozen = Policy(policy, objective), Policy(reference, objective)

    def by_trl(inputs: dict[str, Tensor]) -> Tensor:
        return theirs.compute_loss(theirs.model, inputs)  # type: ignore[no-any-return]

    def by_us(inputs: dict[str, Tensor]) -> Tensor:
        batch = to_pair_batch(inputs, workload)
        return ours(batch, frozen.reference_scores(batch), frozen.head).loss.mean()

    with use_packed_attention(policy), use_packed_attention(reference):
        ours.prefix_sharing = frozen.prefix_sharing = True
        batches = [collate_pairs(theirs, place, workload) for place in range(steps)]
        curves = [
            _train(model, loss, batches, rate)
            for model, loss in ((theirs.model, by_trl), (policy, by_us))
        ]
    apart = max(abs(one - two) for one, two in zip(*curves, strict=True))
    return {"steps": steps, "rate": rate, "trl": curves[0], "ours": curves[1], "apart": apart}


def _train(
    model: Any, loss_of: Callable[[dict[str, Tensor]], Tensor], batches: list[Any], rate: float
) -> list[float]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    losses = []
    for inputs in batches:
        loss = loss_of(inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses
