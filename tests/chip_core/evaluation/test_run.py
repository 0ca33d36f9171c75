"""A benchmark from questions to files: resumed, divided over workers, with what has to be known."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chip_core.config.benchmark import BenchmarkConfig, BenchmarksConfig, DataPaths
from chip_core.evaluate import evaluate
from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.generators.answering import generate_answers
from chip_core.evaluation.inference import Decoder
from chip_core.evaluation.inference.answer_files import AnswerFile, read_stored_answers
from chip_core.evaluation.items import benchmark_identity
from chip_core.evaluation.outcomes import ItemOutcome, percent
from chip_core.evaluation.readiness import find_benchmark_problems
from chip_core.evaluation.scorer import ScoreResult
from chip_core.evaluation.task import ExternalBenchmark, Item, MetricInfo, Response
from chip_core.results import Progress
from chip_core.utils.errors import TrialError
from chip_core.utils.files import read_records

from . import benchmark_files
from .contexts import SHAPES, answer_and_die, make_context, run_worker
from .judge.server import rate_question, run_judge_server

#: Processes are forked from one that has imported what all of them need, and has no threads.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [answer_and_die.__module__, "transformers.models.llava.modeling_llava"]
)


def run_in_process(work: Callable[..., None], *given: Any) -> multiprocessing.process.BaseProcess:
    process = FORKED.Process(target=work, args=given)
    process.start()
    process.join(120)
    return process


def read_responses(folder: Path, name: str = "report-shapes") -> list[dict[str, Any]]:
    return read_records(folder / "responses" / f"{name}.jsonl")


class AnswerCounter:
    """Counts the items that were answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.items: list[str] = []
        plain = Decoder.stream

        def stream(decoder: Decoder, batches: Any, *, size: int) -> Any:
            self.items += [item.id for batch in batches for item in batch.items]
            return plain(decoder, batches, size=size)

        monkeypatch.setattr(Decoder, "stream", stream)


def test_what_is_left_on_disk(tmp_path: Path) -> None:
    told: list[Progress] = []
    found = evaluate(make_context(tmp_path, report_progress=told.append), "report", SHAPES)
    scores = json.loads((tmp_path / found.scores).read_text())
    assert scores["how"] == found.metadata
    assert found.metadata["protocol"] == "official"
    assert found.metadata["scorer"] == "shapes-1"
    assert (found.metadata["n"], found.metadata["missing"]) == (24, 0)
    assert (found.metadata["limit"], found.metadata["of"]) == (24, 1000)
    assert not {"bf16", "cut", "generator", "parity"} & found.metadata.keys()
    lines = read_responses(tmp_path)
    assert len(lines) == found.items == 24
    assert set(lines[0]) == {"item", "prompt", "response", "truth"}
    (chair_s,) = [metric for metric in scores["metrics"] if metric["name"] == "chair_s"]
    wrong = sum(item["numerator"] for item in chair_s["items"])
    assert found.metrics["shapes/chair_s"] == pytest.approx(100 * wrong / 24)
    *answering_, scoring, scored = [(one.phase, one.done, one.total) for one in told]
    done = [one for _, one, _ in answering_]
    assert answering_ == [("answer shapes", one, 24) for one in done]
    assert (done[0], done[-1]) == (0, 24) and done == sorted(set(done)) and len(done) > 3
    assert (scoring, scored) == (("score shapes", 0, 1), ("score shapes", 1, 1))
    last = told[-3].figures
    assert last["items_per_second"] > 0
    assert last["seconds_left"] == 0


def test_a_killed_evaluation_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Progress] = []
    whole = evaluate(
        make_context(tmp_path / "whole", report_progress=told.append), "report", SHAPES
    )
    answered = told[2].done  # by the second time that answers are told
    killed = run_in_process(answer_and_die, str(tmp_path / "killed"), 2)
    assert killed.exitcode == -signal.SIGKILL
    left = {
        record["item"]
        for file in (tmp_path / "killed" / "answers").iterdir()
        for record in read_records(file)
    }
    assert len(left) == answered and 0 < answered < 24  # nothing that was told is lost
    counting = AnswerCounter(monkeypatch)
    again = evaluate(
        make_context(tmp_path / "again", earlier=[tmp_path / "killed"]), "report", SHAPES
    )
    assert len(counting.items) == 24 - answered  # nothing is made twice
    assert left.isdisjoint(counting.items)
    assert again.metrics == whole.metrics
    assert read_responses(tmp_path / "again") == read_responses(tmp_path / "whole")
    assert again.metadata["taken_over"] == answered
    # and once more, from the attempt that took them over
    counting.items.clear()
    evaluate(make_context(tmp_path / "third", earlier=[tmp_path / "again"]), "report", SHAPES)
    assert counting.items == []


def test_answers_of_other_weights_or_settings_are_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(make_context(tmp_path / "one"), "report", SHAPES)
    counting = AnswerCounter(monkeypatch)
    earlier = [tmp_path / "one"]
    evaluate(make_context(tmp_path / "a", weights="other", earlier=earlier), "report", SHAPES)
    assert len(counting.items) == 24
    longer = SHAPES.model_copy(update={"max_new_tokens": 33})
    evaluate(make_context(tmp_path / "b", earlier=earlier), "report", longer)
    assert len(counting.items) == 48


def test_answers_are_those_of_the_weights_on_either_side_of_a_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark_files.write_pope(tmp_path, pictures=1)
    data_paths = DataPaths(benchmark_data=tmp_path)
    few, more = (
        BenchmarkConfig.model_validate({"name": "pope", "max_new_tokens": 3, "limit": limit})
        for limit in (4, 6)
    )
    generate_answers(make_context(tmp_path / "one", data_paths=data_paths), "select", few)
    counting = AnswerCounter(monkeypatch)
    # By another mark of the same weights now, quoted, and with a larger limit.
    context = make_context(
        tmp_path / "two",
        weights="their content",
        former_weights=["w"],
        earlier=[tmp_path / "one"],
        data_paths=data_paths,
    )
    found = generate_answers(context, "report", more)
    assert len(counting.items) == 2 and found.metadata["taken_over"] == 4
    pace = found.metadata["pace"]
    assert pace["answers"] == 2 and 0 <= pace["waited"] <= 1
    assert pace["tokens_per_second"] == pytest.approx(3 * pace["answers_per_second"], rel=1e-3)
    # Three tokens end no answer here: what was taken over counts too.
    assert found.metadata["cut"] == {"answers": 6, "of": 6, "max_new_tokens": 3}
    generate_answers(context, "report", more)  # what lies there is neither made nor written again
    assert len(counting.items) == 2
    (file,) = (tmp_path / "two" / "answers").iterdir()
    assert len(read_records(file)) == 6


def test_a_line_that_a_crash_cut_off_is_answered_again(tmp_path: Path) -> None:
    a, b, c = (Item(id=name, prompt="is it?", pictures=()) for name in "abc")

    def before(mark: str, *items: Item) -> dict[str, str]:
        found = read_stored_answers([tmp_path], ["report-shapes"], [mark * 64], items)
        return {item: response.text for item, response in found.items()}

    with AnswerFile(tmp_path, "report-shapes", "m" * 64, 0) as file:
        file.add([(a, Response(text="one")), (b, Response(text="two"))])
    (path,) = (tmp_path / "answers").iterdir()
    path.write_bytes(path.read_bytes()[:-8])
    assert before("m", a, b) == {"a": "one"}
    with AnswerFile(tmp_path, "report-shapes", "m" * 64, 0) as file:
        file.add([(b, Response(text="again"))])
    with AnswerFile(tmp_path, "report-shapes", "m" * 64, 1) as file:
        file.add([(c, Response(text="another worker's"))])
    assert before("m", a, b, c) == {"a": "one", "b": "again", "c": "another worker's"}
    assert before("m", a) == {"a": "one"}
    assert before("n", a, b, c) == {}
    asked_otherwise = Item(id="a", prompt="is it now?", pictures=())
    assert before("m", asked_otherwise) == {}


def test_two_workers_give_what_one_gives_and_fail_together(tmp_path: Path) -> None:
    one = evaluate(make_context(tmp_path / "one"), "report", SHAPES)
    with FORKED.Manager() as manager:
        found = manager.dict()
        given = (2, str(tmp_path / "store"), str(tmp_path / "two"), found)
        workers = [FORKED.Process(target=run_worker, args=(rank, *given)) for rank in (0, 1)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(180)
        assert [worker.exitcode for worker in workers] == [0, 0]
        # the other does not wait for one that failed
        trouble = "ValueError: this worker's own trouble"
        assert found[0] == (one.metrics, 24, f"TrialError: worker 1: {trouble}")
        assert found[1] == (one.metrics, 24, trouble)
    assert read_responses(tmp_path / "two") == read_responses(tmp_path / "one")
    shares = [
        len(read_records(file))
        for rank in (0, 1)
        for file in (tmp_path / "two" / "answers").glob(f"*.{rank}.jsonl")
    ]
    assert sorted(shares) == [0, 12, 12, 12]  # each half; then the second's failed


def test_in_bf16_the_share_that_differs_is_recorded(tmp_path: Path) -> None:
    found = evaluate(make_context(tmp_path, bf16=True), "report", SHAPES)
    assert found.metadata["bf16"]["checked"] == 16
    assert 0 <= found.metadata["bf16"]["differ"] <= 16


def test_no_reply_is_paid_for_twice_over_two_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trials whose models say the same: the second asks the judge nothing."""
    monkeypatch.setenv("JUDGE_KEY", "k")
    benchmark_files.write_mmhal(tmp_path)
    data_paths = DataPaths(benchmark_data=tmp_path, judge_cache=tmp_path / "cache")
    with run_judge_server(rate_question) as server:
        judge = {"model": "judge", "base_url": server.url, "api_key_env": "JUDGE_KEY"}
        settings = BenchmarkConfig.model_validate(
            {"name": "mmhal", "judge": judge, "max_new_tokens": 16}
        )
        found = [
            evaluate(
                make_context(tmp_path / folder, data_paths=data_paths, weights=folder),
                "report",
                settings,
            )
            for folder in ("one", "two")
        ]
        assert len(server.calls) == 8
    assert found[0].metrics == found[1].metrics
    metadata = found[1].metadata
    assert metadata["judge"] == {"model": "judge", "returned": ["judge-2026-01-01"]}
    assert (metadata["n"], metadata["missing"]) == (8, 0)


def test_what_could_not_be_read_is_counted_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six answers of which two say nothing; all are in the scores, a few in what is told."""
    said = iter(["Yes", "no", "A street.", "**No**", "<think>yes</think>", "Yes."])
    monkeypatch.setattr(
        Decoder,
        "stream",
        lambda decoder, batches, *, size: [
            [(item, Response(text=next(said))) for item in batch.items] for batch in batches
        ],
    )
    benchmark_files.write_pope(tmp_path, pictures=1)
    settings = BenchmarkConfig.model_validate({"name": "pope", "protocol": "corrected", "limit": 6})
    found = evaluate(
        make_context(tmp_path / "a", data_paths=DataPaths(benchmark_data=tmp_path)),
        "report",
        settings,
    )
    unread = found.metadata["unreadable"]
    assert (unread["answers"], unread["replies"], found.metadata["missing"]) == (2, 0, 0)
    assert {one["text"] for one in unread["examples"]} == {"A street.", "<think>yes</think>"}
    kept = json.loads((tmp_path / "a" / found.scores).read_text())
    assert [one["source"] for one in kept["unreadable"]] == ["answer"] * 2
    assert kept["how"]["unreadable"] == unread


def test_a_judges_failure_is_the_trials(tmp_path: Path) -> None:
    benchmark_files.write_mmhal(tmp_path)
    settings = BenchmarkConfig.model_validate({"name": "mmhal", "max_new_tokens": 4})
    with pytest.raises(TrialError, match="mmhal: its answers need a judge and there is no"):
        evaluate(
            make_context(tmp_path / "a", data_paths=DataPaths(benchmark_data=tmp_path)),
            "report",
            settings,
        )


def test_replies_stand_in_for_a_judge(tmp_path: Path) -> None:
    benchmark_files.write_mmhal(tmp_path)
    replies = tmp_path / "replies.jsonl"
    benchmark_files.write_rows(
        replies, [{"image_id": f"id{n}", "reply": "Rating: 4"} for n in range(8)]
    )
    settings = BenchmarkConfig.model_validate({"name": "mmhal", "max_new_tokens": 4})
    data_paths = DataPaths(benchmark_data=tmp_path, judge_replies=replies)
    found = evaluate(make_context(tmp_path / "a", data_paths=data_paths), "report", settings)
    assert found.metrics["mmhal/score"] == 4.0
    assert found.metadata["judge"] == {"model": "replay"}


def test_a_larger_limit_goes_on_from_a_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(make_context(tmp_path), "report", SHAPES.model_copy(update={"limit": 8}))
    counting = AnswerCounter(monkeypatch)
    found = evaluate(make_context(tmp_path), "report", SHAPES)
    assert len(counting.items) == 16
    assert found.metadata["taken_over"] == 8


class StubProgram(ExternalBenchmark):
    """Stands in for another program."""

    version = "stub-1"
    metrics = {"accuracy": MetricInfo(unit="percent", goal="maximize")}

    def __init__(self) -> None:
        self.seen: list[tuple[Path, list[str], str]] = []

    def tools(self) -> dict[str, str]:
        return {"program": "stub 1.2"}

    def problems(self) -> list[str]:
        return []

    def ask(
        self, model: Path, *, folder: Path, batch_size: int, device: str
    ) -> tuple[ScoreResult, dict[str, Any]]:
        self.seen.append((model, sorted(file.name for file in model.iterdir()), device))
        outcomes = [ItemOutcome(item="1", numerator=1.0, denominator=2.0)]
        metric = percent("accuracy", "maximize", outcomes)
        return ScoreResult(metrics=(metric,), n=7, missing=1), {"program": "stub 1.2"}


def test_another_program_gets_a_whole_model_and_gives_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = StubProgram()
    monkeypatch.setitem(BENCHMARKS._entries, "program", program)
    settings = BenchmarkConfig(name="program")
    asked = make_context(tmp_path)
    found = evaluate(asked, "report", settings)
    assert found.metrics == {"program/accuracy": 50.0}
    assert (
        found.metadata.items()
        >= {"scorer": "stub-1", "program": "stub 1.2", "n": 7, "missing": 1}.items()
    )
    ((folder, files, device),) = program.seen
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert device == "cpu"
    assert not folder.exists()  # it was made for this alone
    assert benchmark_identity(settings, DataPaths())["tools"] == {"program": "stub 1.2"}
    lies = evaluate(make_context(tmp_path, checkpoint_dir=tmp_path), "report", settings)
    assert program.seen[1][0] == tmp_path
    assert lies.metrics == found.metrics
    limited = BenchmarksConfig(report=(BenchmarkConfig(name="program", limit=3),))
    assert find_benchmark_problems(limited, DataPaths()) == [
        "program: cannot have a limit: its own program would ask the first questions, not a subset"
    ]
