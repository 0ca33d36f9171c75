"""Check every row before training: by itself, and against a model's processor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from PIL import Image

from chip_core.data.encodings import SpecialTokens, describe_special_token, training_template
from chip_core.data.formats.extra_columns import (
    ExtraCells,
    RowRequirements,
    check_sentences,
    parse_extra_cells,
)
from chip_core.data.image_files import ImageReader
from chip_core.data.rows import BadRow, ImageRef, RowError
from chip_core.data.source import DataSource, SourceRow
from chip_core.data.verified_images import Size, VerifiedImages
from chip_core.utils.errors import first_line
from chip_core.utils.machine import cpu_count
from chip_core.utils.threads import map_values

K = TypeVar("K")


@dataclass(frozen=True, kw_only=True)
class ValidRow:
    """A row that can be trained on."""

    row: SourceRow
    size: tuple[int, int]  # of the image: width, height


class RowChecker(Protocol):
    """A check of rows against what they are used for: a model's processor."""

    def check(
        self, row: SourceRow, sizes: Sequence[tuple[int, int]], extra: ExtraCells | None = None
    ) -> None:
        """Raise RowError if a row with images of these sizes is not accepted."""


MAX_SHOWN_ROWS = 10  # bad rows listed in a line

#: With at least this many rows, several threads decode images, and their sizes are kept for the
#: next check; fewer rows are fast anyway.
_MIN_ROWS_FOR_THREADS = 2000
_MAX_THREADS = 8  # reading rows in one thread takes as long as decoding in this many


@dataclass(frozen=True, kw_only=True)
class RowImages:
    """The images of a row, not decoded."""

    reader: ImageReader
    refs: tuple[tuple[str, ImageRef], ...]  # its name in messages, and the image


@dataclass(frozen=True, kw_only=True)
class _ParsedRow:
    """A row whose texts and fields are valid."""

    row: SourceRow
    extra: ExtraCells


def check_rows(
    source: DataSource,
    *,
    rejected_images: bool = False,
    requirements: RowRequirements | None = None,
    model: RowChecker | None = None,
    threads: int = 1,
) -> Iterator[ValidRow | BadRow]:
    """Yield the result for every row, in order; images are decoded and freed.

    Args:
        source: the rows.
        rejected_images: whether a row needs a rejected image of its own.
        requirements: what else an objective needs of it.
        model: a further check of the rows; None: no model is known.
        threads: how many decode images; 1: only this one.
    """
    parsed_rows = _parse_rows(source, rejected_images, requirements or RowRequirements())
    for (index, parsed), sizes in iter_sizes(source, parsed_rows, threads):
        try:
            if isinstance(parsed, RowError) or isinstance(sizes, str):
                raise RowError(str(parsed if isinstance(parsed, RowError) else sizes))
            if model is not None:
                model.check(parsed.row, sizes, parsed.extra)
        except RowError as error:
            yield BadRow(location=source.location(index), reason=str(error))
            continue
        yield ValidRow(row=parsed.row, size=sizes[0])


def format_bad_rows(
    bad: Sequence[BadRow], rows: int, skip_option: str = "with data.on_bad_row=skip"
) -> str:
    """Return a list of bad rows as one line, because a trial's reason is one line.

    Args:
        bad: the rows.
        rows: how many were checked.
        skip_option: how to leave them out.
    """
    shown = "; ".join(str(row) for row in bad[:MAX_SHOWN_ROWS])
    suffix = f"; and {len(bad) - MAX_SHOWN_ROWS} more" if len(bad) > MAX_SHOWN_ROWS else ""
    return (
        f"{len(bad)} of {rows} rows are bad: {shown}{suffix}: fix them, or leave them out "
        f"{skip_option} (`chip-ablate data check` lists all)"
    )


def decode_threads(rows: int, processes: int = 1) -> int:
    """Return how many threads should decode the images of rows.

    Args:
        rows: how many there are.
        processes: how many processes of this machine check as many at the same time.
    """
    return (
        1 if rows < _MIN_ROWS_FOR_THREADS else max(1, min(_MAX_THREADS, cpu_count() // processes))
    )


def iter_sizes(
    source: DataSource, rows: Iterable[tuple[K, RowImages | None]], threads: int
) -> Iterator[tuple[K, list[Size] | str]]:
    """Yield each row's key with the size of each of its images, or why one is bad.

    Args:
        source: where the rows are from. If it has many, images that an earlier check on this
            machine decoded are not decoded again.
        rows: a key of each row, and its images; None: it has none.
        threads: how many decode images; 1: only this one.
    """
    if len(source) < _MIN_ROWS_FOR_THREADS:
        yield from map_values(_find_sizes, rows, threads)
        return
    verified = VerifiedImages([file for table in source.tables for file in table.files])
    try:
        yield from map_values(partial(_find_sizes, verified=verified), rows, threads)
    finally:
        verified.save()


def _find_sizes(
    images: RowImages | None, verified: VerifiedImages | None = None
) -> list[Size] | str:
    """Return the size of each image of a row, fully decoded, or why one is bad."""
    sizes: list[Size] = []
    for name, ref in () if images is None else images.refs:
        reader: ImageReader = images.reader  # type: ignore[union-attr]
        try:
            sizes.append(reader.size(ref) if verified is None else verified.size(reader, ref))
        except RowError as error:
            return f"{name}: {error}" if name else str(error)
    return sizes


def _parse_rows(
    source: DataSource, rejected_images: bool, requirements: RowRequirements
) -> Iterator[tuple[tuple[int, _ParsedRow | RowError], RowImages | None]]:
    """Yield each row with its number and images; for a bad row the reason."""
    for index, row in source.scan():
        if isinstance(row, RowError):
            yield (index, row), None
            continue
        try:
            extra = parse_extra_cells(row.raw, requirements)
            check_sentences(row.texts, extra)
            refs = [("", row.image)]
            if row.rejected_image is not None:
                refs.append(("rejected image", row.rejected_image))
            elif rejected_images:
                raise RowError("rejected image: the row has none, but rejected_image is given")
            if extra.second_image is not None:
                refs.append(("second image", extra.second_image))
        except RowError as error:
            yield (index, error), None
            continue
        images = RowImages(reader=row.images, refs=tuple(refs))
        yield (index, _ParsedRow(row=row, extra=extra)), images


#: Images with a shorter side, in pixels, or a larger ratio of their sides are tested; every known
#: processor accepts all others.
_MIN_SIDE, _MAX_ASPECT = 64, 20.0


class ProcessorChecker:
    """Find rows that a model's processor refuses."""

    def __init__(self, processor: Any) -> None:
        """Create a checker for a model's processor."""
        self.special_tokens = SpecialTokens(processor)
        self._processor = processor
        #: The processor's error for each size, if there is one.
        self._errors_by_size: dict[tuple[int, int], str | None] = {}

    def check(
        self, row: SourceRow, sizes: Sequence[tuple[int, int]], extra: ExtraCells | None = None
    ) -> None:
        """Check a row.

        Args:
            row: its texts are a preference.
            sizes: of its images, width and height.
            extra: further cells that are used.

        Raises:
            RowError: the processor would refuse it.
        """
        texts = {name: getattr(row.texts, name) for name in ("prompt", "chosen", "rejected")}
        extra = extra or ExtraCells()
        texts |= {"other": extra.other, "second_prompt": extra.second_prompt}
        for name, text in texts.items():
            token = None if text is None else self.special_tokens.find_unencodable(text)
            if token is not None:
                raise RowError(f"{name} {describe_special_token(token)}")
        for width, height in sizes:
            size_error = self._size_error(width, height)
            if size_error is not None:
                raise RowError(
                    f"an image of {width} x {height} pixels is refused by the model's processor "
                    f"({size_error}): crop it, or leave it out"
                )

    def _size_error(self, width: int, height: int) -> str | None:
        """Return the processor's error for an image of a size; None if it accepts it."""
        short, long = sorted((width, height))
        if short >= _MIN_SIDE and long <= _MAX_ASPECT * short:
            return None
        if (width, height) not in self._errors_by_size:
            self._errors_by_size[width, height] = self._try_processor(
                Image.new("RGB", (width, height))
            )
        return self._errors_by_size[width, height]

    def _try_processor(self, image: Image.Image) -> str | None:
        content = [{"type": "image"}, {"type": "text", "text": "?"}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            **training_template(self._processor),
        )
        try:
            self._processor(images=[image], text=[text], return_tensors="pt")
        except Exception as error:  # a family's processor may raise anything
            return first_line(error)
        return None
