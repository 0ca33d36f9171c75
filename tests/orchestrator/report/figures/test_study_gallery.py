"""The figure of a study's own rejected images: when it is drawn, of what; it fails no study."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from chip_core.config.trial import DataConfig, RejectedImageConfig
from chip_core.data.preferences import load_first_pairs
from chip_core.data.rejected_images.conformance import sample_image
from orchestrator.plan.plan import Plan
from orchestrator.report.figures import study_gallery
from orchestrator.report.figures.gallery import make_preview_cell
from orchestrator.report.figures.study_gallery import draw_rejected_images, varies_rejected_images
from orchestrator.run import run_study

from ...fakes import FakeExecutor, FakeTracker

pytestmark = pytest.mark.usefixtures("blank_figures")  # of the rest of the report

PlanOf = Callable[..., Plan]
FIGURE = Path("studies/small/report/figures/rejected-images.png")


def make_study_text(factor: str, recipe: str = "shapes") -> str:
    return f"study: small\nrecipe: {recipe}\nfactors:\n  {factor}\nseeds: [0, 1]\n"


ON_THEM = "rejected_image: [black, rotate]"


def run(plan: Plan, workdir: Path, executor: FakeExecutor | None = None) -> tuple[list[Path], str]:
    """Return what a run leaves in the report's folder, and what it says."""
    said = io.StringIO()
    outcome = run_study(
        plan,
        workdir=workdir,
        executor=lambda: executor or FakeExecutor(),
        tracker=FakeTracker(),
        console=Console(file=said, width=200),
    )
    return [path.relative_to(workdir) for path in outcome.report], said.getvalue()


@pytest.mark.parametrize(
    ("factor", "varies"),
    [
        (ON_THEM, True),
        ("rejected_image.diffusion.timestep: [300, 500]", True),
        ("rejected_image.redraw: [once, each_epoch]", True),
        ("how: {a: {objective: hdpo}, b: {rejected_image.strategy: crop}}", True),
        ("objective: [dpo, chip]", False),
        ("optimizer.lr: [1e-5, 1e-6]", False),
        ("rejected_image: [black, rotate]\n  objective: [hdpo]", False),  # no arm looks at one
    ],
)
def test_which_studies_are_on_rejected_images(plan_of: PlanOf, factor: str, varies: bool) -> None:
    assert varies_rejected_images(plan_of(make_study_text(factor))) == varies


def list_titles(plan: Plan) -> list[str]:
    return list(study_gallery._settings_by_title(study_gallery._visual_configs(plan).values()))


def test_each_setting_stands_once_named_by_what_tells_it_apart(plan_of: PlanOf) -> None:
    strategies = make_study_text(ON_THEM + "\n  vision_encoder: [frozen, trained]")
    assert list_titles(plan_of(strategies)) == ["black", "rotate"]
    timesteps = make_study_text("rejected_image.diffusion.timestep: [300, 500]")
    titles = ["diffusion\ntimestep 300", "diffusion\ntimestep 500"]
    assert list_titles(plan_of(timesteps)) == titles
    assert list_titles(plan_of(make_study_text("objective: [dpo, chip, cmdpo]"))) == ["diffusion"]


def test_it_is_drawn_once_and_is_part_of_the_report(plan_of: PlanOf, tmp_path: Path) -> None:
    report, said = run(plan_of(make_study_text(ON_THEM)), tmp_path)
    assert FIGURE in report
    assert "not drawn" not in said
    with Image.open(tmp_path / FIGURE) as figure:
        # three columns, the image and two strategies, on three lines of 1.15 × 1.35 inches at 120
        assert figure.size == (round(3 * 1.15 * 120), round(3 * 1.35 * 120))
    drawn = (tmp_path / FIGURE).stat().st_mtime_ns
    assert FIGURE in run(plan_of(make_study_text(ON_THEM)), tmp_path)[0]
    assert (tmp_path / FIGURE).stat().st_mtime_ns == drawn
    # another strategy: another figure
    run(plan_of(make_study_text("rejected_image: [black, rotate, blur]")), tmp_path)
    assert (tmp_path / FIGURE).stat().st_mtime_ns != drawn
    left = (tmp_path / FIGURE).parent.iterdir()
    assert [path.name for path in left if "rejected" in path.name] == [FIGURE.name]
    page = (tmp_path / FIGURE).parents[1] / "report.md"
    assert "## Rejected images\n\n![Some training images" in page.read_text()


def test_a_study_on_something_else_draws_nothing(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.run.draw_rejected_images", None)  # cannot be called
    report, said = run(plan_of(), tmp_path)
    assert report and FIGURE not in report
    assert "not drawn" not in said


def test_a_study_that_is_stopped_is_not_held_up(plan_of: PlanOf, tmp_path: Path) -> None:
    stopped = FakeExecutor(interrupt_before="black, seed 1")
    run(plan_of(make_study_text(ON_THEM)), tmp_path, stopped)
    assert not (tmp_path / FIGURE).exists()
    run(plan_of(make_study_text(ON_THEM)), tmp_path)
    assert (tmp_path / FIGURE).exists()


@pytest.mark.parametrize("error", [ZeroDivisionError("no\nmore"), KeyboardInterrupt()])
def test_a_figure_that_fails_fails_no_study(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fails(plan: Plan, folder: Path) -> Path:
        raise error

    monkeypatch.setattr("orchestrator.run.draw_rejected_images", fails)
    report, said = run(plan_of(make_study_text(ON_THEM)), tmp_path)
    assert report and FIGURE not in report
    (line,) = [line for line in said.splitlines() if "not drawn" in line]
    assert line.startswith(f"the rejected images are not drawn: {type(error).__name__}")


def write_pairs(folder: Path) -> Path:
    """Write rows as data sets have them: a broken one, two on one picture, three good ones."""
    for number in range(3):
        sample_image(number, (60 + 20 * number, 40)).save(folder / f"{number}.png")
    sample_image(9).save(folder / "other.png")
    (folder / "broken.png").write_bytes(b"\x89PNG no")
    texts = {"question": "What is there?", "chosen": "A disc.", "rejected": "A cat."}
    names = ["broken.png", "0.png", "0.png", "1.png", "2.png"]
    rows = [{**texts, "image": name, "rejected_image": "other.png"} for name in names]
    rows[1].pop("rejected_image")
    lines = ["not JSON", *map(json.dumps, rows)]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "pairs.jsonl"


def test_it_shows_the_studys_own_images(plan_of: PlanOf, tmp_path: Path) -> None:
    data = write_pairs(tmp_path)
    pairs = load_first_pairs(DataConfig(source=str(data)), 3)
    assert [pair.image.size for pair in pairs] == [(60, 40), (80, 40), (100, 40)]
    assert [pair.rejected_image is None for pair in pairs] == [True, False, False]
    factor = ON_THEM.replace("[", "[given, random, ")
    plan = plan_of(make_study_text(factor), overrides={"data.source": str(data)})
    draw_rejected_images(plan, tmp_path / "report")
    with Image.open(tmp_path / "report" / "figures" / "rejected-images.png") as figure:
        assert figure.size == (round(5 * 1.15 * 120), round(3 * 1.35 * 120))


def test_what_a_strategy_lacks_is_on_its_picture(tmp_path: Path) -> None:
    pair = load_first_pairs(DataConfig(source=str(write_pairs(tmp_path))), 1)[0]
    config = RejectedImageConfig(strategy="given")
    cell = make_preview_cell(config, pair, "given", [pair], given=pair.rejected_image)
    assert cell.image is None
    assert "has no rejected image of its own" in str(cell.note)


def test_many_settings_go_on_in_another_line(plan_of: PlanOf, tmp_path: Path) -> None:
    steps = ", ".join(str(step) for step in range(100, 800, 50))  # 14 and the image: 12 + 3
    plan = plan_of(make_study_text(f"rejected_image.diffusion.timestep: [{steps}]"))
    with Image.open(draw_rejected_images(plan, tmp_path)) as figure:
        assert figure.size == (round(12 * 1.15 * 120), round(3 * 2 * 1.35 * 120))


def test_data_without_a_good_row_is_told(plan_of: PlanOf, tmp_path: Path) -> None:
    data = write_pairs(tmp_path)
    data.write_text("\n".join(data.read_text().splitlines()[:2]) + "\n")
    skipped = {"data.source": str(data), "data.on_bad_row": "skip"}  # else nothing is run
    plan = plan_of(make_study_text(ON_THEM), overrides=skipped)
    _, said = run(plan, tmp_path / "runs")
    assert f"not drawn: {data}: no image among its first rows" in said


OWN = """
from chip_core.data.rejected_images import ImageStrategy, Traits

class Raises(ImageStrategy):
    traits = Traits(random=False, keeps_size=True)

    def reject(self, source):
        raise LookupError("mine")
"""


def test_a_users_own_strategy_that_raises_is_told(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raising_strategy.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = plan_of(make_study_text("rejected_image: [black, 'raising_strategy:Raises']"))
    _, said = run(plan, tmp_path / "runs")
    sys.modules.pop("raising_strategy", None)
    assert "the rejected images are not drawn: LookupError: mine" in said
