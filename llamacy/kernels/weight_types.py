"""The weight types: one row each, from which file formats, kernels and their twins take what they say of a type.

setup.py reads it too, before anything is built: the templates of pyx/ (`*.pyx.tp`) are filled from these rows. A type
is its row, a function that reads its blocks (pyx/types), where it is written one that rounds or searches, and a twin
(llamacy/kernels/reference); the rest is made of the row.
"""

from dataclasses import dataclass

TILE_ROWS, TILE_COLS = 16, 32  # of a tile, see pyx/products/tiles.pxd
CODES = TILE_ROWS * TILE_COLS  # bytes of a tile's codes where each has one


@dataclass(frozen=True)
class Tiles:
    """How the products keep a type: a layout of pyx/products/tiles.pxd and its constants.

    layout      floats, nibbles, s8, wide, scaled or halves
    tile_bytes  of 16 rows x 32 columns
    fifth       nibbles: a fifth bit of each code beside them
    has_min     nibbles: a minimum beside each scale
    offset      nibbles: what is taken from a code; the middle of the codes is `center`
    f32_scales  nibbles: scales are f32, two levels of them multiplied out; else f16
    fold        wide, halves: what becomes of a group's scales: ONE_SCALE, FOLD or FOLD_MIN
    """

    layout: str
    tile_bytes: int
    fifth: bool = False
    has_min: bool = False
    offset: int = 0
    f32_scales: bool = False
    fold: str = "ONE_SCALE"

    @property
    def depth(self):
        """Products of 4 columns that int16 sums hold; 0: inputs of 16 bits or f32 instead."""
        return {"nibbles": 4 if self.fifth else 8}.get(self.layout, 0)

    @property
    def center(self):
        """The middle of a nibble's codes."""
        return 16 if self.fifth else 8


def nibbles(fifth=False, has_min=False, f32_scales=False):
    """Return the Tiles of 4-bit codes, or 5-bit ones."""
    scales = TILE_ROWS * (4 if f32_scales else 2) * (2 if has_min else 1)
    offset = 0 if has_min else 16 if fifth else 8
    return Tiles("nibbles", CODES // 2 + (CODES // 8 if fifth else 0) + scales, fifth, has_min, offset, f32_scales)


def floats(size):
    """Return the Tiles of numbers of `size` bytes, kept as they are."""
    return Tiles("floats", CODES * size)


S8 = Tiles("s8", CODES + 2 * TILE_ROWS)
# -12 to 12, as codes of five bits: products of 8-bit inputs, in two thirds of the memory of whole bytes.
LEVELS = nibbles(fifth=True, f32_scales=True)
WIDE = Tiles("wide", CODES + 4 * TILE_ROWS)
FOLDED = Tiles("wide", CODES + 4 * TILE_ROWS, fold="FOLD")
SCALED = Tiles("scaled", CODES + 4 * TILE_ROWS + 4 * TILE_ROWS)
HALVES = Tiles("halves", CODES + 3 * 4 * TILE_ROWS, fold="FOLD_MIN")


@dataclass(frozen=True)
class Scales:
    """Where a damaged file shows: in four bytes at `at` of a block all bits of `first`, or of `second`, are set."""

    at: int
    first: int
    second: int


# A float is infinite or none where all bits of its exponent are set: of the f16 in the first or last two of four bytes.
LOW, HIGH = 0x7C00, 0x7C000000


def f16(at):
    """Return the Scales of one f16 at byte `at`."""
    return Scales(at, LOW, LOW) if at == 0 else Scales(at - 2, HIGH, HIGH)


def two_f16(at):
    """Return the Scales of two neighbours, scale and minimum."""
    return Scales(at, LOW, HIGH)


@dataclass(frozen=True)
class WeightType:
    """One type.

    name, number  GGUF's
    block         elements of a block in the file, block_bytes what it takes there
    tiles         how the products keep it
    scales        which bits of a block show that it is damaged
    file_type     general.file_type of a model whose matrices are of it (llama.h's llama_ftype), None: there is none
    home          the module of pyx/types that reads it: group_<id>, 32 neighbours at a time; in "simple" whole rows,
                  dequantize_row_<id>
    rounds        the module with quantize_row_<id>, as gguf.quants rounds; "": there is no such rule
    searches      the module with search_row_<id>, which looks for the scales; "": there is none
    """

    name: str
    number: int
    block: int
    block_bytes: int
    tiles: Tiles
    scales: Scales
    file_type: int | None = None
    home: str = "kquants"
    rounds: str = ""
    searches: str = ""

    @property
    def id(self):
        """Its name as part of functions' names."""
        return self.name.lower()

    @property
    def reads(self):
        """What its home reads: "group"s or whole rows of "block"s."""
        return "block" if self.home == "simple" else "group"

    @property
    def step(self):
        """Bytes from one place of `scales` to the next: a block, or four bytes of floats."""
        return self.block_bytes if self.block > 1 else 4

    @property
    def n_groups(self):
        """Groups of 32 in a block."""
        return self.block // TILE_COLS

    @property
    def two_groups(self):
        """Has it a product of two row groups at once? Five-bit codes would run out of registers."""
        return self.tiles.layout == "nibbles" and not self.tiles.fifth


_SIMPLE = {"home": "simple", "rounds": "simple"}
_SEARCHED = {"searches": "kquantize"}

WEIGHT_TYPES = (
    WeightType("F32", 0, 1, 4, floats(4), Scales(0, 0x7F800000, 0x7F800000), 0, **_SIMPLE),
    # two at once
    WeightType("F16", 1, 1, 2, floats(2), Scales(0, LOW, HIGH), 1, **_SIMPLE),
    WeightType("BF16", 30, 1, 2, floats(2), Scales(0, 0x7F80, 0x7F800000), 32, **_SIMPLE),
    WeightType("Q4_0", 2, 32, 18, nibbles(), f16(0), 2, **_SIMPLE, **_SEARCHED),
    WeightType("Q4_1", 3, 32, 20, nibbles(has_min=True), two_f16(0), 3, **_SIMPLE, **_SEARCHED),
    WeightType("Q5_0", 6, 32, 22, nibbles(fifth=True), f16(0), 8, **_SIMPLE, **_SEARCHED),
    WeightType("Q5_1", 7, 32, 24, nibbles(fifth=True, has_min=True), two_f16(0), 9, **_SIMPLE, **_SEARCHED),
    WeightType("Q8_0", 8, 32, 34, S8, f16(0), 7, **_SIMPLE),
    WeightType("Q2_K", 10, 256, 84, HALVES, two_f16(80), 10, **_SEARCHED),
    WeightType("Q3_K", 11, 256, 110, FOLDED, f16(108), 12, **_SEARCHED),
    WeightType("Q4_K", 12, 256, 144, nibbles(False, True, True), two_f16(0), 15, **_SEARCHED),
    WeightType("Q5_K", 13, 256, 176, nibbles(True, True, True), two_f16(0), 17, **_SEARCHED),
    WeightType("Q6_K", 14, 256, 210, SCALED, f16(208), 18, **_SEARCHED),
    WeightType("IQ4_NL", 20, 32, 18, WIDE, f16(0), 25, **_SEARCHED),
    WeightType("IQ4_XS", 23, 256, 136, WIDE, f16(0), 30, **_SEARCHED),
    # the exponent, one byte; 255 is none, with 254 and 253 the largest code, 12 * 2^(e - 128), is above any f32
    WeightType("MXFP4", 39, 32, 17, LEVELS, Scales(0, 0xFE, 0xFD), 38, rounds="simple"),
    # f32 d of 2^121 and more: d q is infinite
    WeightType("Q8_K", 15, 256, 292, WIDE, Scales(0, HIGH, HIGH)),
    WeightType("TQ1_0", 34, 256, 54, WIDE, f16(52), rounds="simple"),
    WeightType("TQ2_0", 35, 256, 66, WIDE, f16(64), rounds="simple"),
    WeightType("IQ2_XXS", 16, 256, 66, WIDE, f16(0), home="iquants"),
    WeightType("IQ2_XS", 17, 256, 74, SCALED, f16(0), home="iquants"),
    WeightType("IQ2_S", 22, 256, 82, SCALED, f16(0), home="iquants"),
    WeightType("IQ3_XXS", 18, 256, 98, WIDE, f16(0), home="iquants"),
    WeightType("IQ3_S", 21, 256, 110, WIDE, f16(0), home="iquants"),
    WeightType("IQ1_S", 19, 256, 50, WIDE, f16(0), home="iquants"),
    # the top nibbles of four u16 are the f16's, lowest first: its exponent is in the third and the fourth
    WeightType("IQ1_M", 29, 256, 56, SCALED, Scales(52, 0x7000C000, 0x7000C000), home="iquants"),
)

BY_NAME = {kind.name: kind for kind in WEIGHT_TYPES}
# Modules of pyx/types whose headers are made of the table
HOMES = sorted({home for kind in WEIGHT_TYPES for home in (kind.home, kind.rounds, kind.searches) if home})
