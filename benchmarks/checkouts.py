"""Builds of one model in two clean checkouts in two folders: the same program bytes, and manifests but for times?

python benchmarks/checkouts.py [--revision HEAD]

The project is cloned twice and the documented network is trained once and copied beside each clone. In the first, a
program is built for LiteRT, for ExecuTorch and for the Edge TPU, without a cache; in the second, each is built again by
`edgekit reproduce`. Exit code 1 where one is not identical.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILDS = {
    "litert": ["--target", "rpi4"],
    "executorch": ["--target", "android", "--runtime", "executorch"],
    "edgetpu": ["--target", "coral"],
}
DATA = ("net.py", "weights.pt", "data.npz")


def checkout(folder: Path, revision: str) -> Path:
    """Clone the project into a folder and return a working folder beside the clone."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder / "edgekit")], check=True)
    subprocess.run(["git", "-C", str(folder / "edgekit"), "checkout", "-q", revision], check=True)
    (work := folder / "work").mkdir()
    return work


def edgekit(work: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the clone beside a working folder."""
    own = {"PYTHONPATH": str(work.parent / "edgekit"), "EDGEKIT_CACHE_LIMIT_GB": "0"}
    command = [sys.executable, "-P", "-m", "edge", *words]
    return subprocess.run(command, cwd=work, env={**os.environ, **own}, capture_output=True, text=True, check=False)


def same(name: str, first: Path, second: Path) -> bool:
    """Build in the first working folder, again in the second, and print what came of it."""
    words = ["build", "net.py:make_net", *BUILDS[name], "--calibration", "data.npz", "--latency", "none", "-q"]
    built = edgekit(first, *words)
    if built.returncode not in (0, 1):
        print(f"{name}: {built.stderr.strip()}", flush=True)
        return False
    (artifact,) = (first / "edgekit-build").iterdir()
    words = ["--source", "net.py:make_net", "--calibration", "data.npz", "--json"]
    done = edgekit(second, "reproduce", str(artifact), *words)
    told: dict[str, Any] = json.loads(done.stdout)
    differences = "; ".join(f"{d['where']}: {d['recorded']} != {d['found']}" for d in told.get("differences", ()))
    print(f"{name:11} {told.get('outcome', told.get('message'))} {differences}", flush=True)
    shutil.rmtree(first / "edgekit-build")
    return told.get("outcome") == "identical"


def main() -> int:
    """Build and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--revision", default="HEAD")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests import docs_workspace

    with tempfile.TemporaryDirectory(prefix="checkouts-") as place:
        (models := Path(place) / "models").mkdir()
        docs_workspace.make(models)
        folders = []
        for name in ("here", "elsewhere/deeper"):
            (folder := Path(place) / name).mkdir(parents=True)
            folders.append(checkout(folder, given.revision))
            for file in DATA:
                shutil.copy(models / file, folders[-1])
        outcomes = [same(name, *folders) for name in BUILDS]
        return 0 if all(outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
