"""What the arms' searches cost: trials, and the time of the processors that they held."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.ledger import Ledger, TrialRecord
from orchestrator.plan import Trial


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What some trials cost, failed attempts with them."""

    trials: int  # that have been run
    failed: int
    reused: int  # of those run, executed for another study: in the seconds, paid there
    seconds: float  # from start to end of every attempt
    cpu_seconds: float  # those, of every CPU that was held
    gpu_seconds: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            trials=self.trials + other.trials,
            failed=self.failed + other.failed,
            reused=self.reused + other.reused,
            seconds=self.seconds + other.seconds,
            cpu_seconds=self.cpu_seconds + other.cpu_seconds,
            gpu_seconds=self.gpu_seconds + other.gpu_seconds,
        )


NOTHING_SPENT = Spent(trials=0, failed=0, reused=0, seconds=0.0, cpu_seconds=0.0, gpu_seconds=0.0)


def spent_on(trials: Iterable[Trial], ledger: Ledger, study: str) -> Spent:
    """Return what trials of a study cost, as the ledger has it."""
    whole = NOTHING_SPENT
    for trial in trials:
        record = ledger[trial.fingerprint]
        if record.attempts == 0:
            continue
        seconds = _seconds(record)
        engine = trial.config.engine
        done = record.done(trial)
        whole += Spent(
            trials=1,
            failed=int(not done and record.failure is not None),
            reused=int(done and record.study != study),
            seconds=seconds,
            cpu_seconds=seconds * engine.workers_per_trial * engine.cpus_per_worker,
            gpu_seconds=seconds * engine.workers_per_trial * engine.gpus_per_worker,
        )
    return whole


def _seconds(record: TrialRecord) -> float:
    """Return the time of a record's attempts; of one that left no times, that of its phases."""
    return sum(
        sum(attempt.seconds.values())
        if attempt.started is None or attempt.ended is None
        else attempt.ended - attempt.started
        for attempt in record.history.values()
    )
