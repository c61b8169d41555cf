"""Model files that would run code: each would create the file named by EDGEKIT_MARKER if it were believed.

`python -m tests.hostile_files KIND FOLDER` writes one and prints its name; frameworks are imported there only.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MARKER = "EDGEKIT_MARKER"
_CODE = f"import os; open(os.environ[{MARKER!r}], 'w').close()"


class Payload:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (_CODE,)


def pickled() -> bytes:
    """Return the pickle."""
    return pickle.dumps(Payload(), protocol=2)


def believed(data: bytes) -> None:
    """Load a pickle, as nobody should: the payload is real."""
    pickle.loads(data)


def _state_dict(folder: Path) -> Path:
    """A file of torch.save: a zip with data.pkl."""
    import torch

    path = folder / "state.pt"
    torch.save({"weight": Payload()}, path)
    return path


def _bare_pickle(folder: Path) -> Path:
    path = folder / "old.pt"
    path.write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9\x20j\xa8P\x19." + pickled())
    return path


def _replaced(source: Path, target: Path, choose: Callable[[str], bytes | None]) -> Path:
    with zipfile.ZipFile(source) as held, zipfile.ZipFile(target, "w") as made:
        for member in held.infolist():
            new = choose(member.filename)
            made.writestr(member.filename, held.read(member) if new is None else new)
    return target


def _torchscript(folder: Path) -> Path:
    import torch

    whole = folder / "whole.pt"
    torch.jit.trace(torch.nn.Linear(4, 2), torch.zeros(1, 4)).save(str(whole))
    return _replaced(
        whole, folder / "script.pt", lambda n: pickled() if n.endswith(("data.pkl", "constants.pkl")) else None
    )


def _exported(folder: Path) -> Path:
    import torch

    whole = folder / "whole.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(1, 4),)), whole)
    stream = io.BytesIO()
    torch.save((Payload(),), stream)
    suffixes = (".pt", ".pkl", ".pickle")
    return _replaced(whole, folder / "hostile.pt2", lambda n: stream.getvalue() if n.endswith(suffixes) else None)


def _lite(folder: Path) -> Path:
    import torch

    whole = folder / "whole.ptl"
    torch.jit.trace(torch.nn.Linear(4, 2), torch.zeros(1, 4))._save_for_lite_interpreter(str(whole))
    return _replaced(whole, folder / "hostile.ptl", lambda n: pickled() if n.endswith(".pkl") else None)


def _lambda_model(path: Path) -> Path:
    import keras

    def code(x: Any) -> Any:
        import os

        open(os.environ["EDGEKIT_MARKER"], "w").close()  # noqa: PTH123
        return x

    os.environ.setdefault(MARKER, os.devnull)
    x = keras.Input((4,))
    keras.Model(x, keras.layers.Lambda(code, output_shape=(4,))(x)).save(path)
    return path


def _keras_lambda(folder: Path) -> Path:
    return _lambda_model(folder / "lambda.keras")


def _h5_lambda(folder: Path) -> Path:
    return _lambda_model(folder / "lambda.h5")


def _keras_module(folder: Path) -> Path:
    """A configuration that names a function of any module as a class, with arguments."""
    import keras

    whole = folder / "whole.keras"
    x = keras.Input((4,))
    keras.Model(x, keras.layers.Dense(2)(x)).save(whole)
    config = {"module": "builtins", "class_name": "exec", "config": {"source": _CODE}, "registered_name": "exec"}
    layer = {"module": "keras.layers", "class_name": "Dense", "registered_name": None,
             "config": {"name": "d", "units": 2, "activation": config}}  # fmt: skip
    model = {"module": "keras", "class_name": "Sequential", "registered_name": None,
             "config": {"name": "s", "layers": [layer, config]}}  # fmt: skip
    return _replaced(
        whole, folder / "module.keras", lambda n: json.dumps(model).encode() if n == "config.json" else None
    )


def _keras_torch(folder: Path) -> Path:
    """A TorchModuleWrapper, whose module is a pickle in base64."""
    import base64

    import keras
    import torch

    whole = folder / "whole.keras"
    x = keras.Input((4,))
    keras.Model(x, keras.layers.Dense(2)(x)).save(whole)
    stream = io.BytesIO()
    torch.save(Payload(), stream)
    layer = {"module": "keras.layers", "class_name": "TorchModuleWrapper", "registered_name": None,
             "config": {"name": "t", "module": base64.b64encode(stream.getvalue()).decode()}}  # fmt: skip
    model = {"module": "keras", "class_name": "Sequential", "registered_name": None,
             "config": {"name": "s", "layers": [layer]}}  # fmt: skip
    return _replaced(
        whole, folder / "torch.keras", lambda n: json.dumps(model).encode() if n == "config.json" else None
    )


def _hugging_face(folder: Path) -> Path:
    """A folder whose configuration names Python files of its own."""
    import torch

    made = folder / "hub"
    made.mkdir()
    config = {"model_type": "mine", "architectures": ["Mine"],
              "auto_map": {"AutoConfig": "modeling_mine.C", "AutoModel": "modeling_mine.Mine"}}  # fmt: skip
    (made / "config.json").write_text(json.dumps(config))
    (made / "modeling_mine.py").write_text(f"{_CODE}\nclass C: pass\nclass Mine: pass\n")
    torch.save({"w": Payload()}, made / "pytorch_model.bin")
    return made


def _hugging_face_bin(folder: Path) -> Path:
    """A folder of a known architecture whose weights are a pickle."""
    import torch

    made = folder / "bert"
    made.mkdir()
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 8,
              "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 16}  # fmt: skip
    (made / "config.json").write_text(json.dumps(config))
    torch.save({"w": Payload()}, made / "pytorch_model.bin")
    return made


def object_npz(path: Path) -> Path:
    """Write an .npz with an array of objects, which is a pickle, as samples."""
    np.savez(path, x=np.array([Payload()], dtype=object))
    return path


KINDS: dict[str, Callable[[Path], Path]] = {
    "state-dict": _state_dict,
    "bare-pickle": _bare_pickle,
    "torchscript": _torchscript,
    "pt2": _exported,
    "ptl": _lite,
    "keras-lambda": _keras_lambda,
    "h5-lambda": _h5_lambda,
    "keras-module": _keras_module,
    "keras-torch": _keras_torch,
    "hugging-face": _hugging_face,
    "hugging-face-bin": _hugging_face_bin,
}


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stdout.write(str(KINDS[sys.argv[1]](Path(sys.argv[2]))))
