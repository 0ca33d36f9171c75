"""Run a study on a cluster, from submission to the report on this machine."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import click

from chip_core import recipes
from chip_core.utils.errors import UserError
from chip_core.utils.files import expand_path, read_checksummed, write_checksummed
from orchestrator.cluster.check import require_valid
from orchestrator.cluster.checks.capacity import study_resource_need
from orchestrator.cluster.config import ClusterFile, read_cluster
from orchestrator.cluster.head import Head, UnreachableError, find_head
from orchestrator.cluster.job import (
    STOPPED_EXIT_CODE,
    SubmittedJob,
    exit_code,
    find_latest_job,
    find_submitted_job,
    follow_job,
    make_job_name,
    request_stop,
    submit_job,
)
from orchestrator.study.load import find_study, load_study
from orchestrator.study.model import StudyChanges

JOBS_FOLDER = "jobs"  # in the work directory: jobs submitted from here
RESULT_FILE = "result.json"  # in a job's folder: output of its command

#: Called with results as JSON data.
OnResults = Callable[[dict[str, Any]], None]


def run_on_cluster(
    file: Path,
    study: str,
    *,
    changes: StudyChanges,
    options: Sequence[str],
    max_concurrent: int | None,
    workdir: Path,
    on_results: OnResults | None = None,
) -> int:
    """Run a study on a running cluster, as `run` does here, and fetch its report.

    Args:
        file: the cluster file.
        study: a study's file or name.
        changes: changes of the study by the command line.
        options: further options for `chip-ablate run` on the cluster.
        max_concurrent: largest number of trials at once; by default as many as fit.
        workdir: work directory on this machine, for the record of the job and the report.
        on_results: called with the results as JSON data, if they could be fetched.

    Returns:
        the exit code of the study.

    Raises:
        ConfigError: the study or the cluster file is invalid, or the trials do not fit.
        UserError: the cluster cannot be reached, or refuses the job.
    """
    loaded = load_study(find_study(study), changes, is_remote=True)
    check = require_valid(file, study_resource_need(loaded))
    assert check.capacity is not None and check.file.settings is not None, "a valid file has both"
    settings, head = check.file.settings, find_head(check.file)
    name = make_job_name(loaded.name)
    job = SubmittedJob(
        job=name,
        cluster=str(file.absolute()),
        study=loaded.name,
        workdir=settings.workdir,
        folder=f"{settings.workdir}/{JOBS_FOLDER}/{name}",
        local=str(_local_folder(workdir, check.file, loaded.name)),
    )
    adds_storage = settings.storage is not None and "--storage" not in options
    storage = ["--storage", str(settings.storage)] if adds_storage else []
    concurrent_trials = max_concurrent or check.capacity.at_once
    with tempfile.TemporaryDirectory() as folder:
        bundle = bundle_submission(study, changes.recipe, Path(folder))
        arguments = [
            "run", bundle.study, *([] if bundle.recipe is None else ["--recipe", bundle.recipe]),
            *options, *storage, "--address", "auto", "--workdir", settings.workdir,
            "--max-concurrent", str(concurrent_trials),
        ]  # fmt: skip
        submit_job(head, job, venv=settings.venv, arguments=arguments, files=bundle.folder)
    record_job(job, workdir)
    _echo(f"{job.job} runs on {head.host}; it continues even if this command ends")
    for page, command in head.tunnel_commands(settings.venv, settings.workdir).items():
        _echo(f"{page}: {command}")
    return watch_job(head, job, on_results)


def watch_job(head: Head, job: SubmittedJob, on_results: OnResults | None = None) -> int:
    """Follow a job until it has ended, fetch its report and call `on_results`.

    Returns:
        the exit code of its command.

    Raises:
        Unreachable: there was no connection for long.
        UserError: the cluster has no such job.
    """
    try:
        details = follow_job(head, job.job, _write_log, _echo)
    except KeyboardInterrupt:
        _echo(f"the job continues: chip-ablate attach {job.job} follows it, and --stop stops it")
        return STOPPED_EXIT_CODE
    _echo(f"{job.job}: {str(details.status.value).lower()}")
    results = _fetch_results(head, job)
    if on_results is not None and results is not None:
        on_results(results)
    return exit_code(details)


def find_job(job: str | None, file: Path | None, workdir: Path) -> tuple[Head, SubmittedJob]:
    """Return a job and its cluster's head.

    Args:
        job: its name; None: the last one.
        file: the cluster file; None: the job was submitted from here.
        workdir: on this machine.

    Raises:
        ConfigError: the cluster file cannot be read.
        UserError: there is no such job.
    """
    if file is not None:
        cluster = read_cluster(file)
        head = find_head(cluster)
        record = find_latest_job(head) if job is None else find_submitted_job(head, job)
        return head, SubmittedJob(
            **{**record.as_json, "local": str(_local_folder(workdir, cluster, record.study))}
        )
    records = sorted((workdir / JOBS_FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime)
    matches = [path for path in records if job is None or path.stem == job]
    if not matches:
        missing = "no job" if job is None else f"no job {job}"
        raise UserError(
            f"{workdir}: {missing} was submitted from here: give its --cluster FILE, or the "
            "right --workdir"
        )
    try:
        record = SubmittedJob(**read_checksummed(matches[-1]))
    except (OSError, ValueError, TypeError):
        raise UserError(
            f"{matches[-1]}: has changed since it was written: remove it, and give the --cluster "
            "FILE"
        ) from None
    return find_head(read_cluster(Path(record.cluster))), record


def stop_job(head: Head, job: SubmittedJob) -> None:
    """Ask a job to stop.

    Raises:
        UserError: it does not run.
    """
    if not request_stop(head, job.job):
        raise UserError(f"{job.job}: has ended: chip-ablate attach {job.job} fetches its report")


def record_job(job: SubmittedJob, workdir: Path) -> None:
    """Record a job, so that `attach` finds it."""
    folder = workdir / JOBS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_checksummed(folder / f"{job.job}.json", job.as_json)


def _fetch_results(head: Head, job: SubmittedJob) -> dict[str, Any] | None:
    """Fetch report and result, and return the result with the report's paths on this machine."""
    local = Path(job.local)
    source = f"{job.workdir}/studies/{job.study}/report"
    with tempfile.TemporaryDirectory() as folder:
        head.fetch(job.folder, Path(folder))
        try:
            results = json.loads((Path(folder) / RESULT_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # the study ended without a result, for a reason in the log
    if not isinstance(results, dict):
        return None
    try:
        head.fetch(source, local / "report")
    except UnreachableError as error:
        raise UnreachableError(f"{error}: try again with chip-ablate attach {job.job}") from None
    _echo(f"report: {local / 'report' / 'report.html'}")
    if isinstance(results.get("report"), list):
        results["report"] = [
            str(path).replace(source, str(local / "report")) for path in results["report"]
        ]
    return results


def _local_folder(workdir: Path, cluster: ClusterFile, study: str) -> Path:
    """Return the folder for a study's report. The study's name may come from the cluster."""
    name = str(cluster.content.get("cluster_name", "cluster"))
    for part in (name, study):
        if part in ("", ".", "..") or "/" in part or "\0" in part:
            raise UserError(f"'{part}' is not a folder name: the report is not fetched")
    return workdir.absolute() / "clusters" / name / study


def _write_log(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _echo(text: str) -> None:
    click.echo(text, err=True)


@dataclass(frozen=True, kw_only=True)
class SubmissionBundle:
    """The files of a job, and their names in its command."""

    folder: Path
    study: str
    recipe: str | None


def bundle_submission(study: str, recipe: str | None, folder: Path) -> SubmissionBundle:
    """Copy a study's files to a folder.

    Args:
        study: a study's file or name.
        recipe: file or name of the recipe that replaces the study's.
        folder: an empty folder.

    Raises:
        UserError: a file cannot be sent.
        ConfigError: there is no such study, or no such recipe.
    """
    file = find_study(study)
    shutil.copyfile(file, folder / file.name)
    if recipe is not None:
        return SubmissionBundle(
            folder=folder, study=file.name, recipe=_bundle_recipe(recipe, folder)
        )
    recipe_name = str(recipes.read_yaml(file).get("recipe", ""))
    recipe_file = file.parent / recipe_name
    if recipe_name not in recipes.recipe_names() and recipe_file.is_file():
        relative_path = PurePosixPath(recipe_name)
        if relative_path.is_absolute() or ".." in relative_path.parts:
            raise UserError(
                f"{file}: recipe: {recipe_name} is not below the study file's folder, so it is "
                "not sent to the cluster: move it there"
            )
        target = folder / relative_path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(recipe_file, target)
    return SubmissionBundle(folder=folder, study=file.name, recipe=None)


def _bundle_recipe(recipe: str, folder: Path) -> str:
    if recipe in recipes.recipe_names():
        return recipe
    source = recipes.find_recipe(recipe)
    if (folder / expand_path(recipe).name).exists():
        raise UserError(f"--recipe: {recipe}: has the name of the study's file: rename it")
    shutil.copyfile(source, folder / source.name)
    return source.name
