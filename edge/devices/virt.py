"""A whole emulated machine under qemu-system, for true memory: Debian kernel, file system in memory, native runner.

qemu-user has no memory of its own: the peak that is read there contains the emulator's. Here the kernel is the guest's,
so peak and limit are those of the program. The working folder is shared with this host by 9p; commands travel over the
serial line. It starts in seconds to a minute, and is several times slower than qemu-user.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import re
import selectors
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from edge import codec
from edge.artifact import translating_os_errors
from edge.devices import sysroot
from edge.devices.base import DEFAULT_TIMEOUT_S, Closing, Completed, DeviceFacts, DeviceMode, DeviceSpec, hashed_name
from edge.devices.local import finish
from edge.devices.places import cache_folder
from edge.devices.sysroot import Mirror, Package
from edge.errors import DeviceError, MissingPackageError, ToolError
from edge.isolate import Progress, no_progress

VERSION = 1
WORK = "/work"
_BOOT_TIMEOUT_S = 300.0
_PACKAGES = ("linux-image-arm64", "busybox-static")
# Modules of the transport and the shared folder; which of them are built in differs between kernels.
_MODULES = ("virtio", "virtio_ring", "virtio_mmio", "netfs", "fscache", "9pnet", "9pnet_virtio", "9p")
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for round in 1 2 3 4; do for module in /modules/*.ko; do insmod "$module" 2>/dev/null; done; done
mount -t 9p -o trans=virtio,version=9p2000.L,cache=mmap,msize=262144 work /work || echo edgekit-failed
echo edgekit-up
while read -r number; do
  cd /work
  sh "command-$number" <"stdin-$number" >"stdout-$number" 2>"stderr-$number"
  echo "$?" >"code-$number"
  sync
  echo "edgekit-done $number"
done
poweroff -f
"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """An emulated machine with a board's CPU and memory; it is no model of the board's other parts."""

    name: str
    title: str
    cpu: str
    memory_mb: int


MACHINES = {
    machine.name: machine
    for machine in (
        Machine(name="virt", title="Cortex-A53, 512 MB, as a Pi Zero 2 W", cpu="cortex-a53", memory_mb=512),
        Machine(name="virt-rpi3", title="Cortex-A53, 1 GB, as a Pi 3", cpu="cortex-a53", memory_mb=1024),
        Machine(name="virt-rpi4", title="Cortex-A72, 2 GB, as a Pi 4", cpu="cortex-a72", memory_mb=2048),
        Machine(name="virt-rpi5", title="Cortex-A76, 2 GB, as a Pi 5", cpu="cortex-a76", memory_mb=2048),
    )
}


def folder() -> Path:
    """Return the place of kernel and file system, which need not exist."""
    return cache_folder() / "emulator" / "virt"


def installed() -> dict[str, object] | None:
    """Return the record of what is set up, or None."""
    try:
        found: dict[str, object] = json.loads((folder() / "setup.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("version") == VERSION else None


def qemu() -> str:
    """Return the path of qemu-system-aarch64; raise MissingPackageError."""
    if found := shutil.which("qemu-system-aarch64"):
        return found
    raise MissingPackageError(
        "qemu-system-aarch64 is not installed; it runs emulator:virt.",
        hint="`apt-get install --no-install-recommends qemu-system-arm` (Debian, Ubuntu).",
    )


def plan(*, mirror: Mirror | None = None, progress: Progress = no_progress) -> tuple[Package, ...]:
    """Return the packages that will be fetched; only package lists travel. Raises MissingPackageError, ToolError."""
    with sysroot.private_apt(mirror, progress) as apt:
        listed = apt.run("install", "-y", "--no-install-recommends", "--print-uris", *_PACKAGES)
    return _chosen(listed)


def _chosen(listed: str) -> tuple[Package, ...]:
    """Return kernel and busybox among the packages of a closure; the rest is for machines that boot from disks."""
    found = [
        Package(file=unquote(m[2]), size_bytes=int(m[3]), uri=m[1])
        for m in re.finditer(r"^'([^']+)' (\S+\.deb) (\d+)", listed, re.MULTILINE)
    ]
    chosen = tuple(p for p in found if re.match(r"linux-image-\d|busybox-static_", p.file))
    if len(chosen) != len(_PACKAGES):
        raise ToolError(
            "The Debian mirror offers no kernel or no busybox for arm64.", hint="Give another one: --mirror."
        )
    return chosen


def setup(packages: Sequence[Package], *, mirror: Mirror | None = None, progress: Progress = no_progress) -> Path:
    """Fetch and unpack; kernel and file system appear whole or not at all. Raises MissingPackageError, ToolError."""
    target = folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".virt-") as temporary:
        place = Path(temporary)
        made = place / "made"
        made.mkdir()
        with sysroot.private_apt(mirror, progress) as apt:
            progress(f"fetching {sum(p.size_bytes for p in packages) / 1e6:.0f} MB of Debian packages", None)
            apt.run("download", *(p.file.split("_", 1)[0] for p in packages), cwd=place)
        progress("unpacking", None)
        for deb in place.glob("*.deb"):
            sysroot.unpack(deb, place / "root")
        _keep(place / "root", made)
        record = {"version": VERSION, "packages": sorted(p.file for p in packages)}
        codec.write_atomically(made / "setup.json", codec.dumps(record))
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    return target


def _keep(root: Path, made: Path) -> None:
    """Keep the kernel, and a file system of busybox, the modules and the first program."""
    kernel = next(root.glob("boot/vmlinuz-*"), None)
    busybox = next((p for name in ("bin", "usr/bin") if (p := root / name / "busybox").exists()), None)
    if kernel is None or busybox is None:
        raise ToolError("The packages have no kernel or no busybox.", hint="Give another mirror with --mirror.")
    shutil.copyfile(kernel, made / "kernel")
    files = {"bin/busybox": busybox.read_bytes(), "init": _INIT.encode()}
    files["etc/os-release"] = b'PRETTY_NAME="Debian kernel, busybox (emulated machine)"\n'
    files["etc/edgekit-emulator"] = b"No time that is measured here is a time of a board.\n"
    for name, content in _modules(root):
        files[f"modules/{name}.ko"] = content
    (made / "initramfs").write_bytes(archive(files, ("dev", "proc", "sys", "tmp", "work")))


def _modules(root: Path) -> Iterator[tuple[str, bytes]]:
    for path in root.rglob("*.ko*"):
        name = path.name.split(".ko", 1)[0]
        if name in _MODULES:
            content = path.read_bytes()
            yield name, lzma.decompress(content) if path.suffix == ".xz" else content


def archive(files: dict[str, bytes], folders: Sequence[str] = ()) -> bytes:
    """Return a cpio archive of the format `newc`, as kernels unpack (Documentation/driver-api/early-userspace)."""
    parents = {str(p) for name in files for p in Path(name).parents if str(p) != "."}
    entries = [(name, 0o040755, b"") for name in sorted(parents | set(folders))]
    entries += [(name, 0o100755, content) for name, content in files.items()]
    made = b"".join(_entry(number, *entry) for number, entry in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1))
    return made + bytes(-len(made) % 512)


def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    size = len(name) + 1
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, size, 0)
    head = b"070701" + b"".join(b"%08x" % value for value in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


class VirtDevice(Closing):
    """One machine that runs until `close`. Raises DeviceError, MissingPackageError."""

    def __init__(self, spec: DeviceSpec) -> None:
        emulator = qemu()
        if installed() is None:
            raise DeviceError(
                "The kernel of the emulated machine is not set up.", hint="Run `edgekit emulator setup virt` once."
            )
        self.spec = spec
        self.mode: DeviceMode = "emulated"
        self.python = spec.options.get("python", "python3")
        self.workdir = WORK
        self._count = 0
        self._place = Path(tempfile.mkdtemp(prefix="edgekit-virt-"))
        self._said = b""
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = self._start(emulator, MACHINES[spec.address])
            self._wait_for("edgekit-up", _BOOT_TIMEOUT_S, "the start")
            if b"edgekit-failed" in self._said:
                raise DeviceError("The emulated machine cannot open its working folder.", hint="Set it up again.")
        except BaseException:
            self.close()
            raise

    def _start(self, emulator: str, machine: Machine) -> subprocess.Popen[bytes]:
        shared = f"local,id=work,path={str(self._place).replace(',', ',,')},security_model=none"
        command = [emulator, "-M", "virt", "-cpu", machine.cpu, "-smp", "4", "-m", f"{machine.memory_mb}M"]
        command += ["-nic", "none", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot"]
        command += ["-fsdev", shared, "-device", "virtio-9p-device,fsdev=work,mount_tag=work"]
        command += ["-kernel", str(folder() / "kernel"), "-initrd", str(folder() / "initramfs")]
        command += ["-append", "console=ttyAMA0 quiet loglevel=1 panic=-1 rdinit=/init"]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _wait_for(self, word: str, timeout_s: float, what: str) -> None:
        """Read the serial line until a line is the word."""
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        pattern = re.compile(rb"^" + word.encode() + rb"\r?$", re.MULTILINE)
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not pattern.search(self._said):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise DeviceError(
                        f"{what} on {self.spec} was still running after {timeout_s:g} s and was stopped.",
                        hint="A whole machine is emulated: give it a smaller model or fewer samples.",
                    )
                part = self._process.stdout.read1(65536)  # type: ignore[attr-defined]
                if not part:
                    words = self._said.decode(errors="replace").strip().splitlines()
                    raise DeviceError(f"The emulated machine ended: {words[-1][:300] if words else 'it said nothing'}")
                self._said += part

    def push(self, path: Path) -> str:
        """Copy a file into the shared folder, under its hash."""
        target = self._place / hashed_name(path)
        if not target.exists():
            with translating_os_errors(target):
                shutil.copyfile(path, target)
        return f"{WORK}/{target.name}"

    def forget(self, remote: str) -> None:
        """Remove a file."""
        (self._place / Path(remote).name).unlink(missing_ok=True)

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file back."""
        try:
            shutil.copyfile(self._place / Path(remote).name, local)
        except FileNotFoundError:
            raise DeviceError(f"{self.spec} has no file {remote}.") from None

    def run(self, command: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S, stdin: bytes = b"") -> Completed:
        """Run a command in the working folder."""
        self._count += 1
        number = str(self._count)
        (self._place / f"command-{number}").write_text(f"exec {shlex.join(command)}\n", encoding="utf-8")
        (self._place / f"stdin-{number}").write_bytes(stdin)
        self._said = b""
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{number}\n".encode())
            self._process.stdin.flush()
        try:
            self._wait_for(f"edgekit-done {number}", timeout_s, "A command")
        except DeviceError:
            self.close()
            raise
        out, err, code = (self._taken(f"{name}-{number}") for name in ("stdout", "stderr", "code"))
        for name in ("command", "stdin"):
            self._taken(f"{name}-{number}")
        return Completed(code=int(code or b"1"), stdout=out, stderr=err)

    def _taken(self, name: str) -> bytes:
        path = self._place / name
        content = path.read_bytes()
        path.unlink()
        return content

    def facts(self) -> DeviceFacts:
        """Ask the native runner: the machine has no Python."""
        from edge.devices.native_agent import NativeAgent

        return NativeAgent(self, "litert").facts()

    def close(self) -> None:
        """Switch the machine off and remove the shared folder."""
        process, self._process = self._process, None
        if process is not None:
            finish(process)
        shutil.rmtree(self._place, ignore_errors=True)
