"""Measure the representations of a model, or of a study's models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chip_core.config.trial import EngineConfig, ModelConfig
from chip_core.models import loading
from chip_core.representation.described import DescribedImage
from chip_core.representation.geometry import (
    Basis,
    IntervalEstimate,
    compute_common_basis,
    compute_figures,
)
from chip_core.representation.states import Reading, Representations, compute_representations
from chip_core.results import MODEL
from chip_core.trained import check_model
from chip_core.utils.errors import TrialError, UserError
from orchestrator.plan.plan import Arm, Plan, Trial
from orchestrator.representation.results import RepresentationResults, RepresentationRow
from orchestrator.state.ledger import Ledger
from orchestrator.storage.download import fetch_trained_attempt

ModelProgress = Callable[[str, int, int], None]  # what is read, items done, items in all
UNTRAINED = "base (untrained)"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """One model to read."""

    row: str  # the arm, or the model's name
    model: ModelConfig
    seed: int | None = None  # None: not trained here
    trained: Path | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    trial: Trial | None = None
    arm: Arm | None = None


def list_sources(plan: Plan, ledger: Ledger, storage: Path) -> tuple[list[ModelSource], list[str]]:
    """Return the untrained model and all trained ones of a study, and the trials without a model.

    Raises:
        UserError: no arm has a trained model.
    """
    base_config = plan.base.config
    sources = [
        ModelSource(
            row=UNTRAINED, model=base_config.model, engine=base_config.engine, trial=plan.base
        )
    ]
    missing = []
    for arm in plan.arms:
        for trial in arm.trials:
            folder = ledger[trial.fingerprint].model
            if folder is None or not (storage / folder / MODEL).is_dir():
                missing.append(trial.name)
                continue
            sources.append(
                ModelSource(
                    row=arm.name,
                    model=trial.config.model,
                    seed=trial.seed,
                    trained=fetch_trained_attempt(storage, folder) / MODEL,
                    engine=trial.config.engine,
                    trial=trial,
                    arm=arm,
                )
            )
    if len(sources) == 1:
        raise UserError(
            f"study {plan.study.name} has no trained model in {storage}: run it first, or give "
            "its --workdir"
        )
    return sources, missing


def read_models(
    sources: Sequence[ModelSource],
    described_images: Sequence[DescribedImage],
    *,
    set_name: str,
    reading: Reading,
    missing: Sequence[str] = (),
    report_progress: ModelProgress | None = None,
) -> tuple[RepresentationResults, Mapping[int, Mapping[str, IntervalEstimate]]]:
    """Compute the figures and the common projection of models, and each model's own figures.

    Args:
        sources: the models, those of one row next to each other.
        described_images: the set of described images.
        set_name: the name of the set.
        reading: how states are taken; each model's own precision is used.
        missing: trials that are left out, for the report.
        report_progress: called with the progress.

    Raises:
        UserError: a model cannot be loaded, or has no such layer.
    """
    representations = [
        _read_model(source, described_images, reading, report_progress) for source in sources
    ]
    rows: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        rows.setdefault(source.row, []).append(index)
    try:
        basis = compute_common_basis(representations)
    except ValueError as error:
        raise UserError(f"no common picture: {error}") from None
    model_figures = {index: compute_figures([found]) for index, found in enumerate(representations)}
    return (
        RepresentationResults(
            set_name=set_name,
            items=len(described_images),
            reading=reading,
            layer=representations[0].layer,
            explained=basis.explained,
            rows=tuple(
                RepresentationRow(
                    name=name,
                    seeds=tuple(sources[index].seed for index in indices),
                    figures=compute_figures([representations[index] for index in indices])
                    if len(indices) > 1
                    else model_figures[indices[0]],
                    by_seed=tuple(
                        {metric: figure.value for metric, figure in model_figures[index].items()}
                        for index in indices
                    ),
                    points=_project_points(basis, representations[indices[0]]),
                    trials={
                        trial.name: trial.fingerprint
                        for index in indices
                        if (trial := sources[index].trial) is not None
                    },
                )
                for name, indices in rows.items()
            ),
            missing=tuple(missing),
        ),
        model_figures,
    )


def _read_model(
    source: ModelSource,
    described_images: Sequence[DescribedImage],
    reading: Reading,
    report_progress: ModelProgress | None,
) -> Representations:
    import torch

    configured_device = source.engine.device
    device = (
        ("cuda" if torch.cuda.is_available() else "cpu")
        if configured_device == "auto"
        else configured_device
    )
    name = source.row if source.seed is None else f"{source.row}, seed {source.seed}"

    def report_item(done: int, total: int) -> None:
        if report_progress is not None:
            report_progress(name, done, total)

    try:
        if source.trained is not None:
            check_model(source.trained)
        model, processor = loading.load(
            source.model, attention=source.engine.attention, trained=source.trained
        )
        return compute_representations(
            model.to(device), processor, described_images, reading, report_item
        )
    except TrialError as error:
        raise UserError(f"{name}: {error}") from None


def _project_points(basis: Basis, representations: Representations) -> dict[str, list[list[float]]]:
    kinds = {
        "image": representations.image,
        "true": representations.true,
        "hallucinated": representations.hallucinated,
    }
    return {kind: basis.project(vectors).tolist() for kind, vectors in kinds.items()}
