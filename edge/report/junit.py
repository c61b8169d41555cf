"""Artifacts as JUnit XML, which every CI system shows: one suite per artifact, one case per question to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree as ET

from edge.artifact import Artifact
from edge.findings import Outcome


def render(judged: Mapping[str, tuple[Artifact, Sequence[Outcome]]]) -> str:
    """Return the XML of artifacts with their outcomes, by the name of the suite.

    A broken budget and an error are failures; a question that the numbers at hand do not answer is skipped, with the
    reason.
    """
    root = ET.Element("testsuites", name="edgekit")
    for name, (artifact, outcomes) in judged.items():
        counts = {state: sum(o.state == state for o in outcomes) for state in ("fail", "open")}
        suite = ET.SubElement(
            root,
            "testsuite",
            name=_text(name),
            tests=str(len(outcomes)),
            failures=str(counts["fail"]),
            errors="0",
            skipped=str(counts["open"]),
            timestamp=artifact.manifest.created.removesuffix("Z"),
        )
        for outcome in outcomes:
            _case(suite, name, outcome)
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text.decode() + "\n"


def _case(suite: ET.Element, name: str, outcome: Outcome) -> None:
    case = ET.SubElement(suite, "testcase", classname=_text(name), name=_text(outcome.check), time="0")
    if outcome.state == "fail":
        failure = ET.SubElement(case, "failure", message=_text(outcome.message), type="budget")
        failure.text = _text(outcome.message)
    elif outcome.state == "open":
        ET.SubElement(case, "skipped", message=_text(outcome.message))
    elif outcome.message:
        ET.SubElement(case, "system-out").text = _text(outcome.message)


def _text(text: str) -> str:
    """Return a text without the characters that XML 1.0 cannot hold, however a model's tensors are named."""
    return "".join(ch if ch in "\t\n\r" or 0x20 <= ord(ch) <= 0xD7FF or 0xE000 <= ord(ch) <= 0xFFFD or ord(ch) > 0xFFFF
                   else "\N{REPLACEMENT CHARACTER}" for ch in text)  # fmt: skip
