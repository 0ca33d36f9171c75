"""Storages: a folder that all machines see, and an S3-compatible server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.storage.download import NODE_CACHE_VARIABLE
from orchestrator.storage.remote import RemoteStorage

BUCKET = "studies"


@pytest.fixture(scope="session")
def s3() -> Iterator[None]:
    """A server on loopback with a bucket; this machine's settings name it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty storage of either kind."""
    if request.param == "folder":
        return str(tmp_path / "shared")
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def remote(uri: str) -> RemoteStorage:
    """An empty storage."""
    return RemoteStorage(uri, pauses=())


@pytest.fixture
def become_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Be another machine: one that has copied nothing yet; return where it keeps what it copies."""

    def become(name: str) -> Path:
        monkeypatch.setenv(NODE_CACHE_VARIABLE, str(tmp_path / name))
        return tmp_path / name

    become("one")
    return become
