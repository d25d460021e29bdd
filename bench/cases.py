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

    With `timed`, what is measured is the whole process's time instead, in seconds. aim: the ratio we want. streams:
    every token reads all weights once, so that the read bandwidth is a limit to compare with. heavy: measured in one
    round only, and not in a quick run. Without `theirs` there is no peer: it does not fit or does not open the file.
    """

    name: str
    model: str
    peer: str
    ours: tuple
    theirs: tuple
    aim: float
    timed: bool = False
    streams: bool = False
    heavy: bool = False


def speed(model, aim, prompt=0, generate=0, depth=0):
    """Return the case of a prompt or a generation behind `depth` tokens."""
    test = f"prompt of {prompt}" if prompt else f"generation of {generate}"
    numbers = (prompt, generate, depth)
    return Case(
        f"{test}{f' after {depth}' if depth else ''}, {model}",
        model,
        LLAMA_CPP,
        ("bin/bench", "-m", "{model}", "-p", prompt, "-n", generate, "-d", depth, "-r", "{repetitions}", *OURS),
        ("peer_llama_cpp.py", "speed", "{model}", *numbers, "{threads}", "{repetitions}"),
        aim,
        streams=bool(generate and not depth),
    )


def clients(model, aim, n, generate, n_ctx=4096):
    """Return the case of n clients that ask a server at once; every slot may hold n_ctx tokens."""
    client = ("http_clients.py", n, generate, "{repetitions}")
    sizes = ("-np", n, "-c", n_ctx, "-t", "{threads}")
    return Case(
        f"{n} HTTP clients x {generate} at once, {model}",
        model,
        LLAMA_CPP,
        (*client, str(ROOT / "bin/server"), "-m", "{model}", *sizes, "--port", "PORT"),
        (*client, "{python}", "bench/peer_llama_cpp.py", "serve", "{model}", n, n_ctx, "{threads}", "PORT"),
        aim,
    )


def first_token(model, aim):
    """Return the case of one token, from the start of the process to its end."""
    ours = ("bin/main", "-m", "{model}", "-n", 1, "-p", "Hello", "--temp", 0, "-t", "{threads}")
    theirs = ("peer_llama_cpp.py", "first", "{model}", "{threads}")
    return Case(f"one token, start to exit, {model}", model, LLAMA_CPP, ours, theirs, aim, timed=True)


def training(model, aim, batch_size, tokens, rank=8, heavy=False, fits_peer=True):
    """Return the case of LoRA steps on all linear matrices: forward, backward and update."""
    steps = "{repetitions}"
    sizes = ("--batch-size", batch_size, "--ctx-size", tokens, "--lora-r", rank, "-r", steps)
    return Case(
        f"training {batch_size} x {tokens}, r {rank}, {model}",
        model,
        PEFT,
        ("bin/bench", "-m", "{model}", "--train", "-p", 0, "-n", 0, *sizes, *OURS),
        ("peer_peft.py", "{model}", batch_size, tokens, rank, "{threads}", steps) if fits_peer else (),
        aim,
        heavy=heavy,
    )


OURS = ("-t", "{threads}", "-o", "json")
SMOL, SMALL, LARGE = "SmolLM2 Q4_1", "135M shape Q4_0", "1.1B shape Q4_0"
CASES = [
    speed(SMOL, 1.7, generate=64),
    speed(SMOL, 4, prompt=512),
    speed(SMOL, 1.5, generate=32, depth=4096),
    clients(SMOL, 2.5, 8, 64),
    first_token(SMOL, 1),
    training(SMALL, 3, 1, 256),
    training(SMALL, 3, 4, 256),
    speed("SmolLM2 Q4_0", 1.4, generate=64),
    speed("SmolLM2 Q4_K_M", 1.7, generate=64),
    speed("SmolLM2 Q8_0", 1.4, generate=64),
    speed("SmolLM2 Q4_K_M", 2.5, prompt=512),
    speed("SmolLM2 Q8_0", 2, prompt=512),
    speed(LARGE, 1.6, generate=64),
    speed(LARGE, 2.8, prompt=512),
    training(LARGE, 3, 1, 512, heavy=True),
]
# Measured only when --only names them: the file alone takes a minute and 4 GB.
EXTRA = [training("7B shape Q4_0", 1, 1, 512, heavy=True, fits_peer=False)]


def model_file(name, peer_python):
    """Return the path of a model named in CASES, made in bench/work when it is not there yet."""
    if name == SMOL:
        return DEFAULT_MODEL
    kind, type_name = name.rsplit(" ", 1)
    path = WORK / f"{kind.split()[0]}-{type_name}.gguf"
    if not path.exists():
        WORK.mkdir(exist_ok=True)
        part = path.with_suffix(".tmp")
        if kind == "SmolLM2":
            # llama.cpp's own quantiser: both sides read the same file, and it is the peer's
            script, arguments = "peer_llama_cpp.py", ["quantize", DEFAULT_MODEL, part, type_name]
        else:
            script, arguments = "make_model.py", [kind.split()[0], type_name, part]
        python = peer_python if kind == "SmolLM2" else sys.executable
        subprocess.run([python, ROOT / "bench" / script, *arguments], check=True, stdout=subprocess.DEVNULL)
        part.rename(path)
    return path
