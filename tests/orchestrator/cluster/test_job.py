"""A job is followed over lost connections, without a word twice or left out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from ray.job_submission import JobStatus

from chip_core.utils.errors import ConfigError, UserError
from orchestrator.cluster import job, session
from orchestrator.cluster.head import Head, UnreachableError
from orchestrator.cluster.job import SubmittedJob
from orchestrator.cluster.session import bundle_submission
from orchestrator.commands.common import output

HEAD = Head(user="u", address="10.0.0.1", key=Path("/k"), proxy=None, dashboard=8265)
JOB = SubmittedJob(
    job="encoder-1", cluster="/c.yaml", study="encoder", workdir="/w", folder="/w/jobs/encoder-1",
    local="/here",
)  # fmt: skip


class Server:
    """Ray's job server: a log that each connection shows a part of before it is lost."""

    def __init__(self, chunks: list[str], shown: list[int], *, code: int = 0) -> None:
        self.chunks, self.shown, self.code = chunks, shown, code
        self.connections = 0
        self.known = {JOB.job}
        self.stopped: list[str] = []

    @contextlib.contextmanager
    def connect(self, head: Head) -> Iterator[Server]:
        assert head is HEAD
        self.connections += 1
        if self.connections <= len(self.shown) and self.shown[self.connections - 1] < 0:
            raise UnreachableError("no route to host")
        yield self

    def get_job_info(self, name: str) -> Any:
        if name not in self.known:
            raise RuntimeError("Request failed with status code 404: no such job")
        done = self.connections > len(self.shown)
        status = JobStatus.FAILED if self.code else JobStatus.SUCCEEDED
        return SimpleNamespace(
            status=status if done else JobStatus.RUNNING,
            driver_exit_code=self.code, metadata=JOB.as_json, start_time=1,
        )  # fmt: skip

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        for index, chunk in enumerate(self.chunks):
            cut = self.connections <= len(self.shown)
            if cut and index == self.shown[self.connections - 1]:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield chunk

    def list_jobs(self) -> list[Any]:
        other = SimpleNamespace(metadata={"job_submission_id": "x"}, start_time=9)
        return [other, self.get_job_info(JOB.job)]

    def stop_job(self, name: str) -> bool:
        self.stopped.append(name)
        return True


@pytest.fixture
def make_server(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Server]:
    def make_server(*arguments: Any, **options: Any) -> Server:
        found = Server(*arguments, **options)
        monkeypatch.setattr(job, "connect", found.connect)
        monkeypatch.setattr(job.time, "sleep", lambda seconds: None)
        return found

    return make_server


@pytest.mark.parametrize("shown", [[], [0], [2], [1, 3, -1, 2], [3, 3]])
def test_the_log_is_whole_and_once_however_often_the_connection_is_lost(
    shown: list[int], make_server: Callable[..., Server]
) -> None:
    chunks = ["one\n", "two\nthree\n", "four\n", "five\n"]
    there = make_server(chunks, shown)
    written: list[str] = []
    said: list[str] = []
    details = job.follow_job(HEAD, JOB.job, written.append, said.append)
    assert "".join(written) == "".join(chunks)
    assert details.status == JobStatus.SUCCEEDED
    assert there.connections == len(shown) + 1
    assert len(said) == len(shown)
    assert all("connection lost" in line for line in said)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises, as at a terminal; what runs in a shell's background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_looking_on_at_once(make_server: Callable[..., Server]) -> None:
    there = make_server(["one\n"], [])

    async def waits(name: str) -> AsyncIterator[str]:
        yield "one\n"
        asyncio.get_running_loop().call_later(0.05, signal.raise_signal, signal.SIGINT)
        await asyncio.sleep(60)
        yield "never"

    there.tail_job_logs = waits  # type: ignore[method-assign]
    written: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        job.follow_job(HEAD, JOB.job, written.append, written.append)
    assert written == ["one\n"]
    assert there.connections == 1


def test_it_is_given_up_after_its_patience(
    make_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_server(["x"], [-1] * 100)
    clock = iter(range(0, 100_000, 700))
    monkeypatch.setattr(job.time, "monotonic", lambda: float(next(clock)))
    said: list[str] = []
    with pytest.raises(
        UnreachableError, match="the job may still be running: chip-ablate attach encoder-1"
    ):
        job.follow_job(HEAD, JOB.job, said.append, said.append)
    assert len(said) == 2  # after 700 s and 1,400 s; at 2,100 s its 1,800 s are over


def test_a_job_that_the_cluster_does_not_know_is_told_at_once(
    make_server: Callable[..., Server],
) -> None:
    make_server(["x"], [])
    with pytest.raises(UserError, match="gone: the cluster has no such job"):
        job.follow_job(HEAD, "gone", print, print)
    with pytest.raises(UserError, match="no such job"):
        job.request_stop(HEAD, "gone")


def test_a_job_is_found_on_the_cluster_and_other_programs_jobs_are_not(
    make_server: Callable[..., Server],
) -> None:
    make_server([], [])
    assert job.find_latest_job(HEAD) == JOB
    assert job.find_submitted_job(HEAD, JOB.job) == JOB


def test_what_is_submitted_runs_there_with_its_files(
    make_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = make_server([], [])
    sent: list[Any] = []
    monkeypatch.setattr(Head, "send", lambda self, source, target: sent.append((source, target)))
    there.submit_job = lambda **given: sent.append(given)  # type: ignore[attr-defined]
    arguments = ["run", "it's.yaml", "--set", "a=b c"]
    job.submit_job(HEAD, JOB, venv="/v", arguments=arguments, files=tmp_path)
    assert sent[0] == (tmp_path, "/w/jobs/encoder-1")
    assert sent[1]["entrypoint"] == (
        "cd /w/jobs/encoder-1 && exec /v/bin/chip-ablate run 'it'\"'\"'s.yaml' --set 'a=b c' "
        "--json > result.json"
    )
    assert sent[1]["submission_id"] == JOB.job
    assert sent[1]["metadata"] == JOB.as_json
    assert sent[1]["runtime_env"]["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGINT"


def test_ssh_takes_a_hosts_key_once_and_only_the_given_key() -> None:
    words = " ".join(HEAD.ssh)
    assert words.startswith("ssh -i /k -o IdentitiesOnly=yes")
    assert "StrictHostKeyChecking=accept-new" in words
    assert "UserKnownHostsFile" not in words
    pages = HEAD.tunnel_commands("/v", "/w")
    assert pages["dashboard"] == "ssh -i /k -N -L 8265:127.0.0.1:8265 u@10.0.0.1"
    assert pages["MLflow"] == (
        "ssh -i /k -t -L 5000:127.0.0.1:5000 u@10.0.0.1 "
        "/v/bin/chip-ablate ui --workdir /w --port 5000"
    )


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_report_is_fetched_and_the_exit_code_is_the_studys(
    code: int,
    make_server: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_server(["done\n"], [], code=code)
    report = "/w/studies/encoder/report"

    def fetch(self: Head, source: str, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        if source == JOB.folder and code != 2:  # what is wrong in the input leaves no result
            told = {"report": [f"{report}/report.html"], "executed": 3}
            (target / "result.json").write_text(json.dumps(told))
        elif source == report:
            (target / "report.html").write_text("<p>")

    monkeypatch.setattr(Head, "fetch", fetch)
    mine = SubmittedJob(**{**JOB.as_json, "local": str(tmp_path / "got")})

    @output.json_option()  # which leaves standard output to results
    def looks_on(*, as_json: bool) -> int:
        return session.watch_job(HEAD, mine, output.print_json)

    assert looks_on(as_json=True) == code
    printed = capsys.readouterr()
    if code == 2:
        assert printed.out == ""
        assert not (tmp_path / "got").exists()
    else:
        found = json.loads(printed.out)
        assert found == {"report": [str(tmp_path / "got/report/report.html")], "executed": 3}
        assert (tmp_path / "got/report/report.html").read_text() == "<p>"
    assert printed.err.startswith("done\n")


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, None, 1),  # killed, or its machine died
        (JobStatus.STOPPED, None, 130),
    ],
)
def test_exit_codes(status: JobStatus, told: int | None, code: int) -> None:
    assert job.exit_code(SimpleNamespace(status=status, driver_exit_code=told)) == code


def test_ctrl_c_leaves_the_job_running(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "follow_job", interrupted)
    assert session.watch_job(HEAD, JOB) == 130
    assert "the job continues: chip-ablate attach encoder-1" in capsys.readouterr().err


def test_attach_finds_the_last_job_that_was_submitted_from_here(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no job was submitted from here"):
        session.find_job(None, None, tmp_path)
    cluster = tmp_path / "c.yaml"
    cluster.write_text("provider: {type: local, head_ip: 10.0.0.9, worker_ips: []}\n")
    for name in ("a-1", "b-2"):
        session.record_job(
            SubmittedJob(**{**JOB.as_json, "job": name, "cluster": str(cluster)}), tmp_path
        )
    head, found = session.find_job(None, None, tmp_path)
    assert (head.address, found.job) == ("10.0.0.9", "b-2")
    assert session.find_job("a-1", None, tmp_path)[1].job == "a-1"
    with pytest.raises(UserError, match="no job c-3"):
        session.find_job("c-3", None, tmp_path)


@pytest.mark.parametrize("study", ["../../etc", "..", "", "a/b"])
def test_a_name_from_the_cluster_does_not_leave_the_folder(
    study: str, make_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_server([], [])
    cluster = tmp_path / "c.yaml"
    cluster.write_text("provider: {type: local, head_ip: 10.0.0.9, worker_ips: []}\n")
    monkeypatch.setattr(session, "find_head", lambda file: HEAD)
    assert session.find_job(None, cluster, tmp_path)[1].local == str(
        tmp_path / "clusters/cluster/encoder"
    )
    odd = SubmittedJob(**{**JOB.as_json, "study": study})
    monkeypatch.setattr(session, "find_latest_job", lambda head: odd)
    with pytest.raises(UserError, match="is not a folder name"):
        session.find_job(None, cluster, tmp_path)


def test_a_tokens_refusal_is_told_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("Authentication failed: Forbidden\n\ndetails")

    @contextlib.contextmanager
    def tunnel(self: Head) -> Iterator[int]:
        yield 1

    monkeypatch.setattr(Head, "token", lambda self: "t")
    monkeypatch.setattr(Head, "tunnel", tunnel)
    monkeypatch.setattr(job, "JobSubmissionClient", refused)
    with pytest.raises(UserError, match="u@10.0.0.1: Authentication failed: Forbidden$"):
        job.follow_job(HEAD, "x", print, print)
    monkeypatch.setattr(
        job, "JobSubmissionClient", lambda *_, **__: (_ for _ in ()).throw(requests.Timeout())
    )
    with pytest.raises(UnreachableError, match="Ray does not run there"), job.connect(HEAD):
        pass


def test_a_recipe_of_ones_own_travels_with_the_study(tmp_path: Path) -> None:
    home, parcel = tmp_path / "home", tmp_path / "parcel"
    (home / "recipes").mkdir(parents=True)
    parcel.mkdir()
    (home / "recipes/own.yaml").write_text("model: shapes\n")
    study = home / "s.yaml"
    study.write_text("study: s\nrecipe: recipes/own.yaml\n")
    packed = bundle_submission(str(study), None, parcel)
    assert (packed.study, packed.recipe) == ("s.yaml", None)
    assert (parcel / "recipes/own.yaml").read_text() == "model: shapes\n"
    given = tmp_path / "given"
    given.mkdir()
    assert bundle_submission(str(study), str(home / "recipes/own.yaml"), given).recipe == "own.yaml"
    assert bundle_submission(str(study), "shapes", given).recipe == "shapes"
    study.write_text("study: s\nrecipe: ../own.yaml\n")
    (tmp_path / "own.yaml").write_text("model: shapes\n")
    with pytest.raises(UserError, match="is not below the study file"):
        bundle_submission(str(study), None, given)
    with pytest.raises(ConfigError, match="no such study file"):
        bundle_submission(str(home / "none.yaml"), None, given)
