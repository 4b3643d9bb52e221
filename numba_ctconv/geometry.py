"""Where every tap lands: from validated integers to crops, lengths, phases and shifts.

Pure Python that knows no array. functional asks for a Geometry, the engines hand it to their kernels.

A layer has the full length (input_length - 1)·stride + dilation·(kernel_size - 1) + 1, of which crop_left and
crop_right samples are cut off; a negative crop extends. Output sample l stands at u = l + crop_left of the full
length, and u = q·stride + r splits into the phase r in [0, stride) and the position q. Tap k lands in phase
r_k = (k·dilation) mod stride at shift h_k = (k·dilation) div stride:

    forward      y[o, (q, r)] = Σ_i Σ_{k: r_k = r} w[i, o, k] · x[i, q - h_k]
    grad_input   dx[i, t]     = Σ_o Σ_k            w[i, o, k] · dy[o, (t + h_k, r_k)]
    grad_weight  dw[i, o, k]  = Σ_n Σ_t            x[i, t]    · dy[o, (t + h_k, r_k)]
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple


class Crops(NamedTuple):
    """Samples cut off the full length at either end; negative extends it."""

    left: int
    right: int


class Family(NamedTuple):
    """Phases whose taps have the same shifts: their first one's, and then every dilation/phase_step-th."""

    shift: int
    taps: int  # of a phase; 0 where none lands
    phases: tuple[int, ...]
    first_taps: tuple[int, ...]  # of each phase; the next one is tap_step further


class Plan(NamedTuple):
    """What (kernel_size, stride, dilation) alone decide; holds no length.

    Phase r has taps only where phase_step = gcd(stride, dilation) divides it: first_tap(r), then every tap_step-th.
    The inverse of dilation/phase_step modulo tap_step finds the first one without a table or a search.
    """

    kernel_size: int
    stride: int
    dilation: int
    phase_step: int
    tap_step: int
    inverse: int

    def phase(self, tap: int) -> int:
        """r_k of tap k."""
        return tap * self.dilation % self.stride

    def shift(self, tap: int) -> int:
        """h_k of tap k."""
        return tap * self.dilation // self.stride

    def taps(self, phase: int) -> range:
        """The taps k with (k·dilation) mod stride = phase; empty where none lands."""
        if phase % self.phase_step:
            return range(0)
        return range(phase // self.phase_step * self.inverse % self.tap_step, self.kernel_size, self.tap_step)

    def full_length(self, input_length: int) -> int:
        """Length of the output before anything is cropped."""
        return (input_length - 1) * self.stride + self.dilation * (self.kernel_size - 1) + 1


@lru_cache(maxsize=4096)
def plan(kernel_size: int, stride: int, dilation: int) -> Plan:
    """The plan of a layer."""
    phase_step = math.gcd(stride, dilation)
    tap_step = stride // phase_step
    inverse = pow(dilation // phase_step, -1, tap_step) if tap_step > 1 else 0
    return Plan(kernel_size, stride, dilation, phase_step, tap_step, inverse)


@lru_cache(maxsize=256)
def families(layer: Plan) -> tuple[Family, ...]:
    """All phases of a layer, by the shifts of their taps."""
    found: dict[tuple[int, int], list[int]] = {}
    for phase in range(layer.stride):
        taps = layer.taps(phase)
        found.setdefault((layer.shift(taps[0]) if taps else 0, len(taps)), []).append(phase)
    return tuple(
        Family(shift, count, tuple(phases), tuple(layer.taps(phase)[0] if count else 0 for phase in phases))
        for (shift, count), phases in found.items()
    )


class Geometry(NamedTuple):
    """One call: a plan, the crops and the two lengths."""

    plan: Plan
    crops: Crops
    input_length: int
    output_length: int

    def positions(self, phases: Sequence[int]) -> tuple[int, int]:
        """The first position of which one of these phases, which rise, lies in the output, and how many there are."""
        first = -((int(phases[-1]) - self.crops.left) // self.plan.stride)
        last = (self.crops.left + self.output_length - 1 - int(phases[0])) // self.plan.stride
        return first, last - first + 1


def crops_of(padding: int | Crops, output_padding: int = 0) -> Crops:
    """The pair of crops that a `padding` stands for: an int p with output_padding op is (p, p - op)."""
    if isinstance(padding, Crops):
        return padding
    return Crops(padding, padding - output_padding)


def geometry_of(layer: Plan, crops: Crops, input_length: int) -> Geometry:
    """The geometry whose crops are known; output_length follows, and can come out negative."""
    return Geometry(layer, crops, input_length, layer.full_length(input_length) - crops.left - crops.right)


def geometry_to(layer: Plan, crop_left: int, input_length: int, output_length: int) -> Geometry:
    """The geometry whose output_length is known; the right crop follows."""
    crop_right = layer.full_length(input_length) - crop_left - output_length
    return Geometry(layer, Crops(crop_left, crop_right), input_length, output_length)
