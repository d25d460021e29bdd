"""No kernel needs more than a small stack: threads have 128 KB with musl. Scratch lies in the step's memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamacy import kernels

ROOT = Path(__file__).resolve().parents[2]

COMPUTE = """
import sys
import numpy as np
from llamacy import kernels
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from tests.kernels.matrices import inputs
from tests.model.tiny import CONFIG, tokens_of, write_llama

folder, what = sys.argv[1:]
rng = np.random.default_rng(1)


def products():
    x = rng.normal(size=(96, 1536)).astype(np.float32)
    for number in kernels.quants.writable():
        rows = kernels.quants.quantize(x, number, 2)
        kernels.quants.dequantize(rows, number, 2), kernels.finite.finite(rows, number, 2)
        kernels.quants.quantize(x, number, 2, np.ones(1536, np.float32))
        if number not in kernels.matmul.types().values():
            continue
        w = kernels.matmul.PackedMatrix(rows, number, 1536, None, 2)
        for activations in ("int8", "int16", "f32"):
            for t in (1, 2, 5, 40, 140):
                for n_embd in (0, 1024):
                    kernels.matmul.matmul(w, inputs(t, 1536), activations, 2, n_embd)
            kernels.matmul.matmul_backward(w, x[:40, :96].copy(), activations, 2)


def steps():
    for kind in ("F32", "Q4_1", "Q5_0", "Q8_0"):
        write_llama(f"{folder}/m.gguf", CONFIG, twin.random_weights(CONFIG, 1), kind)
        for activations in ("int8", "int16", "f32"):
            model = load_model(f"{folder}/m.gguf", activations=activations, threads=2)
            for n in (150, 20, 1):
                at = np.arange(n)
                for hidden in (False, True):
                    model.new_session(1, 256).step(tokens_of(CONFIG, n), at, 0 * at, at, hidden=hidden)
            ranks = {(layer, slot): (4, 1.0) for layer in (0, 1) for slot in range(7)}
            for checkpointing in (False, True):
                kind_of = "f32" if activations == "f32" else "int16"
                step = kernels.trainstep.TrainStep(model.weights, ranks, 200, 2, kind_of, checkpointing, 0.1)
                ids = tokens_of(CONFIG, 200).astype(np.int32)
                step.run(ids, np.array([0, 50, 200], np.int32), np.roll(ids, -1), 1.0, dropout_key=1)


globals()[what]()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="OMP_STACKSIZE is libgomp's")
@pytest.mark.parametrize("what", ["products", "steps"])
@pytest.mark.parametrize("isa", kernels.available())
def test_a_thread_of_64_kb_is_enough(tmp_path, isa, what):
    done = subprocess.run(
        [sys.executable, "-c", COMPUTE, tmp_path, what],
        env=os.environ | {"OMP_STACKSIZE": "64K", "LLAMACY_ISA": isa, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:] or f"ended by signal {-done.returncode}"
