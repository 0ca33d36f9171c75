"""What the documents' Python imports from the packages is there."""

from __future__ import annotations

import ast
import importlib
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("chip_core", "orchestrator")


def list_imports() -> list[tuple[str, str, str]]:
    """List each import of ours in a document's Python: document, module, name."""
    found = []
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "chip_core/README.md"]:
        for block in re.findall(r"```python\n(.*?)```", document.read_text(), flags=re.DOTALL):
            for node in ast.walk(ast.parse(textwrap.dedent(block))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGES):
                    where = document.relative_to(ROOT).as_posix()
                    found += [(where, str(node.module), name.name) for name in node.names]
    return found


def test_documents_import_something() -> None:
    assert {document for document, _, _ in list_imports()} >= {
        "chip_core/README.md",
        "docs/plugins.md",
    }


@pytest.mark.parametrize("document, module, name", list_imports())
def test_what_a_document_imports_is_there(document: str, module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name), document
