"""What the machine was doing while something was measured on it: processor, clocks, temperature, load."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

_CPUFREQ = "sys/devices/system/cpu/cpufreq"
_THROTTLED_NOW = 0xF  # bits of the Raspberry Pi firmware: under-voltage, capped, throttled, soft temperature limit


@dataclass(frozen=True, kw_only=True)
class FrequencyPolicy:
    """The frequency setting of a group of processors, in kHz, as cpufreq gives it."""

    name: str
    governor: str | None = None
    current_khz: int | None = None
    min_khz: int | None = None
    max_khz: int | None = None


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One reading. None, or nothing, where the system does not tell.

    `busy_s`, `steal_s` are processor seconds of the whole machine since it started, `own_s` those of this process and
    its ended children: differences of two readings give the load of others. `throttled` is the Raspberry Pi firmware's
    bit field. Temperatures in degrees Celsius by sensor.
    """

    cpu_model: str | None = None
    machine: str = ""
    kernel: str = ""
    cpus: int = 1
    affinity: tuple[int, ...] = ()
    frequencies: tuple[FrequencyPolicy, ...] = ()
    load_average: float | None = None
    temperatures_c: dict[str, float] = field(default_factory=dict)
    throttled: int | None = None
    busy_s: float | None = None
    steal_s: float | None = None
    own_s: float = 0.0

    @property
    def throttled_now(self) -> bool:
        """Whether the firmware holds the processor back at this moment."""
        return bool((self.throttled or 0) & _THROTTLED_NOW)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return None


def _integer(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and re.fullmatch(r"-?\d+", text) else None


def _cpu_model(root: Path) -> str | None:
    board = _text(root / "proc/device-tree/model")
    names = re.findall(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", _text(root / "proc/cpuinfo") or "", re.MULTILINE)
    return board or (names[0] if names else platform.processor() or None)


def _frequencies(root: Path) -> tuple[FrequencyPolicy, ...]:
    return tuple(
        FrequencyPolicy(
            name=folder.name,
            governor=_text(folder / "scaling_governor"),
            current_khz=_integer(folder / "scaling_cur_freq"),
            min_khz=_integer(folder / "scaling_min_freq"),
            max_khz=_integer(folder / "scaling_max_freq"),
        )
        for folder in sorted((root / _CPUFREQ).glob("policy*"))
    )


def _temperatures(root: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        if (value := _integer(zone / "temp")) is not None:
            found[f"{zone.name}:{_text(zone / 'type') or ''}".rstrip(":")] = value / 1000
    return found


def _throttled(root: Path) -> int | None:
    """Return the firmware's bit field by sysfs, else by vcgencmd where this machine has it."""
    text = _text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    if text is None and root == Path("/") and (tool := shutil.which("vcgencmd")):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            text = subprocess.run([tool, "get_throttled"], capture_output=True, text=True, timeout=2, check=True).stdout
    digits = re.search(r"(?:0x)?([0-9a-fA-F]+)\s*$", text or "")
    return int(digits[1], 16) if digits else None


def _processor_seconds(root: Path) -> tuple[float | None, float | None]:
    """Return (busy, stolen) processor seconds of the machine from the first line of /proc/stat."""
    fields = re.match(r"cpu\s+([\d ]+)", _text(root / "proc/stat") or "")
    ticks = [int(value) for value in fields[1].split()] if fields else []
    if len(ticks) < 8:
        return None, None
    per_second = os.sysconf("SC_CLK_TCK")
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks[:8]
    return (user + nice + system + irq + softirq) / per_second, steal / per_second


def read_environment(root: Path = Path("/")) -> Environment:
    """Read this machine's state in a few milliseconds; `root` stands for / in tests. Never raises."""
    busy, steal = _processor_seconds(root)
    affinity = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    load = None
    with contextlib.suppress(OSError):
        load = round(os.getloadavg()[0], 2)
    return Environment(
        cpu_model=_cpu_model(root),
        machine=platform.machine(),
        kernel=f"{platform.system()} {platform.release()}",
        cpus=os.cpu_count() or 1,
        affinity=affinity,
        frequencies=_frequencies(root),
        load_average=load,
        temperatures_c=_temperatures(root),
        throttled=_throttled(root),
        busy_s=busy,
        steal_s=steal,
        own_s=sum(os.times()[:4]),
    )
