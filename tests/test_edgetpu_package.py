"""Reading compiled Edge TPU models: real structure written by the tests' own writer, and damage of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import SourceError
from edge.targets.edgetpu import package
from edge.targets.edgetpu.package import CompiledModel
from edge.targets.litert import flatbuffer
from tests import edgetpu_packages as writer
from tests.edgetpu_models import chain
from tests.edgetpu_packages import ExecutableFields, PackageFields

CACHED = PackageFields(
    executables=(
        ExecutableFields(kind="EXECUTION_ONLY", parameter_bytes=640, scratch_bytes=4096, narrow_bytes=99_552),
        ExecutableFields(kind="PARAMETER_CACHING", parameter_bytes=16_320, name="Unknown", narrow_bytes=0),
    ),
    min_runtime_version=13,
)


def compiled(fields: PackageFields = CACHED) -> CompiledModel:
    """Return the model that the reader makes of a written one whose last operator is left to the CPU."""
    return package.read(writer.compiled(chain(), [True, True, True, False], fields))


def test_reads_bytes_on_and_off_chip() -> None:
    """On chip is the caching executable's parameters, streamed are those of the one that executes."""
    model = compiled()
    assert (model.on_chip_bytes, model.off_chip_bytes) == (16_320, 640)


def test_stand_alone_parameters_are_streamed() -> None:
    """A single STAND_ALONE executable caches nothing."""
    model = compiled(PackageFields(executables=(ExecutableFields(parameter_bytes=4096),)))
    assert (model.on_chip_bytes, model.off_chip_bytes) == (0, 4096)


def test_reads_versions_scratch_and_narrow_memory() -> None:
    """Runtime version, scratch, the largest narrow memory, chip, token and instruction sizes come from the package."""
    model = compiled()
    assert (model.min_runtime_version, model.scratch_bytes, model.narrow_bytes_per_tile) == (13, 4096, 99_552)
    first = model.packages[0].executables[0]
    assert (first.chip, first.instruction_bytes, first.caching_token) == ("beagle", 16, 0x1234_5678_9ABC_DEF0)
    assert model.packages[0].compiler_version == "cl/"


def test_reads_the_cycle_estimate_of_old_and_new_files() -> None:
    """The 64-bit estimate wins, the deprecated one is read where it is 0, and caching cycles are no inference."""
    run = ExecutableFields(kind="EXECUTION_ONLY", cycles=7, cycles_64=1 << 33)
    load = ExecutableFields(kind="PARAMETER_CACHING", cycles=1000)
    assert compiled(PackageFields(executables=(run, load))).estimated_cycles == 1 << 33
    old = ExecutableFields(kind="EXECUTION_ONLY", cycles=7)
    assert compiled(PackageFields(executables=(old, load))).estimated_cycles == 7


def test_names_the_operators_left_to_the_cpu() -> None:
    """What is no Edge TPU operator runs on the CPU."""
    model = compiled()
    assert (model.subgraphs, model.cpu_operators) == (1, ("RELU",))
    assert model.packages[0].operator == 0


@pytest.mark.parametrize("as_string", [True, False])
def test_reads_the_package_as_string_and_as_blob(as_string: bool) -> None:
    """The compiler writes the package as a flexbuffer string that is not UTF-8; a blob is taken as well."""
    model = flatbuffer.load(writer.compiled(chain(), [True] * 4))
    model.subgraphs[0].operators[0].customOptions = bytearray(
        writer.options(writer.package(CACHED), as_string=as_string)
    )
    assert package.packages(model)[0].on_chip_bytes == 16_320


def test_refuses_a_model_that_is_not_compiled() -> None:
    """An ordinary int8 model is a SourceError that names what is missing and what to do."""
    with pytest.raises(SourceError, match="holds no edgetpu-custom-op") as caught:
        package.read(chain(), name="model.tflite")
    assert "compile" in str(caught.value.hint)


def test_a_model_without_package_is_not_compiled() -> None:
    """`is_compiled` tells compiled and ordinary models apart."""
    assert package.is_compiled(flatbuffer.load(writer.compiled(chain(), [True] * 4)))
    assert not package.is_compiled(flatbuffer.load(chain()))


def _with_options(raw: bytes) -> bytes:
    model = flatbuffer.load(writer.compiled(chain(), [True] * 4))
    model.subgraphs[0].operators[0].customOptions = bytearray(raw)
    return flatbuffer.dump(model)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "holds? no package"),
        (b"\x00\x01\x02", "holds? no package"),
        (writer.options(b"not a package"), "no DWN1 identifier"),
        (writer.options(b"\xff\xff\xff\x7fDWN1" + bytes(32)), "leads to byte"),
        (writer.options(writer.package(PackageFields(executables=()))), "no executable"),
    ],
)
def test_names_the_damage(raw: bytes, says: str) -> None:
    """Missing, foreign, wild and empty packages are each a SourceError that says so."""
    with pytest.raises(SourceError, match=says):
        package.read(_with_options(raw))


def test_refuses_an_unknown_kind_of_executable() -> None:
    """An executable type beyond the three that exist is damage, not a guess."""
    blob = bytearray(writer.package(CACHED))
    data = writer.executable(CACHED.executables[0])
    at = bytes(blob).index(data)
    for offset in range(len(data) - 1):
        changed = bytearray(data)
        changed[offset : offset + 2] = b"\x63\x00"
        if data[offset : offset + 2] == b"\x02\x00":
            blob[at : at + len(data)] = changed
            try:
                package.read(_with_options(writer.options(bytes(blob))))
            except SourceError as error:
                if "unknown type 99" in str(error):
                    return
    pytest.fail("no changed byte was taken for the type")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_packages_never_crash_the_reader(data: st.DataObject) -> None:
    """Any bytes of a package changed, or its end cut off, give a result or a SourceError."""
    blob = bytearray(writer.package(CACHED))
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    raw = writer.options(bytes(blob[: data.draw(st.integers(0, len(blob)))]))
    try:
        model = package.read(_with_options(raw))
    except SourceError as error:
        assert error.hint
    else:
        assert model.on_chip_bytes + model.off_chip_bytes <= len(raw)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_damaged_options_never_crash_the_reader(raw: bytes) -> None:
    """Any custom options give a SourceError or a package, never another error."""
    try:
        package.read(_with_options(raw))
    except SourceError as error:
        assert "damaged Edge TPU package" in str(error)


REAL = Path(__file__).resolve().parents[1] / "../shared/edgetpu/models"


@pytest.mark.skipif(not REAL.is_dir(), reason="the ground truth is not on this machine")
def test_inputs_of_the_compiler_are_not_taken_for_compiled() -> None:
    """No input model of the ground truth holds a package."""
    import gzip

    files = sorted(REAL.glob("*.tflite.gz"), key=lambda f: f.stat().st_size)[:20]
    assert files
    assert not any(package.is_compiled(flatbuffer.load(gzip.decompress(f.read_bytes()))) for f in files)
