"""Tests against other engines, which they need: run only when asked for by path (`make test-peers`)."""

import os
import sys
import tarfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SOURCE = os.environ.get("LLAMACY_LLAMA_CPP_SOURCE")


def pytest_ignore_collect(collection_path, config):
    """Leave this folder out unless an argument of the run lies in it; None lets pytest decide as usual."""
    asked = (Path(config.invocation_params.dir, arg.split("::")[0]).resolve() for arg in config.args)
    return None if any(path.is_relative_to(HERE) for path in asked) else True


@pytest.fixture(scope="session")
def llama_cpp_source(tmp_path_factory):
    """llama.cpp's source: LLAMACY_LLAMA_CPP_SOURCE, a folder or llama-cpp-python's source package; skips without."""
    if not SOURCE:
        pytest.skip("LLAMACY_LLAMA_CPP_SOURCE is not set: run make test-peers")
    folder = Path(SOURCE).resolve()
    if folder.is_file():
        unpacked = tmp_path_factory.mktemp("source")
        wanted = ("/llama.cpp/models/", "/llama.cpp/conversion/", "/llama.cpp/gguf-py/", "/convert_hf_to_gguf.py")
        with tarfile.open(folder) as archive:
            members = [m for m in archive if m.isfile() and any(part in m.name for part in wanted)]
            archive.extractall(unpacked, members, filter="data")
        folder = unpacked
    return next(path for path in [folder, *folder.glob("*/vendor/llama.cpp")] if (path / "models").is_dir())


@pytest.fixture(scope="session")
def source(llama_cpp_source):
    """llama.cpp's models/ folder: vocabularies with test strings, and templates."""
    return llama_cpp_source / "models"


@pytest.fixture(scope="session")
def run_converter(llama_cpp_source):
    """A function (HF folder, out, outtype): llama.cpp's own converter in a process of its own."""
    import subprocess

    def convert(folder, out, outtype):
        script = llama_cpp_source / "convert_hf_to_gguf.py"
        if not script.exists():
            pytest.skip(f"{llama_cpp_source} holds no converter")
        command = [sys.executable, str(script), str(folder), "--outfile", str(out), "--outtype", outtype]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return out

    return convert
