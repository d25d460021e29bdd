"""llama.cpp through llama-cpp-python, measured as `bin/bench` measures us; run by bench/run.py in the peers' Python.

    python peer_llama_cpp.py speed MODEL PROMPT GENERATE DEPTH THREADS REPETITIONS
    python peer_llama_cpp.py batch MODEL SEQUENCES GENERATE THREADS REPETITIONS
    python peer_llama_cpp.py first MODEL THREADS
    python peer_llama_cpp.py serve MODEL SLOTS CONTEXT THREADS PORT     (until it is ended)
    python peer_llama_cpp.py quantize IN OUT TYPE

Prints one JSON object: {"ts": [tokens/s of each repetition], "peak_rss_bytes"}.
"""

import ctypes
import functools
import json
import queue
import random
import sys
import threading
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


class Slot:
    """A sequence of `serve`: the tokens still to read, how many to make, and whom to tell."""

    def __init__(self, number):
        self.number, self.done = number, None


def serve(path, slots, n_ctx, threads, port):
    """POST /completion {prompt, n_predict}: greedy, all slots in one llama_decode a step, as in llama.cpp's server.

    The package brings llama.cpp's library, not its server; this is the least that several clients need.
    """
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    context, _ = open_context(path, slots * n_ctx, threads, slots)
    vocab, waiting = ll.llama_model_get_vocab(ll.llama_get_model(context)), queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self, data):
            body = json.dumps(data).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer({"status": "ok"})

        def do_POST(self):
            data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            done = queue.Queue()
            waiting.put((data, done))
            self.answer(done.get())

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

    threading.Thread(target=Server(("127.0.0.1", port), Handler).serve_forever, daemon=True).start()
    compute(context, vocab, [Slot(i) for i in range(slots)], waiting)


def compute(context, vocab, slots, waiting):
    """Serve what waits, forever: every step takes the prompts that came and one token of each other sequence."""
    memory, sampler = ll.llama_get_memory(context), ll.llama_sampler_init_greedy()
    batch = ll.llama_batch_init(2048, 0, 1)
    while True:
        for slot in slots:
            idle = all(other.done is None for other in slots)
            if slot.done is None and (idle or not waiting.empty()):
                data, slot.done = waiting.get()
                slot.tokens, slot.left, slot.made, slot.at = tokenize(vocab, data["prompt"]), data["n_predict"], [], 0
                ll.llama_memory_seq_rm(memory, slot.number, -1, -1)
        batch.n_tokens, last = 0, []
        for slot in (slot for slot in slots if slot.done is not None):
            for token in slot.tokens:
                i = batch.n_tokens
                batch.token[i], batch.pos[i], batch.logits[i] = token, slot.at, 0
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, slot.number
                batch.n_tokens, slot.at = i + 1, slot.at + 1
            batch.logits[batch.n_tokens - 1] = 1
            last.append((slot, batch.n_tokens - 1))
        if ll.llama_decode(context, batch):
            sys.exit("llama_decode failed")
        for slot, i in last:
            slot.made.append(ll.llama_sampler_sample(sampler, context, i))
            slot.tokens, slot.left = slot.made[-1:], slot.left - 1
            if not slot.left:
                text = b"".join(map(functools.partial(piece, vocab), slot.made)).decode("utf-8", "replace")
                slot.done.put({"content": text, "tokens_predicted": len(slot.made)})
                slot.done = None


def tokenize(vocab, text):
    data = text.encode()
    found = (ll.llama_token * (len(data) + 2))()
    return found[: ll.llama_tokenize(vocab, data, len(data), found, len(found), True, True)]


def piece(vocab, token):
    text = ctypes.create_string_buffer(256)
    return text.raw[: max(0, ll.llama_token_to_piece(vocab, token, text, 256, 0, False))]


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
    actions = {"speed": speed, "batch": batch, "first": first, "serve": serve, "quantize": quantize}
    speeds = actions[action](*arguments)
    print(json.dumps({"ts": speeds, "peak_rss_bytes": peak_rss_bytes()}))
