"""Load preference pairs: an image, a prompt, a chosen and a rejected response."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from chip_core.config.trial import DataConfig
from chip_core.data.checks import RowChecker, check_rows, decode_threads, format_bad_rows
from chip_core.data.formats.extra_columns import RowRequirements, Score, parse_extra_cells
from chip_core.data.rejected_images.images import has_same_pixels
from chip_core.data.rows import BadRow, RowError
from chip_core.data.source import SHAPES, DataSource, SourceRow, is_local, open_source
from chip_core.shapes import world
from chip_core.utils.errors import ConfigError, TrialError

MAX_PREVIEW_ROWS = 64  # rows that `load_first_pairs` reads at most


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """One training sample."""

    id: str
    image: Image.Image
    prompt: str
    chosen: str
    rejected: str
    rejected_image: Image.Image | None = None  # if the data gives one
    own_image: Image.Image | None = None  # the rejected response's; None: `image` is for both
    other: str | None = None  # a third response, if the data gives one
    second_image: Image.Image | None = None  # a further image, if the data gives one
    second_prompt: str | None = None  # its own prompt; None: the pair's
    #: `COLUMN/KEY` of `objectives.parts.COLUMNS` -> a number, or (sentence, number) in order
    scores: Mapping[str, Score] = field(default_factory=dict)


class Pairs(Sequence[PreferencePair]):
    """Pairs by number; a pair's images are decoded when it is accessed."""

    skipped: Sequence[BadRow] = ()  # rows left out
    #: Characters of each pair's texts, for passes over pairs of similar length; None: all are
    #: similar.
    lengths: Sequence[int] | None = None

    def __iter__(self) -> Iterator[PreferencePair]:
        return (self[index] for index in range(len(self)))

    def content_key(self, index: int) -> Hashable | None:
        """Return a key that identifies a pair and all of its content; None if there is none."""
        return None

    def response_texts(self, index: int) -> tuple[str, str]:
        """Return a pair's chosen and rejected response without reading its images."""
        pair = self[index]
        return pair.chosen, pair.rejected

    def third_response(self, index: int) -> str | None:
        """Return a pair's third response without reading its images."""
        return self[index].other


class ShapesPairs(Pairs):
    """The embedded world's `train` split, drawn on access."""

    def __init__(self, limit: int | None) -> None:
        size = world.SPLIT_SIZES["train"]
        self._length = size if limit is None else min(limit, size)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> PreferencePair:  # type: ignore[override]
        if not 0 <= index < self._length:
            raise IndexError(index)
        pair = world.make_preference_pair("train", index)
        return PreferencePair(
            id=pair.id,
            image=pair.image,
            prompt=pair.question,
            chosen=pair.chosen,
            rejected=pair.rejected,
        )

    def content_key(self, index: int) -> Hashable:
        """Return its scene's name, because the world's pairs never change."""
        return SHAPES, index

    def response_texts(self, index: int) -> tuple[str, str]:
        """Return a pair's chosen and rejected response without drawing its image."""
        scene = world.make_scene("train", index)
        return world.make_faithful_caption(scene), world.make_rejected_caption(scene)


class SourcePairs(Pairs):
    """The valid rows of a data source."""

    def __init__(
        self,
        source: DataSource,
        on_row: Callable[[int, int], None] | None = None,
        *,
        rejected_images: bool = False,
        requirements: RowRequirements | None = None,
        model: RowChecker | None = None,
        threads: int = 1,
    ) -> None:
        """Check every row once, images in `threads`; call `on_row` with (done, total)."""
        self._source, self._requirements = source, requirements or RowRequirements()
        self._valid_rows, self._duplicate_rows = array("Q"), set[int]()
        skipped: list[BadRow] = []
        lengths = array("Q")
        ids: set[str] = set()
        results = check_rows(
            source,
            rejected_images=rejected_images,
            requirements=requirements,
            model=model,
            threads=threads,
        )
        for done, result in enumerate(results, start=1):
            if isinstance(result, BadRow):
                skipped.append(result)
            else:
                index = result.row.index
                self._valid_rows.append(index)
                texts = result.row.texts
                lengths.append(len(texts.prompt) + len(texts.chosen) + len(texts.rejected))
                name = result.row.id or source.fallback_id(index)
                if name in ids:
                    self._duplicate_rows.add(index)
                ids.add(name)
            if on_row is not None:
                on_row(done, len(source))
        self.skipped, self.lengths = skipped, lengths

    def __len__(self) -> int:
        return len(self._valid_rows)

    def __getitem__(self, index: int) -> PreferencePair:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        row_index = self._valid_rows[index]
        try:
            row = self._source.row(row_index)
            name = row.id or self._source.fallback_id(row_index)
            # A draw belongs to one sample: a repeated id gets its row number.
            name = f"{name}@{row_index}" if row_index in self._duplicate_rows else name
            return _decode_pair(row, name, self._requirements)
        except RowError as error:
            location = self._source.location(row_index)
            raise TrialError(f"{location}: {error}: it changed since training began") from None
        except ConfigError as error:  # its file can no longer be read or copied
            raise TrialError(error.problems[0]) from None

    def response_texts(self, index: int) -> tuple[str, str]:
        """Return a pair's chosen and rejected response without decoding its images."""
        texts = self._source.row(self._valid_rows[index]).texts
        return texts.chosen, texts.rejected

    def third_response(self, index: int) -> str | None:
        """Return a pair's third response without decoding its images."""
        return parse_extra_cells(
            self._source.row(self._valid_rows[index]).raw, self._requirements
        ).other


def load_pairs(
    config: DataConfig,
    on_row: Callable[[int, int], None] | None = None,
    *,
    rejected_images: bool = False,
    requirements: RowRequirements | None = None,
    model: RowChecker | None = None,
    processes: int = 1,
) -> Pairs:
    """Return a configuration's pairs, after checking every row.

    Args:
        config: the data.
        on_row: called with (rows checked, rows).
        rejected_images: whether a row without a rejected image of its own is bad.
        requirements: what else an objective needs of each row.
        model: a further check of the rows; None: no model is known.
        processes: how many processes of this machine load them at the same time.

    Raises:
        TrialError: the data cannot be read, or a row is bad and `on_bad_row` is `fail`.
    """
    if config.source == SHAPES:
        if requirements is not None and requirements.names:
            raise TrialError(f"the embedded world's pairs have no {', '.join(requirements.names)}")
        return ShapesPairs(config.limit)
    try:
        source = open_source(config)
        pairs = SourcePairs(
            source,
            on_row,
            rejected_images=rejected_images,
            requirements=requirements,
            model=model,
            threads=decode_threads(len(source), processes),
        )
    except ConfigError as error:
        raise TrialError(f"data.source: {error.problems[0]}") from None
    if pairs.skipped and config.on_bad_row == "fail":
        raise TrialError(format_bad_rows(pairs.skipped, len(pairs) + len(pairs.skipped)))
    return pairs


def load_first_pairs(config: DataConfig, count: int) -> list[PreferencePair]:
    """Return the first valid pairs with different pictures, without reading further rows.

    Args:
        config: the data.
        count: how many; fewer if the first rows have no more.

    Raises:
        ConfigError: the data cannot be read, or would have to be downloaded first.
    """
    pairs: list[PreferencePair] = []
    for pair in _iter_first_pairs(config, MAX_PREVIEW_ROWS):
        if not any(has_same_pixels(pair.image, other.image) for other in pairs):
            pairs.append(pair)
        if len(pairs) == count:
            break
    return pairs


def _iter_first_pairs(config: DataConfig, rows: int) -> Iterator[PreferencePair]:
    """Yield the valid pairs of the first rows."""
    if config.source == SHAPES:
        yield from itertools.islice(ShapesPairs(config.limit), rows)
        return
    if not is_local(config):
        raise ConfigError([f"{config.source} is not among this machine's data sets"])
    source = open_source(config)
    for index, row in itertools.islice(source.scan(), rows):
        try:
            if isinstance(row, RowError):
                continue
            yield _decode_pair(row, row.id or source.fallback_id(index))
        except RowError:
            continue  # its image is bad


def _decode_pair(
    row: SourceRow, name: str, requirements: RowRequirements | None = None
) -> PreferencePair:
    """Return a row with its images decoded, and the further cells in `requirements`."""
    rejected_ref = row.rejected_image
    extra = parse_extra_cells(row.raw, requirements or RowRequirements())
    second_ref = extra.second_image
    rejected_image = None if rejected_ref is None else row.images.read(rejected_ref)
    return PreferencePair(
        id=name,
        image=row.images.read(row.image),
        prompt=row.texts.prompt,
        chosen=row.texts.chosen,
        rejected=row.texts.rejected,
        rejected_image=rejected_image,
        own_image=rejected_image if row.separate_images else None,
        other=extra.other,
        second_image=None if second_ref is None else row.images.read(second_ref),
        second_prompt=extra.second_prompt,
        scores=extra.scores,
    )
