"""Which storage a work directory has, and what of it lies in the work directory too.

The work directory keeps the ledger, and of every attempt all but its weights: so whoever reads it
(the report, MLflow, `show`) finds what there always is. Weights lie in the storage alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from chip_core.errors import UserError
from chip_core.files import read_json, write_json
from chip_core.identity import fingerprint
from chip_core.results import CHECKPOINTS, MODEL, TRAINED
from orchestrator.storage.remote import Remote, checked_uri

#: In a work directory: which storage it has, where that is not itself.
FILE = "storage.json"

#: Where machines keep what they copied from storages; the default lies in the user's cache.
NODE_CACHE = "CHIP_ABLATE_NODE_CACHE"

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth"}


def storage_of(workdir: Path) -> Remote | None:
    """Return a work directory's storage; None where it is the work directory itself.

    Raises:
        UserError: the file that names it cannot be read.
    """
    path = workdir / FILE
    if not path.exists():
        return None
    try:
        return Remote(str(read_json(path)["storage"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}): name the storage in it again, as "
            '{"storage": "URI"}'
        ) from None


def settle_storage(workdir: Path, wish: str | None) -> Remote | None:
    """Return a work directory's storage after a run was given `--storage`, or not.

    Raises:
        UserError: it has another one, or the one that is wished cannot be used.
    """
    known = storage_of(workdir)
    if wish is None:
        if known is not None:
            known.require()
        return known
    uri = checked_uri(wish)
    if known is not None and known.uri != uri:
        raise UserError(
            f"--storage: {workdir} keeps its trials in {known.uri}: leave --storage out, or give "
            "the study another --workdir"
        )
    if known is None and (workdir / "trials").exists():
        raise UserError(
            f"--storage: the trials of {workdir} lie in it: leave --storage out, or give the study "
            "another --workdir"
        )
    remote = Remote(uri)
    remote.require()
    if known is None:
        write_json(workdir / FILE, {"storage": uri})
    return remote


def node_folder(remote: Remote) -> Path:
    """Return where this machine keeps what it copied from a storage."""
    named = os.environ.get(NODE_CACHE)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    above = Path(named or f"{home}/chip-ablate/storage").expanduser().absolute()
    return above / fingerprint({"storage": remote.uri})[:16]


def artifacts_of(workdir: Path) -> str:
    """Return the URI of MLflow's artifacts, where runs are kept in the work directory's database.

    That is the storage where it is a folder or S3, whose client MLflow has by the same package.
    """
    remote = storage_of(workdir)
    if remote is not None and remote.uri.startswith("s3://"):
        return f"{remote.uri}/artifacts"
    inside = remote is None or "://" in remote.uri
    above = workdir.resolve() if remote is None or inside else Path(remote.uri)
    return (above / "artifacts").as_uri()


def trial_key(mark: str) -> str:
    """Return the key of the folder of a trial's attempts, by its fingerprint."""
    return f"trials/{mark[:16]}"


def fetch_trials(remote: Remote, workdir: Path, marks: Iterable[str]) -> None:
    """Bring what there is of trials into the work directory, but for weights.

    Raises:
        StorageError: it cannot be read.
    """
    wanted = {trial_key(mark) for mark in marks}
    of_trial: dict[str, dict[str, int]] = {key: {} for key in wanted}
    for key, size in remote.sizes("trials").items():
        trial = "/".join(key.split("/")[:2])
        if trial in of_trial:
            of_trial[trial][key] = size
    for trial, sizes in of_trial.items():
        _fetch(remote, workdir, trial, sizes)


def fetch_folder(remote: Remote, root: Path, key: str, *, weights: bool = False) -> None:
    """Bring what there is of a folder below `root`; without `weights`, all but those.

    Raises:
        StorageError: it cannot be read.
    """
    _fetch(remote, root, key, remote.sizes(key), weights=weights)


def whole_model(workdir: Path, folder: str) -> Path:
    """Return a trained model's folder with its weights, on this machine.

    Args:
        workdir: the work directory.
        folder: the attempt's that trained it, below the work directory.

    Raises:
        StorageError: it cannot be read.
    """
    remote = storage_of(workdir)
    if remote is None:
        return workdir / folder / MODEL
    root = node_folder(remote) / "models"
    _fetch(remote, root, folder, {key: size for key, size in remote.sizes(folder).items()
                                  if key == f"{folder}/{TRAINED}"})  # fmt: skip
    fetch_folder(remote, root, f"{folder}/{MODEL}", weights=True)
    return root / folder / MODEL


def _fetch(
    remote: Remote, root: Path, folder: str, sizes: dict[str, int], *, weights: bool = False
) -> None:
    for key, size in sizes.items():
        path = root / key
        if not weights and path.suffix in _WEIGHTS:
            continue
        try:
            if not path.is_file() or path.stat().st_size != size:
                remote.get(key, path)
        except FileNotFoundError:
            continue  # it went meanwhile: an old checkpoint
    _drop_what_went(root / folder, root, sizes)


def _drop_what_went(folder: Path, root: Path, sizes: dict[str, int]) -> None:
    """Remove models and checkpoints of an attempt that the storage has no more."""
    there = {key.rpartition("/")[0] for key in sizes}
    for name in (MODEL, CHECKPOINTS):
        for path in folder.glob(f"**/{name}"):
            key = path.relative_to(root).as_posix()
            if not any(each == key or each.startswith(f"{key}/") for each in there):
                shutil.rmtree(path)
