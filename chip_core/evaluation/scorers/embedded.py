"""The embedded world's scorer as the others are: answers of a file, scored without any data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from chip_core.errors import UserError
from chip_core.evaluation.scorers import shapes
from chip_core.evaluation.scorers.base import (
    SCORERS,
    Answer,
    Need,
    ProtocolName,
    Resources,
    Scored,
    refuse_protocol,
)
from chip_core.evaluation.scorers.rows import first_of, read_rows
from chip_core.evaluation.task import MetricInfo


class EmbeddedScorer:
    """Answers to questions about drawn scenes; its official figures are the only ones."""

    name = "shapes"
    version = "shapes-1"
    needs: frozenset[Need] = frozenset()
    protocols: frozenset[ProtocolName] = frozenset({"official", "corrected"})
    metrics: Mapping[str, MetricInfo] = shapes.ShapesBenchmark.metrics

    def read_responses(self, path: Path) -> list[Answer]:
        """Read rows of `item` (such as `test/17`) and `response`, as a trial leaves them."""
        return [
            Answer(
                item=str(first_of(row, ("item",), path, number)),
                response=str(first_of(row, ("response",), path, number)),
            )
            for number, row in enumerate(read_rows(path), start=1)
        ]

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path,
        protocol: ProtocolName,
        resources: Resources,
    ) -> Scored:
        """Score answers to any of the embedded world's splits; nothing of `data` is read."""
        refuse_protocol(self, protocol)
        try:
            metrics = shapes.score([(answer.item, answer.response) for answer in answers])
        except ValueError as error:
            raise UserError(f"shapes: {error}") from None
        asked = resources.only or {answer.item for answer in answers}
        return Scored(
            metrics=tuple(metrics),
            n=len(answers),
            missing=len(asked - {answer.item for answer in answers}),
        )


SCORERS.register("shapes")(EmbeddedScorer())
