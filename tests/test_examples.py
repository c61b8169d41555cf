"""Each example is a folder that runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge import artifact

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.frameworks
@pytest.mark.slow
def test_the_coral_classifier(tmp_path: Path) -> None:
    """Its commands train, build for coral and rpi4 within the budget, and check."""
    folder = tmp_path / "example"
    shutil.copytree(ROOT / "examples/coral-classifier", folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "train.py"], cwd=folder, check=True, capture_output=True)
    for arguments in (
        ["build", "-q"],
        ["inspect", "edgekit-build/digits-coral", "--target", "coral"],
        ["check", "edgekit-build/digits-rpi4", "--evaluation", "digits.npz", "-q"],
        ["compare", "edgekit-build/digits-coral", "edgekit-build/digits-rpi4"],
    ):
        command = [sys.executable, "-m", "edge", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    accuracy = artifact.read(folder / "edgekit-build/digits-coral").manifest.metrics.accuracy
    assert accuracy is not None
    assert accuracy.float > 0.95
