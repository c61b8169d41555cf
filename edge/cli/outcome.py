"""From an exception to a message and an exit code: the only place where that happens."""

from __future__ import annotations

import json
import os
import sys
import traceback

from edge import errors


def run(arguments: list[str], *, debug: bool) -> int:
    """Run the application on `arguments` and return the exit code."""
    from edge.cli import application

    try:
        code = application()(arguments, standalone_mode=False, prog_name="edgekit")
        sys.stdout.flush()
    except errors.EdgekitError as error:
        return _refuse(error, as_json="--json" in arguments, debug=debug)
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        # The reader of stdout went away (`edgekit targets | head`): nothing is left to say, and nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.EXIT_OK
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else errors.EXIT_BUG
    except Exception as error:
        return _click_or_bug(error, debug=debug)
    return code if isinstance(code, int) else errors.EXIT_OK


def _click_or_bug(error: Exception, *, debug: bool) -> int:
    # typer ships its own copy of click, so its exceptions are known by what they do, not by their class.
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if callable(show):
        show()
        return code if isinstance(code, int) else 2
    if type(error).__name__ == "Abort":
        return _interrupted()
    if isinstance(code, int):
        return code
    _say(f"ERROR: a bug of edgekit: {type(error).__name__}: {error}")
    _say("TIP: run it again with --debug and report the traceback.")
    if debug:
        traceback.print_exc()
    return errors.EXIT_BUG


def _interrupted() -> int:
    _say("Interrupted; nothing was left half-written.")
    return errors.EXIT_INTERRUPTED


def _refuse(error: errors.EdgekitError, *, as_json: bool, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if as_json:
        sys.stdout.write(json.dumps(error.to_json()) + "\n")
    _say(f"ERROR: {error.message}")
    if error.hint:
        _say(f"TIP: {error.hint}")
    if error.log and os.path.exists(error.log):  # noqa: PTH110 - a text, and pathlib costs start-up time
        _say(f"LOG: {error.log}")
    return error.exit_code


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
