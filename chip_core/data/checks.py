"""Check every row before training: by itself, and for a model's processor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from chip_core.data.answers import template_of
from chip_core.data.formats.further import Asks, Further, check_sentences, further_of
from chip_core.data.image_files import ImageReader
from chip_core.data.rows import BadRow, ImageRef, RowError
from chip_core.data.source import DataSource, SourceRow
from chip_core.data.special_tokens import SpecialTokens, special_token_problem
from chip_core.utils.errors import brief
from chip_core.utils.machine import cores
from chip_core.utils.threads import map_values


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


SHOWN = 10  # bad rows that a line lists

#: Rows from which on several threads decode images: fewer are soon looked at.
_MANY = 2000
_MOST_THREADS = 8  # one reads rows about as fast as so many decode their images


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of a row, none of them decoded."""

    reader: ImageReader
    refs: tuple[tuple[str, ImageRef], ...]  # what each is called where it is bad, and itself


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A row whose texts and fields are as they are to be."""

    row: SourceRow
    further: Further


def check_rows(
    source: DataSource,
    *,
    rejected_images: bool = False,
    asks: Asks | None = None,
    model: RowChecker | None = None,
    threads: int = 1,
) -> Iterator[GoodRow | BadRow]:
    """Yield what every row is, in order; images are decoded and let go.

    Args:
        source: the rows.
        rejected_images: whether a row needs a rejected image of its own.
        asks: what an objective asks of it beside that.
        model: what else is to take the rows; None: no model is known.
        threads: how many decode images; 1: this one alone.
    """
    read = _read_rows(source, rejected_images, asks or Asks())
    for (index, one), sizes in map_values(image_sizes, read, threads):
        try:
            if isinstance(one, RowError) or isinstance(sizes, str):
                raise RowError(str(one if isinstance(one, RowError) else sizes))
            if model is not None:
                model.check(one.row, sizes, one.further)
        except RowError as error:
            yield BadRow(place=source.place(index), reason=str(error))
            continue
        yield GoodRow(row=one.row, size=sizes[0])


def bad_rows_line(
    bad: Sequence[BadRow], rows: int, leave_out: str = "by data.on_bad_row=skip"
) -> str:
    """Return bad rows as one line: a trial's reason is one.

    Args:
        bad: the rows.
        rows: how many were looked at.
        leave_out: how they are left out.
    """
    listed = "; ".join(str(row) for row in bad[:SHOWN])
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return (
        f"{len(bad)} of {rows} rows are bad: {listed}{more}: mend them, or leave them out "
        f"{leave_out} (`chip-ablate data check` lists all)"
    )


def threads_for(rows: int, sharing: int = 1) -> int:
    """Return how many threads are to decode the images of rows.

    Args:
        rows: how many there are.
        sharing: how many processes of this machine look at as many at the same time.
    """
    return 1 if rows < _MANY else max(1, min(_MOST_THREADS, cores() // sharing))


def image_sizes(images: Images | None) -> list[tuple[int, int]] | str:
    """Return the size of each image of a row, decoded whole; where one is bad, why."""
    sizes = []
    for name, ref in () if images is None else images.refs:
        try:
            sizes.append(images.reader.size(ref))  # type: ignore[union-attr]
        except RowError as error:
            return f"{name}: {error}" if name else str(error)
    return sizes


def _read_rows(
    source: DataSource, rejected_images: bool, asks: Asks
) -> Iterator[tuple[tuple[int, _Read | RowError], Images | None]]:
    """Yield each row with its number and its images; in place of a bad one the reason."""
    for index, row in source.scan():
        if isinstance(row, RowError):
            yield (index, row), None
            continue
        try:
            further = further_of(row.raw, asks)
            check_sentences(row.texts, further)
            refs = [("", row.image)]
            if row.rejected_image is not None:
                refs.append(("rejected image", row.rejected_image))
            elif rejected_images:
                raise RowError("rejected image: the row has none, and rejected_image is given")
            if further.second_image is not None:
                refs.append(("second image", further.second_image))
        except RowError as error:
            yield (index, error), None
            continue
        images = Images(reader=row.images, refs=tuple(refs))
        yield (index, _Read(row=row, further=further)), images


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
