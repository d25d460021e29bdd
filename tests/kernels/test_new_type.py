"""To add a type of weights is one file and one row, a processor's products one file and the line that chooses them:
made-up ones, compiled for this in a copy of the sources."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "simple kquants iquants kquantize quants finite q3_0 inputs outliers superblocks superblock_types weight_types"
)
MODULES += " four_tokens eight_tokens panels gemm matmul"

# 32 weights of 3 bits with one scale: w = d (q - 4); f16 d; 12 bytes, element j in bits 3 j .. 3 j + 2
ROW = '    WeightType("Q3_0", 200, 32, 14, WIDE, f16(0), home="q3_0", rounds="q3_0"),\n'
FILE = """
from libc.math cimport fabsf, rintf
from libc.stdint cimport int8_t, uint8_t, uint16_t
from libc.string cimport memcpy, memset

from .groups cimport Group, half_at, one_scale
from .sizes cimport Q3_0_BYTES
from ..simd.verbs cimport vf_set1, vf_store_f16

cdef void group_q3_0(const uint8_t* x, int g, Group* out) noexcept nogil:
    cdef int j, bit
    for j in range(32):
        out.q[j] = -4
        for bit in range(3):
            out.q[j] += ((x[2 + (3 * j + bit) // 8] >> ((3 * j + bit) & 7)) & 1) << bit
    one_scale(out, half_at(x), 1)

cdef void quantize_row_q3_0(const float* x, int n, uint8_t* row) noexcept nogil:
    cdef uint16_t lanes[16]
    cdef float peak, d
    cdef int _b, j, bit, q
    for _b in range(n):
        peak = 0
        for j in range(32):
            peak = max(peak, fabsf(x[j]))
        vf_store_f16(lanes, vf_set1(peak / 4))
        d = half_at(<const uint8_t*>lanes)
        memset(row, 0, Q3_0_BYTES)
        memcpy(row, lanes, 2)
        for j in range(32):
            q = min(7, max(0, 4 + <int>rintf(x[j] / d))) if d > 0 else 4
            for bit in range(3):
                row[2 + (3 * j + bit) // 8] |= ((q >> bit) & 1) << ((3 * j + bit) & 7)
        x += 32
        row += Q3_0_BYTES
"""
USE = """
import sys
import numpy as np
from llamacy import kernels
from llamacy.formats import types
from llamacy.kernels import weight_types

assert types.by_name("q3_0").row_bytes(64) == 28
x, inputs, gradient = (np.load(sys.argv[1])[name] for name in ("x", "inputs", "gradient"))
rows = kernels.quants.quantize(x, 200, 2)
matrix = kernels.matmul.PackedMatrix(rows, 200, x.shape[1])
found = {"rows": rows, "weights": kernels.quants.dequantize(rows, 200), "types": kernels.quants.types()}
for name in ("f32", "int16"):
    found[name] = kernels.matmul.matmul(matrix, inputs, name, 2)
    found["one " + name] = kernels.matmul.matmul(matrix, inputs[:1], name)
    found["back " + name] = kernels.matmul.matmul_backward(matrix, gradient, name)
broken = rows.copy()
broken[3, :2] = 0xFF, 0x7F  # a scale that is none
found["finite"] = kernels.finite.finite(broken, 200)
np.savez(sys.argv[2], **found)
"""


# A processor that takes 8 tokens and 2 row groups at a time, in plain loops (processor/): chosen by a variable of the
# environment, as others by what they say they have.
PROCESSOR = Path(__file__).parent / "processor"
CHOICE = "four_tokens()", "eight_tokens() if getenv(b'LLAMACY_EIGHT') != NULL else four_tokens()"
CHOOSING = "from libc.stdlib cimport getenv\nfrom .eight_tokens cimport eight_tokens\n"
PRODUCTS = """
import sys
import numpy as np
from llamacy import kernels

found, rng = {}, np.random.default_rng(3)
x = rng.standard_normal((90, 512)).astype(np.float32)
x[:, 32:64] = 0
for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_K", "Q6_K", "IQ4_NL", "Q8_0", "F16"):
    number = kernels.matmul.types()[name]
    w = kernels.matmul.PackedMatrix(kernels.quants.quantize(x, number), number, 512)
    for t in (1, 3, 5, 7, 8, 17, 20, 131):
        inputs = rng.standard_normal((t, 512)).astype(np.float32)
        inputs[:, 100] *= 20
        gradient = rng.standard_normal((t, 90)).astype(np.float32)
        for activations in ("int8", "int16", "f32"):
            for width in (0, 2048):
                found[f"{name} {t} {activations} {width}"] = kernels.matmul.matmul(w, inputs, activations, 1, width)
        for activations in ("int16", "f32"):
            found[f"back {name} {t} {activations}"] = kernels.matmul.matmul_backward(w, gradient, activations)
np.savez(sys.argv[1], **found)
"""


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """Compile a copy of the sources with one more row and two more files; return (its folder, its environment)."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "pyx", folder / "pyx")
    for path in [*ROOT.glob("llamacy/*.py"), *ROOT.glob("llamacy/kernels/*.py"), *ROOT.glob("llamacy/formats/*.py")]:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    shutil.copytree(ROOT / "llamacy" / "kernels" / "reference", folder / "llamacy" / "kernels" / "reference")
    shutil.copy(ROOT / "setup.py", folder)
    table = folder / "llamacy" / "kernels" / "weight_types.py"
    table.write_text(table.read_text().replace("WEIGHT_TYPES = (\n", "WEIGHT_TYPES = (\n" + ROW, 1))
    (folder / "pyx" / "types" / "q3_0.pyx").write_text(FILE)
    shutil.copytree(PROCESSOR, folder / "pyx" / "products", dirs_exist_ok=True)
    choice = folder / "pyx" / "products" / "panels.pyx"
    text = choice.read_text()
    assert text.count(CHOICE[0]) == 1
    start = text.index("from .four_tokens")
    choice.write_text(text[:start] + CHOOSING + text[start:].replace(*CHOICE))
    environment = os.environ | {
        "LLAMACY_BUILD_ISA": "generic",
        "LLAMACY_ISA": "generic",
        "LLAMACY_ONLY": ",".join(MODULES.split()),
        "LLAMACY_CFLAGS": "-O1 -w",
        "PYTHONPATH": str(folder),
    }
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--parallel", "2"]
    done = subprocess.run(build, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder, environment


def twin_quantize(x):
    """Return (d (n, blocks), q (n, blocks, 32)) of x (n, K), as the made-up type rounds."""
    blocks = x.reshape(len(x), -1, 32)
    d = (np.abs(blocks).max(axis=2) / np.float32(4)).astype(np.float16).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.where(d[..., None] > 0, np.clip(4 + np.rint(blocks / d[..., None]), 0, 7), 4)
    return d, q.astype(int)


def test_a_type_is_one_row_and_one_file(made_up, tmp_path):
    folder, environment = made_up
    rng = np.random.default_rng(7)
    x = rng.standard_normal((37, 96)).astype(np.float32)
    x[5, :32] = 0
    inputs, gradient = rng.standard_normal((9, 96)).astype(np.float32), rng.standard_normal((9, 37)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x, inputs=inputs, gradient=gradient)
    command = [sys.executable, "-c", USE, tmp_path / "in.npz", tmp_path / "out.npz"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "out.npz")
    d, q = twin_quantize(x)
    weights = (d[..., None] * (q - 4)).reshape(x.shape).astype(np.float64)
    bits = (q[..., None] >> np.arange(3)) & 1
    packed = np.packbits(bits.reshape(37, 3, 96), axis=2, bitorder="little")
    rows = np.concatenate([d.astype(np.float16)[..., None].view(np.uint8), packed], axis=2).reshape(37, -1)
    assert np.array_equal(found["rows"], rows)
    assert np.array_equal(found["weights"], weights)
    assert 200 in found["types"]
    assert not found["finite"]
    exact, back = inputs @ weights.T, gradient @ weights
    for name, bound in (("f32", 1e-6), ("int16", 3e-4)):
        assert np.abs(found[name] - exact).max() < bound * np.abs(exact).max()
        assert np.abs(found["one " + name] - exact[:1]).max() < bound * np.abs(exact).max()
        assert np.abs(found["back " + name] - back).max() < max(bound, 1e-3 * (name != "f32")) * np.abs(back).max()


def test_a_processors_products_are_one_file_and_their_choice(made_up, tmp_path):
    folder, environment = made_up
    found = []
    for more in ({}, {"LLAMACY_EIGHT": "1"}):
        path = tmp_path / f"{len(found)}.npz"
        command = [sys.executable, "-c", PRODUCTS, path]
        done = subprocess.run(command, cwd=folder, env=environment | more, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(np.load(path))
    four, eight = found
    assert len(four.files) == 8 * 8 * (6 + 2)
    assert [name for name in four.files if not np.array_equal(four[name], eight[name])] == []
