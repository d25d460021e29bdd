"""`bench`: tokens per second of this machine with a model, in rows like llama-bench's.

`pp512` is a prompt of 512 tokens, `tg128` the generation of 128 one after another, `tg128 x8` that of eight sequences
at once, ` @ d4096` any of them with 4096 tokens already in the cache. Random tokens: no test depends on what they are.
`train 1x256 r8` is LoRA on all linear matrices: forward, backward and update; with data, `train data.jsonl x4 r8`, its
speed is in samples per second, an epoch each time. Every test runs once unmeasured first. `pp512+tg128` is both as one.
"""

import os
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import product

import numpy as np

from llamacy import __version__, kernels
from llamacy.cli.bench_flags import build_parser
from llamacy.cli.bench_output import FORMATS
from llamacy.cli.common import fit_threads, open_model_from
from llamacy.errors import UsageError
from llamacy.formats.model_file import open_model
from llamacy.model.weights import token_bytes
from llamacy.system import cpu_name, peak_rss_bytes

SEED = 1


@dataclass
class Row:
    """One measured test; times in nanoseconds, speeds in `unit` per second, named as llama-bench names them."""

    test: str
    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0
    n_parallel: int = 1
    n_threads: int = 0
    n_train: int = 0
    lora_r: int = 0
    unit: str = "tokens"
    avg_ns: float = 0.0
    stddev_ns: float = 0.0
    avg_ts: float = 0.0
    stddev_ts: float = 0.0
    samples_ns: list = field(default_factory=list)
    samples_ts: list = field(default_factory=list)
    peak_rss_bytes: int = 0

    def fill(self, seconds, n):
        """Set the figures from the repetitions' times, each for `n` tokens (or what the unit is)."""
        speeds = [n / s for s in seconds]
        self.samples_ns, self.samples_ts = [round(s * 1e9) for s in seconds], speeds
        self.avg_ns, self.stddev_ns = _mean_and_deviation(self.samples_ns)
        self.avg_ts, self.stddev_ts = _mean_and_deviation(speeds)
        self.peak_rss_bytes = peak_rss_bytes()
        return self


def _mean_and_deviation(values):
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def read_prompt(session, slot, tokens, start=0):
    """Run `tokens` from position `start` on through a slot in the largest batches; logits of the last token only."""
    for i in range(0, len(tokens), session.max_batch):
        batch = tokens[i : i + session.max_batch]
        last = [len(batch) - 1] if i + len(batch) == len(tokens) else []
        session.step(batch, range(start + i, start + i + len(batch)), [slot] * len(batch), last)


def generate(session, sequences, start=0):
    """Run one token of each sequence at a time, sequence i in slot i, from position `start` on; logits of all."""
    slots = range(len(sequences))
    for i, step in enumerate(zip(*sequences, strict=True)):
        session.step(step, [start + i] * len(step), slots, slots)


def measure(model, row, repetitions, warm_up=True):
    """Fill `row` with the times of its prompts and its generation behind `n_depth` cached tokens."""
    depth, n_prompt = row.n_depth, row.n_prompt
    n_each, slots = n_prompt + row.n_gen, range(row.n_parallel)
    session = model.new_session(row.n_parallel, depth + n_each)
    chosen = random.Random(SEED)
    tokens = [chosen.choices(range(model.config.n_vocab), k=depth + n_each) for _ in slots]
    for slot in slots:
        read_prompt(session, slot, tokens[slot][:depth])
    seconds = []
    for _ in range(repetitions + warm_up):
        for slot in slots:
            if session.reusable(slot, depth) < depth:  # layers with a window hold what came last
                read_prompt(session, slot, tokens[slot][:depth])
        begin = time.perf_counter()
        for slot in slots:
            read_prompt(session, slot, tokens[slot][depth : depth + n_prompt], depth)
        generate(session, [ids[depth + n_prompt :] for ids in tokens], depth + n_prompt)
        seconds.append(time.perf_counter() - begin)
    return row.fill(seconds[warm_up:], n_each * row.n_parallel)


def new_trainer(model, row, n_ctx):
    """Return a Trainer of a new adapter for steps of `n_parallel` sequences of up to `n_ctx` tokens."""
    # Late, here and below: 5 MB that the peak of the other tests need not carry.
    from llamacy.train.options import TrainOptions
    from llamacy.train.trainer import Trainer

    options = TrainOptions(n_ctx=n_ctx, batch_size=row.n_parallel, rank=row.lora_r, alpha=2.0 * row.lora_r)
    trainer = Trainer(model, options)
    trainer.init_lora(options.rank, options.file_alpha, options.targets, SEED)
    return trainer


def measure_training(model, row, repetitions, warm_up=True):
    """Fill `row` with the times of optimiser steps over `n_parallel` sequences of `n_train` random, learnt tokens."""
    from llamacy.train.samples import Sample

    trainer = new_trainer(model, row, row.n_train + 1)
    chosen = np.random.default_rng(SEED)
    # One more id than are read: every token has a next one to predict.
    trained = np.arange(row.n_train + 1) > 0
    seconds = []
    for _ in range(repetitions + warm_up):
        ids = chosen.integers(0, model.config.n_vocab, (row.n_parallel, row.n_train + 1), np.int32)
        begin = time.perf_counter()
        trainer.step([[Sample(sequence, trained) for sequence in ids]], trainer.options.learning_rate)
        seconds.append(time.perf_counter() - begin)
    return row.fill(seconds[warm_up:], row.n_parallel * row.n_train)


def samples_of(paths, tokenizer, n_ctx):
    """Return the samples of data files as `finetune` makes them, only the answers to be learnt; no messages."""
    from llamacy.train.data import Encoder, open_data

    data = open_data(paths, Encoder(tokenizer, n_ctx))
    return [data[i] for i in range(len(data))]


def measure_samples(model, row, repetitions, paths, n_ctx, warm_up=True):
    """Fill `row` with the times of epochs over the samples in `paths`, `n_parallel` in a step, in file order."""
    samples, trainer = samples_of(paths, model.tokenizer, n_ctx), new_trainer(model, row, n_ctx)
    seconds = []
    for _ in range(repetitions + warm_up):
        begin = time.perf_counter()
        for i in range(0, len(samples), row.n_parallel):
            trainer.step([samples[i : i + row.n_parallel]], trainer.options.learning_rate)
        seconds.append(time.perf_counter() - begin)
    return row.fill(seconds[warm_up:], len(samples))


def rows_of(args):
    """Return the rows that the flags ask for, not yet measured."""
    return [row for threads in args.threads for row in _rows_of(args, fit_threads(threads))]


def _rows_of(args, n_threads):
    rows, with_threads = [], {"n_threads": n_threads}
    for depth, parallel in product(args.n_depth, args.parallel):
        suffix = (f" x{parallel}" if parallel > 1 else "") + (f" @ d{depth}" if depth else "")
        tests = [(f"pp{n}", n, 0) for n in args.n_prompt if n] + [(f"tg{n}", 0, n) for n in args.n_gen if n]
        tests += [(f"pp{pp}+tg{tg}", pp, tg) for pp, tg in args.prompt_and_gen]
        rows += [Row(f"{name}{suffix}", pp, tg, depth, parallel, **with_threads) for name, pp, tg in tests]
    learnt = {"n_parallel": args.batch_size, "lora_r": args.lora_r, **with_threads}
    if args.train_data:
        files = "+".join(os.path.basename(path) for path in args.train_data)
        rows.append(Row(f"train {files} x{args.batch_size} r{args.lora_r}", unit="samples", **learnt))
    elif args.train:
        name = f"train {args.batch_size}x{args.ctx_size} r{args.lora_r}"
        rows.append(Row(name, n_train=args.ctx_size, **learnt))
    return rows


def facts_of(args, model):
    """Return what is the same in all rows: the model, the machine, the settings."""
    with open_model(model.path) as file:
        n_params = sum(int(np.prod(tensor.shape)) for tensor in file.tensors.values())
        per_token = token_bytes(file, model.config)
    return {
        "build_commit": __version__,
        "cpu_info": cpu_name(),
        "isa": kernels.isa,
        "model_filename": str(model.path),
        "model_type": f"{model.config.architecture} {model.name}".strip(),
        "model_size": os.path.getsize(model.path),
        "model_n_params": n_params,
        "bytes_per_token": per_token,
        "activations": args.activations,
        "type_k": args.cache_type_k or ("f32" if args.activations == "f32" else "s16"),
        "type_v": args.cache_type_v or ("f32" if args.activations == "f32" else "s16"),
        "test_time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def main(argv):
    """Measure what the flags ask for; the rows on stdout, a line as each test ends on stderr."""
    args = build_parser().parse_args(argv)
    rows = rows_of(args)
    if not rows:
        raise UsageError("nothing to measure: wanted -p, -n or -pg above 0, --train or --train-data")
    args.threads = max(row.n_threads for row in rows)
    model = open_model_from(args)
    results, warm_up = [], not args.no_warmup
    for row in rows:
        if results:
            time.sleep(args.delay)
        model.threads = row.n_threads
        if row.unit == "samples":
            measure_samples(model, row, args.repetitions, args.train_data, args.ctx_size, warm_up)
        else:
            (measure_training if row.n_train else measure)(model, row, args.repetitions, warm_up)
        results.append(facts_of(args, model) | asdict(row))
        print(f"{row.test}: {row.avg_ts:.2f} {row.unit}/s", file=sys.stderr)
    print(FORMATS[args.output](results))
    return 0
