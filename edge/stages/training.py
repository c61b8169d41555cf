"""Fine-tune: fake quantization is inserted for the target's scheme, the user's function trains, scales are learned."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge import codec, isolate
from edge.calibration.selection import Selection
from edge.errors import SourceError, UsageError
from edge.findings import Finding
from edge.project import Project, Training
from edge.signature import Signature
from edge.sources import factory, sniff
from edge.sources import registry as sources
from edge.sources.base import Declaration, LoadedSource
from edge.targets.base import Target

if TYPE_CHECKING:
    from edge.isolate import Progress

_KINDS = ("torch", "keras")
# Ranges start from so many calibration samples.
_SAMPLES = 64
# The share of epochs after which the ranges of activations stay as they are.
_SETTLE = 0.5


class Trainee(Protocol):
    """A network with fake quantization inserted. `model` is what the user's function trains in place."""

    model: Any

    def observe(self, samples: Iterator[dict[str, Any]]) -> None:
        """Set first ranges of activations."""
        ...

    def settle(self) -> None:
        """Keep the ranges of activations as they are from here on."""
        ...

    def finish(self, workdir: Path) -> LoadedSource:
        """Return the trained network as a source with learned scales."""
        ...


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the training did: `losses` are the function's own, one per epoch; None where it returned none."""

    function: str
    epochs: int
    seed: int
    losses: tuple[float | None, ...]
    seconds: float
    stopped: str


def run(
    project: Project,
    carrier: str,
    targets: Sequence[Target],
    imported: Mapping[str, Any],
    work: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Run `fine_tune` in a child process; return the import's answer with the trained carrier in place of its own."""
    training = project.training
    assert training is not None
    per_tensor = {o for t in targets for o in t.options.get("per_tensor", ())}
    layout = project.layout or ("channel-last" if carrier == "litert" else "keep")
    answer = isolate.call(
        "edge.stages.training:fine_tune",
        {
            "source": project.source,
            "declaration": {**codec.to_json(project.declaration), "layout": layout},
            "signature": imported["signature"],
            "carrier": carrier,
            "calibration": imported["calibration"],
            "training": codec.to_json(training),
            "per_tensor": sorted(per_tensor),
            "workdir": str(work),
        },
        workdir=work,
        name="train",
        progress=progress,
        # Between epochs the stage itself watches the time.
        timeout_s=2 * training.time_limit_s + project.timeout_s,
    )
    return {
        **imported,
        "carrier": answer["carrier"],
        "findings": [*imported["findings"], *answer["findings"]],
        "training": answer["details"],
    }


def fine_tune(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Train a source with fake quantization and write its carrier, scales learned, in place of the float one.

    Request: source, declaration, signature (of the float import, which stays), carrier (`litert` or `exported`),
    calibration (a selection or None), training, per_tensor (operators with one weight scale), workdir. Raises
    UsageError for a source that cannot be trained, SourceError with the user's line where their function fails.
    """
    training = codec.from_json(Training, request["training"])
    signature = codec.from_json(Signature, request["signature"])
    train = _function(training.function)
    trainee = _prepared(request, signature, training.seed)
    progress("setting first ranges", None)
    if request.get("calibration"):
        data = codec.from_json(Selection, request["calibration"]).open(signature)
        trainee.observe(dict(s.inputs) for s, _ in zip(data, range(_SAMPLES), strict=False))
    record = _train(train, trainee, training, progress)
    workdir = Path(request["workdir"])
    loaded: Any = trainee.finish(workdir)
    litert = request["carrier"] == "litert"
    path = workdir / ("trained.tflite" if litert else "trained.pt2")
    progress("exporting the trained network", None)
    found = loaded.to_litert(path) if litert else loaded.to_exported(path, progress)
    return {
        "carrier": str(path),
        "findings": [codec.to_json(f) for f in (*(found or ()), _finding(record))],
        "details": codec.to_json(record),
    }


def _prepared(request: dict[str, Any], signature: Signature, seed: int) -> Trainee:
    source = sources.detect(request["source"])
    if source.kind not in _KINDS:
        raise UsageError(
            f"A source of kind {source.kind} cannot be trained; the recipe qat takes PyTorch and Keras sources.",
            hint="Give file.py:factory of the module, or the .keras file.",
        )
    declaration = codec.from_json(Declaration, {**request["declaration"], "decided": codec.to_json(signature)})
    _seed(seed)
    loaded: Any = source.load(request["source"], declaration)
    per_tensor = tuple(request.get("per_tensor", ()))
    if loaded.kind == "torch":
        from edge.stages.training_torch import TorchTrainee

        return TorchTrainee(loaded, declaration, per_tensor)
    if loaded.kind == "keras":
        from edge.stages.training_keras import KerasTrainee

        return KerasTrainee(loaded, declaration, per_tensor)
    raise UsageError(
        f"A source of kind {loaded.kind} cannot be trained; the recipe qat takes PyTorch modules and Keras models."
    )


def _seed(seed: int) -> None:
    import random
    import sys

    random.seed(seed)
    np.random.seed(seed)  # the user's function may draw from it
    for name in ("torch", "keras", "tensorflow"):
        module: Any = sys.modules.get(name)
        if name == "torch" and module is not None:
            module.manual_seed(seed)
        elif name == "keras" and module is not None:
            module.utils.set_random_seed(seed)


def _function(location: str) -> Callable[..., Any]:
    found = sniff.split_factory(location)
    if found is None or not found[1]:
        raise UsageError(f"--train {location} names no function.", hint="Write --train train.py:train.")
    function: Callable[..., Any] = factory.find(*found)
    count = len(inspect.signature(function).parameters)
    if count != 2:
        raise UsageError(
            f"The training function {location} takes {count} arguments; accepted: 2, train(model, epoch).",
            hint="It trains the model in place for one epoch (counted from 0) and may return the loss.",
        )
    return function


def _train(function: Callable[..., Any], trainee: Trainee, training: Training, progress: Progress) -> Trained:
    started, losses, stopped = time.perf_counter(), list[float | None](), "all epochs done"
    settle = max(1, round(training.epochs * _SETTLE)) if training.epochs > 1 else None
    for epoch in range(training.epochs):
        if epoch == settle:
            trainee.settle()
        progress(f"fine-tuning, epoch {epoch + 1} of {training.epochs}", epoch / training.epochs)
        _seed(training.seed + epoch)
        with factory.user_code(training.function, f"train(model, {epoch})"):
            loss = function(trainee.model, epoch)
        losses.append(None if loss is None else float(loss))
        if losses[-1] is not None and not np.isfinite(losses[-1]):
            raise SourceError(
                f"{training.function}: the loss is {losses[-1]} after epoch {epoch}.", hint="Use a smaller step."
            )
        if time.perf_counter() - started > training.time_limit_s and epoch + 1 < training.epochs:
            stopped = f"the time limit of {training.time_limit_s:g} s"
            break
    return Trained(
        function=training.function,
        epochs=len(losses),
        seed=training.seed,
        losses=tuple(losses),
        seconds=round(time.perf_counter() - started, 2),
        stopped=stopped,
    )


def _finding(record: Trained) -> Finding:
    known = [x for x in record.losses if x is not None]
    loss = f", loss {known[0]:.4g} to {known[-1]:.4g}" if known else ""
    return Finding(
        rule="FINE_TUNED",
        severity="info",
        message=f"{record.function} trained with fake quantization for {record.epochs} epochs (seed {record.seed}"
        f"{loss}, {record.seconds:.0f} s; {record.stopped}); the reference is the network as it was given.",
    )
