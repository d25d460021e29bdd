"""Several clients at once against a server, ours or llama.cpp's: tokens per second in all; run by bench/run.py.

    python http_clients.py CLIENTS GENERATE REPETITIONS COMMAND...

Starts COMMAND (its words `PORT` become a free port), waits for /health, lets CLIENTS post a prompt each to /completion
at once and stops the server. Prints one JSON object: {"ts": [of each repetition], "peak_rss_bytes": the server's}.
"""

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

START_SECONDS, ANSWER_SECONDS = 120, 600
PROMPT = "Client {}: tell me, in a few words, what a river does on its way to the sea."


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def fetch(port, path, data=None, seconds=ANSWER_SECONDS):
    """Return the JSON answer of a GET, or of a POST of `data`."""
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        return json.loads(answer.read())


def wait_for_health(server, port):
    """Return when the server is ready; SystemExit when it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            fetch(port, "/health", seconds=1)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    sys.exit(f"the server did not start: exit code {server.poll()}")


def ask_all(port, clients, generate):
    """Return the tokens per second of `clients` requests posted at once."""
    tokens, lock = [], threading.Barrier(clients + 1)

    def client(i):
        lock.wait()
        data = {"prompt": PROMPT.format(i), "n_predict": generate, "temperature": 0, "ignore_eos": True}
        tokens.append(fetch(port, "/completion", data | {"cache_prompt": False})["tokens_predicted"])

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    lock.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    if len(tokens) != clients or min(tokens) != generate:
        sys.exit(f"wanted {generate} tokens for each of {clients} clients, got {tokens}")
    return sum(tokens) / seconds


def peak_rss_bytes(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def main(clients, generate, repetitions, command):
    port = free_port()
    words = [str(port) if word == "PORT" else word for word in command]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_health(server, port)
        ask_all(port, clients, 4)
        speeds = [ask_all(port, clients, generate) for _ in range(repetitions)]
        peak = peak_rss_bytes(server.pid)
    finally:
        server.terminate()
        server.wait(20)
    print(json.dumps({"ts": speeds, "peak_rss_bytes": peak}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4:])
