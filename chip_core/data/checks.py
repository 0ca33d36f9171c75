"""Check every row before training: by itself, and for a model's processor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from chip_core.data.answers import template_of
from chip_core.data.formats.further import Asks, Further, check_sentences, further_of
from chip_core.data.rows import BadRow, ImageRef, RowError
from chip_core.data.source import DataSource, SourceRow
from chip_core.data.special_tokens import SpecialTokens, special_token_problem
from chip_core.utils.errors import brief


@dataclass(frozen=True, kw_only=True)
class GoodRow:
    """A row that can be trained on."""

    row: SourceRow
    size: tuple[int, int]  # of the image: width, height


class RowChecker(Protocol):
    """Looks at rows for what else has to take them: a model's processor."""

    def check(
        self, row: SourceRow, sizes: Sequence[tuple[int, int]], further: Further | None = None
    ) -> None:
        """Raise RowError where it does not take a row with images of these sizes."""


def check_rows(
    source: DataSource,
    *,
    rejected_images: bool = False,
    asks: Asks | None = None,
    model: RowChecker | None = None,
) -> Iterator[GoodRow | BadRow]:
    """Yield what every row is, in order; images are decoded one at a time and let go.

    Args:
        source: the rows.
        rejected_images: whether a row needs a rejected image of its own.
        asks: what an objective asks of it beside that.
        model: what else is to take the rows; None: no model is known.
    """
    for index, row in source.scan():
        if isinstance(row, RowError):
            yield BadRow(place=source.place(index), reason=str(row))
            continue
        try:
            sizes = _sizes(row, rejected_images)
            further = further_of(row.raw, asks or Asks())
            check_sentences(row.texts, further)
            if further.second_image is not None:
                sizes.append(_second(row, further.second_image))
            if model is not None:
                model.check(row, sizes, further)
        except RowError as error:
            yield BadRow(place=source.place(index), reason=str(error))
            continue
        yield GoodRow(row=row, size=sizes[0])


def _sizes(row: SourceRow, rejected_images: bool) -> list[tuple[int, int]]:
    """Return the sizes of a row's images, the rejected one's last."""
    sizes = [row.images.size(row.image)]
    try:
        if row.rejected_image is not None:
            sizes.append(row.images.size(row.rejected_image))
        elif rejected_images:
            raise RowError("the row has none, and rejected_image is given")
    except RowError as error:
        raise RowError(f"rejected image: {error}") from None
    return sizes


def _second(row: SourceRow, image: ImageRef) -> tuple[int, int]:
    try:
        return row.images.size(image)
    except RowError as error:
        raise RowError(f"second image: {error}") from None


#: Images with a shorter side, in pixels, or a larger ratio of their sides are tried; any other is
#: taken by every processor known.
_SHORT, _LONG = 64, 20.0


class ProcessorChecker:
    """Tells rows that a model's processor refuses."""

    def __init__(self, processor: Any) -> None:
        """Make ready for a model's processor."""
        self.marks = SpecialTokens(processor)
        self._processor = processor
        self._refused: dict[tuple[int, int], str | None] = {}  # by size: the processor's words

    def check(
        self, row: SourceRow, sizes: Sequence[tuple[int, int]], further: Further | None = None
    ) -> None:
        """Check a row.

        Args:
            row: its texts are a preference.
            sizes: of its images, width and height.
            further: what is read of it beside that.

        Raises:
            RowError: the processor would refuse it.
        """
        texts = {name: getattr(row.texts, name) for name in ("prompt", "chosen", "rejected")}
        further = further or Further()
        texts |= {"other": further.other, "second_prompt": further.second_prompt}
        for name, text in texts.items():
            mark = None if text is None else self.marks.problem(text)
            if mark is not None:
                raise RowError(f"{name} {special_token_problem(mark)}")
        for width, height in sizes:
            refused = self._refusal(width, height)
            if refused is not None:
                raise RowError(
                    f"an image of {width} x {height} pixels is refused by the model's processor "
                    f"({refused}): crop it, or leave it out"
                )

    def _refusal(self, width: int, height: int) -> str | None:
        """Return what the processor says to an image of a size; None if it takes it."""
        short, long = sorted((width, height))
        if short >= _SHORT and long <= _LONG * short:
            return None
        if (width, height) not in self._refused:
            self._refused[width, height] = self._tried(Image.new("RGB", (width, height)))
        return self._refused[width, height]

    def _tried(self, image: Image.Image) -> str | None:
        content = [{"type": "image"}, {"type": "text", "text": "?"}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            **template_of(self._processor),
        )
        try:
            self._processor(images=[image], text=[text], return_tensors="pt")
        except Exception as error:  # whatever a family's processor raises
            return brief(error)
        return None
