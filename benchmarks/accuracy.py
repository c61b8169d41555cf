"""Accuracy of int8 programs by technique, against the peers, on networks with labelled test data.

    python benchmarks/accuracy.py                      all networks (needs tensorflow and scikit-learn; minutes)
    python benchmarks/accuracy.py --only "lstm"        those whose name contains the text
    python benchmarks/accuracy.py --check              exit 1 where a promise is broken
    python benchmarks/accuracy.py --models FOLDER      also the shared trained models of that folder
    python benchmarks/accuracy.py --results FOLDER     keep each network's result there, and skip those that are

Peers on the same float flatbuffer and the same 300 calibration samples: TFLite's post-training quantizer (the one
behind TFLiteConverter, min/max) and ai-edge-quantizer with its own calibration; networks of the suite go through
TFLiteConverter itself as well, from Keras. "search" is ours within 1 point,
integers throughout (the Edge TPU's rules) and with float islands (a CPU's); it chooses on samples that neither
calibrate nor test, and compares its choice on the test samples with what the two quantizers make alone, as every build
with --recipe auto does on its evaluation samples. Promises: search on a CPU is never below a peer, not by one sample,
and where the best peer loses more than 1 point it recovers at least 80 % of that. (The peers' programs are a CPU's: the
Edge TPU wants one scale for all weights of a dense layer, and no operator in float.)
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_models import BODIES, HEAD, train, write_data

from edge import codec, isolate
from edge.calibration import recipe as recipes
from edge.calibration.data import Dataset
from edge.calibration.selection import plan
from edge.errors import QuantizationError
from edge.signature import Signature
from edge.sources.base import Declaration
from edge.targets import registry
from edge.targets.edgetpu import dense
from edge.targets.litert import contract, flatbuffer, prepare, ptq, quantize, session

TECHNIQUES = (
    "int8",
    "int8-percentile",
    "int8-mse",
    "int8-entropy",
    "int8-weights-mse",
    "int8-tuned",
    "int8-equalized",
    "int8-rounded",
    "int8-corrected",
)
PEERS = ("TFLiteConverter", "TFLite post-training", "ai-edge-quantizer")
SHARED = {
    "point-history": (
        "keras-hand-gesture/point_history_classifier.tflite",
        "keras-hand-gesture/point_history_split_rs42.npz",
    ),
    "keypoint": ("keras-hand-gesture/keypoint_classifier.tflite", "keras-hand-gesture/keypoint_split_rs42.npz"),
    "kws dscnn": ("mlperf-kws-dscnn/kws_ref_model_float32.tflite", "data-kws01/kws01_mfcc_int8_1000.npz"),
    "mnist lstm": ("tflm-mnist-lstm/trained_lstm.tflite", "data-mnist/mnist_t10k_balanced_1000.npz"),
    "visual wake words": ("mlperf-vww-mobilenet/vww_96_float.tflite", "data-coco-permissive/vww_u8_96.npz"),
}
PREPROCESS = {
    "kws dscnn": (0.5847029, 83 * 0.5847029),
    "mnist lstm": (1 / 255, 0.0),
    "visual wake words": (1 / 255, 0.0),
}
# The scores of a detection stand behind its box.
_FIRST_SCORE = {HEAD: 4}
_METRIC = """def accuracy(outputs, label):
    return float(next(iter(outputs.values())).reshape(-1)[{first}:].argmax() == int(label))
"""
BUDGET = 0.01


@dataclass(frozen=True, kw_only=True)
class Case:
    """A float flatbuffer with its data: calibration samples, and test inputs with labels."""

    name: str
    carrier: Path
    signature: Signature
    data: Any
    test: Sequence[Any]
    keras: Path | None = None
    metric: str | None = None

    @property
    def first_score(self) -> int:
        """Where the scores begin in the output."""
        return _FIRST_SCORE.get(self.name, 0)


def _load(name: str, source: Path, data: Path, folder: Path) -> Case:
    from edge.signature import Preprocess
    from edge.sources import registry as sources
    from edge.sources.base import InputDeclaration

    declared = Declaration(trust=True)
    if name in PREPROCESS:
        scale, mean = PREPROCESS[name]
        declared = Declaration(inputs={"0": InputDeclaration(preprocess=Preprocess(scale=scale, mean=(mean,)))})
    loaded = sources.detect(str(source)).load(str(source), declared)
    carrier = folder / f"{name.replace(' ', '-')}.tflite"
    loaded.to_litert(carrier)
    chosen = plan(
        loaded.signature,
        {"calibration": str(data), "evaluation": None, "calibration_samples": 300, "evaluation_samples": None}
        | {"search": True},
    )
    assert chosen.calibration is not None
    assert chosen.evaluation is not None
    test = [(dict(s.inputs), int(np.asarray(s.label))) for s in chosen.evaluation.open(loaded.signature)]
    metric = None
    if first := _FIRST_SCORE.get(name):
        (folder / "scores.py").write_text(_METRIC.format(first=first))
        metric = f"{folder / 'scores.py'}:accuracy"
    return Case(
        name=name,
        carrier=carrier,
        signature=loaded.signature,
        data=chosen,
        test=test,
        keras=source if name in BODIES else None,
        metric=metric,
    )


def _right(program: bytes, case: Case) -> Any:
    """Return 1 for each test sample that the program classifies right, else 0."""
    opened = session.LiteRTSession(program, kernels="xnnpack", threads=1)
    made = [next(iter(session.run_float(opened, x).values())).reshape(-1)[case.first_score :] for x, _ in case.test]
    return np.asarray([float(found.argmax() == y) for found, (_, y) in zip(made, case.test, strict=True)], np.float64)


def _converter(case: Case, samples: Dataset) -> bytes:
    """Return what TFLiteConverter makes of the Keras file."""
    import keras
    import tensorflow as tf

    name = case.signature.inputs[0].name
    model = keras.models.load_model(case.keras, compile=False)
    folder = tempfile.mkdtemp(prefix="edgekit-benchmark-")
    spec = keras.InputSpec(shape=(1, *model.input_shape[1:]), dtype="float32", name=name)
    model.export(folder, input_signature=[spec], verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([s.inputs[name]] for s in samples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    made = flatbuffer.load(bytes(converter.convert()))
    prepare.canonical(made, case.signature)
    return flatbuffer.dump(made)


def _canonical(case: Case) -> Any:
    model = flatbuffer.load(case.carrier)
    prepare.canonical(model, case.signature)
    return model


def _post_training(case: Case, samples: Dataset) -> bytes:
    """Return what TFLite's own quantizer makes of min/max ranges."""
    ready = quantize.calibrated(_canonical(case), recipes.named("int8"), samples)
    assert ready.ranges is not None
    return ptq.quantize(ready.program, recipes.named("int8"), ready.ranges, samples)


def _edge_quantizer(case: Case, samples: Dataset) -> bytes:
    """Return what ai-edge-quantizer makes with its own calibration and recipe."""
    from ai_edge_quantizer import quantizer, recipe

    program = flatbuffer.dump(_canonical(case))
    made = quantizer.Quantizer(program, recipe.static_wi8_ai8())
    key = contract.DEFAULT_KEY
    statistics_ = made.calibrate({key: [dict(s.inputs) for s in samples]})
    return bytes(made.quantize(statistics_).quantized_model)


def _ours(case: Case, samples: Dataset, name: str) -> bytes:
    return quantize.quantize(_canonical(case), recipes.named(name), samples).program


def _search(case: Case, target: str, folder: Path) -> tuple[bytes, dict[str, Any]]:
    chosen = registry.target(target)
    work = folder / f"search-{case.name.replace(' ', '-')}-{target}"
    work.mkdir()
    answer = isolate.call(
        "edge.stages.searching:search",
        {
            "carrier": str(case.carrier),
            "signature": codec.to_json(case.signature),
            "recipe": codec.to_json(recipes.named("int8", io=chosen.io)),
            "target": codec.to_json(chosen),
            "runtime": chosen.runtimes[0],
            "calibration": codec.to_json(case.data.calibration),
            "evaluation": codec.to_json(case.data.evaluation),
            "metric": case.metric,
            "max_drop": BUDGET,
            "kernels": "xnnpack",
            "workdir": str(work),
            "cache": None,
        },
        workdir=work,
    )
    recipe = codec.from_json(recipes.Recipe, answer["recipe"])
    samples = case.data.calibration.open(case.signature)
    if chosen.options.get("dense_as_convolutions"):  # as the runtime does before it quantizes
        case = replace(case, carrier=dense.rewritten(case.carrier, case.signature, work))
    return quantize.quantize(_canonical(case), recipe, samples).program, answer["details"]


def _attempt(make: Callable[[], bytes], case: Case) -> Any:
    try:
        return _right(make(), case)
    except Exception as error:  # a peer may refuse a network, which is its result
        print(f"    failed: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
        return None


def measured(case: Case, folder: Path) -> dict[str, Any]:
    """Return the right answers of each quantizer on the test samples, and what the searches took."""
    samples = case.data.calibration.open(case.signature)
    scores: dict[str, Any] = {"float": _right(flatbuffer.dump(_canonical(case)), case)}
    if case.keras:
        scores[PEERS[0]] = _attempt(lambda: _converter(case, samples), case)
    scores[PEERS[1]] = _attempt(lambda: _post_training(case, samples), case)
    scores[PEERS[2]] = _attempt(lambda: _edge_quantizer(case, samples), case)
    for name in TECHNIQUES:
        scores[f"ours {name}"] = _attempt(lambda name=name: _ours(case, samples, name), case)  # type: ignore[misc]
    found = {}
    for target in ("coral", "linux"):
        started = time.perf_counter()
        try:
            program, details = _search(case, target, folder)
        except QuantizationError as error:
            print(f"    {target}: {error.message}", file=sys.stderr)
            scores[f"ours search, {target}"] = None
            continue
        scores[f"ours search, {target}"] = _right(program, case)
        found[target] = (
            f"{details['chosen']} ({details['forward_passes']:g} passes, {time.perf_counter() - started:.0f} s)"
        )
    kept = {name: None if right is None else [int(r) for r in right] for name, right in scores.items()}
    return {"name": case.name, "scores": kept, "found": found}


def shown(result: dict[str, Any]) -> list[str]:
    """Print one network's table; return the promises that it breaks."""
    scores: dict[str, Any] = {n: None if r is None else np.asarray(r, np.float64) for n, r in result["scores"].items()}
    found, exact = result["found"], scores["float"]
    print(f"\n{result['name']}: {len(exact)} test samples")
    for name, right in scores.items():
        text = "failed" if right is None else f"{100 * right.mean():6.2f}  {100 * (right.mean() - exact.mean()):+6.2f}"
        print(f"  {name:26} {text}  {found.get(name.rpartition(' ')[2], '') if 'search' in name else ''}")
    sys.stdout.flush()
    return _broken(result["name"], scores)


def _broken(name: str, scores: dict[str, Any]) -> list[str]:
    if scores["ours search, linux"] is None:
        return [f"{name}: the search found no program for a CPU"]
    ours, exact = scores["ours search, linux"].mean(), scores["float"].mean()
    peers = {k: scores[k].mean() for k in PEERS if scores.get(k) is not None}
    broken = [
        f"{name}: {100 * (right - ours):.2f} points below {peer}" for peer, right in peers.items() if ours < right
    ]
    best = max(peers.values(), default=exact)
    if exact - best > 0.01 and ours - best < 0.8 * (exact - best):
        lost = 100 * (exact - ours)
        broken.append(f"{name}: the best peer loses {100 * (exact - best):.2f} points, the search {lost:.2f}")
    return broken


def cases(folder: Path, models: Path | None, only: str) -> Any:
    """Yield name and loader of the networks whose name contains `only`; those of the suite are trained by theirs."""
    data = write_data(folder)
    for name in BODIES:
        if only in name:
            yield name, lambda name=name: _load(name, train(name, data, folder), data, folder)
    for name, (model, samples) in (SHARED if models else {}).items():
        if only in name and models:
            yield name, lambda name=name, m=models / model, d=models / samples: _load(name, m, d, folder)


def _results(folder: Path, options: argparse.Namespace) -> Any:
    for name, load in cases(folder, options.models, options.only):
        kept = options.results / f"{name.replace(' ', '-').replace(',', '')}.json" if options.results else None
        if kept is not None and kept.is_file():
            yield json.loads(kept.read_text())
            continue
        result = measured(load(), folder)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(result))
        yield result


def main() -> int:
    """Run the suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--models", type=Path, help="folder of the shared trained models")
    parser.add_argument("--results", type=Path, help="folder that keeps each network's result")
    parser.add_argument("--check", action="store_true", help="exit 1 where a promise is broken")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        broken = [line for result in _results(Path(folder), options) for line in shown(result)]
    print("\n" + ("\n".join(broken) if broken else "Every promise holds."))
    return 1 if broken and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
