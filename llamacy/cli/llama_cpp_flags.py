"""llama.cpp's flags that mean nothing to llamacy, so that pasted command lines run, and those that are not built.

A row is here only where its absence changes nothing in the result: where the work is done (GPUs, threads of batches,
NUMA), how much at once, how logs look. Whatever changes the text is a flag of the command's own or refused.
(Names and values: llama.cpp's common/arg.cpp and tools/llama-bench.)
"""

from collections import namedtuple

ON_OFF = ("on", "off", "auto", "true", "false", "enabled", "disabled", "0", "1", "-1")


class Ignored(namedtuple("Ignored", "values optional", defaults=(0, ()))):
    """A flag without effect: `values` words behind it, and one more where it is among `optional`."""

    __slots__ = ()

    def take(self, rest, is_value):
        """Take the flag's values from `rest`; None where there are too few."""
        if self.optional and rest and rest[0] in self.optional:
            return [rest.pop(0)]
        if len(rest) < self.values or not all(map(is_value, rest[: self.values])):
            return None
        return [rest.pop(0) for _ in range(self.values)]


SWITCH, VALUE, MAYBE = Ignored(), Ignored(1), Ignored(0, ON_OFF)

# where the work is done
DEVICES = {
    ("-ngl", "--gpu-layers", "--n-gpu-layers"): VALUE,
    ("-sm", "--split-mode"): VALUE,
    ("-ts", "--tensor-split"): VALUE,
    ("-mg", "--main-gpu"): VALUE,
    ("-dev", "--device"): VALUE,
    ("-ot", "--override-tensor"): VALUE,
    ("-ncmoe", "--n-cpu-moe"): VALUE,
    ("-lzm", "--lazy-mode"): VALUE,
    ("-fitt", "--fit-target"): VALUE,
    ("-fitc", "--fit-ctx"): VALUE,
    ("-C", "--cpu-mask"): VALUE,
    ("--cpu-strict",): VALUE,
    ("--prio",): VALUE,
    ("--poll",): VALUE,
    ("--numa",): VALUE,
    ("-fa", "--flash-attn"): MAYBE,
}
PLACEMENT = {
    **DEVICES,
    ("-cmoe", "--cpu-moe"): SWITCH,
    ("-ncffn", "--n-cpu-ffn"): VALUE,
    ("-fit", "--fit"): MAYBE,
    ("-kvo", "--kv-offload", "-nkvo", "--no-kv-offload"): SWITCH,
    ("--repack", "-nr", "--no-repack"): SWITCH,
    ("--op-offload", "-nopo", "--no-op-offload"): SWITCH,
    ("--no-host",): SWITCH,
    ("-tb", "--threads-batch"): VALUE,
    ("-Cr", "--cpu-range"): VALUE,
    ("-Cb", "--cpu-mask-batch"): VALUE,
    ("-Crb", "--cpu-range-batch"): VALUE,
    ("--cpu-strict-batch",): VALUE,
    ("--prio-batch",): VALUE,
    ("--poll-batch",): VALUE,
    ("-mmq", "--mul-mat-q", "-nommq", "--no-mul-mat-q"): SWITCH,
    ("--low-vram",): SWITCH,
    ("--mmap",): SWITCH,
    ("-dio", "--direct-io", "-ndio", "--no-direct-io"): SWITCH,
    ("--check-tensors",): SWITCH,  # always done
}
# how logs look; here they are short, on stderr, without colours
LOGS = {
    ("--log-disable",): SWITCH,
    ("--log-enable",): SWITCH,
    ("--log-new",): SWITCH,
    ("--log-append",): SWITCH,
    ("--log-colors",): MAYBE,
    ("--log-prefix", "--no-log-prefix"): SWITCH,
    ("--log-timestamps", "--no-log-timestamps"): SWITCH,
    ("--no-log-jsonl",): SWITCH,
    ("-lv", "--verbosity", "--log-verbosity"): VALUE,
    ("--perf", "--no-perf"): SWITCH,
    ("--offline",): SWITCH,
}
# how the cache lies in memory
CACHE = {
    ("-ub", "--ubatch-size"): VALUE,
    ("-dt", "--defrag-thold"): VALUE,
    ("--swa-full",): SWITCH,
    ("-kvu", "--kv-unified", "-no-kvu", "--no-kv-unified"): SWITCH,
}
WARMUP = {("--warmup", "--no-warmup"): SWITCH}
GENERATION = {
    **WARMUP,
    ("-bs", "--backend-sampling"): SWITCH,
    ("--jinja", "--no-jinja"): SWITCH,
    ("-ctxcp", "--ctx-checkpoints", "--swa-checkpoints"): VALUE,
    ("-cram", "--cache-ram"): VALUE,
    ("--no-mmproj", "--no-mmproj-auto", "--mmproj-auto"): SWITCH,
    ("--mmproj-offload", "--no-mmproj-offload"): SWITCH,
}
COMPUTING = {**PLACEMENT, **LOGS, **CACHE}

# for each command, those of the llama.cpp tool that it stands for
WITHOUT_EFFECT = {
    "main": {
        **COMPUTING,
        **GENERATION,
        ("-np", "--parallel"): VALUE,
        ("-co", "--color"): MAYBE,
        ("--simple-io",): SWITCH,
        ("--show-timings", "--no-show-timings"): SWITCH,
        ("-ptc", "--print-token-count"): VALUE,
    },
    "server": {
        **COMPUTING,
        **GENERATION,
        ("-cb", "--cont-batching", "-nocb", "--no-cont-batching"): SWITCH,
        ("-cms", "--checkpoint-min-step"): VALUE,
        ("--cache-idle-slots", "--no-cache-idle-slots"): SWITCH,
        ("--cache-reuse",): VALUE,
        ("-sps", "--slot-prompt-similarity"): VALUE,
        ("--threads-http",): VALUE,
        ("--sse-ping-interval",): VALUE,
        ("--sleep-idle-seconds",): VALUE,
        ("--tags",): VALUE,
    },
    "perplexity": {
        **COMPUTING,
        **WARMUP,
        ("-b", "--batch-size"): VALUE,
        ("-np", "--parallel"): VALUE,
        ("--no-context-shift",): SWITCH,
    },
    "bench": {
        **DEVICES,
        ("-fa", "--flash-attn"): VALUE,
        ("-b",): VALUE,
        ("-ub", "--ubatch-size"): VALUE,
        ("-mmp", "--mmap"): VALUE,
        ("-dio", "--direct-io"): VALUE,
        ("-nkvo", "--no-kv-offload"): VALUE,
        ("-nopo", "--no-op-offload"): VALUE,
        ("--no-host",): VALUE,
        ("--repack",): VALUE,
        ("-v", "--verbose"): SWITCH,
        ("--progress",): SWITCH,
    },
    "quantize": {("--max-buffer-size",): VALUE},
    "convert": {
        ("--use-temp-file",): SWITCH,
        ("--no-lazy",): SWITCH,
        ("--verbose",): SWITCH,
        ("--vocab-type",): VALUE,  # told from the tokenizer's own files
        ("--pad-vocab",): SWITCH,
        ("--concurrency",): VALUE,
    },
    "tokenize": {("--log-disable",): SWITCH, ("--no-escape",): SWITCH, ("--offline",): SWITCH},
    "export-lora": {**COMPUTING, ("--no-mmap",): SWITCH},
    "finetune": {
        **COMPUTING,
        ("--no-warmup",): SWITCH,
        ("--use-flash", "--no-flash"): SWITCH,
        ("-opt", "--optimizer"): Ignored(0, ("adamw",)),
    },
}

DOWNLOADS = "nothing is downloaded: get the file and name it with -m FILE"
DRAFTS = "models that draft for another are not built; --draft-lookup N guesses from the text itself"
IMAGES = "images, sound and video are not built"
VECTORS = "control vectors are not built"

# flags of llama.cpp that change the result and are not built -> what to say
NOT_BUILT = {
    ("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-hft", "--hf-token"): DOWNLOADS,
    ("-mu", "--model-url", "-dr", "--docker-repo", "-cl", "--cache-list"): DOWNLOADS,
    ("-hfd", "-hfrd", "--hf-repo-draft", "--spec-draft-hf", "-hfv", "-hfrv", "--hf-repo-v"): DOWNLOADS,
    ("-md", "--model-draft", "--spec-draft-model", "-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft"): DRAFTS,
    ("--draft", "--draft-n", "--draft-max", "--draft-min", "--draft-n-min", "--draft-p-min", "--draft-p-split"): DRAFTS,
    ("-td", "--threads-draft", "-tbd", "--threads-batch-draft", "-cd", "--ctx-size-draft"): DRAFTS,
    ("-devd", "--device-draft", "-ctkd", "--cache-type-k-draft", "-ctvd", "--cache-type-v-draft"): DRAFTS,
    ("--spec-type", "--spec-default", "--spec-draft-n-max", "--spec-draft-n-min", "--spec-draft-p-min"): DRAFTS,
    ("--spec-draft-p-split", "--spec-synth-len", "--spec-synth-rates", "--spec-draft-backend-sampling"): DRAFTS,
    ("-lcs", "--lookup-cache-static", "-lcd", "--lookup-cache-dynamic"): DRAFTS,
    ("-mm", "--mmproj", "-mmu", "--mmproj-url", "--image", "--audio", "--video", "--media-path"): IMAGES,
    ("--control-vector", "--control-vector-scaled", "--control-vector-layer-range"): VECTORS,
    ("-rpc", "--rpc"): "one machine computes, none on the network",
    ("-gan", "--grp-attn-n", "-gaw", "--grp-attn-w"): "grouped attention (self-extend) is not built",
    ("--models-dir", "--models-preset", "--models-max"): "a server has one model; run one for each",
    ("--hellaswag", "--winogrande", "--multiple-choice"): "for questions with choices there is evaluate --data FILE",
    ("--ppl-stride", "--ppl-output-type"): "windows follow each other, second halves scored: no other way is built",
    ("--kl-divergence", "--kl-divergence-base", "--save-all-logits"): "perplexity and evaluate have it",
    ("-lr-min", "--learning-rate-min"): "--lr-schedule says how the learning rate falls",
    ("-decay-epochs", "--learning-rate-decay-epochs"): "--lr-schedule says how the learning rate falls",
    ("-oe", "--output-err"): "rows go to stdout, as -o says",
    ("-embd",): "hidden states are not measured",
    ("--log-jsonl",): "logs are lines of text on stderr",
    ("--bigendian",): "files are little-endian",
    ("--split-max-size", "--split-max-tensors", "--no-tensor-first-split"): "a model is written as one file",
    ("--remote", "--base-model-id"): DOWNLOADS,
    ("--prune-layers",): "layers cannot be left out",
    ("-gqa", "--gqa"): "the model file says it",
    ("--memory-f32",): "in llamacy this is -ctk f32 -ctv f32",
    ("-eps", "--rms-norm-eps"): "in llamacy this is --rms-eps",
}
REASONS = {flag: reason for flags, reason in NOT_BUILT.items() for flag in flags}


def without_effect(command):
    """Return {flag: Ignored} of the llama.cpp flags that `command` accepts without effect."""
    return {flag: kind for flags, kind in WITHOUT_EFFECT.get(command, {}).items() for flag in flags}


def epilog(command):
    """Return what `--help` says of them, None where there are none."""
    rows = WITHOUT_EFFECT.get(command)
    if not rows:
        return None
    return "Taken from llama.cpp's command lines without effect, with a note: " + ", ".join(
        flag for flags in rows for flag in flags
    )
