"""Read a cluster file: Ray's own keys, and ours under `metadata`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chip_core.config.validation import explain_errors
from chip_core.recipes import read_yaml

#: Key of the settings. Ray ignores `metadata`.
SETTINGS_KEY = "metadata.chip_ablate"
LOCAL_PROVIDER = "local"  # the provider of existing machines


class Versions(BaseModel):
    """What is installed on the cluster's machines."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    python: str = Field(pattern=r"^\d+\.\d+(\.\d+)?$", description="3.11, or 3.11.7")
    ray: str
    chip_ablate: str = Field(alias="chip-ablate")


class Settings(BaseModel):
    """Settings that a study needs and Ray does not have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    venv: str = Field(pattern="^/", description="the virtual environment's path on every machine")
    shared: str | None = Field(
        default=None,
        pattern="^/",
        description="folder where every machine mounts the shared storage",
    )
    storage: str | None = Field(
        default=None,
        pattern="^[a-z0-9+.-]+://.+",
        description="instead of shared: a URI that every machine reaches, such as s3://BUCKET/X",
    )
    workdir: str = Field(
        pattern="^/", description="the work directory of studies; with storage, the head's own"
    )
    worker: Mapping[str, float] = Field(
        default={}, description="resources of a worker, for the provider local: CPU, GPU"
    )
    versions: Versions | None = None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem of a cluster file."""

    key: str  # dotted, with [index] for lists
    message: str  # what is wrong, and what to do

    def line(self, path: Path) -> str:
        """Return the problem as a line of text."""
        return f"{path}: {self.key}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class ClusterFile:
    """A parsed cluster file."""

    path: Path
    content: Mapping[str, Any]
    settings: Settings | None  # None: there are none, or wrong ones
    problems: tuple[Problem, ...] = ()  # of the settings

    @property
    def provider(self) -> str:
        """Return the provider's type, or an empty text."""
        return str(self.section("provider").get("type", ""))

    def section(self, key: str) -> Mapping[str, Any]:
        """Return a mapping of the file, empty if there is none."""
        value = self.content.get(key)
        return value if isinstance(value, dict) else {}

    def commands(self, key: str) -> list[str]:
        """Return a list of commands of the file, empty if there is none."""
        value = self.content.get(key)
        return [str(entry) for entry in value] if isinstance(value, list) else []


def read_cluster(path: Path) -> ClusterFile:
    """Read a cluster file.

    Raises:
        ConfigError: it cannot be read, or is not a mapping.
    """
    content = read_yaml(path)
    metadata = content.get("metadata")
    raw_settings = metadata.get("chip_ablate") if isinstance(metadata, dict) else None
    if raw_settings is None:
        message = "is missing: set venv, shared and workdir (see cluster.yaml)"
        missing = Problem(key=SETTINGS_KEY, message=message)
        return ClusterFile(path=path, content=content, settings=None, problems=(missing,))
    try:
        settings = Settings.model_validate(raw_settings)
    except ValidationError as error:
        problems = []
        for line in explain_errors(error, Settings, "", prefix=f"{SETTINGS_KEY}."):
            key, _, message = line.removeprefix(": ").partition(": ")
            problems.append(Problem(key=key, message=message))
        return ClusterFile(path=path, content=content, settings=None, problems=tuple(problems))
    return ClusterFile(path=path, content=content, settings=settings)
