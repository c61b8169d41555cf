"""A real sshd on loopback whose logins land on an emulated board, run by an ordinary user."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from edge.devices.namespace import Board, children, need, write_executable
from edge.errors import DeviceError, MissingPackageError

_START_TIMEOUT_S = 20.0
_SSHD_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {place}/host_key
AuthorizedKeysFile {place}/authorized_keys
PidFile {place}/sshd.pid
PasswordAuthentication no
KbdInteractiveAuthentication no
PubkeyAuthentication yes
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
AllowTcpForwarding no
X11Forwarding no
Subsystem sftp internal-sftp
ForceCommand {place}/login
"""
_LOGIN = """#!/bin/sh
case "$SSH_ORIGINAL_COMMAND" in
  internal-sftp | */sftp-server) set -- /usr/lib/openssh/sftp-server ;;
  "") set -- /bin/bash -l ;;
  *) set -- /bin/bash -c "$SSH_ORIGINAL_COMMAND" ;;
esac
exec {enter} "$@"
"""


class Server:
    """An sshd for a board. The key pair and the client's files are in `place`.

    The login is the user that runs this, as the sshd has no rights to become another. Raises MissingPackageError,
    DeviceError.
    """

    def __init__(self, board: Board, *, port: int = 0) -> None:
        self._sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if self._sshd is None:
            raise MissingPackageError(
                "sshd is not installed.", hint="`apt-get install openssh-server` (Debian, Ubuntu)."
            )
        need("ssh-keygen")
        self.port = port or _free_port()
        self.user = getpass.getuser()
        self.place = Path(tempfile.mkdtemp(prefix="edgekit-sshd-"))
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._write_files(board)
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def identity(self) -> Path:
        """The private key that may log in."""
        return self.place / "key"

    @property
    def known_hosts(self) -> Path:
        """A known_hosts file with the board's key."""
        return self.place / "known_hosts"

    @property
    def config(self) -> Path:
        """A configuration for ssh with key and known host."""
        return self.place / "ssh_config"

    @property
    def address(self) -> str:
        """The board as a device of edgekit."""
        return f"ssh://{self.user}@127.0.0.1:{self.port}"

    def _write_files(self, board: Board) -> None:
        for name in ("key", "host_key"):
            made = ["-q", "-t", "ed25519", "-N", "", "-C", "edgekit", "-f", str(self.place / name)]
            subprocess.run(["ssh-keygen", *made], check=True)
        shutil.copyfile(self.place / "key.pub", self.place / "authorized_keys")
        host_key = " ".join((self.place / "host_key.pub").read_text(encoding="utf-8").split()[:2])
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {host_key}\n", encoding="utf-8")
        config = _SSHD_CONFIG.format(port=self.port, place=self.place)
        (self.place / "sshd_config").write_text(config, encoding="utf-8")
        write_executable(self.place / "login", _LOGIN.format(enter=shlex.join(board.enter)))
        self.config.write_text(
            f"IdentityFile {self.identity}\nIdentitiesOnly yes\nIdentityAgent none\n"
            f"UserKnownHostsFile {self.known_hosts}\nGlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n",
            encoding="utf-8",
        )

    def start(self) -> None:
        """Listen (again)."""
        assert self._sshd is not None
        command = [self._sshd, "-D", "-e", "-f", str(self.place / "sshd_config")]
        if os.geteuid() == 0:
            # As root it wants the folder of its privilege separation, which a fresh container has not.
            inner = 'mount -t tmpfs edgekit /run && mkdir /run/sshd && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", inner, "sshd", *command]
        with (self.place / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stderr=log,
                stdout=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _listens(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.place / "sshd.log").read_text(encoding="utf-8", errors="replace").strip()[-300:]
                raise DeviceError(f"sshd did not start: {said or 'it said nothing'}", hint="Is the port free?")
            time.sleep(0.02)

    def drop_connections(self) -> None:
        """Cut all lines at once and stop listening, as a board does that loses its network."""
        process, self._process = self._process, None
        if process is not None:
            for pid in (*_descendants(process.pid, "sshd"), process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        """Stop."""
        self.drop_connections()
        shutil.rmtree(self.place, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _descendants(pid: int, name: str) -> list[int]:
    """Return the processes below `pid` that run `name`."""
    found = []
    for child in children(pid):
        found += _descendants(child, name)
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/comm").read_text(encoding="utf-8").strip() == name:
                found.append(child)
    return found
