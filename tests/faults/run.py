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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.faults.check import Left, differences, look
from tests.faults.kinds import KINDS, Case, Fault, Server, schedule, small_disk
from tests.faults.world import World, moments, opened, prepare

#: Times that a study is run again before it counts as lost.
AGAIN = 3
#: Seconds that one run of the driver may take.
PATIENCE = 900.0


@dataclass(kw_only=True)
class Outcome:
    """What came of one fault."""

    kind: str
    step: int
    exits: list[int] = field(default_factory=list)  # of the study's driver, run after run
    attempts: int = 0  # of all trials together; 3 where nothing happens
    lost: int = 0  # finished trials that ran again
    doubled: int = 0  # ledger records, active runs of which there are more than one
    open_ends: int = 0  # attempts without an end in the ledger
    differing: list[str] = field(default_factory=list)  # from the undisturbed study, to the bit
    untracked: list[str] = field(default_factory=list)
    trains_again: float | None = None  # seconds from the fault, or from the rerun's start
    resumed: bool | None = None  # whether the trial that was met went on from a checkpoint
    said: str = ""  # the driver's line on it
    seconds: float = 0.0
    error: str = ""

    @property
    def survived(self) -> bool:
        """Whether all is there, once, and the same."""
        wrong = self.lost or self.doubled or self.open_ends or self.differing or self.untracked
        return not (wrong or self.error)


def undisturbed(world: World, workdir: Path) -> Left:
    """Run the study without a fault, once."""
    prepare(workdir)
    code = world.start(workdir).wait(PATIENCE)
    if code != 0:
        raise RuntimeError((workdir / "driver.log").read_text(errors="replace")[-3000:])
    left = look(workdir)
    assert not left.untracked, left.untracked
    return left


def one(world: World, fault: Fault, workdir: Path, expected: Left) -> Outcome:
    """Spoil one study, run it until it is done, and look at what is left."""
    kind = KINDS[fault.kind]
    outcome = Outcome(kind=fault.kind, step=fault.step)
    began = time.monotonic()
    world.heal()
    prepare(workdir, stall_after=kind.stall_after, **kind.plan(fault))
    server = Server(workdir, _free_port()) if kind.server else None
    disk = None if kind.disk is None else workdir / kind.disk
    with small_disk(disk) as mounted:
        try:
            if server is not None:
                server.start()
            tracking = None if server is None else server.uri
            driver = world.start(workdir, tracking=tracking)
            case = Case(
                fault=fault, world=world, workdir=workdir, driver=driver, server=server,
                mounted=mounted,
            )  # fmt: skip
            kind.do(case)
            outcome.exits.append(driver.wait(PATIENCE))
            if outcome.exits[0] not in kind.exits:
                outcome.error = f"the driver ended with {outcome.exits[0]}, not {kind.exits}"
            since = case.at
            if outcome.exits[0] != 0:
                kind.mend(case)
                since = time.time()
            while outcome.exits[-1] != 0 and len(outcome.exits) <= AGAIN:
                outcome.exits.append(world.start(workdir, tracking=tracking).wait(PATIENCE))
            if outcome.exits[-1] != 0:
                outcome.error = f"the study is not done after {len(outcome.exits)} runs"
            _of_attempts(outcome, workdir, case.hit, since)
            left = look(workdir, None if server is None else server.database)
            outcome.attempts = sum(left.attempts.values())
            outcome.lost, outcome.doubled = left.lost, left.doubled
            outcome.open_ends, outcome.untracked = left.open_ends, left.untracked
            outcome.differing = differences(left, expected)
        except Exception as error:
            outcome.error = f"{type(error).__name__}: {error}"
            if "driver" in locals() and driver.poll() is None:
                driver.kill()
                driver.wait()
        finally:
            if server is not None:
                server.kill()
            outcome.said = _said(workdir)
            outcome.seconds = time.monotonic() - began
    return outcome


def _of_attempts(outcome: Outcome, workdir: Path, hit: Path | None, since: float) -> None:
    """Note when the trial that was met trains again, and from where."""
    if hit is None:
        return
    for folder, told in moments(workdir).items():
        trained = [moment for moment in told if moment["phase"] == "train"]
        if folder.parent == hit.parent and folder.name > hit.name and trained:
            outcome.trains_again = trained[0]["time"] - since
            outcome.resumed = trained[0]["done"] > 1
            return


def _said(workdir: Path) -> str:
    """Return the lines in which the driver spoke of a fault."""
    log = (workdir / "driver.log").read_text(errors="replace")
    words = ("tried again", "FAILED", "KILLED", "stopped", "chip-ablate:", "Traceback")
    return "\n".join(line for line in log.splitlines() if any(word in line for word in words))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def table(outcomes: Sequence[Outcome]) -> Table:
    """Return what was injected, what survived, what differed: a line a kind."""
    shown = Table(
        "fault", "injected", "survived", "lost", "doubled", "differing", "trains again, s"
    )
    for kind in sorted({outcome.kind for outcome in outcomes}):
        of_kind = [outcome for outcome in outcomes if outcome.kind == kind]
        times = [each.trains_again for each in of_kind if each.trains_again is not None]
        shown.add_row(
            kind,
            str(len(of_kind)),
            str(sum(outcome.survived for outcome in of_kind)),
            str(sum(outcome.lost for outcome in of_kind)),
            str(sum(outcome.doubled for outcome in of_kind)),
            str(sum(len(outcome.differing) for outcome in of_kind)),
            ", ".join(f"{seconds:.0f}" for seconds in times),
        )
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a schedule; 0 where all of it was survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--schedules", type=int, default=len(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", help="only these, separated by commas")
    parser.add_argument("--json", type=Path, help="where the outcomes go")
    parser.add_argument("--keep", type=Path, help="keep the work directories here")
    given = parser.parse_args(arguments)
    kinds = given.kinds.split(",") if given.kinds else None
    for unknown in set(kinds or ()) - KINDS.keys():
        parser.error(f"unknown kind '{unknown}': known are {', '.join(KINDS)}")
    for number_ in (signal.SIGINT, signal.SIGTERM):  # put in the background, a shell ignores Ctrl-C
        signal.signal(number_, signal.default_int_handler)
    console, outcomes = Console(), []
    above = given.keep or Path(tempfile.mkdtemp(prefix="chip-faults-"))
    above.mkdir(parents=True, exist_ok=True)
    try:
        with opened() as world:
            expected = undisturbed(world, above / "undisturbed")
            for number, fault in enumerate(schedule(given.schedules, given.seed, kinds), start=1):
                outcome = one(world, fault, above / f"{number}", expected)
                outcomes.append(outcome)
                word = "survived" if outcome.survived else "NOT SURVIVED"
                console.print(
                    f"{number}: {fault}: {word}, {outcome.seconds:.0f} s", highlight=False
                )
                if not outcome.survived:
                    console.print_json(json.dumps(asdict(outcome)))
                if given.json is not None:
                    given.json.write_text(json.dumps(_summary(given, outcomes), indent=1) + "\n")
                if given.keep is None:
                    shutil.rmtree(above / f"{number}", ignore_errors=True)
    finally:
        if given.keep is None:
            shutil.rmtree(above, ignore_errors=True)
    console.print(table(outcomes))
    survived = sum(outcome.survived for outcome in outcomes)
    console.print(f"{survived} of {len(outcomes)} survived", highlight=False)
    return 0 if survived == len(outcomes) else 1


def _summary(given: argparse.Namespace, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "seed": given.seed,
        "injected": len(outcomes),
        "survived": sum(outcome.survived for outcome in outcomes),
        "finished trials that ran again": sum(outcome.lost for outcome in outcomes),
        "doubled": sum(outcome.doubled for outcome in outcomes),
        "differing": sum(len(outcome.differing) for outcome in outcomes),
        "outcomes": [asdict(outcome) | {"survived": outcome.survived} for outcome in outcomes],
    }


if __name__ == "__main__":
    sys.exit(main())
