"""Read the model files of before GGUF (`.ggmlv3.q4_0.bin`, March to August 2023), presented as GGUF.

Source: read off the tools that wrote them. u32 magic, u32 version (not in "ggml"), seven i32 (n_vocab, n_embd, n_mult,
n_head, n_layer, n_rot, ftype), the vocabulary (u32 length, bytes, f32 score), then tensors to the end of the file:
u32 n_dims, u32 name length, u32 type, u32 extents (fastest first), name, zeros up to a 32-byte file offset ("ggjt"),
data. Type numbers are GGUF's and ggjt v3's blocks are GGUF's byte for byte.
"""

import os
import re
from dataclasses import dataclass

import numpy as np

from llamacy.errors import shown
from llamacy.formats.architectures import MATRICES, NORMS, WHOLE_MODEL
from llamacy.formats.ggml_blocks import converter, stored_bytes
from llamacy.formats.layout import ModelFile, check_distinct, tensor_info
from llamacy.formats.mapped import Cursor
from llamacy.formats.strings import StringArray
from llamacy.kernels.text.scan import scan_strings


@dataclass(frozen=True)
class Layout:
    """How one generation of files differs from the next."""

    format: str
    version: int
    has_scores: bool
    alignment: int
    neighbour_nibbles: bool  # see ggml_blocks
    wide_scales: bool

    @property
    def is_current(self):
        """Whether blocks are GGUF's byte for byte."""
        return not (self.neighbour_nibbles or self.wide_scales)


_TENSOR_NAMES = {
    f"{part.meta}.weight": f"{part.name}.weight" for part in (*WHOLE_MODEL, *MATRICES, *NORMS) if part.meta
}
_LAYER = re.compile(r"layers\.(0|[1-9]\d{0,4})\.(.+)")
# Original LLaMA's tables of rotary frequencies, which follow from the head size: GGUF has no place for them.
_DERIVED = re.compile(r"(layers\.\d+\.attention\.inner_attention\.)?rope\.freqs")

# The magic as it stands in the file: u32 "ggjt" is stored as b"tjgg".
_UNVERSIONED, _GGMF, _GGJT = b"lmgg", b"fmgg", b"tjgg"
MAGICS = (_UNVERSIONED, _GGMF, _GGJT)
LAYOUTS = {
    (_UNVERSIONED, 0): Layout("ggml", 0, False, 1, True, True),
    (_GGMF, 1): Layout("ggmf", 1, True, 1, True, True),
    (_GGJT, 1): Layout("ggjt", 1, True, 32, True, True),
    (_GGJT, 2): Layout("ggjt", 2, True, 32, False, True),
    (_GGJT, 3): Layout("ggjt", 3, True, 32, False, False),
}

# What the files do not say: the tools' own defaults of that time.
RMS_EPS, ROPE_THETA, N_CTX = 5e-6, 10000.0, 2048
UNKNOWN, CONTROL, NORMAL, BYTE = 2, 3, 1, 6
_FIRST_BYTE, _FIRST_PIECE = 3, 259
_SPACE = "\u2581".encode()


def read_ggml(source):
    """Return the ModelFile of an open MappedFile that begins with one of MAGICS."""
    magic = source.bytes[:4].tobytes()
    cursor = Cursor(source, 4)
    version = 0 if magic == _UNVERSIONED else cursor.u32("the version")
    layout = LAYOUTS.get((magic, version))
    if layout is None:
        name = magic[::-1].decode()
        raise source.error(f"legacy {name} version {version} is unknown", "damaged, or not a model of this kind")
    numbers = _hyperparameters(cursor)
    metadata = _vocabulary(cursor, numbers["n_vocab"], layout)
    tensors = _tensors(cursor, layout)
    metadata = {**_architecture(source, numbers, tensors), **metadata}
    types = {
        key: "f32" if isinstance(value, float) else "u32"
        for key, value in metadata.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    convert = None if layout.is_current else _named_converter(source, layout)
    return ModelFile([source], layout.format, version, metadata, tensors, types, convert)


def _named_converter(source, layout):
    """Return the layout's converter with the file's name on its errors."""
    convert = converter(layout.wide_scales, layout.neighbour_nibbles)

    def named(info, content):
        try:
            return convert(info, content)
        except OverflowError as error:
            raise source.error(f"tensor {info.name}: {error}", "the file is damaged") from None

    return named


def _hyperparameters(cursor):
    names = ("n_vocab", "n_embd", "n_mult", "n_head", "n_layer", "n_rot", "ftype")
    numbers = dict(zip(names, cursor.unpack("7i", "the hyperparameters"), strict=True))
    for name in ("n_vocab", "n_embd", "n_head", "n_layer"):
        if numbers[name] <= 0:
            raise cursor.source.error(f"{name} is {numbers[name]}, wanted a positive number", "the file is damaged")
    if numbers["n_embd"] % numbers["n_head"]:
        what = f"n_embd {numbers['n_embd']} is no multiple of n_head {numbers['n_head']}"
        raise cursor.source.error(what, "damaged, or not a LLaMA model")
    return numbers


def _vocabulary(cursor, n_vocab, layout):
    """Return tokenizer.ggml.* as GGUF has it. Legacy files store plain spaces and raw bytes."""
    source, trailer = cursor.source, 4 if layout.has_scores else 0
    if n_vocab > cursor.left // (4 + trailer):
        raise source.error(f"truncated or damaged: {n_vocab} tokens do not fit", "copy or download it again")
    starts, lengths = np.empty(n_vocab, np.int64), np.empty(n_vocab, np.int64)
    end = scan_strings(source.bytes, cursor.position, 4, starts, lengths, trailer)
    if end < 0:
        raise source.error(f"truncated or damaged: token {-1 - end} leaves the file", "copy or download it again")
    cursor.position = end
    tokens, types = _tokens(StringArray(source.bytes, starts, lengths))
    if layout.has_scores:
        scores = source.bytes[(starts + lengths)[:, None] + np.arange(4)].view("<f4")[:, 0].copy()
    else:
        scores = llama_scores(tokens)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
    }


def llama_scores(tokens):
    """Return LLaMA's SentencePiece scores, float32: they count down from the first piece; spaces alone stand last.

    The oldest files left them out. A test compares with the scores that later files have.
    """
    scores = np.minimum(0, _FIRST_PIECE - np.arange(len(tokens))).astype(np.float32)
    for i in np.flatnonzero(tokens.lengths >= len(_SPACE)):
        if tokens.bytes(i) == _SPACE * (int(tokens.lengths[i]) // len(_SPACE)):
            scores[i] = -1e9
    return scores


def _tokens(stored):
    """Return (StringArray as GGUF writes LLaMA's vocabulary, int32 token types)."""
    n_vocab = len(stored)
    pieces = [stored.bytes(i).replace(b" ", _SPACE) for i in range(n_vocab)]
    types = np.full(n_vocab, NORMAL, np.int32)
    for i, (name, kind) in enumerate([("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)][:n_vocab]):
        pieces[i], types[i] = name.encode(), kind
    for i in range(_FIRST_BYTE, min(n_vocab, _FIRST_PIECE)):
        pieces[i], types[i] = b"<0x%02X>" % (i - _FIRST_BYTE), BYTE
    return StringArray.of(pieces), types


def _tensors(cursor, layout):
    """Return the TensorInfo of everything between the cursor and the end of the file, under GGUF's names."""
    source, found = cursor.source, []
    while cursor.left:
        n_dims, length, number = cursor.unpack("3I", "a tensor's header")
        if not 1 <= n_dims <= 2:
            raise source.error(f"tensor {len(found)} has {n_dims} dimensions, wanted 1 or 2", "the file is damaged")
        extents = cursor.unpack("I" * n_dims, "a tensor's shape")
        theirs = cursor.name(length, 256, "tensor name")
        derived = _DERIVED.fullmatch(theirs) is not None
        name = theirs if derived else _gguf_name(source, theirs)
        cursor.take(-cursor.position % layout.alignment, "padding")
        info = tensor_info(source, name, number, extents[::-1], cursor.position)
        nbytes = info.nbytes if layout.is_current else stored_bytes(info.type, info.nbytes, layout.wide_scales)
        if nbytes is None:
            what = f"tensor {shown(name)} is {info.type.name}, which {layout.format} version {layout.version} never had"
            raise source.error(what, "the file is damaged")
        cursor.take(nbytes, "tensor", name)
        if not derived:
            found.append(info)
    check_distinct(source, found)
    return found


def _gguf_name(source, name):
    layer = _LAYER.fullmatch(name)
    known = _TENSOR_NAMES.get(layer[2] if layer else name)
    if known is None:
        raise source.error(f"unknown tensor {shown(name)}", "wanted a LLaMA model; other families need a GGUF file")
    return f"blk.{layer[1]}.{known}" if layer else known


def _architecture(source, numbers, tensors):
    """Return general.* and llama.*, with what the header leaves out taken from the tensors' shapes."""
    shapes = {info.name: info.shape for info in tensors}
    n_embd, n_head = numbers["n_embd"], numbers["n_head"]
    for name in ("blk.0.ffn_gate.weight", "blk.0.attn_k.weight", "token_embd.weight"):
        if len(shapes.get(name, ())) != 2 or shapes[name][1] != n_embd:
            what = f"tensor {name} is {shapes.get(name, 'missing')}, wanted rows of {n_embd}"
            raise source.error(what, "damaged, or one part of several")
    head_dim = n_embd // n_head
    n_kv = shapes["blk.0.attn_k.weight"][0]
    if n_kv == 0 or n_kv % head_dim:
        raise source.error(f"attn_k has {n_kv} rows, wanted a multiple of {head_dim}", "the file is damaged")
    return {
        "general.architecture": "llama",
        "general.name": os.path.basename(source.path),
        "general.file_type": max(0, numbers["ftype"]),
        "general.quantization_version": 2,
        "llama.vocab_size": numbers["n_vocab"],
        "llama.context_length": N_CTX,
        "llama.embedding_length": n_embd,
        "llama.block_count": numbers["n_layer"],
        "llama.feed_forward_length": shapes["blk.0.ffn_gate.weight"][0],
        "llama.attention.head_count": n_head,
        "llama.attention.head_count_kv": n_kv // head_dim,
        "llama.attention.layer_norm_rms_epsilon": RMS_EPS,
        "llama.rope.dimension_count": head_dim,
        "llama.rope.freq_base": ROPE_THETA,
    }
