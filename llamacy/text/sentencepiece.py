"""Read SentencePiece's tokenizer.model: pieces, scores, kinds and the few settings that matter.

Source: sentencepiece_model.proto. ModelProto: 1 pieces (1 piece, 2 score f32, 3 type: 1 normal, 2 unknown, 3 control,
4 user defined, 5 unused, 6 byte: GGUF's token types), 2 trainer_spec (3 model_type: 1 unigram, 2 BPE; 40 to 43 the ids
of unk, bos, eos, pad), 3 normalizer_spec (3 add_dummy_prefix). Wire format: protobuf's varints and lengths.
"""

import struct
from dataclasses import dataclass, field

from llamacy.errors import LlamacyError

BPE = 2
NORMAL = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_PIECES = 1 << 21


@dataclass
class SentencePieceModel:
    """pieces: list of bytes; scores: of float; types: of GGUF's token types; ids: of unk, bos, eos, pad (-1: none)."""

    pieces: list = field(default_factory=list)
    scores: list = field(default_factory=list)
    types: list = field(default_factory=list)
    ids: dict = field(default_factory=lambda: {"unk": 0, "bos": 1, "eos": 2, "pad": -1})
    model_type: int = 1
    add_dummy_prefix: bool = True


def is_sentencepiece(content):
    """Tell whether bytes begin as a ModelProto whose first field is a piece."""
    return content[:1] == b"\x0a" and b"\x0a" in content[1:8]


def read_sentencepiece(content, path):
    """Return the SentencePieceModel in the bytes of a tokenizer.model; LlamacyError where they are damaged."""
    found = SentencePieceModel()
    try:
        for number, value in _fields(content):
            if number == 1:
                _piece(found, value)
            elif number == 2:
                spec = dict(_fields(value))
                found.model_type = int(spec.get(3, 1))
                for key, name in ((40, "unk"), (41, "bos"), (42, "eos"), (43, "pad")):
                    found.ids[name] = _signed(spec.get(key, found.ids[name]))
            elif number == 3:
                found.add_dummy_prefix = bool(dict(_fields(value)).get(3, True))
            if len(found.pieces) > _MAX_PIECES:
                raise ValueError(f"more than {_MAX_PIECES} pieces")
    except (ValueError, TypeError, IndexError, struct.error) as error:
        raise LlamacyError(f"{path}: damaged SentencePiece model: {error}; download it again") from None
    if not found.pieces:
        raise LlamacyError(f"{path}: a SentencePiece model without pieces; download it again")
    return found


def _piece(found, value):
    fields = dict(_fields(value))
    piece, score = fields.get(1, b""), fields.get(2, b"\0\0\0\0")
    if not isinstance(piece, bytes) or not isinstance(score, bytes):
        raise ValueError(f"piece {len(found.pieces)} is of another kind")
    found.pieces.append(piece)
    found.scores.append(struct.unpack("<f", score)[0])
    found.types.append(int(fields.get(3, NORMAL)))


def _signed(value):
    """Return protobuf's int32, which stores negative numbers as 64 bits."""
    return int(value) - (1 << 64) if int(value) >> 63 else int(value)


def _fields(content):
    """Yield (field number, value) of a message: an int, or bytes (also of fixed-size numbers)."""
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        kind = key & 7
        if kind == _VARINT:
            value, position = _varint(content, position)
        elif kind in (_FIXED32, _FIXED64, _BYTES):
            size = {_FIXED32: 4, _FIXED64: 8}.get(kind)
            if size is None:
                size, position = _varint(content, position)
            if size > len(content) - position:
                raise ValueError(f"a field of {size} bytes leaves the file")
            value, position = content[position : position + size], position + size
        else:
            raise ValueError(f"a field of unknown kind {kind}")
        yield key >> 3, value


def _varint(content, position):
    """Return (number, where it ends)."""
    value = shift = 0
    while True:
        byte = content[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value & (1 << 64) - 1, position
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
