"""The compiler driven, its logs read, its failures bisected, its word compared with the prediction.

`fake_edgetpu_compiler.py` stands in for Google's program, which is not free to ship: a real child process with the real
options and formats that compiles nothing. The logs below have the four formats of real runs of versions 1, 15 and 16.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import ConfigError, MissingPackageError, SourceError, StageTimeoutError, ToolError
from edge.targets.edgetpu import compiler, compiler_compare, compiler_log, package, placement
from edge.targets.edgetpu.compiler import VARIABLE, Compiler, Options
from edge.targets.edgetpu.compiler_bisect import bisect, compile_models, cut_after
from edge.targets.edgetpu.compiler_log import CompilerLog, TableRow
from edge.targets.edgetpu.memory import LayerMemory, MemoryPlan
from edge.targets.litert import flatbuffer
from tests.edgetpu_models import chain

FAKE = Path(__file__).with_name("fake_edgetpu_compiler.py")
LIMITATION = "Operation is otherwise supported, but not mapped due to some unspecified limitation"

LOG_FILE = """Edge TPU Compiler version 16.0.384591198
Input: test/model/dummy.tflite
Output: test/model/compiled/dummy_edgetpu.tflite

Operator                       Count      Status

QUANTIZE                       2          Mapped to Edge TPU
DEPTHWISE_CONV_2D              1          Mapped to Edge TPU

"""
STDOUT_16 = f"""Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 1604 ms.

Input model: srgan_quant_2.tflite
Input size: 1.58MiB
Output model: srgan_quant_2_edgetpu.tflite
Output size: 2.57MiB
On-chip memory used for caching model parameters: 1.42MiB
On-chip memory remaining for caching model parameters: 6.25KiB
Off-chip memory used for streaming uncached model parameters: 150.50KiB
Number of Edge TPU subgraphs: 3
Total number of operations: 82
Operation log: srgan_quant_2_edgetpu.log

Model successfully compiled but not all operations are supported by the Edge TPU. A percentage of the model will \
instead run on the CPU, which is slower. If possible, consider updating your model to use only operations supported by \
the Edge TPU. For details, visit g.co/coral/model-reqs.
Number of operations that will run on Edge TPU: 76
Number of operations that will run on CPU: 6

Operator                       Count      Status

DEPTHWISE_CONV_2D              24         Mapped to Edge TPU
PRELU                          4          {LIMITATION}
DEQUANTIZE                     2          Operation is working on an unsupported data type
ADD                            52         Mapped to Edge TPU
Compilation child process completed within timeout period.
Compilation succeeded! 
"""  # noqa: W291 - the compiler ends its last line with a blank
STDOUT_15 = """Edge TPU Compiler version 15.0.340273435

Models compiled successfully in 1803 ms.

Input model: a.tflite
Input size: 319.00KiB
Output model: a_edgetpu.tflite
Output size: 447.32KiB
On-chip memory used for caching model parameters: 364.25KiB
On-chip memory remaining for caching model parameters: 7.29MiB
Off-chip memory used for streaming uncached model parameters: 0.00B
Number of Edge TPU subgraphs: 1
Total number of operations: 16
Operation log: a_edgetpu.log
See the operation log file for individual operation details.

Input model: b.tflite
Input size: 3.19MiB
Output model: b_edgetpu.tflite
Output size: 3.44MiB
On-chip memory used for caching model parameters: 3.00MiB
On-chip memory remaining for caching model parameters: 4.29MiB
Off-chip memory used for streaming uncached model parameters: 64.00B
Number of Edge TPU subgraphs: 1
Total number of operations: 20
Operation log: b_edgetpu.log
See the operation log file for individual operation details.
"""
STDOUT_1 = """Edge TPU Compiler version 1.0.249710469
INFO: Initialized TensorFlow Lite runtime.

Model compiled successfully in 26 ms.

Input model: fm1.tflite
Input size: 112.26KiB
Output model: fm1_edgetpu.tflite
Output size: 188.05KiB
On-chip memory available for caching model parameters: 7.96MiB
On-chip memory used for caching model parameters: 101.50KiB
Off-chip memory used for streaming uncached model parameters: 3.00KiB
Number of Edge TPU subgraphs: 1
Total number of operations: 12
Operation log: fm1_edgetpu.log
"""
SEARCH_16 = """Edge TPU Compiler version 16.0.384591198
Searching for valid delegate with step 1
Try to compile segment with 135 ops
Started a compilation timeout timer of 180 seconds.
ERROR: Restored original execution plan after delegate application failure.
Compilation failed: Compilation failed due to large activation tensors in model.
Compilation child process completed within timeout period.
Compilation failed! 
Try to compile segment with 134 ops
Intermediate tensors: model/a/Conv2D;1,model/b/Relu
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 900 ms.
"""  # noqa: W291


def test_reads_a_log_file() -> None:
    """A `.log` file gives version, file names and the operator table."""
    log = compiler_log.parse(LOG_FILE)
    assert (log.version, log.major) == ("16.0.384591198", 16)
    assert log.models[0].input == "test/model/dummy.tflite"
    assert log.models[0].table == (
        TableRow(operator="QUANTIZE", count=2, status="Mapped to Edge TPU"),
        TableRow(operator="DEPTHWISE_CONV_2D", count=1, status="Mapped to Edge TPU"),
    )


def test_reads_standard_output_of_version_16() -> None:
    """Sizes with their units, counts, time, and a table with several statuses."""
    log = compiler_log.parse(STDOUT_16)
    model = log.models[0]
    assert (log.succeeded, log.elapsed_ms, len(log.models)) == (True, 1604, 1)
    assert model.on_chip_used_bytes == round(1.42 * 2**20)
    assert model.on_chip_remaining_bytes == 6400
    assert model.off_chip_bytes == 154_112
    assert (model.subgraphs, model.operations, model.edgetpu_operations, model.cpu_operations) == (3, 82, 76, 6)
    assert model.mapped() == 76
    assert model.table[1] == TableRow(operator="PRELU", count=4, status=LIMITATION)
    assert not log.errors


def test_reads_co_compilation_of_version_15() -> None:
    """Each model of a common run has its own block, and the cache left shrinks."""
    log = compiler_log.parse(STDOUT_15)
    assert [m.input for m in log.models] == ["a.tflite", "b.tflite"]
    assert [m.off_chip_bytes for m in log.models] == [0, 64]
    assert [m.on_chip_remaining_bytes for m in log.models] == [round(7.29 * 2**20), round(4.29 * 2**20)]


def test_reads_version_1() -> None:
    """Versions 1 and 2 print the memory that is available before, not what remains."""
    model = compiler_log.parse(STDOUT_1).models[0]
    assert (model.on_chip_available_bytes, model.on_chip_remaining_bytes) == (round(7.96 * 2**20), None)
    assert (model.on_chip_used_bytes, model.off_chip_bytes) == (round(101.5 * 1024), 3072)


def test_reads_a_delegate_search() -> None:
    """A search gives the segments and cuts that it tried, and a success after failures is one."""
    log = compiler_log.parse(SEARCH_16)
    assert log.segments == (135, 134)
    assert log.intermediate_tensors == (("model/a/Conv2D;1", "model/b/Relu"),)
    assert log.succeeded
    assert [e.rule for e in log.errors] == ["EDGETPU_DELEGATE_FAILED", "EDGETPU_LARGE_ACTIVATIONS"]


@pytest.mark.parametrize(
    ("line", "rule", "says"),
    [
        ("Internal compiler error. Aborting! ", "EDGETPU_INTERNAL_ERROR", "without a reason"),
        ("Invalid model: foo.tflite", "EDGETPU_INVALID_MODEL", "foo.tflite"),
        ("Model not quantized", "EDGETPU_NOT_QUANTIZED", "8-bit"),
        (
            "Compilation failed: Compilation failed due to large activation tensors in model.",
            "EDGETPU_LARGE_ACTIVATIONS",
            "activation memory",
        ),
        (
            "ERROR: Attempting to use a delegate that only supports static-sized tensors with a graph that has "
            "dynamic-sized tensors.",
            "EDGETPU_DYNAMIC_SHAPES",
            "run time",
        ),
        (
            "Compilation failed: Model failed in Tflite interpreter. Please ensure model can be loaded/run in Tflite "
            "interpreter.",
            "EDGETPU_INTERPRETER_FAILED",
            "own interpreter",
        ),
        (
            "ERROR: Didn't find op for builtin opcode 'CONV_2D' version '6'. An older version of this builtin might be "
            "supported.",
            "EDGETPU_OP_VERSION",
            "version 6 of CONV_2D",
        ),
        ("ERROR: Op builtin_code out of range: 150. Are you using old TFLite?", "EDGETPU_OP_UNKNOWN", "code 150"),
        ("ERROR: Encountered unresolved custom op: FlexErf.", "EDGETPU_CUSTOM_OP", "FlexErf"),
        (
            "ERROR: Restored original execution plan after delegate application failure.",
            "EDGETPU_DELEGATE_FAILED",
            "left as it was",
        ),
        ("Compilation failed: something new", "EDGETPU_COMPILATION_FAILED", "something new"),
    ],
)
def test_names_each_known_error(line: str, rule: str, says: str) -> None:
    """Every error that the compiler is known to print has its own id, reason and fix."""
    error = compiler_log.parse(f"Edge TPU Compiler version 16.0.384591198\n{line}\n").errors[0]
    assert error.rule == rule
    assert says in error.reason
    assert error.fix


_PIECES = st.sampled_from(
    [*LOG_FILE.splitlines(), *STDOUT_16.splitlines(), *STDOUT_15.splitlines(), *SEARCH_16.splitlines()]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(_PIECES, st.text(max_size=60)), max_size=40), st.integers(0, 2000), st.text(max_size=8))
def test_a_fuzzed_log_never_crashes_the_parser(lines: list[str], at: int, noise: str) -> None:
    """Lines of real logs in any order, cut and mixed with any text, give a log."""
    text = "\n".join(lines)
    log = compiler_log.parse(text[:at] + noise + text[at + len(noise) :])
    assert all(row.count >= 0 for m in log.models for row in m.table)
    assert log.major is None or log.major >= 0


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_parses(text: str) -> None:
    """No text raises."""
    assert isinstance(compiler_log.parse(text), CompilerLog)


@pytest.mark.parametrize("digits", ["9" * 5000, "1." + "9" * 5000, "-1", "NaN", "٣"])
def test_a_number_that_is_none_is_absent_or_read(digits: str) -> None:
    """Endless, negative and foreign numbers neither raise nor become negative."""
    log = compiler_log.parse(
        f"Input model: a\nInput size: {digits}MiB\nNumber of Edge TPU subgraphs: {digits}\n"
        f"Operator Count Status\nADD {digits} Mapped\n"
    )
    assert (log.models[0].subgraphs or 0) >= 0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An int8 model of ADD, RELU, LOGISTIC, RELU in a file."""
    path = tmp_path / "model.tflite"
    path.write_bytes(chain())
    return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """The fake compiler, found as a user's wrapper is."""
    monkeypatch.setenv(VARIABLE, shlex.join([sys.executable, str(FAKE)]))
    return compiler.find()


def test_finds_the_compiler_by_its_variable(fake: Compiler) -> None:
    """The variable is a command line with arguments, and the version is asked for."""
    assert fake.command[1:] == (str(FAKE),)
    assert (fake.version, fake.major) == ("16.0.384591198", 16)


def test_finds_the_compiler_on_the_path(tmp_path: Path) -> None:
    """Without the variable, edgetpu_compiler of PATH is taken."""
    program = tmp_path / "edgetpu_compiler"
    program.write_text("#!/bin/sh\necho 'Edge TPU Compiler version 2.1.302470888'\n")
    program.chmod(0o755)
    found = compiler.find({"PATH": str(tmp_path)})
    assert (found.command, found.major) == ((str(program),), 2)


def test_a_missing_compiler_says_how_to_get_it(tmp_path: Path) -> None:
    """Exit code 3, the Debian package by name, x86-64, and the variable for another host."""
    with pytest.raises(MissingPackageError, match="not on this machine") as caught:
        compiler.find({"PATH": str(tmp_path)})
    hint = str(caught.value.hint)
    assert caught.value.exit_code == 3
    assert all(word in hint for word in ("edgetpu-compiler", "x86-64", "container", "ssh", VARIABLE))


@pytest.mark.parametrize(("value", "says"), [("'open", "no command line"), ("/nowhere/compiler -x", "no program")])
def test_a_wrong_variable_is_a_configuration_error(value: str, says: str) -> None:
    """An unclosed quote and a program that is not there are named with the value."""
    with pytest.raises(ConfigError, match=says) as caught:
        compiler.find({VARIABLE: value, "PATH": os.environ["PATH"]})
    assert value in str(caught.value) or repr(value) in str(caught.value)


def test_another_program_is_not_taken_for_the_compiler(tmp_path: Path) -> None:
    """A command that does not state a version as the compiler does is refused."""
    with pytest.raises(ToolError, match="does not answer as the Edge TPU compiler"):
        compiler.find({VARIABLE: "echo", "PATH": os.environ["PATH"]})


@pytest.mark.parametrize("version", ["16.0.384591198", "14.1.317412892", "1.0.249710469"])
def test_compiles_with_each_version(
    version: str, model: Path, tmp_path: Path, fake: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run yields the compiled file, the log and the table; older compilers do not get the newer options."""
    monkeypatch.setenv("FAKE_VERSION", version)
    result = compile_models(compiler.find(), [model], tmp_path / "out", Options(min_runtime_version=13))
    assert result.compilation.log.version == version
    assert [p.name for p in result.compilation.outputs] == ["model_edgetpu.tflite"]
    assert package.read(result.compilation.outputs[0]).min_runtime_version == 13
    assert result.compilation.log.models[0].mapped() == 4


def test_all_options_reach_the_compiler(
    model: Path, tmp_path: Path, fake: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every option is handed on, with the names the compiler has for them."""
    runs = tmp_path / "runs"
    monkeypatch.setenv("FAKE_RUNS", str(runs))
    options = Options(
        min_runtime_version=12,
        search_delegate=True,
        delegate_search_step=30,
        timeout_s=60,
        multiple_subgraphs=True,
        intermediate_tensors=("step_0",),
    )
    result = compile_models(fake, [model], tmp_path / "out", options)
    assert result.compilation.log.succeeded
    assert runs.read_text().split() == [
        *("--show_operations", "--out_dir", ".", "--min_runtime_version", "12"),
        *("--intermediate_tensors", "step_0", "--search_delegate", "--delegate_search_step", "30"),
        *("--timeout_sec", "60", "--enable_multiple_subgraphs", "./model.tflite"),
    ]


def test_segments_come_in_order(model: Path, tmp_path: Path, fake: Compiler) -> None:
    """Pipelined compilation yields one file for each segment."""
    result = compile_models(fake, [model], tmp_path / "out", Options(num_segments=3))
    assert [p.name for p in result.compilation.outputs] == [f"model_segment_{i}_of_3_edgetpu.tflite" for i in range(3)]


def test_several_models_share_one_run(model: Path, tmp_path: Path, fake: Compiler) -> None:
    """Co-compilation is one command with all models, in the given order."""
    other = model.with_name("another.tflite")
    other.write_bytes(chain(("RELU",)))
    result = compile_models(fake, [model, other], tmp_path / "out", Options())
    assert [p.name for p in result.compilation.outputs] == ["model_edgetpu.tflite", "another_edgetpu.tflite"]
    assert [m.input for m in result.compilation.log.models] == ["model.tflite", "another.tflite"]


def test_models_of_one_name_cannot_share_a_run(model: Path, tmp_path: Path, fake: Compiler) -> None:
    """Their outputs would overwrite each other."""
    with pytest.raises(SourceError, match="same file name"):
        compile_models(fake, [model, model], tmp_path / "out", Options())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"min_runtime_version": 15}, "10 to 14"),
        ({"num_segments": 0}, "1 or more"),
        ({"intermediate_tensors": ("a,b",)}, "comma"),
        ({"intermediate_tensors": ("a",), "num_segments": 2}, "exclude"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, object], says: str) -> None:
    """Options that the compiler cannot take are named before it runs."""
    with pytest.raises(ConfigError, match=says):
        Options(**wrong)  # type: ignore[arg-type]


def test_search_needs_version_16() -> None:
    """An older compiler has no delegate search."""
    with pytest.raises(ConfigError, match="version 14"):
        Options(search_delegate=True).arguments(14)


def test_an_unknown_intermediate_tensor_is_refused(model: Path, tmp_path: Path, fake: Compiler) -> None:
    """A name that the model does not compute is named before the compiler runs."""
    with pytest.raises(ConfigError, match="computes no tensor 'nowhere'"):
        compile_models(fake, [model], tmp_path, Options(intermediate_tensors=("nowhere",)))


def test_success_without_a_file_is_an_error(
    model: Path, tmp_path: Path, fake: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrapper that does not bring the result back is told so."""
    monkeypatch.setenv("FAKE_SILENT", "1")
    with pytest.raises(ToolError, match="wrote no model") as caught:
        compile_models(fake, [model], tmp_path, Options())
    assert VARIABLE in str(caught.value.hint)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see whether a process lives")
def test_a_hanging_compiler_is_stopped_with_its_children(
    model: Path, tmp_path: Path, fake: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time the whole process group ends, and the message says what took how long."""
    child = tmp_path / "child"
    monkeypatch.setenv("FAKE_HANG", "60")
    monkeypatch.setenv("FAKE_CHILD", str(child))
    monkeypatch.setattr(compiler, "_GRACE_S", 4.0)
    started = time.monotonic()
    with pytest.raises(StageTimeoutError, match="took longer than 5 s"):
        compile_models(fake, [model], tmp_path, Options(timeout_s=1))
    assert time.monotonic() - started < 30
    time.sleep(0.2)
    assert not _alive(int(child.read_text()))


def test_an_internal_error_is_retried_once(
    model: Path, tmp_path: Path, fake: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure that does not repeat leaves a result that says it was retried."""
    failures = tmp_path / "failures"
    failures.write_text("1")
    monkeypatch.setenv("FAKE_FAILURES", str(failures))
    result = compile_models(fake, [model], tmp_path / "out", Options())
    assert result.compilation.log.succeeded
    assert (result.retried, result.culprit) == (True, None)


def test_an_internal_error_is_bisected_to_its_operator(
    model: Path, tmp_path: Path, fake: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finding names the operator that breaks the compiler and the last cut that compiles."""
    monkeypatch.setenv("FAKE_INTERNAL_ERROR", "LOGISTIC")
    result = compile_models(fake, [model], tmp_path / "out", Options())
    assert result.culprit is not None
    assert (result.culprit.index, result.culprit.operator) == (2, "LOGISTIC")
    assert result.culprit.tensors == ("step_0",)
    assert result.findings[0].op == "2: LOGISTIC"
    assert "--intermediate-tensors step_0" in str(result.findings[0].fix)
    assert not list((tmp_path / "out").glob("*")), "trial runs leave nothing"
    cut = Options(intermediate_tensors=result.culprit.tensors)
    assert compile_models(fake, [model], tmp_path / "out", cut).compilation.log.succeeded


def test_other_failures_are_reported_not_bisected(
    model: Path, tmp_path: Path, fake: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that fails with another message gives a ToolError with its last words."""
    program = tmp_path / "broken"
    program.write_text("#!/bin/sh\necho 'Edge TPU Compiler version 16.0.1'\necho 'Model not quantized'\nexit 1\n")
    program.chmod(0o755)
    tool = compiler.find({VARIABLE: str(program), "PATH": os.environ["PATH"]})
    result = compile_models(tool, [model], tmp_path / "out", Options())
    assert (result.culprit, result.compilation.exit_code) == (None, 1)
    error = compiler.failure(result.compilation)
    assert "not 8-bit" in error.message
    assert "Quantize" in str(error.hint)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.data())
def test_bisection_finds_any_culprit_in_few_runs(length: int, data: st.DataObject) -> None:
    """For any culprit, the found index is exact, the cut lies before it, and runs grow with the logarithm."""
    graph = flatbuffer.graph(flatbuffer.load(chain(("RELU",) * (length - 1))))
    culprit = data.draw(st.integers(0, length - 1))
    indices = {cut_after(graph, i): i for i in range(length)}
    found = bisect(graph, lambda tensors: indices[tensors] < culprit)
    assert found.index == culprit
    assert found.tensors == (cut_after(graph, culprit - 1) if culprit else ())
    assert found.runs <= length.bit_length()


def _prediction(graph: flatbuffer.Graph, on_chip: int) -> tuple[placement.Placement, MemoryPlan]:
    placed = placement.predict(graph)
    layer = LayerMemory(op=0, name="ADD", parameter_bytes=on_chip, on_chip=True)
    return placed, MemoryPlan(layers=(layer,), on_chip_bytes=on_chip, off_chip_bytes=0)


def test_agreement_has_no_findings(model: Path, tmp_path: Path, fake: Compiler) -> None:
    """Where the compiler does what was predicted, nothing is reported."""
    done = compile_models(fake, [model], tmp_path / "out", Options()).compilation
    graph = flatbuffer.graph(flatbuffer.load(model))
    placed, memory = _prediction(graph, 1024)
    compiled_graph = flatbuffer.graph(flatbuffer.load(done.outputs[0]))
    found = compiler_compare.compare(graph, placed, memory, compiled_graph, package.read(done.outputs[0]), done.log)
    assert found.mapped == placed.mapped
    assert found.agrees


def test_each_difference_is_a_finding_and_in_the_record(
    model: Path, tmp_path: Path, fake: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operator, table row and memory differences are reported, and the record holds them without any weight."""
    monkeypatch.setenv("FAKE_UNMAPPED", "LOGISTIC")
    options = Options()
    done = compile_models(fake, [model], tmp_path / "out", options).compilation
    graph = flatbuffer.graph(flatbuffer.load(model))
    placed, memory = _prediction(graph, 9000)
    compiled = package.read(done.outputs[0])
    compiled_graph = flatbuffer.graph(flatbuffer.load(done.outputs[0]))
    found = compiler_compare.compare(graph, placed, memory, compiled_graph, compiled, done.log)
    assert found.mapped == (True, True, False, True)
    assert {f.rule for f in found.findings} == {
        *("EDGETPU_PREDICTED_OTHERWISE", "EDGETPU_TABLE_DIFFERS", "EDGETPU_MEMORY_DIFFERS")
    }
    assert next(f for f in found.findings if f.rule == "EDGETPU_PREDICTED_OTHERWISE").op == "2: LOGISTIC"
    record = compiler_compare.regression_record(
        model.read_bytes(), graph, placed, memory, compiled, done.log, options, found
    )
    compiler_compare.write_record(record, tmp_path / "record.json")
    read = json.loads((tmp_path / "record.json").read_text())
    assert read["on_chip_bytes"] == {"predicted": 9000, "compiled": 1024}
    assert [op["mapped"] for op in read["operators"]] == [True, True, False, True]
    assert len(read["differences"]) == len(found.findings)
    assert "step_0" not in json.dumps(read["operators"]), "tensor names may be private"


def test_a_retry_that_works_is_told(
    model: Path, tmp_path: Path, fake: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that is not reliable is worth a warning."""
    failures = tmp_path / "failures"
    failures.write_text("1")
    monkeypatch.setenv("FAKE_FAILURES", str(failures))
    result = compile_models(fake, [model], tmp_path / "out", Options())
    assert [(f.rule, f.severity) for f in result.findings] == [("EDGETPU_RETRIED", "warning")]


def test_a_result_without_edge_tpu_part_is_read(
    model: Path, tmp_path: Path, fake: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's 0-subgraph result is a result: no package, every operator on the CPU, each a difference."""
    monkeypatch.setenv("FAKE_UNMAPPED", "ADD,RELU,LOGISTIC")
    done = compile_models(fake, [model], tmp_path / "out", Options()).compilation
    compiled = package.read(done.outputs[0], required=False)
    assert (compiled.subgraphs, compiled.cpu_operators) == (0, ("ADD", "RELU", "LOGISTIC", "RELU"))
    graph = flatbuffer.graph(flatbuffer.load(model))
    placed, memory = _prediction(graph, 0)
    compiled_graph = flatbuffer.graph(flatbuffer.load(done.outputs[0]))
    found = compiler_compare.compare(graph, placed, memory, compiled_graph, compiled, done.log)
    assert found.mapped == (False,) * 4
    assert "EDGETPU_SUBGRAPHS_DIFFER" in {f.rule for f in found.findings}


@pytest.mark.parametrize(
    ("options", "text", "says"),
    [
        (Options(), STDOUT_16, True),
        (Options(intermediate_tensors=("a",)), STDOUT_16, False),
        (Options(num_segments=2), STDOUT_16, False),
        (Options(search_delegate=True), SEARCH_16, False),
    ],
)
def test_cuts_and_pipelines_are_not_comparable(options: Options, text: str, says: bool) -> None:
    """What lies behind a cut is on the CPU because of the cut, which is no difference from the prediction."""
    assert compiler_compare.comparable(options, compiler_log.parse(text)) is says
