"""README, docs and help are true: every command line in them parses, every named file and finding is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from edge.cli import application

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def command_lines() -> list[tuple[str, str]]:
    """Return (page, line) of each `edgekit …` line in a fenced block."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            joined = block.replace("\\\n", " ")
            found += [(page.name, line.strip()) for line in joined.splitlines() if line.strip().startswith("edgekit ")]
    return found


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_a_documented_command_line_parses(page: str, line: str) -> None:
    """Commands, options and arguments that a page shows exist."""
    words = shlex.split(line, comments=True)[1:]
    group = typer.main.get_command(application())
    context = group.make_context("edgekit", words[:1], resilient_parsing=True)
    name, command, _ = group.resolve_command(context, words)  # type: ignore[attr-defined]
    assert command is not None, f"{page}: no command {words[0]}"
    command.make_context(name, words[1:])


def test_the_documents_show_commands() -> None:
    """The check above has something to check: at least ten lines."""
    assert len(command_lines()) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page: Path) -> None:
    """A relative link leads to a file of the project."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_named_findings_exist() -> None:
    """A finding's rule that a page names is one that the code can raise."""
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("edge", "targets", "calibration")
        for path in (ROOT / folder).rglob("*.py")
    )
    for page in PAGES:
        for rule in re.findall(r"finding `([A-Z][A-Z0-9_]+)`", page.read_text(encoding="utf-8")):
            assert f'"{rule}"' in code, f"{page.name}: {rule}"


def test_every_test_states_its_fact() -> None:
    """Every test function has a docstring."""
    without = []
    for path in (ROOT / "tests").glob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"^def (test_\w+)\(.*?\) -> None:\n(\s*)(.*)", text, re.MULTILINE | re.DOTALL):
            body = text[match.end(2) : match.end(2) + 3]
            if body != '"""':
                without.append(f"{path.name}::{match[1]}")
    assert without == []
