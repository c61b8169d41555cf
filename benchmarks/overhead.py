"""What `edgekit build` costs beside a bare script that calls the same converter and quantizer, in one run.

    python benchmarks/overhead.py [--repeat 3]

The last rows are of the cache: the same build again, unchanged, and with another recipe.

Both take a Keras MobileNetV2 (0.35, 96 px, random weights) and 200 samples to an int8 program. The bare script
exports, converts, calibrates with exact ranges and quantizes; it neither verifies nor evaluates. edgekit does all of
its checks on the same samples. The fixed start-up is the difference of both on a network of one layer. Wall times of
the fastest run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SAMPLES = 200

PREPARE = """
import sys, numpy as np, keras
folder, kind = sys.argv[1], sys.argv[2]
keras.utils.set_random_seed(0)
if kind == "real":
    model = keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10)
else:
    model = keras.Sequential([keras.Input((96, 96, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)])
model.save(f"{folder}/{kind}.keras")
random = np.random.default_rng(0)
x = random.random((int(sys.argv[3]), 96, 96, 3), dtype=np.float32)
np.savez(f"{folder}/data.npz", x=x)
"""

BARE = """
import sys, tempfile, numpy as np, keras, tensorflow as tf
from ai_edge_quantizer import quantizer, recipe
from ai_edge_quantizer.utils import qsv_utils
from ai_edge_quantizer.calibrator import Calibrator
source, data, out = sys.argv[1:4]
model = keras.models.load_model(source)
with tempfile.TemporaryDirectory() as folder:
    spec = [keras.InputSpec(shape=(1, 96, 96, 3), dtype="float32", name="image")]
    model.export(folder, input_signature=spec, verbose=False)
    program = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
made = quantizer.Quantizer(program, recipe.static_wi8_ai8())
calibrator = Calibrator(program, num_threads=2, qsv_update_func=qsv_utils.min_max_update)
from ai_edge_litert.interpreter import Interpreter
signature = Interpreter(model_content=program).get_signature_list()
(key, ends), = signature.items()
for sample in np.load(data)["x"]:
    calibrator.calibrate({key: [{ends["inputs"][0]: sample[None]}]}, made._recipe_manager)
made.quantize(calibrator.get_model_qsvs(), enable_progress_report=False).export_model(out, overwrite=True)
"""


def seconds(command: list[str], repeat: int, environment: dict[str, str] | None = None) -> float:
    """Return the wall time of the fastest of `repeat` runs."""
    best = float("inf")
    for _ in range(repeat):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=environment)
        best = min(best, time.perf_counter() - started)
    return best


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    python = sys.executable
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        times: dict[tuple[str, str], float] = {}
        for kind in ("trivial", "real"):
            subprocess.run([python, "-c", PREPARE, name, kind, str(SAMPLES)], check=True, capture_output=True)
            source, data = str(folder / f"{kind}.keras"), str(folder / "data.npz")
            times[kind, "bare"] = seconds([python, "-c", BARE, source, data, str(folder / "bare.tflite")], repeat)
            command = [python, "-m", "edge", "build", source, "--target", "rpi4", "--calibration", data, "-q"]
            command += ["--calibration-samples", str(SAMPLES), "--latency", "none", "-o", str(folder / "out")]
            fresh, again = [*command, "--no-cache"], [*command, "--evaluation", data]
            times[kind, "edgekit"] = seconds([*fresh, "--evaluation", data], repeat)
            times[kind, "edgekit, 16 evaluated"] = seconds([*fresh, "--evaluation-samples", "16"], repeat)
            environment = {**os.environ, "EDGEKIT_CACHE": str(folder / f"cache-{kind}")}
            seconds(again, 1, environment)
            times[kind, "edgekit, unchanged"] = seconds(again, repeat, environment)
            times[kind, "edgekit, another recipe"] = seconds([*again, "--recipe", "dynamic"], 1, environment)
    fixed = times["trivial", "edgekit, 16 evaluated"] - times["trivial", "bare"]
    print(f"fixed start-up of edgekit over the bare script: {fixed:.1f} s")
    print(f"{'':32}{'one layer':>12}{'MobileNetV2':>14}{'beyond start-up':>18}")
    for name in ("bare", "edgekit, 16 evaluated", "edgekit", "edgekit, another recipe", "edgekit, unchanged"):
        real = times["real", name]
        beyond = "" if name == "bare" else f"{100 * ((real - fixed) / times['real', 'bare'] - 1):+.0f} %"
        print(f"{name:32}{times['trivial', name]:>10.1f} s{real:>12.1f} s{beyond:>18}")


if __name__ == "__main__":
    main()
