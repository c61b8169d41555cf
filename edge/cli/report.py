"""`edgekit report`: artifacts as HTML, Markdown, JSON, JUnit or SARIF; and the `--report` option of other commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.cli import options
from edge.cli.talk import Talk

if TYPE_CHECKING:
    from edge.artifact import Artifact
    from edge.findings import Outcome

    Judged = Mapping[str, tuple[Artifact, Sequence[Outcome]]]

# The form of a report by the ending of its file.
FORMS = {".html": "html", ".md": "markdown", ".json": "json", ".xml": "junit", ".sarif": "sarif"}

_EXAMPLES = """Examples:

  edgekit report edgekit-build/net-coral -o report.html

  edgekit report edgekit-build/net-rpi5 edgekit-build/net-rpi5-executorch --format markdown

  edgekit report edgekit-build/* -o results.xml      (JUnit; .sarif for code hosts)
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report", epilog=_EXAMPLES)(report)


def report(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifact folders.", metavar="ARTIFACT...")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File; its ending chooses the form. Default: print it.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="html, markdown (default), json, junit or sarif.")
    ] = None,
    json_: options.Json = False,
) -> int:
    """Show any number of artifacts in one report: a page with plots, Markdown, or what CI systems read."""
    from edge import artifact

    opened = [artifact.read(path) for path in artifacts]
    if output is None:
        wanted = _known("json" if json_ else form or "markdown")
        sys.stdout.write(rendered(opened, [wanted])[0])
        return 0
    save(opened, [output], form)
    return 0


def save(artifacts: Sequence[Artifact], paths: Sequence[Path], form: str | None = None) -> None:
    """Write the reports, each in the form of its ending. Raises ConfigError, OutputError."""
    from edge import codec
    from edge.artifact import translating_os_errors

    forms = {path: form_of(path, form) for path in paths}
    texts = rendered(artifacts, list(forms.values()))
    for path, text in zip(forms, texts, strict=True):
        with translating_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            codec.write_atomically(path, text)


def rendered(artifacts: Sequence[Artifact], forms: Sequence[str]) -> list[str]:
    """Return a report of the artifacts in each form. Raises ArtifactError for manifests with strange content."""
    from edge.artifact import interprets

    def render(artifacts: Sequence[Artifact]) -> list[str]:
        found = judged(artifacts)
        return [_renderers()[form](found) for form in forms]

    return interprets(render)(artifacts)


def ready(reports: Sequence[Path], mlflow: str | None) -> None:
    """Refuse, before any work, reports of no known form and an address that MLflow cannot have. Raises ConfigError."""
    for path in reports:
        form_of(path)
    if mlflow is not None:
        from edge import history

        history.address(mlflow)


def log(artifacts: Sequence[Artifact], mlflow: str | None, *, quiet: bool) -> None:
    """Log checked artifacts to MLflow, where that was asked for. Raises MissingPackageError, ToolError."""
    if mlflow is None:
        return
    from edge import history

    talk = Talk(quiet=quiet)
    try:
        history.log(artifacts, mlflow, talk)
    finally:
        talk.done()


def form_of(path: Path, form: str | None = None) -> str:
    """Return the form of a report's file. Raises ConfigError for an unknown one, OutputError where it is a folder."""
    from edge.errors import ConfigError, OutputError

    if path.is_dir():
        raise OutputError(f"{path} is a folder.", hint="Give the name of a file, such as report.html.")
    if form is not None:
        return _known(form)
    if path.suffix.lower() not in FORMS:
        accepted = ", ".join(f"{ending} ({name})" for ending, name in FORMS.items())
        raise ConfigError(f"A report named {path.name!r} has no form; accepted endings: {accepted}.")
    return FORMS[path.suffix.lower()]


def _known(form: str) -> str:
    from edge.errors import ConfigError

    if form not in FORMS.values():
        raise ConfigError(f"--format {form!r}; accepted: {', '.join(FORMS.values())}")
    return form


def judged(artifacts: Sequence[Artifact]) -> Judged:
    """Return each artifact with the answers to its questions, by the name of its folder."""
    from edge import checkup, verdict

    found: dict[str, tuple[Artifact, Sequence[Outcome]]] = {}
    for artifact in artifacts:
        name = artifact.path.name
        if name in found:
            name = str(artifact.path)
        target = checkup.target_of(artifact.manifest)
        found[name] = (artifact, verdict.outcomes(artifact.manifest, target, artifact.size_bytes))
    return found


def _renderers() -> Mapping[str, Callable[[Judged], str]]:
    from edge.report import junit, sarif

    return {"html": _html, "markdown": _markdown, "json": _json, "junit": junit.render, "sarif": sarif.render}


def _html(found: Judged) -> str:
    from edge.report import html

    return html.render([artifact for artifact, _ in found.values()])


def _markdown(found: Judged) -> str:
    from edge.report import comparison, markdown

    opened = [artifact for artifact, _ in found.values()]
    table = comparison.markdown(opened) if len(opened) > 1 else ""
    return table + "\n".join(markdown.render(a.manifest) for a in opened)


def _json(found: Judged) -> str:
    from edge.report import machine

    records = [machine.build_record(artifact) for artifact, _ in found.values()]
    return machine.dumps(records[0] if len(records) == 1 else records)
