"""Type-check, build and run the Swift that `edgekit export --platform ios` writes, with a real Swift compiler on Linux.

A nightly check: the compiler is a download of 500 MB. Give it as a folder that `apt-get install --no-install-recommends
swiftlang` of Debian 13 was unpacked into (--root; it runs in a user namespace, without installing anything), or have
`swiftc` on the path. With a checkout of github.com/google-ai-edge/LiteRT (--litert) and the library of the wheel
ai-edge-litert, the LiteRT package is also built for real and its outputs are compared with the golden ones. The last
result is in docs/apps.md.

    python tools/check_swift.py --root /srv/trixie --litert ~/LiteRT
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

from edge.apps.bundle import ExportOptions  # noqa: E402
from edge.apps.export import export  # noqa: E402
from tests import apps_artifacts, apps_programs  # noqa: E402

STUBS = PROJECT / "tests" / "apps_stubs" / "swift"
# In this order: Core ML's stub imports Core Video's.
_MODULES = ("CoreVideo", "LiteRT", "TensorFlowLite", "ExecuTorch", "CoreML")
_RUN = """let model = try {name}(folder: URL(fileURLWithPath: CommandLine.arguments[2]))
for vector in 0..<Contract.goldenVectors {{
    problems += try golden.outputs(vector, model.run(golden.inputs(vector)))
}}"""


class Swift:
    """The compiler; paths are below `work`, which is the same path inside of the namespace."""

    def __init__(self, root: Path | None, work: Path) -> None:
        self.root, self.work = root, work

    def __call__(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command where the compiler is."""
        words = [str(part) for part in command]
        if self.root is not None:
            inside = self.root / str(self.work).lstrip("/")
            for folder in (inside, *(self.root / name for name in ("proc", "dev", "tmp"))):
                folder.mkdir(parents=True, exist_ok=True)
            for name in ("bin", "sbin", "lib", "lib64"):
                # Packages of Debian 13 expect these links, which the installer makes.
                if not (self.root / name).exists():
                    (self.root / name).symlink_to(f"usr/{name}")
            script = f'mount --bind "{self.work}" "{inside}"'
            script += f' && mount --rbind /dev "{self.root}/dev" && mount -t proc proc "{self.root}/proc"'
            script += (
                f' && exec env -i PATH=/usr/sbin:/usr/bin:/bin HOME=/tmp "$(command -v chroot)" "{self.root}" "$@"'
            )
            words = ["unshare", "-U", "-r", "-m", "-p", "-f", "sh", "-c", script, "sh", *words]
        return subprocess.run(words, check=False, capture_output=True, text=True, timeout=900)


def _exports(work: Path) -> dict[str, tuple[str, str, Path]]:
    """Return runtime, class and folder of each exported package."""
    made: dict[str, tuple[str, str, Path]] = {}

    def add(title: str, chosen: str, artifact: Path) -> None:
        done = export(artifact, work / title, ExportOptions(platform="ios", runtime=chosen))
        made[title] = (chosen, done.name, work / title)

    for kind, maker in apps_artifacts.MAKERS.items():
        add(kind, "litert", maker(work / "artifacts" / kind))
        add(f"{kind}-tflite", "tflite", next((work / "artifacts" / kind).iterdir()))
        for runtime in ("executorch", "coreml") if apps_programs.available() else ():
            add(f"{kind}-{runtime}", runtime, apps_programs.folder() / runtime / kind)
    add("nasty", "litert", apps_artifacts.nasty(work / "artifacts" / "nasty"))
    add("ssd", "litert", apps_artifacts.ssd(work / "artifacts" / "ssd"))
    return made


def _stubs(swift: Swift, work: Path) -> list[str]:
    problems = []
    (work / "stubs").mkdir()
    for name in _MODULES:
        source = shutil.copy(STUBS / f"{name}.swift", work / "stubs")
        made = work / f"stubs/{name}.swiftmodule"
        done = swift("swiftc", "-emit-module", "-module-name", name, "-I", work / "stubs", "-o", made, source)
        problems += [f"stub {name}: {done.stderr}"] if done.returncode else []
    return problems


def _alone(folder: Path, name: str, run: str) -> list[Path]:
    """Return sources of one program with the golden checks in it."""
    check = folder / f"Tests/{name}Tests/GoldenCheck.swift"
    check.write_text(check.read_text().replace(f"@testable import {name}\n", ""))
    main = folder / "main.swift"
    main.write_text((STUBS / "main.swift.txt").read_text().replace("@@RUN@@", run))
    return [folder / f"Sources/{name}/{part}.swift" for part in ("PrePost", "Contract")] + [check, main]


def _module(swift: Swift, work: Path, title: str, exported: tuple[str, str, Path], *, run: bool) -> list[str]:
    """Type-check the package against the stubs; build and `run` its arithmetic."""
    runtime, name, folder = exported
    sources = sorted((folder / f"Sources/{name}").glob("*.swift"))
    done = swift("swiftc", "-typecheck", "-module-name", name, "-I", work / "stubs", *sources)
    if done.returncode or not run:
        return [f"{title} ({runtime}): {done.stderr[-3000:]}"] if done.returncode else []
    built = swift("swiftc", "-Onone", "-o", folder / "check", *_alone(folder, name, ""))
    if built.returncode:
        return [f"{title}: {built.stderr[-3000:]}"]
    golden = folder / f"Tests/{name}Tests/Resources/golden.bin"
    ran = swift(folder / "check", golden)
    problems = [] if ran.stdout == "done\n" else [f"{title}: {ran.stdout} {ran.stderr[-500:]}"]
    labels = golden.with_name("golden.bin.labels")
    if (
        title == "nasty"
        and labels.is_file()
        and tuple(labels.read_bytes().decode().split("\uffff")) != apps_artifacts.NASTY
    ):
        problems.append("nasty: the labels are not what they were")
    return problems


def _litert_module(swift: Swift, work: Path, litert: Path) -> str:
    """Build LiteRT's own Swift sources over the library of the wheel; return what went wrong."""
    home = work / "litert"
    if home.is_dir():
        return ""
    spec = importlib.util.find_spec("ai_edge_litert")
    assert spec is not None
    assert spec.origin is not None
    for part in ("c", "swift"):
        shutil.copytree(litert / "litert" / part, home / "litert" / part)
    (home / "litert/build_common").mkdir()
    (home / "litert/build_common/build_config.h").write_text("")
    shutil.copy(Path(spec.origin).with_name("libLiteRt.so"), home)
    header = home / "litert/swift/Sources/LiteRtC.h"
    (home / "module.modulemap").write_text(f'module CLiteRT {{ header "{header}" export * }}\n')
    sources = sorted((home / "litert/swift/Sources").glob("*.swift"))
    command = ["swiftc", "-O", "-parse-as-library", "-emit-library", "-emit-module", "-module-name", "LiteRT"]
    paths: list[str | Path] = [
        "-I",
        home,
        "-Xcc",
        f"-I{home}",
        "-L",
        home,
        "-emit-module-path",
        home / "LiteRT.swiftmodule",
    ]
    made = swift(*command, *sources, *paths, "-lLiteRt", "-o", home / "libLiteRTSwift.so")
    if made.returncode:
        shutil.rmtree(home)
    return f"LiteRT's Swift package: {made.stderr[-3000:]}" if made.returncode else ""


def _litert(swift: Swift, work: Path, litert: Path, exported: tuple[str, str, Path]) -> list[str]:
    """Build a package with LiteRT itself and run the golden test of the program."""
    _, name, folder = exported
    if problem := _litert_module(swift, work, litert):
        return [problem]
    home = work / "litert"
    sources = _alone(folder, name, _RUN.format(name=name))
    sources += [folder / f"Sources/{name}/{part}.swift" for part in ("Engine", name)]
    paths: list[str | Path] = ["-I", home, "-Xcc", f"-I{home}", "-L", home]
    paths += ["-lLiteRTSwift", "-lLiteRt", "-Xlinker", f"-rpath={home}"]
    done = swift("swiftc", "-Onone", "-o", folder / "run", *sources, *paths)
    if done.returncode:
        return [f"{name} with LiteRT: {done.stderr[-3000:]}"]
    golden = folder / f"Tests/{name}Tests/Resources/golden.bin"
    ran = swift(folder / "run", golden, folder / f"Sources/{name}/Resources")
    passed = ran.returncode == 0 and ran.stdout.endswith("done\n") and "FAIL" not in ran.stdout
    return [] if passed else [f"{name} ran: {ran.stdout} {ran.stderr[-1500:]}"]


def main() -> int:
    """Run all checks; return 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder with an unpacked Debian that has swiftc")
    parser.add_argument("--litert", type=Path, help="checkout of LiteRT")
    parser.add_argument("--run", help="titles such as nasty,ssd that are also built and run; default: all")
    options = parser.parse_args()
    problems = []
    with tempfile.TemporaryDirectory(prefix="edgekit-swift-") as text:
        work = Path(text).resolve()
        swift = Swift(options.root.resolve() if options.root else None, work)
        problems += _stubs(swift, work)
        exported = _exports(work)
        for title, found in exported.items():
            run = options.run is None or title in options.run.split(",")
            new = _module(swift, work, title, found, run=run)
            if options.litert and found[0] == "litert" and run:
                new += _litert(swift, work, options.litert.resolve(), found)
            sys.stdout.write(f"{'FAIL' if new else 'ok  '}  {title} ({found[0]}{', run' if run else ''})\n")
            sys.stdout.flush()
            problems += new
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
