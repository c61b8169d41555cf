"""Builds for the tests of ExecuTorch: one architecture of the zoo, any recipe, samples that are always the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.calibration.affine import dequantize, quantize
from edge.calibration.recipe import Recipe
from edge.signature import Signature, TensorSpec
from edge.targets.base import Model, Program, Session, Target
from edge.targets.executorch import carrier
from edge.targets.executorch.runtime import ExecuTorch

Array = NDArray[Any]


class Sample:
    """What a data set yields: inputs by name."""

    def __init__(self, inputs: Mapping[str, Array]) -> None:
        self.inputs = inputs


def target(**options: Any) -> Target:
    """Return a target with these `[options.executorch]`."""
    return Target(name="t", title="t", family="linux", runtimes=("executorch",), options={"executorch": options})


def samples(signature: Signature, count: int = 16, seed: int = 0) -> list[Sample]:
    """Return standard normal samples of a signature without dynamic dimensions."""
    random = np.random.default_rng(seed)
    return [
        Sample({t.name: random.standard_normal(t.shape).astype(np.float32) for t in signature.inputs})
        for _ in range(count)
    ]


def imported(name: str, folder: Path, module: Any = None) -> Model:
    """Return one architecture of the zoo, or a trained `module` of it, as a model in the exported carrier."""
    import torch

    from tests import zoo

    made, examples = zoo.make(name)
    module = made if module is None else module
    program = torch.export.export(module, examples)
    found = carrier.unnamed(program)
    inputs = tuple(
        TensorSpec(name=n, shape=t.shape, dtype=t.dtype)
        for n, t in zip(zoo.ZOO[name].inputs, found.inputs, strict=True)
    )
    signature = Signature(inputs=inputs, outputs=found.outputs)
    folder.mkdir(parents=True, exist_ok=True)
    carrier.save(program, signature, folder / "carrier.pt2")
    return Model(carrier="exported", path=folder / "carrier.pt2", signature=signature)


def exported(module: Any, examples: tuple[Any, ...], folder: Path) -> Model:
    """Return a module as a model in the exported carrier, its ends named by position."""
    import torch

    program = torch.export.export(module, examples)
    signature = carrier.unnamed(program)
    carrier.save(program, signature, folder / "carrier.pt2")
    return Model(carrier="exported", path=folder / "carrier.pt2", signature=signature)


def agreement(model: Model, program: Program) -> float:
    """Return the smallest signal-to-noise ratio of a program's outputs against its float carrier, in dB."""
    runtime = ExecuTorch()
    reference, session = runtime.open_carrier(model.path), runtime.open(program.path, kernels="xnnpack", threads=1)
    inputs = [s.inputs for s in samples(model.signature, 8, seed=1)]
    return min(snr_db([reference.run(i) for i in inputs], [run(session, i) for i in inputs]).values())


def build(model: Model, recipe: Recipe, folder: Path, data: Any = None, **options: Any) -> Program:
    """Build below `folder`, calibrated with 16 samples where the recipe needs them."""
    folder.mkdir(parents=True, exist_ok=True)
    given: Any = samples(model.signature) if data is None and recipe.needs_calibration else data
    return ExecuTorch().build(model, recipe, target(**options), given, folder, lambda *_: None)


def run(session: Session, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run with float inputs and give float outputs, whatever the program's ends are."""
    fed = {
        t.name: inputs[t.name] if t.quantization is None else quantize(inputs[t.name], t.quantization, t.dtype)
        for t in session.signature.inputs
    }
    found = session.run(fed)
    return {
        t.name: found[t.name] if t.quantization is None else dequantize(found[t.name], t.quantization)
        for t in session.signature.outputs
    }


def snr_db(reference: Sequence[Mapping[str, Array]], found: Sequence[Mapping[str, Array]]) -> dict[str, float]:
    """Return 10 log10(sum ref^2 / sum (ref - found)^2) of each output."""
    result = {}
    for name in reference[0]:
        signal = sum(float(np.sum(np.square(r[name], dtype=np.float64))) for r in reference)
        noise = sum(
            float(np.sum(np.square(np.subtract(r[name], f[name], dtype=np.float64))))
            for r, f in zip(reference, found, strict=True)
        )
        result[name] = 10 * float(np.log10(signal / max(noise, 1e-30)))
    return result
