"""`python -m tests.faults.serving`: kill what answers a study, its study, or the network between.

A study of two LoRA arms of the embedded world, in its own process, is answered by `transformers
serve`, which its user runs behind a link that can fail, or by a server that the study starts. Each
fault meets it at three moments; then the same command is given again until the study is done. What
it comes to is held against the study that nothing happened to.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks.machine import describe_machine
from chip_core.config.benchmark import BenchmarkConfig, DataPaths
from chip_core.evaluation.generators import vllm
from chip_core.evaluation.generators.openai import question_parts
from chip_core.evaluation.items import find_benchmark, select_items
from chip_core.shapes import MODEL_FOLDER
from chip_core.utils.files import read_lines, read_records
from tests.chip_core.evaluation.generators.fake_vllm import REAL, write_program
from tests.faults.proxy import FaultyProxy, ProxiedRequest

ROOT = Path(__file__).parents[2]
#: Names the processes of one case, which all inherit it.
MARK = "CHIP_FAULTS_MARK"
#: Seconds that one run of the study may take; of a network that comes back by itself.
MAX_SECONDS, OUTAGE_SECONDS = 600.0, 3.0
#: Times that the command is given again before the study counts as lost.
MAX_RERUNS = 3
LIMIT = 8

STUDY = """
study: served
question: Is an answer lost?
recipe: shapes
factors:
  objective: [dpo, chip]
seeds: [0]
baseline: {{objective: dpo}}
benchmarks:
  report: [{{name: shapes, limit: {limit}, max_new_tokens: 20}}]
primary: {{metric: shapes/chair_i, goal: minimize}}
evaluation:
  generator: {generator}
  parity: {{items: 2, share: 1.0}}
"""

SET = (
    *("vision_encoder=frozen", "projector=frozen", "language_model=lora", "optimizer.lr=2e-2"),
    *("training.max_steps=2", "training.batch_size=2", "engine.threads=1"),
)

MOMENTS = ("first question", "middle of an arm", "second adapter")
#: What is done -> the client's retries of a call, and its seconds for one.
FAULTS = {
    "server killed": (1, 120),
    "study killed": (1, 120),
    f"network cut for {OUTAGE_SECONDS:g} s": (5, 120),
    "network cut": (1, 120),
    "network silent": (0, 15),
}
#: What can be done to a server that the study starts, which no network is between.
OWN_FAULTS = ("server killed", "study killed")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault, when it comes, and whose the server is."""

    fault: str
    moment: str
    server: str = "user"  # or "study"

    def __str__(self) -> str:
        return f"{self.server}'s server, {self.fault}, {self.moment}"


CASES = [
    *(Case(fault=fault, moment=moment) for fault in FAULTS for moment in MOMENTS),
    *(Case(fault=fault, moment=at, server="study") for fault in OWN_FAULTS for at in MOMENTS),
]


@dataclass(kw_only=True)
class Outcome:
    """What came of one case."""

    case: Case | None = None
    exits: list[int] = field(default_factory=list)  # of the command, run after run
    kept: int = 0  # answers on disk when the first run had ended
    asked: int = 0  # questions that reached the server's address, over all runs
    asked_again: int = 0  # of them, those whose answer was on disk
    doubled: int = 0  # answers that an attempt's folder has twice
    left_over: list[str] = field(default_factory=list)  # processes and files after the last run
    differing: list[str] = field(default_factory=list)  # tables of the report, to the byte
    said: list[str] = field(default_factory=list)  # lines on it
    seconds: float = 0.0
    error: str = ""

    @property
    def survived(self) -> bool:
        """Whether all is there, once, and the same."""
        wrong = self.asked_again or self.doubled or self.left_over or self.differing or self.error
        return not wrong and self.exits[-1:] == [0]


class UserServer:
    """`transformers serve` in fp32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        self.port = vllm.free_port()
        self._log = folder / "serve.log"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = Path(sys.executable).with_name("transformers")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(program), "serve", "--host", "127.0.0.1", "--port", str(self.port),
                 "--device", "cpu", "--dtype", "float32", "--log-level", "error"],
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )  # fmt: skip
        wait_until(self._is_healthy)

    def kill(self) -> None:
        """End it and all its children without a word."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def _is_healthy(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"http://127.0.0.1:{self.port}/health", timeout=5).ok
        return False


class ServingSetup:
    """The server and the link to it, and a study that runs in a work directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items = _index_items()
        self.server = UserServer(folder)
        self.proxy = FaultyProxy(self.server.port)
        write_program(folder, REAL)
        self.store = _make_store(folder / "store")
        self._expected: dict[str, dict[str, bytes]] = {}

    def get_expected_tables(self, server: str) -> dict[str, bytes]:
        """Return what a study that nothing happens to comes to."""
        if server not in self._expected:
            self._expected[server] = self._run_undisturbed(server)
        return self._expected[server]

    def close(self) -> None:
        """Leave nothing behind."""
        self.proxy.close()
        self.server.kill()

    def prepare(self, workdir: Path, case: Case) -> None:
        """Write the study, and a store that MLflow need not set up."""
        (workdir / "w").mkdir(parents=True)
        shutil.copyfile(self.store, workdir / "w" / "mlflow.db")
        retries, timeout = FAULTS[case.fault]
        generator = f"{{kind: vllm, serves: study, concurrency: 2, retries: {retries}}}"
        if case.server == "user":
            generator = (
                f"{{kind: openai, server: transformers, version: '5', "
                f"base_url: '{self.proxy.url}', concurrency: 2, retries: {retries}, "
                f"timeout: {timeout}}}"
            )
        (workdir / "served.yaml").write_text(STUDY.format(generator=generator, limit=LIMIT))

    def start(self, workdir: Path, mark: str) -> subprocess.Popen[bytes]:
        """Give the command; what it says goes to `run.log`."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"PYTHONPATH": os.pathsep.join(paths), MARK: mark, "OMP_NUM_THREADS": "1"}
        with (workdir / "run.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.faults.program", "run", "served.yaml",
                 "--workdir", "w", "--executor", "inline",
                 *(part for setting in SET for part in ("--set", setting))],
                cwd=workdir,
                env={**os.environ, **own, vllm.PROGRAM_VARIABLE: str(self.folder / "vllm")},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def _run_undisturbed(self, server: str) -> dict[str, bytes]:
        workdir, mark = self.folder / f"undisturbed-{server}", uuid.uuid4().hex
        self.prepare(workdir, Case(fault="study killed", moment=MOMENTS[0], server=server))
        self.proxy.reset(lambda request: None)
        code = self.start(workdir, mark).wait(MAX_SECONDS)
        if code != 0:
            raise RuntimeError((workdir / "run.log").read_text(errors="replace")[-3000:])
        assert len(self.count_answers(workdir)) == 3 * LIMIT
        responses = workdir.glob("w/trials/*/attempt-1/responses/*.jsonl")
        assert len({path.read_bytes() for path in responses}) == 3, "arms that say the same"
        assert server == "study" or len(self.proxy.requests) == 3 * LIMIT
        return read_tables(workdir)

    def count_answers(self, workdir: Path) -> Counter[tuple[str, str]]:
        """Count a server's answers on disk, by trial and item, each attempt's once."""
        names = _map_base_trial(workdir)
        found: dict[tuple[str, str], int] = {}
        for attempt in workdir.glob("w/trials/*/attempt-*"):
            here: Counter[tuple[str, str]] = Counter()
            for path in attempt.glob("answers/*.jsonl"):
                for line in read_lines(path):
                    if line.record is not None and "prompt_tokens" in line.record:
                        trial = names.get(attempt.parent.name, attempt.parent.name)
                        here[trial, line.record["item"]] += 1
            for key, count in here.items():
                found[key] = max(found.get(key, 0), count)
        return Counter(found)

    def identify_request(self, request: ProxiedRequest) -> tuple[str, str]:
        """Return the trial and the item of a question."""
        path = Path(request.model)
        at = "base" if path == MODEL_FOLDER else path.parts[path.parts.index("trials") + 1]
        return at, self.items[hash_content(request.content)]


def run_case(setup: ServingSetup, case: Case, workdir: Path) -> Outcome:
    """Do one fault to a study, run it until it is done, and look at what is left."""
    setup.get_expected_tables(case.server)  # nothing of it counts as this case's
    outcome, began, mark = Outcome(case=case), time.monotonic(), uuid.uuid4().hex
    setup.prepare(workdir, case)
    try:
        (_run_with_user_server if case.server == "user" else _run_with_study_server)(
            setup, case, workdir, outcome, mark
        )
        outcome.doubled = sum(count - 1 for count in setup.count_answers(workdir).values())
        found = read_tables(workdir)
        outcome.differing = [
            name
            for name, text in setup.get_expected_tables(case.server).items()
            if found.get(name) != text
        ]
        outcome.left_over += _find_leftovers(workdir, mark)
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {error}"
    finally:
        setup.proxy.reset(lambda request: None)
        setup.proxy.restore()
        for process in _find_processes(mark):
            process.kill()
    outcome.said = _read_fault_lines(workdir)
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def _run_with_user_server(
    setup: ServingSetup, case: Case, workdir: Path, outcome: Outcome, mark: str
) -> None:
    again: list[tuple[str, str]] = []
    lock, met = threading.Lock(), threading.Event()

    def watch(request: ProxiedRequest) -> None:
        if setup.identify_request(request) in setup.count_answers(workdir):
            again.append(setup.identify_request(request))
        with lock:
            if not met.is_set() and is_moment(case.moment, request):
                met.set()
                _inject(case.fault, setup, study)

    setup.proxy.reset(watch)
    with lock:  # until it is known what runs
        study = setup.start(workdir, mark)
    outcome.exits.append(study.wait(MAX_SECONDS))
    if not met.is_set():
        raise RuntimeError("the study ended before the moment came")
    wait_until(lambda: not _find_processes(mark))
    outcome.kept = len(setup.count_answers(workdir))
    setup.proxy.restore()
    if not setup.server.is_running:
        setup.server.start()
    _rerun(setup, workdir, outcome, mark)
    outcome.asked, outcome.asked_again = len(setup.proxy.requests), len(again)


def is_moment(moment: str, request: ProxiedRequest) -> bool:
    """Return whether a question comes at a moment: the first model is the untrained one."""
    if moment == MOMENTS[1]:
        return (request.models, request.number) == (2, LIMIT // 2)
    return (request.models, request.number) == ({MOMENTS[0]: 1, MOMENTS[2]: 3}[moment], 1)


def _inject(fault: str, setup: ServingSetup, study: subprocess.Popen[bytes]) -> None:
    if fault == "server killed":
        setup.server.kill()
    elif fault == "study killed":
        os.killpg(study.pid, signal.SIGKILL)
    elif fault == "network silent":
        setup.proxy.silence()
    else:
        setup.proxy.cut()
        if fault != "network cut":
            threading.Timer(OUTAGE_SECONDS, setup.proxy.restore).start()


def _run_with_study_server(
    setup: ServingSetup, case: Case, workdir: Path, outcome: Outcome, mark: str
) -> None:
    study = setup.start(workdir, mark)
    wait_until(lambda: _has_come(case.moment, setup, workdir, mark), study)
    if case.fault == "study killed":
        os.killpg(study.pid, signal.SIGKILL)
    else:
        for process in _find_server_processes(mark):
            process.kill()
    before = setup.count_answers(workdir)
    outcome.exits.append(study.wait(MAX_SECONDS))
    wait_until(lambda: not _find_processes(mark))
    outcome.kept = len(setup.count_answers(workdir))
    restarted = list(workdir.glob("w/engines/*/vllm-2.log"))
    first = _read_questions(setup, workdir, 1)
    if restarted:
        outcome.asked_again += sum(key in before for key in _read_questions(setup, workdir, 2))
        first += _read_questions(setup, workdir, 2)
    held = setup.count_answers(workdir)
    if _rerun(setup, workdir, outcome, mark):
        second = _read_questions(setup, workdir, 1)
        outcome.asked_again += sum(key in held for key in second)
        first += second
    outcome.asked = len(first)


def _has_come(moment: str, setup: ServingSetup, workdir: Path, mark: str) -> bool:
    """Return whether a moment has come, in a study that starts its server."""
    if moment == MOMENTS[0]:  # the server starts
        return bool(_find_server_processes(mark))
    log = "".join(path.read_text() for path in workdir.glob("w/engines/*/vllm-1.log"))
    loaded = [line.split() for line in log.splitlines() if line.startswith("loaded chip-")]
    if moment == MOMENTS[2]:
        return len(loaded) == 2
    kept = Counter(trial for trial, _ in setup.count_answers(workdir))
    return any(1 < kept[_trial_folder(line[2])] < LIMIT for line in loaded)


def _read_questions(setup: ServingSetup, workdir: Path, number: int) -> list[tuple[str, str]]:
    """Return what a study's server was asked, by its log."""
    names, found = {}, []
    for path in workdir.glob(f"w/engines/*/vllm-{number}.log"):
        for line in path.read_text().splitlines():
            word, *rest = line.split(maxsplit=2) or [""]
            if word == "loaded":
                names[rest[0]] = _trial_folder(rest[1])
            elif word == "asked":
                found.append((names.get(rest[0], "base"), setup.items[rest[1]]))
    return found


def _rerun(setup: ServingSetup, workdir: Path, outcome: Outcome, mark: str) -> bool:
    """Give the same command until the study is done; return whether that was needed."""
    needed = outcome.exits[-1] != 0
    while outcome.exits[-1] != 0:
        if len(outcome.exits) > MAX_RERUNS:
            raise RuntimeError(f"the study is not done after {len(outcome.exits)} runs")
        outcome.exits.append(setup.start(workdir, mark).wait(MAX_SECONDS))
    return needed


def hash_content(content: Any) -> str:
    """Return a hash of what a request shows of a question, as the server that starts it logs it."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_tables(workdir: Path) -> dict[str, bytes]:
    """Return the report's tables as they are on disk."""
    (folder,) = workdir.glob("w/studies/*/report")
    return {name: (folder / name).read_bytes() for name in ("report.csv", "values.csv")}


def wait_until(what: Callable[[], bool], study: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until something is true, while a study runs."""
    until = time.monotonic() + MAX_SECONDS
    while not what():
        if study is not None and study.poll() is not None:
            raise RuntimeError("the study ended before the moment came")
        if time.monotonic() > until:
            raise TimeoutError("it did not come true")
        time.sleep(0.02)


def _index_items() -> dict[str, str]:
    """Return the items' ids by what a request shows of them."""
    settings = BenchmarkConfig.model_validate({"name": "shapes", "limit": LIMIT})
    benchmark: Any = find_benchmark("shapes")
    items, _ = select_items("report", settings, benchmark, DataPaths())
    return {hash_content(question_parts(item)): item.id for item in items}


def _make_store(folder: Path) -> Path:
    from orchestrator.tracking.client import MlflowStore

    folder.mkdir()
    MlflowStore(f"sqlite:///{folder}/mlflow.db", folder).open("template")
    return folder / "mlflow.db"


def _map_base_trial(workdir: Path) -> dict[str, str]:
    """Return the folder of the untrained model's trial -> base."""
    path = workdir / "w" / "ledger" / "ledger.jsonl"
    begun = read_records(path) if path.exists() else []
    return {str(entry["fingerprint"])[:16]: "base" for entry in begun if entry["arm"] == "base"}


def _trial_folder(path: str) -> str:
    parts = Path(path).parts
    return parts[parts.index("trials") + 1]


def _find_processes(mark: str) -> list[psutil.Process]:
    """Return the processes of a case."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _find_server_processes(mark: str) -> list[psutil.Process]:
    found = []
    for process in _find_processes(mark):
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if any(part.endswith("fake_vllm") for part in line) and "serve" in line:
                found.append(process)
    return found


def _find_leftovers(workdir: Path, mark: str) -> list[str]:
    until = time.monotonic() + 30
    while _find_processes(mark) and time.monotonic() < until:
        time.sleep(0.1)
    processes = [" ".join(process.cmdline())[:200] for process in _find_processes(mark)]
    files = [str(path) for path in workdir.rglob(".served")]
    return processes + files + [str(path) for path in workdir.rglob("server.json")]


def _read_fault_lines(workdir: Path) -> list[str]:
    """Return the lines in which the command spoke of a fault."""
    words = ("FAILED", "KILLED", "stopped", "chip-ablate:", "Traceback", "has died", "warning:")
    lines = (workdir / "run.log").read_text(errors="replace").splitlines()
    return [line for line in lines if any(word in line for word in words)]


@contextlib.contextmanager
def open_setup(folder: Path) -> Iterator[ServingSetup]:
    """Open a set-up, and leave nothing of it afterwards."""
    setup = ServingSetup(folder)
    try:
        yield setup
    finally:
        setup.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Do all cases; 0 where all of them were survived."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--json", type=Path, help="where the outcomes go")
    parser.add_argument("--keep", type=Path, help="keep the work directories here")
    given = parser.parse_args(arguments)
    folder = given.keep or Path(tempfile.mkdtemp(prefix="chip-serving-"))
    folder.mkdir(parents=True, exist_ok=True)
    machine, outcomes = describe_machine(), list[Outcome]()
    try:
        with open_setup(folder) as setup:
            for number, case in enumerate(CASES, start=1):
                if given.only not in str(case):
                    continue
                outcome = run_case(setup, case, folder / f"{number}")
                outcomes.append(outcome)
                word = "survived" if outcome.survived else "NOT SURVIVED"
                print(f"{number}: {case}: {word}, {outcome.seconds:.0f} s", flush=True)
                if not outcome.survived:
                    print(json.dumps(asdict(outcome), indent=1), flush=True)
                if given.json is not None:
                    given.json.write_text(json.dumps(_summary(machine, given, outcomes), indent=1))
    finally:
        if given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    survived = sum(outcome.survived for outcome in outcomes)
    print(f"{survived} of {len(outcomes)} survived")
    return 0 if survived == len(outcomes) else 1


def _summary(
    machine: dict[str, Any], given: argparse.Namespace, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    return {
        "machine": machine,
        "command": "python -m tests.faults.serving"
        + (f" --only '{given.only}'" if given.only else ""),
        "questions": 3 * LIMIT,
        "cases": len(outcomes),
        "survived": sum(outcome.survived for outcome in outcomes),
        "asked again": sum(outcome.asked_again for outcome in outcomes),
        "outcomes": [asdict(outcome) | {"survived": outcome.survived} for outcome in outcomes],
    }


if __name__ == "__main__":
    sys.exit(main())
