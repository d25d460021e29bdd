"""What is said of an unknown flag: its name here where other tools call it so, else a flag that is spelt nearly so."""

from difflib import get_close_matches

from llamacy.cli.llama_cpp_flags import REASONS
from llamacy.cli.words import is_number

# Names of Hugging Face's trainers, Unsloth, Axolotl, mlx-lm and others -> the names here; the first that the command
# has is meant. What stands behind a name says how its value differs.
ELSEWHERE = {
    # data
    "--data": ("--train-data",),
    "--data-path": ("--train-data",),
    "--dataset": ("--train-data",),
    "--dataset-name": ("--train-data",),
    "--datasets": ("--train-data",),
    "--train-file": ("--train-data",),
    "--training-data": ("--train-data",),
    "--eval-data": ("--val-data",),
    "--eval-dataset": ("--val-data",),
    "--validation-file": ("--val-data",),
    "--test-size": ("--val-split",),
    "--val-set-size": ("--val-split",),
    "--validation-split": ("--val-split",),
    "--max-length": ("--ctx-size",),
    "--max-seq-len": ("--ctx-size",),
    "--max-seq-length": ("--ctx-size",),
    "--block-size": ("--ctx-size",),
    "--cutoff-len": ("--ctx-size",),
    "--sequence-len": ("--ctx-size",),
    "--train-on-inputs": ("--train-on-prompt",),
    "--no-mask-prompt": ("--train-on-prompt",),
    "--no-train-on-prompt": ("--mask-prompt",),
    "--completion-only-loss": ("--mask-prompt",),
    # length and size of a run
    "--iters": ("--max-steps",),
    "--num-iterations": ("--max-steps",),
    "--steps": ("--max-steps",),
    "--num-steps": ("--max-steps",),
    "--num-epochs": ("--epochs",),
    "--num-train-epochs": ("--epochs",),
    "--batch": ("--batch-size",),
    "--micro-batch-size": ("--batch-size",),
    "--per-device-train-batch-size": ("--batch-size",),
    "--per-device-batch-size": ("--batch-size",),
    "--train-batch-size": ("--batch-size",),
    "--accumulate-grad-batches": ("--grad-acc",),
    "--gradient-accumulation": ("--grad-acc",),
    "--gradient-accumulation-steps": ("--grad-acc",),
    "--grad-accum": ("--grad-acc",),
    "--grad-accumulation-steps": ("--grad-acc",),
    "--gradient-checkpointing": ("--use-checkpointing",),
    "--grad-checkpoint": ("--use-checkpointing",),
    "--activation-checkpointing": ("--use-checkpointing",),
    "--use-gradient-checkpointing": ("--use-checkpointing",),
    "--checkpointing": ("--use-checkpointing",),
    "--disable-checkpointing": ("--no-checkpointing",),
    "--no-gradient-checkpointing": ("--no-checkpointing",),
    "--no-use-checkpointing": ("--no-checkpointing",),
    "--random-state": ("--seed",),
    "--random-seed": ("--seed",),
    "--num-threads": ("--threads",),
    "--n-threads": ("--threads",),
    # optimiser
    "--lr-scheduler": ("--lr-schedule",),
    "--lr-scheduler-type": ("--lr-schedule",),
    "--scheduler": ("--lr-schedule",),
    "--num-warmup-steps": ("--warmup-steps",),
    "--adam-beta1": ("--beta1",),
    "--adam-beta2": ("--beta2",),
    "--adam-epsilon": ("--adam-eps",),
    "--gradient-clipping": ("--max-grad-norm",),
    "--grad-clip": ("--max-grad-norm",),
    "--clip-grad-norm": ("--max-grad-norm",),
    # the adapter
    "--lora-rank": ("--rank",),
    "--r": ("--rank",),
    "--lora-target": ("--target-modules",),
    "--lora-target-modules": ("--target-modules",),
    "--lora-modules": ("--target-modules",),
    "--lora-layers": ("--num-layers",),
    "--use-rslora": ("--rslora",),
    "--resume-adapter-file": ("--init-lora",),
    "--adapter": ("--init-lora", "--lora"),
    "--adapter-file": ("--init-lora", "--lora"),
    "--adapter-path": ("--outdir", "--lora"),
    "--lora-path": ("--lora",),
    "--lora-dir": ("--lora",),
    # output
    "--output-dir": ("--outdir",),
    "--out-dir": ("--outdir",),
    "--save-dir": ("--outdir",),
    "--save-steps": ("--save-every-steps",),
    "--checkpoint-every": ("--save-every-steps",),
    "--resume-from-checkpoint": ("--checkpoint-in",),
    "--eval-steps": ("--eval-every",),
    "--steps-per-eval": ("--eval-every",),
    "--val-every": ("--eval-every",),
    "--early-stopping-patience": ("--early-stop",),
    "--patience": ("--early-stop",),
    # models and text
    "--base-model": ("--model",),
    "--model-id": ("--model",),
    "--model-name": ("--model",),
    "--model-name-or-path": ("--model",),
    "--model-path": ("--model",),
    "--max-model-len": ("--ctx-size",),
    "--context-length": ("--ctx-size",),
    "--n-ctx": ("--ctx-size",),
    "--num-ctx": ("--ctx-size",),
    "--max-new-tokens": ("--n-predict",),
    "--max-tokens": ("--n-predict",),
    "--n-tokens": ("--n-predict",),
    "--repetition-penalty": ("--repeat-penalty",),
    "--stop-sequence": ("--stop",),
    "--system": ("--system-prompt",),
    "--interactive-chat": ("--conversation",),
    "--served-model-name": ("--alias",),
    "--quant-type": ("--outtype",),
}
# What turns a flag into its opposite: near misses across it would say the contrary of what was meant.
OPPOSITES = ("no-", "not-", "disable-", "without-", "skip-")
NEAR = 0.8


def hint(word, flags):
    """Return what to say behind the name of an unknown word of the command line, "" for nothing.

    flags: those that the command has.
    """
    name = word.partition("=")[0]
    if name.startswith("--"):
        name = "--" + name[2:].replace("_", "-")
    if name in REASONS:
        return f"; {REASONS[name]}"
    if name.startswith("--"):
        return _from_elsewhere(name, flags) or _near_miss(name, flags)
    # Not an unknown flag, but a known one with its value glued on: -n5
    if name[:2] in flags and (word[2:3] == "=" or is_number("-" + word[2:]) or is_number(word[2:])):
        return f"; a value is a word of its own: {word[:2]} {word[2:].removeprefix('=')}"
    return _from_elsewhere(name, flags)


def _from_elsewhere(name, flags):
    names = ELSEWHERE.get(name, ())
    here = next((here for here in names if here in flags), None)
    remarks = "".join(f" ({remark})" for remark in names if not remark.startswith("-"))
    return f"; in llamacy this is {here}{remarks}" if here else ""


def _near_miss(name, flags):
    long = [flag for flag in flags if flag.startswith("--") and _is_negative(flag) == _is_negative(name)]
    return "".join(f"; did you mean {near}?" for near in get_close_matches(name, long, 1, NEAR))


def _is_negative(flag):
    return flag[2:].startswith(OPPOSITES)
