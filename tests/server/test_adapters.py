"""Adapters as models, loaded, unloaded and swapped while the server runs; on a small real model and on a fake one."""

import os

import numpy as np
import pytest

from llamacy.formats.adapter import save_adapter
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.kernels.reference import model as twin
from llamacy.model.model import load_model
from llamacy.server import adapters
from tests.generate.fakes import FakeModel
from tests.model.tiny import CONFIG, write_llama
from tests.server.service import ask, error_of, post, serving, wait_until


def write_adapter(path, seed, config=CONFIG):
    """Write an adapter that changes much."""
    random = np.random.default_rng(seed)
    shape = (config.n_ff, config.n_embd)
    pairs = {
        f"blk.{i}.ffn_up.weight": LoraPair(
            random.standard_normal((2, shape[1]), np.float32), random.standard_normal((shape[0], 2), np.float32), 1.0
        )
        for i in range(config.n_layer)
    }
    save_adapter(path, Adapter("llama", pairs, alpha=2.0))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_llama(path, CONFIG, twin.random_weights(CONFIG, 0))
    return path


@pytest.fixture
def service(model_path, tmp_path, monkeypatch):
    monkeypatch.setattr("llamacy.generate.engine.RETIRE_SECONDS", 0.05)
    folder = tmp_path / "adapters"
    folder.mkdir()
    for seed, name in enumerate(("one", "two")):
        write_adapter(folder / f"{name}.gguf", seed)
    (folder / "notes.txt").write_text("no adapter")
    (folder / "broken.gguf").write_bytes(b"GGUF")
    lines = []
    with serving(load_model(model_path, threads=1), lora_dir=str(folder), report=lines.append) as running:
        running.folder, running.lines = folder, lines
        yield running


def text(service, **more):
    data = {"prompt": [5, 6, 7], "n_predict": 12, "temperature": 0, "ignore_eos": True, "return_tokens": True}
    return tuple(post(service, "/completion", **data, **more)["tokens"])


def alone(model_path, path):
    """Return the text of a model that was started with the adapter."""
    from llamacy.formats.adapter import load_adapter

    model = load_model(model_path, threads=1)
    model.add_adapter(load_adapter(path))
    with serving(model) as running:
        return text(running)


def names(service):
    return [one["id"] for one in ask(service, "GET", "/v1/models")[1]["data"]]


def test_adapters_come_and_go(service, model_path):
    base = text(service)
    assert names(service) == ["fake"] and ask(service, "GET", "/lora-adapters")[1] == []
    assert ask(service, "GET", "/lora-adapters/available")[1] == [
        {"name": name, "loaded": False} for name in ("broken", "one", "two")
    ]
    assert post(service, "/lora-adapters/load", name="one") == {"success": True, "id": 0, "name": "one"}
    assert post(service, "/lora-adapters/load", name="two")["id"] == 1
    assert names(service) == ["fake", "one", "two"]
    wanted = {name: alone(model_path, service.folder / f"{name}.gguf") for name in ("one", "two")}
    assert len({base, *wanted.values()}) == 3
    for name, tokens in wanted.items():
        assert text(service, model=name) == tokens
        assert text(service, lora=[{"name": name, "scale": 1}]) == tokens
    assert text(service) == text(service, model="fake") == text(service, model="gpt-4") == base
    chosen = {"prompt": [5], "max_tokens": 1}
    assert post(service, "/v1/completions", model="two", **chosen)["model"] == "two"
    assert post(service, "/v1/completions", model="gpt-4", **chosen)["model"] == "fake"
    post(service, "/lora-adapters/unload", name="one")
    assert names(service) == ["fake", "two"]
    assert error_of(service, "POST", "/completion", {"prompt": "x", "lora": [{"id": 0, "scale": 1}]})[0] == 400
    wait_until(lambda: service.app.adapters._free == [0])
    assert text(service, model="two") == wanted["two"] and text(service) == base
    # The place is taken again, the id is not.
    assert post(service, "/lora-adapters/load", name="one")["id"] == 2
    assert len(service.model.adapters) == 2
    assert text(service, model="one") == wanted["one"]


def test_a_scale_for_all_requests(service):
    base = text(service)
    post(service, "/lora-adapters/load", name="one", scale=1.0)
    with_one = text(service)
    assert with_one == text(service, model="one") != base
    post(service, "/lora-adapters/unload", id=0)
    assert text(service) == base


def test_a_file_written_anew_is_swapped(service, model_path):
    post(service, "/lora-adapters/load", name="one", scale=1.0)
    before = text(service)
    path = service.folder / "one.gguf"
    path.write_bytes(b"GGUF is being written")
    service.app.adapters.check_files()
    assert "not loaded" in service.lines[-1] and text(service) == before
    write_adapter(path, 7)
    os.utime(path, (1, 1))
    service.app.adapters.check_files()
    assert "loaded anew" in service.lines[-1]
    assert text(service) == text(service, model="one") == alone(model_path, path) != before
    assert [one["id"] for one in ask(service, "GET", "/lora-adapters")[1]] == [0]
    wait_until(lambda: len(service.app.adapters._free) == 1)
    service.app.adapters.check_files()
    assert len(service.lines) == 2


def test_a_request_goes_on_with_the_version_it_began_with(monkeypatch):
    monkeypatch.setattr("llamacy.generate.engine.RETIRE_SECONDS", 0.0)
    model = FakeModel(adapters=1)
    with serving(model) as running:
        tokens = text(running)
        running.session.gate.clear()
        from tests.server.service import open_request

        data = {"prompt": [5, 6, 7], "n_predict": 12, "temperature": 0, "ignore_eos": True}
        client = open_request(running, "/completion", data)
        wait_until(lambda: running.engine.busy == 1)
        gone = []
        running.engine.retire_adapter(0, gone.append)
        running.session.gate.set()
        received = b""
        while b'"stop": true' not in received:
            received += client.recv(65536)
        wait_until(lambda: gone == [0])
        assert text(running) != tokens


@pytest.mark.parametrize(
    ("path", "data", "status", "message"),
    [
        ("load", {"name": "three"}, 404, "no adapter 'three'"),
        ("load", {"name": "../one"}, 404, "no adapter '../one'"),
        ("load", {"name": "broken"}, 400, "the adapter 'broken' cannot be loaded: "),
        ("load", {}, 400, "name: wanted an adapter's"),
        ("unload", {"name": "one"}, 404, "no adapter 'one'"),
        ("unload", {"id": 5}, 404, "no adapter 5"),
    ],
)
def test_wrong_names(service, path, data, status, message):
    got = error_of(service, "POST", f"/lora-adapters/{path}", data)
    assert got[0] == status and got[1].startswith(message)


def test_without_a_folder_nothing_is_loaded():
    with serving() as running:
        assert error_of(running, "POST", "/lora-adapters/load", {"name": "x"})[0] == 400


def test_names_are_those_of_the_files():
    paths = ("a/b.gguf", "a/b/", "b.safetensors", "x.y.bin")
    assert [adapters.name_of(path) for path in paths] == ["b", "b", "b", "x.y"]
