"""`finetune`: train a LoRA adapter on a quantised model. Here are its flags; what they lead to is in training.py."""

import argparse
import dataclasses

from llamacy.cli.common import add_model_flags, optional, whole
from llamacy.cli.config_file import parsed, written
from llamacy.cli.run import make_parser
from llamacy.cli.template_flags import template_kwargs
from llamacy.default_model import default_model
from llamacy.errors import UsageError
from llamacy.formats.architectures import adapted
from llamacy.train.options import (
    DEFAULT_CTX,
    INITIAL,
    LISTS,
    MAX_RANK,
    METHODS,
    TrainOptions,
    target_modules,
)
from llamacy.train.schedule import SCHEDULES

D = TrainOptions

# Flags that set a TrainOptions field of their own, with its default: flags, field, type, metavar, help.
RUN_FLAGS = [
    (("-p", "-b", "--batch-size", "--batch"), "batch_size", int, "N", "sequences per micro-batch"),
    (("--grad-acc", "--grad-accumulation"), "grad_acc", int, "N", "micro-batches per optimiser step"),
    (("--epochs", "-epochs"), "epochs", int, "N", "times to go through the data"),
    (("-s", "--seed"), "seed", int, "N", "seed of the order of samples and of the adapter's first values"),
    (("--save-every",), "save_every", int, "N", "save every N epochs, 0 = at the end only"),
    (("--save-every-steps",), "save_every_steps", int, "N", "save every N steps too, 0 = not"),
]
ADAMW_FLAGS = [
    (("--learning-rate", "--lr", "-lr", "--adam-alpha"), "learning_rate", float, "F", "learning rate at its highest"),
    (("--weight-decay", "-wd"), "weight_decay", float, "F", "decoupled weight decay"),
    (("--beta1",), "beta1", float, "F", "decay of the first moment"),
    (("--beta2",), "beta2", float, "F", "decay of the second moment"),
    (("--adam-eps",), "adam_eps", float, "F", "added to the root of the second moment"),
    (("--max-grad-norm", "--adam-gclip"), "max_grad_norm", float, "F", "clip gradients to this norm, 0 = off"),
]
# llama.cpp's flags for one matrix's rank, named as Meta names the matrices
RANKS = {f"--rank-{matrix.meta.rpartition('.')[2]}": matrix.name for matrix in adapted() if matrix.meta}
METHOD_FLAGS = [
    (("--loraplus-ratio",), "loraplus_ratio", float, "F", "LoRA+: B learns at F times the rate of A"),
    (("--neftune-alpha",), "neftune_alpha", float, "F", "NEFTune: noise on the embeddings while training, 5 is usual"),
    (("--beta",), "beta", float, "F", "how much the answers' preference counts: beta of DPO and KTO, lambda of ORPO"),
]
VALIDATION_FLAGS = [
    (("--val-split", "-val-split"), "val_split", float, "F", "hold out this share of the training data"),
    (("--eval-every",), "eval_every", int, "N", "measure every N steps, 0 = after every epoch"),
    (("--early-stop",), "early_stop", int, "N", "stop after N measurements without a better one, 0 = never"),
]


UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(text):
    """Parse a number of bytes: 900000, 512K, 1.5G; K, M, G and T count by 1024, a B or iB behind them is allowed."""
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = UNITS.get(number[-1:], 1)
    try:
        value = float(number[:-1] if unit > 1 else number) * unit
        if not 1 <= value < 1 << 60:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted a size such as 512M or 2.5G, got {text!r}") from None
    return int(value)


def build_parser():
    parser = make_parser("finetune", "Fine-tune a quantised model: train a LoRA adapter on your data.")
    add_model_flags(parser, ctx_size=f"{DEFAULT_CTX}, at most the model's", names=("-m", "--model", "--model-base"))
    parser.set_defaults(activations="int16")
    optional(parser, "--config", dest="config", metavar="FILE",
             help="flags from a file, TOML (learning-rate = 1e-3) or YAML; a run keeps its own")  # fmt: skip
    _add_data_flags(parser.add_argument_group("data"))
    _add_run_flags(parser.add_argument_group("run"))
    _add_method_flags(parser.add_argument_group("method"))
    _add_adapter_flags(parser.add_argument_group("adapter"))
    group = parser.add_argument_group("optimiser (AdamW)")
    _add_rows(group, ADAMW_FLAGS)
    group.add_argument("--lr-schedule", choices=sorted(SCHEDULES), default=D.lr_schedule,
                       help="course of the learning rate after the warm-up")  # fmt: skip
    optional(group, "--warmup-steps", "--warmup", dest="warmup_steps", type=int, metavar="N",
             help="steps in which the learning rate rises from 0 (default: 5 %% of the run)")  # fmt: skip
    optional(
        group, "--warmup-ratio", dest="warmup_ratio", type=float, metavar="F", help="the same as a share of the run"
    )
    optional(group, "--min-lr-ratio", dest="min_lr_ratio", type=float, metavar="F",
             help="where cosine_with_min_lr (0.1 by default), polynomial and wsd end: a share of it")  # fmt: skip
    optional(group, "--decay-ratio", dest="decay_ratio", type=float, metavar="F",
             help="wsd: the share of the run in which the rate falls (default: 0.1)")  # fmt: skip
    _add_validation_flags(parser.add_argument_group("validation"))
    _add_output_flags(parser.add_argument_group("output"))
    return parser


def _add_rows(group, rows):
    for flags, field, kind, metavar, text in rows:
        group.add_argument(*flags, dest=field, type=kind, default=getattr(D, field), metavar=metavar, help=text)


def _add_data_flags(group):
    optional(group, "--train-data", "-f", "--file", dest="train_data", action="append", metavar="FILE",
             help="what to learn: instruction text, JSON, a table, plain text, a dataset's folder; FILE:2 takes its "
             "samples twice (repeatable; default: the sample data)")  # fmt: skip
    optional(group, "--max-samples", dest="max_samples", type=whole(1, 1 << 40), metavar="N",
             help="of each file take no more than the first N samples (default: all)")  # fmt: skip
    group.add_argument("--keep-empty", action="store_true", help="teach empty answers too: the end of the turn alone")
    optional(group, "--sample-start", dest="sample_start", default="", metavar="TEXT",
             help="plain text: a sample begins where TEXT stands (default: windows of --ctx-size)")  # fmt: skip
    group.add_argument("--include-sample-start", action="store_true", help="keep that TEXT in the samples")
    group.add_argument("-e", "--escape", action="store_true", help=r"read \n, \t and so on in --sample-start")
    optional(group, "--mask-prompt", dest="mask_prompt", default=D.mask_prompt, action="store_true",
             help="train on answers only, where the data tells them apart (the default)")  # fmt: skip
    optional(group, "--train-on-prompt", dest="mask_prompt", action="store_false", help="train on prompts as well")
    optional(group, "--chat-template", dest="chat_template", metavar="NAME|FILE",
             help="how messages are written out (default: the model's own template)")  # fmt: skip
    optional(group, "--chat-template-kwargs", dest="template_kwargs", default={}, type=template_kwargs, metavar="JSON",
             help="names and values for the template, such as '{\"enable_thinking\": false}'")  # fmt: skip
    group.add_argument("--shuffle", choices=["on", "off"], default="on", help="a new order in each epoch")
    optional(group, "--show-sample", dest="show_sample", type=int, metavar="N",
             help="print N samples as text, marking what is trained on, and stop")  # fmt: skip
    group.add_argument("-v", "--verbose", action="store_true", help="print them token by token")


def _add_run_flags(group):
    _add_rows(group, RUN_FLAGS)
    optional(group, "--save-total-limit", dest="save_total_limit", type=int, metavar="N",
             help="of files with ITERATION in their names keep the N newest (default: all)")  # fmt: skip
    optional(group, "--max-steps", "--adam-iter", dest="max_steps", type=int, metavar="N",
             help="end after N optimiser steps, if the epochs do not end before")  # fmt: skip
    optional(group, "--use-checkpointing", dest="checkpointing", action="store_true",
             help="compute activations again in the backward pass: less memory, a third slower")  # fmt: skip
    optional(group, "--no-checkpointing", dest="checkpointing", action="store_false",
             help="keep them (default: chosen by the memory there is)")  # fmt: skip
    optional(group, "--max-ram", dest="max_ram", type=size, metavar="SIZE",
             help="stay below this (512M, 2.5G), else say what would fit (default: the free memory)")  # fmt: skip
    group.add_argument("--estimate", action="store_true", help="print peak memory, time and disk space, and stop")
    optional(group, "--checkpoint-in", dest="checkpoint_in", metavar="FILE",
             help="go on from this checkpoint, if it is there")  # fmt: skip
    optional(group, "--checkpoint-out", dest="checkpoint_out", metavar="FILE",
             help="where to save the state of the run, '' = nowhere (default: OUTDIR/checkpoint.gguf)")  # fmt: skip
    group.add_argument("--resume", action="store_true", help="go on from the checkpoint of the run before")


def _add_method_flags(group):
    group.add_argument("--method", choices=list(METHODS), default=D.method,
                       help="plain fine-tuning (sft), or learning from preferences, chosen and rejected")  # fmt: skip
    _add_rows(group, METHOD_FLAGS)


def _add_adapter_flags(group):
    # Without a value these follow an adapter to start from, if there is one.
    optional(group, "--rank", "--lora-r", dest="rank", type=int, metavar="N",
             help=f"rank of the adapter (default: {D.rank})")  # fmt: skip
    optional(group, "--lora-alpha", dest="alpha", type=float, metavar="F",
             help=f"its scale is this / rank (default: {D.alpha:g})")  # fmt: skip
    group.add_argument("--rslora", action="store_true", help="divide by the root of the rank instead")
    group.add_argument("--dora", action="store_true",
                       help="DoRA: train the length of each row too; the adapter is then a PEFT folder")  # fmt: skip
    group.add_argument(
        "--init-weights",
        choices=list(INITIAL),
        default=D.init_weights,
        help="what a new adapter begins as: by chance, or from the matrix's largest singular values (pissa)",
    )
    group.add_argument("--lora-dropout", type=float, default=D.lora_dropout, metavar="F",
                       help="leave out this share of the adapter's inputs while training")  # fmt: skip
    for flag, target in RANKS.items():
        optional(group, flag, dest=f"rank_{target}", type=whole(1, MAX_RANK), metavar="N",
                 help=f"rank of {target} instead of --rank")  # fmt: skip
    optional(group, "--rank-pattern", dest="rank_pattern", metavar="REGEX=N,...",
             help="rank of the matrices that PEFT's rule finds by this expression")  # fmt: skip
    optional(group, "--alpha-pattern", dest="alpha_pattern", metavar="REGEX=F,...",
             help="their alpha instead of --lora-alpha")  # fmt: skip
    optional(group, "--target-modules", dest="targets", metavar="LIST",
             help="matrices to adapt, such as attn_q,attn_v or q_proj,v_proj; all-linear: all but routed "
                  "experts, which `experts` adds; or expressions of modules' names such as "
                  "'layers\\.1[0-9]\\..*q_proj' (default: all-linear)")  # fmt: skip
    optional(group, "--layers", dest="layers", metavar="LIST",
             help="adapt only these layers, such as 0-9,20,25- (default: all)")  # fmt: skip
    optional(group, "--num-layers", dest="num_layers", type=int, metavar="N",
             help="adapt only the last N layers; the others need no backward pass (default: all)")  # fmt: skip
    optional(group, "--init-lora", dest="init_lora", metavar="FILE",
             help="start from this adapter, of any format (default: a new one)")  # fmt: skip


def _add_validation_flags(group):
    optional(group, "--val-data", dest="val_data", action="append", metavar="FILE",
             help="measure the loss on this data and keep the best adapter (repeatable)")  # fmt: skip
    _add_rows(group, VALIDATION_FLAGS)


def _add_output_flags(group):
    optional(group, "--outdir", dest="outdir", metavar="DIR", help="folder of what is written (default: adapter)")
    optional(group, "--lora-out", dest="lora_out", metavar="NAME",
             help="the adapter's name there; ITERATION in it becomes the step (default: adapter.bin; of a PEFT "
                  "folder that --dora makes, adapter-peft)")  # fmt: skip
    optional(group, "--save-path", dest="save_path", metavar="FILE", help="the adapter's whole path instead")
    optional(group, "--lora-format", dest="lora_format", metavar="FORMAT",
             help="gguf, ggla, peft or mlx (default: gguf; with --dora peft)")  # fmt: skip
    optional(group, "--log-json", dest="log_json", metavar="FILE", help="write a JSON line per step")
    optional(group, "--plot", dest="plot", metavar="FILE",
             help="draw losses, learning rate and gradient norm while it trains, .svg or .png")  # fmt: skip
    optional(
        group, "--report", dest="report", metavar="FILE", help="a page on the run, .html: curves, answers, settings"
    )
    optional(group, "--tensorboard", dest="tensorboard", metavar="DIR", help="write its numbers for TensorBoard there")
    group.add_argument("--sample-prompts", type=whole(0, 1000), default=3, metavar="N",
                       help="at the end compare base and adapter by their answers to N prompts, held out where there "
                       "is validation data, and by their perplexity, 0 = not at all")  # fmt: skip
    group.add_argument("--sample-every", type=whole(0, 1 << 40), default=0, metavar="N",
                       help="show such answers every N steps too, 0 = not")  # fmt: skip


def options_from(args):
    """Return the TrainOptions of parsed flags; UsageError for a value out of range or flags that exclude each other."""
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    if args.targets is not None:
        given["targets"] = target_modules(args.targets)
    given |= {name: read(given[name]) for name, read in LISTS.items() if name in given}
    ranks = {target: getattr(args, f"rank_{target}") for target in RANKS.values()}
    given["ranks"] = tuple((target, rank) for target, rank in ranks.items() if rank is not None)
    if args.ctx_size:
        given["n_ctx"] = args.ctx_size
    if args.show_sample is not None and args.show_sample < 1:
        raise UsageError(f"--show-sample: wanted 1 or more, got {args.show_sample}")
    validation = args.val_data or args.val_split
    if args.val_data and args.val_split:
        raise UsageError("--val-data and --val-split are both given: name one")
    if not validation and (args.early_stop or args.eval_every):
        raise UsageError("--early-stop and --eval-every need --val-data or --val-split to measure with")
    return TrainOptions(**{**given, "shuffle": args.shuffle == "on"})


def main(argv):
    parser = build_parser()
    args = parsed(parser, argv)
    options = options_from(args)
    args.model = args.model if args.model is not None else default_model()
    from llamacy.cli.training import finetune, show_samples

    if args.show_sample is not None:
        return show_samples(args, options)
    return finetune(args, options, written(parser, args))
