"""cache: list, verify and prune reference caches."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.commands.common.options import make_workdir_option
from orchestrator.commands.common.output import json_option, print_json, print_lines
from orchestrator.commands.common.param_types import FloatType


@click.command(epilog="Example: chip-ablate cache --prune --older-than 30")
@make_workdir_option("Its reference passes.")
@click.option("--check", "checks", is_flag=True, help="Hash every file; exit code 1 if one broke.")
@click.option(
    "--prune",
    "prunes",
    is_flag=True,
    help="Remove caches that no trial of a study waits for, and broken ones; asks first.",
)
@click.option(
    "--older-than",
    type=FloatType(),
    metavar="DAYS",
    help="With --prune: also those not used for this many days.",
)
@click.option("--yes", is_flag=True, help="With --prune: do not ask.")
@json_option()
def cache(
    workdir: Path,
    checks: bool,
    prunes: bool,
    older_than: float | None,
    yes: bool,
    as_json: bool,
) -> int:
    """List the stored reference passes: name, size, last use, and studies that use them."""
    from rich.console import Console

    from chip_core.reference_cache.size import format_bytes
    from orchestrator.state.cache import (
        cache_json,
        cache_lines,
        list_caches,
        prunable_caches,
        prune_caches,
        verify_caches,
    )
    from orchestrator.state.ledger import Ledger

    if (older_than is not None or yes) and not prunes:
        raise click.UsageError("--older-than and --yes need --prune")
    entries = list_caches(workdir, Ledger(workdir))
    if checks:
        verify_caches(entries, Console(stderr=True), workdir)
    console = Console(stderr=as_json)
    print_lines(cache_lines(entries, workdir), console)
    pruned = prunable_caches(entries, older_than) if prunes else []
    if pruned:
        size = format_bytes(sum(entry.bytes for entry in pruned))
        names = ", ".join(entry.folder.name[:8] for entry in pruned)
        if not yes and not click.confirm(f"remove {names} ({size})?", err=as_json):
            pruned = []
        freed_bytes = prune_caches(pruned, workdir)
        console.print(f"removed {len(pruned)}, {format_bytes(freed_bytes)} freed", highlight=False)
    elif prunes:
        console.print("nothing to remove")
    if as_json:
        removed = [entry.folder.name for entry in pruned]
        print_json({"stores": cache_json(entries), "removed": removed})
    return 1 if checks and any(entry.state == "broken" for entry in entries) else 0
