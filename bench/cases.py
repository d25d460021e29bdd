"""What `make bench` measures: one row per measure, with the command of ours and of the engine it is compared with."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench import real_models
from llamacy.cli.bench import samples_of
from llamacy.formats.model_file import open_model
from llamacy.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "bench" / "work"
INSTRUCTIONS = ROOT / "examples" / "instructions.jsonl"
DEFAULT_MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
LLAMA_CPP, IK_LLAMA_CPP = "llama.cpp", "ik_llama.cpp"
# PEFT by the precision of the frozen weights.
PEFT = {"f32": "PEFT + torch f32", "bf16": "PEFT + torch bf16", "nf4": "PEFT + bitsandbytes NF4"}


class Peer(NamedTuple):
    """An engine that a case is compared with: its command, the ratio we want, None where only the figures count."""

    name: str
    command: tuple
    aim: float | None


@dataclass(frozen=True)
class Case:
    """A measure: `ours` and the peers' are commands that print JSON with "ts" and "peak_rss_bytes".

    With `timed`, what is measured is the whole process's time instead, in seconds. peers: the first is the one that the
    READMEs name; none where no peer fits or opens the file. peak_aim: the most bytes we want to take. streams: every
    token reads all weights once, so that the read bandwidth is a limit to compare with. heavy: measured in one round
    only, and not in a quick run. memory, disk: bytes that the machine must have for a case so large that not every
    machine does. unit: of the figures, unless `timed`.
    """

    name: str
    model: str
    ours: tuple
    peers: tuple = ()
    timed: bool = False
    streams: bool = False
    heavy: bool = False
    peak_aim: float | None = None
    memory: float = 0
    disk: float = 0
    unit: str = "tokens/s"


def speed(model, aim, prompt=0, generate=0, depth=0, ik_aim=1):
    """Return the case of a prompt or a generation behind `depth` tokens."""
    test = f"prompt of {prompt}" if prompt else f"generation of {generate}"
    numbers = (prompt, generate, depth)
    return Case(
        f"{test}{f' after {depth}' if depth else ''}, {model}",
        model,
        ("bin/bench", "-m", "{model}", "-p", prompt, "-n", generate, "-d", depth, "-r", "{repetitions}", *OURS),
        (
            Peer(LLAMA_CPP, ("peer_llama_cpp.py", "speed", "{model}", *numbers, "{threads}", "{repetitions}"), aim),
            Peer(
                IK_LLAMA_CPP,
                ("peer_ik_llama_cpp.py", "{ik}", "{model}", *numbers, "{threads}", "{repetitions}"),
                ik_aim,
            ),
        ),
        streams=bool(generate and not depth),
    )


def clients(model, aim, n, generate, n_ctx=4096):
    """Return the case of n clients that ask a server at once; every slot may hold n_ctx tokens."""
    client = ("http_clients.py", n, generate, "{repetitions}")
    sizes = ("-np", n, "-c", n_ctx, "-t", "{threads}")
    return Case(
        f"{n} HTTP clients x {generate} at once, {model}",
        model,
        (*client, str(ROOT / "bin/server"), "-m", "{model}", *sizes, "--port", "PORT"),
        (
            Peer(
                LLAMA_CPP,
                (*client, "{python}", "bench/peer_llama_cpp.py", "serve", "{model}", n, n_ctx, "{threads}", "PORT"),
                aim,
            ),
        ),
    )


def first_token(model, aim):
    """Return the case of one token, from the start of the process to its end."""
    ours = ("bin/main", "-m", "{model}", "-n", 1, "-p", "Hello", "--temp", 0, "-t", "{threads}")
    theirs = ("peer_llama_cpp.py", "first", "{model}", "{threads}")
    peers = (Peer(LLAMA_CPP, theirs, aim),)
    return Case(f"one token, start to exit, {model}", model, ours, peers, timed=True)


def peft(aims, batch_size, what, rank):
    """Return PEFT as a peer in each precision: `what` is the number of tokens of a sample, or a file of samples."""
    arguments = ("peer_peft.py", "{model}", batch_size, what, rank, "{threads}", "{repetitions}")
    return tuple(Peer(name, (*arguments, kind), aims.get(kind)) for kind, name in PEFT.items())


def training(model, aims, batch_size, tokens, peak_aim, rank=8, **more):
    """Return the case of LoRA steps on all linear matrices (forward, backward, update); aims None: no peer."""
    steps = 1 if aims is None else "{repetitions}"
    sizes = ("--batch-size", batch_size, "--ctx-size", tokens, "--lora-r", rank, "-r", steps)
    return Case(
        f"training {batch_size} x {tokens}, r {rank}, {model}",
        model,
        ("bin/bench", "-m", "{model}", "--train", "-p", 0, "-n", 0, *sizes, *OURS),
        () if aims is None else peft(aims, batch_size, tokens, rank),
        peak_aim=peak_aim,
        **more,
    )


def instructions(model, aims, batch_size, tokens, rank=8):
    """Return the case of epochs over instruction data, answers learnt; PEFT pads a batch's samples to its longest."""
    sizes = ("--batch-size", batch_size, "--ctx-size", tokens, "--lora-r", rank, "-r", "{repetitions}")
    return Case(
        f"training on {INSTRUCTIONS.name} in {batch_size}s, r {rank}, {model}",
        model,
        ("bin/bench", "-m", "{model}", "--train-data", INSTRUCTIONS, "-p", 0, "-n", 0, *sizes, *OURS),
        peft(aims, batch_size, "{samples}", rank),
        unit="samples/s",
    )


OURS = ("-t", "{threads}", "-o", "json")
SMOL, SMALL, LARGE = "SmolLM2 Q4_1", "135M shape Q4_0", "1.1B shape Q4_0"
# Published models as people run them, put together from packages: name here -> in real_models.py.
QWEN, GEMMA = "Qwen2.5-Coder-0.5B Q4_K_M", "Gemma 3 270M Q4_K_M"
REAL = {QWEN: "qwen2.5-coder-0.5b", GEMMA: "gemma3-270m"}
CASES = [
    speed(SMOL, 1.7, generate=64),
    speed(SMOL, 4, prompt=512),
    speed(SMOL, 1.5, generate=32, depth=4096),
    clients(SMOL, 2.5, 8, 64),
    first_token(SMOL, 1),
    training(SMALL, {"f32": 3}, 1, 256, peak_aim=0.5e9),
    training(SMALL, {"f32": 3}, 4, 256, peak_aim=1e9),
    instructions(SMOL, {"f32": 4}, 8, 256),
    speed("SmolLM2 Q4_0", 1.4, generate=64),
    speed("SmolLM2 Q4_K_M", 1.7, generate=64),
    speed("SmolLM2 Q8_0", 1.4, generate=64),
    speed("SmolLM2 Q4_0", None, prompt=512),
    speed("SmolLM2 Q4_K_M", 2.5, prompt=512),
    speed("SmolLM2 Q8_0", 2, prompt=512),
    speed(LARGE, 1.6, generate=64),
    speed(LARGE, 2.8, prompt=512, ik_aim=1.9),
    training(LARGE, {"f32": 3}, 1, 512, peak_aim=2e9, heavy=True),
    *(speed(model, 1.5, generate=64) for model in REAL),
    *(speed(model, 2.5, prompt=512) for model in REAL),
    training(QWEN, {"f32": 2.5, "bf16": 2.5}, 1, 256, peak_aim=None),
    training(GEMMA, {"f32": 2.5, "bf16": 2.5}, 1, 256, peak_aim=0.9e9),
    training("7B shape Q4_0", None, 1, 512, peak_aim=8e9, heavy=True, memory=12e9, disk=5e9),
]


def model_path(name):
    """Return where a model named in CASES lies."""
    if name in REAL:
        return real_models.path_of(REAL[name])
    kind, type_name = name.rsplit(" ", 1)
    return DEFAULT_MODEL if name == SMOL else WORK / f"{kind.split()[0]}-{type_name}.gguf"


def model_file(name, peer_python):
    """Return the path of a model named in CASES, made in bench/work when it is not there yet."""
    if name in REAL:
        return real_models.model_file(REAL[name])
    path = model_path(name)
    kind, type_name = name.rsplit(" ", 1)
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


def samples_file(model):
    """Return the path of the instruction data as tokens, [[ids, learnt 0 or 1], ...]: peers read what we do."""
    path = WORK / f"{model.stem}-{INSTRUCTIONS.stem}.json"
    WORK.mkdir(exist_ok=True)
    with open_model(model) as file:
        samples = samples_of([INSTRUCTIONS], Tokenizer.from_metadata(file.metadata), 256)
    path.write_text(json.dumps([[sample.ids.tolist(), sample.trained.astype(int).tolist()] for sample in samples]))
    return path
