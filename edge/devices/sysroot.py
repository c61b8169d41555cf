"""The arm64 root of the emulated boards: Debian packages and aarch64 wheels in the user's cache, without root rights.

The packages come from the Debian mirror that this machine's apt is set up for (or one that the user gives), verified by
apt against the archive's key; the wheels from the index that pip is set up for.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edge import codec
from edge.devices.boards import BOARDS, write_overlay
from edge.devices.places import cache_folder
from edge.errors import DeviceError, MissingPackageError, ToolError
from edge.isolate import Progress, no_progress

VERSION = 1
PACKAGES = (
    "python3",
    "libstdc++6",
    "bash",
    "coreutils",
    "findutils",
    "grep",
    "hostname",
    "openssh-sftp-server",
    "procps",
    "sed",
)
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# glibc of the wheels: every manylinux level up to that of Debian 12.
_PLATFORMS = (*(f"manylinux_2_{minor}_aarch64" for minor in range(36, 16, -1)), "manylinux2014_aarch64")
_NOT_NEEDED = ("./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./usr/share/info", "./usr/share/lintian")
_MOUNT_POINTS = ("proc", "sys", "dev", "run", "tmp", "data")
_MARKER = "etc/edgekit-emulator"
_TIMEOUT_S = 1800.0


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """One line of apt: address, suites, components."""

    uri: str
    suite: str
    components: str = "main"


@dataclass(frozen=True, kw_only=True)
class Package:
    """One file to fetch with its size and the address of its source."""

    file: str
    size_bytes: int
    uri: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `setup` will fetch: packages, and wheels as pip's requirements."""

    packages: tuple[Package, ...]
    python: str
    wheels: tuple[str, ...]
    folder: Path

    @property
    def package_bytes(self) -> int:
        """Bytes of all packages."""
        return sum(p.size_bytes for p in self.packages)

    @property
    def sources(self) -> tuple[str, ...]:
        """The hosts that the packages come from."""
        return tuple(sorted({urlsplit(p.uri).netloc or p.uri for p in self.packages}))


def folder() -> Path:
    """Return the place of the root, which need not exist."""
    return cache_folder() / "emulator" / "arm64"


def installed() -> dict[str, object] | None:
    """Return the record of the root that is set up, or None."""
    try:
        found: dict[str, object] = json.loads((folder() / "setup.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("version") == VERSION else None


def require() -> Path:
    """Return the root; raise DeviceError with the command that makes it."""
    if installed() is None:
        raise DeviceError(
            "The arm64 system of the emulated boards is not set up.", hint="Run `edgekit emulator setup rpi4` once."
        )
    return folder()


def qemu() -> str:
    """Return the path of qemu for aarch64 programs; raise MissingPackageError."""
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if found := shutil.which(name):
            return found
    raise MissingPackageError(
        "qemu-aarch64 is not installed; it runs the emulated boards.",
        hint="Install it: `apt-get install qemu-user-static` (Debian, Ubuntu).",
    )


def board_root(name: str) -> Path:
    """Return a root of that board for `qemu -L`: its own /proc and /sys files beside links into the shared root."""
    root = require()
    wanted = cache_folder() / "emulator" / "boards" / f"{name}-{VERSION}"
    if wanted.is_dir():
        return wanted
    wanted.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wanted.parent) as temporary:
        made = Path(temporary) / "board"
        made.mkdir()
        for entry in root.iterdir():
            if entry.name not in (*_MOUNT_POINTS, "home", "setup.json"):
                (made / entry.name).symlink_to(f"../../arm64/{entry.name}")
        write_overlay(BOARDS[name], made)
        # Another process may have made the same one meanwhile: then that one serves.
        with contextlib.suppress(OSError):
            made.rename(wanted)
    return wanted


def python(root: Path) -> Path:
    """Return the interpreter in a root."""
    found = sorted(p for p in (root / "usr/bin").glob("python3.*") if re.fullmatch(r"python3\.\d+", p.name))
    if not found:
        raise DeviceError(
            f"{root} has no Python.", hint="Run `edgekit emulator remove`, then `edgekit emulator setup rpi4`."
        )
    return found[-1]


def plan(*, mirror: Mirror | None = None, litert: str | None = None, progress: Progress = no_progress) -> Plan:
    """Return what will be fetched; only package lists travel. Raises MissingPackageError, ToolError."""
    with private_apt(mirror, progress) as apt:
        listed = apt.run("install", "-y", "--no-install-recommends", "--print-uris", *PACKAGES)
    packages = tuple(
        Package(file=unquote(m[2]), size_bytes=int(m[3]), uri=m[1])
        for m in re.finditer(r"^'([^']+)' (\S+\.deb) (\d+)", listed, re.MULTILINE)
    )
    versions = [m[1] for p in packages if (m := re.match(r"python(3\.\d+)-minimal_", p.file))]
    if not versions:
        raise ToolError("The Debian mirror offers no Python for arm64.", hint="Give another one with --mirror.")
    wheels = (f"ai-edge-litert{'==' + litert if litert else ''}", "numpy")
    return Plan(packages=packages, python=versions[0], wheels=wheels, folder=folder())


def host_litert() -> str | None:
    """Return the version of ai-edge-litert on this host, so that an emulated board runs the same one."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ai-edge-litert")
    except PackageNotFoundError:
        return None


def setup(wanted: Plan, *, mirror: Mirror | None = None, progress: Progress = no_progress) -> Path:
    """Fetch and unpack; the root appears whole or not at all. Raises MissingPackageError, ToolError."""
    target = wanted.folder
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".setup-") as temporary:
        root = Path(temporary) / "arm64"
        _make_skeleton(root)
        with private_apt(mirror, progress) as apt:
            progress(f"fetching {len(wanted.packages)} Debian packages ({wanted.package_bytes / 1e6:.0f} MB)", None)
            apt.run("install", "-y", "-d", "--no-install-recommends", *PACKAGES)
            progress("unpacking", None)
            for deb in sorted(apt.archives.glob("*.deb")):
                unpack(deb, root)
        progress("fetching the aarch64 wheels of " + ", ".join(wanted.wheels), None)
        _install_wheels(wanted, root)
        _complete(root)
        _write_record(wanted, root)
        if target.exists():
            shutil.rmtree(target)
        root.rename(target)
    return target


def remove() -> int:
    """Remove the root, all boards and machines, and the native runners; return the bytes that were freed."""
    places = [cache_folder() / name for name in ("emulator", "native")]
    freed = sum(p.lstat().st_size for place in places for p in place.rglob("*") if p.is_file() and not p.is_symlink())
    for place in places:
        shutil.rmtree(place, ignore_errors=True)
    return freed


class _Apt:
    """apt-get with lists, cache and state of its own, for arm64."""

    def __init__(self, place: Path, lines: Sequence[str]) -> None:
        self.archives = place / "archives"
        for name in ("lists/partial", "archives/partial"):
            (place / name).mkdir(parents=True)
        (place / "status").touch()
        sources = place / "sources.list"
        sources.write_text("\n".join(lines) + "\n", encoding="utf-8")
        options = {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": place,
            "Dir::State::lists": place / "lists",
            "Dir::State::status": place / "status",
            "Dir::Cache": place,
            "Dir::Cache::archives": self.archives,
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Architecture": "arm64",
            "APT::Architectures": "arm64",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Debug::NoLocking": "1",
        }
        self._command = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]

    def run(self, *arguments: str, cwd: Path | None = None) -> str:
        """Return what a command of apt-get prints; `download` writes into `cwd`."""
        return _run([*self._command, *arguments], "apt-get", cwd)


@contextlib.contextmanager
def private_apt(mirror: Mirror | None, progress: Progress) -> Iterator[_Apt]:
    """Yield apt-get with lists, cache and state of its own for arm64, its package lists read."""
    for tool in ("apt-get", "dpkg-deb", "tar"):
        if not shutil.which(tool):
            raise MissingPackageError(
                f"{tool} is not installed; setting up an emulated board needs a Debian or Ubuntu machine."
            )
    with tempfile.TemporaryDirectory(prefix="edgekit-apt-") as place:
        apt = _Apt(Path(place), _lines((mirror,) if mirror else _configured()))
        progress("reading the package lists for arm64", None)
        apt.run("update")
        yield apt


def _configured() -> tuple[Mirror, ...]:
    """Return the Debian sources of this machine's apt."""
    shape = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    text = _run(["apt-get", "indextargets", "--format", shape, "Created-By: Packages", "Origin: Debian"], "apt-get")
    # A line whose suite has an archive of additions only (backports) would replace versions: it is left out.
    rows = sorted({tuple(line.split("|")) for line in text.splitlines() if line.count("|") == 2})
    found = tuple(Mirror(uri=u, suite=s, components=c) for u, s, c in rows if "backports" not in s and c == "main")
    if not found:
        raise ToolError(
            "This machine's apt has no Debian source (or its lists are empty).",
            hint="Run `apt-get update` as root, or give one: --mirror ADDRESS --suite bookworm.",
        )
    return found


def _lines(mirrors: Sequence[Mirror]) -> list[str]:
    signed = f" signed-by={KEYRING}" if KEYRING.exists() else ""
    return [f"deb [arch=arm64{signed}] {m.uri} {m.suite} {m.components}" for m in mirrors]


def _run(command: Sequence[str], name: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S, errors="replace", cwd=cwd
        )
    except subprocess.TimeoutExpired:
        raise ToolError(
            f"{name} took longer than {_TIMEOUT_S:g} s.", hint="Check the connection to the mirror."
        ) from None
    except FileNotFoundError:
        raise MissingPackageError(f"{name} is not installed.") from None
    if done.returncode != 0:
        words = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        said = [line for line in words if line.lower().startswith(("e:", "error"))] or words[-3:]
        raise ToolError(
            f"{name} failed: {' '.join(said)[:600]}", hint="Check the connection and the configured sources."
        )
    return done.stdout


def _make_skeleton(root: Path) -> None:
    for name in ("usr/bin", "usr/sbin", "usr/lib", "usr/local/bin", "etc", "home/pi", "var/tmp", *_MOUNT_POINTS):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib"):
        (root / name).symlink_to(f"usr/{name}")


def unpack(deb: Path, root: Path) -> None:
    """Unpack a package's files below `root`, without manuals; raise ToolError."""
    root.mkdir(parents=True, exist_ok=True)
    exclude = [f"--exclude={path}" for path in _NOT_NEEDED]
    # Packages of Debian 12 still carry /bin and /lib, which are links here.
    command = ["tar", "-x", "-C", str(root), "--keep-directory-symlink", "--no-same-owner", "--delay-directory-restore"]
    # The context closes the pipe: without it every package would leave a file open.
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as packed:
        unpacked = subprocess.run(
            [*command, *exclude], stdin=packed.stdout, capture_output=True, text=True, check=False, errors="replace"
        )
    if packed.returncode != 0 or unpacked.returncode != 0:
        raise ToolError(f"{deb.name} could not be unpacked: {unpacked.stderr.strip()[-300:]}", hint="Is the disk full?")


def _install_wheels(wanted: Plan, root: Path) -> None:
    place = root / f"usr/local/lib/python{wanted.python}/dist-packages"
    place.mkdir(parents=True, exist_ok=True)
    abi = "cp" + wanted.python.replace(".", "")
    command = [sys.executable, "-m", "pip", "install", "--target", str(place), "--only-binary", ":all:", "--no-compile"]
    command += [f"--platform={p}" for p in _PLATFORMS]
    command += [
        "--python-version",
        wanted.python,
        "--implementation",
        "cp",
        "--abi",
        abi,
        "--abi",
        "abi3",
        "--abi",
        "none",
    ]
    _run([*command, "--no-input", "--disable-pip-version-check", *wanted.wheels], "pip")


def _complete(root: Path) -> None:
    """Write the files of a board that no package of the list brings."""
    for path, text in {
        "etc/passwd": "root:x:0:0:root:/root:/bin/bash\npi:x:1000:1000:pi:/home/pi:/bin/bash\n",
        "etc/group": "root:x:0:\npi:x:1000:\n",
        "etc/hostname": "raspberrypi\n",
        "etc/hosts": "127.0.0.1 localhost raspberrypi\n",
        _MARKER: "An emulated board: no time that is measured here is a time of the board.\n",
    }.items():
        (root / path).write_text(text, encoding="utf-8")
    shell = root / "usr/bin/sh"
    if not shell.exists():
        shell.unlink(missing_ok=True)
        shell.symlink_to("bash")


def _write_record(wanted: Plan, root: Path) -> None:
    places = (root / f"usr/local/lib/python{wanted.python}/dist-packages").glob("*.dist-info")
    wheels = dict(p.name.removesuffix(".dist-info").rsplit("-", 1) for p in places)
    size = sum(p.lstat().st_size for p in root.rglob("*") if p.is_file() and not p.is_symlink())
    record = {
        "version": VERSION,
        "python": wanted.python,
        "wheels": dict(sorted(wheels.items())),
        "packages": sorted(p.file for p in wanted.packages),
        "size_bytes": size,
    }
    codec.write_atomically(root / "setup.json", codec.dumps(record))
