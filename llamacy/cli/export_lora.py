"""bin/export-lora: a base model and its adapters as one model file."""

import sys

from llamacy.cli.common import add_lora_flags, add_threads_flag, fit_threads, optional
from llamacy.cli.run import make_parser, say
from llamacy.default_model import default_model
from llamacy.errors import UsageError, brief, some


def build_parser():
    """Return the parser of `export-lora`'s flags."""
    parser = make_parser(
        "export-lora",
        "Merge adapters into their base model and write it as one GGUF file. Tensors that no adapter changes are "
        "copied bit for bit; the others are quantised anew, which loses a little of what the adapter learnt unless "
        "--outtype is f32, f16 or bf16.",
    )
    optional(parser, "-m", "--model", "--model-base", dest="model", metavar="FILE",
             help="the base model, GGUF or GGML (default: the default model)")  # fmt: skip
    optional(parser, "-o", "--output", dest="output", required=True, metavar="OUT", help="the GGUF file to write")
    optional(parser, "--outtype", dest="outtype", metavar="T",
             help="the type of all matrices, such as f16 or q8_0 (default: each tensor's own)")  # fmt: skip
    add_threads_flag(parser, "quantise")
    add_lora_flags(parser)
    return parser


def main(argv):
    """Write the merged model; what was done goes to stderr."""
    args = build_parser().parse_args(argv)
    if not args.lora:
        raise UsageError("nothing to merge: name an adapter with --lora FILE[:SCALE]")
    from llamacy.formats.adapter import load_adapter
    from llamacy.formats.gguf_writer import write_gguf
    from llamacy.formats.merge import merged
    from llamacy.formats.model_file import open_model
    from llamacy.formats.rewrite import writable

    outtype = writable(args.outtype) if args.outtype else None
    with open_model(args.model or default_model()) as model:
        adapters = [(load_adapter(path, model.metadata), scale) for path, scale in args.lora]
        for adapter, _ in adapters:
            if adapter.left_out:
                say(f"warning: {adapter.path}: left out {some(adapter.left_out, show=brief)}")
        metadata, tensors = merged(model, adapters, outtype, fit_threads(args.threads))
        write_gguf(args.output, metadata, tensors, model.value_types)
    changed = {name for adapter, _ in adapters for name in [*adapter.pairs, *adapter.norms]}
    print(f"{args.output}: {len(tensors)} tensors, {len(changed)} of them merged", file=sys.stderr)
    return 0
