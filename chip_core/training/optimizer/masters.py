"""fp32 masters of weights trained in bf16: the optimizer updates masters, weights are rounded.

At a learning rate of 5e-7 an update of a weight of 0.02 is about 1/250 of its last bit in bf16:
added to the weight itself, it would be lost. The master keeps it, and the weight is the rounded
master.

A batch's gradient is accumulated in fp32, in the masters (`training.gradients: fp32`), or in bf16,
in the weights: then the update converts it piece by piece, and it takes half the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chip_core.config.trial import TrialConfig
from chip_core.models.parts import select_trained_parameters
from chip_core.models.shards import get_local_weight, get_shard_group, shard_like
from chip_core.utils.errors import UnfitError
from chip_core.utils.workers import Workers

#: Bytes of gradients that are converted to fp32, or averaged over workers, at the same time.
PIECE_BYTES = 2**28


class MasterWeights:
    """The masters of a model's trained weights, and their update from gradients."""

    def __init__(self, model: Any, config: TrialConfig) -> None:
        """Copy the trained weights as they are now; sharded ones stay sharded."""
        self._holds_gradients = config.training.gradients == "fp32"
        self._masters: dict[Tensor, nn.Parameter] = {
            weight: nn.Parameter(weight.detach().float(), requires_grad=weight.requires_grad)
            for parameters in select_trained_parameters(model, config).values()
            for weight in parameters.values()
        }
        # Called once a gradient is made, so that bf16 gradients never exist all at once.
        self._hooks: list[Any] = [
            weight.register_post_accumulate_grad_hook(self._accumulate)  # type: ignore[no-untyped-call]
            for weight in (self._masters if self._holds_gradients else ())
        ]

    def master_of(self, weight: nn.Parameter) -> nn.Parameter:
        """Return a weight's master."""
        return self._masters[weight]

    def close(self) -> None:
        """Remove the hooks from the weights, which may outlive their masters."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _accumulate(self, weight: Tensor) -> None:
        """Add a weight's gradient to the gradient of its master, and drop it from the weight."""
        assert weight.grad is not None
        master = self._masters[weight]
        if master.grad is None:
            master.grad = weight.grad.float()
        else:
            master.grad += weight.grad
        weight.grad = None

    def drop_untrained(self, trained: Sequence[nn.Parameter]) -> None:
        """Drop the gradients of all weights but those trained at this stage."""
        trained_ids = {id(weight) for weight in trained}
        for weight, master in self._masters.items():
            if id(weight) not in trained_ids:
                weight.grad = master.grad = None

    @torch.no_grad()
    def average(self, trained: Sequence[nn.Parameter], workers: Workers) -> None:
        """Average gradients over workers that each hold the whole model, summed in fp32."""
        if workers.is_single:
            return
        for piece in _iter_pieces(self._with_gradient(trained)):
            gradients = [self._gradient(weight) for weight in piece]
            flat = torch.cat([gradient.float().flatten() for gradient in gradients])
            torch.distributed.all_reduce(flat)
            flat /= workers.size
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def norm(self, trained: Sequence[nn.Parameter], *, sharded: bool) -> Tensor:
        """Return the gradient's global norm, 0-d, in fp32.

        Args:
            trained: the weights that are trained at this stage.
            sharded: whether each worker holds a part of every gradient.
        """
        norms = [
            torch.linalg.vector_norm(get_local_weight(self._gradient(weight)), dtype=torch.float32)
            for weight in self._with_gradient(trained)
        ]
        if not norms:
            return torch.zeros(())
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        if sharded:
            squared = norm.square()
            torch.distributed.all_reduce(squared, group=get_shard_group(trained[0]))
            norm = squared.sqrt()
        return norm

    @torch.no_grad()
    def update(
        self, trained: Sequence[nn.Parameter], optimizer: Any, norm: Tensor, limit: float | None
    ) -> None:
        """Update the masters with the optimizer, and round the weights from them.

        Args:
            trained: the weights that are trained at this stage.
            optimizer: over the masters.
            norm: the gradient's norm.
            limit: the largest norm, to which it is clipped; None: no clipping.
        """
        # As torch.nn.utils.clip_grad_norm_ does.
        scale = None if limit is None else (limit / (norm + 1e-6)).clamp(max=1.0)
        weights = self._with_gradient(trained)
        # An optimizer skips parameters without a gradient, so pieces can be updated in turn.
        for piece in [weights] if self._holds_gradients else _iter_pieces(weights):
            for weight in piece:
                gradient = self._gradient(weight).float()
                if scale is not None:
                    get_local_weight(gradient).mul_(scale)
                self._masters[weight].grad, weight.grad = gradient, None
            optimizer.step()
            for weight in piece:
                self._masters[weight].grad = None
        self.round_weights()

    @torch.no_grad()
    def round_weights(self) -> None:
        """Set every weight to its master, rounded."""
        for weight, master in self._masters.items():
            weight.copy_(master)

    def _with_gradient(self, trained: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        holder_of = (
            (lambda weight: self._masters[weight])
            if self._holds_gradients
            else (lambda weight: weight)
        )
        return [weight for weight in trained if holder_of(weight).grad is not None]

    def _gradient(self, weight: nn.Parameter) -> Tensor:
        gradient = self._masters[weight].grad if self._holds_gradients else weight.grad
        assert gradient is not None
        return gradient


def write_masters(masters: Mapping[str, nn.Parameter], file: Path) -> None:
    """Write masters, which are not sharded, by their weights' names."""
    from safetensors.torch import save_file

    save_file(
        {name: master.detach().cpu().contiguous() for name, master in masters.items()},
        file,
        metadata={"format": "pt"},
    )


def read_masters(file: Path, masters: Mapping[str, nn.Parameter]) -> None:
    """Read what `write_masters` wrote into masters, sharded or not.

    Raises:
        UnfitError: the file has other weights; the masters are unchanged.
    """
    from safetensors.torch import load_file

    saved = load_file(file)
    mismatched = sorted(
        name
        for name in saved.keys() | masters.keys()
        if name not in saved or name not in masters or saved[name].shape != masters[name].shape
    )
    if mismatched:
        raise UnfitError(f"{file.name} is of other weights ({mismatched[0]}, …)")
    with torch.no_grad():
        for name, master in masters.items():
            master.copy_(shard_like(saved[name], master))


def _iter_pieces(weights: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield weights in pieces of at most `PIECE_BYTES`; a larger weight is a piece of its own."""
    piece: list[nn.Parameter] = []
    piece_bytes = 0
    for weight in weights:
        size = 4 * get_local_weight(weight).numel()
        if piece and piece_bytes + size > PIECE_BYTES:
            yield piece
            piece, piece_bytes = [], 0
        piece.append(weight)
        piece_bytes += size
    if piece:
        yield piece
