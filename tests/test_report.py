"""Reports: one HTML page that opens offline, JUnit and SARIF; nothing that a model is called gets out of its place."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import artifact, codec
from edge.artifact import Artifact, Metrics, OutputParity
from edge.cli import report as command
from edge.errors import ConfigError
from edge.findings import Finding, Outcome
from edge.report import console, html, junit, markdown, plots, sarif
from tests.test_artifact import manifest
from tests.test_verdict import with_accuracy

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = 'a</title><script>document.title="taken"</script>&"\'`$*/\u202e\x01'
LATENCY: dict[str, Any] = {
    "mode": "emulated",
    "verdict": "valid",
    "reasons": [],
    "samples": 500,
    "threads": 1,
    "kernels": "xnnpack",
    "median_ms": 1.5,
    "p90_ms": 1.9,
    "p95_ms": 1.95,
    "p99_ms": "insufficient: 400 more runs",
    "quantiles_ms": [1 + i / 100 for i in range(101)],
}
SEARCH: dict[str, Any] = {
    "metric": "top1",
    "candidates": [
        {"recipe": "int8", "drop": 0.02, "size_bytes": 9, "pareto": True, "chosen": False, "failure": None},
        {"recipe": HOSTILE, "drop": 0.001, "size_bytes": 12, "pareto": True, "chosen": True, "failure": None},
        {"recipe": "broken", "drop": 0.0, "size_bytes": 0, "pareto": False, "chosen": False, "failure": "no"},
    ],
    "layers": [{"operator": "CONV_2D", "output": HOSTILE, "weights_db": 12.5, "output_db": None}],
}


def made(folder: Path, name: str = "net") -> Artifact:
    """Return a written artifact with all that a report can show, its names hostile."""
    m = replace(
        with_accuracy(0.02, 0.03),
        name=name,
        findings=(Finding(rule="ODD", severity="warning", message=HOSTILE, op=HOSTILE, fix="Nothing."),),
        details={"search": SEARCH, "live_bytes": [100, 300, 200]},
        budgets={"max_drop": 0.01},
        verdict="fail",
        reasons=(f"top1 drops {HOSTILE}",),
    )
    parity = (OutputParity(output=HOSTILE, snr_db=31.5, cosine=0.999, max_abs=0.1),)
    m = replace(m, metrics=replace(m.metrics, latency=LATENCY, parity=parity))
    operators = [
        {"index": 0, "op": "CONV_2D", "place": "edgetpu", "reason": None},
        {"index": 1, "op": HOSTILE, "place": "cpu", "reason": HOSTILE},
    ]
    with artifact.writing(folder / name) as work:
        (work / "model.tflite").write_bytes(b"program")
        (work / "placement.json").write_text(codec.dumps({"mode": "predicted", "operators": operators}))
        artifact.write_manifest(work, m, {"model.tflite": "program", "placement.json": "placement"})
    return artifact.read(folder / name)


class _Page(HTMLParser):
    """Counts elements and keeps the figures' captions; raises on an element that closes what is not open."""

    void = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    """Every element is closed, nothing is fetched or run, and names of the model stay text."""
    text = html.render([made(tmp_path, "one"), made(tmp_path, "two")])
    page = _Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert not {name for name, _ in page.attributes} & {"src", "href", "onload", "onclick", "style"}
    assert page.tags.count("figure") == 2 * 7
    assert "&lt;script&gt;" in text


def test_every_plot_has_a_title_its_numbers_and_its_mode(tmp_path: Path) -> None:
    """Each figure is an image with a title for screen readers, a table of its numbers, and says its mode."""
    text = html.render([made(tmp_path)])
    for figure in re.findall(r"<figure>.*?</figure>", text, re.DOTALL):
        name = re.search(r'role="img" aria-labelledby="([^"]+)"', figure)
        assert name
        assert f'<title id="{name[1]}">' in figure
        assert "<summary>Numbers</summary><table>" in figure
        assert re.search(r"<small>.*(measured|emulated|predicted)", figure)


def test_the_page_is_the_same_each_time(tmp_path: Path) -> None:
    """The same artifact gives the same bytes."""
    one = made(tmp_path)
    assert html.render([one]) == html.render([one])


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_shows_the_page_without_running_anything(tmp_path: Path) -> None:
    """Chromium keeps the title, lays out all plots within the page, and prints it."""
    page = tmp_path / "report.html"
    page.write_text(html.render([made(tmp_path)]), encoding="utf-8")
    base = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    dumped = subprocess.run(
        [*base, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert "<title>edgekit report: net</title>" in dumped
    assert dumped.count("<svg") == 7
    pdf = tmp_path / "report.pdf"
    subprocess.run([*base, f"--print-to-pdf={pdf}", page.as_uri()], capture_output=True, timeout=120, check=True)
    assert pdf.read_bytes().startswith(b"%PDF")


@given(
    st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(0, 1e9)), min_size=2, max_size=30),
    st.text(max_size=60),
)
def test_plots_stay_within_their_frame(points: list[tuple[float, float]], title: str) -> None:
    """Whatever the numbers, no coordinate of a line leaves the drawing, and the SVG is well formed."""
    svg = plots.line(_printable(title), sorted(points), ("x", "y"))
    root = ET.fromstring(svg)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", next(e.attrib["d"] for e in root if e.get("class") == "line")):
        assert -1 <= float(x) <= width + 1
        assert -1 <= float(y) <= height + 1


def _printable(text: str) -> str:
    return "".join(ch for ch in text if ch.isprintable())


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_within_the_axis(low: float, span: float) -> None:
    """Between 2 and 15 ticks lie in an axis, at multiples of 1, 2 or 5 times a power of ten."""
    axis = plots.Axis(low=low, high=low + span, start=0, end=100)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 15
    slack = 1e-6 * (abs(low) + span)
    assert all(low - slack <= t <= low + span + slack for t in ticks)


OUTCOMES = (
    Outcome(check="max_drop", state="fail", message=HOSTILE),
    Outcome(check="max_latency", state="open", message="not measured"),
    Outcome(check="max_size", state="pass", message="within"),
)


def test_junit_counts_failures_and_what_is_open(tmp_path: Path) -> None:
    """A broken budget is a failure, an open question skipped; the XML is well formed whatever a name holds."""
    root = ET.fromstring(junit.render({HOSTILE: (made(tmp_path), OUTCOMES)}))
    (suite,) = root
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["skipped"]) == ("3", "1", "1")
    assert [c.attrib["name"] for c in suite] == ["max_drop", "max_latency", "max_size"]
    assert suite[0][0].tag == "failure"
    assert suite[1][0].tag == "skipped"


@given(st.text())
def test_junit_holds_any_text(text: str) -> None:
    """Any text, surrogates and control characters too, gives XML that parses."""
    outcomes = (Outcome(check=text, state="fail", message=text),)
    ET.fromstring(junit.render({text: (Artifact(path=Path(), manifest=manifest()), outcomes)}))


def test_sarif_has_findings_and_broken_budgets(tmp_path: Path) -> None:
    """Each finding is a result of its level, each broken budget an error, and every result's rule is described."""
    log = json.loads(sarif.render({"net": (made(tmp_path), OUTCOMES)}))
    (run,) = log["runs"]
    results = {r["ruleId"]: r for r in run["results"]}
    assert results["ODD"]["level"] == "warning"
    assert results["BUDGET_MAX_DROP"]["level"] == "error"
    assert set(results) == {r["id"] for r in run["tool"]["driver"]["rules"]}
    assert all(r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "net.keras" for r in run["results"])
    assert log["version"] == "2.1.0"


def test_long_names_are_shortened_for_people_only(tmp_path: Path) -> None:
    """A name of hundreds of characters is cut in the middle in text and on the page, and whole in JSON."""
    name = "model/" + "block/" * 50 + "Relu;end"
    found = Finding(rule="RANGES_GROW", severity="warning", op=name, message=f"most: {name!r}, by 30%", fix="Look.")
    one = made(tmp_path)
    one = replace(one, manifest=replace(one.manifest, findings=(found,)))
    short = "model/block/block/block/block…block/block/block/Relu;end"
    assert found.text.startswith("most: 'model/block/")
    assert found.text.endswith("/Relu;end] Fix: Look.")
    assert len(found.text) < 180
    forms = {form: command.rendered([one], [form])[0] for form in ("html", "markdown", "json")}
    assert [name in text for text in forms.values()] == [False, False, True]
    assert Finding(rule="X", severity="info", op=short, message="m").text == f"m [{short}]"


def test_the_ending_chooses_the_form(tmp_path: Path) -> None:
    """All five forms are written by their endings; another ending is refused before anything is written."""
    one = made(tmp_path)
    paths = [tmp_path / "out" / f"r{ending}" for ending in command.FORMS]
    command.save([one], paths)
    starts = {p.suffix: p.read_text(encoding="utf-8")[:9] for p in paths}
    assert starts[".html"] == "<!doctype"
    assert starts[".md"].startswith("# net")
    assert starts[".xml"].startswith("<?xml")
    assert json.loads(paths[2].read_text())["artifact"] == str(one.path)
    assert json.loads(paths[4].read_text())["version"] == "2.1.0"
    with pytest.raises(ConfigError, match=r"\.html \(html\)"):
        command.save([one], [tmp_path / "new.html", tmp_path / "r.doc"])
    assert not (tmp_path / "new.html").exists()


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    """`edgekit report` prints Markdown, writes the form of the ending, and refuses what is no artifact."""
    one, two = made(tmp_path, "one"), made(tmp_path, "two")
    printed = edgekit("report", str(one.path), str(two.path))
    assert printed.returncode == 0
    assert printed.stdout.startswith("| artifact |")
    written = edgekit("report", str(one.path), "-o", str(tmp_path / "r.html"))
    assert written.returncode == 0
    assert (tmp_path / "r.html").is_file()
    refused = edgekit("report", str(tmp_path), "-o", str(tmp_path / "none.html"))
    assert refused.returncode == 4
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "none.html").exists()


def edgekit(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    code = [sys.executable, "-c", "from edge.cli import main; main()"]
    return subprocess.run([*code, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_the_search_is_a_table_with_its_cost_and_modes(tmp_path: Path) -> None:
    """Console and Markdown list each candidate: accuracy, drop, predicted and emulated time, size, Pareto front."""
    candidate: dict[str, Any] = {"drop": 0.02, "drop_low": 0.01, "drop_high": 0.03, "value": 0.93, "failure": None}
    timed = {"size_bytes": 9000, "host_ms": 2.0, "latency_ms": 4.5, "latency_how": "threads_4"}
    search = {
        "metric": "top1",
        "float": 0.95,
        "selection_samples": 500,
        "forward_passes": 2.6,
        "runs": 1300,
        "candidates": [
            {"recipe": "int8", **candidate, **timed, "pareto": True, "chosen": True},
            {"recipe": "int8x16", **candidate, **timed, "latency_ms": None, "pareto": False, "chosen": False},
            {"recipe": "broken", "drop": 0.0, "size_bytes": 0, "pareto": False, "chosen": False, "failure": "no"},
        ],
    }
    built = made(tmp_path)
    built = replace(built, manifest=replace(built.manifest, details={"search": search}))
    text, out = markdown.render(built.manifest), io.StringIO()
    console.show(built, out)
    cost = "search: 3 candidates, 2.6 forward passes over 500 samples that choose (1300 runs), top1 of float 95.00 %"
    row = ["int8", "93.00 %", "+2.00 [+1.00, +3.00]", "4.5 ms", "2 ms", "9.0 kB", "chosen, Pareto"]
    assert cost in text
    assert cost in " ".join(out.getvalue().split())
    assert f"| {' | '.join(row)} |" in text
    assert "latency on the board, 4 threads (predicted)" in text
    assert "| int8x16 | 93.00 % | +2.00 [+1.00, +3.00] | - | 2 ms |" in text
    assert "- broken: no" in text
    assert all(cell in out.getvalue() for cell in row)


def test_an_artifact_without_numbers_still_has_a_page(tmp_path: Path) -> None:
    """No plot is invented for what was not measured."""
    with artifact.writing(tmp_path / "bare") as work:
        (work / "model.tflite").write_bytes(b"program")
        artifact.write_manifest(work, replace(manifest(), metrics=Metrics()), {"model.tflite": "program"})
    text = html.render([artifact.read(tmp_path / "bare")])
    assert "<figure>" not in text
    assert "not checked" in text


def test_what_ran_is_named_where_no_kernels_did() -> None:
    """A stand-in is called what it is, and what it gives is emulated on every machine."""
    record = {"metric": "top1", "float": 1.0, "carrier": 1.0, "quantized": 1.0, "drop": 0.0, "drop_low": None}
    record |= {"drop_high": None, "samples": 9}
    graph = artifact.accuracy_of({**record, "kernels": "emulated"}, "measured")
    real = artifact.accuracy_of({**record, "kernels": "xnnpack"}, "measured")
    assert (graph.mode, artifact.what_ran(graph.kernels)) == ("emulated", "exported graph in torch")
    assert (real.mode, artifact.what_ran(real.kernels)) == ("measured", "xnnpack kernels")
