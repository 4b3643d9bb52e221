"""A block's tile of a product, and what a thread of it owns: pure integers, shared by kernels, engine and tests."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .arithmetic import Arithmetic
from .fragments import COLUMNS, ROWS, WARP

WORDS = 16  # of a stage, at most: a shared-memory row each
BLOCK_STAGES = 2  # of a partial sum: up to 32 words, so that rounding stays near that of pairwise sums
DEPTH = 3  # stages in shared memory: one is computed while two arrive
BANKS = 32


class Tile(NamedTuple):
    """A block's share of the product, and each thread's of that: thread_rows × thread_columns sums."""

    rows: int
    columns: int
    thread_rows: int
    thread_columns: int
    resident: int  # blocks that share a multiprocessor, by their registers and shared memory
    tensor: bool = False

    @property
    def across(self) -> int:
        """Threads along the columns; a warp reads neighbouring samples, whatever the tap's offset."""
        return self.columns // self.thread_columns

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.rows // self.thread_rows * self.across

    @property
    def fragments(self) -> tuple[int, int]:
        """Instructions of tensor cores that cover a warp's rows and columns; a thread has a pair of each in each."""
        return self.thread_rows // 2, self.thread_columns // 2

    @property
    def warps_across(self) -> int:
        """Warps of tensor cores along the columns."""
        return self.columns // (self.fragments[1] * COLUMNS)

    @property
    def row_steps(self) -> tuple[int, ...]:
        """From a thread's first row to each of its rows: neighbours, or where an instruction leaves them."""
        if self.tensor:
            return tuple(r // 2 * ROWS + r % 2 * 8 for r in range(self.thread_rows))
        return tuple(range(self.thread_rows))

    @property
    def column_steps(self) -> tuple[int, ...]:
        """From a thread's first column to each of its columns."""
        if self.tensor:
            return tuple(c // 2 * COLUMNS + c % 2 for c in range(self.thread_columns))
        return tuple(c * self.across for c in range(self.thread_columns))

    @property
    def pitch(self) -> int:
        """Elements from row to row of samples and sums; lanes of a fragment read four rows of eight from all banks."""
        return self.columns + (8 if self.tensor else 0)

    @property
    def panel_room(self) -> int:
        """Elements of a stage's weights."""
        return WORDS * self.rows

    @property
    def slab_room(self) -> int:
        """Elements of a stage's samples."""
        return WORDS * self.pitch

    @property
    def input_pitch(self) -> int:
        """Elements from sample to sample of a transposed stage of grad_weight, or from row to row of one that is not.

        Copies of neighbours go to different banks, and lanes of a fragment read from different ones.
        """
        return WORDS + 4 if self.tensor else self.rows + 4

    @property
    def input_room(self) -> int:
        """Elements of a stage's inputs."""
        return self.input_pitch * (self.rows if self.tensor else WORDS)

    @property
    def room(self) -> int:
        """Elements of shared memory: as many stages as its 48 KiB hold, or the sums of a tile on their way out."""
        return max(DEPTH * (self.panel_room + self.slab_room), self.rows * self.pitch)


Tiles = dict[int, tuple[Tile, ...]]  # by their rows, the widest first

# All of 128 threads. The first keeps 64 sums and as many partial ones in a thread's registers and issues 11 loads for
# 64 products; two of its blocks share a multiprocessor, so a scheduler has two warps of 64 independent products each to
# hide behind. Where rows or columns are few, tiles are smaller: more blocks, of which more share a multiprocessor.
FMA_TILES: dict[int, Tiles] = {
    4: {64: (Tile(64, 128, 8, 8, 2), Tile(64, 32, 4, 4, 4)), 16: (Tile(16, 128, 4, 4, 4), Tile(16, 32, 2, 2, 4))},
    8: {64: (Tile(64, 32, 4, 4, 2),), 16: (Tile(16, 32, 2, 2, 3),)},
}
# A warp of the first has a quarter of the columns and, of every step of 8 words, reads 24 rows of banks for the 16
# instructions of all rows; those of the second have a quarter of the rows.
TENSOR_TILES: Tiles = {
    64: (Tile(64, 128, 8, 8, 2, True), Tile(64, 32, 2, 8, 3, True)),
    16: (Tile(16, 128, 2, 8, 3, True), Tile(16, 32, 2, 2, 4, True)),
}


def tiles_of(arithmetic: Arithmetic) -> Tiles:
    """The tiles there are of forward and grad_input, by their rows."""
    return TENSOR_TILES if arithmetic.tensor else FMA_TILES[arithmetic.word_bytes]


def splits(tile: Tile, arithmetic: Arithmetic) -> bool:
    """Whether a tile's stages may be split over several blocks: of wider tiles there are always enough."""
    return tile == tiles_of(arithmetic)[tile.rows][-1]


def weight_tiles_of(arithmetic: Arithmetic) -> Tiles:
    """Those of grad_weight; few columns are left to few rows where tensor cores multiply."""
    if arithmetic.tensor:
        return {64: TENSOR_TILES[64][:1], 16: TENSOR_TILES[16]}
    return FMA_TILES[arithmetic.word_bytes]


def thread_place(tile: Tile) -> Callable[[Any], tuple[Any, Any]]:
    """A function, which kernels compile, from a thread to the first row and column of its sums."""
    across, thread_rows, warps_across = tile.across, tile.thread_rows, tile.warps_across
    warp_rows, warp_columns = tile.fragments[0] * ROWS, tile.fragments[1] * COLUMNS

    def of_fma_units(thread: Any) -> tuple[Any, Any]:
        return thread // across * thread_rows, thread % across

    def of_tensor_cores(thread: Any) -> tuple[Any, Any]:
        warp, lane = thread // WARP, thread % WARP
        row, column = warp // warps_across * warp_rows, warp % warps_across * warp_columns
        return row + lane // 4, column + lane % 4 * 2

    return of_tensor_cores if tile.tensor else of_fma_units
