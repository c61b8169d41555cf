"""Operations of latency that are added to the agent: `stopwatch.py AGENT`, both pushed to the device.

Like the agent it needs Python 3.7, numpy and a runtime. It adds to the agent's protocol:

    profile    load, first run, warm-up, timed runs with the board's state over time; the machine's controls are set
               where that is permitted and restored when the process ends, however it ends
    cold       start of the interpreter, import, load and first run in fresh processes
    blocks     two programs in alternating blocks, for a comparison
    operators  time per operator, by LiteRT's own profiler (C API of its shared library)
"""

# ruff: noqa: B905, RUF007 - zip(strict=...) and itertools.pairwise are newer than Python 3.7

from __future__ import annotations

import array
import contextlib
import ctypes
import importlib.util
import json
import os
import random
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

GOVERNORS = Path("/sys/devices/system/cpu/cpufreq")
POWER_SUPPLY = Path("/sys/class/power_supply")
SENSORS = Path("/sys/class/hwmon")
RAPL = Path("/sys/class/powercap")
IDLE_READINGS = 5
STEP_S = 1.0  # between two readings of temperature, frequency and power
LEAST_BLOCK_RUNS = 2
LEAST_SPANS, MOST_SPANS = 16, 2000
MOST_MADE_UP = 3


def module_at(path: str, name: str) -> Any:
    """Import a file whose name is a hash."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> str | None:
    """Return a small file's text, or None."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def number(path: Path) -> float | None:
    """Return the number in a file, or None."""
    text = read(path)
    return float(text) if text and re.match(r"-?\d+$", text) else None


# Controls


def write(path: Path, text: str) -> bool:
    """Write a setting; tell whether the system took it."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError:
        return False
    return read(path) == text


def guard(undo: list[tuple[str, str]]) -> Callable[[], None]:
    """Start a process that restores settings when this one ends, killed or not; return what ends it at once.

    It holds the reading end of a pipe that nobody writes to: the end of all writers is the signal.
    """
    read_fd, write_fd = os.pipe()
    process = os.fork()
    if process == 0:
        os.setsid()
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        os.closerange(0, read_fd)
        os.closerange(read_fd + 1, 65536)
        with contextlib.suppress(OSError):
            os.read(read_fd, 1)
        for path, text in undo:
            write(Path(path), text)
        os._exit(0)
    os.close(read_fd)

    def release() -> None:
        os.close(write_fd)
        os.waitpid(process, 0)

    return release


def governor_files(root: Path) -> list[tuple[Path, str]]:
    """Return the governor of each group of processors that is not `performance` but can be."""
    found = []
    for folder in sorted(root.glob("policy*")):
        now = read(folder / "scaling_governor")
        offered = (read(folder / "scaling_available_governors") or "performance").split()
        if now and now != "performance" and "performance" in offered:
            found.append((folder / "scaling_governor", now))
    return found


@contextlib.contextmanager
def controlled(wanted: dict[str, Any] | None, root: Path = GOVERNORS) -> Iterator[list[dict[str, Any]]]:
    """Set what is wanted and permitted, yield what came of it, and restore it, also when this process is killed."""
    wanted = wanted or {}
    done: list[dict[str, Any]] = []
    files = governor_files(root) if wanted.get("governor") else []
    release = guard([(str(path), now) for path, now in files]) if files else None
    try:
        for path, now in files:
            took = write(path, "performance")
            done.append({"control": f"governor {path.parent.name}", "before": now, "set": "performance", "taken": took})
        cpus = wanted.get("cpus")
        if cpus and hasattr(os, "sched_setaffinity"):
            before = ",".join(map(str, sorted(os.sched_getaffinity(0))))
            took = True
            try:
                os.sched_setaffinity(0, cpus)
            except OSError:
                took = False
            done.append({"control": "cpus", "before": before, "set": ",".join(map(str, cpus)), "taken": took})
        yield done
    finally:
        if release:
            release()


# Power


def pmic_watts() -> float | None:
    """Return the sum over the rails of a Raspberry Pi 5's power controller: current times voltage."""
    tool = shutil.which("vcgencmd")
    if tool is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([tool, "pmic_read_adc"], stdout=subprocess.PIPE, timeout=5, check=True)
        found = re.findall(
            r"(\w+)_([AV])\s+(?:current|volt)\(\d+\)=([\d.]+)[AV]", done.stdout.decode("ascii", "replace")
        )
        values = {(rail, kind): float(value) for rail, kind, value in found}
        rails = [rail for rail, kind in values if kind == "A" and (rail, "V") in values]
        if rails:
            return sum(values[rail, "A"] * values[rail, "V"] for rail in rails)
    return None


def sensor_watts() -> float | None:
    """Return what power sensors of the board read (INA219 and the like), in total."""
    found = [number(path) for path in sorted(SENSORS.glob("hwmon*/power1_input"))]
    known = [value for value in found if value is not None]
    return sum(known) / 1e6 if known else None


def battery_watts() -> float | None:
    """Return what the battery gives, where it is not being charged."""
    for folder in sorted(POWER_SUPPLY.glob("*")):
        if read(folder / "type") == "Battery" and read(folder / "status") == "Discharging":
            current, voltage = number(folder / "current_now"), number(folder / "voltage_now")
            if current and voltage:
                return abs(current) * voltage / 1e12
    return None


class Meter:
    """The first source of power that this machine has; `source` is None where there is none."""

    def __init__(self) -> None:
        kinds: tuple[tuple[str, Callable[[], float | None]], ...] = (
            ("pmic", pmic_watts),
            ("sensor", sensor_watts),
            ("battery", battery_watts),
        )
        found = ((name, read_watts) for name, read_watts in kinds if read_watts() is not None)
        chosen: tuple[str | None, Callable[[], float | None]] = next(found, (None, lambda: None))
        self.source, self._read = chosen
        counter = next(iter(sorted(RAPL.glob("intel-rapl:0/energy_uj"))), None)
        if self.source is None and counter is not None and number(counter) is not None:
            self.source, self._read = "rapl", lambda: self._from_counter(counter)
            self._last = (time.monotonic(), number(counter) or 0.0)

    def _from_counter(self, counter: Path) -> float | None:
        now, value = time.monotonic(), number(counter)
        (before, energy), self._last = self._last, (now, value or 0.0)
        return (value - energy) / 1e6 / (now - before) if value is not None and value >= energy else None

    def watts(self) -> float | None:
        """Return the power now."""
        return self._read()


def state(agent: Any, at_s: float, meter: Meter) -> dict[str, Any]:
    """Return what may change during a measurement."""
    policies = [agent.frequency_policy(f) for f in sorted(agent.CPUFREQ.glob("policy*"))]
    return {
        "at_s": at_s,
        "temperatures_c": agent.temperatures(),
        "frequencies_khz": {p["name"]: p["current_khz"] for p in policies if p["current_khz"] is not None},
        "throttled": agent.throttled(),
        "power_w": meter.watts(),
    }


# Operations


class Program:
    """A loaded program with its inputs `values`; `once` is one inference: inputs copied in, run, outputs read back."""

    def __init__(self, agent: Any, wanted: dict[str, Any], inputs: str) -> None:
        now = agent.clock_ns
        begin = now()
        self.values = [a[0] for a in agent.load_samples(inputs)]  # imports numpy
        with contextlib.suppress(agent.RefusalError):
            agent.litert_module() if wanted["runtime"] == "litert" else __import__("executorch.runtime")
        imported = now()
        self.program = agent.open_program({"program": wanted})
        loaded = now()
        self.program.feed(self.values)
        self.program.invoke()
        self.program.read()
        self.import_ms = (imported - begin) / 1e6
        self.load_ms = (loaded - imported) / 1e6
        self.first_ms = (now() - loaded) / 1e6

    def once(self) -> None:
        """Run once."""
        self.program.copy_in(self.values)
        self.program.invoke()
        self.program.read()


def spans_of(agent: Any, opened: Program, runs: int) -> dict[str, float]:
    """Return the median times in ms of an inference's parts: inputs copied in, run, outputs read back."""
    now, program, parts = agent.clock_ns, opened.program, []
    for _ in range(max(LEAST_SPANS, min(MOST_SPANS, runs // 4))):
        begin = now()
        program.copy_in(opened.values)
        copied = now()
        program.invoke()
        ran = now()
        program.read()
        parts.append((copied - begin, ran - copied, now() - ran))
    medians = [statistics.median(part) / 1e6 for part in zip(*parts)]
    return dict(zip(("copy_in_ms", "run_ms", "read_back_ms"), medians))


def timed(
    agent: Any, once: Callable[[], None], profile: dict[str, Any], note: Callable[[float], None]
) -> dict[str, Any]:
    """Run for the profile's runs and seconds; `note` is called between runs, at first and then every STEP_S."""
    now, durations, starts = agent.clock_ns, array.array("q"), array.array("q")
    shortest, longest, wanted = profile["seconds"] * 1e9, profile["max_seconds"] * 1e9, profile["runs"]
    runs, stride, elapsed, noted, begin = 0, 1, 0, 0.0, now()
    while (runs < wanted or elapsed < shortest) and (elapsed < longest or not runs):
        if elapsed >= noted:
            note(elapsed / 1e9)
            noted = elapsed + STEP_S * 1e9
        start = now()
        once()
        end = now()
        if runs % stride == 0:
            durations.append(end - start)
            starts.append(start - begin)
            if len(durations) >= agent.MAX_SAMPLES:
                durations, starts, stride = durations[::2], starts[::2], stride * 2
        runs += 1
        elapsed = end - begin
    return {"durations": durations, "starts": starts, "runs": runs, "duration_s": elapsed / 1e9}


def thinned(trace: list[dict[str, Any]], most: int = 600) -> list[dict[str, Any]]:
    """Return at most `most` of the readings, evenly."""
    step = max(1, -(-len(trace) // most))
    return trace[::step]


def profile_op(agent: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Measure one program; raw times go to the file `samples`."""
    import numpy as np

    profile, now = request["profile"], agent.clock_ns
    with controlled(request.get("controls")) as controls:
        meter = Meter()
        time.sleep(profile["cooldown_s"])
        idle = [meter.watts() for _ in range(IDLE_READINGS) if meter.source and not time.sleep(0.2)]  # type: ignore[func-returns-value]
        before_kib = agent.peak_rss_kib()
        opened = Program(agent, request["program"], request["inputs"])
        loaded_kib = agent.peak_rss_kib()
        readings = [now() for _ in range(1001)]
        warm_runs, stable = agent.warm_up(opened.once, profile["warm_up"], now)
        agent.stop_garbage_collection()
        before = agent.environment()
        trace: list[dict[str, Any]] = []
        loop = timed(agent, opened.once, profile, lambda at_s: trace.append(state(agent, at_s, meter)))
        after = agent.environment()
        spans = spans_of(agent, opened, loop["runs"])
        trace.append(state(agent, loop["duration_s"], meter))
    with open(request["samples"], "wb") as stream:  # noqa: PTH123 - np.savez adds a suffix to paths
        np.savez(stream, durations=np.array(loop["durations"], np.int64), starts=np.array(loop["starts"], np.int64))
    return {
        "import_ms": opened.import_ms,
        "load_ms": opened.load_ms,
        "first_ms": opened.first_ms,
        "warm_up_runs": warm_runs,
        "warm_up_stable": stable,
        "timer_overhead_ns": int(statistics.median(b - a for a, b in zip(readings, readings[1:]))),
        "clock": "CLOCK_MONOTONIC_RAW",
        "runs": loop["runs"],
        "duration_s": loop["duration_s"],
        "before": before,
        "after": after,
        "controls": controls,
        "spans": spans,
        "trace": thinned(trace),
        "power_source": meter.source,
        "idle_w": [watts for watts in idle if watts is not None],
        "memory": {"before_kib": before_kib, "loaded_kib": loaded_kib, "peak_kib": agent.peak_rss_kib()},
    }


def once_cold(agent: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Load and run once in this process, and say when its Python was ready."""
    ready = agent.clock_ns()
    opened = Program(agent, request["program"], request["inputs"])
    return {
        "ready_ns": ready,
        "import_ms": opened.import_ms,
        "load_ms": opened.load_ms,
        "first_ms": opened.first_ms,
        "done_ns": agent.clock_ns(),
    }


def cold_op(agent: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Start `starts` fresh processes; times in ms from the start of the process, files being in the page cache."""
    found = []
    asked = dict(request, op="once_cold", edgekit=agent.PROTOCOL, id=0)
    for _ in range(request["starts"]):
        begin = agent.clock_ns()
        done = subprocess.run(
            [sys.executable, "-B", *sys.argv],
            input=(json.dumps(asked) + "\n").encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        lines = [line for line in done.stdout.decode("utf-8", "replace").splitlines() if line.startswith('{"edgekit"')]
        silent = {"ok": False, "error": {"message": "no answer"}}
        answer: dict[str, Any] = json.loads(lines[-1]) if lines else silent
        if not answer["ok"]:
            raise agent.RefusalError("run", "a fresh process failed: {}".format(answer["error"]["message"]))
        told = answer["result"]
        phases = {k: told[k] for k in ("import_ms", "load_ms", "first_ms")}
        start, total = (told["ready_ns"] - begin) / 1e6, (told["done_ns"] - begin) / 1e6
        found.append(dict(phases, start_ms=start, total_ms=total))
    return {"starts": found}


def block_runs(agent: Any, opened: Program, rule: dict[str, Any], block_s: float) -> int:
    """Warm a program up and return how many of its runs fill a block."""
    agent.warm_up(opened.once, rule, agent.clock_ns)
    times = []
    for _ in range(9):
        begin = agent.clock_ns()
        opened.once()
        times.append(agent.clock_ns() - begin)
    typical = max(1.0, float(statistics.median(times)))
    return max(LEAST_BLOCK_RUNS, round(block_s * 1e9 / typical))


def preemptions() -> int:
    """Return how often the system has taken a processor from this process to give it to another."""
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw)


def blocks_op(agent: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Run groups of four blocks, A B B A or B A A B by chance; raw times go to the file `samples`, 0 for A, 1 for B."""
    import numpy as np

    chance = random.Random(request["seed"])  # noqa: S311 - an order, not a secret
    with controlled(request.get("controls")) as controls:
        order = [0, 1] if chance.random() < 0.5 else [1, 0]
        opened: dict[int, Program] = {}
        for side in order:
            opened[side] = Program(agent, request["programs"][side], request["inputs"][side])
        runs = {s: block_runs(agent, opened[s], request["warm_up"], request["block_s"]) for s in order}
        agent.stop_garbage_collection()
        now, rows = agent.clock_ns, array.array("q")
        before = agent.environment()
        for group in range(request["groups"]):
            first = chance.randrange(2)
            for place, side in enumerate((first, 1 - first, 1 - first, first)):
                once = opened[side].once
                once()  # the other program has left the caches to itself
                # Runs from which the system took the processor do not count; they are made up for, within limits.
                quiet = made = 0
                while quiet < runs[side] and made < MOST_MADE_UP * runs[side]:
                    lost, start = preemptions(), now()
                    once()
                    taken = now() - start
                    lost = preemptions() - lost
                    rows.extend((group, place, side, taken, lost))
                    quiet, made = quiet + (not lost), made + 1
        after = agent.environment()
    with open(request["samples"], "wb") as stream:  # noqa: PTH123 - np.savez adds a suffix to paths
        np.savez(stream, rows=np.array(rows, np.int64).reshape(-1, 5))
    return {"before": before, "after": after, "controls": controls, "runs": [runs[0], runs[1]]}


# LiteRT's profiler. The C API as of LiteRT 2.x; an event is thirteen 64-bit words: tag, type, start, elapsed (both in
# microseconds), six of memory, two of metadata, source.

EVENT_WORDS = 13
CPU = 1
INVOKED = {2: "builtin", 4: "delegate", 8: "delegate"}
KERNEL_MODES = {"xnnpack": 0, "reference": 1, "builtin": 2}


class LiteRTLibrary:
    """LiteRT's shared library, called by name."""

    def __init__(self, agent: Any) -> None:
        spec = importlib.util.find_spec("ai_edge_litert")
        path = Path(spec.origin).parent / "libLiteRt.so" if spec and spec.origin else None
        if path is None or not path.exists():
            raise agent.RefusalError("no-profiler", "a profile per operator needs ai-edge-litert 2.1 or newer there")
        self._agent, self._library, self._kept = agent, ctypes.CDLL(str(path)), []  # type: ignore[var-annotated]

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that returns a status."""
        function = getattr(self._library, name, None)
        if function is None:
            raise self._agent.RefusalError("no-profiler", f"the runtime on the device has no {name}; it is too old")
        status = function(*arguments)
        if status:
            raise self._agent.RefusalError("no-profiler", f"LiteRT's {name} failed with status {status}")

    def made(self, name: str, *arguments: Any) -> Any:
        """Return the handle that a function makes in its last argument."""
        handle = ctypes.c_void_p()
        self.call(name, *arguments, ctypes.byref(handle))
        return handle

    def add_options(self, options: Any, kind: bytes, text: str) -> None:
        """Add options that are a text in TOML."""
        content = ctypes.create_string_buffer(text.encode())
        release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
        self._kept += [content, release]
        made = self.made("LiteRtCreateOpaqueOptions", kind, ctypes.cast(content, ctypes.c_void_p), release)
        self.call("LiteRtAddOpaqueOptions", options, made)

    def buffers(self, kind: str, environment: Any, model: Any, compiled: Any) -> Any:
        """Return new buffers for all inputs or outputs of the first signature."""
        signature, count = self.made("LiteRtGetModelSignature", model, ctypes.c_size_t(0)), ctypes.c_size_t()
        self.call(f"LiteRtGetNumSignature{kind}s", signature, ctypes.byref(count))
        found = []
        for index in map(ctypes.c_size_t, range(count.value)):
            tensor = self.made(f"LiteRtGetSignature{kind}TensorByIndex", signature, index)
            ranked = ctypes.create_string_buffer(1024)
            self.call("LiteRtGetRankedTensorType", tensor, ranked)
            needs = self.made(f"LiteRtGetCompiledModel{kind}BufferRequirements", compiled, ctypes.c_size_t(0), index)
            found.append(self.made("LiteRtCreateManagedTensorBufferFromRequirements", environment, ranked, needs))
        return (ctypes.c_void_p * len(found))(*found)


def operators_op(agent: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Return the operators as the runtime ran them, in order, with the mean microseconds of the middle half of runs."""
    library, program = LiteRTLibrary(agent), request["program"]
    environment = library.made("LiteRtCreateEnvironment", 0, ctypes.create_string_buffer(256))
    model = library.made("LiteRtCreateModelFromFile", environment, program["path"].encode())
    options = library.made("LiteRtCreateOptions")
    library.call("LiteRtSetOptionsHardwareAccelerators", options, CPU)
    library.add_options(options, b"runtime_options_string", "enable_profiling = true\n")
    kernels, threads = KERNEL_MODES[program["kernels"]], program["threads"]
    library.add_options(options, b"xnnpack", f"num_threads = {threads}\nkernel_mode = {kernels}\n")
    compiled = library.made("LiteRtCreateCompiledModel", environment, model, options)
    fed = library.buffers("Input", environment, model, compiled)
    found = library.buffers("Output", environment, model, compiled)
    profiler = library.made("LiteRtCompiledModelGetProfiler", compiled)
    sizes = (ctypes.c_size_t(len(fed)), fed, ctypes.c_size_t(len(found)), found)

    def once() -> None:
        library.call("LiteRtRunCompiledModel", compiled, ctypes.c_size_t(0), *sizes)

    agent.warm_up(once, request["warm_up"], agent.clock_ns)
    runs: list[list[tuple[str, str, int]]] = []
    for _ in range(request["runs"]):
        library.call("LiteRtStartProfiler", profiler)
        once()
        library.call("LiteRtStopProfiler", profiler)
        runs.append(events(library, profiler))
        library.call("LiteRtResetProfiler", profiler)
    return {"operators": merged(runs), "runs": len(runs)}


def middle_mean(values: list[int]) -> float:
    """Return the mean of the middle half: finer than whole microseconds, and blind to runs that were disturbed."""
    ordered, quarter = sorted(values), len(values) // 4
    return float(statistics.mean(ordered[quarter : len(ordered) - quarter]))


def merged(runs: list[list[tuple[str, str, int]]]) -> list[dict[str, Any]]:
    """Return the time of each operator over those runs that have the list of operators that most have."""
    lists = [tuple((place, name) for place, name, _ in run) for run in runs]
    usual = max(set(lists), key=lists.count)
    kept = [run for run, names in zip(runs, lists) if names == usual]
    return [
        {"place": place, "name": name, "mean_us": middle_mean([run[index][2] for run in kept]), "runs": len(kept)}
        for index, (place, name) in enumerate(usual)
    ]


def events(library: LiteRTLibrary, profiler: Any) -> list[tuple[str, str, int]]:
    """Return (place, name, microseconds) of each operator since the profiler was reset."""
    count = ctypes.c_int()
    library.call("LiteRtGetNumProfilerEvents", profiler, ctypes.byref(count))
    words = (ctypes.c_uint64 * (EVENT_WORDS * (count.value + 8)))()
    library.call("LiteRtGetProfilerEvents", profiler, count, words)
    found = []
    for first in range(0, EVENT_WORDS * count.value, EVENT_WORDS):
        tag, kind, _, elapsed = words[first : first + 4]
        place = INVOKED.get(kind & 0xFFFFFFFF)
        if place and tag:
            name = (ctypes.cast(tag, ctypes.c_char_p).value or b"").decode("utf-8", "replace")
            found.append((place, name, int(elapsed)))
    return found


OPERATIONS = {
    "profile": profile_op,
    "cold": cold_op,
    "once_cold": once_cold,
    "blocks": blocks_op,
    "operators": operators_op,
}


def main() -> None:
    """Be the agent, with these operations added."""
    agent = module_at(sys.argv[1], "edgekit_agent")
    for name, operation in OPERATIONS.items():
        agent.OPERATIONS[name] = lambda request, do=operation: do(agent, request)
    agent.main()


if __name__ == "__main__":
    main()
