"""Rounding errors beside torch's, over the layers of real models."""

import numpy as np
import pytest

import numba_ctconv as nc
from numba_ctconv.benchmark.workloads import layer_problems

torch = pytest.importorskip("torch")

OUTPUTS = 100_000  # that the error is the root mean square of, at least


def cut(problem):
    """A layer on about as few samples as give enough outputs."""
    cropped = 2 * np.max(problem.padding) // problem.stride
    return problem.with_length(1, int(-(-OUTPUTS // (problem.out_channels * problem.stride)) + cropped + 2))


def errors(problem):
    """Ours and torch's, against float64."""
    x, w, b, _ = problem.operands(np.float32, exact=False, gradients=False)
    b = np.zeros(problem.out_channels, np.float32) if b is None else b
    ours = nc.conv_transpose1d(x, w, b, **problem.forward_parameters)
    assert ours.size >= OUTPUTS
    crops = problem.padding if isinstance(problem.padding, tuple) else (problem.padding, 0)

    def torchs(dtype):
        operands = [torch.from_numpy(a.astype(dtype)) for a in (x, w, b)]
        layer = {"stride": problem.stride, "dilation": problem.dilation, "groups": problem.groups}
        full = torch.nn.functional.conv_transpose1d(*operands, output_padding=0, **layer).numpy()
        full = full[..., crops[0] : crops[0] + ours.shape[2]]
        return np.pad(full, [(0, 0), (0, 0), (0, ours.shape[2] - full.shape[2])]), b

    exact, _ = torchs(np.float64)
    single, _ = torchs(np.float32)
    inside = slice(0, single.shape[2] - problem.output_padding)  # what output padding adds is the bias alone
    return [np.sqrt(np.mean((y - exact)[..., inside] ** 2, dtype=np.float64)) for y in (ours, single)]


def test_errors_are_torchs():
    """At most 1.25 times torch's in the geometric mean, at most twice on any layer."""
    ratios = {}
    for problem in layer_problems():
        ours, torchs = errors(cut(problem))
        ratios[problem.name] = ours / torchs if torchs else 1.0
    worst = max(ratios, key=ratios.get)
    assert ratios[worst] <= 2, (worst, ratios[worst])
    assert np.exp(np.mean(np.log(list(ratios.values())))) <= 1.25
