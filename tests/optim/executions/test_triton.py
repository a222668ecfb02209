"""A rule as a Triton kernel: run by Triton's interpreter, and compiled for a GPU that is not there.

Which of the two Triton does is settled for a process when Triton is imported, and even its own
functions are made for it. So the cases (``triton_cases.py`` and its like, whose names pytest does
not look for) run in processes of their own, and no other test is in one with the interpreter.
"""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from support.commands import run_apart
from support.labels import label

from optimplug._core.optim.executions import ops
from optimplug._core.optim.executions.compiled import program_for
from optimplug._core.optim.executions.triton import kernels, there
from optimplug._core.optim.executions.triton.columns import Columns
from optimplug._core.optim.executions.triton.source import BLOCK, update_text
from optimplug._core.optim.executions.triton.tables import upload
from optimplug._core.optim.executions.triton.whole.tables import DEPTH, RESULTS
from optimplug._core.optim.executions.triton.whole.text import ROWS, WIDTH
from optimplug.optim import CAME, Adafactor, AdamW, Lion, Prodigy, StableAdamW

HERE = Path(__file__).parent
# What is in one row is run by one process, of which each takes seconds to begin.
QUICK = [
    "triton_cases.py::TestRules",
    "triton_cases.py::TestNorm",
    "triton_codes_cases.py",
    "triton_whole_cases.py",
    "triton_capture_cases.py::TestCapture",
]
OTHERS = [
    "triton_cases.py::test_an_operation_alone",
    "triton_cases.py::test_a_rate_on_the_device_stays_there",
    "triton_cases.py::TestSkips",
    "triton_cases.py::TestMemory",
    "triton_capture_cases.py::TestRuns",
    "triton_capture_cases.py::TestSkips",
]
STORAGE = ["triton_cases.py::TestStorage"]
WITH_SLOW = [
    ["triton_cases.py::TestRules"],
    STORAGE,
    QUICK[2:3],
    QUICK[3:4],
    QUICK[4:],
    OTHERS[4:5],
]
NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="there is no Triton"
)


def interpreted(*arguments):
    """Run cases in the interpreter; return what pytest has said of them."""
    tests = HERE.parents[1]
    command = ["python", "-m", "pytest", "-p", "support.interpreter", "-p", "no:cacheprovider"]
    path = ":".join([str(tests.parent), str(tests), *filter(None, sys.path)])
    variables = {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "PYTEST_ADDOPTS": ""}
    done = run_apart(*command, "-q", *arguments, folder=tests.parent, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@NEEDS_TRITON
@pytest.mark.parametrize(
    "parts",
    [QUICK, *(pytest.param(row, marks=pytest.mark.slow) for row in (OTHERS, STORAGE))],
    ids=label,
)
def test_in_the_interpreter(parts):
    assert " passed" in interpreted(*(f"{HERE}/{part}" for part in parts), "-m", "not slow")


@NEEDS_TRITON
@pytest.mark.slow
@pytest.mark.parametrize("parts", WITH_SLOW, ids=label)
def test_every_case_in_the_interpreter(parts):
    assert " passed" in interpreted(*(f"{HERE}/{part}" for part in parts), "-m", "slow")


@NEEDS_TRITON
@pytest.mark.slow
def test_what_holds_for_other_executions():
    """The laws for some optimizers of each kind, in the execution that they choose themselves."""
    laws = f"{HERE.parent}/test_laws.py::test_law"
    # AdamW is in three names. Two of Adafactor's kind would take minutes more.
    kinds = "(AdamW or Lion or Adafactor or Prodigy or MultiOptimizer) and not Transformers"
    assert " passed" in interpreted(laws, "-k", f"{kinds} and not foreach")
    assert " passed" in interpreted(f"{HERE.parent}/test_gradients.py", "-m", "not slow")


def test_every_operation_of_a_program_has_a_form():
    assert all((row.c is None) == (row.in_triton is None) for row in ops.OPERATIONS.values())


def written(cls, dtype, shape=(5000,), **options):
    """What a kernel is made of: the program, its rule, the types of its columns."""
    p = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
    group = cls([p], **options).param_groups[0]
    rule = cls.stored_rule(group).suited(p)
    dtypes = (dtype, dtype, *(spec.dtype or dtype for spec in rule.state))
    numbers = {name: float(value) for name, value in rule.coefficients(group, 3.0).items()}
    return program_for(rule, [numbers], dtypes), rule, dtypes


POINTERS = {"chunks": "*i32", "scalars": "*fp64", "factor": "*fp32", "found_inf": "*fp32"}
POINTERS |= {"scratch": "*fp64", "measured": "*fp64"}


def compiled(kernel, given, **constants):
    """What a kernel is for a GPU, as text."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: POINTERS.get(name, "*i64") for name in given}
    types |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs={})
    made = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False}
    )
    return made.asm["ptx"]


def test_the_text_of_a_small_rule():
    program, rule, dtypes = written(Lion, torch.bfloat16, rounding="exact")
    columns = dict(zip(("p", "g", *rule.state_names), dtypes, strict=True))
    text = update_text(program, Columns(columns, rule))
    assert "x_remainder = load_number(at_remainder, i, size, WHOLE, tl.int16, tl.float32)" in text
    assert "x_p = load_bfloat(at_p, i, size, WHOLE, tl.uint16, tl.float32)" in text
    assert "store_bfloat(at_p, i, t" in text


WIDE_LOADS = [
    # Eight elements a thread, of parameter, gradient and two moments.
    (AdamW, torch.float32, {}, {"v4": 8}),
    (AdamW, torch.bfloat16, {"rounding": "stochastic"}, {"v4": 6}),
    # Of codes they are eight bytes.
    (AdamW, torch.float32, {"state_dtype": "8bit"}, {"v4": 4, "v2": 2}),
    (Lion, torch.bfloat16, {"state_dtype": "8bit", "rounding": "exact"}, {"v4": 3, "v2": 1}),
]


@NEEDS_TRITON
@pytest.mark.parametrize(
    ("cls", "dtype", "options", "loads"),
    [
        pytest.param(*row, marks=() if row in WIDE_LOADS[::3] else pytest.mark.slow)
        for row in WIDE_LOADS
    ],
    ids=label,
)
def test_it_compiles_for_a_gpu_and_reads_16_bytes_at_once(
    cls, dtype, options, loads, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    given = ("table", "grads", "chunks", "scalars", "keys", "factor", "found_inf")
    program, rule, dtypes = written(cls, dtype, **options)
    text = compiled(kernels.update_kernel(program, rule, dtypes), given, BLOCK=BLOCK)
    wide = {width: text.count(f"ld.global.{width}.b32") for width in loads}
    assert wide == loads
    assert re.findall(r"(?:add|sub|mul|fma|div|sqrt)\S*\.f64", text) == []
    assert "div.full" not in text


ADDING = {"DEPTH": DEPTH, "WIDTH": RESULTS}


@NEEDS_TRITON
@pytest.mark.parametrize(
    ("cls", "shape", "shapes"),
    [
        (StableAdamW, (5000,), {"BLOCK": BLOCK}),
        pytest.param(Adafactor, (5, 7), {"ROWS": ROWS, "WIDTH": WIDTH}),
        pytest.param(CAME, (5, 7), {"ROWS": ROWS, "WIDTH": WIDTH}, marks=pytest.mark.slow),
        pytest.param(Prodigy, (5000,), {"BLOCK": BLOCK}, marks=pytest.mark.slow),
    ],
    ids=label,
)
def test_so_do_the_kernels_of_a_rule_for_whole_tensors(cls, shape, shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    program, rule, dtypes = written(cls, torch.float32, shape)
    made = kernels.whole_kernels(program, rule, dtypes)
    passes = [name for name in made if re.fullmatch(r"pass\d", name)]
    others = [name for name in made if re.fullmatch(r"planes\d|last", name)]
    assert len(passes) == kernels.whole_text(program, rule, dtypes).cut.passes
    given = ("table", "grads", "chunks", "shapes", "spots", "scalars", "keys", "factor")
    given += ("found_inf", "scratch", "measured")
    for name in passes:
        compiled(made[name], given, **shapes)
    for name in others:
        compiled(made[name], given, BLOCK=BLOCK)
    text = compiled(kernels.add_kernel(), ("items", "scratch"), **ADDING)
    assert "add.rn.f64" in text or "add.f64" in text


def test_what_stands_on_another_device_goes_from_there():
    """As norms and scales do where a model is spread over several; only the host's are pinned."""
    assert upload(torch.ones(2, device="meta"), torch.device("meta", 0)).is_meta


def test_without_triton_torchs_operators_serve(monkeypatch):
    there._compiles_for.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not there.triton_serves(torch.device("cuda"))
    there._compiles_for.cache_clear()


def test_where_no_kernel_can_be_made_it_is_said_once(monkeypatch):
    def fail(device):
        raise RuntimeError("no compiler")

    there._compiles_for.cache_clear()
    monkeypatch.setattr(there, "DEVICES", {"cpu"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("optimplug._core.optim.executions.triton.kernels.try_out", fail)
    with pytest.warns(RuntimeWarning, match="Triton could not make a kernel for cpu.*no compiler"):
        assert not there.triton_serves(torch.device("cpu"))
    assert not there.triton_serves(torch.device("cpu"))
    there._compiles_for.cache_clear()
