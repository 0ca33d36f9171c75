"""Print the lower bounds of pyproject.toml as constraints: `make test-lowest` installs them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def main() -> None:
    """Print `name==version` for each requirement of the package and of its tests."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name, version = re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+).*", requirement).groups()
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
