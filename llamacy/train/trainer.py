"""The trainer: batches of samples in, loss and gradients through the compiled pass, AdamW on the pairs."""

import math
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from llamacy import kernels
from llamacy.errors import LlamacyError
from llamacy.formats.lora import LoraPair
from llamacy.model.weights import kept_rows
from llamacy.train.flops import Flops
from llamacy.train.health import astray
from llamacy.train.lora import as_adapter, places, principal_pair, rank_and_scale, starting_pairs
from llamacy.train.preference import objective
from llamacy.train.prefix import LIMIT, PrefixCache

# Short samples are packed into passes of about this many tokens, where the matrix products run at full speed.
PACK_TOKENS = 512
# Keeps the draws of noise apart from those of dropout's keys.
NOISE_STREAM = 1


@dataclass(frozen=True)
class StepResult:
    """loss: mean over the trained tokens, or the method's; grad_norm: of all A and B, before clipping; tokens: of the
    samples; more: what the method says besides, for the log.
    """

    loss: float
    grad_norm: float
    tokens: int
    trained_tokens: int
    flops: int
    more: dict = field(default_factory=dict)


class Trainer:
    """LoRA on a model: `init_lora` once, then `step` per optimiser step."""

    def __init__(self, model, options, pack_tokens=None):
        self.model, self.options = model, options
        self.pack_tokens = pack_tokens or max(options.n_ctx, PACK_TOKENS)
        self.max_tokens = max(options.n_ctx, self.pack_tokens)
        self.n_steps = 0
        self.prefix = None
        self.good_loss = math.inf
        self.objective = objective(options)
        self._pass = None

    def init_lora(self, rank, alpha, targets, seed, init_from=None, num_layers=None):
        """Set up the pairs: fresh ones, or those of the Adapter `init_from`."""
        size_of = rank_and_scale(self.model.config.architecture, self.options, rank, alpha)
        pairs = starting_pairs(self.model, targets, size_of, seed, num_layers, init_from)
        self._frozen = {}
        if self.options.init_weights == "pissa" and init_from is None:
            self._frozen = {name: pair.rank for name, pair in pairs.items()}
            pairs = {name: principal_pair(self._weight(name), pair.rank, pair.scale) for name, pair in pairs.items()}
        where = places(self.model.config, targets, num_layers)
        # 16 bits and not the 8 of generation: 8-bit activations alone move gradient norms by several percent.
        activations = "f32" if self.model.activations == "f32" else "int16"
        self.alpha, self.seed = alpha, seed
        self.names = {(place.layer, place.slot): name for name, place in where.items()}
        self.where = where
        self.scales = {name: pair.scale for name, pair in pairs.items()}
        ranks = {(where[name].layer, where[name].slot): (pair.rank, pair.scale) for name, pair in pairs.items()}
        self._pass = kernels.trainstep.TrainStep(
            self.model.weights, ranks, self.max_tokens, self.model.threads, activations,
            bool(self.options.checkpointing), self.options.lora_dropout, self.model.rope_tables(self.options.n_ctx),
            self.options.dora or bool(init_from and init_from.is_dora),
        )  # fmt: skip
        self._lengths = self._pass.row_lengths() if self._pass.magnitudes else None  # of the model's own rows
        for name, a, b, kept in self._views(self._pass.params):
            a[:], b[:, kept] = pairs[name].a, pairs[name].b.T
        self._first_magnitudes(pairs)
        self._m, self._v = np.zeros_like(self._pass.params), np.zeros_like(self._pass.params)
        self._good, self._good_step = self._pass.params.copy(), 0
        self._segments = list(self._find_segments())
        self.flops = Flops(self.model.config, min(layer for layer, _ in ranks))

    def keep_prefix(self, folder, limit=LIMIT):
        """Keep what the layers below the first trained one make of each sample, in a temporary file in `folder`."""
        if self.flops.first_layer > 0 and not self.options.neftune_alpha:
            self.prefix = PrefixCache(folder, -(-self.model.config.n_embd // 16) * 16, limit)

    def _first_magnitudes(self, pairs):
        """Begin with those that pairs bring, and with what leaves W + scale B A as it is."""
        for i, (name, m, kept) in enumerate(self._magnitudes(self._pass.params)):
            if i == 0:
                self._pass.params[self._pass.magnitudes[0] :] = self._pass.row_lengths()
            if pairs[name].magnitude is not None:
                m[kept] = pairs[name].magnitude

    def _magnitudes(self, flat):
        """Yield (base tensor name, its magnitudes, which of them are rows of B) as views into a flat array of the
        pass; none without DoRA."""
        for at, (name, _, b, kept) in zip(self._pass.magnitudes, self._views(flat), strict=False):
            yield name, flat[at : at + b.shape[1]], kept

    def _weight(self, name):
        """Return a base matrix (n_out, n_in) as f32."""
        file, info = self.model.file, self.model.file.tensors.get(name)
        if info is None:
            raise LlamacyError(f"--init-weights pissa: {name} is part of another tensor; leave it away")
        return kernels.quants.dequantize(np.ascontiguousarray(file.data(name)), info.type.number, self.model.threads)

    def _find_segments(self):
        """Yield (begin, end, factor) of the trained parts of the flat arrays, factor of the learning rate: LoRA+'s for
        B; what PiSSA began with is left out.
        """
        ratio = self.options.loraplus_ratio
        if ratio == 1 and not self._frozen:
            yield 0, len(self._pass.params), 1.0
            return
        for layer, slot, rank, n_in, n_out, a, b in self._pass.layout:
            rank = self._frozen.get(self.names[layer, slot], rank)
            yield a, a + rank * (-(-n_in // 16) * 16), 1.0
            yield b, b + rank * (-(-n_out // 16) * 16), ratio
        for at in self._pass.magnitudes[:1]:  # as PEFT has it: what has one dimension is with B
            yield at, len(self._pass.params), ratio

    def _views(self, flat):
        """Yield (base tensor name, A (r, n_in), B^T (r, n), which of its columns are rows of B: there are gaps in that
        of a fused matrix) as views into a flat array of the pass."""
        config, fused = self.model.config, self.model.family.fused
        for layer, slot, rank, n_in, n_out, a, b in self._pass.layout:
            wide_in, wide_out = -(-n_in // 16) * 16, -(-n_out // 16) * 16
            name = self.names[layer, slot]
            key = self.where[name].key
            yield (
                name,
                flat[a : a + rank * wide_in].reshape(rank, wide_in)[:, :n_in],
                flat[b : b + rank * wide_out].reshape(rank, wide_out)[:, :n_out],
                kept_rows(config.part_rows(key)) if key in fused else np.arange(n_out),
            )

    # ---- computing ----

    def step(self, micro_batches, lr):
        """One optimiser step over a list of lists of Samples: mean loss over their trained tokens, AdamW at `lr`.

        Where loss or gradient show that training has gone astray (health.py) nothing is changed but the gradients.
        """
        options, samples = self.options, [sample for batch in micro_batches for sample in batch]
        result = self.probe(samples)
        if astray(result.loss, result.grad_norm):
            return result
        good = None
        if result.loss <= self.good_loss:
            good, self._good_step = self._good, self.n_steps
        norm = result.grad_norm
        # as torch.nn.utils.clip_grad_norm_
        clip = min(1.0, options.max_grad_norm / (norm + 1e-6)) if options.max_grad_norm else 1.0
        self.n_steps += 1
        if good is not None and len(self._segments) > 1:  # what is not trained is the same before and after
            good[:] = self._pass.params
        for begin, end, factor in self._segments:
            arrays = (array[begin:end] for array in (self._pass.params, self._pass.grads, self._m, self._v))
            kernels.adamw.step(
                *arrays, self.n_steps, factor * lr, options.beta1, options.beta2, options.adam_eps,
                options.weight_decay, clip, self.model.threads, None if good is None else good[begin:end],
            )  # fmt: skip
        return result

    def probe(self, samples):
        """Return what a step over a list of Samples finds, without taking it."""
        n_trained = sum(sample.n_trained for sample in samples)
        if n_trained == 0:
            raise LlamacyError("a batch has no trained token; check the data with --show-sample 1")
        self._pass.grads.fill(0)
        if self.objective:
            with np.errstate(all="ignore"):  # numbers that are none are told by the result
                loss, weights, more = self.objective.weigh(self, samples)
            self._add_gradients(self.objective.samples(samples), weights)
        else:
            more = {}
            loss = sum(
                self._run(packed, 1 / n_trained, dropout_key=self._dropout_key(i), noise=self._noise(i, packed[1]))
                for i, packed in enumerate(pack(samples, self.pack_tokens))
            ) / n_trained  # fmt: skip
        for name, a, b, _ in self._views(self._pass.grads) if self._frozen else ():
            a[self._frozen[name] :], b[self._frozen[name] :] = 0, 0
        n_tokens, norm = sum(len(sample.ids) for sample in samples), kernels.adamw.norm(self._pass.grads)
        return StepResult(loss, norm, n_tokens, n_trained, self.flops(n_tokens, n_trained), more)

    def rehearse(self, samples):
        """Do what a step over a list of Samples does but for the update, to see how long it takes; nothing stays."""
        self.probe(samples)
        if self.objective:
            self.objective.forget()

    def log_probabilities(self, samples, dropout=False):
        """Return for each Sample the log-probabilities of its trained tokens, f64; dropout: as the next step has it."""
        found = [np.empty(0)] * len(samples)
        for i, (group, packed) in enumerate(self._groups(samples)):
            self._run(packed, 1.0, False, self._dropout_key(i) if dropout else None)
            losses, at = self._pass.target_losses(), 0
            for index in group:
                n = samples[index].n_trained
                found[index], at = -losses[at : at + n], at + n
        return found

    def _add_gradients(self, samples, weights):
        """Add the gradients of sum(weights * log-probabilities), weights for each Sample's trained tokens."""
        for i, (group, packed) in enumerate(self._groups(samples)):
            factors = np.zeros(len(packed[0]), np.float32)
            # the pass has gradients of negative log-likelihoods
            factors[packed[2] >= 0] = -np.concatenate([weights[index] for index in group])
            self._run(packed, 1.0, dropout_key=self._dropout_key(i), token_weights=factors)

    def _groups(self, samples):
        """Yield (indices of samples, what a pass over them is given)."""
        for group in packs(range(len(samples)), lambda i: n_inputs(samples[i]), self.pack_tokens):
            yield group, _packed([samples[i] for i in group])

    @contextmanager
    def without_adapter(self):
        """While this lasts, the model is as it was before any training."""
        kept = self._pass.params.copy()
        for _, _, b, _ in self._views(self._pass.params):
            b[:] = 0
        for at in self._pass.magnitudes[:1]:
            self._pass.params[at:] = self._lengths
        try:
            yield
        finally:
            self._pass.params[:] = kept

    def go_back(self):
        """Make the pairs again what they were when a step last found a loss of at most `good_loss`.

        Returns how many steps they had had. To be saved, not to go on from: the optimiser's moments stay.
        """
        self._pass.params[:] = self._good
        return self._good_step

    def _noise(self, i, starts):
        """NEFTune (Jain et al., 2023): uniform in +-alpha / sqrt(L d) for each value of each embedding, None without;
        L the length of its sequence, d the width of the model.
        """
        alpha, n_embd = self.options.neftune_alpha, self.model.config.n_embd
        if not alpha:
            return None
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, self.n_steps, i, NOISE_STREAM))))
        lengths = np.diff(starts)
        noise = np.zeros((starts[-1], -(-n_embd // 16) * 16), np.float32)
        noise[:, :n_embd] = rng.uniform(-1, 1, (starts[-1], n_embd))
        noise *= np.repeat(alpha / np.sqrt(lengths * n_embd), lengths).astype(np.float32)[:, None]
        return noise

    def _run(self, packed, weight, backward=True, dropout_key=None, token_weights=None, noise=None):
        """One pass over packed sequences, past the layers below the first trained one where their outputs are kept."""
        self.model.check_file()
        if self.prefix is None:
            return self._pass.run(
                *packed, weight, backward, dropout_key=dropout_key, token_weights=token_weights, noise=noise
            )
        tokens, starts, _ = packed
        entry = np.empty((len(tokens), self.prefix.width), np.float32)
        known = self.prefix.lookup(tokens, starts, entry)
        loss = self._pass.run(*packed, weight, backward, entry, known, dropout_key, token_weights)
        if not known:
            self.prefix.store(tokens, starts, entry)
        return loss

    def _dropout_key(self, i):
        """Random bits for pass i of the next step: a function of the seed and the step, so that a run can go on."""
        if not self.options.lora_dropout:
            return None
        return int(np.random.SeedSequence((self.seed, self.n_steps, i)).generate_state(1, np.uint64)[0])

    def evaluate(self, batches):
        """Return (mean loss over all trained tokens, or over items as the method has it, their number) without
        training.
        """
        if self.objective:
            return self._evaluate_objective(batches)
        total, n_trained = 0.0, 0
        for batch in batches:
            n_trained += sum(sample.n_trained for sample in batch)
            total += sum(self._run(packed, 1.0, False) for packed in pack(batch, self.pack_tokens))
        return total / max(n_trained, 1), n_trained

    def _evaluate_objective(self, batches):
        total, n_items = 0.0, 0
        for batch in batches:
            total += len(batch) * self.objective.weigh(self, batch, dropout=False)[0]
            n_items += len(batch)
        return total / max(n_items, 1), n_items

    def gradients(self):
        """Return {base tensor name: (dA (r, n_in), dB (n_out, r), with DoRA dm (n_out,))} of the last step."""
        found = {name: (a.copy(), b[:, kept].T.copy()) for name, a, b, kept in self._views(self._pass.grads)}
        more = {name: (m[kept],) for name, m, kept in self._magnitudes(self._pass.grads)}
        return {name: pair + more.get(name, ()) for name, pair in found.items()}

    # ---- results and state ----

    def adapter(self):
        """Return the pairs as they are now, as an Adapter."""
        magnitudes = {name: m[kept] for name, m, kept in self._magnitudes(self._pass.params)}
        pairs = {
            name: LoraPair(a.copy(), np.ascontiguousarray(b[:, kept].T), self.scales[name], magnitudes.get(name))
            for name, a, b, kept in self._views(self._pass.params)
        }
        # a pair of twice the rank has the scale of the half that is trained
        return as_adapter(self.model, pairs, (2 if self._frozen else 1) * self.alpha)

    def state(self):
        """Return everything that the next step depends on: arrays by name, and the step count."""
        return {"lora.params": self._pass.params, "adamw.m": self._m, "adamw.v": self._v, "n_steps": self.n_steps}

    def load_state(self, state):
        """Go on from a state() of a trainer set up alike; LlamacyError when it is not."""
        arrays = {"lora.params": self._pass.params, "adamw.m": self._m, "adamw.v": self._v}
        for name, array in arrays.items():
            if name not in state or state[name].shape != array.shape:
                raise LlamacyError(f"the checkpoint's {name} does not fit this model and rank; start without --resume")
        if (state["adamw.v"] < 0).any():
            raise LlamacyError("adamw.v: wanted squares, got a number below 0; start anew without it")
        for name, array in arrays.items():
            array[:] = state[name]
        self.n_steps = self._good_step = int(state["n_steps"])
        self._good[:] = self._pass.params


def pack(samples, max_tokens):
    """Yield (tokens, starts, targets) int32 arrays of whole samples, at most max_tokens each (longer ones alone)."""
    for group in packs(samples, n_inputs, max_tokens):
        yield _packed(group)


def packs(items, length_of, most):
    """Yield lists of consecutive items, together at most `most` long (a longer one alone), without those of 0."""
    waiting, size = [], 0
    for item in items:
        length = length_of(item)
        if waiting and size + length > most:
            yield waiting
            waiting, size = [], 0
        if length:
            waiting.append(item)
            size += length
    if waiting:
        yield waiting


def n_inputs(sample):
    """How many tokens of a sample are read: up to its last trained token's predecessor, as more influences nothing."""
    return int(np.flatnonzero(sample.trained)[-1]) if sample.n_trained else 0


def _packed(samples):
    sequences = []
    for sample in samples:
        length = n_inputs(sample)
        targets = np.where(sample.trained[1 : length + 1], sample.ids[1 : length + 1], -1)
        sequences.append((sample.ids[:length], targets))
    starts = np.cumsum([0, *(len(ids) for ids, _ in sequences)])
    tokens = np.concatenate([ids for ids, _ in sequences])
    targets = np.concatenate([targets for _, targets in sequences])
    return tuple(np.ascontiguousarray(array, np.int32) for array in (tokens, starts, targets))
