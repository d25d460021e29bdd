"""The compiled step: what may not change its results (recomputing, entering midway, leaving out rows), and dropout."""

import os

import numpy as np
import pytest

from llamacy import kernels
from llamacy.formats.lora import LoraPair
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from llamacy.train.options import TARGETS, TrainOptions
from llamacy.train.samples import Sample
from llamacy.train.trainer import Trainer, pack
from tests.model.tiny import tokens_of, use_isa, write_llama

DEEP = twin.Config(n_vocab=97, n_embd=64, n_head=4, n_head_kv=2, n_ff=96, n_layer=4)
KEY = 0x1234_5678_9ABC_DEF0
WIDTH = 64


def samples(lengths=(9, 21, 5, 30)):
    """Samples of which only some tokens are trained on, the last one of them not at the end."""
    return [Sample(tokens_of(DEEP, n, seed=n).astype(np.int32), np.arange(n) % 3 == 1) for n in lengths]


@pytest.fixture
def make(tmp_path):
    """A function that sets a Trainer up on a model of 4 layers, with pairs whose B is not zero."""

    def trainer(
        type_name="Q4_0",
        activations="int8",
        threads=2,
        num_layers=None,
        targets=tuple(TARGETS),
        pack_tokens=None,
        **change,
    ):
        path = tmp_path / f"{type_name}.gguf"
        if not path.exists():
            write_llama(path, DEEP, twin.random_weights(DEEP, 5), type_name)
        options = TrainOptions(**({"n_ctx": 64, "max_grad_norm": 0.0} | change))
        made = Trainer(load_model(path, activations=activations, threads=threads), options, pack_tokens)
        made.init_lora(4, 8.0, targets, 7, None, num_layers)
        rng = np.random.default_rng(3)
        made._pass.params[:] = rng.normal(0, 0.05, len(made._pass.params))
        return made

    return trainer


def one_pass(made, packed, **how):
    """The loss of one pass and a copy of its gradients."""
    made._pass.grads.fill(0)
    loss = made._pass.run(*packed, 1.0, **how)
    return loss, made._pass.grads.copy()


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize(("activations", "num_layers"), [("int8", None), ("int8", 2), ("f32", None), ("f32", 1)])
def test_checkpointing_changes_no_bit(make, isa, activations, num_layers, monkeypatch):
    use_isa(monkeypatch, isa)
    found = []
    for checkpointing in (False, True):
        made = make(activations=activations, num_layers=num_layers, checkpointing=checkpointing, lora_dropout=0.2)
        found += [[made.step([samples()[:2], samples()[2:]], 0.01) for _ in range(3)], made.state()["lora.params"]]
    assert found[0] == found[2]
    np.testing.assert_array_equal(found[1], found[3])


def test_checkpointing_takes_less_memory(make):
    sizes = {name: getattr(DEEP, name) for name in ("n_embd", "n_head", "n_head_kv", "n_ff", "n_layer", "n_vocab")}
    sizes |= {"head_dim": 16, "n_rot": 16}
    ranks = {(layer, slot): (4, 1.0) for layer in range(4) for slot in range(7)}
    kept, again = (
        kernels.trainstep.memory_needed(sizes, ranks, 512, 1, 2, "int16", flag)["activations"] for flag in (False, True)
    )
    # of 4 layers three keep only their input: 64 of 64 + 64 + 112 f32 and (64 + 32 + 32 + 64 + 96 + 96) bf16
    a_layer, x = 512 * (4 * (64 + 112) + 2 * 384), 512 * 4 * 64
    assert kept == 4 * a_layer + (2 + 4) * x and again == a_layer + (2 + 4) * x


def address_space():
    """Bytes of virtual memory of this process."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="tells of itself in /proc only on Linux")
def test_no_more_address_space_than_one_long_sequence_wants(make):
    sizes = {name: getattr(DEEP, name) for name in ("n_embd", "n_head", "n_head_kv", "n_ff", "n_layer", "n_vocab")}
    ranks = {(layer, slot): (4, 1.0) for layer in range(4) for slot in range(7)}
    weights, T = make().model.weights, 1 << 18
    wanted = kernels.trainstep.memory_needed(sizes | {"head_dim": 16, "n_rot": 16}, ranks, T, 1)
    # room for T sequences of one token each would be 16 times this, half as much again as all the rest
    cache = 8 * T * 2 * 16
    before = address_space()
    step = kernels.trainstep.TrainStep(weights, ranks, T)  # kept until it is measured
    taken = address_space() - before
    del step
    assert sum(wanted.values()) <= taken < sum(wanted.values()) + cache


def test_more_sequences_than_ever_before_change_no_bit(make):
    """A call of many sequences after one of a single: the cache grows, and is as good for a single one again."""
    short = [Sample(tokens_of(DEEP, n, seed=n).astype(np.int32), np.arange(n) >= 1) for n in (2, 17, 3, 1, 16, 4, 2, 5)]
    (many,), (single,) = pack(short, 512), pack(samples()[3:], 512)
    found = [one_pass(made, packed) for made in [make()] for packed in (single, many, single)]
    for (loss, gradients), packed in zip(found, (single, many, single), strict=True):
        fresh = one_pass(make(), packed)
        assert loss == fresh[0] > 0
        np.testing.assert_array_equal(gradients, fresh[1])


@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_entering_midway_changes_no_bit(make, activations):
    made, data = make(activations=activations, num_layers=2), samples()
    (packed,) = pack(data, 512)
    entry = np.full((len(packed[0]), WIDTH), np.nan, np.float32)
    loss, gradients = one_pass(made, packed)
    written = one_pass(made, packed, entry=entry)
    assert loss == written[0] and np.isfinite(entry).all()
    entered = one_pass(made, packed, entry=entry.copy(), entered=True)
    assert loss == entered[0]
    np.testing.assert_array_equal(gradients, entered[1])
    # and what is written does not depend on which sequences share the pass
    parts = []
    for sample in data:
        (alone,) = pack([sample], 512)
        parts.append(np.empty((len(alone[0]), WIDTH), np.float32))
        one_pass(made, alone, entry=parts[-1])
    np.testing.assert_array_equal(np.concatenate(parts), entry)


def test_an_entry_of_another_shape_is_refused(make):
    made = make(num_layers=2)
    (packed,) = pack(samples(), 512)
    for how in ({"entry": np.zeros((3, WIDTH), np.float32)}, {"entered": True}):
        with pytest.raises(ValueError, match="entry: wanted"):
            made._pass.run(*packed, 1.0, **how)


def test_a_pass_without_targets_has_no_loss_and_no_gradient(make):
    made = make()
    tokens, starts, targets = next(pack(samples(), 512))
    loss, gradients = one_pass(made, (tokens, starts, np.full_like(targets, -1)))
    assert loss == 0 and not gradients.any()


def trained(made, epochs=3):
    """Losses and parameters of some epochs over data whose packs differ from epoch to epoch."""
    data, found = samples(), []
    for epoch in range(epochs):
        found += [made.step([[data[i] for i in pair]], 0.01).loss for pair in ([0, 1], [2, 3]) if epoch != 1]
        found += [made.step([data], 0.01).loss, made.evaluate([data[1:]])[0]]
    return found, made.state()["lora.params"]


@pytest.mark.parametrize(("activations", "limit"), [("int8", 1 << 20), ("f32", 1 << 20), ("int8", 40 * 4 * WIDTH)])
def test_kept_outputs_of_frozen_layers_change_no_bit(make, tmp_path, activations, limit):
    how = {"activations": activations, "num_layers": 1, "lora_dropout": 0.1, "pack_tokens": 64}
    plain, cached = make(**how), make(**how)
    cached.keep_prefix(tmp_path, limit)
    wanted, found = trained(plain), trained(cached)
    assert wanted[0] == found[0]
    np.testing.assert_array_equal(wanted[1], found[1])
    # what fits is kept once, and no more than that
    assert cached.prefix.used <= limit and len(cached.prefix.places) == (4 if limit > 1 << 19 else 3)


def test_kept_outputs_are_used(make, tmp_path):
    made, (packed,) = make(num_layers=2), pack(samples(), 512)
    made.keep_prefix(tmp_path)
    loss = made._run(packed, 1.0, False)
    rows = np.empty((len(packed[0]), WIDTH), np.float32)
    assert made.prefix.lookup(packed[0], packed[1], rows)
    place = made.prefix.places
    os.pwrite(made.prefix.file.fileno(), bytes(rows.nbytes), 0)
    assert len(place) == 4 and made._run(packed, 1.0, False) != loss
    # a file that became shorter is no harm: the layers are computed again
    os.ftruncate(made.prefix.file.fileno(), 100)
    assert made._run(packed, 1.0, False) == loss


def test_without_a_place_for_the_file_nothing_is_kept(make, tmp_path):
    made, (packed,) = make(num_layers=2), pack(samples(), 512)
    made.keep_prefix(tmp_path / "missing")
    assert made._run(packed, 1.0, False) == make(num_layers=2)._run(packed, 1.0, False) and not made.prefix.places
    whole = make()
    whole.keep_prefix(tmp_path)
    assert whole.prefix is None


@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_padded_sequences_have_the_loss_of_packed_ones(make, activations):
    made, data = make(activations=activations), samples()
    (packed,) = pack(data, 512)
    tokens, starts, targets = packed
    longest = np.diff(starts).max()
    padded = np.zeros((2, len(data), longest), np.int32)
    padded[1] = -1
    for i, (lo, hi) in enumerate(zip(starts, starts[1:], strict=False)):
        padded[:, i, : hi - lo] = tokens[lo:hi], targets[lo:hi]
    whole = (padded[0].ravel(), np.arange(0, len(data) * longest + 1, longest, dtype=np.int32), padded[1].ravel())
    (loss, gradients), (other, same) = one_pass(made, packed), one_pass(made, whole)
    assert loss == pytest.approx(other, rel=1e-6)
    np.testing.assert_allclose(gradients, same, rtol=0, atol=1e-4 * np.abs(gradients).max())


# --- dropout ---------------------------------------------------------------------------------------------------------


def scramble(z):
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def mask(matrix, n_rows, n_cols, share, key=KEY):
    """The twin of dropout.pxd's mask: 0 or 1 / (1 - share), float64 (n_rows, n_cols)."""
    rows, tiles = np.meshgrid(
        np.arange(n_rows, dtype=np.uint64), np.arange(n_cols // 16, dtype=np.uint64), indexing="ij"
    )
    with np.errstate(over="ignore"):
        at = np.uint64(key) + (np.uint64(matrix) << np.uint64(40)) + (rows << np.uint64(20)) + tiles
        state = scramble(at)[:, :, None]
        words = scramble(state + np.array([1, 5, 9, 13], np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    bits = (words[:, :, :, None] >> np.array([0, 16, 32, 48], np.uint64)) & np.uint64(0xFFFF)
    threshold = round(65536 * share)
    return (bits.reshape(n_rows, n_cols) >= threshold) * (65536 / (65536 - threshold))


def test_the_mask_leaves_out_its_share_differently_everywhere():
    masks = [mask(matrix, 64, 96, 0.25, key) for matrix in (0, 1) for key in (KEY, KEY + 1)]
    for one in masks:
        # 6144 draws: the share's standard deviation is 0.0055
        assert abs(np.mean(one == 0) - 0.25) < 0.025 and one.max() == pytest.approx(4 / 3)
    assert len({one.tobytes() for one in masks}) == 4


def test_dropout_applies_that_mask_to_the_adapter_s_input_only(make):
    """For one token alone, dropping inputs is the same as scaling columns of A."""
    made = make("F32", "f32", targets=("attn_v", "attn_output", "ffn_up", "ffn_down"), lora_dropout=0.5)
    sample = Sample(np.array([5, 9], np.int32), np.array([False, True]))
    (packed,) = pack([sample], 512)
    dropped = made._pass.run(*packed, 1.0, False, dropout_key=KEY)
    # A's columns become what the masks make of the token's inputs
    for layer, slot, rank, n_in, _, a, _ in made._pass.layout:
        view = made._pass.params[a : a + rank * n_in].reshape(rank, n_in)
        view *= mask(len(kernels.weights.NAMES) * layer + slot, 1, n_in, 0.5)[0].astype(np.float32)
    assert made._pass.run(*packed, 1.0, False) == pytest.approx(dropped, rel=1e-6)
    assert made._pass.run(*packed, 1.0, False, dropout_key=KEY) != pytest.approx(dropped, rel=1e-6)


def test_gradients_under_dropout_are_finite_differences(make):
    made = make("F32", "f32", lora_dropout=0.3)
    (packed,) = pack(samples((12, 7)), 512)
    _, gradients = one_pass(made, packed, dropout_key=KEY)
    params, rng = made._pass.params, np.random.default_rng(1)
    for layer, slot, rank, n_in, n_out, a, b in made._pass.layout:
        for start, size in ((a, rank * n_in), (b, rank * n_out)):
            direction = np.zeros_like(params)
            direction[start : start + size] = rng.normal(0, 1, size)
            was, step, ends = params.copy(), 2e-3, []
            for sign in (1, -1):
                params[:] = was + sign * step * direction
                ends.append(made._pass.run(*packed, 1.0, False, dropout_key=KEY))
            params[:] = was
            slope, wanted = (ends[0] - ends[1]) / (2 * step), float(gradients @ direction)
            scale = np.linalg.norm(gradients[start : start + size])
            # f32 losses of some 30 differ by 1e-5, over a step of 4e-3: within 1 % of the gradient's length
            assert abs(slope - wanted) < 0.01 * max(scale, 0.5), (layer, slot, slope, wanted)


def test_dropout_is_the_same_for_any_threads_and_another_each_step(make):
    found = []
    for threads in (1, 2, 3):
        made = make("Q4_1", threads=threads, lora_dropout=0.1)
        found.append([made.step([samples()], 0.0).loss for _ in range(3)])
    assert found[0] == found[1] == found[2] and len(set(found[0])) == 3
    plain = make("Q4_1", lora_dropout=0.0)
    assert plain.step([samples()], 0.0).loss == made.evaluate([samples()])[0]


# --- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rslora", [False, True])
def test_matrices_may_have_ranks_of_their_own(make, rslora):
    made = make(ranks=(("attn_k", 9), ("ffn_down", 1)), rslora=rslora)
    pairs = made.adapter().pairs
    for name, pair in pairs.items():
        rank = {"attn_k": 9, "ffn_down": 1}.get(name.split(".")[2], 4)
        # init_lora was told alpha 8 for rank 4; with rsLoRA that is 4 sqrt(4)
        assert isinstance(pair, LoraPair) and pair.a.shape[0] == rank
        assert pair.scale == pytest.approx(4 / np.sqrt(rank) if rslora else 8 / rank)
    losses = [made.step([samples()], 0.01).loss for _ in range(5)]
    assert losses[-1] < losses[0]
    assert all(np.all(np.any(g != 0, axis=1)) for pair in made.gradients().values() for g in pair)


def test_a_token_s_weight_multiplies_its_gradient(make):
    """Gradients are sums over targets: of each target alone, times its weight of whatever sign."""
    made = make(activations="f32")
    (tokens, starts, targets), *rest = pack(samples()[:2], 512)
    assert not rest
    weights = np.linspace(-1.5, 2, len(tokens)).astype(np.float32)
    loss, found = one_pass(made, (tokens, starts, targets), token_weights=weights)
    losses, scored = made._pass.target_losses(), np.flatnonzero(targets >= 0)
    assert loss == pytest.approx(losses.sum(), rel=1e-12)
    wanted = np.zeros(len(found))
    for row, at in enumerate(scored):
        alone = np.full_like(targets, -1)
        alone[at] = targets[at]
        one, gradient = one_pass(made, (tokens, starts, alone))
        assert one == pytest.approx(losses[row], rel=1e-6)
        wanted += float(weights[at]) * gradient
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-5 * np.abs(wanted).max())
    with pytest.raises(ValueError, match="token_weights"):
        one_pass(made, (tokens, starts, targets), token_weights=weights[1:])


def test_noise_is_added_to_what_enters_the_first_layer(make):
    made = make(activations="f32")
    (packed,) = pack(samples()[:2], 512)
    entry = np.empty((len(packed[0]), WIDTH), np.float32)
    noise = np.random.default_rng(1).uniform(-0.1, 0.1, entry.shape).astype(np.float32)
    plain, _ = one_pass(made, packed, entry=entry)
    loss, gradients = one_pass(made, packed, noise=noise)
    entered, wanted = one_pass(made, packed, entry=entry + noise, entered=True)
    assert loss == entered != plain
    np.testing.assert_array_equal(gradients, wanted)
    with pytest.raises(ValueError, match="noise"):
        one_pass(made, packed, noise=noise[1:])
