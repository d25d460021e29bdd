"""bin/convert: models and adapters into another format, told apart by what they are and not by their names."""

import contextlib
import os

from llamacy.cli.common import add_threads_flag, fit_threads, optional, real, whole
from llamacy.cli.run import make_parser, say
from llamacy.default_model import default_model
from llamacy.errors import LlamacyError, UsageError, brief, some

# How many neighbouring files are looked at for the model that an adapter belongs to.
MAX_NEIGHBOURS = 64


def build_parser():
    parser = make_parser(
        "convert",
        "Convert a Hugging Face model folder or a legacy GGML model (blocks bit for bit) to GGUF, join a split GGUF "
        "model, or turn an adapter into another format: GGUF, ggla (llama.cpp's old finetune), a PEFT or an mlx-lm "
        "folder.",
    )
    parser.add_argument("input", metavar="IN", help="a model file or folder, or an adapter of any format")
    parser.add_argument("output", metavar="OUT", help="what to write")
    optional(parser, "--to", dest="to", choices=["gguf", "ggla", "peft", "mlx"],
             help="the adapter's new format (default: gguf for a name in .gguf, ggla in .bin, else peft)")  # fmt: skip
    optional(parser, "-m", "--model", "--base", dest="model", metavar="FILE",
             help="the adapter's base model, whose heads PEFT and mlx-lm order rows by "
             "(default: the default model or a model beside IN that fits)")  # fmt: skip
    parser.add_argument("--outtype", default="auto", type=str.lower, metavar="T",
                        help="the type of a Hugging Face model's matrices: f32, f16, bf16, q8_0 or any that can be "
                        "written; auto keeps what they are")  # fmt: skip
    add_threads_flag(parser, "quantise")
    optional(parser, "-c", "--ctx-size", "--ctx", dest="ctx_size", type=whole(1), metavar="N",
             help="context length to write, where a legacy model does not say (default: 2048)")  # fmt: skip
    optional(parser, "--rms-eps", dest="rms_eps", type=real(0, 1), metavar="F",
             help="norm epsilon to write (default: the file's; legacy 5e-6)")  # fmt: skip
    optional(parser, "--rope-theta", "--rope-freq-base", dest="rope_theta", type=real(1), metavar="F",
             help="rotary base to write (default: the file's; legacy 10000)")  # fmt: skip
    return parser


def main(argv):
    args = build_parser().parse_args(argv)
    from llamacy.formats.adapter import adapter_format
    from llamacy.formats.hf_folder import is_model_folder

    if is_model_folder(args.input):
        say(convert_folder(args))
        return 0
    kind = adapter_format(args.input)
    report = convert_model(args) if kind is None else convert_adapter(args, kind)
    say(report)
    return 0


def convert_folder(args):
    """Write a Hugging Face model as GGUF v3; return what to tell."""
    from llamacy.formats.gguf_writer import write_gguf
    from llamacy.formats.hf_folder import HfFolder
    from llamacy.formats.rewrite import writable
    from llamacy.model.from_hf import model_from_hf

    if args.to not in (None, "gguf"):
        raise UsageError(f"--to {args.to}: {args.input} is a model, which becomes gguf")
    outtype = None if args.outtype == "auto" else writable(args.outtype)
    with HfFolder(args.input) as folder:
        metadata, tensors, notes = model_from_hf(folder, outtype, fit_threads(args.threads))
        metadata |= _overrides(args, metadata["general.architecture"])
        write_gguf(args.output, metadata, tensors)
    for note in notes:
        say(f"warning: {note}")
    pre = metadata.get("tokenizer.ggml.pre", "none")
    vocabulary = f"{len(metadata['tokenizer.ggml.tokens'])} tokens ({metadata['tokenizer.ggml.model']}, {pre})"
    return f"{args.output}: gguf model, {len(tensors)} tensors, {vocabulary}, from a Hugging Face folder"


def convert_model(args):
    """Write the model as GGUF v3, its blocks as they are; return what to tell."""
    from llamacy.formats.gguf_writer import write_gguf
    from llamacy.formats.model_file import open_model

    if args.to not in (None, "gguf"):
        raise UsageError(f"--to {args.to}: {args.input} is a model, which becomes gguf")
    with open_model(args.input) as model:
        metadata = model.metadata | _overrides(args, model.metadata.get("general.architecture", "llama"))
        # One reader per tensor, called while writing: older layouts are converted one at a time.
        tensors = [(t.name, t.type, t.shape, lambda name=t.name: model.data(name)) for t in model.tensors.values()]
        write_gguf(args.output, metadata, tensors, model.value_types)
        return f"{args.output}: gguf model, {len(tensors)} tensors, from {model.format} version {model.version}"


def _overrides(args, architecture):
    wishes = {
        "context_length": args.ctx_size,
        "attention.layer_norm_rms_epsilon": args.rms_eps,
        "rope.freq_base": args.rope_theta,
    }
    return {f"{architecture}.{key}": value for key, value in wishes.items() if value is not None}


def convert_adapter(args, kind):
    """Write the adapter in the wished format; return what to tell, with what could not be carried."""
    from llamacy.formats.adapter import load_adapter, save_adapter

    adapter = load_adapter(args.input)
    wish = args.to or format_for(args.output, kind)
    adapter, base = with_base(adapter, wish, args)
    left_out = adapter.left_out + save_adapter(args.output, adapter, wish, base)
    report = f"{args.output}: {wish} adapter, {len(adapter.pairs)} pairs, from {kind}"
    return f"{report}; left out, for {wish} cannot carry it: {some(left_out, 5, brief)}" if left_out else report


def format_for(path, kind):
    """Return the adapter format that the name `path` asks for, for an adapter that is of format `kind` now."""
    if path.endswith(".gguf"):
        return "gguf"
    if path.endswith(".bin"):
        return "gguf" if kind == "ggla" else "ggla"
    if os.path.splitext(path)[1] and not os.path.isdir(path):
        raise UsageError(f"{path}: a name in .gguf, in .bin or of a folder tells the format; or say --to")
    return "peft"


def with_base(adapter, wish, args):
    """Return (the Adapter as it fits its base model, that model's metadata), None where none is needed or found."""
    from llamacy.formats.adapter import FOLDERS, fitted
    from llamacy.formats.lora import head_counts
    from llamacy.formats.model_file import open_model

    if args.model is not None:
        with open_model(args.model) as model:
            problem = adapter.misfit(model.tensors)
            if problem:
                raise LlamacyError(
                    f"{args.input} does not fit {args.model}: {problem}; name its own base model with -m"
                )
            return fitted(adapter, model), model.metadata
    if adapter.hf_rows == (wish in FOLDERS) or head_counts(adapter.architecture, adapter.metadata):
        return adapter, None
    found = {path: metadata for path in _neighbours(args) if (metadata := _fitting(path, adapter)) is not None}
    heads = {str(_all_heads(metadata)) for metadata in found.values()}
    if len(heads) > 1:
        raise LlamacyError(f"{args.input} fits {' and '.join(found)}, whose heads differ; name its base model with -m")
    if not found:
        return adapter, None
    path, metadata = next(iter(found.items()))
    say(f"rows of q and k in the order of {path}, which the adapter fits")
    return adapter, metadata


def _all_heads(metadata):
    from llamacy.formats.lora import head_counts

    architecture = metadata.get("general.architecture")
    return architecture, head_counts(architecture, metadata)


def _fitting(path, adapter):
    """Return the metadata of the model at `path` if the adapter fits it, else None."""
    from llamacy.formats.model_file import open_model

    try:
        with open_model(path) as model:
            return None if adapter.misfit(model.tensors) else model.metadata
    except LlamacyError:
        return None


def _neighbours(args):
    """Yield the default model and the model files beside IN (and beside its folder)."""
    with contextlib.suppress(LlamacyError):
        yield default_model()
    start = os.path.dirname(os.path.abspath(args.input))
    for folder in [start, os.path.dirname(start)] if os.path.isfile(args.input) else [start]:
        with contextlib.suppress(OSError):
            names = [name for name in sorted(os.listdir(folder)) if name.endswith((".gguf", ".bin"))]
            yield from (os.path.join(folder, name) for name in names[:MAX_NEIGHBOURS])
