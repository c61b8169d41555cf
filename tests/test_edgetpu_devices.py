"""Corals found in a made-up /sys and /dev, and the errors where device, library or model are not right."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from edge.errors import DeviceError, SourceError
from edge.targets.edgetpu import devices
from edge.targets.edgetpu.devices import Coral
from tests import edgetpu_packages as writer
from tests.edgetpu_models import chain


def usb(root: Path, port: str, vendor: str, product: str, speed: str = "5000") -> None:
    """Add a USB device as the kernel shows it."""
    folder = root / "sys/bus/usb/devices" / port
    folder.mkdir(parents=True)
    for name, text in (("idVendor", vendor), ("idProduct", product), ("speed", speed)):
        (folder / name).write_text(text + "\n")


def apex(root: Path, number: int, temperature: str | None = "47550") -> None:
    """Add a PCIe Edge TPU with its driver's temperature file."""
    (root / "dev").mkdir(exist_ok=True)
    (root / f"dev/apex_{number}").write_text("")
    if temperature is not None:
        folder = root / f"sys/class/apex/apex_{number}"
        folder.mkdir(parents=True)
        (folder / "temp").write_text(temperature + "\n")


def library(root: Path, package: str = "libedgetpu1-std", status: str = "install ok installed") -> Path:
    """Add the library and what the package manager says of it."""
    path = root / "usr/lib/aarch64-linux-gnu/libedgetpu.so.1"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no library")
    dpkg = root / "var/lib/dpkg/status"
    dpkg.parent.mkdir(parents=True)
    dpkg.write_text(
        f"Package: adduser\nStatus: install ok installed\nVersion: 3.134\n\n"
        f"Package: {package}\nStatus: {status}\nVersion: 16.0\nDescription: Support library\n Version: not this\n"
    )
    return path


def test_lists_usb_accelerators_before_and_after_first_use(tmp_path: Path) -> None:
    """Both ids are found, with the state and the link's speed; other devices are not."""
    usb(tmp_path, "1-1", "1A6E", "089A", "480")
    usb(tmp_path, "2-1", "18d1", "9302")
    usb(tmp_path, "2-2", "18d1", "4ee7")
    first, second = devices.attached(tmp_path)
    assert (first.name, first.state, first.speed_mbps) == ("usb:0", "fresh", 480)
    assert (second.name, second.state, second.speed_mbps) == ("usb:1", "ready", 5000)


def test_lists_pcie_devices_with_temperature(tmp_path: Path) -> None:
    """Every /dev/apex_N is found in order of its number, with degrees where the driver gives them."""
    for number, temperature in ((10, "60000"), (2, None), (0, "47550"), (1, "broken")):
        apex(tmp_path, number, temperature)
    found = devices.attached(tmp_path)
    assert [d.name for d in found] == ["pci:0", "pci:1", "pci:2", "pci:10"]
    assert [d.temperature_c for d in found] == [47.55, None, None, 60.0]


def test_a_device_that_vanishes_is_skipped(tmp_path: Path) -> None:
    """A USB entry without readable ids is not a Coral and not an error."""
    (tmp_path / "sys/bus/usb/devices/1-1").mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/apex_control").write_text("")
    assert devices.attached(tmp_path) == ()


@pytest.mark.parametrize(("name", "variant"), [("libedgetpu1-std", "std"), ("libedgetpu1-max", "max")])
def test_finds_the_library_with_its_variant(tmp_path: Path, name: str, variant: str) -> None:
    """Path, std or max, and the version of the package are recorded."""
    path = library(tmp_path, name)
    found = devices.find_library(tmp_path)
    assert found == devices.Library(path=str(path), variant=variant, version="16.0")  # type: ignore[arg-type]


def test_a_removed_package_is_not_taken_for_installed(tmp_path: Path) -> None:
    """A library whose package left only its configuration has no variant and no version."""
    library(tmp_path, status="deinstall ok config-files")
    found = devices.find_library(tmp_path)
    assert found is not None
    assert (found.variant, found.version) == (None, None)


def test_no_library_is_none(tmp_path: Path) -> None:
    """A machine without the library says so by None."""
    assert devices.find_library(tmp_path) is None


def test_describes_everything_for_the_command(tmp_path: Path) -> None:
    """`edgekit devices` gets plain data."""
    apex(tmp_path, 0)
    library(tmp_path)
    told = devices.describe(tmp_path)
    assert told["devices"][0]["name"] == "pci:0"
    assert told["library"]["variant"] == "std"


def test_selects_by_name_and_by_default_the_first() -> None:
    """A device is chosen by its name or path; a wrong name lists what is attached."""
    corals = (Coral(name="usb:0", bus="usb", path="/u"), Coral(name="pci:0", bus="pcie", path="/dev/apex_0"))
    assert devices.select(None, corals) == corals[0]
    assert devices.select("/dev/apex_0", corals) == corals[1]
    with pytest.raises(DeviceError, match="no Coral 'usb:7'; attached: usb:0, pci:0"):
        devices.select("usb:7", corals)


def test_an_absent_device_says_what_to_do(tmp_path: Path) -> None:
    """Without a device the error is a DeviceError, exit code 3, with what to plug in or load."""
    model = tmp_path / "m_edgetpu.tflite"
    model.write_bytes(writer.compiled(chain(), [True] * 4))
    with pytest.raises(DeviceError, match="No Coral device is attached") as caught:
        devices.open_edgetpu(model, root=tmp_path)
    assert caught.value.exit_code == 3
    assert "apex" in str(caught.value.hint)


def test_an_absent_library_says_how_to_get_it(tmp_path: Path) -> None:
    """A device without the library names the package."""
    model = tmp_path / "m_edgetpu.tflite"
    model.write_bytes(writer.compiled(chain(), [True] * 4))
    apex(tmp_path, 0)
    with pytest.raises(DeviceError, match=r"libedgetpu\.so\.1 is not on this machine") as caught:
        devices.open_edgetpu(model, root=tmp_path)
    assert "libedgetpu1-std" in str(caught.value.hint)


def test_a_library_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    """A file that is no library is a DeviceError with its path."""
    model = tmp_path / "m_edgetpu.tflite"
    model.write_bytes(writer.compiled(chain(), [True] * 4))
    apex(tmp_path, 0)
    path = library(tmp_path)
    with pytest.raises(DeviceError, match="cannot be loaded") as caught:
        devices.open_edgetpu(model, root=tmp_path)
    assert str(path) in caught.value.message


def test_a_model_that_is_not_compiled_is_refused_first(tmp_path: Path) -> None:
    """An ordinary int8 model would run on the CPU and be measured as if on the chip."""
    model = tmp_path / "m.tflite"
    model.write_bytes(chain())
    with pytest.raises(SourceError, match="not a compiled Edge TPU model"):
        devices.open_edgetpu(model, root=tmp_path)


def test_only_googles_pycoral_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The PyPI package of that name has no pycoral.utils.edgetpu and is not used."""
    other: Any = types.ModuleType("pycoral")
    other.__path__ = []
    monkeypatch.setitem(sys.modules, "pycoral", other)
    assert not devices.google_pycoral()
    utils: Any = types.ModuleType("pycoral.utils")
    utils.__path__ = []
    edgetpu: Any = types.ModuleType("pycoral.utils.edgetpu")
    edgetpu.__spec__ = types.SimpleNamespace(name="pycoral.utils.edgetpu")
    monkeypatch.setitem(sys.modules, "pycoral.utils", utils)
    monkeypatch.setitem(sys.modules, "pycoral.utils.edgetpu", edgetpu)
    assert devices.google_pycoral()
