"""Every row looked at before training: what is wrong, and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from chip_core.data.rows import BadRow, RowError
from chip_core.data.source import Row, Source


@dataclass(frozen=True, kw_only=True)
class GoodRow:
    """A row that can be trained on."""

    row: Row
    size: tuple[int, int]  # of the image: width, height


class Checker(Protocol):
    """Looks at rows for what else has to take them: a model's processor."""

    def check(self, row: Row, sizes: Sequence[tuple[int, int]]) -> None:
        """Raise RowError where it does not take a row with images of these sizes."""


def check_rows(
    source: Source, *, rejected_images: bool = False, model: Checker | None = None
) -> Iterator[GoodRow | BadRow]:
    """Yield what every row is, in order; images are decoded one at a time and let go.

    Args:
        source: the rows.
        rejected_images: whether a row needs a rejected image of its own.
        model: what else is to take the rows; None: no model is known.
    """
    for index, row in source.scan():
        if isinstance(row, RowError):
            yield BadRow(place=source.place(index), reason=str(row))
            continue
        try:
            sizes = _sizes(row, rejected_images)
            if model is not None:
                model.check(row, sizes)
        except RowError as error:
            yield BadRow(place=source.place(index), reason=str(error))
            continue
        yield GoodRow(row=row, size=sizes[0])


def _sizes(row: Row, rejected_images: bool) -> list[tuple[int, int]]:
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
