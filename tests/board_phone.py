"""A phone double: the device's side of the ADB protocol on a loopback port, commands run on an emulated arm64 board.

Covers what Debian's real adb needs for connect, devices, shell (with exit codes), push and pull. Protocol: Android's
adb/protocol.txt and SYNC.TXT.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from typing import Self

from edge.devices.namespace import Board

_HEADER = struct.Struct("<6I")
_MAX_DATA = 256 * 1024
_BANNER = b"device::ro.product.name=double;ro.product.model=Phone_Double;ro.product.device=double;features=shell_v2,cmd"
GETPROP = """#!/bin/sh
echo "[ro.product.model]: [Phone Double]"
echo "[ro.product.cpu.abi]: [arm64-v8a]"
echo "[ro.build.version.release]: [14]"
echo "[ro.build.version.sdk]: [34]"
"""


def _command(word: bytes) -> int:
    number: int = struct.unpack("<I", word)[0]
    return number


CNXN, OPEN, OKAY, CLSE, WRTE = (_command(w) for w in (b"CNXN", b"OPEN", b"OKAY", b"CLSE", b"WRTE"))


class Phone:
    """Listens until it is closed; `shell_v2` False is an Android 6, which hands on no exit codes."""

    def __init__(self, board: Board, *, shell_v2: bool = True) -> None:
        self.board = board
        self.banner = _BANNER if shell_v2 else _BANNER.replace(b"shell_v2,", b"")
        self._server = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unplug()
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                made, _ = self._server.accept()
                self._sockets.append(made)
                threading.Thread(target=_Connection(made, self).serve, daemon=True).start()

    def unplug(self) -> None:
        """Cut all lines and listen no more."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


class _Connection:
    def __init__(self, line: socket.socket, phone: Phone) -> None:
        self.line, self.phone = line, phone
        self._lock = threading.Lock()
        self._streams: dict[int, _Stream] = {}

    def _receive(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            part = self.line.recv(size - len(content))
            if not part:
                raise EOFError
            content += part
        return content

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        header = _HEADER.pack(command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        with self._lock:
            self.line.sendall(header + data)

    def serve(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                command, first, second, size, _, _ = _HEADER.unpack(self._receive(_HEADER.size))
                self._handle(command, first, second, self._receive(size))
        for stream in self._streams.values():
            stream.end()

    def _handle(self, command: int, first: int, second: int, data: bytes) -> None:
        if command == CNXN:
            self.send(CNXN, 0x01000001, _MAX_DATA, self.phone.banner)
        elif command == OPEN:
            number = len(self._streams) + 1
            self._streams[number] = _Stream(self, number, first)
            service = data.rstrip(b"\0").decode()
            threading.Thread(target=self._streams[number].start, args=(service,), daemon=True).start()
        elif command == WRTE:
            self._streams[second].feed(data)
            self.send(OKAY, second, first)
        elif command == OKAY:
            self._streams[second].acknowledged.release()
        elif command == CLSE and second in self._streams:
            self._streams[second].end()


class _Stream:
    def __init__(self, connection: _Connection, own: int, other: int) -> None:
        self.connection, self.own, self.other = connection, own, other
        self.acknowledged = threading.Semaphore(0)
        self._content = bytearray()
        self._changed = threading.Condition()
        self._ended = False

    def feed(self, data: bytes) -> None:
        with self._changed:
            self._content += data
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self.acknowledged.release()

    def read(self, size: int) -> bytes:
        with self._changed:
            while len(self._content) < size:
                if self._ended:
                    raise EOFError
                self._changed.wait()
            data = bytes(self._content[:size])
            del self._content[:size]
        return data

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), _MAX_DATA):
            self.connection.send(WRTE, self.own, self.other, data[start : start + _MAX_DATA])
            self.acknowledged.acquire()
            if self._ended:
                raise EOFError

    def start(self, service: str) -> None:
        with contextlib.suppress(EOFError, OSError):
            kind, _, argument = service.partition(":")
            if kind == "sync":
                self.connection.send(OKAY, self.own, self.other)
                self._sync()
            elif kind.startswith("shell"):
                self.connection.send(OKAY, self.own, self.other)
                self._shell(argument, with_code="v2" in kind)
            self.connection.send(CLSE, self.own, self.other)

    def _shell(self, script: str, *, with_code: bool) -> None:
        done = self.connection.phone.board.run(["sh", "-c", script])
        if not with_code:
            self.write(done.stdout + done.stderr)
            return
        for number, content in ((1, done.stdout), (2, done.stderr), (3, bytes([done.returncode & 255]))):
            if content:
                self.write(struct.pack("<BI", number, len(content)) + content)

    def _sync(self) -> None:
        services: dict[bytes, Callable[[str], None]] = {b"STAT": self._stat, b"SEND": self._take, b"RECV": self._give}
        while True:
            name, size = struct.unpack("<4sI", self.read(8))
            argument = self.read(size).decode()
            if name not in services:
                return
            services[name](argument)

    def _on_board(self, script: str, path: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return self.connection.phone.board.run(["sh", "-c", f"{script} {shlex.quote(path)}"], stdin=stdin)

    def _stat(self, path: str) -> None:
        told = self._on_board("stat -c '%f %s %Y'", path)
        mode, size, when = told.stdout.split() if told.returncode == 0 else (b"0", b"0", b"0")
        self.write(struct.pack("<4s3I", b"STAT", int(mode, 16), int(size), int(when)))

    def _take(self, argument: str) -> None:
        path, content = argument.rpartition(",")[0], bytearray()
        while True:
            name, size = struct.unpack("<4sI", self.read(8))
            if name == b"DONE":
                break
            content += self.read(size)
        self._answer(self._on_board("cat >", path, bytes(content)))

    def _answer(self, done: subprocess.CompletedProcess[bytes]) -> None:
        words = b"" if done.returncode == 0 else done.stderr.strip()
        self.write(struct.pack("<4sI", b"FAIL" if words else b"OKAY", len(words)) + words)

    def _give(self, path: str) -> None:
        done = self._on_board("cat", path)
        if done.returncode != 0:
            self._answer(done)
            return
        for start in range(0, len(done.stdout), 65536):
            part = done.stdout[start : start + 65536]
            self.write(struct.pack("<4sI", b"DATA", len(part)) + part)
        self.write(struct.pack("<4sI", b"DONE", 0))


def adb_environment(home: str, port: int) -> dict[str, str]:
    """Return the variables of a private adb server with its own keys."""
    return {**os.environ, "HOME": home, "ANDROID_ADB_SERVER_PORT": str(port), "ADB_MDNS_AUTO_CONNECT": "0"}
