"""Int8 accuracy of edgekit against ai-edge-quantizer's defaults and tf.lite.TFLiteConverter, on real models and labels.

Run from the repository: `python benchmarks/quantizers.py [FOLDER_OF_MODELS]`. All quantizers see the same calibration
samples in the same order and start from the same weights; accuracy is counted on the same labelled samples with the
builtin kernels. Where calibration and test samples are disjoint the table says `held out`, else `shared`: then the
numbers compare quantizers, and are no estimate of accuracy in the field. `RMS` is the error of the outputs relative to
the float model's, which moves where top-1 does not.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edge.calibration import recipe as recipes
from edge.errors import EdgekitError
from edge.targets.litert import contract, coverage, flatbuffer, prepare, quantize, session

MODELS = Path(__file__).resolve().parents[1] / ".." / "shared" / "models"
INT8 = recipes.named("int8")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model with its data: a float `.tflite`, or a Keras file, from which TFLiteConverter can start too."""

    name: str
    model: Path
    calibration: Any
    inputs: Any
    labels: Any
    split: str

    @property
    def is_keras(self) -> bool:
        """Whether the source is a Keras file."""
        return self.model.suffix != ".tflite"


class Samples:
    """Rows of an array as calibration samples of one input."""

    def __init__(self, name: str, rows: Any) -> None:
        self._name, self._rows = name, rows

    def __iter__(self) -> Iterator[Any]:
        return iter([SimpleNamespace(inputs={self._name: row[None]}) for row in self._rows])

    def __len__(self) -> int:
        return len(self._rows)


def cases(folder: Path) -> Iterator[Case]:
    """Yield the models with labelled data that the folder has."""
    for name in ("keypoint", "point_history"):
        data = np.load(folder / f"keras-hand-gesture/{name}_split_rs42.npz")
        yield Case(
            name=f"gesture {name}",
            # The Keras file of the keypoint model is another training, with three classes for labels of four.
            model=folder / f"keras-hand-gesture/{name}_classifier.{'tflite' if name == 'keypoint' else 'hdf5'}",
            calibration=data["x_train"][:300],
            inputs=data["x_test"],
            labels=data["y_test"],
            split="held out",
        )
    data = np.load(folder / "data-kws01/kws01_mfcc_int8_1000.npz")
    mfcc = (data["x"].astype(np.float32) - 83) * np.float32(0.5847029)
    yield Case(
        name="keyword spotting",
        model=folder / "mlperf-kws-dscnn/kws_ref_model_float32.tflite",
        calibration=mfcc[::5],
        inputs=np.delete(mfcc, np.s_[::5], axis=0),
        labels=np.delete(data["y"], np.s_[::5]),
        split="held out",
    )
    data = np.load(folder / "data-coco-permissive/vww_u8_96.npz")
    images = data["x"].astype(np.float32) / 255
    yield Case(
        name="visual wake words",
        model=folder / "mlperf-vww-mobilenet/vww_96.h5",
        calibration=images,
        inputs=images,
        labels=data["y"],
        split="shared",
    )
    data = np.load(folder / "data-mnist/mnist_t10k_balanced_1000.npz")
    digits = data["x"].astype(np.float32) / 255
    yield Case(
        name="MNIST LSTM",
        model=folder / "tflm-mnist-lstm/trained_lstm.tflite",
        calibration=digits[::5],
        inputs=np.delete(digits, np.s_[::5], axis=0),
        labels=np.delete(data["y"], np.s_[::5]),
        split="held out",
    )


def float_program(case: Case) -> bytes:
    """Return the float model that all quantizers start from, so that all see the same weights.

    It has a signature, which ai-edge-quantizer's own calibration needs; no weight is touched.
    """
    if case.is_keras:
        import tensorflow as tf

        model = flatbuffer.load(bytes(tf.lite.TFLiteConverter.from_saved_model(_saved_model(case)).convert()))
    else:
        model = flatbuffer.load(case.model)
    signature = contract.signature_of(model)
    fixed = tuple(_fixed(spec) for spec in signature.inputs)
    prepare.canonical(model, signature.with_tensors(fixed, signature.outputs))
    return flatbuffer.dump(model)


def _fixed(spec: Any) -> Any:
    return replace(spec, shape=tuple(abs(d) for d in spec.shape))


def edgekit(case: Case, program: bytes) -> bytes:
    """Quantize as `edgekit build` does."""
    samples = Samples(_input(program), case.calibration)
    return quantize.quantize(flatbuffer.load(program), INT8, samples, threads=1).program


def aeq_default(case: Case, program: bytes) -> bytes:
    """Quantize as the package's README does: its recipe, its calibration with a moving average."""
    from ai_edge_quantizer import quantizer, recipe

    made = quantizer.Quantizer(program, recipe.static_wi8_ai8())
    name = _input(program)
    data = {contract.DEFAULT_KEY: [{name: row[None]} for row in case.calibration]}
    result = made.quantize(made.calibrate(data, num_threads=1), enable_progress_report=False)
    return bytes(result.quantized_model)


def tflite_converter(case: Case, program: bytes) -> bytes:  # noqa: ARG001
    """Quantize as TensorFlow's guide does, from the Keras file, with int8 ends."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(_saved_model(case))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([row[None]] for row in case.calibration)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def _saved_model(case: Case) -> str:
    import keras

    class DepthwiseConv2D(keras.layers.DepthwiseConv2D):  # type: ignore[misc]
        """Keras 2 wrote `groups`, which Keras 3 refuses."""

        def __init__(self, **config: Any) -> None:
            config.pop("groups", None)
            super().__init__(**config)

    model = keras.models.load_model(case.model, compile=False, custom_objects={"DepthwiseConv2D": DepthwiseConv2D})
    shape = (1, *case.inputs.shape[1:])
    folder = tempfile.mkdtemp(prefix="edgekit-benchmark-")
    spec = [keras.InputSpec(shape=shape, dtype="float32", name="x")]
    model.export(folder, input_signature=spec, verbose=False)
    return folder


def _input(program: bytes) -> str:
    return contract.signature_of(flatbuffer.load(program)).inputs[0].name


def outputs(program: bytes, rows: Any) -> Any:
    """Return the first output for every row, dequantized."""
    opened = session.LiteRTSession(program, kernels="builtin", threads=1)
    (source,), target = opened.signature.inputs, opened.signature.outputs[0].name
    return np.concatenate([session.run_float(opened, {source.name: row[None]})[target] for row in rows])


def measured(make: Callable[[Case, bytes], bytes], case: Case, program: bytes, reference: Any) -> str:
    """Return accuracy, relative RMS error and number of float operators of one quantizer, or why there is none."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = make(case, program)
        found = outputs(made, case.inputs)
    except EdgekitError as error:
        return f"refused: {error.message[:40]}"
    except Exception as error:  # a foreign tool's failure is a result here
        return f"failed: {type(error).__name__}"
    rms = float(np.sqrt(np.mean((found - reference) ** 2)) / np.sqrt(np.mean(reference**2)))
    left = len(coverage.of(flatbuffer.load(made)).left_float)
    return f"{accuracy(found, case.labels):6.2f} % RMS {rms:.4f}" + (f" ({left} float ops)" if left else "")


def accuracy(scores: Any, labels: Any) -> float:
    """Return top-1 accuracy in percent."""
    return 100.0 * float(np.mean(scores.argmax(axis=-1) == labels))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def main(folder: Path) -> int:
    """Print the table."""
    if not folder.is_dir():
        print(f"{folder} is not there: give the folder of models.", file=sys.stderr)
        return 2
    start = time.monotonic()
    rows = [["model", "samples", "float", "edgekit", "ai-edge-quantizer default", "TFLiteConverter PTQ"]]
    for case in cases(folder):
        program = float_program(case)
        reference = outputs(program, case.inputs)
        rows.append(
            [
                case.name,
                f"{len(case.labels)} {case.split}",
                f"{accuracy(reference, case.labels):6.2f} %",
                measured(edgekit, case, program, reference),
                measured(aeq_default, case, program, reference),
                measured(tflite_converter, case, program, reference) if case.is_keras else "no Keras source",
            ]
        )
    print(table(rows))
    print(f"\n{time.monotonic() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else MODELS))
