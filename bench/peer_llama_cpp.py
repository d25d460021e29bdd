"""llama.cpp through llama-cpp-python, measured as `bin/bench` measures us; run by bench/run.py in the peers' Python.

    python peer_llama_cpp.py speed MODEL PROMPT GENERATE DEPTH THREADS REPETITIONS
    python peer_llama_cpp.py batch MODEL SEQUENCES GENERATE THREADS REPETITIONS
    python peer_llama_cpp.py first MODEL THREADS
    python peer_llama_cpp.py quantize IN OUT TYPE

Prints one JSON object: {"ts": [tokens/s of each repetition], "peak_rss_bytes"}.
"""

import ctypes
import json
import random
import sys
import time

import llama_cpp as ll

SILENT = ll.llama_log_callback(lambda level, text, data: None)


def peak_rss_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def open_context(path, n_ctx, threads, n_seq=1):
    """Return (context, vocabulary size) with llama.cpp's defaults for all but the size and the threads."""
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
    params = ll.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = max(n_ctx, 64), 2048, 512, n_seq
    params.n_threads = params.n_threads_batch = threads
    context = ll.llama_init_from_model(model, params)
    if not context:
        sys.exit(f"llama.cpp could not open {path}")
    return context, ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))


def decode(context, tokens):
    """Run tokens after those before; logits of the last one only."""
    for i in range(0, len(tokens), 2048):
        part = tokens[i : i + 2048]
        array = (ll.llama_token * len(part))(*part)
        if ll.llama_decode(context, ll.llama_batch_get_one(array, len(part))):
            sys.exit("llama_decode failed")
    ll.llama_synchronize(context)


def speed(path, prompt, generate, depth, threads, repetitions):
    """Time a prompt and a generation behind `depth` cached tokens; one run before, unmeasured."""
    context, n_vocab = open_context(path, depth + prompt + generate, threads)
    memory = ll.llama_get_memory(context)
    tokens = [random.randrange(n_vocab) for _ in range(depth + prompt + generate)]
    if depth:
        decode(context, tokens[:depth])
    speeds = []
    for _ in range(repetitions + 1):
        ll.llama_memory_seq_rm(memory, 0, depth, -1)
        begin = time.perf_counter()
        if prompt:
            decode(context, tokens[depth : depth + prompt])
        for token in tokens[depth + prompt :]:
            decode(context, [token])
        speeds.append((prompt + generate) / (time.perf_counter() - begin))
    return speeds[1:]


def batch(path, sequences, generate, threads, repetitions):
    """Time the generation of several sequences at once, one token of each in a step."""
    context, n_vocab = open_context(path, sequences * (generate + 16), threads, sequences)
    memory = ll.llama_get_memory(context)
    step = ll.llama_batch_init(sequences, 0, 1)
    speeds = []
    for _ in range(repetitions + 1):
        ll.llama_memory_clear(memory, False)
        begin = time.perf_counter()
        for position in range(generate):
            step.n_tokens = sequences
            for i in range(sequences):
                step.token[i], step.pos[i], step.logits[i] = random.randrange(n_vocab), position, 1
                step.n_seq_id[i], step.seq_id[i][0] = 1, i
            if ll.llama_decode(context, step):
                sys.exit("llama_decode failed")
            ll.llama_synchronize(context)
        speeds.append(sequences * generate / (time.perf_counter() - begin))
    return speeds[1:]


def first(path, threads):
    """Generate one token as a user of the library would: the caller times the whole process."""
    model = ll.Llama(path, n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    model.create_completion("Hello", max_tokens=1, temperature=0)
    return []


def quantize(source, target, type_name):
    """Write `target` with llama.cpp's own quantiser."""
    params = ll.llama_model_quantize_default_params()
    params.ftype = getattr(ll, f"LLAMA_FTYPE_MOSTLY_{type_name}")
    params.allow_requantize = True
    if ll.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        sys.exit(f"llama_model_quantize failed for {type_name}")
    return []


if __name__ == "__main__":
    ll.llama_log_set(SILENT, ctypes.c_void_p())
    action, *arguments = sys.argv[1:]
    arguments = [int(text) if text.isdigit() else text for text in arguments]
    speeds = {"speed": speed, "batch": batch, "first": first, "quantize": quantize}[action](*arguments)
    print(json.dumps({"ts": speeds, "peak_rss_bytes": peak_rss_bytes()}))
