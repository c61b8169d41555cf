"""README, docs and help are true: every command in them runs, every named file and finding is there."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from edge.cli import application
from edge.targets import registry
from tests import docs_commands, docs_workspace
from tests.docs_commands import PAGES, ROOT, Command
from tools import messages, reference

COMMANDS = docs_commands.everything()
# The reference clears the cache that the others share: it is the last.
RUN = sorted({c.page for c in COMMANDS if not c.reason}, key=lambda page: (page.startswith("docs/reference"), page))


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.reason != "a synopsis"], ids=lambda c: f"{c.page}:{c.line[:60]}"
)
def test_a_documented_command_line_parses(command: Command) -> None:
    """Commands, options and arguments that a page shows exist."""
    words = shlex.split(command.line)[1:]
    group = typer.main.get_command(application())
    context = group.make_context("edgekit", words[:1], resilient_parsing=True)
    while hasattr(group, "resolve_command"):
        name, group, words = group.resolve_command(context, words)
        assert group is not None, f"{command.page}: no command {name}"
        context = group.make_context(name, list(words), resilient_parsing=hasattr(group, "resolve_command"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Return one folder with small models, and the environment of commands in it: they share a cache."""
    folder = tmp_path_factory.mktemp("docs")
    docs_workspace.make(folder)
    cache = {"EDGEKIT_CACHE": str(folder / ".cache"), "EDGEKIT_CACHE_LIMIT_GB": "1", "PYTHONPATH": str(ROOT)}
    return folder, {**os.environ, **cache}


@pytest.mark.frameworks
@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run(page: str, workspace: tuple[Path, dict[str, str]]) -> None:
    """One after the other they end with the exit code that the page says, 0 where it says none."""
    folder, environment = workspace
    failed = []
    for command in (c for c in COMMANDS if c.page == page and not c.reason):
        docs_workspace.provide(folder, command.line, environment)
        words = [sys.executable, "-m", "edge", *_words(command.line, folder)]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != command.exit_code:
            failed.append(f"{command.line}\nexit code {done.returncode}\n{done.stdout[-800:]}\n{done.stderr[-1500:]}")
    assert not failed, "\n\n".join(failed)


def _words(line: str, folder: Path) -> list[str]:
    """Return the arguments of a command line; as in a shell, a word with stars becomes the files that it stands for."""
    found: list[str] = []
    for word in shlex.split(line)[1:]:
        found += sorted(str(p.relative_to(folder)) for p in folder.glob(word) if "*" in word) or [word]
    return found


def test_most_documented_commands_run() -> None:
    """Pages switch off a synopsis and what needs a package index; what else does not run needs a device or minutes."""
    run = [c for c in COMMANDS if not c.reason]
    assert len(run) >= 90
    assert len(run) > len([c for c in COMMANDS if c.reason and not c.reason.startswith("runs on ")])
    assert {c.line.split()[1] for c in COMMANDS if c.reason == "a synopsis"} == {"export"}


def test_the_reference_is_what_the_code_says() -> None:
    """Generated parts of pages are up to date: `python -m tools.reference` writes them."""
    stale = [page.name for page, (old, new) in reference.pages().items() if old != new]
    assert stale == []


def test_every_finding_is_in_the_reference() -> None:
    """Each rule in the code has its line, and the lines are of rules that exist."""
    text = (ROOT / "docs/reference-findings.md").read_text(encoding="utf-8")
    assert {t.rule for t in messages.findings()} == set(re.findall(r"^\| `([A-Z0-9_]+)`", text, re.MULTILINE))


def test_every_warning_is_in_the_troubleshooting() -> None:
    """Each rule that can be a warning or an error is explained by what one sees."""
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", text))
    known = {t.rule for t in messages.findings()}
    serious = {t.rule for t in messages.findings() if t.severity != "info" and not _of_operators(t)}
    assert serious - named == set()
    assert {n for n in named if "_" in n and not n.startswith("EDGEKIT_")} - known == set()


def _of_operators(told: messages.Told) -> bool:
    """Tell the rules of single Edge TPU operators, which say themselves what to do."""
    return told.module == "targets/edgetpu/rules.toml"


@pytest.mark.parametrize("folder", ["targets", "sources"])
def test_each_target_and_each_source_has_a_page(folder: str) -> None:
    """A page is there for each entry of the catalogue and of the registry, and for nothing else."""
    known = registry.names() if folder == "targets" else [k.kind for k in reference._own_kinds()]
    pages = {p.stem for p in (ROOT / "docs" / folder).glob("*.md")}
    assert pages == set(known)


def test_the_variables_of_the_environment_are_documented() -> None:
    """Each EDGEKIT_ variable that the code reads stands in the reference; one is between a parent and its child."""
    code = {v for _, tree in messages.sources() for v in re.findall(r"EDGEKIT_[A-Z_]+[A-Z]", ast.unparse(tree))}
    assert code - {"EDGEKIT_PROGRESS_FD"} == set(reference.VARIABLES)


@pytest.mark.skipif(shutil.which("mkdocs", path=str(Path(sys.executable).parent)) is None, reason="no mkdocs")
def test_the_site_builds(tmp_path: Path) -> None:
    """`mkdocs build --strict` passes: every link leads somewhere and every page is in the navigation."""
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site/reference-findings/index.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
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
