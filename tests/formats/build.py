"""Files put together by hand, byte by byte and without the package under test: right ones and wrong ones."""

import struct

import numpy as np

# GGUF's numbers of value types.
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
LETTERS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


class Gguf:
    """A GGUF file in the making; every count and length can be lied about."""

    def __init__(self, version=3, order="<"):
        self.version, self.order = version, order
        self.size = order + ("I" if version == 1 else "Q")
        self.keys, self.tensors, self.data = [], [], b""
        self.n_keys = self.n_tensors = None
        self.alignment = 32

    def number(self, letter, value):
        return struct.pack(self.order + letter, value)

    def string(self, text, length=None):
        raw = text.encode() if isinstance(text, str) else text
        return struct.pack(self.size, len(raw) if length is None else length) + raw

    def value(self, kind, value):
        """Return the bytes of a value; for ARRAY `value` is (element type, list)."""
        if kind == STRING:
            return self.string(value)
        if kind == ARRAY:
            element, items = value
            return self.array(element, len(items), b"".join(self.value(element, item) for item in items))
        return self.number(LETTERS[kind], value)

    def array(self, element, count, content):
        return self.number("I", element) + struct.pack(self.size, count) + content

    def key(self, key, kind, value, raw=None):
        content = self.value(kind, value) if raw is None else raw
        self.keys.append(self.string(key) + self.number("I", kind) + content)
        return self

    def tensor(self, name, shape, number, content=b"", offset=None, n_dims=None):
        """Add a tensor; `shape` as the file has it (fastest axis first), `content` goes to the data."""
        place = len(self.data) if offset is None else offset
        extents = b"".join(struct.pack(self.size, extent) for extent in shape)
        dims = self.number("I", len(shape) if n_dims is None else n_dims)
        tail = self.number("I", number) + self.number("Q", place)
        self.tensors.append(self.string(name) + dims + extents + tail)
        self.data += content + bytes(-len(content) % self.alignment)
        return self

    def bytes(self):
        counts = [(self.n_tensors, self.tensors), (self.n_keys, self.keys)]
        head = b"GGUF" + self.number("I", self.version)
        head += b"".join(struct.pack(self.size, len(rows) if told is None else told) for told, rows in counts)
        head += b"".join(self.keys) + b"".join(self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data


def every_value(file):
    """Add one key of each kind to a Gguf and return what a reader must say of them."""
    samples = {U8: 200, I8: -5, U16: 60000, I16: -300, U32: 4_000_000_000, I32: -70000, F32: 0.5, U64: 2**63 + 1}
    samples |= {I64: -(2**40), F64: 0.1, BOOL: 1}
    wanted = {}
    for kind, value in samples.items():
        file.key(f"scalar.{kind}", kind, value)
        file.key(f"array.{kind}", ARRAY, (kind, [value, value]))
        wanted[f"scalar.{kind}"] = bool(value) if kind == BOOL else value
        wanted[f"array.{kind}"] = [wanted[f"scalar.{kind}"]] * 2
    file.key("text", STRING, "讲一个笑话。\n").key("texts", ARRAY, (STRING, ["a", "", "é", "\0b"]))
    file.key("nested", ARRAY, (ARRAY, [(U8, [1, 2]), (STRING, ["x"]), (F32, [])]))
    file.key("empty", ARRAY, (I32, []))
    return wanted | {
        "text": "讲一个笑话。\n",
        "texts": ["a", "", "é", "\0b"],
        "nested": [[1, 2], ["x"], []],
        "empty": [],
    }


MAGICS = {("ggml", 0): 0x67676D6C, ("ggmf", 1): 0x67676D66}
MAGICS |= {("ggjt", version): 0x67676A74 for version in (1, 2, 3)}

# Head sizes of a model that fits in a few kilobytes: two query heads share one KV head.
N_VOCAB, N_EMBD, N_HEAD, N_KV, N_LAYER, N_FF = 262, 64, 4, 32, 1, 96


def legacy_shapes():
    """Return legacy tensor name -> shape in NumPy's order of the small model."""
    layer = {
        "attention.wq.weight": (N_EMBD, N_EMBD),
        "attention.wk.weight": (N_KV, N_EMBD),
        "attention.wv.weight": (N_KV, N_EMBD),
        "attention.wo.weight": (N_EMBD, N_EMBD),
        "attention_norm.weight": (N_EMBD,),
        "feed_forward.w1.weight": (N_FF, N_EMBD),
        "feed_forward.w2.weight": (N_EMBD, N_FF),
        "feed_forward.w3.weight": (N_FF, N_EMBD),
        "ffn_norm.weight": (N_EMBD,),
    }
    shapes = {"tok_embeddings.weight": (N_VOCAB, N_EMBD), "norm.weight": (N_EMBD,)}
    shapes["output.weight"] = (N_VOCAB, N_EMBD)
    return shapes | {f"layers.0.{name}": shape for name, shape in layer.items()}


def legacy(format="ggjt", version=3, number=0, encode=lambda values: values.tobytes(), ftype=0, seed=0):
    """Return (bytes of a legacy file, name -> float32 values). Matrices are stored as type `number` by `encode`."""
    rng = np.random.default_rng(seed)
    head = struct.pack("<I", MAGICS[format, version])
    if format != "ggml":
        head += struct.pack("<I", version)
    parts = [head, struct.pack("<7i", N_VOCAB, N_EMBD, 32, N_HEAD, N_LAYER, N_EMBD // N_HEAD, ftype)]
    words = [b" \xe2\x81\x87 ", b"", b""] + [bytes([i]) for i in range(256)] + [b" t", b"er", b" a b"]
    for i, word in enumerate(words):
        score = struct.pack("<f", -float(max(0, i - 259))) if format != "ggml" else b""
        parts.append(struct.pack("<I", len(word)) + word + score)
    values = {}
    for name, shape in legacy_shapes().items():
        values[name] = rng.standard_normal(shape).astype(np.float32)
        matrix = len(shape) == 2
        content = encode(values[name]) if matrix else values[name].tobytes()
        kind = number if matrix else 0
        parts.append(struct.pack("<3I", len(shape), len(name), kind) + struct.pack(f"<{len(shape)}I", *shape[::-1]))
        parts.append(name.encode())
        if format == "ggjt":
            parts.append(bytes(-sum(map(len, parts)) % 32))
        parts.append(content)
    return b"".join(parts), values
