"""From an exported program to a Core ML package by coremltools, route after route."""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import ConfigError, ConversionError, MissingPackageError
from edge.signature import TensorSpec
from edge.targets.coreml.contract import Contract
from edge.targets.torch_common import Exported, example_shapes, first_line, functional, random_inputs

_DATE = "com.github.apple.coremltools.conversion_date"
_SIDE_FILE = "executorch_debug_handle_mapping.json"
_COLOURS = {"rgb": "RGB", "bgr": "BGR", "gray": "GRAYSCALE"}


@dataclass(frozen=True, kw_only=True)
class Converted:
    """An `MLModel` in memory, the route that made it, and why earlier routes did not."""

    model: Any
    route: str
    failures: Mapping[str, str]


@contextlib.contextmanager
def tools() -> Iterator[Any]:
    """Yield coremltools with its warnings silenced; raise MissingPackageError. The import takes about 9 s."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("coremltools").setLevel(logging.ERROR)
        try:
            import coremltools
        except ImportError as error:
            raise MissingPackageError(
                "A Core ML package needs the package coremltools, which is not installed.",
                hint="pip install 'edgekit[coreml]'",
            ) from error
        yield coremltools


def deployment_target(ct: Any, name: str) -> Any:
    """Return coremltools' constant of a name such as iOS16; raise ConfigError."""
    accepted = [n for n in dir(ct.target) if n.startswith(("iOS", "macOS")) and not n.endswith(("13", "14"))]
    if name not in accepted:
        raise ConfigError(
            f"options.coreml.minimum_deployment_target: {name!r}; accepted: {', '.join(accepted)}.",
            hint="ML programs exist from iOS15 on.",
        )
    return getattr(ct.target, name)


def convert(exported: Exported, contract: Contract, *, minimum: str, half: bool) -> Converted:
    """Convert by torch.export, else by tracing; `half` computes in float16. Raises ConversionError with all reasons.

    A program with control flow is not traced: a trace keeps one branch.
    """
    failures: dict[str, str] = {}
    for route, source in _routes(exported).items():
        try:
            with tools() as ct:
                made = _convert(ct, source(), exported, contract, minimum=minimum, half=half)
        except (ConfigError, MissingPackageError):
            raise
        except Exception as error:  # coremltools raises whatever its parts lead to
            failures[route] = f"{type(error).__name__}: {first_line(error)}"
            continue
        return Converted(model=made, route=route, failures=failures)
    reasons = "; ".join(f"{route}: {text}" for route, text in failures.items())
    raise ConversionError(
        f"coremltools cannot convert the program ({reasons}).",
        hint="Write the operator named here with others, or use `--runtime executorch`.",
    )


def _routes(exported: Exported) -> dict[str, Callable[[], Any]]:
    program = functional(exported.program)
    fixed = all(-1 not in t.shape for t in exported.signature.inputs)
    plain = not _has_control_flow(program)
    routes: dict[str, Callable[[], Any]] = {}
    if fixed or not plain:
        routes["export"] = lambda: program
    if plain:
        routes["trace"] = lambda: traced(exported)
    return routes


def _has_control_flow(program: Any) -> bool:
    return any(str(n.target) in ("cond", "while_loop", "map_impl", "scan") for n in program.graph.nodes)


def traced(exported: Exported) -> Any:
    """Return a TorchScript trace of flat tensors to one tensor or a tuple."""
    import torch

    module = exported.module()

    class Flat(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.module = module
            self.training = False

        def forward(self, *tensors: Any) -> Any:
            found = tuple(exported.leaves(self.module, tensors))
            return found[0] if len(found) == 1 else found

    with torch.no_grad():
        return torch.jit.trace(Flat(), tuple(random_inputs(exported, 1)[0]), check_trace=False)


def _convert(ct: Any, source: Any, exported: Exported, contract: Contract, *, minimum: str, half: bool) -> Any:
    shapes = example_shapes(exported)
    inputs = [_input(ct, contract, t, s) for t, s in zip(contract.signature.inputs, shapes, strict=True)]
    # Without a dtype, half-precision programs have half-precision ends from iOS16 on.
    outputs = [
        ct.TensorType(name=contract.features[t.name], dtype=np.dtype(t.dtype).type) for t in contract.signature.outputs
    ]
    return ct.convert(
        source,
        inputs=inputs,
        outputs=outputs,
        convert_to="mlprogram",
        minimum_deployment_target=deployment_target(ct, minimum),
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        classifier_config=ct.ClassifierConfig(list(contract.signature.labels)) if contract.classifier else None,
        skip_model_load=True,
    )


def _input(ct: Any, contract: Contract, spec: TensorSpec, shape: tuple[int, ...]) -> Any:
    name, image = contract.features[spec.name], contract.images.get(spec.name)
    if image is None:
        return ct.TensorType(name=name, shape=shape, dtype=np.dtype(spec.dtype).type)
    return ct.ImageType(
        name=name,
        shape=shape,
        scale=image.scale,
        bias=image.bias[0] if len(image.bias) == 1 else list(image.bias),
        color_layout=getattr(ct.colorlayout, _COLOURS[image.colour]),
        channel_first=spec.layout == "NCHW",
    )


def save(model: Any, path: Path, metadata: Mapping[str, str], fields: Mapping[str, str]) -> None:
    """Write the package; `fields` are author, license, version and short_description.

    The same model gives the same files.
    """
    for name, value in fields.items():
        setattr(model, name, value)
    for key in list(model.user_defined_metadata):
        if key == _DATE:
            del model.user_defined_metadata[key]
    for key, value in metadata.items():
        model.user_defined_metadata[key] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(str(path))
    (path / _SIDE_FILE).unlink(missing_ok=True)  # of ExecuTorch's own use; it doubles a small package
    _settle_ids(path / "Manifest.json")


def _settle_ids(manifest: Path) -> None:
    """Replace the random ids of the package's items by ones made from their paths."""
    table = json.loads(manifest.read_text(encoding="utf-8"))
    text = json.dumps(table, indent=4, sort_keys=True)
    for key, item in table["itemInfoEntries"].items():
        text = text.replace(key, str(uuid.uuid5(uuid.NAMESPACE_URL, f"edgekit:{item['path']}")).upper())
    table = json.loads(text)
    manifest.write_text(json.dumps(table, indent=4, sort_keys=True) + "\n", encoding="utf-8")
