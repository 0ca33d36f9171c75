"""Check every row before training: by itself, and for a model's processor.

Most of it is the decoding of images, so many rows are looked at by several processes.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

from PIL import Image

from chip_core.data.answers import template_of
from chip_core.data.formats.further import Asks, Further, check_sentences, further_of
from chip_core.data.rows import BadRow, ImageRef, RowError
from chip_core.data.source import DataSource, SourceRow
from chip_core.data.special_tokens import SpecialTokens, special_token_problem
from chip_core.utils.errors import TrialError, brief
from chip_core.utils.machine import cores

T = TypeVar("T")

#: Rows that one process looks at before the next one's turn.
BLOCK = 64

#: Fewer rows are looked at by one process: the start of others takes longer than they save.
FEW = 2_000

#: Processes at most.
MOST = 8


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
    wanted: Callable[[int], bool] = lambda index: True,
) -> Iterator[GoodRow | BadRow]:
    """Yield what every row is, in order; images are decoded one at a time and let go.

    Args:
        source: the rows.
        rejected_images: whether a row needs a rejected image of its own.
        asks: what an objective asks of it beside that.
        model: what else is to take the rows; None: no model is known.
        wanted: which rows are looked at, by their numbers.
    """
    for index, row in source.scan(wanted):
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


def processes_for(rows: int, sharing: int = 1) -> int:
    """Return how many processes are to look at rows.

    Args:
        rows: how many there are.
        sharing: how many processes of this machine look at as many at the same time.
    """
    if rows < FEW or sys.platform != "linux":  # elsewhere none can be forked safely
        return 1
    return max(1, min(MOST, cores() // sharing))


def told_of_rows(
    source: DataSource, tell: Callable[[GoodRow], T], *, processes: int = 1, **held: Any
) -> Iterator[T | BadRow]:
    """Yield what is told of each good row, and each bad row, in order.

    Args:
        source: the rows.
        tell: of a good row; called in the process that has looked at it.
        processes: how many look at rows.
        **held: what they are held against: see `check_rows`.

    Raises:
        TrialError: one of the processes was ended from outside.
    """
    if processes == 1:
        for checked in check_rows(source, **held):
            yield checked if isinstance(checked, BadRow) else tell(checked)
        return
    # Forked: a new interpreter would import for seconds, and what is told may be a closure.
    forked = multiprocessing.get_context("fork")
    started = []
    for number in range(processes):
        here, there = forked.Pipe(duplex=False)
        share = _Share(number=number, of=processes)
        process = forked.Process(target=_look, args=(source, tell, share, there, held), daemon=True)
        process.start()
        there.close()  # so that its end is seen here
        started.append((process, here))
    try:
        for block in range(-(-len(source) // BLOCK)):
            try:
                told = started[block % processes][1].recv()
            except EOFError:
                raise TrialError(
                    "a process that looks at rows was ended: is the machine's memory full?"
                ) from None
            if isinstance(told, Exception):
                raise told
            yield from told
    finally:
        for process, here in started:
            here.close()
            process.terminate()
            process.join()


@dataclass(frozen=True, kw_only=True)
class _Share:
    """The rows that one of several processes looks at: every so manieth block."""

    number: int
    of: int

    def __call__(self, index: int) -> bool:
        return index // BLOCK % self.of == self.number


def _look(
    source: DataSource,
    tell: Callable[[GoodRow], T],
    share: _Share,
    out: Connection[Any, Any],
    held: dict[str, Any],
) -> None:
    """Be one of several processes; send what is told of each block of rows."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at a terminal all get it: one decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)  # its others are not there after a fork, and would be waited for
    block: list[T | BadRow] = []
    try:
        for checked in check_rows(source, wanted=share, **held):
            block.append(checked if isinstance(checked, BadRow) else tell(checked))
            if len(block) == BLOCK:
                out.send(block)
                block = []
        if block:
            out.send(block)
    except BrokenPipeError:
        return  # nobody asks any more
    except Exception as error:  # comes out where the block is waited for
        try:
            out.send(error)
        except (TypeError, AttributeError, pickle.PicklingError):
            out.send(TrialError(f"a row cannot be looked at ({brief(error)})"))


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
