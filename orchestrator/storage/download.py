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
from chip_core.trained import find_model_problem
from chip_core.utils.errors import UserError
from orchestrator.storage.binding import find_storage
from orchestrator.storage.remote import RemoteStorage

#: Variable with the folder for copies from storages; by default it is in the user's cache.
NODE_CACHE_VARIABLE = "CHIP_ABLATE_NODE_CACHE"

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")

#: Called for each copied file of a folder with its number and the number of files.
FileCallback = Callable[[int, int], None]


def node_cache_folder(remote: RemoteStorage) -> Path:
    """Return the folder of this machine's copies from a storage."""
    configured = os.environ.get(NODE_CACHE_VARIABLE)
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    parent = Path(configured or f"{cache_home}/chip-ablate/storage").expanduser().absolute()
    return parent / fingerprint({"storage": remote.uri})[:16]


def artifact_uri(workdir: Path) -> str:
    """Return the artifact URI of runs in the work directory's MLflow database.

    It is in the storage if that is a folder or S3, for which MLflow uses the same package.
    """
    remote = find_storage(workdir)
    if remote is not None and remote.uri.startswith("s3://"):
        return f"{remote.uri}/artifacts"
    in_workdir = remote is None or "://" in remote.uri
    parent = workdir.resolve() if remote is None or in_workdir else Path(remote.uri)
    return (parent / "artifacts").as_uri()


def fetch_trials(remote: RemoteStorage, workdir: Path, trial_keys: Iterable[str]) -> None:
    """Copy the existing files of trials, given by `trial_key`, into the work directory.

    Weights are not copied.

    Raises:
        StorageError: it cannot be read.
    """
    sizes_by_trial: dict[str, dict[str, int]] = {key: {} for key in trial_keys}
    for key, size in remote.sizes("trials").items():
        key_prefix = "/".join(key.split("/")[:2])
        if key_prefix in sizes_by_trial:
            sizes_by_trial[key_prefix][key] = size
    for key_prefix, sizes in sizes_by_trial.items():
        _fetch_files(remote, workdir, key_prefix, sizes)


def fetch_folder(
    remote: RemoteStorage,
    root: Path,
    key: str,
    *,
    weights: bool = False,
    on_file: FileCallback = lambda done, total: None,
) -> None:
    """Copy the files of a folder to below `root`, with or without weights.

    Raises:
        StorageError: it cannot be read.
    """
    _fetch_files(remote, root, key, remote.sizes(key), weights=weights, on_file=on_file)


def fetch_trained_attempt(workdir: Path, folder: str) -> Path:
    """Return the folder of an attempt that trained a model, with the weights, on this machine.

    Args:
        workdir: the work directory.
        folder: folder of the attempt, relative to the work directory.

    Raises:
        UserError: the storage no longer has the model.
        StorageError: it cannot be read.
    """
    remote = find_storage(workdir)
    if remote is None:
        return workdir / folder
    root = node_cache_folder(remote) / "models"
    try:
        for name in (CONFIG, TRAINED):
            remote.get(f"{folder}/{name}", root / folder / name)
    except FileNotFoundError:
        raise UserError(
            f"{remote.uri}/{folder}: the trained model is gone: run its study again"
        ) from None
    fetch_folder(remote, root, f"{folder}/{MODEL}", weights=True)
    # The problem may be in this machine's copy or in the storage.
    if find_model_problem(root / folder / MODEL) is not None:
        shutil.rmtree(root / folder / MODEL)
        fetch_folder(remote, root, f"{folder}/{MODEL}", weights=True)
    return root / folder


def _fetch_files(
    remote: RemoteStorage,
    root: Path,
    folder: str,
    sizes: dict[str, int],
    *,
    weights: bool = False,
    on_file: FileCallback = lambda done, total: None,
) -> None:
    selected_sizes = {
        key: size for key, size in sizes.items() if weights or not key.endswith(_WEIGHT_SUFFIXES)
    }
    for done, (key, size) in enumerate(selected_sizes.items(), start=1):
        path = root / key
        try:
            if not path.is_file() or path.stat().st_size != size:
                remote.get(key, path)
        except FileNotFoundError:
            continue  # removed meanwhile, such as an old checkpoint
        on_file(done, len(selected_sizes))
    _remove_stale_copies(root / folder, root, sizes)


def _remove_stale_copies(folder: Path, root: Path, sizes: dict[str, int]) -> None:
    """Remove models and checkpoints of an attempt that the storage no longer has."""
    remote_folders = {key.rpartition("/")[0] for key in sizes}
    for name in (MODEL, CHECKPOINTS):
        for path in folder.glob(f"**/{name}"):
            key = path.relative_to(root).as_posix()
            if not any(
                folder_key == key or folder_key.startswith(f"{key}/")
                for folder_key in remote_folders
            ):
                shutil.rmtree(path)
