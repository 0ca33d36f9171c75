"""What a model's processor makes of rows: what would end a training is told before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from chip_core.data.answers import template_of
from chip_core.data.marks import Marks, unwritable
from chip_core.data.rows import RowError
from chip_core.data.source import Row

#: Images with a shorter side, in pixels, or a larger ratio of their sides are tried; any other is
#: taken by every processor known.
_SHORT, _LONG = 64, 20.0


class ModelRows:
    """Tells rows that a model's processor refuses."""

    def __init__(self, processor: Any) -> None:
        """Make ready for a model's processor."""
        self.marks = Marks(processor)
        self._processor = processor
        self._refused: dict[tuple[int, int], str | None] = {}  # by size: the processor's words

    def check(self, row: Row, sizes: Sequence[tuple[int, int]]) -> None:
        """Check a row.

        Args:
            row: its texts are a preference.
            sizes: of its images, width and height.

        Raises:
            RowError: the processor would refuse it.
        """
        for name in ("prompt", "chosen", "rejected"):
            mark = self.marks.problem(getattr(row.texts, name))
            if mark is not None:
                raise RowError(f"{name} {unwritable(mark)}")
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
            return (str(error).splitlines() or [type(error).__name__])[0]
        return None
