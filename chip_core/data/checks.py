"""Check every row before training: by itself, and against a model's processor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from PIL import Image

from chip_core.data.answers import template_of
from chip_core.data.formats.further import Asks, Further, check_sentences, further_of
from chip_core.data.image_files import ImageReader
from chip_core.data.rows import BadRow, ImageRef, RowError
from chip_core.data.source import DataSource, SourceRow
from chip_core.data.special_tokens import SpecialTokens, special_token_problem
from chip_core.data.verified_images import Size, VerifiedImages
from chip_core.utils.errors import brief
from chip_core.utils.machine import cores
from chip_core.utils.threads import map_values

K = TypeVar("K")


@dataclass(frozen=True, kw_only=True)
class GoodRow:
    """A row that can be trained on."""

    row: SourceRow
    size: tuple[int, int]  # of the image: width, height


class RowChecker(Protocol):
    """A check of rows against what they are used for: a model's processor."""

    def check(
        self, row: SourceRow, sizes: Sequence[tuple[int, int]], further: Further | None = None
    ) -> None:
        """Raise RowError if a row with images of these sizes is not accepted."""


SHOWN = 10  # bad rows listed in a line

#: Rows from which on several threads decode images, and their sizes are kept for the next check;
#: fewer rows are fast without.
_MANY = 2000
_MOST_THREADS = 8  # reading rows in one takes as long as decoding in so many


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of a row, not decoded."""

    reader: ImageReader
    refs: tuple[tuple[str, ImageRef], ...]  # its name in messages, and the image


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A row whose texts and fields are valid."""

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
    """Yield the result for every row, in order; images are decoded and freed.

    Args:
        source: the rows.
        rejected_images: whether a row needs a rejected image of its own.
        asks: what else an objective needs of it.
        model: a further check of the rows; None: no model is known.
        threads: how many decode images; 1: only this one.
    """
    read = _read_rows(source, rejected_images, asks or Asks())
    for (index, one), sizes in sizes_of(source, read, threads):
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
    """Return a list of bad rows as one line, because a trial's reason is one line.

    Args:
        bad: the rows.
        rows: how many were checked.
        leave_out: how to leave them out.
    """
    listed = "; ".join(str(row) for row in bad[:SHOWN])
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return (
        f"{len(bad)} of {rows} rows are bad: {listed}{more}: mend them, or leave them out "
        f"{leave_out} (`chip-ablate data check` lists all)"
    )


def threads_for(rows: int, sharing: int = 1) -> int:
    """Return how many threads should decode the images of rows.

    Args:
        rows: how many there are.
        sharing: how many processes of this machine check as many at the same time.
    """
    return 1 if rows < _MANY else max(1, min(_MOST_THREADS, cores() // sharing))


def sizes_of(
    source: DataSource, rows: Iterable[tuple[K, Images | None]], threads: int
) -> Iterator[tuple[K, list[Size] | str]]:
    """Yield each row's key with the size of each of its images, or why one is bad.

    Args:
        source: where the rows are from. If it has many, images that an earlier check on this
            machine decoded are not decoded again.
        rows: a key of each row, and its images; None: it has none.
        threads: how many decode images; 1: only this one.
    """
    if len(source) < _MANY:
        yield from map_values(_sizes, rows, threads)
        return
    verified = VerifiedImages([file for table in source.tables for file in table.files])
    try:
        yield from map_values(partial(_sizes, verified=verified), rows, threads)
    finally:
        verified.save()


def _sizes(images: Images | None, verified: VerifiedImages | None = None) -> list[Size] | str:
    """Return the size of each image of a row, fully decoded, or why one is bad."""
    sizes: list[Size] = []
    for name, ref in () if images is None else images.refs:
        reader: ImageReader = images.reader  # type: ignore[union-attr]
        try:
            sizes.append(reader.size(ref) if verified is None else verified.size(reader, ref))
        except RowError as error:
            return f"{name}: {error}" if name else str(error)
    return sizes


def _read_rows(
    source: DataSource, rejected_images: bool, asks: Asks
) -> Iterator[tuple[tuple[int, _Read | RowError], Images | None]]:
    """Yield each row with its number and images; for a bad row the reason."""
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


#: Images with a shorter side, in pixels, or a larger ratio of their sides are tested; every known
#: processor accepts all others.
_SHORT, _LONG = 64, 20.0


class ProcessorChecker:
    """Find rows that a model's processor refuses."""

    def __init__(self, processor: Any) -> None:
        """Create a checker for a model's processor."""
        self.marks = SpecialTokens(processor)
        self._processor = processor
        self._refused: dict[tuple[int, int], str | None] = {}  # by size: the processor's error

    def check(
        self, row: SourceRow, sizes: Sequence[tuple[int, int]], further: Further | None = None
    ) -> None:
        """Check a row.

        Args:
            row: its texts are a preference.
            sizes: of its images, width and height.
            further: further cells that are used.

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
        """Return the processor's error for an image of a size; None if it accepts it."""
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
        except Exception as error:  # a family's processor may raise anything
            return brief(error)
        return None
