"""Which lane of a warp holds which element of mma.sync's operands: pure integers, shared by kernels and emulator.

The instruction multiplies A (16 × k) and B (k × 8) and adds to C (16 × 8); m16n8k8 takes tf32, m16n8k16 halves, two to
a register. In words (arithmetic.py) both shapes are one: A is 16 × 8 words and B 8 × 8, and a lane's registers hold the
same words of either. `element_*` are the maps of the PTX ISA, element by element, which the emulator goes by; the
others say the same in words, which the kernels go by, and the tests hold the two against each other.
"""

from typing import Any

WARP = 32
ROWS, COLUMNS, WORDS = 16, 8, 8  # of an instruction


def element_of_a(lane: Any, i: Any, halves: bool) -> tuple[Any, Any]:
    """(row, k) of a lane's i-th element of A: 4 of tf32, 8 halves."""
    group, own = lane // 4, lane % 4
    if halves:
        return group + 8 * (i // 2 % 2), own * 2 + i % 2 + 8 * (i // 4)
    return group + 8 * (i % 2), own + 4 * (i // 2)


def element_of_b(lane: Any, i: Any, halves: bool) -> tuple[Any, Any]:
    """(k, column) of a lane's i-th element of B: 2 of tf32, 4 halves."""
    group, own = lane // 4, lane % 4
    if halves:
        return own * 2 + i % 2 + 8 * (i // 2), group
    return own + 4 * i, group


def element_of_c(lane: Any, i: Any) -> tuple[Any, Any]:
    """(row, column) of a lane's i-th element of C: 4 of them."""
    return lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2


def weight_place(t: Any, row: Any, tile_rows: int) -> Any:
    """Where word t of a row lies in a packed stage: the four words that a lane holds of A lie side by side."""
    lane, register = row % 8 * 4 + t % 4, row // 8 % 2 + t // 4 % 2 * 2
    return ((t // WORDS * (tile_rows // ROWS) + row // ROWS) * WARP + lane) * 4 + register


def row_place(t: Any, row: Any, tile_rows: int) -> Any:
    """The same for FMA units: a row of the tile for every word."""
    return t * tile_rows + row
