"""Packed matrices for Python: one arena of tiles, and the products as functions of NumPy arrays."""

from cython.parallel cimport prange
from libc.stdint cimport int16_t, uint8_t
from libc.stdlib cimport free

from .inputs cimport (
    Acts, BACK_ROWS, EXACT, INT16, INT8, acts_bytes, acts_for_width, acts_place, acts_quantize, padded,
    quantize_gradient,
)
from ..simd.system cimport advise_huge, aligned_free, aligned_memory
from ..types.finite cimport ScaleField, scale_field, scales_finite
from .gemm cimport Packed, matmul_backward_tiles, matmul_tiles, precision_of, unpacking_bytes
from .weight_types cimport WeightType, weight_type, weight_type_at, weight_type_count
from .superblocks cimport find_units

import numpy as np

from llamacy.kernels.threads import check_threads

cdef enum:
    HUGE = 2 << 20


cdef class Arena:
    """One aligned block of memory for all packed matrices of a model, on huge pages where the system has them."""

    def __cinit__(self, size_t size):
        cdef void* p = aligned_memory(size + 4096, HUGE if size >= HUGE else 64)
        if p == NULL:
            raise MemoryError(f"{size >> 20} MiB for the packed weights")
        advise_huge(p, size)
        self.memory, self.size, self.used = <uint8_t*>p, size + 4096, 0

    def __dealloc__(self):
        aligned_free(self.memory)

    cdef uint8_t* take(self, size_t n_bytes) except NULL:
        cdef uint8_t* p = self.memory + self.used
        if self.used + n_bytes > self.size:
            raise MemoryError("the arena is full")
        self.used += padded(n_bytes, 64)
        return p


def types():
    """Return {name: GGUF number} of the types that matrices may have here."""
    return {weight_type_at(i).name.decode(): weight_type_at(i).number for i in range(weight_type_count())}


def packed_bytes(int number, size_t n_rows, size_t n_cols):
    """Bytes that a (n_rows, n_cols) matrix of GGUF type `number` takes in an Arena."""
    cdef const WeightType* k = weight_type(number)
    cdef size_t n_tiles = padded(n_rows, 16) // 16
    return padded(n_tiles * (padded(n_cols, 32) // 32) * <size_t>k.tile_bytes, 64) + (64 * n_tiles if k.unpack_superblock != NULL else 0)


cdef class PackedMatrix:
    """W (n_rows, n_cols), quantised, in tiles; made from the file's rows of blocks (uint8 (n_rows, row bytes)).

    ArithmeticError where a scale is infinite or none: looked at while the rows are in the cache, it costs next to nothing.
    """

    def __init__(self, const uint8_t[:, ::1] rows, int number, int n_cols, Arena arena=None, int n_threads=1):
        cdef const WeightType* k = weight_type(number)
        cdef const ScaleField* field = scale_field(number)
        cdef int n_rows = <int>rows.shape[0], tile, b, bad = 0
        cdef size_t row_bytes = rows.shape[1], row_group = padded(n_cols, 32) // 32 * <size_t>k.tile_bytes
        cdef const uint8_t* source = &rows[0, 0]
        if n_cols % k.block or <size_t>n_cols // k.block * k.block_bytes != row_bytes:
            raise ValueError(f"{n_cols} columns of {k.name.decode()} do not make rows of {row_bytes} bytes")
        self.arena = arena or Arena(packed_bytes(number, n_rows, n_cols))
        self.w.type, self.w.n_rows, self.w.n_cols = k, n_rows, n_cols
        self.w.n_tiles, self.w.n_blocks = (n_rows + 15) // 16, (n_cols + 31) // 32
        self.w.tiles = self.arena.take(row_group * self.w.n_tiles)
        self.w.units = <float*>self.arena.take(64 * <size_t>self.w.n_tiles) if k.unpack_superblock != NULL else NULL
        check_threads(n_threads)
        for tile in prange(self.w.n_tiles, num_threads=n_threads, schedule="static", nogil=True):
            for b in range(self.w.n_blocks):
                k.pack(source + 16 * tile * row_bytes, row_bytes, min(16, n_rows - 16 * tile), b, n_cols,
                       self.w.tiles + tile * row_group + b * k.tile_bytes)
            if k.unpack_superblock != NULL:
                find_units(self.w.tiles + tile * row_group, self.w.n_blocks, k.tile_bytes, k.fifth, k.f32_scales,
                           self.w.units + 16 * tile)
            bad += not scales_finite(field, source + 16 * tile * row_bytes, min(16, n_rows - 16 * tile) * row_bytes)
        if bad:
            raise ArithmeticError("scales that are infinite or none")

    def part(self, int first, int n_rows):
        """Rows first (a multiple of 16) to first + n_rows as a matrix of their own; nothing is copied."""
        cdef PackedMatrix found = PackedMatrix.__new__(PackedMatrix)
        if first % 16 or not 0 <= first < first + n_rows <= self.w.n_rows:
            raise ValueError(f"rows {first} to {first + n_rows} of {self.w.n_rows}, wanted from a multiple of 16 on")
        found.arena, found.w = self.arena, self.w
        found.w.n_rows, found.w.n_tiles = n_rows, (n_rows + 15) // 16
        found.w.tiles += <size_t>(first // 16) * self.w.n_blocks * self.w.type.tile_bytes
        if found.w.units != NULL:
            found.w.units += first
        return found

    @property
    def shape(self):
        return self.w.n_rows, self.w.n_cols

    @property
    def type_number(self):
        return self.w.type.number

    @property
    def n_bytes(self):
        return <size_t>self.w.n_tiles * self.w.n_blocks * self.w.type.tile_bytes


PRECISIONS = {"f32": EXACT, "int8": INT8, "int16": INT16}


cdef void multiply(const Packed* w, Acts x, uint8_t* unpacking, int precision, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    """One thread's row tiles lo..hi of y = W x"""
    x.unpacking = unpacking
    matmul_tiles(w, &x, precision, y, ldy, lo, hi)


def matmul(PackedMatrix w, x, activations="int8", int n_threads=1, int n_embd=0, bint with_memory=True):
    """y = x W^T: x (T, K) f32 -> (T, N) f32, by the path that generation (T < 4) and prompts take in a model of width n_embd.

    with_memory: panels have memory of their own; 8-bit products want it.
    """
    cdef int T = len(x), K = w.w.n_cols, i, per, precision = PRECISIONS[activations]
    cdef float[:, ::1] xv = np.zeros((T, padded(K, 32)), np.float32)
    cdef float[:, ::1] y = np.full((T, padded(w.w.n_rows, 16)), np.nan, np.float32)
    cdef Acts acts
    cdef uint8_t[::1] memory, unpacking = np.empty(n_threads * unpacking_bytes(), np.uint8)
    if x.shape[1] != K:
        raise ValueError(f"x has {x.shape[1]} columns, wanted {K}")
    np.asarray(xv)[:, :K] = x
    precision = precision_of(&w.w, precision)
    if precision == INT8 and not with_memory:
        raise ValueError("8-bit products want memory")
    memory = np.empty(acts_bytes(T, K, precision), np.uint8)
    acts_place(&acts, T, K, precision, &memory[0])
    acts.f32, acts.ld = &xv[0, 0], xv.shape[1]
    acts_for_width(&acts, n_embd)
    if precision != EXACT:
        acts_quantize(&acts, 0, T, 0, acts.n_blocks)
    check_threads(n_threads)
    per = (w.w.n_tiles + n_threads - 1) // n_threads
    for i in prange(n_threads, num_threads=n_threads, schedule="static", chunksize=1, nogil=True):
        multiply(&w.w, acts, &unpacking[i * unpacking_bytes()] if with_memory else NULL, precision, &y[0, 0], y.shape[1], min(i * per, w.w.n_tiles), min((i + 1) * per, w.w.n_tiles))
    return np.asarray(y)[:, :w.w.n_rows]


def matmul_backward(PackedMatrix w, const float[:, ::1] dy, activations="int16", int n_threads=1):
    """dx = dy W: dy (T, N) f32 -> (T, K) f32; exact for "f32", 16-bit integers otherwise."""
    cdef int T = <int>dy.shape[0], i, per
    cdef size_t groups = padded(w.w.n_rows, BACK_ROWS) // BACK_ROWS
    cdef float[:, ::1] dx = np.zeros((T, padded(w.w.n_cols, 32)), np.float32)
    cdef int16_t[::1] q = np.zeros(T * groups * BACK_ROWS, np.int16)
    cdef float[::1] scale = np.zeros(T * groups, np.float32)
    cdef int16_t* qp = NULL
    if dy.shape[1] != w.w.n_rows:
        raise ValueError(f"dy has {dy.shape[1]} columns, wanted {w.w.n_rows}")
    if activations != "f32":
        qp = &q[0]
        quantize_gradient(&dy[0, 0], dy.shape[1], w.w.n_rows, T, 0, T, qp, &scale[0])
    check_threads(n_threads)
    per = (w.w.n_blocks + n_threads - 1) // n_threads
    for i in prange(n_threads, num_threads=n_threads, schedule="static", chunksize=1, nogil=True):
        matmul_backward_tiles(&w.w, &dy[0, 0], dy.shape[1], qp, &scale[0], T, &dx[0, 0], dx.shape[1],
                              min(i * per, w.w.n_blocks), min((i + 1) * per, w.w.n_blocks))
    return np.asarray(dx)[:, :w.w.n_cols]
