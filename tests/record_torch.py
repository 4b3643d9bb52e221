"""Records what torch computes for a table of problems into data/torch_values.npz, which test_torch_values.py reads.

Run by hand, with torch installed: `python tests/record_torch.py`. Computed in float64 from operands that are small
integers, so that every value is exact and stored as an integer. The operands are those of `Problem.operands`; of them
only a checksum is kept. torch's float32 weight gradient is wrong for the problem FLOAT32_CASE: its largest error is
recorded, for information.

The archive holds, for each problem, "<name>/output", "/grad_input", "/grad_weight", "/grad_bias" (where it has a bias)
and "/operands", the checksums; and "about", a JSON text with the torch version, the problems and the error above.
"""

import dataclasses
import json
import pathlib
import zlib
from typing import Any

import numpy as np
import torch

from numba_ctconv.benchmark.workloads import CASES, Operands, Problem, layer_problems

PATH = pathlib.Path(__file__).parent / "data" / "torch_values.npz"
RESULTS = ("output", "grad_input", "grad_weight", "grad_bias")
FLOAT32_CASE = Problem(
    "weight_gradient_wrong_in_torch_float32", 2, 18, 19, 43, 13, stride=4, padding=20, dilation=3, bias=False
)

# The shapes that torch's own tests run this operation on.
TORCH_TESTS = (
    Problem("opinfo_0", 1, 3, 3, 4, 3, stride=2, padding=2, output_padding=1),
    Problem("opinfo_1", 2, 2, 4, 4, 4, stride=3, padding=1, output_padding=2, groups=2, dilation=4),
    Problem("opinfo_2", 1, 1, 1, 4, 4, stride=2, padding=1, output_padding=1, dilation=2),
    Problem("opinfo_3", 1, 1, 2, 4, 3, stride=2, padding=1, output_padding=1, bias=False),
    Problem("opinfo_4", 1, 4, 8, 5, 3, bias=False),
    Problem("module", 1, 3, 4, 7, 3, stride=3, padding=1, output_padding=1),
    Problem("module_no_bias", 1, 3, 4, 6, 3, stride=2, padding=1, output_padding=1, bias=False),
    Problem("module_dilated", 1, 3, 4, 6, 3, stride=2, padding=1, output_padding=1, dilation=2),
    Problem("module_groups", 2, 4, 6, 7, 3, stride=3, padding=1, output_padding=1, groups=2),
    Problem("module_info", 2, 4, 5, 3, 3),
)

# Lengths asked for by output_size, at both ends of the window and inside it.
OUTPUT_SIZES = tuple(
    Problem(f"output_size_{size}", 2, 3, 2, 5, 3, stride=4, padding=1, dilation=dilation, output_size=size)
    for dilation, sizes in ((1, (17, 18, 20)), (3, (21, 22, 24)))
    for size in sizes
)


def problems() -> list[Problem]:
    """All that is recorded: what torch can express, and does not refuse as an empty output in float64."""
    unbatched = [dataclasses.replace(p, name=p.name + "_unbatched", batch=None) for p in TORCH_TESTS]
    layers = [problem.shrunk() for problem in layer_problems(core=True)]
    table = (*CASES, *layers, *TORCH_TESTS, *unbatched, *OUTPUT_SIZES, FLOAT32_CASE)
    return [p for p in table if isinstance(p.padding, int) and p.output_length > 0]


def checksums(operands: Operands) -> Any:
    """One checksum an operand; 0 for none."""
    return np.array(
        [0 if a is None else zlib.crc32(np.ascontiguousarray(a, "<f8").tobytes()) for a in operands], np.uint32
    )


def torch_results(problem: Problem, dtype: Any) -> dict[str, Any]:
    """Output and gradients as torch computes them in that dtype, by their names."""
    x, w, b, dy = (None if a is None else torch.from_numpy(a).to(dtype) for a in problem.operands(np.float64))
    layer = torch.nn.ConvTranspose1d(
        problem.in_channels, problem.out_channels, problem.kernel_size, bias=problem.bias, dtype=dtype,
        **problem.parameters,
    )  # fmt: skip
    with torch.no_grad():
        layer.weight.copy_(w)
        if b is not None:
            layer.bias.copy_(b)
    x.requires_grad_()
    y = layer(x, None if problem.output_size is None else [problem.output_size])
    gradients = torch.autograd.grad(y, (x, *layer.parameters()), dy)
    return {name: a.detach().numpy() for name, a in zip(RESULTS, (y, *gradients), strict=False)}


def integers(array: Any) -> Any:
    """The same values in the smallest integer type that holds them."""
    largest = int(np.abs(array).max(initial=0))
    whole = array.astype(np.int8 if largest < 2**7 else np.int16 if largest < 2**15 else np.int32)
    assert np.array_equal(whole, array)
    return whole


def main() -> None:
    """Compute and write."""
    arrays: dict[str, Any] = {}
    table = problems()
    for problem in table:
        arrays[f"{problem.name}/operands"] = checksums(problem.operands(np.float64))
        for name, array in torch_results(problem, torch.float64).items():
            arrays[f"{problem.name}/{name}"] = integers(array)
    wrong = torch_results(FLOAT32_CASE, torch.float32)["grad_weight"]
    exact = arrays[f"{FLOAT32_CASE.name}/grad_weight"]
    about = {
        "torch": torch.__version__,
        "problems": [dataclasses.asdict(problem) for problem in table],
        "largest_error_of_torch_float32_weight_gradient": float(np.abs(wrong - exact).max()),
        "largest_value_of_that_gradient": float(np.abs(exact).max()),
    }
    PATH.parent.mkdir(exist_ok=True)
    np.savez_compressed(PATH, about=np.array(json.dumps(about, default=int)), **arrays)
    print(f"{PATH}: {len(table)} problems, {PATH.stat().st_size} bytes")  # noqa: T201  # a script says what it did


if __name__ == "__main__":
    main()
