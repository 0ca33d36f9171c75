"""Hold the pinned versions against the advisory service, and never take silence for a pass.

pip-audit ends with 0 where the index knows a package and no advisories, and also where it could ask
nobody: a mirror without advisories answers "not found" for all. So its report is counted here.
Exit codes: 0 all were looked up and nothing is known of them; 1 something is; 3 not all were
looked up. Exceptions stand in audit-exceptions.toml, each with its reason.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SECONDS = 300


def main() -> int:
    """Ask, and say in a line what came of it."""
    excepted = exceptions(HERE / "audit-exceptions.toml")
    command = [
        *(sys.executable, "-m", "pip_audit", "--requirement", str(HERE.parent / "constraints.txt")),
        *("--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"),
        *(word for advisory in excepted for word in ("--ignore-vuln", advisory)),
    ]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return tell(3, [f"audit: NOT DONE: the advisory service gave no answer in {SECONDS} s"])
    try:
        report = json.loads(asked.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = (asked.stderr.strip().splitlines() or ["it said nothing"])[-1][:200]
        return tell(3, [f"audit: NOT DONE: the advisory service cannot be asked ({said})"])
    return tell(*verdict(report, len(excepted)))


def exceptions(file: Path) -> list[str]:
    """Return the advisories that are let be; one without a reason is an error."""
    held: list[dict[str, str]] = tomllib.loads(file.read_text(encoding="utf-8"))["exceptions"]
    for one in held:
        if not one.get("reason", "").strip():
            raise SystemExit(f"{file.name}: {one.get('id', 'an exception')} has no reason: say it")
    return [one["id"] for one in held]


def verdict(report: Sequence[dict[str, Any]], excepted: int) -> tuple[int, list[str]]:
    """Return exit code and lines of pip-audit's report."""
    found = [
        f"audit: {one['name']} {one['version']}: {known['id']}: "
        f"mended in {', '.join(known['fix_versions']) or 'no version yet'}"
        for one in report
        for known in one.get("vulns", [])
    ]
    skipped = [one["name"] for one in report if "skip_reason" in one]
    asked = len(report) - len(skipped)
    if found:
        return 1, found
    if skipped or not report:
        named = ", ".join(skipped[:3]) + (", …" if len(skipped) > 3 else "")
        return 3, [
            f"audit: NOT DONE for {len(skipped)} of {len(report)} packages ({named}): the index "
            "that was asked has no advisories for them"
        ]
    return 0, [f"audit: nothing is known of {asked} packages; {excepted} exceptions"]


def tell(code: int, lines: Sequence[str]) -> int:
    """Print the lines; return the code."""
    print("\n".join(lines), file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
