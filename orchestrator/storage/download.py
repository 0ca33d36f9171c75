"""Download job outputs from a storage to this machine.

The work directory has the ledger and all files of every attempt except weights, so that the report,
MLflow and `show` work as usual. Weights are only in the storage.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from chip_core.config.identity import fingerprint
from chip_core.results import CHECKPOINTS, CONFIG, MODEL, TRAINED
from chip_core.trained import model_problem
from chip_core.utils.errors import UserError
from orchestrator.storage.binding import storage_of
from orchestrator.storage.remote import Remote

#: Variable with the folder for copies from storages; by default it is in the user's cache.
NODE_CACHE = "CHIP_ABLATE_NODE_CACHE"

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")

#: Called for each copied file of a folder with its number and the number of files.
OnFile = Callable[[int, int], None]


def node_folder(remote: Remote) -> Path:
    """Return the folder of this machine's copies from a storage."""
    named = os.environ.get(NODE_CACHE)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    above = Path(named or f"{home}/chip-ablate/storage").expanduser().absolute()
    return above / fingerprint({"storage": remote.uri})[:16]


def artifacts_of(workdir: Path) -> str:
    """Return the artifact URI of runs in the work directory's MLflow database.

    It is in the storage if that is a folder or S3, for which MLflow uses the same package.
    """
    remote = storage_of(workdir)
    if remote is not None and remote.uri.startswith("s3://"):
        return f"{remote.uri}/artifacts"
    inside = remote is None or "://" in remote.uri
    above = workdir.resolve() if remote is None or inside else Path(remote.uri)
    return (above / "artifacts").as_uri()


def trial_key(mark: str) -> str:
    """Return the key of the folder of a trial's attempts, given its fingerprint."""
    return f"trials/{mark[:16]}"


def fetch_trials(remote: Remote, workdir: Path, fingerprints: Iterable[str]) -> None:
    """Copy the existing files of trials into the work directory, except weights.

    Raises:
        StorageError: it cannot be read.
    """
    wanted = {trial_key(mark) for mark in fingerprints}
    of_trial: dict[str, dict[str, int]] = {key: {} for key in wanted}
    for key, size in remote.sizes("trials").items():
        trial = "/".join(key.split("/")[:2])
        if trial in of_trial:
            of_trial[trial][key] = size
    for trial, sizes in of_trial.items():
        _fetch(remote, workdir, trial, sizes)


def fetch_folder(
    remote: Remote,
    root: Path,
    key: str,
    *,
    weights: bool = False,
    on_file: OnFile = lambda done, total: None,
) -> None:
    """Copy the files of a folder to below `root`, with or without weights.

    Raises:
        StorageError: it cannot be read.
    """
    _fetch(remote, root, key, remote.sizes(key), weights=weights, on_file=on_file)


def whole_attempt(workdir: Path, folder: str) -> Path:
    """Return the folder of an attempt that trained a model, with the weights, on this machine.

    Args:
        workdir: the work directory.
        folder: folder of the attempt, relative to the work directory.

    Raises:
        UserError: the storage no longer has the model.
        StorageError: it cannot be read.
    """
    remote = storage_of(workdir)
    if remote is None:
        return workdir / folder
    root = node_folder(remote) / "models"
    try:
        for name in (CONFIG, TRAINED):
            remote.get(f"{folder}/{name}", root / folder / name)
    except FileNotFoundError:
        raise UserError(
            f"{remote.uri}/{folder}: no trained model is there any more: run its study again"
        ) from None
    fetch_folder(remote, root, f"{folder}/{MODEL}", weights=True)
    if model_problem(root / folder / MODEL) is not None:  # this machine's copy, or the storage's
        shutil.rmtree(root / folder / MODEL)
        fetch_folder(remote, root, f"{folder}/{MODEL}", weights=True)
    return root / folder


def _fetch(
    remote: Remote,
    root: Path,
    folder: str,
    sizes: dict[str, int],
    *,
    weights: bool = False,
    on_file: OnFile = lambda done, total: None,
) -> None:
    wanted = {key: size for key, size in sizes.items() if weights or not key.endswith(_WEIGHTS)}
    for done, (key, size) in enumerate(wanted.items(), start=1):
        path = root / key
        try:
            if not path.is_file() or path.stat().st_size != size:
                remote.get(key, path)
        except FileNotFoundError:
            continue  # removed meanwhile, such as an old checkpoint
        on_file(done, len(wanted))
    _drop_what_went(root / folder, root, sizes)


def _drop_what_went(folder: Path, root: Path, sizes: dict[str, int]) -> None:
    """Remove models and checkpoints of an attempt that the storage no longer has."""
    there = {key.rpartition("/")[0] for key in sizes}
    for name in (MODEL, CHECKPOINTS):
        for path in folder.glob(f"**/{name}"):
            key = path.relative_to(root).as_posix()
            if not any(each == key or each.startswith(f"{key}/") for each in there):
                shutil.rmtree(path)
