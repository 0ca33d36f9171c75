"""Judges' replies of several machines: none takes another's away."""

from __future__ import annotations

from pathlib import Path

from chip_core.evaluation.judge import ReplyCache
from chip_core.evaluation.judge.cache import Reply
from orchestrator.storage.judge_replies import JUDGE_KEY, JudgeReplies
from orchestrator.storage.remote import RemoteStorage


def make_reply(text: str) -> Reply:
    return Reply(text=text, returned="judge-1", tokens=7)


def test_each_machine_has_what_all_were_told(remote: RemoteStorage, tmp_path: Path) -> None:
    machines = [JudgeReplies(remote, tmp_path / name) for name in ("one", "other")]
    for number, each in enumerate(machines):
        each.pull()
        ReplyCache(each.folder).put(f"key{number}", "judge", "item", make_reply(f"said {number}"))
    for each in machines:
        each.push(True)
    assert len(remote.sizes(JUDGE_KEY)) == 2
    for each in machines:
        each.pull()
        cache = ReplyCache(each.folder)
        assert [cache.get(f"key{number}") for number in (0, 1)] == [
            make_reply("said 0"),
            make_reply("said 1"),
        ]
        assert cache.get_usage("judge") == (2, 14)  # each counted once
    third = JudgeReplies(remote, tmp_path / "third")
    third.pull()
    assert ReplyCache(third.folder).get_usage("judge") == (2, 14)


def test_a_file_that_grows_is_not_copied_at_every_look(
    remote: RemoteStorage, tmp_path: Path
) -> None:
    replies = JudgeReplies(remote, tmp_path)
    replies.pull()
    ReplyCache(replies.folder).put("key", "judge", "item", make_reply("said"))
    replies.push(False)
    assert remote.sizes(JUDGE_KEY) == {}  # less than half a minute ago
    replies.push(True)
    assert len(remote.sizes(JUDGE_KEY)) == 1


def test_a_record_that_was_cut_off_is_left_out(remote: RemoteStorage, tmp_path: Path) -> None:
    remote.write(f"{JUDGE_KEY}/someone.jsonl", b'{"key": "a"}\n{"key": "b')
    replies = JudgeReplies(remote, tmp_path)
    replies.pull()
    assert (replies.folder / "replies.jsonl").read_bytes() == b'{"key": "a"}\n'
