"""Models x targets x recipes x devices as one run: on this machine, or on a Dask cluster.

A cell is one model, one target and one recipe: it is built, and its artifact is checked on each device. A cell that
fails is a line of the result and does not touch the others.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from edge import codec, jobs
from edge.errors import ConfigError
from edge.isolate import Progress, no_progress

RESULT = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One build with its checks; `place` is its folder below the output."""

    model: str
    target: str
    recipe: str
    devices: tuple[str, ...]
    place: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All cells, and what is common to them.

    `build` and `check` are further arguments of those commands; `data` the paths among the arguments, which travel with
    the models, and `extra` further ones that the models need.
    """

    cells: tuple[Cell, ...]
    output: Path
    evaluation: str | None = None
    calibration: str | None = None
    build: tuple[str, ...] = ()
    check: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


class Scheduler(Protocol):
    """Where cells run."""

    def run(self, plan: Plan, progress: Progress) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the index of each cell with its result, as they end."""
        ...


def plan(
    models: Sequence[str], targets: Sequence[str], recipes: Sequence[str], devices: Sequence[str], **common: Any
) -> Plan:
    """Return the cells of a sweep, each with a folder of its own. Raises ConfigError where there is nothing to do."""
    if not models or not targets:
        raise ConfigError("A sweep needs models and targets.", hint="edgekit sweep a.tflite b.tflite --target rpi4")
    cells, taken = [], set()
    for model, target, recipe in itertools.product(models, targets, recipes or ("",)):
        words = (_stem(model), Path(target).stem, recipe or "default")
        base = "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", word) for word in words)
        place = next(p for n in itertools.count(1) if (p := base if n == 1 else f"{base}-{n}") not in taken)
        taken.add(place)
        cells.append(Cell(model=model, target=target, recipe=recipe or "default", devices=tuple(devices), place=place))
    return Plan(cells=tuple(cells), **common)


def _stem(model: str) -> str:
    path, colon, factory = model.rpartition(":") if ".py:" in model else (model, "", "")
    return Path(path).stem + (f"-{factory}" if colon else "")


def run(plan: Plan, scheduler: Scheduler, progress: Progress = no_progress) -> dict[str, Any]:
    """Run a sweep and return its record, which is also written to `sweep.json` in the output.

    Keys: `schema`, `exit_code` (of the worst cell), `cells`: each with `model`, `target`, `recipe`, `artifact`,
    `worker`, `exit_code`, `build` (what `edgekit build --json` prints, null after an error), `error`, and
    `checks` by device.
    """
    results: dict[int, dict[str, Any]] = {}
    for index, result in scheduler.run(plan, progress):
        results[index] = result
        done = f"{len(results)} of {len(plan.cells)}"
        progress(f"{done}: {plan.cells[index].place} ended with {result['exit_code']}", None)
    record = {
        "schema": 1,
        "exit_code": jobs.worst([r["exit_code"] for r in results.values()]),
        "cells": [results[i] for i in range(len(plan.cells))],
    }
    plan.output.mkdir(parents=True, exist_ok=True)
    codec.write_atomically(plan.output / RESULT, codec.dumps(record))
    return record


def run_cell(
    cell: Cell,
    plan: Plan,
    folder: Path | None,
    output: Path,
    environment: Mapping[str, str],
    progress: Progress,
    *,
    turn: Callable[[str], AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
) -> dict[str, Any]:
    """Build one cell into `output` and check it on its devices; commands run in `folder` (None: this one).

    `turn` is entered around the check on a device, where cells of other machines may use it too.
    """
    place = output / cell.place
    shutil.rmtree(place, ignore_errors=True)
    arguments = ["build", "--json", f"--target={cell.target}", f"--output={place}"]
    arguments += [f"--recipe={cell.recipe}"] if cell.recipe != "default" else []
    arguments += [f"--calibration={plan.calibration}"] if plan.calibration else []
    arguments += [f"--evaluation={plan.evaluation}"] if plan.evaluation else []
    # Other cells run beside this one, so a time of this machine would say nothing.
    arguments += [] if any(a.startswith("--latency") for a in plan.build) else ["--latency=none"]
    where: dict[str, Any] = {"folder": str(folder) if folder else None, "environment": environment}
    name = cell.place
    built = jobs.run_one(jobs.Job(name=name, arguments=(*arguments, *plan.build, "--", cell.model), **where), progress)
    checks: list[dict[str, Any]] = []
    artifact: str | None = None
    if built.record:
        artifact = built.record["artifact"] if isinstance(built.record, dict) else built.record[0]["artifact"]
        for device in cell.devices:
            with turn(device):
                checks.append(_check(str(artifact), device, plan, where, progress))
    return result(
        cell,
        artifact=f"{cell.place}/{Path(artifact).name}" if artifact else None,
        code=jobs.worst([built.code, *(c["exit_code"] for c in checks)]),
        build=built.record,
        error=built.error,
        checks=checks,
    )


def _check(artifact: str, device: str, plan: Plan, where: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    arguments = ["check", "--json", f"--device={device}"]
    arguments += [f"--evaluation={plan.evaluation}"] if plan.evaluation else []
    job = jobs.Job(
        name=f"{Path(artifact).name} on {device}", arguments=(*arguments, *plan.check, "--", artifact), **where
    )
    done = jobs.run_one(job, progress)
    return {
        "device": device,
        "exit_code": done.code,
        "verdict": done.record["verdict"] if done.record else None,
        "record": done.record,
        "error": done.error,
    }


def result(
    cell: Cell,
    *,
    code: int,
    artifact: str | None = None,
    build: Any = None,
    error: Mapping[str, Any] | None = None,
    checks: Sequence[Mapping[str, Any]] = (),
    worker: str | None = "",
) -> dict[str, Any]:
    """Return the record of a cell."""
    known = {k: v for k, v in asdict(cell).items() if k in ("model", "target", "recipe")}
    here = f"{os.uname().nodename}:{os.getpid()}"
    ends = {"build": build, "error": dict(error) if error else None, "checks": [dict(c) for c in checks]}
    return {**known, "artifact": artifact, "worker": here if worker == "" else worker, "exit_code": code, **ends}


class LocalScheduler:
    """Processes of this machine, at most `at_once` cells together."""

    def __init__(self, at_once: int | None = None) -> None:
        # A build uses two threads for most of its time.
        self._at_once = at_once or max(1, jobs.cores() // 2)

    def run(self, plan: Plan, progress: Progress) -> Iterator[tuple[int, dict[str, Any]]]:
        """Run the cells where their files are."""
        from concurrent.futures import ThreadPoolExecutor, as_completed

        output = plan.output.absolute()
        output.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(self._at_once) as pool, jobs.stopping(pool):
            futures = {
                pool.submit(run_cell, cell, plan, None, output, {}, progress): index
                for index, cell in enumerate(plan.cells)
            }
            for future in as_completed(futures):
                yield futures[future], future.result()
