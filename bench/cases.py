"""What `make bench` measures: one row per measure, with the command of ours and of the engine it is compared with."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "bench" / "work"
DEFAULT_MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
LLAMA_CPP, PEFT = "llama.cpp", "PEFT + torch f32"


@dataclass(frozen=True)
class Case:
    """A measure: `ours` and `theirs` are commands whose last line of stdout is JSON with "ts" and "peak_rss_bytes".

    With `timed`, what is measured is the whole process's time instead, in seconds.
    """

    name: str
    model: str
    peer: str
    ours: tuple
    theirs: tuple
    timed: bool = False


def speed(model, prompt=0, generate=0, depth=0, repetitions=3):
    """Return the case of a prompt or a generation behind `depth` tokens."""
    test = f"prompt of {prompt}" if prompt else f"generation of {generate}"
    numbers = (prompt, generate, depth)
    return Case(
        f"{test}{f' after {depth}' if depth else ''}, {model}",
        model,
        LLAMA_CPP,
        ("bin/bench", "-m", "{model}", "-p", prompt, "-n", generate, "-d", depth, "-r", repetitions, *OURS),
        ("peer_llama_cpp.py", "speed", "{model}", *numbers, "{threads}", repetitions),
    )


def batch(model, sequences, generate, repetitions=3):
    """Return the case of several sequences generated at once."""
    return Case(
        f"generation of {generate} x {sequences} at once, {model}",
        model,
        LLAMA_CPP,
        ("bin/bench", "-m", "{model}", "-p", 0, "-n", generate, "-np", sequences, "-r", repetitions, *OURS),
        ("peer_llama_cpp.py", "batch", "{model}", sequences, generate, "{threads}", repetitions),
    )


def first_token(model):
    """Return the case of one token, from the start of the process to its end."""
    ours = ("bin/main", "-m", "{model}", "-n", 1, "-p", "Hello", "--temp", 0, "-t", "{threads}")
    theirs = ("peer_llama_cpp.py", "first", "{model}", "{threads}")
    return Case(f"one token, start to exit, {model}", model, LLAMA_CPP, ours, theirs, timed=True)


def training(model, batch_size, tokens, steps=3, rank=8):
    """Return the case of LoRA steps on all linear matrices: forward, backward and update."""
    sizes = ("--batch-size", batch_size, "--ctx-size", tokens, "--lora-r", rank, "-r", steps)
    return Case(
        f"training {batch_size} x {tokens}, r {rank}, {model}",
        model,
        PEFT,
        ("bin/bench", "-m", "{model}", "--train", "-p", 0, "-n", 0, *sizes, *OURS),
        ("peer_peft.py", "{model}", batch_size, tokens, rank, "{threads}", steps),
    )


OURS = ("-t", "{threads}", "-o", "json")
SMOL, SMALL, LARGE = "SmolLM2 Q4_1", "135M shape Q4_0", "1.1B shape Q4_0"
CASES = [
    speed(SMOL, generate=64),
    speed(SMOL, prompt=512),
    speed(SMOL, generate=64, depth=4096),
    batch(SMOL, 8, 64),
    first_token(SMOL),
    training(SMALL, 1, 256),
    training(SMALL, 4, 256),
    *(speed(f"SmolLM2 {name}", generate=64) for name in ("Q4_0", "Q8_0")),
    *(speed(f"SmolLM2 {name}", prompt=512) for name in ("Q4_0", "Q8_0")),
    speed(LARGE, generate=64),
    speed(LARGE, prompt=512, repetitions=2),
]


def model_file(name, peer_python):
    """Return the path of a model named in CASES, made in bench/work when it is not there yet."""
    if name == SMOL:
        return DEFAULT_MODEL
    kind, type_name = name.rsplit(" ", 1)
    path = WORK / f"{kind.split()[0]}-{type_name}.gguf"
    if not path.exists():
        WORK.mkdir(exist_ok=True)
        if kind == "SmolLM2":
            script, arguments = "peer_llama_cpp.py", ["quantize", DEFAULT_MODEL, path, type_name]
        else:
            script, arguments = "make_model.py", [kind.split()[0], type_name, path]
        python = peer_python if kind == "SmolLM2" else sys.executable
        subprocess.run([python, ROOT / "bench" / script, *arguments], check=True, stdout=subprocess.DEVNULL)
    return path
