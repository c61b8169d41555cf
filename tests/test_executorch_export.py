"""From modules to the exported carrier: what torch.export refuses is told in the user's terms, at their line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge import codec, isolate
from edge.errors import ConversionError, DataError, SourceError
from edge.signature import Signature, TensorSpec

pytestmark = [
    pytest.mark.frameworks,
    # torch, torchao and executorch warn of their own parts.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]

USER = """
import torch
class Branch(torch.nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x
class Loop(torch.nn.Module):
    def forward(self, x):
        for _ in range(int(x.max().item())):
            x = x + 1
        return x
class Effect(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []
    def forward(self, x):
        self.seen.append(x + 1)
        return x * 2
class Count(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
    def forward(self, x):
        self.calls.add_(1)
        return x * 2
class Custom(torch.nn.Module):
    def forward(self, x):
        return torch.ops.edgekit_test.f(x)
lib = torch.library.Library("edgekit_test", "FRAGMENT")
if not hasattr(torch.ops.edgekit_test, "f"):
    lib.define("f(Tensor x) -> Tensor")
    lib.impl("f", lambda x: x.sin(), "CPU")
class Fixed(torch.nn.Module):
    def forward(self, x):
        return x.reshape(4, 5) * 2
class Methods(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x)
    def encode(self, x):
        return x * 3
class Wide(torch.nn.Module):
    def forward(self, ids):
        return (ids + 1).to(torch.float32), ids.argmax(1)
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the module of a user's file."""
    path = tmp_path_factory.mktemp("user") / "user.py"
    path.write_text(USER)
    spec = importlib.util.spec_from_file_location("user_export", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "message", "way_out"),
    [
        ("Branch", r"decides by the values of its data at user\.py, line 5 \(if x\.sum\(\) > 0:\)", r"torch\.cond"),
        ("Loop", r"decides by the values of its data at user\.py, line 10", r"torch\.where"),
        (
            "Effect",
            r"keeps a tensor in seen\[0\].* at user\.py, line 18 .*side effect",
            "output",
        ),
        ("Count", r"changes its buffers calls at each call", "an input and an output"),
        ("Custom", r"no shape rule of the operator edgekit_test\.f\S* at user\.py, line 29", r"register_fake"),
    ],
)
def test_what_export_refuses_names_the_line_and_a_way_out(user: Any, name: str, message: str, way_out: str) -> None:
    """A branch on data, a loop over data, side effects and unknown operators are errors with line and hint."""
    import torch

    from edge.sources import exported

    with pytest.raises(ConversionError, match=message) as caught:
        exported.export(getattr(user, name)().eval(), [torch.rand(4, 5)], ())
    assert caught.value.hint is not None
    assert way_out.replace("\\", "") in caught.value.hint


def test_a_dimension_that_the_module_fixes_is_refused(user: Any) -> None:
    """A dimension declared dynamic that a reshape fixes is an error that names input, dimension and size."""
    import torch

    from edge.sources import exported

    spec = TensorSpec(name="x", shape=(-1, 5))
    with pytest.raises(ConversionError, match=r"Dimension 0 of 'x' is declared as dynamic, .* fixes it to 4"):
        exported.export(user.Fixed().eval(), [torch.rand(4, 5)], [spec])


def test_the_carrier_has_the_signature_in_names_layouts_and_dtypes(user: Any, tmp_path: Path) -> None:
    """A channel-last signature of a channel-first module, or with narrowed integers, runs as declared."""
    import torch

    from edge.sources import exported, torch_io
    from edge.sources.base import Declaration
    from edge.targets.executorch.runtime import ExecuTorch

    module = torch.nn.Conv2d(3, 2, 3).eval()
    call = torch_io.from_example(module, (torch.rand(1, 3, 8, 8),), {}, Declaration())
    image = TensorSpec(name="image", shape=(1, 8, 8, 3), layout="NHWC")
    signature = Signature(inputs=(image,), outputs=(TensorSpec(name="map", shape=(1, 6, 6, 2), layout="NHWC"),))
    path = tmp_path / "carrier.pt2"
    ends = frozenset({0})
    assert exported.export_torch(module, call, signature, path, last_inputs=ends, last_outputs=ends) == ()
    session = ExecuTorch().open_carrier(path)
    assert session.signature == signature
    pixels = np.random.default_rng(0).random((1, 8, 8, 3), np.float32)
    wanted = module(torch.from_numpy(pixels).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach().numpy()
    np.testing.assert_allclose(np.asarray(session.run({"image": pixels})["map"], np.float32), wanted, atol=1e-6)
    with pytest.raises(DataError, match=r"got float32\[1, 3, 8, 8\]; accepted: image: float32\[1, 8, 8, 3\] NHWC"):
        session.run({"image": pixels.reshape(1, 3, 8, 8)})

    wide = user.Wide().eval()
    call = torch_io.from_example(wide, (torch.zeros(1, 4, dtype=torch.int64),), {}, Declaration())
    narrow = Signature(
        inputs=(TensorSpec(name="ids", shape=(1, 4), dtype="int32"),),
        outputs=(TensorSpec(name="a", shape=(1, 4)), TensorSpec(name="b", shape=(1,), dtype="int32")),
    )
    exported.export_torch(wide, call, narrow, path)
    found = ExecuTorch().open_carrier(path).run({"ids": np.array([[1, 7, 2, 3]], np.int32)})
    assert (str(found["b"].dtype), found["b"].tolist()) == ("int32", [1])


def test_a_foreign_pt2_is_named_by_position(user: Any, tmp_path: Path) -> None:
    """A `.pt2` without edgekit's signature opens with counted names; a file that is none is a SourceError."""
    import torch

    from edge.targets.executorch import carrier

    torch.export.save(torch.export.export(user.Methods().eval(), (torch.rand(2, 3),)), str(tmp_path / "plain.pt2"))
    _, signature = carrier.load(tmp_path / "plain.pt2")
    assert [str(t) for t in (*signature.inputs, *signature.outputs)] == [
        "input_0: float32[2, 3]",
        "output_0: float32[2, 3]",
    ]
    (tmp_path / "broken.pt2").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(SourceError, match="is no exported program"):
        carrier.load(tmp_path / "broken.pt2")


def test_methods_of_a_module_become_methods_of_the_program(user: Any, tmp_path: Path) -> None:
    """A method exported beside the carrier is a method of the `.pte`, which runs; an unknown name is refused."""
    import torch

    from edge.calibration.recipe import named
    from edge.sources import exported, torch_io
    from edge.sources.base import Declaration
    from edge.targets.base import Model
    from edge.targets.executorch import program
    from edge.targets.executorch.session import loaded
    from tests.executorch_helpers import build

    module = user.Methods().eval()
    call = torch_io.from_example(module, (torch.rand(2, 3),), {}, Declaration())
    spec = TensorSpec(name="x", shape=(2, 3))
    signature = Signature(inputs=(spec,), outputs=(TensorSpec(name="y", shape=(2, 3)),))
    exported.export_torch(module, call, signature, tmp_path / "carrier.pt2")
    exported.export_methods(module, {"encode": (torch.rand(2, 3),)}, tmp_path / "carrier.pt2")
    with pytest.raises(SourceError, match="has no method 'decode'"):
        exported.export_methods(module, {"decode": (torch.rand(2, 3),)}, tmp_path / "carrier.pt2")
    model = Model(carrier="exported", path=tmp_path / "carrier.pt2", signature=signature)
    made = build(model, named("float32"), tmp_path / "program")
    assert program.read(made.path).methods == ("encode", "forward")
    values = torch.tensor([[1.0, -1.0, 2.0], [0.5, 0.0, -3.0]])
    found = loaded(made.path.read_bytes()).load_method("encode").execute([values])
    assert torch.equal(found[0], 3 * values)


_KERAS = """
import json, os, sys
import numpy as np
os.environ["KERAS_BACKEND"] = "tensorflow"
import keras
from edge import codec
from edge.sources import registry
folder = sys.argv[1]
keras.utils.set_random_seed(0)
image = keras.Input((16, 16, 3), name="image")
y = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, 2, padding="same")(image)))
y = keras.layers.GlobalAveragePooling2D()(keras.layers.MaxPool2D()(keras.layers.DepthwiseConv2D(3, padding="same")(y)))
outputs = {"scores": keras.layers.Dense(4, name="scores")(y), "side": keras.layers.Dense(2, name="side")(y)}
keras.Model(image, outputs).save(f"{folder}/model.keras")
loaded = registry.load(f"{folder}/model.keras")
x = np.random.default_rng(0).random((1, 16, 16, 3), np.float32)
np.savez(f"{folder}/reference.npz", image=x, **loaded.run({"image": x}))
open(f"{folder}/signature.json", "w").write(json.dumps(codec.to_json(loaded.signature)))
"""


@pytest.mark.slow
def test_a_keras_model_reaches_executorch_by_its_torch_backend(tmp_path: Path) -> None:
    """A channel-last Keras CNN runs as a `.pte` and computes what TensorFlow does; copies into layouts are stripped."""
    import subprocess
    import sys

    from edge.calibration.recipe import named
    from edge.targets.base import Model
    from edge.targets.executorch.runtime import ExecuTorch
    from tests.executorch_helpers import build

    subprocess.run([sys.executable, "-c", _KERAS, str(tmp_path)], check=True, capture_output=True)
    signature = codec.from_json(Signature, json.loads((tmp_path / "signature.json").read_text()))
    path = tmp_path / "carrier.pt2"
    request = {"source": str(tmp_path / "model.keras"), "signature": codec.to_json(signature), "path": str(path)}
    answer = isolate.call("edge.sources.exported:export_keras", request, workdir=tmp_path)
    assert set(answer["tools"]) == {"keras", "torch"}
    with np.load(tmp_path / "reference.npz") as data:
        reference = {name: data[name] for name in data.files}
    made = build(Model(carrier="exported", path=path, signature=signature), named("float32"), tmp_path / "program")
    found = ExecuTorch().open(made.path, kernels="xnnpack", threads=1).run({"image": reference["image"]})
    for name in ("scores", "side"):
        np.testing.assert_allclose(np.asarray(found[name], np.float32), reference[name], atol=1e-5)
