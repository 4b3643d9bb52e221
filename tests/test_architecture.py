"""The house rules as a contract: who may import whom, and that kernel files neither allocate nor check."""

import ast
import pathlib

import pytest

import numba_ctconv

PACKAGE = pathlib.Path(numba_ctconv.__file__).parent
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
KERNEL_STEMS = {
    "forward",
    "grad_input",
    "grad_weight",
    "rows",
    "reach",
    "fill",
    "product",
    "weight_product",
    "multiply",
}
OTHERS = {  # the CPU has others
    pathlib.Path("cuda", name) for name in ("packing.py", "parts.py", "words.py", "depthwise.py", "depthwise_weight.py")
}
KERNELS = [path for path in FILES if path.stem in KERNEL_STEMS or path in OTHERS]

# Each file of the core, from the bottom up: it imports nothing that stands further down in this list.
LAYERS = [
    "published",
    "forks",
    "geometry",
    "checks",
    "reference",
    "shapes",
    "cpu",
    "cuda",
    "dispatch",
    "precision",
    "functional",
    "modules",
    "warmup",
    "benchmark",
    "cli",
]


def imports(path):
    """(module, names) of every import statement; relative ones as paths inside the package."""
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            inside = ["numba_ctconv", *path.parts[: len(path.parts) - node.level]] if node.level else []
            module = ".".join([*inside, *([node.module] if node.module else [])])
            yield module, tuple(alias.name for alias in node.names)


def imported(path):
    """Every module that a file may mean, names included: `from a import b` may be a.b."""
    for module, names in imports(path):
        yield module
        yield from (f"{module}.{name}" for name in names)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_only_the_cuda_engine_imports_numba_cuda(path):
    if path.parts[0] != "cuda":
        assert not [name for name in imported(path) if name.startswith(("numba.cuda", "numba_cuda"))]


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] != "benchmark"], ids=str)
def test_no_framework_is_imported(path):
    assert not [name for name in imported(path) if name.split(".")[0] in {"torch", "cupy", "jax", "onnxruntime"}]


INSIDE = [path for path in FILES if path.name not in {"__init__.py", "__main__.py"} or len(path.parts) > 1]


@pytest.mark.parametrize("path", INSIDE, ids=str)
def test_data_flows_one_way(path):
    def layer(name):
        return LAYERS.index(name) if name in LAYERS else None

    own = layer(path.parts[0].removesuffix(".py"))
    assert own is not None, f"{path} has no place in LAYERS"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "numba_ctconv" and len(parts) > 1 and layer(parts[1]) is not None:
            assert layer(parts[1]) <= own, f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_engines_do_not_know_each_other(path):
    other = {"cpu": "cuda", "cuda": "cpu"}.get(path.parts[0])
    if other:
        assert not [name for name in imported(path) if name.startswith(f"numba_ctconv.{other}")]


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] == "cpu" and p.name != "__init__.py"], ids=str)
def test_cpu_code_is_written_by_files_that_its_cache_looks_at(path):
    """What they import from outside has to be in compilation's digest; but for forks, which writes no code."""
    inside = {name for name in imported(path) if name.startswith("numba_ctconv.")}
    assert {name.split(".")[1] for name in inside} <= {"cpu", "geometry", "forks"}


@pytest.mark.parametrize("path", KERNELS, ids=str)
def test_kernel_files_neither_allocate_nor_check(path):
    tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Raise | ast.Assert | ast.Try)]
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    allocating = {"empty", "zeros", "ones", "full", "copy", "array", "device_array"}
    assert not {name for name in called if name.rpartition(".")[2] in allocating and "shared" not in name}
    assert not [name for name in imported(path) if "checks" in name]


def test_three_operations_stand_for_two_targets():
    for target in ("cpu", "cuda"):
        for operation in ("forward", "grad_input", "grad_weight"):
            assert pathlib.Path(target, f"{operation}.py") in FILES


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_is_read_in_one_sitting(path):
    assert len((PACKAGE / path).read_text(encoding="utf-8").splitlines()) <= 350


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_error_is_worded_in_checks(path):
    """Outside the command line, TypeError and ValueError are raised by checks.py alone."""
    if path.parts[0] in {"checks", "benchmark", "cli.py"}:
        return
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert not ast.unparse(node.exc).startswith(("TypeError", "ValueError")), f"{path}:{node.lineno}"
