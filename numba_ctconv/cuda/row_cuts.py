"""How the rows of depthwise layers are cut into blocks: pure integers, shared by engine and tests.

A row is one (item, channel). A block takes the same stretch of neighbouring rows, so many threads each; a thread takes
results that lie one step apart, RESULTS of them in a pass. Nothing here decides in which order a result is summed, so
all of it may follow the length and the batch. The cut of grad_weight does, and follows the shapes alone.
"""

from functools import lru_cache
from typing import NamedTuple

from ..geometry import Plan
from .tiles import WORKSPACE_BYTES

THREADS = 256
RESULTS = 8  # of a thread in a pass, which share what it reads of the weight
MOST_PASSES = 4  # which share what a thread works out of its place
ROOM = 4096 + 256  # samples of a block in shared memory: those of four passes at stride 2, and what they reach beyond
WEIGHTS = 1024  # likewise
NARROWEST_SHIFT, WIDEST_SHIFT = 3, 8  # of the threads of a row, as powers of two
ENOUGH_BLOCKS = 4 * 132  # four on each multiprocessor of a large chip
# Of grad_weight: TAPS of a phase meet TERMS positions in a thread's registers, from TERMS + TAPS - 1 samples of the
# input. An odd number of neighbouring positions lets neighbouring threads read from different banks.
TAPS, TERMS = 8, 7
WEIGHT_THREADS = 128
WEIGHT_ROOM = 3000  # elements of shared memory: samples, and then the threads' sums
UNITS = 32  # of a block, if it can choose: pairs of a phase and TAPS of its taps
MOST_TILES = 32  # that a thread sums one after the other


class Cut(NamedTuple):
    """What the kernel of forward is told."""

    stride: int
    tap_step: int
    input_step: int  # samples between those that neighbouring taps of a phase take
    most_taps: int  # of a phase
    fewest_taps: int
    crop_quotient: int  # crop_left by the stride
    crop_phase: int
    shift: int  # a block has 2**shift threads for a row
    step: int  # results that they take at once, whole strides
    space: int  # of samples, between results of a thread
    passes: int
    tiles: int  # of a row
    samples: int  # that the results of a tile reach
    reach: int  # of the last tap, in samples

    @property
    def rows(self) -> int:
        """Of a block."""
        return THREADS >> self.shift


def fits(plan: Plan) -> bool:
    """Whether what the results of a row reach fits in a block's memory, and the taps do."""
    return plan.kernel_size <= WEIGHTS and _samples(plan, WIDEST_SHIFT, 1) <= ROOM


def _step(plan: Plan, shift: int) -> int:
    return max(plan.stride, (1 << shift) // plan.stride * plan.stride)


def _samples(plan: Plan, shift: int, passes: int) -> int:
    return passes * RESULTS * (_step(plan, shift) // plan.stride) + 1 + plan.shift(plan.kernel_size - 1)


def forward_cut(plan: Plan, crop_left: int, rows: int, length: int) -> Cut:
    """For outputs (rows, length): as few threads and passes to a row as cover it, and blocks enough to fill a chip."""
    shift, passes = NARROWEST_SHIFT, 1
    while shift < WIDEST_SHIFT and not (
        RESULTS * _step(plan, shift) >= length
        and _samples(plan, shift, 1) << WIDEST_SHIFT - shift <= ROOM
        and plan.kernel_size << WIDEST_SHIFT - shift <= WEIGHTS
    ):
        shift += 1
    step = _step(plan, shift)
    while (
        passes < MOST_PASSES
        and passes * RESULTS * step < length
        and _samples(plan, shift, 2 * passes) << WIDEST_SHIFT - shift <= ROOM
        and rows * -(-length // (2 * passes * RESULTS * step)) >= ENOUGH_BLOCKS << WIDEST_SHIFT - shift
    ):
        passes *= 2
    counts = [len(plan.taps(phase)) for phase in range(plan.stride)]
    return Cut(
        plan.stride, plan.tap_step, plan.dilation // plan.phase_step, max(counts), min(counts),
        crop_left // plan.stride, crop_left % plan.stride, shift, step, step // plan.stride, passes,
        -(-length // (passes * RESULTS * step)), _samples(plan, shift, passes), plan.shift(plan.kernel_size - 1),
    )  # fmt: skip


class BackCut(NamedTuple):
    """What the kernel of grad_input is told."""

    stride: int
    dilation: int
    crop_left: int
    shift: int  # as in Cut
    tiles: int

    @property
    def rows(self) -> int:
        """Of a block."""
        return THREADS >> self.shift


def grad_input_cut(plan: Plan, crop_left: int, length: int) -> BackCut:
    """For gradients of rows of a length: as few threads to a row as cover it."""
    shift = NARROWEST_SHIFT
    while shift < WIDEST_SHIFT and RESULTS << shift < length:
        shift += 1
    return BackCut(plan.stride, plan.dilation, crop_left, shift, -(-length // (RESULTS << shift)))


class WeightCut(NamedTuple):
    """What the kernel of grad_weight is told.

    A block has one channel of grad_output, and of the time some neighbouring tiles: `lines` items at once, `span`
    positions q of each. A thread has a phase, one of `tap_groups` groups of TAPS taps, an item and, in
    each of `passes`, TERMS neighbouring positions.
    """

    stride: int
    tap_step: int
    crop_left: int
    crop_quotient: int
    lines: int
    lanes: int
    tap_groups: int
    ranges: int  # blocks that share the groups of a channel
    most_shift: int  # of a phase's first tap
    passes: int
    span: int
    samples: int  # of the input that a line's positions reach
    tiles: int  # of a row
    all_tiles: int  # of all items
    part_tiles: int  # that a block sums
    parts: int


def _weight_reach(plan: Plan) -> tuple[int, int, int]:
    """The shift of first taps, and the groups of taps of a block, and blocks that share those of a channel."""
    taps = [plan.taps(phase) for phase in range(plan.stride)]
    groups = -(-max(map(len, taps)) // TAPS)
    ranges = -(-groups // max(1, UNITS // plan.stride))
    return max(plan.shift(own[0]) for own in taps if own), -(-groups // ranges), ranges


@lru_cache(maxsize=256)
def weight_fits(plan: Plan) -> bool:
    """Whether neighbouring taps of a phase take neighbouring samples, and a block has threads for all phases."""
    return plan.dilation == plan.phase_step and plan.stride <= WEIGHT_THREADS


def weight_cut(plan: Plan, crop_left: int, channels: int, batch: int, out_length: int, word_bytes: int) -> WeightCut:
    """For grad_output (batch, channels, out_length): blocks enough to fill a chip, as memory for their sums allows."""
    most_shift, tap_groups, ranges = _weight_reach(plan)
    first = crop_left // plan.stride
    positions = (crop_left + out_length - 1) // plan.stride - first + 1
    beyond = most_shift + TAPS * tap_groups - 1
    members = WEIGHT_THREADS // (plan.stride * tap_groups)

    def room(span: int) -> int:
        return span * plan.stride + span + beyond

    passes = 1
    while (
        passes < MOST_PASSES
        and passes * TERMS * members < positions
        and room(2 * passes * TERMS * members) <= WEIGHT_ROOM
        and channels * ranges * batch * positions >= ENOUGH_BLOCKS * 2 * passes * TERMS * members
    ):
        passes *= 2
    tiles = -(-positions // (passes * TERMS * members))
    lanes = -(-positions // (tiles * passes * TERMS))
    span = passes * TERMS * lanes
    lines = min(members // lanes, batch, WEIGHT_ROOM // room(span))
    all_tiles = -(-batch // lines) * tiles
    wanted = max(-(-ENOUGH_BLOCKS // (channels * ranges)), -(-all_tiles // MOST_TILES))
    most = max(1, WORKSPACE_BYTES // (channels * plan.kernel_size * word_bytes))
    part_tiles = -(-all_tiles // min(wanted, most, all_tiles))
    return WeightCut(
        plan.stride, plan.tap_step, crop_left, first, lines, lanes, tap_groups, ranges, most_shift, passes, span,
        span + beyond, tiles, all_tiles, part_tiles, -(-all_tiles // part_tiles),
    )  # fmt: skip


def blocks_of(cut: Cut | BackCut, rows: int) -> int:
    """Blocks of a launch."""
    return -(-rows // cut.rows) * cut.tiles


def weight_blocks(cut: WeightCut, channels: int) -> int:
    """Blocks of a launch for grad_weight."""
    return cut.parts * channels * cut.ranges


@lru_cache(maxsize=256)
def phase_table(plan: Plan) -> tuple[int, ...]:
    """The first tap of each phase, then its shift, then how many taps the phase has."""
    taps = [plan.taps(phase) for phase in range(plan.stride)]
    first = [own[0] if own else 0 for own in taps]
    return (*first, *(plan.shift(tap) for tap in first), *map(len, taps))
