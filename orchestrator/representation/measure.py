"""Measure the representations of a model, or of a study's models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chip_core.config.trial import EngineConfig, ModelConfig
from chip_core.models import loading
from chip_core.representation.described import DescribedImage
from chip_core.representation.geometry import Basis, Figure, common_basis, compute_figures
from chip_core.representation.states import Reading, Representations, compute_representations
from chip_core.results import MODEL
from chip_core.trained import check_model
from chip_core.utils.errors import TrialError, UserError
from orchestrator.plan.plan import Arm, Plan, Trial
from orchestrator.representation.results import RepresentationResults, RepresentationRow
from orchestrator.state.ledger import Ledger
from orchestrator.storage.download import whole_attempt

OnModel = Callable[[str, int, int], None]  # what is read, items done, items in all
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


def study_sources(plan: Plan, ledger: Ledger, storage: Path) -> tuple[list[ModelSource], list[str]]:
    """Return the untrained model and all trained ones of a study, and the trials without a model.

    Raises:
        UserError: no arm has a trained model.
    """
    base = plan.base.config
    found = [ModelSource(row=UNTRAINED, model=base.model, engine=base.engine, trial=plan.base)]
    missing = []
    for arm in plan.arms:
        for trial in arm.trials:
            folder = ledger[trial.fingerprint].model
            if folder is None or not (storage / folder / MODEL).is_dir():
                missing.append(trial.name)
                continue
            found.append(
                ModelSource(
                    row=arm.name,
                    model=trial.config.model,
                    seed=trial.seed,
                    trained=whole_attempt(storage, folder) / MODEL,
                    engine=trial.config.engine,
                    trial=trial,
                    arm=arm,
                )
            )
    if len(found) == 1:
        raise UserError(
            f"study {plan.study.name} has no trained model in {storage}: run it first, "
            "or name its --workdir"
        )
    return found, missing


def read_models(
    sources: Sequence[ModelSource],
    described: Sequence[DescribedImage],
    *,
    set_name: str,
    reading: Reading,
    missing: Sequence[str] = (),
    on_model: OnModel | None = None,
) -> tuple[RepresentationResults, Mapping[int, Mapping[str, Figure]]]:
    """Compute the figures and the common projection of models, and each model's own figures.

    Args:
        sources: the models, those of one row next to each other.
        described: the set of described images.
        set_name: the name of the set.
        reading: how states are taken; each model's own precision is used.
        missing: trials that are left out, for the report.
        on_model: called with the progress.

    Raises:
        UserError: a model cannot be loaded, or has no such layer.
    """
    vectors = [_read(source, described, reading, on_model) for source in sources]
    rows: dict[str, list[int]] = {}
    for place, source in enumerate(sources):
        rows.setdefault(source.row, []).append(place)
    try:
        basis = common_basis(vectors)
    except ValueError as error:
        raise UserError(f"no common picture: {error}") from None
    own = {place: compute_figures([found]) for place, found in enumerate(vectors)}
    return (
        RepresentationResults(
            set_name=set_name,
            items=len(described),
            reading=reading,
            layer=vectors[0].layer,
            explained=basis.explained,
            rows=tuple(
                RepresentationRow(
                    name=name,
                    seeds=tuple(sources[place].seed for place in places),
                    figures=compute_figures([vectors[place] for place in places])
                    if len(places) > 1
                    else own[places[0]],
                    by_seed=tuple(
                        {metric: figure.value for metric, figure in own[place].items()}
                        for place in places
                    ),
                    points=_points(basis, vectors[places[0]]),
                    trials={
                        trial.name: trial.fingerprint
                        for place in places
                        if (trial := sources[place].trial) is not None
                    },
                )
                for name, places in rows.items()
            ),
            missing=tuple(missing),
        ),
        own,
    )


def _read(
    source: ModelSource,
    described: Sequence[DescribedImage],
    reading: Reading,
    on_model: OnModel | None,
) -> Representations:
    import torch

    wanted = source.engine.device
    device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    name = source.row if source.seed is None else f"{source.row}, seed {source.seed}"

    def on_item(done: int, total: int) -> None:
        if on_model is not None:
            on_model(name, done, total)

    try:
        if source.trained is not None:
            check_model(source.trained)
        model, processor = loading.load(
            source.model, attention=source.engine.attention, trained=source.trained
        )
        return compute_representations(model.to(device), processor, described, reading, on_item)
    except TrialError as error:
        raise UserError(f"{name}: {error}") from None


def _points(basis: Basis, found: Representations) -> dict[str, list[list[float]]]:
    kinds = {"image": found.image, "true": found.true, "hallucinated": found.hallucinated}
    return {kind: basis.project(vectors).tolist() for kind, vectors in kinds.items()}
