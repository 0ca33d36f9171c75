"""A batch of pairs as padded tensors: each prompt once, and the responses to it.

Shapes: B pairs, P tokens of a prompt with its image, C tokens of a response. All padding is on the
right.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from chip_core.objectives.parts import VIEWS, Image, Prefix, view_prefix


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts with their images, and a model's inputs other than token ids."""

    ids: Tensor  # (B, P)
    mask: Tensor  # (B, P) bool, true on tokens of the prompt
    inputs: dict[str, Tensor]  # pixel values and the like; `…token_type_ids` are (B, P)
    #: a frozen vision tower's output for the images (chip_core/models/parts.py); None: it is
    #: computed
    features: Mapping[str, Tensor] | None = None
    host: Prompts | None = None  # the same, before it was sent to a device

    def to(self, device: torch.device) -> Prompts:
        """Return the prompts on a device."""
        features = None
        if self.features is not None:
            features = {name: to_device(value, device) for name, value in self.features.items()}
        return Prompts(
            ids=to_device(self.ids, device),
            mask=to_device(self.mask, device),
            inputs={name: to_device(value, device) for name, value in self.inputs.items()},
            features=features,
            host=self.on_host,
        )

    @property
    def on_host(self) -> Prompts:
        """The same on the host, so that reading it waits for no device."""
        return self.host or self

    @property
    def images(self) -> dict[str, Tensor]:
        """The inputs of the vision tower."""
        return {name: value for name, value in self.inputs.items() if not is_per_token(name)}


@dataclass(frozen=True, kw_only=True)
class Responses:
    """One response per pair.

    Its first L columns may be tokens that are in the prompt and are scored like the response's.
    """

    ids: Tensor  # (B, C)
    mask: Tensor  # (B, C) bool, true on tokens of the response
    changed: Tensor  # (B, C) bool, true on tokens of a segment
    leading: Tensor | None = None  # (B, L): positions in the prompt of the first columns
    host: Responses | None = None  # the same, before it was sent to a device
    #: (N,) each: rows and columns of the mask's true entries, on the same device
    tokens: tuple[Tensor, Tensor] | None = None

    def to(self, device: torch.device) -> Responses:
        """Return the responses on a device."""
        rows, columns = self.on_host.token_indices
        return Responses(
            ids=to_device(self.ids, device),
            mask=to_device(self.mask, device),
            changed=to_device(self.changed, device),
            leading=None if self.leading is None else to_device(self.leading, device),
            host=self.on_host,
            tokens=(to_device(rows, device), to_device(columns, device)),
        )

    @property
    def on_host(self) -> Responses:
        """The same on the host, so that reading it waits for no device."""
        return self.host or self

    @property
    def token_indices(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the response's tokens, (N,) each, row after row."""
        if self.tokens is not None:
            return self.tokens
        rows, columns = self.mask.nonzero(as_tuple=True)
        return rows, columns

    def with_leading(self, *, positions: Tensor, ids: Tensor, mask: Tensor) -> Responses:
        """Return the responses with preceding tokens of the prompt, (B, L) each."""
        return Responses(
            ids=torch.cat([ids, self.ids], 1),
            mask=torch.cat([mask, self.mask], 1),
            changed=torch.cat([torch.zeros_like(mask), self.changed], 1),
            leading=positions,
        )

    @property
    def without_leading(self) -> Responses:
        """The responses without tokens that are in the prompt."""
        if self.leading is None:
            return self
        first = self.leading.shape[1]
        return Responses(
            ids=self.ids[:, first:], mask=self.mask[:, first:], changed=self.changed[:, first:]
        )


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """The input of one forward pass of the objective."""

    indices: tuple[int, ...]  # of the pairs in the training data
    epoch: int  # counted from 0; selects the rejected image if it is redrawn each epoch
    prompts: Prompts
    chosen: Responses
    rejected: Responses
    rejected_image_prompts: Prompts | None  # the prompts with the rejected image; if needed
    rejected_image: Responses | None  # the chosen responses, cut by those prompts' lengths
    void_count: int = 0  # rejected images that are the true ones
    #: (sample, side, tokens) of each response cut
    cut_responses: tuple[tuple[str, str, int], ...] = ()
    second_image_prompts: Prompts | None = None  # the prompts with the rows' second image
    #: of further views, by name
    extra_responses: Mapping[str, Responses] = field(default_factory=dict)
    #: If chosen and rejected response have an image each: the rejected one's prompts, with its own
    #: image, and with the rejected image made from it; otherwise empty.
    own_image_prompts: Mapping[Image, Prompts] = field(default_factory=dict)
    fields: Mapping[str, Tensor] = field(default_factory=dict)  # of rows; see `losses.Inputs`

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device) -> PairBatch:
        """Return the batch on a device."""
        prompts, response = self.rejected_image_prompts, self.rejected_image
        second_prompts = self.second_image_prompts
        return replace(
            self,
            prompts=self.prompts.to(device),
            chosen=self.chosen.to(device),
            rejected=self.rejected.to(device),
            rejected_image_prompts=None if prompts is None else prompts.to(device),
            rejected_image=None if response is None else response.to(device),
            second_image_prompts=None if second_prompts is None else second_prompts.to(device),
            extra_responses={
                view: responses.to(device) for view, responses in self.extra_responses.items()
            },
            own_image_prompts={
                image: prompts.to(device) for image, prompts in self.own_image_prompts.items()
            },
            fields={name: to_device(values, device) for name, values in self.fields.items()},
        )

    @property
    def responses(self) -> dict[str, Responses]:
        """The responses that exist, by view, in the order of `VIEWS`."""
        by_view = {"chosen": self.chosen, "rejected": self.rejected, **self.extra_responses}
        if self.rejected_image is not None:
            by_view["rejected_image"] = self.rejected_image
        return {view: by_view[view] for view in VIEWS if view in by_view}

    def prefix(self, view: str) -> Prefix:
        """Return the prefix of a view's responses."""
        return view_prefix(view, separate_images=bool(self.own_image_prompts))

    def select_prompts(self, image: Image, own_image: bool = False) -> Prompts:
        """Return the prompts with an image; `own_image`: with the rejected responses' own image."""
        if own_image:
            return self.own_image_prompts[image]
        prompts = {
            "image": self.prompts,
            "rejected_image": self.rejected_image_prompts,
            "second_image": self.second_image_prompts,
        }[image]
        assert prompts is not None
        return prompts

    def select_views(self, views: Collection[str]) -> PairBatch:
        """Return the batch without other views and without images that no remaining view has."""
        images = {VIEWS[view][0] for view in views}
        prefixes = {self.prefix(view) for view in views}
        return replace(
            self,
            rejected_image_prompts=self.rejected_image_prompts
            if "rejected_image" in images
            else None,
            rejected_image=self.rejected_image if "rejected_image" in views else None,
            second_image_prompts=self.second_image_prompts if "second_image" in images else None,
            extra_responses={
                view: self.extra_responses[view] for view in self.extra_responses if view in views
            },
            own_image_prompts={
                image: prompts
                for image, prompts in self.own_image_prompts.items()
                if image == "image" or (image, True) in prefixes
            },
        )

    @property
    def tokens(self) -> int:
        """The number of tokens in the batch's sequences, without padding.

        A prompt counts once for each response to it, however it is computed.
        """
        return sum(
            int(self.select_prompts(*self.prefix(view)).on_host.mask.sum())
            + int(responses.on_host.without_leading.mask.sum())
            for view, responses in self.responses.items()
        )


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, without waiting for the transfer."""
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def pad_rows(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Return rows of different lengths as (values, mask), both (rows, longest)."""
    shape = (len(rows), max(map(len, rows)))
    values = torch.full(shape, fill, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.bool)
    for index, row in enumerate(rows):
        values[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = True
    return values, mask


def stack_inputs(rows: Sequence[dict[str, Tensor]], *, tokens: int) -> dict[str, Tensor]:
    """Return a model's inputs other than token ids, of several sequences as one batch.

    - One entry per token (`mm_token_type_ids` and the like): padded with 0, which is text, to the
      batch's length.
    - Everything else is concatenated along its first dimension: one entry per image, or (Qwen-VL)
      all patches of all images. If images differ in further dimensions (tiles of LLaVA-NeXT, tiles
      and pixels of Idefics3), the smaller ones are padded with zeros at the end: `image_sizes` or
      `pixel_attention_mask` tell the model what is padding.
    """
    stacked = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if is_per_token(name):
            sizes: tuple[int, ...] = (tokens,)
        else:
            sizes = tuple(map(max, zip(*(value.shape[1:] for value in values), strict=True)))
        stacked[name] = torch.cat([_pad_to(value, sizes) for value in values])
    return stacked


def is_per_token(name: str) -> bool:
    """Return whether an input of a model has one entry per token."""
    return name.endswith("token_type_ids")


def _pad_to(value: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return a tensor padded with zeros, past the first dimension, to these sizes."""
    if value.shape[1:] == sizes:
        return value
    padded = value.new_zeros((value.shape[0], *sizes))
    padded[tuple(slice(size) for size in value.shape)] = value
    return padded
