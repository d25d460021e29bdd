"""The tensor types of ggml with the numbers that files store: the weight types and the few that hold something else.

Source: the `gguf` package's constants and ggml.h; a test compares this table with the package.
"""

from dataclasses import dataclass

from llamacy.kernels.weight_types import WEIGHT_TYPES


@dataclass(frozen=True)
class QuantType:
    """One storage type: `block_size` elements stored in `type_size` bytes."""

    name: str
    number: int
    block_size: int
    type_size: int

    def row_bytes(self, n_elements):
        """Return the bytes of a row of `n_elements`, which must be whole blocks."""
        return n_elements // self.block_size * self.type_size


# Types that files may hold and no product knows: name, number, elements and bytes of a block
_OTHERS = [
    ("Q8_1", 9, 32, 36),
    ("I8", 24, 1, 1),
    ("I16", 25, 1, 2),
    ("I32", 26, 1, 4),
    ("I64", 27, 1, 8),
    ("F64", 28, 1, 8),
    ("NVFP4", 40, 64, 36),
    ("Q1_0", 41, 128, 18),
]
_ROWS = [(kind.name, kind.number, kind.block, kind.block_bytes) for kind in WEIGHT_TYPES] + _OTHERS

TYPES = {row[1]: QuantType(*row) for row in sorted(_ROWS, key=lambda row: row[1])}

# Type -> general.file_type of a model whose matrices are of it (llama.h's llama_ftype; its mixes have others).
FILE_TYPES = {kind.name: kind.file_type for kind in WEIGHT_TYPES if kind.file_type is not None}

# Numbers that once stood in files and whose layouts ggml gave up; named so that an error can say so.
REMOVED = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}

_BY_NAME = {quant_type.name: quant_type for quant_type in TYPES.values()}


def by_name(name):
    """Return the QuantType called `name` (any case); KeyError if there is none."""
    return _BY_NAME[name.upper()]
