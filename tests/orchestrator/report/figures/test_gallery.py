"""`chip-ablate gallery`: one figure of every strategy and a series of timesteps."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from chip_core.config.strategies import STRATEGIES
from chip_core.data.rejected_images.conformance import sample_image
from orchestrator.report.figures.gallery import (
    draw_gallery,
    make_gallery_cells,
    make_scenes,
    read_images,
)

from ...program import run_program


def test_all_strategies_and_the_series(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("gallery", "--timesteps", "0,500", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    shown = [cell["shown"] for cell in printed["cells"] if cell["image"] == "train/0"]
    assert shown == ["image", *STRATEGIES, "T = 0", "T = 500"]
    notes = {cell["shown"]: cell["note"] for cell in printed["cells"] if cell["note"]}
    assert notes == {"crop": "void", "inpaint": "needs a pipeline", "given": "from the data"}
    with Image.open("gallery.png") as figure:
        assert figure.width > 1000


def test_given_images_of_any_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample_image(0, (400, 300)).convert("CMYK").save(tmp_path / "one.tiff")
    sample_image(1, (90, 200)).convert("P").save(tmp_path / "two.png")
    out = tmp_path / "deep" / "figure.svg"
    files = [str(tmp_path / name) for name in ("one.tiff", "two.png")]
    assert run_program("gallery", *files, "--out", str(out), "--timesteps", "500") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"written: {out}"
    assert out.read_text().startswith("<?xml")


def test_one_image_has_the_embedded_worlds_for_others() -> None:
    cells = make_gallery_cells([*make_scenes(1)], timesteps=[], strategies=["random", "mixup"])
    assert [cell.title for cell in cells] == ["image", "random", "mixup"]
    assert all(cell.image is not None and cell.note is None for cell in cells)


def test_the_same_seed_draws_the_same_figure(tmp_path: Path) -> None:
    for name in ("one", "two"):
        cells = make_gallery_cells(make_scenes(2), timesteps=[500], strategies=["rotate", "random"])
        draw_gallery(cells, tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_two_files_of_one_name_are_two_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = []
    for number, folder in enumerate("abc"):
        (tmp_path / folder).mkdir()
        sample_image(number, (60, 40)).save(tmp_path / folder / "photo.png")
        names.append(str(tmp_path / folder / "photo.png"))
    assert run_program("gallery", *names, "--timesteps", "", "--json") == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    shown = [cell["image"] for cell in cells if cell["shown"] == "image"]
    assert shown == ["photo", "photo (2)", "photo (3)"]


OWN = """
from chip_core.data.rejected_images import ImageStrategy, Traits
from chip_core.config.fields import Section, hashed

class Parameters(Section):
    value: int = hashed(9, doc="what is taken from white")

class Pale(ImageStrategy[Parameters]):
    parameters = Parameters
    traits = Traits(random=False, keeps_size=True)

    def reject(self, source):
        return source.image.point(lambda value: 255 - self.settings.value)
"""


def test_one_strategy_alone_a_users_own_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_pictures.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ["--set", "strategy=own_pictures:Pale"]

    def shown(*arguments: str) -> list[str]:
        assert run_program("gallery", *arguments, "--json") == 0
        cells = json.loads(capsys.readouterr().out)["cells"]
        return [cell["shown"] for cell in cells if cell["image"] == "train/0"]

    assert shown(*own, "--set", "parameters.value=3") == ["image", "own_pictures:Pale"]
    assert shown("--set", "strategy=crop", "--timesteps", "5") == ["image", "crop", "T = 5"]
    assert len(shown("--set", "strategy=diffusion")) == 2 + 11
    assert run_program("gallery", *own, "--set", "parameters.valu=3") == 2
    assert "parameters: valu: Extra inputs are not permitted" in capsys.readouterr().err
    sys.modules.pop("own_pictures", None)


def test_a_figure_that_cannot_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    alone = ["--set", "strategy=black"]
    assert run_program("gallery", *alone, "--out", str(tmp_path / "file" / "x.png")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("file/x.png: is below a file: name another place")


def test_a_files_turn_is_kept(tmp_path: Path) -> None:
    turned = Image.new("RGB", (30, 10))
    exif = turned.getexif()
    exif[0x0112] = 6  # orientation: a quarter turn
    turned.save(tmp_path / "turned.jpg", exif=exif)
    (shown,) = read_images([tmp_path / "turned.jpg"])
    assert shown.image.size == (10, 30)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["absent.jpg"], "absent.jpg: cannot be read as an image: No such file"),
        (["--timesteps", "5,1000"], "'5,1000' is not a list of steps from 0 to 999"),
        (["--set", "crop.shar=1"], "--set: crop.shar: unknown key 'rejected_image.crop.shar'"),
        (["--set", "crop.share=3"], "--set: crop.share: input should be less than 1, not 3"),
        (["--set", "inpaint.path=/no"], "no diffusers pipeline in /no"),
        (["--set", "redraw=each_epoch"], "--set: redraw: has no effect on a picture: --seed"),
        (["--set", "inpaint.path=~nobody-here/x"], "no diffusers pipeline in ~nobody-here/x"),
        (["--out", "figure.xyz"], "--out: figure.xyz: .xyz is not a figure format"),
    ],
)
def test_errors(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_program("gallery", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert list(tmp_path.iterdir()) == []
