"""bin/convert: models and adapters into another format, told apart by what they are and not by their names."""

from llamacy.cli.common import add_threads_flag, fit_threads, optional, real, whole
from llamacy.cli.run import make_parser, say
from llamacy.errors import UsageError

# flag -> the key of the model's family that it sets
CHANGES = {
    "ctx_size": "context_length",
    "rms_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}


def build_parser():
    parser = make_parser(
        "convert",
        "Convert a Hugging Face model folder or a legacy GGML model (blocks bit for bit) to GGUF, join a split GGUF "
        "model, or turn an adapter into another format: GGUF, ggla (llama.cpp's old finetune), a PEFT or an mlx-lm "
        "folder.",
    )
    parser.add_argument("input", metavar="IN", help="a model file or folder, or an adapter of any format")
    parser.add_argument("output", metavar="OUT", nargs="?", help="what to write; {ftype} in a model's name becomes "
                        "its type (default for a Hugging Face folder: NAME-TYPE.gguf inside)")  # fmt: skip
    optional(parser, "--outfile", dest="outfile", metavar="FILE", help="the same as OUT")
    optional(parser, "--to", dest="to", choices=["gguf", "ggla", "peft", "mlx"],
             help="the adapter's new format (default: gguf for a name in .gguf, ggla in .bin, else peft)")  # fmt: skip
    optional(parser, "-m", "--model", "--base", dest="model", metavar="FILE",
             help="the adapter's base model, whose heads PEFT and mlx-lm order rows by "
             "(default: the default model or a model beside IN that fits)")  # fmt: skip
    parser.add_argument("--outtype", default="auto", type=str.lower, metavar="T",
                        help="the type of a Hugging Face model's matrices: f32, f16, bf16, q8_0 or any that can be "
                        "written, or a mix such as q4_k_m; auto keeps what they are")  # fmt: skip
    add_threads_flag(parser, "quantise")
    optional(parser, "--model-name", dest="model_name", metavar="NAME",
             help="name of the model to write (default: its own)")  # fmt: skip
    parser.add_argument("--vocab-only", action="store_true", help="of a Hugging Face folder write no tensors")
    optional(parser, "-c", "--ctx-size", "--ctx", dest="ctx_size", type=whole(1), metavar="N",
             help="context length to write, where a legacy model does not say (default: 2048)")  # fmt: skip
    optional(parser, "--rms-eps", dest="rms_eps", type=real(0, 1), metavar="F",
             help="norm epsilon to write (default: the file's; legacy 5e-6)")  # fmt: skip
    optional(parser, "--rope-theta", "--rope-freq-base", dest="rope_theta", type=real(1), metavar="F",
             help="rotary base to write (default: the file's; legacy 10000)")  # fmt: skip
    return parser


def main(argv):
    args = build_parser().parse_args(argv)
    settle_output(args)
    from llamacy.formats.adapter import adapter_format
    from llamacy.formats.hf_folder import is_model_folder
    from llamacy.model.convert import convert_adapter, convert_folder, convert_model

    outtype = None if args.outtype == "auto" else args.outtype
    if is_model_folder(args.input):
        report = convert_folder(args.input, args.output, to=args.to, outtype=outtype, name=args.model_name,
                                vocab_only=args.vocab_only, threads=fit_threads(args.threads),
                                changes=changes_from(args), note=say)  # fmt: skip
        say(report)
        return 0
    if args.output is None:
        raise UsageError("what to write is missing: wanted IN OUT")
    if kind := adapter_format(args.input):
        refuse_flags(args, f"{args.input} is an adapter", outtype not in (None, "f32"), "vocab_only", "model_name",
                     *CHANGES)  # fmt: skip
        report = convert_adapter(args.input, args.output, kind, to=args.to, base=args.model, note=say)
    else:
        refuse_flags(args, f"{args.input} keeps its types, which bin/quantize changes", outtype, "vocab_only")
        report = convert_model(args.input, args.output, to=args.to, name=args.model_name, changes=changes_from(args))
    say(report)
    return 0


def refuse_flags(args, why, outtype, *names):
    """Raise UsageError for the first flag that was given and means nothing to this input."""
    given = ["outtype"] * bool(outtype) + [name for name in names if getattr(args, name)]
    if given:
        raise UsageError(f"--{given[0].replace('_', '-')} means nothing here: {why}")


def settle_output(args):
    """Set args.output, which OUT or --outfile names; UsageError for both."""
    if args.output is not None and args.outfile is not None:
        raise UsageError("OUT and --outfile are both given: name one")
    args.output = args.output if args.outfile is None else args.outfile


def changes_from(args):
    """Return the values that the flags give to keys of the model's family."""
    return {key: value for name, key in CHANGES.items() if (value := getattr(args, name)) is not None}
