"""Rows and vectors of a register tile, as the host's registers allow. Asked by the layouts of all three operations."""

from . import target

MOST_VECTORS = 6
LEAST_ROWS = 0.75  # part of the usual rows, below which the slab would be read too often in any case


def usual_rows() -> int:
    """Rows of a tile where nothing is against it."""
    return target.vector_registers() // 4


def tile_shape(row_channels: int, phases: int) -> tuple[int, int]:
    """Rows of a tile and how many phases it interleaves: whole channels where they fit, else a part of one.

    Seven rows fit 16 registers with one vector each, and a tile loads as much as it multiplies: two parts of four rows,
    one of which stands for no phase, take less time. Three channels of three phases fit 32 registers, but load more for
    their products than two.
    """
    usual = usual_rows()
    most = usual + usual // 2  # rows of which two vectors each, theirs and a weight still fit the registers
    if phases > most:
        own = min(range(most, usual - 1, -1), key=lambda part: -phases % part)  # rows that stand for no phase
        return own, own
    channels = max(1, usual // phases)
    rows, more, least = phases * channels, phases * (channels + 1), usual * LEAST_ROWS
    if more <= most and (rows < least or (rows == least and products_of_loads(more) >= products_of_loads(rows))):
        channels += 1
    tiles = -(-row_channels // channels)
    return phases * -(-row_channels // tiles), phases


def products_of_loads(rows: int) -> float:
    """Products of a full tile to each vector or weight that it loads."""
    vectors = tile_vectors(rows)
    return rows * vectors / (rows + vectors)


def tall_tiles(rows: int) -> int:
    """Tiles of one vector whose sums fit the registers together, beside a vector of a slab's row and a weight."""
    return next(tiles for tiles in (4, 2, 1) if tiles * rows <= target.vector_registers() - 2 or tiles == 1)


def tile_vectors(rows: int) -> int:
    """Vectors of a full tile: its sums, the vectors of a slab's row and one weight fit the registers."""
    return max(1, min((target.vector_registers() - 1) // (rows + 1), MOST_VECTORS))
