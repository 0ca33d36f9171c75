"""A finished study's work directory, damaged at random: no traceback, no other figure in silence.

The study is trained once, with adapters and whole. Each damage is done to a copy of it, and then
`status`, `run` and `report` are given.
"""

from __future__ import annotations

import contextlib
import csv
import json
import random
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chip_core.trained import find_model_problem
from chip_core.utils.files import read_json, read_records, write_json
from orchestrator.cli import main

pytestmark = pytest.mark.usefixtures("blank_figures")

STUDY = """
study: tiny
recipe: shapes
factors:
  language_model: [lora, full]
seeds: [0]
baseline: {language_model: lora}
benchmarks:
  report: [{name: shapes, limit: 4, max_new_tokens: 24}]
primary: {metric: shapes/chair_i, goal: minimize}
"""
#: Small enough to be trained in seconds.
SHORT = ("data.limit=10", "training.batch_size=4", "training.max_steps=4")
WAYS = ("cut", "emptied", "one byte", "removed", "folder")
#: What no run can put right: it says what stands in its way.
BLOCKS = re.compile(r"(studies/.*|ledger/.*|mlflow\.db)$")


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True, kw_only=True)
class Screen:
    """What a user sees: the streams, and what goes to the error stream by the log."""

    streams: pytest.CaptureFixture[str]
    log: pytest.LogCaptureFixture

    def clear(self) -> None:
        self.streams.readouterr()
        self.log.clear()

    def read(self) -> tuple[str, str]:
        out, err = self.streams.readouterr()
        return out, "\n".join([err, *self.log.messages])


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """Where a study file and its work directory lie."""

    folder: Path

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def copy_to(self, to: Path) -> StudyFolder:
        """Copy it, so that MLflow's database names the copy's artifacts."""
        shutil.copytree(self.folder, to)
        with contextlib.closing(sqlite3.connect(to / "work" / "mlflow.db")) as store, store:
            for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                store.execute(
                    f"UPDATE {table} SET {column} = replace({column}, ?, ?)",
                    (str(self.folder), str(to)),
                )
        return StudyFolder(folder=to)

    def run_command(self, screen: Screen, name: str, *more: str) -> CommandResult:
        """Give a command in this process; what it raises but an exit is a traceback."""
        changes = [word for change in SHORT for word in ("--set", change)]
        words = [name, str(self.folder / "tiny.yaml"), "--workdir", str(self.work), "--json"]
        screen.clear()
        with pytest.raises(SystemExit) as ended:
            main([*words, *changes, *more])
        out, err = screen.read()
        assert "Traceback" not in err, err
        return CommandResult(code=int(ended.value.code or 0), out=out, err=err)

    def run(self, screen: Screen) -> CommandResult:
        return self.run_command(screen, "run", "--executor", "inline")

    def read_table(self) -> dict[str, list[dict[str, str]]]:
        """Return every figure of the report that lies there."""
        (report,) = (self.work / "studies").glob("*/report")
        found = {}
        for name in ("values.csv", "effects.csv", "report.csv"):
            with (report / name).open(newline="") as file:
                found[name] = list(csv.DictReader(file))
        return found

    def find_trial_folder(self, arm: str) -> Path:
        """Return the folder of an arm's first attempt."""
        ends = read_records(self.work / "ledger" / "ledger.jsonl")
        folder = next(end["folder"] for end in ends if "folder" in end and end["arm"] == arm)
        return self.work / str(folder)


def list_states(said: CommandResult) -> list[tuple[str, str, dict[str, float]]]:
    return [(one["fingerprint"], one["state"], one["metrics"]) for one in said.data["trials"]]


def group_files_by_kind(work: Path) -> dict[str, list[Path]]:
    """Return the files of a work directory by their kind: their paths without names of trials."""
    found: dict[str, list[Path]] = {}
    for path in sorted(path for path in work.rglob("*") if path.is_file()):
        name = re.sub(r"tiny[^/]*", "STUDY", path.relative_to(work).as_posix())
        found.setdefault(re.sub(r"[0-9a-f]{16,}", "HASH", name), []).append(path)
    return found


def damage_file(path: Path, way: str, draw: random.Random) -> None:
    content = path.read_bytes()
    if way == "cut":
        path.write_bytes(content[: draw.randrange(max(len(content), 1))])
    elif way == "emptied":
        path.write_bytes(b"")
    elif way == "one byte":
        digits = [place for place, byte in enumerate(content) if 48 <= byte <= 57]
        if digits and draw.random() < 0.5:  # what is still a number is what nobody sees
            place = draw.choice(digits)
            byte = 48 + (content[place] - 48 + draw.randrange(1, 10)) % 10
        else:
            place = draw.randrange(max(len(content), 1))
            byte = (content[place] + draw.randrange(1, 256)) % 256 if content else 0
        path.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
    else:
        path.unlink()
        if way == "folder":
            path.mkdir()


@pytest.fixture
def screen(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Screen:
    return Screen(streams=capfd, log=caplog)


@pytest.fixture(scope="module")
def unrun_study(
    tmp_path_factory: pytest.TempPathFactory, with_store: Callable[[Path], Path]
) -> StudyFolder:
    """Make the place of a study that is not run yet."""
    place = StudyFolder(folder=tmp_path_factory.mktemp("done"))
    with_store(place.work)
    (place.folder / "tiny.yaml").write_text(STUDY)
    return place


@pytest.fixture
def finished_study(unrun_study: StudyFolder, screen: Screen) -> StudyFolder:
    """Run the study, once for all tests."""
    if not (unrun_study.work / "ledger").exists():
        said = unrun_study.run(screen)
        assert said.code == 0, said.err
    return unrun_study


def draw_damages(finished_study: StudyFolder, seed: int, count: int) -> Iterator[tuple[Path, str]]:
    """Yield (file, way), over as many kinds of files and ways as they go."""
    draw = random.Random(seed)
    found = group_files_by_kind(finished_study.work)
    every = [(kind, way) for kind in found for way in WAYS]
    draw.shuffle(every)
    for kind, way in every[:count]:
        yield draw.choice(found[kind]), way


def check_damages(
    finished_study: StudyFolder,
    tmp_path: Path,
    screen: Screen,
    damages: Sequence[tuple[Path, str]],
    seed: int,
) -> None:
    whole_status, whole = (
        list_states(finished_study.run_command(screen, "status")),
        finished_study.read_table(),
    )
    assert {state for _, state, _ in whole_status} == {"done"}
    draw = random.Random(seed)
    for number, (file, way) in enumerate(damages):
        place = finished_study.copy_to(tmp_path / str(number))
        name = file.relative_to(finished_study.work).as_posix()
        spoilt = place.work / name
        damage_file(spoilt, way, draw)
        what = f"{way}: {name}"
        status = place.run_command(screen, "status")
        run, report = place.run(screen), place.run_command(screen, "report")
        told = status.err + run.err + report.err
        names_it = str(spoilt) in told or "MLflow store" in told
        for said in (status, run, report):
            assert said.code in (0, 2), (what, said)
            assert said.code == 0 or said.err.strip(), (what, said)
        if status.code == 0 and list_states(status) != whole_status:
            assert str(spoilt) in status.err, (what, status)
        if run.code == report.code == 0:  # all that can be made again is
            assert place.read_table() == whole, what
            after = place.run_command(screen, "status")
            assert list_states(after) == whole_status, (what, after)
        else:
            assert names_it, (what, told)
            assert way == "folder" or name == "mlflow.db", what
            assert BLOCKS.match(name), what
        shutil.rmtree(place.folder)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("seed", "count"),
    [(13, 20), *(pytest.param(seed, 60, marks=pytest.mark.slow) for seed in (13, 14, 15))],
)
def test_drawn_damages_are_survived(
    seed: int, count: int, finished_study: StudyFolder, tmp_path: Path, screen: Screen
) -> None:
    damages = list(draw_damages(finished_study, seed, count))
    assert {way for _, way in damages} == set(WAYS)
    check_damages(finished_study, tmp_path, screen, damages, seed)


#: What gives a finished trial's figures, and all that is read again where they are made again.
GIVES = (
    ("ledger/ledger.jsonl", "one byte"), ("scores/report-shapes.json", "one byte"),
    ("responses/report-shapes.jsonl", "one byte"), ("scores/report-shapes.json", "emptied"),
    ("config.json", "one byte"), ("curves.jsonl", "one byte"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "way"), GIVES)
def test_damages_to_files_that_give_figures_are_survived(
    name: str, way: str, finished_study: StudyFolder, tmp_path: Path, screen: Screen
) -> None:
    folder = (
        finished_study.work
        if name.startswith("ledger")
        else finished_study.find_trial_folder("full")
    )
    check_damages(finished_study, tmp_path, screen, [(folder / name, way)], 3)


def remove_scores(place: StudyFolder, arm: str) -> Path:
    """Leave a trial as it is when its driver dies after the training; return its folder."""
    folder = place.find_trial_folder(arm)
    for name in ("scores", "responses", "answers"):
        shutil.rmtree(folder / name)
    (folder / "result.json").unlink()
    ledger = place.work / "ledger" / "ledger.jsonl"
    name = folder.relative_to(place.work).as_posix().encode()
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(line for line in lines if name not in line))
    return folder


def flip_weights(file: Path) -> None:
    content = bytearray(file.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 4000, 4):
        content[place + 3] ^= 0x41  # the sign and the exponent of a weight
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("arm", "file"),
    [
        ("full", "model/model.safetensors"),
        ("lora", "model/adapter_model.safetensors"),
        ("lora", "model/trained_parts.safetensors"),
        ("full", "model/config.json"),
        ("full", "model/tokenizer.json"),
        ("full", "trained.json"),
        ("full", None),
    ],
)
def test_a_model_whose_scoring_did_not_end_is_taken_over_where_it_is_what_was_trained(
    arm: str, file: str | None, finished_study: StudyFolder, tmp_path: Path, screen: Screen
) -> None:
    place = finished_study.copy_to(tmp_path / "copy")
    folder = remove_scores(place, arm)
    if file == "trained.json":
        damage_file(folder / file, "cut", random.Random(1))
    elif file is not None and file.endswith(".json"):
        damage_file(folder / file, "one byte", random.Random(1))
    elif file is not None:
        flip_weights(folder / file)
    said = place.run(screen)
    assert said.code == 0
    assert place.read_table() == finished_study.read_table()
    told = f"a trained model is not reused, and trained again: {folder / (file or '')}"
    assert (told in said.err) == (file is not None)
    result = read_json(folder.with_name("attempt-2") / "result.json")
    assert any(told in note for note in result["notes"]) == (file is not None)
    assert (folder / "model").exists() == (file is not None)  # else it was moved


def test_a_model_of_a_version_that_noted_no_hashes_is_taken_over_and_noted(
    finished_study: StudyFolder, tmp_path: Path, screen: Screen
) -> None:
    place = finished_study.copy_to(tmp_path / "copy")
    folder = remove_scores(place, "full")
    noted = read_json(folder / "trained.json")
    hashes = noted.pop("files")
    del noted["checksum"], noted["training"]
    write_json(folder / "trained.json", noted)
    said = place.run(screen)
    assert (said.code, said.data["executed"]) == (0, 1)
    assert place.read_table() == finished_study.read_table()
    taken = read_json(folder.with_name("attempt-2") / "trained.json")
    assert (taken["mark"], taken["files"]) == (noted["mark"], hashes)


def test_models_of_two_trials_in_each_others_place_are_not_taken_over(
    finished_study: StudyFolder, tmp_path: Path, screen: Screen
) -> None:
    place = finished_study.copy_to(tmp_path / "copy")
    one, other = (remove_scores(place, arm) for arm in ("full", "lora"))
    for name in ("model", "trained.json"):
        (one / name).replace(tmp_path / name)
        (other / name).replace(one / name)
        (tmp_path / name).replace(other / name)
    said = place.run(screen)
    assert said.code == 0
    assert said.err.count("model belongs to another training") == 2
    assert place.read_table() == finished_study.read_table()


@pytest.mark.parametrize("arm", ["full", "lora"])
def test_a_trained_model_that_is_to_be_scored_again_is_trained_again_where_it_is_another(
    arm: str, finished_study: StudyFolder, tmp_path: Path, screen: Screen
) -> None:
    place = finished_study.copy_to(tmp_path / "copy")
    folder = place.find_trial_folder(arm)
    weights = next(iter(sorted((folder / "model").glob("*.safetensors"))))
    flip_weights(weights)
    (folder / "scores" / "report-shapes.json").unlink()
    assert find_model_problem(folder / "model") is not None
    said = place.run(screen)
    assert said.code == 0
    assert (
        f"{weights} has changed since it was written: its sha256 differs: it is trained again"
        in said.err
    )
    assert place.read_table() == finished_study.read_table()


def test_a_model_that_is_another_is_neither_exported_nor_asked(
    finished_study: StudyFolder, tmp_path: Path, screen: Screen
) -> None:
    place, out = finished_study.copy_to(tmp_path / "copy"), tmp_path / "out"
    weights = place.find_trial_folder("full") / "model" / "model.safetensors"
    flip_weights(weights)
    for words in (
        ("export", "full, seed 0", out, "--workdir", place.work),
        ("evaluate", weights.parent, "--benchmarks", "shapes", "--out", out),
    ):
        screen.clear()
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, words)))
        assert ended.value.code == 2
        (line,) = [line for line in screen.read()[1].splitlines() if "chip-ablate: " in line]
        assert line == (
            f"chip-ablate: {weights} has changed since it was written: its sha256 differs: remove "
            "its trial with `chip-ablate rm TRIAL`, and `chip-ablate run` trains it again"
        )
        assert not out.exists()
