"""The command line: one module per command, nothing heavy imported at start."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import typer


def application() -> typer.Typer:
    """Return the typer application with all commands."""
    import typer

    from edge.cli import (
        build,
        cache,
        check,
        compare,
        compile_,
        demo,
        devices,
        diagnose,
        doctor,
        emulator,
        export,
        history,
        init,
        inspect,
        profile,
        report,
        reproduce,
        sources,
        sweep,
        targets,
    )

    app = typer.Typer(
        name="edgekit",
        help="Take a trained model to an edge device and prove that it works there.",
        epilog="Add --debug to any command to see tracebacks. Exit codes: 0 done and within budget, 1 a budget is "
        "broken, 2 wrong usage, 3 a tool or device is missing or failed, 4 the model cannot be built, 70 a bug.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    modules = (build, check, compare, profile, inspect, diagnose, report, history, reproduce, compile_, export, sweep)
    for module in (*modules, targets, sources, devices, emulator, cache, doctor, init, demo):
        module.register(app)
    app.callback(invoke_without_command=True)(_root(typer.Option(False, "--version", help="Print the version.")))
    return app


def _root(option: Any) -> Callable[..., None]:
    def root(version: bool = option) -> None:
        """Take a trained model to an edge device and prove that it works there."""
        if version:
            from importlib.metadata import version as version_of

            sys.stdout.write(f"edgekit {version_of('edgekit')}\n")
            raise SystemExit(0)

    # typer reads annotations, which are texts here: it must find the type in the function's own names.
    root.__annotations__["version"] = bool
    return root


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code; the console script."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or bool(os.environ.get("EDGEKIT_DEBUG"))
    given = [a for a in given if a != "--debug"]
    from edge.cli.outcome import run

    sys.exit(run(given, debug=debug))
