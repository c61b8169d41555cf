"""One artifact on several devices at once: one report, and no device hides another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge import jobs
from edge.isolate import Progress, no_progress

AT_ONCE = 8


def check(artifact: str, arguments: Sequence[str], names: Sequence[str], progress: Progress = no_progress) -> Any:
    """Check an artifact on each of the named devices, several at once, and return the record as JSON-compatible data.

    `arguments` are those of `edgekit check` without the device and the form of the output. Keys of the record:
    `schema`, `artifact`, `exit_code` (of the worst), `devices`: each with `device`, `exit_code`,
    `verdict` (null after an error), `record` (what `edgekit check --json` prints) or `error`.
    """
    work = [jobs.Job(name=name, arguments=("check", "--json", "--device", name, *arguments)) for name in names]
    done = jobs.run(work, at_once=AT_ONCE, progress=progress)
    return {
        "schema": 1,
        "artifact": artifact,
        "exit_code": jobs.worst([d.code for d in done]),
        "devices": [
            {
                "device": d.name,
                "exit_code": d.code,
                "verdict": d.record["verdict"] if d.record else None,
                "record": d.record,
                "error": d.error,
            }
            for d in done
        ],
    }
