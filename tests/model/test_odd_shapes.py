"""Llamas of shapes that no family has, written and read back by the `gguf` package, against a float64 llama of our own.

Heads of 40, 80, 96 and 128 elements that do not make up n_embd, one KV head, odd multiples of 32, vocabularies that
no tile divides, with and without an output matrix: every type that `bin/quantize` writes for the kernels. Bounds as in
test_forward.py: 2e-5 of the largest logit with f32 inputs; with 8 bits a normal block's numbers move by 0.5 %.
"""

from dataclasses import dataclass

import gguf
import numpy as np
import pytest

from llamacy.cli import quantize
from llamacy.cli.run import run
from llamacy.model import load_model
from tests.model.tiny import logits_of

SIMPLE, SEARCHED = ["F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"], ["Q4_K_M", "Q5_K_S", "Q6_K"]
N_LAYER, EPS, THETA = 2, 1e-5, 10000.0


@dataclass(frozen=True)
class Shape:
    """A llama's sizes in elements; tied: the embedding is the output matrix too."""

    n_embd: int
    n_ff: int
    n_head: int
    n_kv: int
    head_dim: int
    n_vocab: int
    tied: bool

    def matrices(self):
        """Return {name within a layer: (n_out, n_in)}."""
        q, kv = self.n_head * self.head_dim, self.n_kv * self.head_dim
        return {
            "attn_q": (q, self.n_embd), "attn_k": (kv, self.n_embd), "attn_v": (kv, self.n_embd),
            "attn_output": (self.n_embd, q), "ffn_gate": (self.n_ff, self.n_embd), "ffn_up": (self.n_ff, self.n_embd),
            "ffn_down": (self.n_embd, self.n_ff),
        }  # fmt: skip


# heads of 40 in rows of 1280, which 256 divides: the K types
WHOLE = Shape(256, 768, 32, 1, 40, 301, tied=True)
SHAPES = {
    "heads of 40, one for keys": Shape(288, 352, 4, 1, 40, 301, tied=True),
    "heads of 80": Shape(160, 224, 6, 2, 80, 263, tied=False),
    "heads of 96, all their own": Shape(160, 352, 5, 5, 96, 277, tied=False),
    "heads of 128, seven to one": Shape(288, 96, 7, 1, 128, 305, tied=True),
}


def write(path, shape, seed=1):
    """Write a random llama in F32 with the gguf package."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_block_count(N_LAYER)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(THETA)
    writer.add_layer_norm_rms_eps(EPS)
    pieces = ["<unk>", "<s>", "</s>", *(f"<{i}>" for i in range(3, shape.n_vocab))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * shape.n_vocab)
    writer.add_token_types([2, 3, 3] + [1] * (shape.n_vocab - 3))

    def add(name, *sizes):
        values = rng.standard_normal(sizes) / np.sqrt(sizes[1]) if len(sizes) > 1 else rng.uniform(0.5, 1.5, sizes)
        writer.add_tensor(f"{name}.weight", (values if name != "token_embd" else 16 * values).astype(np.float32))

    add("token_embd", shape.n_vocab, shape.n_embd)
    for i in range(N_LAYER):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{i}.{name}", shape.n_embd)
        for name, sizes in shape.matrices().items():
            add(f"blk.{i}.{name}", *sizes)
    add("output_norm", shape.n_embd)
    if not shape.tied:
        add("output", shape.n_vocab, shape.n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read(path):
    """Return {name: float64} of a file, its blocks read by the gguf package."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found[tensor.name.removesuffix(".weight")] = values.astype(np.float64).reshape(tensor.shape[::-1])
    return found


def forward(shape, weights, tokens):
    """Return the logits (T, V) of a llama with rotary pairs of neighbours."""
    n, d = np.arange(len(tokens)), shape.head_dim
    angles = (n[:, None] * THETA ** (-np.arange(0, d, 2) / d))[:, None]
    turn = np.cos(angles) + 1j * np.sin(angles)

    def norm(x, name):
        return x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + EPS) * weights[name]

    def heads(x, name, turned=True):
        y = (x @ weights[name].T).reshape(len(n), -1, d)
        return ((y[..., ::2] + 1j * y[..., 1::2]) * turn).view(np.float64) if turned else y

    x = weights["token_embd"][tokens]
    for i in range(N_LAYER):
        layer = f"blk.{i}."
        h = norm(x, layer + "attn_norm")
        q, k = heads(h, layer + "attn_q"), heads(h, layer + "attn_k")
        k, v = (np.repeat(y, shape.n_head // shape.n_kv, axis=1) for y in (k, heads(h, layer + "attn_v", turned=False)))
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(d)
        share = np.exp(np.where(n[:, None] >= n, scores, -np.inf))
        mixed = np.einsum("hij,jhd->ihd", share / share.sum(axis=2, keepdims=True), v)
        x = x + mixed.reshape(len(n), -1) @ weights[layer + "attn_output"].T
        h = norm(x, layer + "ffn_norm")
        gate = h @ weights[layer + "ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ weights[layer + "ffn_up"].T)) @ weights[layer + "ffn_down"].T
    return norm(x, "output_norm") @ weights.get("output", weights["token_embd"]).T


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A function shape -> path of its F32 file, written once."""
    folder = tmp_path_factory.mktemp("shapes")
    paths = {}

    def path_of(shape):
        if shape not in paths:
            paths[shape] = write(folder / f"{len(paths)}.gguf", shape)
        return paths[shape]

    return path_of


@pytest.mark.parametrize(
    "shape, mix",
    [(shape, mix) for shape in SHAPES.values() for mix in SIMPLE] + [(WHOLE, mix) for mix in SIMPLE[1:] + SEARCHED],
    ids=lambda value: value if isinstance(value, str) else f"{value.n_head} x {value.head_dim}",
)
def test_logits_of_odd_shapes(source, tmp_path, shape, mix):
    path = tmp_path / "model.gguf"
    assert run(quantize.main, [str(source(shape)), str(path), mix, "-t", "1"]) == 0
    tokens = np.random.default_rng(2).integers(0, shape.n_vocab, 27)
    exact = forward(shape, read(path), tokens)
    found = logits_of(load_model(path, activations="f32", threads=2), tokens)
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-5 * np.abs(exact).max())
    rounded = logits_of(load_model(path, threads=1), tokens)
    assert np.sqrt(np.square(rounded - exact).mean()) < 0.03 * exact.std()
    # the same bits on three threads, a few tokens at a time
    session, rows = load_model(path, threads=3).new_session(1, 32), []
    for start, stop in ((0, 5), (5, 6), (6, 23), (23, 24), (24, 27)):
        n = np.arange(start, stop)
        rows.append(session.step(tokens[n], n, 0 * n, n - start))
    np.testing.assert_array_equal(np.concatenate(rows), rounded)
