"""A sweep on a Dask cluster: files travel as bytes, results come back, a lost worker's cells run elsewhere.

Needs the package distributed (`pip install edgekit[farm]`) here and, with edgekit itself, on the workers. A cluster is
trusted: whoever can reach its scheduler can run code on its workers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge import parcel, sweep
from edge.errors import ConfigError, MissingPackageError, ToolError
from edge.isolate import Progress, no_progress
from edge.parcel import Parcel
from edge.sweep import Cell, Plan

CONNECT_TIMEOUT_S = 15
# How long the scheduler may be without any worker before the cells that are left are given up.
NO_WORKER_S = 60.0
_POLL_S = 1.0
_ATTEMPTS = 4
_PREFIX = "edgekit-cell-"
_TOOL_FAILED = ToolError.exit_code


@dataclass(frozen=True, kw_only=True)
class Luggage:
    """What every cell takes along: the plan with the paths that hold at the worker, and the names that are exclusive.

    `exclusive` maps a device that workers share (a board in the network) to what identifies it.
    """

    plan: Plan
    devices_file: str | None
    exclusive: Mapping[str, str]


class DaskScheduler:
    """A running cluster, by the address of its scheduler (`tcp://host:8786`)."""

    def __init__(self, address: str, *, no_worker_s: float = NO_WORKER_S) -> None:
        self._address = address
        self._no_worker_s = no_worker_s

    def run(self, plan: Plan, progress: Progress) -> Iterator[tuple[int, dict[str, Any]]]:
        """Run the cells on the cluster; artifacts are written here. Raises ToolError, DataError."""
        with _connected(self._address) as client:
            workers = _examine(client)
            progress(f"{len(workers)} workers at {self._address}", None)
            sent = Sent(client, Path.cwd())
            attempts = dict.fromkeys(range(len(plan.cells)), 0)

            def submit(index: int) -> Any:
                cell = plan.cells[index]
                attempts[index] += 1
                key = f"edgekit-{uuid.uuid4().hex}"
                luggage = _luggage(plan, sent)
                return client.submit(work, _elsewhere(cell, sent), luggage, sent.for_cell(cell, plan), key=key)

            left = {submit(index): index for index in attempts}
            watch = _Watch(client, self._no_worker_s, progress)
            try:
                while left:
                    for future in [f for f in left if f.done()]:
                        index = left.pop(future)
                        if future.status in ("cancelled", "lost") and attempts[index] < _ATTEMPTS:
                            # A worker took the only copy of a file with it.
                            sent.forget()
                            with contextlib.suppress(TimeoutError):  # no worker takes it
                                left[submit(index)] = index
                                continue
                            yield index, _failed(plan.cells[index], f"no worker was left at {self._address}")
                            continue
                        yield index, _taken(future, plan, plan.cells[index])
                    if left and not watch.alive():
                        for index in left.values():
                            yield index, _failed(plan.cells[index], f"no worker was left at {self._address}")
                        return
                    _wait(left)
            finally:
                client.cancel([f for f in left if not f.done()])


class Sent:
    """Files that were given to the cluster, each once."""

    def __init__(self, client: Any, root: Path) -> None:
        self._client = client
        self._root = root
        self._futures: dict[str, Any] = {}

    def path(self, text: str) -> str:
        """Send what `text` names and return the text with the path that holds at a worker.

        `text` is a path, or `file.py:factory`; what is no file here (a target of the catalogue) is returned as it is.
        """
        path, factory = _split(text)
        if not Path(path).exists():
            return text
        if path not in self._futures:
            self._futures[path] = self._client.scatter(parcel.pack(Path(path), self._root), hash=False, broadcast=True)
        return parcel.travelling_path(Path(path), self._root) + factory

    def forget(self) -> None:
        """Send everything again when it is asked for next."""
        self._futures.clear()

    def for_cell(self, cell: Cell, plan: Plan) -> list[Any]:
        """Return the files that a cell needs; all but the other cells' models and targets."""
        others = {_split(text)[0] for c in plan.cells for text in (c.model, c.target)}
        own = {_split(text)[0] for text in (cell.model, cell.target)}
        return [future for path, future in self._futures.items() if path in own or path not in others]


def _split(text: str) -> tuple[str, str]:
    path, colon, factory = text.rpartition(":")
    return (path, colon + factory) if colon and path.endswith(".py") else (text, "")


def _elsewhere(cell: Cell, sent: Sent) -> Cell:
    return replace(cell, model=sent.path(cell.model), target=sent.path(cell.target))


def _luggage(plan: Plan, sent: Sent) -> Luggage:
    from edge.devices import attach
    from edge.devices.lock import identity
    from edge.devices.places import devices_files

    for cell in plan.cells:
        _elsewhere(cell, sent)
    for path in plan.extra:
        sent.path(path)
    names = dict.fromkeys(device for cell in plan.cells for device in cell.devices)
    specs = {name: attach.resolve(name)[0] for name in names if not name.startswith("coral")}
    file = next((str(p) for p in devices_files() if p.is_file()), None)
    return Luggage(
        plan=replace(
            plan,
            cells=(),
            output=Path("artifacts"),
            calibration=sent.path(plan.calibration) if plan.calibration else None,
            evaluation=sent.path(plan.evaluation) if plan.evaluation else None,
        ),
        devices_file=sent.path(file) if file and any(s.name for s in specs.values()) else None,
        exclusive={name: identity(spec) for name, spec in specs.items() if spec.kind == "ssh"},
    )


def work(cell: Cell, luggage: Luggage, parcels: Sequence[Parcel]) -> tuple[dict[str, Any], Parcel | None]:
    """Build and check one cell in a folder of its own on a worker; return its result and its artifact."""
    _remove_stale()
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as place:
        folder = Path(place)
        parcel.unpack(parcels, folder)
        environment = {"EDGEKIT_DEVICES": str(folder / luggage.devices_file)} if luggage.devices_file else {}
        output = folder / luggage.plan.output
        result = sweep.run_cell(
            cell, luggage.plan, folder, output, environment, no_progress, turn=lambda name: _turn(luggage, name)
        )
        made = output / cell.place
        return result, parcel.pack(made, output) if made.is_dir() else None


def _remove_stale() -> None:
    """Remove what workers of this machine left that were killed in the middle."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _turn(luggage: Luggage, device: str) -> Iterator[None]:
    """Wait until no other worker uses a board that several of them reach."""
    known = luggage.exclusive.get(device)
    if known is None:
        yield
        return
    from distributed import Lock

    with Lock(f"edgekit {known}"):
        yield


class _Watch:
    """Looks after the workers while results are awaited."""

    def __init__(self, client: Any, limit_s: float, progress: Progress) -> None:
        self._client, self._limit_s, self._progress = client, limit_s, progress
        self._known = _workers(client)
        self._lonely_s = 0.0

    def alive(self) -> bool:
        """Tell whether there is hope; say which workers were lost."""
        now = _workers(self._client)
        for lost in sorted(self._known - now):
            self._progress(f"the worker {lost} was lost; its cells run again on another", None)
        self._known = now
        self._lonely_s = 0.0 if now else self._lonely_s + _POLL_S
        return self._lonely_s < self._limit_s


def _workers(client: Any) -> set[str]:
    return set(client.scheduler_info(n_workers=-1)["workers"])


def _wait(left: Mapping[Any, int]) -> None:
    from distributed import wait
    from distributed.client import FuturesCancelledError

    if left:
        with contextlib.suppress(TimeoutError, FuturesCancelledError):
            wait(list(left), timeout=_POLL_S, return_when="FIRST_COMPLETED")


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingPackageError(
            f"--scheduler needs the package distributed, which cannot be imported: {error}.",
            hint="pip install 'edgekit[farm]', here and on the workers.",
        ) from error
    try:
        client = Client(address, timeout=CONNECT_TIMEOUT_S)
    except ValueError as error:
        raise ConfigError(f"--scheduler {address!r}: {error}.", hint="Such as tcp://10.0.0.2:8786.") from error
    except (OSError, TimeoutError) as error:
        raise ToolError(
            f"No Dask scheduler answers at {address} within {CONNECT_TIMEOUT_S} s: {error}.",
            hint="Start one with `dask scheduler`, and workers with `dask worker ADDRESS`.",
        ) from error
    try:
        yield client
    finally:
        client.close()


def _examine(client: Any) -> dict[str, str]:
    """Return edgekit's version by worker; raise ToolError where one lacks it or has another than this host."""
    found: dict[str, str] = {}
    for worker, answer in client.run(_version, on_error="return").items():
        if isinstance(answer, BaseException):
            raise ToolError(
                f"The worker {worker} has no edgekit that can be imported: {answer}.",
                hint="pip install 'edgekit[farm]' in the environment of the worker, the same version as here.",
            )
        found[worker] = answer
    if not found:
        raise ToolError(
            "The Dask scheduler has no workers.", hint="Start one on each machine: `dask worker SCHEDULER-ADDRESS`."
        )
    if others := {worker: there for worker, there in found.items() if there != _version()}:
        listed = ", ".join(f"{worker} has {there}" for worker, there in sorted(others.items()))
        raise ToolError(
            f"The workers have another edgekit than this host ({_version()}): {listed}.", hint="Install it."
        )
    return found


def _version() -> str:
    from importlib.metadata import version

    return version("edgekit")


def _taken(future: Any, plan: Plan, cell: Cell) -> dict[str, Any]:
    """Return the result of a cell, its artifact written here."""
    try:
        found, made = future.result()
    except Exception as error:
        # Whatever a foreign machine raised is the end of this cell only.
        name = type(error).__name__
        why = "its workers were lost, one after the other" if name == "KilledWorker" else f"{name}: {error}"
        return _failed(cell, why)
    if made is not None:
        plan.output.mkdir(parents=True, exist_ok=True)
        parcel.unpack([made], plan.output)
    result: dict[str, Any] = {**found, "model": cell.model, "target": cell.target}
    return result


def _failed(cell: Cell, why: str) -> dict[str, Any]:
    error = {"message": f"The cell was not finished: {why}.", "hint": "Run the sweep again for this cell."}
    return sweep.result(cell, code=_TOOL_FAILED, error=error, worker=None)
