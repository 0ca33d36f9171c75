"""Every row looked at before training: what is wrong, and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chip_core.data.rows import BadRow, RowError
from chip_core.data.source import Row, Source


@dataclass(frozen=True, kw_only=True)
class GoodRow:
    """A row that can be trained on."""

    row: Row
    size: tuple[int, int]  # of the image: width, height


def check_rows(source: Source, *, rejected_images: bool = False) -> Iterator[GoodRow | BadRow]:
    """Yield what every row is, in order; images are decoded one at a time and let go.

    Args:
        source: the rows.
        rejected_images: whether a row needs a rejected image of its own.
    """
    for index, row in source.scan():
        if isinstance(row, RowError):
            yield BadRow(place=source.place(index), reason=str(row))
            continue
        try:
            size = row.images.size(row.image)
        except RowError as error:
            yield BadRow(place=source.place(index), reason=str(error))
            continue
        try:
            if row.rejected_image is not None:
                row.images.size(row.rejected_image)
            elif rejected_images:
                raise RowError("the row has none, and rejected_image is given")
        except RowError as error:
            yield BadRow(place=source.place(index), reason=f"rejected image: {error}")
            continue
        yield GoodRow(row=row, size=size)
