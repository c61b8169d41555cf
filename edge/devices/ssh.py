"""Boards over ssh: the system's own client, so that the user's configuration, agent, known hosts and jumps hold.

One connection (the keeper) makes the working folder, carries all others, and removes the folder when it ends: by
`close`, by the end of this process, or by a line that drops. The board's own shell removes it, so nothing is left.
Only edgekit's own words and hashes are put into a command line; all else travels as data.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from edge.devices.base import DEFAULT_TIMEOUT_S, Closing, Completed, DeviceFacts, DeviceMode, DeviceSpec, hashed_name
from edge.devices.local import finish, run_bounded
from edge.errors import DeviceError, MissingPackageError

CONNECT_TIMEOUT_S = 15
# A line that is silent for so long counts as lost: checks every 5 s, three of them.
_ALIVE = ("-oServerAliveInterval=5", "-oServerAliveCountMax=3")
_OPEN_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 15.0
_GRACE_S = 15.0
_COPY_TIMEOUT_S = 1800.0
_SSH_FAILED = 255
_LATE = 124
_FOLDER_GONE = 72

# Waits for the end of its input, then ends what still runs in the folder and removes it.
_KEEPER = """
umask 077
folder=$(mktemp -d "$1/edgekit.XXXXXX") || exit 73
trap '' HUP INT TERM PIPE
kind=measured
[ -e /etc/edgekit-emulator ] && kind=emulated
echo "edgekit-folder $folder $kind"
cat >/dev/null
cd / || cd "$HOME"
for file in "$folder"/pid.*; do
  [ -f "$file" ] && kill "$(cat "$file")" 2>/dev/null && sleep 1 && kill -9 "$(cat "$file")" 2>/dev/null
done
rm -rf "$folder"
"""
# Runs "$@" with its process noted in the folder for as long as it lives.
_RUNNER = """
cd "$1" 2>/dev/null || exit 72
file=pid.$2
shift 2
sh -c 'echo $$ >"$0"; exec "$@"' "$file" "$@"
code=$?
rm -f "$file"
exit $code
"""
_RECEIVER = """
cd "$1" 2>/dev/null || exit 72
cat >"$2.part" && [ "$(wc -c <"$2.part")" -eq "$3" ] && mv "$2.part" "$2"
code=$?
[ $code -eq 0 ] || rm -f "$2.part"
exit $code
"""

_KNOWN = "~/.ssh/known_hosts"


def _diagnose(spec: DeviceSpec, words: str) -> DeviceError | None:
    """Return the error for what ssh said when it ended with 255, or None where nothing is known."""
    login = f"{spec.user}@{spec.address}" if spec.user else spec.address
    port = f"-p {spec.port} " if spec.port else ""
    for pattern, message, hint in (
        (
            "REMOTE HOST IDENTIFICATION HAS CHANGED",
            "has another host key than the one that is known: another board, a new system, or an attack",
            f"If the board was set up anew, remove the old key: `ssh-keygen -R {_known_name(spec)}`.",
        ),
        (
            r"Host key verification failed|No \S+ host key is known",
            "has an unknown host key",
            f"Compare its fingerprint, then add it: `ssh-keyscan {port}{spec.address} >> {_KNOWN}`, or `ssh {login}`.",
        ),
        (
            r"Permission denied|Too many authentication failures",
            "refused the login",
            f"Set up a key: `ssh-copy-id {port}{login}`, or name it in ~/.ssh/config; no password is asked for.",
        ),
        (
            "Could not resolve hostname",
            "has a name that cannot be resolved",
            "Check the spelling; .local names need mDNS.",
        ),
        (
            "Connection refused",
            "refused the connection: no ssh server is listening there",
            "Enable ssh on the board (`sudo raspi-config`, Interface Options) and check the port.",
        ),
        (
            r"timed out|No route to host|Network is unreachable",
            "cannot be reached",
            "Is the board switched on and in the same network?",
        ),
        (
            "Bad owner or permissions|Bad configuration option|Can't open user config file",
            "cannot be reached: ssh does not accept its configuration",
            "Repair the ssh configuration; `ssh -G host` shows what is in force.",
        ),
    ):
        if re.search(pattern, words):
            return DeviceError(f"{spec} {message}. ssh says: {_last_line(words)}", hint=hint)
    return None


def _known_name(spec: DeviceSpec) -> str:
    return f"'[{spec.address}]:{spec.port}'" if spec.port else spec.address


def _last_line(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing"


class SshDevice(Closing):
    """A board over ssh. Raises DeviceError where it cannot be reached or refuses, with what to do."""

    def __init__(self, spec: DeviceSpec) -> None:
        if not shutil.which("ssh"):
            raise MissingPackageError("ssh is not installed.", hint="Install openssh-client.")
        self.spec = spec
        # Until the board itself says, by a file in its system, that it is an emulated one.
        self.mode: DeviceMode = "measured"
        self.python = spec.options.get("python", "python3")
        self._sockets = tempfile.mkdtemp(prefix="ek-")  # short: a socket's path has 104 characters at most
        self._count = 0
        self._present: set[str] = set()
        self._keeper: subprocess.Popen[bytes] | None = None
        try:
            self.workdir = self._start()
        except BaseException:
            self.close()
            raise

    def _command(self, *options: str) -> list[str]:
        config = ["-F", self.spec.options["ssh_config"]] if "ssh_config" in self.spec.options else []
        port = ["-p", str(self.spec.port)] if self.spec.port else []
        user = ["-l", self.spec.user] if self.spec.user else []
        fixed = ["-T", "-oBatchMode=yes", f"-oConnectTimeout={CONNECT_TIMEOUT_S}", *_ALIVE, "-oForwardX11=no"]
        return ["ssh", *config, *fixed, *port, *user, f"-oControlPath={self._sockets}/c", *options, self.spec.address]

    def _start(self) -> str:
        """Open the connection that keeps the working folder; return the folder."""
        script = _shell(_KEEPER, self.spec.options.get("workdir", "/tmp"))  # noqa: S108 - a folder of the board
        said = Path(self._sockets, "stderr")
        with said.open("wb") as stderr:
            self._keeper = subprocess.Popen(
                [*self._command("-oControlMaster=yes", "-oControlPersist=no"), script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C is for this process, which then closes the connection in order
            )
        told = _folder_line(self._keeper, _OPEN_TIMEOUT_S)
        if told is None:
            if self._keeper.poll() is None:
                raise DeviceError(f"{self.spec} did not answer within {_OPEN_TIMEOUT_S:g} s.", hint="Does it hang?")
            raise self._failure(self._keeper.returncode, said.read_text(encoding="utf-8", errors="replace"))
        folder, self.mode = told
        return folder

    def _failure(self, code: int, words: str) -> DeviceError:
        if code == _SSH_FAILED and (known := _diagnose(self.spec, words)):
            return known
        if self._lost():
            return DeviceError(
                f"The connection to {self.spec} was lost: {_last_line(words)}",
                hint="Run it again; the board removes the working folder itself when it notices.",
            )
        if "No space left" in words:
            return DeviceError(
                f"The disk of {self.spec} is full: {_last_line(words)}",
                hint="Free space there, or set `workdir` in devices.toml to a place with room.",
            )
        return DeviceError(f"{self.spec} failed with exit code {code}: {_last_line(words)}")

    def _lost(self) -> bool:
        """Tell whether the keeper has ended; a line that has just dropped is noticed within a moment."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._keeper is not None:
                self._keeper.wait(1.0)
        return self._keeper is None or self._keeper.poll() is not None

    def _remote(self, script: str, *arguments: str, timeout_s: float, stdin: bytes) -> Completed:
        """Run a script on the board through the keeper's connection."""
        if self._keeper is None or self._keeper.poll() is not None:
            raise self._failure(_SSH_FAILED, "the connection has ended")
        done = run_bounded(
            [*self._command("-oControlMaster=no", "-oProxyCommand=false"), _shell(script, *arguments)],
            timeout_s=timeout_s,
            stdin=stdin,
            what=f"A command on {self.spec}",
        )
        if done.code in (_SSH_FAILED, _FOLDER_GONE):
            raise self._failure(_SSH_FAILED, done.error_text)
        return done

    def push(self, path: Path) -> str:
        """Send a file, once per content; a part of a file never gets its name."""
        name = hashed_name(path)
        if name not in self._present:
            content = path.read_bytes()
            sent = self._remote(
                _RECEIVER, self.workdir, name, str(len(content)), timeout_s=_COPY_TIMEOUT_S, stdin=content
            )
            if sent.code != 0:
                raise self._failure(sent.code, sent.error_text or "the file did not arrive whole")
            self._present.add(name)
        return f"{self.workdir}/{name}"

    def forget(self, remote: str) -> None:
        """Remove a file of the working folder."""
        name = Path(remote).name
        self._present.discard(name)
        self._remote('rm -f "$1/$2"', self.workdir, name, timeout_s=60.0, stdin=b"")

    def run(self, command: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S, stdin: bytes = b"") -> Completed:
        """Run a command in the working folder under the board's own `timeout`."""
        self._count += 1
        seconds = str(max(1, round(timeout_s)))
        bounded = ["timeout", "-k", "5", seconds, *command]
        done = self._remote(
            _RUNNER, self.workdir, str(self._count), *bounded, timeout_s=timeout_s + _GRACE_S, stdin=stdin
        )
        if done.code == _LATE:
            raise DeviceError(
                f"A command on {self.spec} was still running after {seconds} s and was stopped.",
                hint="The device or the program hangs.",
            )
        return done

    def pull(self, remote: str, local: Path) -> None:
        """Fetch a file."""
        done = self._remote('cat <"$1"', remote, timeout_s=_COPY_TIMEOUT_S, stdin=b"")
        if done.code != 0:
            raise self._failure(done.code, done.error_text)
        local.write_bytes(done.stdout)

    def facts(self) -> DeviceFacts:
        """Ask the agent."""
        from edge.devices.client import Agent

        return Agent(self).facts()

    def close(self) -> None:
        """End the keeper's input, upon which the board removes the folder; wait for that."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            with contextlib.suppress(OSError):
                assert keeper.stdin is not None
                keeper.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                keeper.wait(_CLOSE_TIMEOUT_S)
            finish(keeper)
        shutil.rmtree(self._sockets, ignore_errors=True)


def _shell(script: str, *arguments: str) -> str:
    """Return one word-safe command line that runs a script in sh, whatever the login shell is."""
    return shlex.join(["exec", "sh", "-c", script.strip(), "edgekit", *arguments])


def _folder_line(process: subprocess.Popen[bytes], timeout_s: float) -> tuple[str, DeviceMode] | None:
    """Return the folder that the keeper names and the mode of the board; what a login script prints is skipped."""
    assert process.stdout is not None
    deadline, text = time.monotonic() + timeout_s, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            part = process.stdout.read1(65536)  # type: ignore[attr-defined]
            if not part:
                process.wait()
                return None
            text += part
            if found := re.search(rb"^edgekit-folder (/[^\s]+) (measured|emulated)\r?\n", text, re.MULTILINE):
                return found[1].decode(), "emulated" if found[2] == b"emulated" else "measured"
    return None
