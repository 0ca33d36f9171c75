"""`make faults N=20`: spoil a small study N times by a seeded schedule, and say what came of it."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from tests.faults.kinds import (
    KINDS,
    Case,
    Fault,
    Kind,
    MetAttempt,
    Server,
    count_workers,
    draw_schedules,
    mount_small_disk,
)
from tests.faults.study_state import StudyState, find_differences, read_study_state
from tests.faults.world import (
    FaultCluster,
    MomentMissed,
    open_cluster,
    read_moments,
    start_driver,
    write_study,
)

#: Times that a study is run again before it counts as lost.
MAX_RERUNS = 3
#: Seconds that one run of the driver may take.
MAX_SECONDS = 900.0


@dataclass(kw_only=True)
class Injected:
    """One fault, and what the study's driver and the trial that was met did about it."""

    kind: str
    step: int
    phase: str = ""  # of the trial that was met, as it was met
    done: int | None = None  # steps or questions of it
    job: int | None = None  # which of its process's jobs it was
    exit: int | None = None  # of the driver that was met, where the fault ends it
    trains_again: float | None = None  # seconds from the fault, or from the rerun's start
    from_step: int | None = None  # the first step that it makes then, or question
    error: str = ""


@dataclass(kw_only=True)
class Outcome:
    """What came of one schedule."""

    workers: int = 1  # of a training
    faults: list[Injected] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)  # of the study's driver, run after run
    attempts: int = 0  # of all trials together; 3 where nothing happens
    lost: int = 0  # finished trials that ran again
    doubled: int = 0  # ledger records, active runs of which there are more than one
    open_ends: int = 0  # attempts without an end in the ledger
    differing: list[str] = field(default_factory=list)  # from the undisturbed study, to the bit
    synced: bool = False  # whether `chip-ablate sync` was needed, as the study's last lines said
    untracked: list[str] = field(default_factory=list)
    not_met: list[str] = field(default_factory=list)  # faults that came too late to be done
    said: str = ""  # the driver's lines on it
    seconds: float = 0.0
    error: str = ""

    @property
    def survived(self) -> bool:
        """Whether all is there, once, and the same."""
        wrong = self.lost or self.doubled or self.open_ends or self.differing or self.untracked
        return not (wrong or self.error or any(fault.error for fault in self.faults))


def run_undisturbed(
    workdir: Path, world: FaultCluster | None = None, workers: int = 1
) -> StudyState:
    """Run the study without a fault, once, if it is not there yet (`--keep`).

    Args:
        workdir: of it.
        world: where it runs; None: in the study's own process, without Ray.
        workers: of a training.
    """
    write_study(workdir, workers=workers)
    if not (workdir / "studies" / "small" / "report").exists():
        if world is None:
            driver = start_driver(workdir, "--executor", "inline")
        else:
            world.restore_nodes()
            driver = world.start(workdir, workers=workers)
        code = driver.wait(MAX_SECONDS)
        if code != 0:
            raise RuntimeError((workdir / "driver.log").read_text(errors="replace")[-3000:])
    left = read_study_state(workdir)
    assert not left.untracked, left.untracked
    return left


def run_case(
    world: FaultCluster, faults: Sequence[Fault], workdir: Path, expected: StudyState
) -> Outcome:
    """Spoil one study, run it until it is done, and look at what is left."""
    kinds = [KINDS[fault.kind] for fault in faults]
    workers = count_workers([fault.kind for fault in faults])
    outcome, began = Outcome(workers=workers), time.monotonic()
    world.restore_nodes()
    plan: dict[str, Any] = {}
    for fault, kind in zip(faults, kinds, strict=True):
        plan |= kind.plan(fault)
    stall_after = min(kind.stall_after for kind in kinds)
    write_study(workdir, stall_after=stall_after, workers=workers, **plan)
    server = Server(workdir, _find_free_port()) if any(kind.server for kind in kinds) else None
    disks = {kind.disk for kind in kinds if kind.disk is not None}
    case = Case(world=world, workdir=workdir, workers=workers, server=server)
    try:
        with ExitStack() as stack:
            for disk in sorted(disks):
                case.mounted[disk] = stack.enter_context(mount_small_disk(workdir / disk))
            if server is not None:
                stack.callback(server.kill)
                server.start()
            stack.callback(case.kill_driver)
            case.start()
            for fault, kind in zip(faults, kinds, strict=True):
                try:
                    outcome.faults.append(_inject(case, fault, kind, outcome))
                except (MomentMissed, psutil.NoSuchProcess, ProcessLookupError):
                    outcome.not_met.append(str(fault))  # all trainings were past it
            while True:
                outcome.exits.append(case.driver.wait(MAX_SECONDS))
                if outcome.exits[-1] == 0:
                    break
                if len(outcome.exits) > len(faults) + MAX_RERUNS:
                    raise RuntimeError(f"the study is not done after {len(outcome.exits)} runs")
                case.start()
            left = read_study_state(workdir, None if server is None else server.database)
            if left.untracked and "send it: chip-ablate sync" in _read_log(workdir):
                outcome.synced = case.sync()  # as that line says
                left = read_study_state(workdir, None if server is None else server.database)
            for fault_, met in zip(outcome.faults, case.met, strict=True):
                _record_resumption(fault_, met, workdir)
            outcome.attempts = sum(left.attempts.values())
            outcome.lost, outcome.doubled = left.lost, left.doubled
            outcome.open_ends, outcome.untracked = left.open_ends, left.untracked
            outcome.differing = find_differences(left, expected)
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {error}"
    outcome.said = _read_fault_lines(workdir)
    outcome.seconds = time.monotonic() - began
    return outcome


def _inject(case: Case, fault: Fault, kind: Kind, outcome: Outcome) -> Injected:
    """Do one fault to the study as it runs; where it ends the driver, start that again."""
    injected = Injected(kind=fault.kind, step=fault.step)
    case.fault = fault
    kind.inject(case)
    met = case.now
    case.met.append(met)
    injected.phase, injected.done = met.moment.get("phase", ""), met.moment.get("done")
    injected.job = met.moment.get("job")
    if 0 in kind.exits:
        return injected
    injected.exit = case.driver.wait(MAX_SECONDS)
    outcome.exits.append(injected.exit)
    if injected.exit not in kind.exits:
        injected.error = f"the driver ended with {injected.exit}, not {kind.exits}"
    kind.repair(case)
    met.at = time.time()
    case.start()
    return injected


def _record_resumption(injected: Injected, met: MetAttempt, workdir: Path) -> None:
    """Note when the trial that was met went on in a later attempt, and where."""
    if met.folder is None:
        return
    for folder, told in read_moments(workdir).items():
        on = [moment for moment in told if moment["phase"] == met.moment["phase"]]
        if folder.parent == met.folder.parent and folder.name > met.folder.name and on:
            injected.trains_again = on[0]["time"] - met.at
            injected.from_step = on[0]["done"]
            return


def _read_fault_lines(workdir: Path) -> str:
    """Return the lines in which the driver spoke of a fault."""
    words = ("tried again", "FAILED", "KILLED", "stopped", "chip-ablate:", "Traceback")
    return "\n".join(
        line for line in _read_log(workdir).splitlines() if any(word in line for word in words)
    )


def _read_log(workdir: Path) -> str:
    return (workdir / "driver.log").read_text(errors="replace")


def _find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def make_table(outcomes: Sequence[Outcome]) -> Table:
    """Return what was injected, what survived, how soon it went on: a line a kind."""
    shown = Table("fault", "injected", "survived", "goes on after, s")
    pairs = [(fault, outcome) for outcome in outcomes for fault in outcome.faults]
    for kind in sorted({fault.kind for fault, _ in pairs}):
        of_kind = [(fault, outcome) for fault, outcome in pairs if fault.kind == kind]
        times = [fault.trains_again for fault, _ in of_kind]
        shown.add_row(
            kind,
            str(len(of_kind)),
            str(sum(outcome.survived for _, outcome in of_kind)),
            ", ".join(f"{seconds:.0f}" for seconds in times if seconds is not None),
        )
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a schedule; 0 where all of it was survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--schedules", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=1, help="begin with this schedule of them")
    parser.add_argument("--each", type=int, default=2, help="faults that one study meets")
    parser.add_argument("--kinds", help="only these, separated by commas")
    parser.add_argument("--json", type=Path, help="where the outcomes go")
    parser.add_argument("--keep", type=Path, help="keep the work directories here")
    given = parser.parse_args(arguments)
    kinds = given.kinds.split(",") if given.kinds else None
    for unknown in set(kinds or ()) - KINDS.keys():
        parser.error(f"unknown kind '{unknown}': known are {', '.join(KINDS)}")
    console, outcomes = Console(), []
    above = given.keep or Path(tempfile.mkdtemp(prefix="chip-faults-"))
    above.mkdir(parents=True, exist_ok=True)
    try:
        expected = {1: run_undisturbed(above / "undisturbed")}
        console.print("the study without a fault: done")
        with open_cluster() as world:
            # Starting Ray took these, and what a shell puts in the background has no Ctrl-C.
            for which in (signal.SIGINT, signal.SIGTERM):
                signal.signal(which, signal.default_int_handler)
            drawn = draw_schedules(given.schedules, given.seed, each=given.each, kinds=kinds)
            for number, faults in list(enumerate(drawn, start=1))[given.first - 1 :]:
                workers = count_workers([fault.kind for fault in faults])
                if workers not in expected:
                    alone = above / f"undisturbed-{workers}"
                    expected[workers] = run_undisturbed(alone, world, workers)
                outcome = run_case(world, faults, above / f"{number}", expected[workers])
                outcomes.append(outcome)
                word = "survived" if outcome.survived else "NOT SURVIVED"
                what = ", then ".join(map(str, faults))
                said = f"{number}: {what}: {word}, {outcome.seconds:.0f} s"
                console.print(said, highlight=False)
                if not outcome.survived:
                    console.print_json(json.dumps(asdict(outcome)))
                if given.json is not None:
                    given.json.write_text(json.dumps(_summary(given, outcomes), indent=1) + "\n")
                if given.keep is None:
                    shutil.rmtree(above / f"{number}", ignore_errors=True)
    finally:
        if given.keep is None:
            shutil.rmtree(above, ignore_errors=True)
    console.print(make_table(outcomes))
    found = _summary(given, outcomes)
    console.print(
        f"{found['survived']} of {len(outcomes)} studies survived {found['injected']} faults; "
        f"finished trials that ran again: {found['finished trials that ran again']}; "
        f"doubled: {found['doubled']}; figures that differ: {found['differing']}",
        highlight=False,
    )
    return 0 if found["survived"] == len(outcomes) else 1


def _summary(given: argparse.Namespace, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "machine": describe_machine(),
        "command": f"python -m tests.faults.run -n {given.schedules} --each {given.each} "
        f"--seed {given.seed}"
        + (f" --first {given.first}" if given.first > 1 else "")
        + (f" --kinds '{given.kinds}'" if given.kinds else ""),
        "studies": len(outcomes),
        "injected": sum(len(outcome.faults) for outcome in outcomes),
        "survived": sum(outcome.survived for outcome in outcomes),
        "finished trials that ran again": sum(outcome.lost for outcome in outcomes),
        "studies that `sync` completed": sum(outcome.synced for outcome in outcomes),
        "doubled": sum(outcome.doubled for outcome in outcomes),
        "differing": sum(len(outcome.differing) for outcome in outcomes),
        "outcomes": [asdict(outcome) | {"survived": outcome.survived} for outcome in outcomes],
    }


if __name__ == "__main__":
    sys.exit(main())
