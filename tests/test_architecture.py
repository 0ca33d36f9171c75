"""ARCHITECTURE.md says where an addition goes: one of each, added there alone, works."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: Of one package: more are several subjects.
MODULES = 14

#: Addition -> its files: (file, what is replaced or None for a new file, text).
ADDITIONS: dict[str, list[tuple[str, str | None, str]]] = {
    "objective preset": [
        (
            "chip_core/objectives/config.py",
            'Preset = Literal["dpo", ',
            'Preset = Literal["pictures_alone", "dpo", ',
        ),
        (
            "chip_core/objectives/config.py",
            '    "dpo": ("response",),\n',
            '    "dpo": ("response",),\n    "pictures_alone": ("visual",),\n',
        ),
    ],
    "rejected-image strategy": [
        (
            "chip_core/config/strategies.py",
            '    "black": NoParameters,\n',
            '    "black": NoParameters,\n    "white": NoParameters,\n',
        ),
        (
            "chip_core/data/rejected_images/strategies.py",
            '@REJECTED_IMAGES.register("black")\n',
            '''@REJECTED_IMAGES.register("white")
class White(ImageStrategy[NoParameters]):
    """A white image."""

    traits = Traits(random=False, keeps_size=True, void_where="an image that is white already")

    def reject(self, source: Source) -> Image.Image:
        """Return a white image of the same size."""
        return Image.new("RGB", source.image.size, "white")


@REJECTED_IMAGES.register("black")
''',
        ),
    ],
    "benchmark": [
        (
            "chip_core/evaluation/benchmarks/yes_or_no/__init__.py",
            None,
            '''"""One question."""

from chip_core.evaluation.benchmarks.yes_or_no import items as items
''',
        ),
        (
            "chip_core/evaluation/benchmarks/yes_or_no/items.py",
            None,
            '''"""One question, without a picture."""

from chip_core.evaluation.scorer import ScoreResult
from chip_core.evaluation.task import BENCHMARKS, Benchmark, Item


class YesOrNo(Benchmark):
    """Ask whether it is a benchmark."""

    version = "yes_or_no-1"
    metrics = {}

    def items(self, side, *, data, protocol):
        """Return the question."""
        return [Item(id="1", prompt="Is this a benchmark?", pictures=())]

    def score(self, answers, *, data, protocol, resources):
        """Score nothing."""
        return ScoreResult(metrics=(), n=len(answers), missing=0)


BENCHMARKS.register("yes_or_no")(YesOrNo())
''',
        ),
    ],
    "executor": [
        (
            "orchestrator/executors/__init__.py",
            "EXECUTORS = {\n",
            'EXECUTORS = {\n    "nowhere": "orchestrator.executors.nowhere",\n',
        ),
        (
            "orchestrator/executors/nowhere.py",
            None,
            '''"""Run nothing."""


def make_executor(settings):
    """Say where it would run."""
    return f"nowhere: {settings.workdir}"
''',
        ),
    ],
    "report section": [
        (
            "orchestrator/report/sections/greeting.py",
            None,
            '''"""Greet the reader."""

from orchestrator.report.layout import TextBlock


def greeting():
    """Return the section's blocks."""
    return [TextBlock(lines=("Hello.",), bulleted=False)]
''',
        ),
        (
            "orchestrator/report/build.py",
            '        _make_section("power", ',
            '        _make_section("greeting", "Greeting", greeting()),\n'
            '        _make_section("power", ',
        ),
        (
            "orchestrator/report/build.py",
            "from orchestrator.report.sections.notes import",
            "from orchestrator.report.sections.greeting import greeting\n"
            "from orchestrator.report.sections.notes import",
        ),
    ],
}

#: Addition -> a program that uses it and prints "works".
USES = {
    "objective preset": """
from chip_core.objectives import ObjectiveConfig
print("works" if ObjectiveConfig(preset="pictures_alone").active_terms == ("visual",) else "no")
""",
    "rejected-image strategy": """
from PIL import Image
from chip_core.config.trial import TrialConfig
from chip_core.data.preferences import PreferencePair
from chip_core.data.rejected_images import RejectedImageMaker
config = TrialConfig.model_validate({"model": "shapes", "rejected_image": "white"})
pair = PreferencePair(id="1", image=Image.new("RGB", (2, 2)), prompt="", chosen="", rejected="")
made = RejectedImageMaker(config.rejected_image).image(pair, epoch=0, others=[pair], given=None)
print("works" if made.image.getpixel((0, 0)) == (255, 255, 255) else "no")
""",
    "benchmark": """
from chip_core.config.trial import TrialConfig
from chip_core.evaluation.items import find_benchmark
TrialConfig.model_validate({"model": "shapes", "benchmarks": {"report": ["yes_or_no"]}})
(item,) = find_benchmark("yes_or_no").items("report", data=None, protocol="official")
print("works" if item.prompt == "Is this a benchmark?" else "no")
""",
    "executor": """
from pathlib import Path
from orchestrator.commands.studies import run
from orchestrator.executors import make_executor
from orchestrator.executors.base import ExecutorSettings
from orchestrator.jobs.job import StopRequest
(option,) = [one for one in run.params if one.name == "executor"]
made = make_executor("nowhere", ExecutorSettings(workdir=Path("w"), stop=StopRequest()))
print("works" if made == "nowhere: w" and "nowhere" in option.type.choices else "no")
""",
    "report section": """
from pathlib import Path
from orchestrator.plan.plan import make_plan
from orchestrator.report.build import make_report
from orchestrator.state.ledger import Ledger
from orchestrator.study.load import load_study
plan, folder = make_plan(load_study(Path("ablations/encoder.yaml"))), Path("work")
report = make_report(plan, Ledger(folder), folder, folder / "report")
print("works" if "greeting" in [section.name for section in report.sections] else "no")
""",
}


def read_claimed_places() -> dict[str, list[str]]:
    """Return where ARCHITECTURE.md says that additions go."""
    rows = re.findall(r"^\| (.+?) \| (`.+) \|$", (ROOT / "ARCHITECTURE.md").read_text(), re.M)
    return {what: re.findall(r"`([^`]+)`", where) for what, where in rows}


#: Give programs, each on a tree of its own, and tell what each printed: those of (tree, program).
#: What every one of them imports is imported once, before the forks.
RUN = """
import contextlib, io, json, os, sys, traceback
import PIL.Image, numpy, pydantic, torch, transformers, yaml
def printed(tree, program):
    os.chdir(tree)
    sys.path.insert(0, tree)
    sys.stdout = said = io.StringIO()
    try:
        exec(program, {"__name__": "__main__"})
        return said.getvalue().strip()
    except BaseException:
        return traceback.format_exc().strip()[-300:]
told = []
for tree, program in json.loads(sys.argv[1]):
    reads, writes = os.pipe()
    if os.fork() == 0:
        with os.fdopen(writes, "w") as out:
            out.write(printed(tree, program))
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as come:
        told.append(come.read())
    os.wait()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def uses_by_addition(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What the use of each addition comes to without it, and in a tree with it alone."""
    trees = {what: tmp_path_factory.mktemp("tree") for what in ["", *ADDITIONS]}
    for what, tree in trees.items():
        for name in ("orchestrator", "chip_core", "ablations"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        for name, old, text in ADDITIONS.get(what, []):
            path = tree / name
            if old is None:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
                continue
            assert path.read_text().count(old) == 1, (name, old)
            path.write_text(path.read_text().replace(old, text))
    programs = [(str(trees[key]), USES[what]) for what in ADDITIONS for key in ("", what)]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(programs)],
        cwd=trees[""],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(ADDITIONS, zip(told[::2], told[1::2], strict=True), strict=True))


@pytest.mark.parametrize("what", ADDITIONS)
def test_an_addition_goes_where_it_says(
    what: str, uses_by_addition: dict[str, tuple[str, str]]
) -> None:
    for name, _, _ in ADDITIONS[what]:
        assert any(name.startswith(place) for place in read_claimed_places()[what]), name
    before, after = uses_by_addition[what]
    assert before != "works"
    assert after == "works"


def test_what_it_names_is_there() -> None:
    for places in read_claimed_places().values():
        for place in places:
            assert (ROOT / place).exists(), place
    named = re.findall(r"`((?:\w+/)*\w+\.py)`", (ROOT / "ARCHITECTURE.md").read_text())
    assert named
    for name in named:
        homes = (ROOT, ROOT / "orchestrator", ROOT / "chip_core")
        assert any((home / name).is_file() for home in homes), name


def test_a_package_has_few_modules() -> None:
    crowded = {}
    for package in ("chip_core", "orchestrator"):
        for folder in [ROOT / package, *(ROOT / package).rglob("*/")]:
            modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
            if len(modules) > MODULES:
                crowded[folder.relative_to(ROOT).as_posix()] = len(modules)
    assert not crowded


def test_no_function_has_more_than_80_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {node.name}, {node.end_lineno - node.lineno + 1} lines"
        for package in ("chip_core", "orchestrator")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 80
    ]
    assert not long, "\n".join(long)
