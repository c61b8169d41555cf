"""Source: local folders of Hugging Face transformers (config.json and weights), read without the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.errors import ConfigError, MissingPackageError, SourceError, blaming
from edge.signature import Preprocess, Resize
from edge.sources import declared, torch_io
from edge.sources.base import Declaration, InputDeclaration, LoadedSource
from edge.sources.sniff import sniff
from edge.sources.torch import to_float32
from edge.sources.torch_model import LoadedTorch

# PIL's numbers of `resample` in preprocessor_config.json.
_RESIZE: dict[int, Resize] = {0: "nearest", 2: "antialias", 3: "antialias"}
_WHOLE = "The folder needs config.json and model.safetensors of one model."
_CLASSIFIERS = ("ForImageClassification", "ForSequenceClassification", "ForAudioClassification")


@dataclass(frozen=True)
class HuggingFaceSource:
    """Folders of `save_pretrained`."""

    kind: str = "hugging-face"
    packages: tuple[str, ...] = ("transformers", "torch", "litert_torch")

    def matches(self, location: str) -> bool:
        """Tell whether the folder has a configuration and weights."""
        return sniff(location) == "hugging-face"

    def load(self, location: str, declaration: Declaration) -> LoadedSource:
        """Open the folder. Raises SourceError for unknown architectures and for code of its own without trust."""
        folder = Path(location)
        config = _config(folder)
        with blaming(SourceError, f"{folder} has settings that edgekit does not understand", hint=_WHOLE):
            model = _model(folder, config, trust=declaration.trust)
            findings = to_float32(model)
            wished = _completed(folder, model, declaration)
        module, names = _wrapped(model, wished)
        call = torch_io.from_declaration(module, wished)
        if missing := [n for n in wished.inputs if n not in names]:
            raise ConfigError(f"The model takes no {', '.join(missing)}; it takes {', '.join(names)}.")
        digest = declared.file_digest(folder)
        return LoadedTorch(module, call, wished, digest=digest, findings=findings, kind="hugging-face")


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{folder / 'config.json'} cannot be read: {error}.") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise SourceError(
            f"{folder / 'config.json'} is no configuration of transformers (model_type is missing).",
            hint="Save the model with model.save_pretrained(folder).",
        )
    return config


def _model(folder: Path, config: Mapping[str, Any], *, trust: bool) -> Any:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingPackageError(
            "Reading a Hugging Face folder needs the packages transformers and torch.",
            hint="pip install 'edgekit[transformers]'",
        ) from error
    if config.get("auto_map") and not trust:
        raise SourceError(
            f"{folder} carries Python code of its own (auto_map in config.json).",
            hint="Run with --trust if you know where it comes from.",
        )
    name = (config.get("architectures") or ["AutoModel"])[0]
    loader = getattr(transformers, name, None)
    if loader is None:
        loader = transformers.AutoModel if config.get("auto_map") else None
    if loader is None:
        raise SourceError(
            f"{folder}: transformers {transformers.__version__} has no architecture {name!r}.",
            hint="Install the version of transformers that the model was saved with.",
        )
    try:
        model = loader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust, dtype=torch.float32)
    except Exception as error:  # transformers raises many kinds
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        raise SourceError(
            f"transformers cannot load {folder}: {type(error).__name__}: {first[:300]}",
            hint=_WHOLE,
        ) from error
    return model.eval()


def _completed(folder: Path, model: Any, declaration: Declaration) -> Declaration:
    """Return the declaration with what the folder says: the image's size, its preprocessing, the labels."""
    main = str(getattr(model, "main_input_name", "input_ids"))
    inputs = {main if key == "0" else key: value for key, value in declaration.inputs.items()}
    given = inputs.get(main, InputDeclaration())
    preprocessor = _preprocessor(folder)
    if main == "pixel_values":
        shape = given.shape or _image_shape(model.config, preprocessor)
        given = replace(given, shape=shape, preprocess=given.preprocess or _preprocess(preprocessor))
    elif main == "input_ids":
        given = replace(given, dtype=given.dtype or "int64")
        if given.shape is not None and "attention_mask" not in inputs and _takes(model, "attention_mask"):
            inputs["attention_mask"] = InputDeclaration(shape=given.shape, dtype="int64")
    if given.shape is None:
        raise ConfigError(
            f"The folder does not say the shape of {main!r}.",
            hint=declared.HOW_TO_DECLARE.format(name=main, shape="1,128" if main == "input_ids" else "1,16000"),
        )
    inputs = {main: given, **{k: v for k, v in inputs.items() if k != main}}
    labels = declaration.labels or _labels(model)
    classifies = type(model).__name__.endswith(_CLASSIFIERS)
    task = "classification" if classifies and declaration.task == "other" else declaration.task
    return replace(declaration, inputs=inputs, labels=labels, task=task)


def _takes(model: Any, name: str) -> bool:
    import inspect

    return name in inspect.signature(model.forward).parameters


def _labels(model: Any) -> tuple[str, ...]:
    names = getattr(model.config, "id2label", None) or {}
    if not type(model).__name__.endswith(_CLASSIFIERS):
        return ()
    return tuple(str(names[k]) for k in sorted(names))


def _preprocessor(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise SourceError(f"{path} is no configuration of a preprocessor: it holds no table.")
    return found


def _image_shape(config: Any, preprocessor: Mapping[str, Any]) -> tuple[int, ...] | None:
    size = getattr(config, "image_size", None) or preprocessor.get("crop_size") or preprocessor.get("size")
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        pair = (size.get("height", edge), size.get("width", edge))
    else:
        pair = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if None in pair:
        return None
    return (1, int(getattr(config, "num_channels", 3)), int(pair[0]), int(pair[1]))


def _preprocess(preprocessor: Mapping[str, Any]) -> Preprocess | None:
    if not preprocessor:
        return None
    scale = float(preprocessor.get("rescale_factor", 1 / 255)) if preprocessor.get("do_rescale", True) else 1.0
    normalize = preprocessor.get("do_normalize", True)
    mean = tuple(float(v) for v in preprocessor.get("image_mean") or (0.0,)) if normalize else (0.0,)
    std = tuple(float(v) for v in preprocessor.get("image_std") or (1.0,)) if normalize else (1.0,)
    resize = (
        _RESIZE.get(int(preprocessor.get("resample", 2)), "antialias")
        if preprocessor.get("do_resize", True)
        else "none"
    )
    fit = "crop" if preprocessor.get("do_center_crop") else "stretch"
    return Preprocess(resize=resize, fit=fit, scale=scale, mean=mean, std=std)  # type: ignore[arg-type]


def _wrapped(model: Any, declaration: Declaration) -> tuple[Any, tuple[str, ...]]:
    """Return a module of the declared inputs, by name, to the tensors of the model's output."""
    import inspect

    import torch

    accepted = tuple(inspect.signature(model.forward).parameters)
    names = tuple(n for n in declaration.inputs if n in accepted)
    extra: dict[str, Any] = {"return_dict": True} if "return_dict" in accepted else {}
    if "use_cache" in accepted:
        extra["use_cache"] = False

    class Wrapped(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            results = self.model(**dict(zip(names, args, strict=False)), **kwargs, **extra)
            return {k: v for k, v in results.items() if isinstance(v, torch.Tensor)}

    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]
    module = Wrapped()
    module.training = False
    # What reads the inputs' names sees those of the model.
    Wrapped.forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *parameters]
    )
    return module, names
