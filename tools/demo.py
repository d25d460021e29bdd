"""`make demo`: the whole story on the sample data. Fine-tune, ask, serve, send one request, stop."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADAPTER = ROOT / "adapter" / "demo.bin"
QUESTION = "golf with Sophie, May 7, 2027, 19:30"
PROMPT = f"### Instruction:\n{QUESTION}\n### Response:\n"
PORT = "18080"


def show(*words):
    """Print a command as one would type it, run it, and stop the demo if it fails."""
    words = [str(word) for word in words]
    print("\n$", " ".join(repr(word) if " " in word else word for word in words), flush=True)
    subprocess.run(words, cwd=ROOT, check=True)


def wait_until_up(server, url, seconds=60):
    """Return when the server answers /health; RuntimeError when it ended or took too long."""
    deadline = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError(f"the server did not come up (exit code {server.poll()})")


def serve_one_request():
    """Start the server with the new adapter, ask it once, stop it; return its exit code."""
    command = ["./bin/server", "--lora", str(ADAPTER), "--port", PORT]
    print("\n$", " ".join(command), "&", flush=True)
    server = subprocess.Popen(command, cwd=ROOT)
    url = f"http://127.0.0.1:{PORT}"
    try:
        wait_until_up(server, url)
        body = {"prompt": PROMPT, "n_predict": 48, "temperature": 0}
        print(f"$ curl {url}/completion -d '{json.dumps(body)}'", flush=True)
        request = urllib.request.Request(f"{url}/completion", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=120) as answer:
            print(json.load(answer)["content"])
    finally:
        server.terminate()
        code = server.wait(30)
    return code


if __name__ == "__main__":
    how = ["--epochs", 3, "--batch-size", 4, "--learning-rate", "1e-3", "--save-every", 0]
    show("./bin/finetune", "--save-path", ADAPTER, *how)
    show("./bin/main", "--lora", ADAPTER, "-p", PROMPT, "-n", 48, "--temp", 0)
    sys.exit(serve_one_request())
