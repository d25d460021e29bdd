"""How a server treats its clients: `python bench/serving.py [constrained] [pauses] [soak]`, a JSON line for each.

constrained  tokens/s of a stream that follows a schema, as a share of a free one's, in turns
pauses       the longest wait between two tokens of four streams: alone, and beside a prompt of 2000 tokens, new
             schemas, lists of embeddings, a large text to cut into tokens
soak         64 clients for 60 s on 16 slots, a tenth of which hang up, beside embeddings and schemas: wrong answers
             (each is compared with what the server said when it was asked alone), statuses, time to the first token,
             memory

The clients are threads of one other process; on a machine with two processors they take a part of what is measured.
"""

import contextlib
import http.client
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS, CLIENTS, SLOTS = 60, 64, 16
WORDS = [
    "the",
    "sea",
    "was",
    "calm",
    "and",
    "a",
    "small",
    "boat",
    "went",
    "out",
    "to",
    "find",
    "what",
    "nobody",
    "knew",
]


@contextlib.contextmanager
def server(*flags):
    """Run bin/server; give (port, process id)."""
    with tempfile.NamedTemporaryFile() as log:
        command = [ROOT / "bin" / "server", "--port", "0", *map(str, flags)]
        process = subprocess.Popen(command, stderr=log, cwd=ROOT)
        try:
            while not (found := re.search(r"listening on http://[^:]+:(\d+)", Path(log.name).read_text())):
                assert process.poll() is None, Path(log.name).read_text()
                time.sleep(0.05)
            yield int(found[1]), process.pid
        finally:
            process.terminate()
            process.wait(30)


def post(port, path, data, timeout=600):
    """Return (status, answer)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(data))
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def stream(port, data, leave_after=None):
    """Return (status, text, when each event came); leave_after: events until the client hangs up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    with contextlib.closing(connection):
        connection.request("POST", "/completion", json.dumps({"stream": True, **data}))
        response, text, times = connection.getresponse(), "", []
        if response.status != 200:
            return response.status, response.read().decode(), times
        while line := response.readline():
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                assert "error" not in event, event
                text, times = text + event["content"], [*times, time.perf_counter()]
                if leave_after is not None and len(times) >= leave_after:
                    break
        return 200, text, times


def schema_of(i):
    """Return a schema that the server has not seen."""
    words = {f"{word}_{i}": {"enum": [f"{other} {i} {n}" for other in WORDS for n in range(5)]} for word in WORDS[:8]}
    return {"type": "object", "properties": words, "required": [*words]}


def constrained():
    """Measure the share that a schema's stream has of a free one's speed."""
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    data = {"prompt": "A long story in JSON:\n", "n_predict": 128, "temperature": 0.8, "ignore_eos": True}
    ratios = []
    with server("-np", 1, "-c", 1024) as (port, _):
        for seed in range(8):
            rates = []
            for more in ({}, {"json_schema": schema}):
                _, _, times = stream(port, {**data, "seed": seed, **more})
                rates.append((len(times) - 2) / (times[-2] - times[0]))
            ratios.append(rates[1] / rates[0])
    return {"constrained_share": statistics.median(ratios[1:]), "of": ratios}


def pauses():
    """Measure the longest wait of four streams beside other requests."""
    text = " ".join(WORDS)
    beside = {
        "alone": None,
        "prompt": lambda port, i: post(port, "/completion", {"prompt": f"{i} " + "word " * 2000, "n_predict": 1}),
        "schemas": lambda port, i: post(
            port, "/completion", {"prompt": "x", "n_predict": 30, "json_schema": schema_of(i)}
        ),
        "embeddings": lambda port, i: post(port, "/v1/embeddings", {"input": [f"{i} {text}"] * 300}),
        "tokenize": lambda port, i: post(port, "/tokenize", {"content": f"{i} {text} " * 20_000}),
    }
    found = {}
    with server("-np", 8, "-c", 4096) as (port, _):
        for name, ask in beside.items():
            gaps, done, starting = [], threading.Event(), threading.Barrier(5 if ask else 4)

            def run(gaps=gaps, starting=starting):
                starting.wait()
                _, _, times = stream(port, {"prompt": "Once upon a time", "n_predict": 200, "ignore_eos": True})
                gaps.extend(b - a for a, b in zip(times, times[1:], strict=False))

            def others(ask=ask, done=done, starting=starting):
                starting.wait()
                for i in range(1000):
                    if done.is_set():
                        return
                    ask(port, time.monotonic_ns() + i)

            threads = [threading.Thread(target=run) for _ in range(4)]
            other = threading.Thread(target=others, daemon=True)
            for thread in [*threads, *([other] if ask else [])]:
                thread.start()
            for thread in threads:
                thread.join()
            done.set()
            if ask:
                other.join()
            found[name] = {"longest": max(gaps), "median": statistics.median(gaps)}
    return {"pauses_seconds": found}


def memory(pid):
    """Return a process's memory in MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def soak():
    """Let many clients ask all kinds of things for a while."""
    chance = random.Random(1)
    cases = []
    for _ in range(24):
        prompt = " ".join(chance.choices(WORDS, k=chance.choice([5, 20, 100, 400])))
        cases.append({"prompt": prompt, "n_predict": chance.choice([4, 16, 64, 128]), "temperature": 0})
    statuses, wrong, first, sizes = Counter(), [], [], []
    with server("-np", SLOTS, "-c", 1024) as (port, pid):
        texts = [stream(port, case)[1] for case in cases]
        fill = [{"prompt": f"{i} " + "word " * 1000, "n_predict": 1, "id_slot": i} for i in range(SLOTS)]
        for data in fill:  # all the memory that texts can take, so that what grows later is something else
            post(port, "/completion", data)
        (vector,) = post(port, "/v1/embeddings", {"input": WORDS[:1]})[1]["data"]
        end = time.monotonic() + SECONDS

        def client(number):
            mine = random.Random(number)
            while time.monotonic() < end:
                began, kind = time.perf_counter(), mine.random()
                if number % 16 == 0 and kind < 0.3:
                    status, answer = post(port, "/v1/embeddings", {"input": WORDS * 4})
                    if status == 200 and answer["data"][0]["embedding"] != vector["embedding"]:
                        wrong.append("embedding")
                elif number % 8 == 0 and kind < 0.6:
                    schema = schema_of(mine.randrange(50))
                    status, answer = post(port, "/completion", {"prompt": "x", "n_predict": 400, "json_schema": schema})
                    is_whole = status == 200 and answer["stop_type"] == "eos"
                    if is_whole and set(json.loads(answer["content"])) != set(schema["properties"]):
                        wrong.append(answer["content"])
                else:
                    at = mine.randrange(len(cases))
                    leaves = mine.randint(1, 5) if mine.random() < 0.1 else None
                    status, text, times = stream(port, cases[at], leaves)
                    if times:
                        first.append(times[0] - began)
                    if status == 200 and not (texts[at].startswith(text) if leaves else text == texts[at]):
                        wrong.append((texts[at], text))
                statuses[status] += 1
                if status in (429, 503):
                    time.sleep(0.5)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        while time.monotonic() < end:
            sizes.append(memory(pid))
            time.sleep(1)
        for thread in threads:
            thread.join()
        sizes.append(memory(pid))
    return {
        "statuses": dict(statuses),
        "wrong": len(wrong),
        "first_wrong": wrong[:1],
        "first_token_p50": statistics.median(first),
        "megabytes": [round(sizes[i]) for i in (0, len(sizes) // 3, 2 * len(sizes) // 3, -1)],
    }


MEASURES = {"constrained": constrained, "pauses": pauses, "soak": soak}

if __name__ == "__main__":
    for name in sys.argv[1:] or MEASURES:
        print(json.dumps({name: MEASURES[name]()}), flush=True)
