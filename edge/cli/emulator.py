"""`edgekit emulator`: emulated boards on this host."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.cli import options
from edge.cli.talk import Talk

if TYPE_CHECKING:
    from edge.devices.sysroot import Mirror, Plan

BoardName = Annotated[
    str, typer.Argument(help="rpi-zero2, rpi3, rpi4, rpi5, or virt (a whole machine).", metavar="BOARD")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        name="emulator",
        help="Emulated boards: real ARM kernels on this host, without root rights.",
        no_args_is_help=True,
        rich_markup_mode=None,
        epilog="Example:\n\n  edgekit emulator setup rpi4",
    )
    group.command("list", epilog="Example:\n\n  edgekit emulator list")(list_boards)
    group.command("setup", epilog="Example:\n\n  edgekit emulator setup rpi4")(setup)
    group.command("serve", epilog="Example:\n\n  edgekit emulator serve rpi4 --port 2222")(serve)
    group.command("remove", epilog="Example:\n\n  edgekit emulator remove")(remove)
    app.add_typer(group)


def _known(name: str) -> str:
    from edge.devices.base import parse

    return parse(f"emulator:{name}").address


def list_boards(json_: options.Json = False) -> None:
    """List the boards, and whether their arm64 system is set up."""
    from edge.devices import sysroot, virt
    from edge.devices.boards import BOARDS

    record = sysroot.installed()
    boards = [
        {"name": f"emulator:{b.name}", "title": b.title, "cpu": b.cpu, "ready": record is not None}
        for b in BOARDS.values()
    ]
    boards += [
        {"name": f"emulator:{m.name}", "title": m.title, "cpu": m.cpu, "ready": virt.installed() is not None}
        for m in virt.MACHINES.values()
    ]
    if json_:
        sys.stdout.write(json.dumps({"boards": boards, "system": record}, indent=2) + "\n")
        return
    for board in boards:
        state = "ready" if board["ready"] else "not set up"
        sys.stdout.write(f"{board['name']:20} {board['title']:36} {board['cpu']:12} {state}\n")
    if record is None:
        sys.stdout.write("`edgekit emulator setup rpi4` sets all of them up; they share one arm64 system.\n")
        return
    sys.stdout.write(f"system in {sysroot.folder()}: {_megabytes(record['size_bytes'])}, Python {record['python']}\n")


def _megabytes(size: Any) -> str:
    return f"{int(size) / 1e6:.0f} MB"


def setup(
    board: BoardName = "rpi4",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    mirror: Annotated[str | None, typer.Option(help="Debian mirror in place of the one apt is set up for.")] = None,
    suite: Annotated[str, typer.Option(help="Debian suite, with --mirror.")] = "bookworm",
    litert: Annotated[
        str | None, typer.Option(help="Version of ai-edge-litert; default: the one of this host.")
    ] = None,
    quiet: options.Quiet = False,
) -> int:
    """Fetch an arm64 system with Python and LiteRT into the cache; sizes and sources are shown first."""
    from edge import errors
    from edge.devices import sysroot

    name = _known(board)
    talk = Talk(quiet=quiet)
    chosen = sysroot.Mirror(uri=mirror, suite=suite) if mirror else None
    if name.startswith("virt"):
        return _setup_machine(name, chosen, talk, yes=yes)
    plan = sysroot.plan(mirror=chosen, litert=litert or sysroot.host_litert(), progress=talk)
    _show(plan)
    if not yes and not typer.confirm("Fetch and unpack it?", err=True):
        return errors.EXIT_OK
    sysroot.setup(plan, mirror=chosen, progress=talk)
    sysroot.board_root(name)
    talk(f"ready: --device emulator:{name}")
    _warn_without_qemu(talk)
    return errors.EXIT_OK


def _setup_machine(name: str, mirror: Mirror | None, talk: Talk, *, yes: bool) -> int:
    """Fetch the kernel of the whole machines, which they share."""
    from edge import errors
    from edge.devices import virt
    from edge.errors import MissingPackageError

    packages = virt.plan(mirror=mirror, progress=talk)
    for package in packages:
        sys.stderr.write(f"  > {_megabytes(package.size_bytes)} {package.uri}\n")
    sys.stderr.write(f"  > into {virt.folder()}, about 40 MB\n")
    if not yes and not typer.confirm("Fetch and unpack it?", err=True):
        return errors.EXIT_OK
    virt.setup(packages, mirror=mirror, progress=talk)
    talk(f"ready: --device emulator:{name}")
    try:
        virt.qemu()
    except MissingPackageError as error:
        talk(f"{error.message} {error.hint}")
    return errors.EXIT_OK


def _show(plan: Plan) -> None:
    from edge.devices import sysroot

    sys.stderr.write(
        f"  > {len(plan.packages)} Debian packages for arm64, {_megabytes(plan.package_bytes)}, "
        f"from {', '.join(plan.sources)}\n"
        f"  > wheels for aarch64 and Python {plan.python}, about 30 MB, from pip's index: {', '.join(plan.wheels)}\n"
        f"  > into {plan.folder}, about 260 MB\n"
    )
    if sysroot.installed() is not None:
        sys.stderr.write("  > the system that is there is replaced\n")


def _warn_without_qemu(talk: Talk) -> None:
    from edge.devices import sysroot
    from edge.errors import MissingPackageError

    try:
        sysroot.qemu()
    except MissingPackageError as error:
        talk(f"{error.message} {error.hint}")


def serve(
    board: BoardName = "rpi4",
    port: Annotated[int, typer.Option(help="Port on loopback; default: a free one.")] = 0,
    disk: Annotated[str, typer.Option(help="Size of the board's /tmp.")] = "512m",
    config: Annotated[Path | None, typer.Option(help="Write an entry for devices.toml to this file.")] = None,
) -> int:
    """Put an emulated board behind a real sshd on loopback, until Ctrl-C; nothing of it is left then."""
    import signal

    from edge import errors
    from edge.devices.namespace import Board
    from edge.devices.sshd import Server

    name = _known(board)
    with Board(name, disk=disk) as made, Server(made, port=port) as server:
        entry = f'[{name}-ssh]\ndevice = "{server.address}"\nssh_config = "{server.config}"\n'
        if config is not None:
            config.write_text(entry, encoding="utf-8")
        sys.stdout.write(
            f"{made.board.title} listens at {server.address}\n"
            f"  ssh -F {server.config} -p {server.port} {server.user}@127.0.0.1\n"
            f"for devices.toml:\n{entry}"
            f"what it tells (throttled, temperature) stands in {made.place / 'sys/edgekit'}; Ctrl-C switches it off\n"
        )
        sys.stdout.flush()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            signal.pause()
        except KeyboardInterrupt:
            return errors.EXIT_OK
    return errors.EXIT_OK


def remove() -> int:
    """Remove the arm64 system and all boards from the cache."""
    from edge import errors
    from edge.devices import sysroot

    sys.stdout.write(f"freed {_megabytes(sysroot.remove())}\n")
    return errors.EXIT_OK
