"""The emulated boards as data, and the files by which their software knows them (/proc/cpuinfo, cpufreq, thermal).

XNNPACK picks its kernels by the CPU part of /proc/cpuinfo, so an emulated board needs both the CPU and this file. The
values are those that Linux reports on the boards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CORES = 4


@dataclass(frozen=True, kw_only=True)
class Board:
    """One board; cache sizes in KiB, clocks in kHz. `l3_kib` is None where the second level is the last, and shared."""

    name: str
    title: str
    model: str
    cpu: str
    part: str
    variant: str
    revision: str
    board_revision: str
    features: str
    bogomips: str
    l1i_kib: int
    l1d_kib: int
    l2_kib: int
    l3_kib: int | None
    max_khz: int
    min_khz: int


_V8 = "fp asimd evtstrm crc32 cpuid"
_V82 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


def _a53(name: str, title: str, model: str, board_revision: str, max_khz: int) -> Board:
    return Board(
        name=name,
        title=title,
        model=model,
        cpu="cortex-a53",
        part="0xd03",
        variant="0x0",
        revision="4",
        board_revision=board_revision,
        features=_V8,
        bogomips="38.40",
        l1i_kib=32,
        l1d_kib=32,
        l2_kib=512,
        l3_kib=None,
        max_khz=max_khz,
        min_khz=600_000,
    )


BOARDS: dict[str, Board] = {
    board.name: board
    for board in (
        _a53("rpi-zero2", "Raspberry Pi Zero 2 W", "Raspberry Pi Zero 2 W Rev 1.0", "902120", 1_000_000),
        _a53("rpi3", "Raspberry Pi 3 Model B+", "Raspberry Pi 3 Model B Plus Rev 1.3", "a020d3", 1_400_000),
        Board(
            name="rpi4",
            title="Raspberry Pi 4 Model B",
            model="Raspberry Pi 4 Model B Rev 1.4",
            cpu="cortex-a72",
            part="0xd08",
            variant="0x0",
            revision="3",
            board_revision="c03114",
            features=_V8,
            bogomips="108.00",
            l1i_kib=48,
            l1d_kib=32,
            l2_kib=1024,
            l3_kib=None,
            max_khz=1_800_000,
            min_khz=600_000,
        ),
        Board(
            name="rpi5",
            title="Raspberry Pi 5",
            model="Raspberry Pi 5 Model B Rev 1.0",
            cpu="cortex-a76",
            part="0xd0b",
            variant="0x4",
            revision="1",
            board_revision="c04170",
            features=_V82,
            bogomips="108.00",
            l1i_kib=64,
            l1d_kib=64,
            l2_kib=512,
            l3_kib=2048,
            max_khz=2_400_000,
            min_khz=1_500_000,
        ),
    )
}


def _cpuinfo(board: Board) -> str:
    cores = "".join(
        f"processor\t: {core}\nBogoMIPS\t: {board.bogomips}\nFeatures\t: {board.features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: {board.variant}\nCPU part\t: {board.part}\n"
        f"CPU revision\t: {board.revision}\n\n"
        for core in range(CORES)
    )
    return f"{cores}Revision\t: {board.board_revision}\nSerial\t\t: 1000000000000001\nModel\t\t: {board.model}\n"


def _caches(board: Board, core: int) -> Iterator[tuple[str, str, int, str]]:
    """Yield (level, type, KiB, cores that share it)."""
    everyone, alone = f"0-{CORES - 1}", str(core)
    yield "1", "Data", board.l1d_kib, alone
    yield "1", "Instruction", board.l1i_kib, alone
    yield "2", "Unified", board.l2_kib, everyone if board.l3_kib is None else alone
    if board.l3_kib is not None:
        yield "3", "Unified", board.l3_kib, everyone


def _core_files(board: Board, core: int) -> Iterator[tuple[str, str]]:
    folder = f"sys/devices/system/cpu/cpu{core}"
    for name, text in (
        ("physical_package_id", "0"),
        ("core_id", str(core)),
        ("cluster_id", "0" if board.l3_kib is None else "-1"),
        ("core_siblings", f"{(1 << CORES) - 1:x}"),
        ("core_siblings_list", f"0-{CORES - 1}"),
        ("cluster_cpus_list", f"0-{CORES - 1}"),
        ("package_cpus_list", f"0-{CORES - 1}"),
        ("thread_siblings", f"{1 << core:x}"),
        ("thread_siblings_list", str(core)),
    ):
        yield f"{folder}/topology/{name}", text
    for number, (level, kind, kib, shared) in enumerate(_caches(board, core)):
        place = f"{folder}/cache/index{number}"
        yield f"{place}/level", level
        yield f"{place}/type", kind
        yield f"{place}/size", f"{kib}K"
        yield f"{place}/shared_cpu_list", shared
        yield f"{place}/coherency_line_size", "64"


def _frequency_files(board: Board) -> Iterator[tuple[str, str]]:
    for folder in ["cpufreq/policy0", *(f"cpu{core}/cpufreq" for core in range(CORES))]:
        for name, text in (
            ("scaling_governor", "ondemand"),
            ("scaling_available_governors", "conservative ondemand userspace powersave performance schedutil"),
            ("scaling_cur_freq", str(board.max_khz)),
            ("scaling_min_freq", str(board.min_khz)),
            ("scaling_max_freq", str(board.max_khz)),
            ("cpuinfo_max_freq", str(board.max_khz)),
            ("cpuinfo_min_freq", str(board.min_khz)),
        ):
            yield f"sys/devices/system/cpu/{folder}/{name}", text


def overlay(board: Board) -> dict[str, str]:
    """Return the board's files: path below / -> text."""
    files = {
        "proc/cpuinfo": _cpuinfo(board),
        "proc/device-tree/model": board.model + "\0",
        "sys/firmware/devicetree/base/model": board.model + "\0",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48199\n",
        "sys/devices/system/cpu/kernel_max": "255\n",
        "sys/devices/system/cpu/offline": "\n",
    }
    for name in ("possible", "present", "online"):
        files[f"sys/devices/system/cpu/{name}"] = f"0-{CORES - 1}\n"
    for core in range(CORES):
        files |= {path: text + "\n" for path, text in _core_files(board, core)}
    return files | {path: text + "\n" for path, text in _frequency_files(board)}


def write_overlay(board: Board, root: Path) -> None:
    """Write the board's files below `root`."""
    for path, text in overlay(board).items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
