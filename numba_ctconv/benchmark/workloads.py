"""The one table of named problems: corner cases of the parameter space, and the layers that real models run.

Tests, `numba-ctconv verify` and `numba-ctconv bench` all draw from here. A problem is a name, sizes and parameters; its
operands are made on demand, either of small integers, so that every sum is exact in float32 and results compare bit by
bit, or of normal deviates.
"""

import dataclasses
import zlib
from typing import Any, NamedTuple

import numpy as np

from ..functional import output_length
from ..published import layers


class Operands(NamedTuple):
    """Arrays of a problem; bias is None where it has none, grad_output where nobody asked for it."""

    input: Any
    weight: Any
    bias: Any
    grad_output: Any


@dataclasses.dataclass(frozen=True)
class Problem:
    """Sizes and parameters of one transposed convolution; `batch` None stands for unbatched arrays."""

    name: str
    batch: int | None
    in_channels: int
    out_channels: int
    input_length: int
    kernel_size: int
    stride: int = 1
    padding: int | tuple[int, int] = 0
    output_padding: int = 0
    groups: int = 1
    dilation: int = 1
    bias: bool = True
    output_size: int | None = None
    source: str = ""

    @property
    def parameters(self) -> dict[str, Any]:
        """The keywords that forward and backward share."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "output_padding": self.output_padding,
            "groups": self.groups,
            "dilation": self.dilation,
        }

    @property
    def forward_parameters(self) -> dict[str, Any]:
        """The keywords of conv_transpose1d."""
        return self.parameters | ({"output_size": self.output_size} if self.output_size is not None else {})

    @property
    def backward_parameters(self) -> dict[str, Any]:
        """The keywords of conv_transpose1d_backward, which reads the output padding off grad_output."""
        return self.parameters | {"output_padding": None}

    @property
    def output_length(self) -> int:
        """L_out."""
        return output_length(
            self.input_length,
            self.kernel_size,
            self.stride,
            self.padding,
            self.output_padding,
            self.dilation,
            output_size=self.output_size,
        )

    @property
    def flops(self) -> int:
        """Two for every product of an input sample with a tap that reaches the output; cropped ones are not counted.

        Forward, grad_input and grad_weight each take as many.
        """
        left = self.padding[0] if isinstance(self.padding, tuple) else self.padding
        places = np.arange(self.kernel_size) * self.dilation - left  # where the taps of the first input sample land
        first = np.maximum(-(places // self.stride), 0)
        last = np.minimum((self.output_length - 1 - places) // self.stride, self.input_length - 1)
        reached = int(np.maximum(last - first + 1, 0).sum())
        batch = 1 if self.batch is None else self.batch
        return 2 * batch * reached * self.in_channels * self.out_channels // self.groups

    def operands(self, dtype: Any = np.float32, *, exact: bool = True, gradients: bool = True) -> Operands:
        """Arrays of the problem, the same at every call: integers of at most 4 in size if `exact`, else normal.

        Without `gradients` there is no grad_output, which can be long.
        """
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))

        def draw(*shape: int) -> Any:
            if exact:
                return rng.integers(-4, 5, shape).astype(dtype)
            return rng.standard_normal(shape, np.dtype(dtype).type)

        lead = () if self.batch is None else (self.batch,)
        return Operands(
            draw(*lead, self.in_channels, self.input_length),
            draw(self.in_channels, self.out_channels // self.groups, self.kernel_size),
            draw(self.out_channels) if self.bias else None,
            draw(*lead, self.out_channels, self.output_length) if gradients else None,
        )

    def with_length(self, batch: int | None, input_length: int) -> "Problem":
        """The layer on another batch and length."""
        return dataclasses.replace(self, batch=batch, input_length=input_length)

    def limited(self, flops: float) -> "Problem":
        """The problem with its length, then its batch, cut until it takes at most so many operations."""
        short = self
        if short.flops > flops:
            length = max(int(self.input_length * flops / short.flops), min(self.input_length, 16))
            short = dataclasses.replace(short, input_length=length)
        if short.flops > flops and short.batch is not None:
            short = dataclasses.replace(short, batch=max(int(short.batch * flops / short.flops), 1))
        return short

    def shrunk(self, channels: int = 6, input_length: int = 11) -> "Problem":
        """The layer with few channels on a short input: its parameters at the price of a unit test."""
        if self.groups == 1:
            c_in, c_out, groups = min(self.in_channels, channels), min(self.out_channels, channels), 1
        else:
            groups = min(self.groups, 3)
            c_in, c_out = (min(c // self.groups, 2) * groups for c in (self.in_channels, self.out_channels))
        batch = None if self.batch is None else min(self.batch, 2)
        crop = max(self.padding) if isinstance(self.padding, tuple) else self.padding
        # a length that still leaves an output where the crops are wide
        length = min(self.input_length, max(input_length, 3 - -2 * crop // self.stride))
        return dataclasses.replace(
            self, batch=batch, in_channels=c_in, out_channels=c_out, groups=groups, input_length=length
        )


# Corner cases, each named for what it is there to catch.
CASES: tuple[Problem, ...] = (
    Problem("plain", 2, 3, 4, 7, 3),
    Problem("one_sample", 1, 1, 1, 1, 1, bias=False),
    Problem("unbatched", None, 3, 2, 6, 4, stride=2, padding=1),
    Problem("empty_batch", 0, 3, 2, 6, 4, stride=2),
    Problem("stride_2_kernel_4", 2, 5, 6, 33, 4, stride=2, padding=1),
    Problem("stride_8_kernel_16", 1, 9, 7, 21, 16, stride=8, padding=4),
    Problem("odd_stride_output_padding", 2, 3, 5, 12, 10, stride=5, padding=3, output_padding=1),
    Problem("kernel_not_multiple_of_stride", 1, 4, 3, 17, 11, stride=5, padding=3),
    Problem("kernel_below_stride", 2, 2, 3, 5, 2, stride=5),
    Problem("kernel_one_stride_four", 2, 2, 3, 5, 1, stride=4, output_padding=3),
    Problem("kernel_equals_stride", 1, 3, 4, 9, 2, stride=2),
    Problem("dilation", 2, 3, 3, 10, 3, dilation=4, padding=4),
    Problem("dilation_shares_factor_with_stride", 2, 3, 2, 9, 3, stride=4, dilation=6, padding=2),
    Problem("dilation_multiple_of_stride", 1, 2, 2, 8, 3, stride=2, dilation=4),
    Problem("stride_and_dilation_coprime", 2, 2, 3, 8, 5, stride=3, dilation=2, padding=4),
    Problem("output_padding_below_dilation_only", 1, 2, 2, 6, 2, stride=1, dilation=3, output_padding=2),
    Problem("groups", 2, 6, 4, 9, 5, stride=3, groups=2, padding=2),
    Problem("groups_of_five_channels", 2, 10, 6, 9, 4, stride=2, groups=2, padding=1),
    Problem("depthwise", 2, 5, 5, 13, 12, stride=2, groups=5, bias=False, padding=(15, 3)),
    Problem("depthwise_multiplier", 1, 3, 6, 8, 3, stride=2, groups=3, padding=1, output_padding=1),
    Problem("causal_crop", 2, 3, 2, 7, 10, stride=5, padding=(0, 5)),
    Problem("crop_left_only", 1, 2, 2, 7, 4, stride=2, padding=(3, 0)),
    Problem("mostly_cropped", 3, 2, 4, 40, 1, stride=2, padding=(0, 60)),
    Problem("padding_beyond_reach", 1, 2, 2, 20, 3, stride=2, padding=7),
    Problem("crop_all_taps_of_first_inputs", 1, 2, 3, 12, 4, stride=3, padding=(11, 2)),
    Problem("extended_both_ends", 2, 2, 3, 5, 3, stride=2, padding=(-7, -4)),
    Problem("extended_left_cropped_right", 1, 3, 2, 6, 4, stride=3, padding=(-5, 6)),
    Problem("only_extension", 1, 1, 2, 2, 2, stride=2, padding=(9, -20)),
    Problem("output_empty", 2, 3, 2, 3, 2, stride=1, padding=2),
    Problem("output_one", 2, 3, 2, 3, 3, stride=1, padding=2),
    Problem("output_size_in_window", 1, 2, 3, 5, 3, stride=4, padding=1, output_size=20),
    Problem("output_size_with_crops", 1, 2, 3, 5, 3, stride=4, padding=(2, 0), output_size=31),
    Problem("input_of_one_wide_stride", 2, 3, 4, 1, 7, stride=3, padding=1),
    Problem("stride_beyond_output", 1, 2, 2, 1, 3, stride=1_000_003, bias=True),
    Problem("many_channels", 1, 37, 29, 5, 3, stride=2, padding=1),
    Problem("long", 1, 3, 2, 1500, 7, stride=3, padding=2),
    Problem("long_batch_single_output_channel", 2, 6, 1, 700, 16, stride=8, padding=8, bias=False),
    Problem("wide_kernel", 1, 2, 1, 9, 64, stride=16, bias=False),
    Problem("many_channels_few_samples", 1, 300, 12, 2, 4, stride=2, padding=1),
)


def layer_problem(row: dict[str, Any], shape: str = "infer") -> Problem | None:
    """A row as a problem of its `infer` or `train` shape; None where the model is not trained with that layer."""
    if row[shape] is None:
        return None
    batch, length = row[shape]
    return Problem(
        name=row["id"],
        batch=batch,
        in_channels=row["cin"],
        out_channels=row["cout"],
        input_length=length,
        kernel_size=row["k"],
        stride=row["s"],
        padding=tuple(row["crop"]) if "crop" in row else row["p"],
        output_padding=row["op"],
        groups=row["g"],
        dilation=row["d"],
        bias=row["bias"],
        source=row["src"],
    )


def layer_problems(*, core: bool = False, shape: str = "infer") -> list[Problem]:
    """The problems of all layers, or of the `core` ones, that have such a shape."""
    problems = (layer_problem(row, shape) for row in layers() if row["core"] or not core)
    return [problem for problem in problems if problem is not None]
