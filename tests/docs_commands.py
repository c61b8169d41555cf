"""The commands that README and docs show, in the order of each page, and why some of them do not run in a test."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_REFERENCE = "docs/reference-commands.md"
_FENCE = re.compile(r"^```(\w*)")
_INDENTED = re.compile(r"^ {4}(?=edgekit )")
_SAID = re.compile(r"^<!-- (notest|exits \d+): (.+?) -->$")
# What a command line itself says of what it needs. Everything else runs, or its page says why not.
_NEEDS = {
    r"ssh://|--device \S*-ssh\b": "a board behind ssh",
    r"adb[: ]": "a phone",
    r"--device coral": "a Coral device",
    r"emulator:|emulator setup|emulator serve": "an emulated board (tests/test_devices_*.py have one)",
    r"all-of:|--device bench": "several devices",
    r"tcp://": "a Dask cluster (tests/test_farm.py starts one)",
    r"^edgekit compile |_edgetpu\.tflite": "Google's compiler, or what it made",
    r"--profile (standard|submission|sustained)|--latency standard": "minutes",
    r"^edgekit demo": "minutes (`make demo`)",
    r"diagnose .*--runtime executorch": "two minutes: each fix that is tried is lowered",
}
# What a command line needs that not every installation has.
_PACKAGES = {
    "jax_net.py": "jax",
    "resnet-folder/": "transformers",
    "--target cortex-m55": "tosa_serializer",
    "--target ethos-u55-128": "ethosu",
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command line of a page; `reason` says why it does not run, `exit_code` what it returns."""

    page: str
    line: str
    reason: str = ""
    exit_code: int = 0


def everything() -> list[Command]:
    """Return the commands of all pages; an example of the reference does not run again where another page has its like.

    Its like is the same command with the same options, whatever their values.
    """
    found = [command for page in PAGES for command in of(page)]
    run = {_kind(c.line): c.page for c in found if not c.reason and c.page != _REFERENCE}
    return [
        replace(c, reason=f"runs on {run[_kind(c.line)]}")
        if c.page == _REFERENCE and not c.reason and _kind(c.line) in run
        else c
        for c in found
    ]


def _kind(line: str) -> tuple[object, ...]:
    words = shlex.split(line)[1:]
    own = 2 if words[0] in ("cache", "emulator") else 1
    return (*words[:own], frozenset(w for w in words if w.startswith("-")))


def of(page: Path) -> list[Command]:
    """Return the commands of a page: in fences without a language or of `sh`, and in indented code.

    `<!-- notest: REASON -->` before a block keeps it from running, `<!-- exits 1: REASON -->` gives its exit code.
    """
    return [_command(page, line, said) for line, said in _lines(page.read_text(encoding="utf-8"))]


def _command(page: Path, line: str, said: tuple[str, str]) -> Command:
    kind, reason = said
    needs = next((why for pattern, why in _NEEDS.items() if re.search(pattern, line)), "")
    needs = needs or next((f"{p} is absent" for word, p in _PACKAGES.items() if word in line and not find_spec(p)), "")
    code = int(kind.split()[1]) if kind.startswith("exits") else 0
    name = page.relative_to(ROOT).as_posix()
    return Command(page=name, line=line, reason=reason if kind == "notest" else needs, exit_code=code)


def _lines(text: str) -> Iterator[tuple[str, tuple[str, str]]]:
    said, fence, shell = ("", ""), False, False
    for line in text.replace("\\\n", " ").splitlines():
        if found := _SAID.match(line):
            said = (found[1], found[2])
        elif found := _FENCE.match(line):
            fence, shell, said = not fence, found[1] in ("", "sh", "bash"), ("", "") if fence else said
        elif (fence and shell and line.startswith("edgekit ")) or (not fence and _INDENTED.match(line)):
            yield re.sub(r"\s+", " ", re.sub(r"\s+# .*", "", line)).strip(), said
            said = said if fence else ("", "")
        elif line.strip() and not fence:
            said = ("", "")
