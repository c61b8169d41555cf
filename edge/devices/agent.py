"""The agent: one file that runs programs on a device, needing Python 3.7, numpy, one runtime, nothing of edgekit.

It reads one JSON request a line from stdin and writes one JSON answer a line to stdout; tensors travel as .npz files
whose arrays are named by position ("0", "1", ...), samples first. Every request is done in a child process of its own,
so that a runtime that crashes is an answer and not a silence. Protocol version 1:

    {"edgekit": 1, "id": 7, "op": "hello" | "run" | "measure" | "memory" | "count", ...}
    {"edgekit": 1, "id": 7, "ok": true, "result": {...}}
    {"edgekit": 1, "id": 7, "ok": false, "error": {"kind": "crash", "message": "...", "signal": 11, "tail": "..."}}
"""

# ruff: noqa: B905, RUF007 - zip(strict=...) and itertools.pairwise are newer than Python 3.7

from __future__ import annotations

import array
import contextlib
import errno
import faulthandler
import gc
import json
import os
import platform
import re
import resource
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROTOCOL = 1
MAX_SAMPLES = 2**21
CPUFREQ = Path("/sys/devices/system/cpu/cpufreq")
RUNTIMES = ("ai_edge_litert", "tflite_runtime", "tensorflow", "executorch")
LITERT_HINT = "pip install ai-edge-litert numpy (in a virtual environment, and give its Python to edgekit)"


class RefusalError(Exception):
    """An answer that is an error: its kind, its message, and what else is known."""

    def __init__(self, kind: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.error = dict({"kind": kind, "message": message}, **more)


def text_of(path: str) -> str | None:
    """Return a small file's text without its end, or None."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return None


def integer_of(path: str) -> int | None:
    """Return the number in a file, or None."""
    text = text_of(path)
    return int(text) if text and re.match(r"-?\d+$", text) else None


def cpuinfo_field(name: str) -> str | None:
    """Return the first value of a field of /proc/cpuinfo."""
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.+)$", text_of("/proc/cpuinfo") or "", re.MULTILINE)
    return found.group(1).strip() if found else None


def model_name() -> str | None:
    """Return the board's name, or the processor's."""
    board = text_of("/proc/device-tree/model") or text_of("/sys/firmware/devicetree/base/model")
    return board or cpuinfo_field("model name") or cpuinfo_field("Hardware") or platform.processor() or None


def throttled() -> int | None:
    """Return the Raspberry Pi firmware's bit field, by sysfs or vcgencmd."""
    text = text_of("/sys/devices/platform/soc/soc:firmware/get_throttled")
    tool = shutil.which("vcgencmd")
    if text is None and tool:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run([tool, "get_throttled"], stdout=subprocess.PIPE, timeout=5, check=True)
            text = done.stdout.decode("ascii", "replace").strip()
    found = re.search(r"(?:0x)?([0-9a-fA-F]+)\s*$", text or "")
    return int(found.group(1), 16) if found else None


def frequency_policy(folder: Path) -> dict[str, Any]:
    """Return one cpufreq policy with its governor and its frequencies in kHz."""
    known: dict[str, Any] = {"name": folder.name, "governor": text_of(str(folder / "scaling_governor"))}
    for key, name in (("current_khz", "cur"), ("min_khz", "min"), ("max_khz", "max")):
        known[key] = integer_of(str(folder / f"scaling_{name}_freq"))
    return known


def temperatures() -> dict[str, float]:
    """Return degrees Celsius by thermal zone."""
    found = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        value = integer_of(str(zone / "temp"))
        if value is not None:
            found[("{}:{}".format(zone.name, text_of(str(zone / "type")) or "")).rstrip(":")] = value / 1000.0
    return found


def processor_seconds() -> tuple[float | None, float | None]:
    """Return (busy, stolen) processor seconds of the machine since it started."""
    found = re.match(r"cpu\s+([\d ]+)", text_of("/proc/stat") or "")
    ticks = [int(t) for t in found.group(1).split()] if found else []
    if len(ticks) < 8:
        return None, None
    per_second = os.sysconf("SC_CLK_TCK")
    return (ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]) / per_second, ticks[7] / per_second


def identity() -> dict[str, Any]:
    """Return what both the facts and the state of a machine tell."""
    kernel = f"{platform.system()} {platform.release()}"
    return {"machine": platform.machine(), "kernel": kernel, "cpus": os.cpu_count() or 1}


def environment() -> dict[str, Any]:
    """Return the machine's state; the fields are those of edge.measure.environment.Environment."""
    busy, steal = processor_seconds()
    load = None
    with contextlib.suppress(OSError, AttributeError):
        load = round(os.getloadavg()[0], 2)
    return {
        "cpu_model": model_name(),
        **identity(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "frequencies": [frequency_policy(f) for f in sorted(CPUFREQ.glob("policy*"))],
        "load_average": load,
        "temperatures_c": temperatures(),
        "throttled": throttled(),
        "busy_s": busy,
        "steal_s": steal,
        "own_s": sum(os.times()[:4]),
    }


def versions(name: str) -> str | None:
    """Return the version of an installed distribution without importing it; `?` where only the module is there."""
    import importlib.util

    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    try:
        from importlib import metadata
    except ImportError:  # Python 3.7
        return "?"
    for distribution in (name.replace("_", "-"), name + "-cpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    return "?"


def hello(_request: dict[str, Any]) -> dict[str, Any]:
    """Return what this device is; the fields are those of edge.devices.base.DeviceFacts."""
    system = re.search(r'^PRETTY_NAME="?([^"\n]*)', text_of("/etc/os-release") or "", re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", text_of("/proc/meminfo") or "", re.MULTILINE)
    disk = os.statvfs(".")
    return {
        "model": model_name(),
        **identity(),
        "system": system.group(1) if system else "",
        "cpu_part": cpuinfo_field("CPU part"),
        "cpu_features": (cpuinfo_field("Features") or "").split(),
        "memory_bytes": 1024 * int(memory.group(1)) if memory else None,
        "free_disk_bytes": disk.f_bavail * disk.f_frsize,
        "page_bytes": os.sysconf("SC_PAGE_SIZE"),
        "python": platform.python_version(),
        "numpy": versions("numpy"),
        "runtimes": {name: versions(name) for name in RUNTIMES if versions(name)},
        "emulated": Path("/etc/edgekit-emulator").exists(),
    }


def litert_module() -> Any:
    """Return the first module that has an Interpreter."""
    for name in ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite"):
        try:
            return __import__(name, fromlist=["Interpreter"])
        except ImportError:
            continue
    raise RefusalError("no-runtime", "no runtime for .tflite programs is installed", hint=LITERT_HINT)


def resolver_of(module: Any, kernels: str) -> Any:
    """Return the op resolver of a kernel set, or None for the default of an old runtime (XNNPACK)."""
    kinds = getattr(module, "OpResolverType", None) or getattr(
        getattr(module, "experimental", None), "OpResolverType", None
    )
    names = {"reference": "BUILTIN_REF", "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "xnnpack": "BUILTIN"}
    if kernels not in names:
        raise RefusalError(
            "request", "the kernel set {!r} is unknown; accepted: {}".format(kernels, ", ".join(sorted(names)))
        )
    if kinds is None and kernels != "xnnpack":
        raise RefusalError("request", f"this runtime is too old to choose the {kernels} kernels")
    return getattr(kinds, names[kernels]) if kinds else None


class LiteRTProgram:
    """A .tflite program; inputs and outputs are tensor indices, given in the order of the files."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        module = litert_module()
        options: dict[str, Any] = {"num_threads": wanted["threads"]}
        resolver = resolver_of(module, wanted["kernels"])
        if resolver is not None:
            options["experimental_op_resolver_type"] = resolver
        try:
            if wanted.get("delegate"):
                options["experimental_delegates"] = [module.load_delegate(wanted["delegate"])]
            self._made = module.Interpreter(model_path=wanted["path"], **options)
            self._made.allocate_tensors()
        except (ValueError, RuntimeError, OSError) as error:
            raise RefusalError("load", f"the runtime cannot load the program: {error}") from error
        self._inputs, self._outputs = wanted["inputs"], wanted["outputs"]
        self._stateful = bool(wanted.get("stateful"))
        self._shapes = {d["index"]: tuple(d["shape"]) for d in self._made.get_input_details()}

    def feed(self, values: list[Any]) -> None:
        """Copy the inputs in, after a new allocation where a shape has changed."""
        try:
            for index, value in zip(self._inputs, values):
                if self._shapes[index] != value.shape:
                    self._made.resize_tensor_input(index, value.shape)
                    self._made.allocate_tensors()
                    self._shapes[index] = value.shape
            self.copy_in(values)
        except (ValueError, RuntimeError) as error:
            raise RefusalError("run", f"the runtime does not take the input: {error}") from error

    def copy_in(self, values: list[Any]) -> None:
        """Copy inputs of the shapes that were fed before."""
        for index, value in zip(self._inputs, values):
            self._made.set_tensor(index, value)

    def invoke(self) -> None:
        """Run once, from zeroed state."""
        if self._stateful:
            self._made.reset_all_variables()
        try:
            self._made.invoke()
        except (ValueError, RuntimeError) as error:
            raise RefusalError("run", f"the runtime failed while running the program: {error}") from error

    def bare_invoke(self) -> Callable[[], Any]:
        """Return the native call alone where the runtime lets it be seen, to count no instruction of Python."""
        invoke: Callable[[], Any] = getattr(getattr(self._made, "_interpreter", None), "Invoke", self._made.invoke)
        return invoke

    def read(self) -> list[Any]:
        """Return copies of the outputs."""
        return [self._made.get_tensor(index) for index in self._outputs]


class ExecuTorchProgram:
    """A .pte program; inputs and outputs by position."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        try:
            import torch
            from executorch.runtime import Runtime
        except ImportError as error:
            raise RefusalError("no-runtime", f"executorch.runtime cannot be imported: {error}") from error
        torch.set_num_threads(wanted["threads"])
        self._torch = torch
        try:
            self._program = Runtime.get().load_program(wanted["path"])
            self._method = self._program.load_method("forward")
        except (RuntimeError, ValueError, OSError) as error:
            raise RefusalError("load", f"executorch cannot load the program: {error}") from error
        self._inputs: list[Any] = []
        self._results: list[Any] = []

    def feed(self, values: list[Any]) -> None:
        """Take the inputs."""
        self._inputs = [self._torch.from_numpy(v.copy()) for v in values]

    copy_in = feed

    def invoke(self) -> None:
        """Run once."""
        try:
            self._results = list(self._method.execute(self._inputs))
        except (RuntimeError, ValueError) as error:
            raise RefusalError("run", f"executorch failed while running the program: {error}") from error

    def bare_invoke(self) -> Callable[[], Any]:
        """Return the call."""
        return self.invoke

    def read(self) -> list[Any]:
        """Return copies of the outputs."""
        return [r.numpy().copy() for r in self._results]


PROGRAMS: dict[str, Callable[[dict[str, Any]], Any]] = {"litert": LiteRTProgram, "executorch": ExecuTorchProgram}


def open_program(request: dict[str, Any]) -> Any:
    """Load the program of a request."""
    return PROGRAMS[request["program"]["runtime"]](request["program"])


def load_samples(path: str) -> list[Any]:
    """Return the arrays of a file by position, samples first."""
    import numpy as np

    with np.load(path, allow_pickle=False) as data:
        return [data[str(i)] for i in range(len(data.files))]


def peak_rss_kib() -> int:
    """Return the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run all samples of `inputs` and write `outputs`."""
    import numpy as np

    arrays = load_samples(request["inputs"])
    started = time.perf_counter()
    program = open_program(request)
    loaded = time.perf_counter()
    collected: list[list[Any]] = []
    for sample in range(len(arrays[0])):
        program.feed([a[sample] for a in arrays])
        program.invoke()
        collected.append(program.read())
    partial = request["outputs"] + ".part"
    with open(partial, "wb") as stream:  # noqa: PTH123 - np.savez adds a suffix to paths
        stacked: dict[str, Any] = {str(i): np.stack([c[i] for c in collected]) for i in range(len(collected[0]))}
        np.savez(stream, **stacked)
    Path(partial).replace(request["outputs"])
    return {"samples": len(collected), "load_ms": 1e3 * (loaded - started), "peak_rss_kib": peak_rss_kib()}


def clock_ns() -> int:
    """Return the time of a clock that no time service slews, in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


def is_stable(durations: list[int], rule: dict[str, Any]) -> bool:
    """Tell whether the last window's median is within the tolerance of the one before."""
    window = rule["window"]
    if len(durations) < 2 * window:
        return False
    before, last = statistics.median(durations[-2 * window : -window]), statistics.median(durations[-window:])
    return bool(abs(last - before) <= rule["tolerance"] * before)


def warm_up(once: Callable[[], None], rule: dict[str, Any], now: Callable[[], int]) -> tuple[int, bool]:
    """Run until the rule holds or its cap is reached; return runs and whether they became stable."""
    durations: list[int] = []
    begin = now()
    while True:
        start = now()
        once()
        end = now()
        durations.append(end - start)
        elapsed = (end - begin) / 1e9
        stable = is_stable(durations, rule)
        enough = len(durations) >= rule["runs"] and elapsed >= rule["seconds"]
        if (enough and stable) or elapsed >= rule["cap_s"]:
            return len(durations), stable


def timed_loop(once: Callable[[], None], profile: dict[str, Any], now: Callable[[], int]) -> dict[str, Any]:
    """Run for the profile's runs and seconds; keep every second sample of a very long measurement."""
    durations, starts = array.array("q"), array.array("q")
    shortest, longest, wanted = profile["seconds"] * 1e9, profile["max_seconds"] * 1e9, profile["runs"]
    runs, stride, elapsed, begin = 0, 1, 0, now()
    while (runs < wanted or elapsed < shortest) and (elapsed < longest or not runs):
        start = now()
        once()
        end = now()
        if runs % stride == 0:
            durations.append(end - start)
            starts.append(start - begin)
            if len(durations) >= MAX_SAMPLES:
                durations, starts, stride = durations[::2], starts[::2], stride * 2
        runs += 1
        elapsed = end - begin
    return {"durations": durations, "starts": starts, "runs": runs, "duration_s": elapsed / 1e9}


def stop_garbage_collection() -> None:
    """Keep the garbage collector out of what is timed; the process ends with its request."""
    gc.collect()
    gc.disable()


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time the program with its inputs copied in and its outputs read back; raw times go to the file `samples`."""
    import numpy as np

    values, profile = [a[0] for a in load_samples(request["inputs"])], request["profile"]
    now = clock_ns
    started = now()
    program = open_program(request)
    loaded = now()
    program.feed(values)
    program.invoke()
    program.read()
    first = now()

    def once() -> None:
        program.copy_in(values)
        program.invoke()
        program.read()

    time.sleep(profile["cooldown_s"])
    readings = [now() for _ in range(1001)]
    warm_runs, stable = warm_up(once, profile["warm_up"], now)
    stop_garbage_collection()
    before = environment()
    timed = timed_loop(once, profile, now)
    after = environment()
    with open(request["samples"], "wb") as stream:  # noqa: PTH123 - np.savez adds a suffix to paths
        np.savez(stream, durations=np.array(timed["durations"], np.int64), starts=np.array(timed["starts"], np.int64))
    return {
        "load_ms": (loaded - started) / 1e6,
        "first_ms": (first - loaded) / 1e6,
        "warm_up_runs": warm_runs,
        "warm_up_stable": stable,
        "timer_overhead_ns": int(statistics.median(b - a for a, b in zip(readings, readings[1:]))),
        "clock": "CLOCK_MONOTONIC_RAW",
        "runs": timed["runs"],
        "duration_s": timed["duration_s"],
        "before": before,
        "after": after,
    }


def memory(request: dict[str, Any]) -> dict[str, Any]:
    """Return the peak resident size in KiB before runtime and program are loaded, after, and after one run."""
    values = [a[0] for a in load_samples(request["inputs"])]
    before = peak_rss_kib()
    program = open_program(request)
    loaded = peak_rss_kib()
    program.feed(values)
    program.invoke()
    program.read()
    return {"before_kib": before, "loaded_kib": loaded, "peak_kib": peak_rss_kib()}


def marked(invoke: Callable[[], Any], runs: int) -> None:
    """Run between marks: a system call that a plug-in of the emulator looks for."""
    mark = os.getppid
    mark()
    for _ in range(runs):
        invoke()
        mark()


def count(request: dict[str, Any]) -> dict[str, Any]:
    """Run between marks; the last `runs` stretches between two marks are one inference each."""
    values = [a[0] for a in load_samples(request["inputs"])]
    program = open_program(request)
    program.feed(values)
    program.invoke()
    stop_garbage_collection()
    # Python rewrites its own code in the first rounds of a loop: let it do so with a call that does nothing.
    marked(int, 64)
    marked(program.bare_invoke(), request["runs"])
    return {"runs": request["runs"]}


OPERATIONS = {"hello": hello, "run": run, "measure": measure, "memory": memory, "count": count}


def perform(request: dict[str, Any]) -> dict[str, Any]:
    """Do a request here; return the answer without its id."""
    try:
        if request["op"] not in OPERATIONS:
            raise RefusalError(
                "request", "operation {!r} is unknown; accepted: {}".format(request["op"], ", ".join(OPERATIONS))
            )
        return {"ok": True, "result": OPERATIONS[request["op"]](request)}
    except RefusalError as refusal:
        return {"ok": False, "error": refusal.error}
    except MemoryError:
        return {"ok": False, "error": {"kind": "memory", "message": "the device ran out of memory"}}
    except OSError as error:
        kind = "disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "system"
        return {"ok": False, "error": {"kind": kind, "message": str(error)}}
    except ImportError as error:
        return {"ok": False, "error": {"kind": "no-runtime", "message": str(error), "hint": LITERT_HINT}}
    except Exception as error:
        return {"ok": False, "error": {"kind": "agent", "message": f"{type(error).__name__}: {error}"}}


def child(request: dict[str, Any], answer_fd: int, log_fd: int) -> None:
    """Do the request in the child process and leave; what libraries print goes to the log."""
    with contextlib.suppress(Exception):  # when the agent is killed Linux shall kill its child
        __import__("ctypes").CDLL(None).prctl(1, signal.SIGKILL)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    faulthandler.enable()
    answer = json.dumps(perform(request)).encode()
    with os.fdopen(answer_fd, "wb") as stream:
        stream.write(answer)
    os._exit(0)


def collect(read_fd: int, deadline: float) -> bytes | None:
    """Return all that the child wrote, or None where its time is over."""
    parts: list[bytes] = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([read_fd], [], [], left)[0]:
            return None
        part = os.read(read_fd, 65536)
        if not part:
            return b"".join(parts)
        parts.append(part)


def tail_of(log: Any) -> str:
    """Return the end of the child's output."""
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - 2000))
    text: str = log.read().decode("utf-8", "replace").strip()
    return text


def death(status: int, log: Any) -> dict[str, Any]:
    """Return the answer for a child that gave none."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name
        kind = "memory" if number == signal.SIGKILL else "crash"
        text = f"the runtime was ended by {name} on the device"
        return {"kind": kind, "message": text, "signal": number, "tail": tail_of(log)}
    text = f"the runtime ended the process with code {os.WEXITSTATUS(status)} on the device"
    return {"kind": "crash", "message": text, "tail": tail_of(log)}


def supervise(request: dict[str, Any]) -> dict[str, Any]:
    """Do the request in a child; return its answer, or the diagnosis of its death."""
    read_fd, write_fd = os.pipe()
    with tempfile.TemporaryFile() as log:
        process = os.fork()
        if process == 0:
            os.close(read_fd)
            child(request, write_fd, log.fileno())
        os.close(write_fd)
        try:
            written = collect(read_fd, time.monotonic() + float(request.get("timeout_s", 600)))
        finally:
            os.close(read_fd)
        if written is None:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            text = "the program was still running after {:g} s".format(float(request.get("timeout_s", 600)))
            return {"ok": False, "error": {"kind": "timeout", "message": text, "tail": tail_of(log)}}
        _, status = os.waitpid(process, 0)
        with contextlib.suppress(ValueError):
            answer: dict[str, Any] = json.loads(written.decode())
            return answer
        return {"ok": False, "error": death(status, log)}


def respond(line: str) -> dict[str, Any]:
    """Return the answer to one line."""
    try:
        request = json.loads(line)
        version, number = request["edgekit"], request["id"]
    except (ValueError, KeyError, TypeError):
        return {"edgekit": PROTOCOL, "id": None, "ok": False, "error": {"kind": "request", "message": "no request"}}
    if version != PROTOCOL:
        text = f"protocol {version!r} is asked for; this agent speaks {PROTOCOL}"
        answer: dict[str, Any] = {"ok": False, "error": {"kind": "request", "message": text}}
    else:
        answer = perform(request) if request.get("inline") else supervise(request)
        for path in request.get("remove", ()):
            with contextlib.suppress(OSError):
                Path(path).unlink()
    return dict({"edgekit": PROTOCOL, "id": number}, **answer)


def main() -> None:
    """Answer every line of stdin."""
    for line in sys.stdin:
        if line.strip():
            sys.stdout.write(json.dumps(respond(line)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
