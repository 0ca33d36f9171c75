"""List a study's names that MLflow spells otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from chip_core.utils.errors import printable
from orchestrator.plan.plan import Plan
from orchestrator.report.summary import study_metrics
from orchestrator.tracking.names import EXPERIMENT, RUN, respelled

_SHOWN = 4  # names


def mlflow_names(plan: Plan) -> dict[str, str]:
    """Return how MLflow has to spell a study's names, those that it does not take as they are."""
    params = dict.fromkeys(name for arm in plan.arms for name in (*arm.params, *arm.tuned))
    runs = [*(arm.name for arm in plan.arms), *(trial.name for trial in plan.trials)]
    return {
        **respelled(study_metrics(plan)),
        **respelled(params),
        **respelled(runs, RUN),
        **respelled([plan.study.name], EXPERIMENT),
    }


def mlflow_name_lines(names: Mapping[str, str]) -> Iterator[str]:
    """Say how names are spelled in MLflow, the first of them."""
    for name, other in list(names.items())[:_SHOWN]:
        yield f"in MLflow '{printable(name)}' is called '{other}': it does not take that name"
    if len(names) > _SHOWN:
        yield f"and {len(names) - _SHOWN} more names are spelled otherwise there"
