"""Find attached Coral devices and the Edge TPU library, and run a compiled model on one.

Looking uses the kernel's files alone and loads no library. Every path stands below `root`, which tests replace.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edge.errors import DeviceError, MissingPackageError
from edge.targets.edgetpu import package

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

Bus = Literal["usb", "pcie"]
LIBRARY = "libedgetpu.so.1"
# A USB accelerator has the first id from plugging in until a program first opens it, then the second.
_FRESH, _READY = ("1a6e", "089a"), ("18d1", "9302")
_LIBRARY_FOLDERS = (
    *("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib/arm-linux-gnueabihf"),
    *("usr/lib", "usr/lib64", "usr/local/lib"),
)
_DPKG_STATUS = "var/lib/dpkg/status"
HOW_TO_GET = (
    "Install the Debian package libedgetpu1-std (or libedgetpu1-max, a higher clock that gets hot) of Google's Coral "
    "package repository; see the page Get started of the Coral documentation."
)


@dataclass(frozen=True, kw_only=True)
class Coral:
    """An attached Edge TPU. `name` is what `open_edgetpu` takes: `usb:0`, `pci:0`.

    `state` is `fresh` for a USB accelerator that no program has opened since it was plugged in. `speed_mbps` is the USB
    link (5000: USB 3, 480: USB 2). `temperature_c` is None where the driver gives none (USB never does).
    """

    name: str
    bus: Bus
    path: str
    state: Literal["fresh", "ready"] = "ready"
    speed_mbps: int | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, kw_only=True)
class Library:
    """The Edge TPU library: where it is, its clock variant and its package's version, None where unknown."""

    path: str
    variant: Literal["std", "max"] | None = None
    version: str | None = None


def _text(path: Path) -> str:
    """Return a short file of the kernel, empty where it cannot be read (a device may vanish meanwhile)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def temperature_c(raw: str) -> float | None:
    """Return degrees Celsius from the driver's text in thousandths of a degree, `47550` -> 47.55."""
    value = _number(raw)
    return None if value is None else value / 1000


def _usb(root: Path) -> Iterator[Coral]:
    number = 0
    for device in sorted(root.glob("sys/bus/usb/devices/*")):
        ids = (_text(device / "idVendor").lower(), _text(device / "idProduct").lower())
        if ids in (_FRESH, _READY):
            speed = _number(_text(device / "speed"))
            yield Coral(
                name=f"usb:{number}",
                bus="usb",
                path=str(device),
                state="fresh" if ids == _FRESH else "ready",
                speed_mbps=int(speed) if speed else None,
            )
            number += 1


def _pcie(root: Path) -> Iterator[Coral]:
    devices = [p for p in root.glob("dev/apex_*") if re.fullmatch(r"apex_\d{1,3}", p.name)]
    for device in sorted(devices, key=lambda p: int(p.name.removeprefix("apex_"))):
        yield Coral(
            name=f"pci:{device.name.removeprefix('apex_')}",
            bus="pcie",
            path=str(device),
            temperature_c=temperature_c(_text(root / "sys/class/apex" / device.name / "temp")),
        )


def attached(root: Path = Path("/")) -> tuple[Coral, ...]:
    """Return the attached Corals: USB accelerators, then PCIe and M.2 modules (Linux; none elsewhere)."""
    return (*_usb(root), *_pcie(root))


def find_library(root: Path = Path("/")) -> Library | None:
    """Return the Edge TPU library with its variant and version as the package manager knows them, None without one."""
    folders = (root / folder / LIBRARY for folder in _LIBRARY_FOLDERS)
    found = next((str(path) for path in folders if path.is_file()), None)
    if found is None and root == Path("/"):
        found = ctypes.util.find_library("edgetpu")
    if found is None:
        return None
    variant, version = _installed(root)
    return Library(path=found, variant=variant, version=version)


def _installed(root: Path) -> tuple[Literal["std", "max"] | None, str | None]:
    """Return variant and version of an installed Debian package libedgetpu1-std or -max."""
    for entry in _text(root / _DPKG_STATUS).split("\n\n"):
        fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line and line[0] != " ")
        name, status = fields.get("Package", ""), fields.get("Status", "")
        if name in ("libedgetpu1-std", "libedgetpu1-max") and status.endswith(" installed"):
            return ("max" if name.endswith("max") else "std"), fields.get("Version")
    return None, None


def runtime_version(library: Library) -> str | None:
    """Load the library and return the version that it states of itself (`edgetpu_version`), None where it has none.

    Raises DeviceError for a library that cannot be loaded.
    """
    try:
        handle = ctypes.CDLL(library.path)
    except OSError as error:
        raise DeviceError(f"The Edge TPU library {library.path} cannot be loaded: {error}.", hint=HOW_TO_GET) from error
    with contextlib.suppress(AttributeError):
        handle.edgetpu_version.restype = ctypes.c_char_p
        stated = handle.edgetpu_version()
        return stated.decode(errors="replace") if stated else None
    return None


def select(device: str | None, devices: tuple[Coral, ...]) -> Coral:
    """Return the device of that name, the first without one; raise DeviceError."""
    if not devices:
        raise DeviceError(
            "No Coral device is attached.",
            hint="Plug a USB accelerator in, or load the gasket and apex drivers for a PCIe module; in a container "
            "pass /dev/bus/usb or /dev/apex_0 through. `edgekit devices` lists what is seen.",
        )
    if device is None:
        return devices[0]
    found = next((d for d in devices if device in (d.name, d.path)), None)
    if found is None:
        raise DeviceError(f"There is no Coral {device!r}; attached: {', '.join(d.name for d in devices)}.")
    return found


def google_pycoral() -> bool:
    """Tell whether Google's own pycoral is importable: the package of that name on PyPI is another."""
    try:
        return importlib.util.find_spec("pycoral.utils.edgetpu") is not None
    except (ImportError, AttributeError, ValueError):
        return False


@dataclass(frozen=True, kw_only=True)
class EdgeTpuSession:
    """A compiled model opened on a device; `used` names what opened it. Not for use from two threads."""

    device: Coral
    library: Library
    runtime_version: str | None
    used: Literal["ai_edge_litert", "pycoral"]
    interpreter: Any

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; inputs and outputs by tensor name, in the program's dtypes. Raises DeviceError."""
        for entry in self.interpreter.get_input_details():
            self.interpreter.set_tensor(entry["index"], inputs[entry["name"]])
        try:
            self.interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise DeviceError(
                f"The Edge TPU {self.device.name} failed while it ran: {error}.",
                hint="Plug it in again, on a USB 3 port with enough power; check its temperature.",
            ) from error
        details = self.interpreter.get_output_details()
        return {entry["name"]: self.interpreter.get_tensor(entry["index"]) for entry in details}

    def temperature_c(self, root: Path = Path("/")) -> float | None:
        """Return the chip's temperature now, None for USB."""
        name = Path(self.device.path).name
        return temperature_c(_text(root / "sys/class/apex" / name / "temp")) if self.device.bus == "pcie" else None


def open_edgetpu(path: Path, device: str | None = None, *, root: Path = Path("/")) -> EdgeTpuSession:
    """Open a compiled `*_edgetpu.tflite` on an attached Coral (`usb:0`, `pci:0`, None for the first).

    Call it in a child process: a library that does not fit the device crashes. Google's pycoral opens the model where
    it is importable, ai-edge-litert with the delegate elsewhere. Raises SourceError for a model that is not compiled,
    DeviceError for an absent device or library, MissingPackageError without an interpreter.
    """
    package.read(path)
    chosen = select(device, attached(root))
    library = find_library(root)
    if library is None:
        raise DeviceError(f"The Edge TPU library {LIBRARY} is not on this machine.", hint=HOW_TO_GET)
    version = runtime_version(library)
    used: Literal["ai_edge_litert", "pycoral"] = "pycoral" if google_pycoral() else "ai_edge_litert"
    try:
        interpreter = _by_pycoral(path, chosen) if used == "pycoral" else _by_litert(path, chosen, library)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError, OSError) as error:
        raise DeviceError(
            f"The model cannot be opened on the Edge TPU {chosen.name} with {library.path}: {error}.",
            hint="Another program may hold the device, your user may not have access to it (group plugdev or apex), or "
            "the library may be older than the model's minimum runtime version.",
        ) from error
    return EdgeTpuSession(device=chosen, library=library, runtime_version=version, used=used, interpreter=interpreter)


def _by_pycoral(path: Path, device: Coral) -> Any:
    from pycoral.utils import edgetpu

    return edgetpu.make_interpreter(str(path), device=device.name)


def _by_litert(path: Path, device: Coral, library: Library) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter, load_delegate
    except ImportError as error:
        raise MissingPackageError(
            "Running a compiled model needs ai-edge-litert or Google's pycoral, and neither is installed.",
            hint="pip install 'edgekit[litert]'",
        ) from error
    delegate = load_delegate(library.path, {"device": device.name})
    return Interpreter(model_path=str(path), experimental_delegates=[delegate])


def describe(root: Path = Path("/")) -> dict[str, Any]:
    """Return devices and library as JSON-compatible data for `edgekit devices` and the report."""
    library = find_library(root)
    return {
        "devices": [vars(device) for device in attached(root)],
        "library": vars(library) if library else None,
        "pycoral": google_pycoral(),
    }
