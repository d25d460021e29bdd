"""Products of packed matrices: y = W x for one token or many, and dx = W^T dy, from quantised weights.

Axes: T tokens, K columns of W (n_in), N rows of W (n_out). Rows of W go in tiles of 16, one vector lane a row, so that no
sum ever crosses lanes; blocks of 32 columns share a scale. Activations enter as f32 (EXACT), 8-bit or 16-bit integers
rounded per block of 32. The float operations of one output element and their order depend on the type and precision
only, never on T, on the thread count or on the tile it falls in.
"""

from .inputs cimport BACK_ROWS, EXACT, STREAM_TOKENS, INT16, INT8, W_LIMIT, aligned, even_chunk
from libc.stdint cimport int8_t, int16_t, uint8_t
from libc.string cimport memset

from .gemm8 cimport gemm_u8
from .panels cimport PART_TOKENS, FourTokens, four_tokens, tile_load, tile_store
from ..simd.verbs cimport (
    prefetch, transpose8, vb, vb_load, vf, vf_amax, vf_div, vf_fma, vf_fma1, vf_load, vf_max, vf_mul, vf_set1,
    vf_store, vf_to_i, vh, vh_dot, vh_sum, vh_zero, vi, vi_add, vi_dot, vi_times128, vi_to_f, vi_zero, vw, vw_join,
    vw_load, vw_store,
)
from .sizes cimport TILE, TILE_ROWS
from .tiles cimport close_block, close_block4

cdef enum:
    S16_BLOCKS = 20
    F32_BLOCKS = 10

# How often a panel's 16 steps are done before dx's int32 sums are scaled. A variable on purpose: with a constant count gcc
# unrolls further, and runs out of registers.
cdef int back_turns = BACK_ROWS // 32


cdef int precision_of(const Packed* w, int wish) noexcept nogil:
    """The form of inputs that W uses when `wish` is asked for: INT8 needs an 8-bit product, both INTs an integer type."""
    if w.type.unpack_s16 == NULL:
        return EXACT
    return INT16 if wish == INT8 and w.type.depth == 0 else wish


# ======== matrix x matrix: tiles of 16 rows x 4 tokens ========

cdef inline void step_s16(const int16_t* q, const int16_t* a0, const int16_t* a1, const int16_t* a2, const int16_t* a3,
                          vi* s0, vi* s1, vi* s2, vi* s3) noexcept nogil:
    cdef vw w = vw_load(q)
    s0[0] = vi_dot(s0[0], w, a0)
    s1[0] = vi_dot(s1[0], w, a1)
    s2[0] = vi_dot(s2[0], w, a2)
    s3[0] = vi_dot(s3[0], w, a3)


cdef inline void steps_s16(const int16_t* q, const int16_t* a0, const int16_t* a1, const int16_t* a2, const int16_t* a3,
                           vi* s0, vi* s1, vi* s2, vi* s3) noexcept nogil:
    """s += the next 4 steps of 2 columns"""
    step_s16(q, a0, a1, a2, a3, s0, s1, s2, s3)
    step_s16(q + 32, a0 + 2, a1 + 2, a2 + 2, a3 + 2, s0, s1, s2, s3)
    step_s16(q + 64, a0 + 4, a1 + 4, a2 + 4, a3 + 4, s0, s1, s2, s3)
    step_s16(q + 96, a0 + 6, a1 + 6, a2 + 6, a3 + 6, s0, s1, s2, s3)


cdef inline void block_s16(const int16_t* q, const int16_t* a0, const int16_t* a1, const int16_t* a2, const int16_t* a3,
                           vi* s0, vi* s1, vi* s2, vi* s3) noexcept nogil:
    """s += the products of 32 columns (or rows, backward)"""
    steps_s16(q, a0, a1, a2, a3, s0, s1, s2, s3)
    steps_s16(q + 128, a0 + 8, a1 + 8, a2 + 8, a3 + 8, s0, s1, s2, s3)
    steps_s16(q + 256, a0 + 16, a1 + 16, a2 + 16, a3 + 16, s0, s1, s2, s3)
    steps_s16(q + 384, a0 + 24, a1 + 24, a2 + 24, a3 + 24, s0, s1, s2, s3)


cdef inline void panel_s16(const int16_t* q, const float* d, const float* m, int nb, const int16_t* a0, size_t lda,
                           const float* scale, const float* total, size_t lds, bint has_min, float* sums) noexcept nogil:
    """sums [4 tokens][16] += the panel's nb blocks"""
    cdef const int16_t* a1 = a0 + lda
    cdef const int16_t* a2 = a1 + lda
    cdef const int16_t* a3 = a2 + lda
    cdef int _b
    cdef vi s0, s1, s2, s3
    cdef vf vd, vm = vf_set1(0)
    for _b in range(nb):
        s0 = vi_zero()
        s1, s2, s3 = s0, s0, s0
        block_s16(q, a0, a1, a2, a3, &s0, &s1, &s2, &s3)
        vd = vf_load(d)
        if has_min:
            vm = vf_load(m)
        close_block4(sums, 16, vd, vm, scale, total, lds, s0, s1, s2, s3, has_min)
        q, d, m, scale, total = q + TILE, d + 16, m + 16, scale + 1, total + 1
        a0, a1, a2, a3 = a0 + 32, a1 + 32, a2 + 32, a3 + 32


cdef void panel_add(const float* p, size_t ps, int n, const float* x, size_t xs, int rows, float* y, size_t ys) noexcept nogil:
    """y[r][16] += sum over j < n of x[r][j] * p[j][16], for r < rows; ps, xs, ys: row strides in floats.

    The one f32 product of the engine: p is a weight panel, a LoRA factor, keys, values or activations.
    """
    cdef int r = 0, j
    cdef const float* w
    cdef const float* x0
    cdef const float* x1
    cdef const float* x2
    cdef const float* x3
    cdef vf a0, a1, a2, a3, v
    while r + 4 <= rows:
        x0 = x + r * xs
        x1, x2, x3 = x0 + xs, x0 + 2 * xs, x0 + 3 * xs
        a0, a1 = vf_load(y + r * ys), vf_load(y + (r + 1) * ys)
        a2, a3 = vf_load(y + (r + 2) * ys), vf_load(y + (r + 3) * ys)
        w = p
        for j in range(n):
            v = vf_load(w)
            a0 = vf_fma1(v, x0[j], a0)
            a1 = vf_fma1(v, x1[j], a1)
            a2 = vf_fma1(v, x2[j], a2)
            a3 = vf_fma1(v, x3[j], a3)
            w += ps
        vf_store(y + r * ys, a0)
        vf_store(y + (r + 1) * ys, a1)
        vf_store(y + (r + 2) * ys, a2)
        vf_store(y + (r + 3) * ys, a3)
        r += 4
    while r < rows:
        x0 = x + r * xs
        a0 = vf_load(y + r * ys)
        w = p
        for j in range(n):
            a0 = vf_fma1(vf_load(w), x0[j], a0)
            w += ps
        vf_store(y + r * ys, a0)
        r += 1


cdef void matvec_split(const Packed* w, const Acts* x, size_t t, int tile, float* y) noexcept nogil:
    """y[16] = one row group's product with 16-bit input t, from two 8-bit products: 128 high + low, exactly panel_s16's sums.

    The low part is at most 64, half of what depth was proved for.
    """
    cdef uint8_t memory[TILE * 4 + 512 + 64]
    cdef uint8_t* q = aligned(memory)
    cdef float* d = <float*>(q + TILE * 4)
    cdef float* m = d + 64
    cdef const WeightType* k = w.type
    cdef const uint8_t* source = w.tiles + <size_t>tile * w.n_blocks * k.tile_bytes
    cdef const int8_t* high = x.high16 + 32 * t * w.n_blocks
    cdef const int8_t* low = x.low16 + 32 * t * w.n_blocks
    cdef const float* scale = x.scale16 + t * w.n_blocks
    cdef const float* total = x.sum16 + t * w.n_blocks
    cdef int b, i, n, g, _part
    cdef vb v
    cdef vh hh, hl
    cdef vi sh, sl
    vf_store(y, vf_set1(0))
    for b in range(0, w.n_blocks, 4):
        n = min(4, w.n_blocks - b)
        for i in range(0, n * k.tile_bytes, 64):
            prefetch(source + 4096 + i)
        k.unpack_u8(source, n, q, d, m)
        source += n * k.tile_bytes
        for i in range(n):
            sh, sl = vi_zero(), vi_zero()
            for _part in range(8 // k.depth):
                hh, hl = vh_zero(), vh_zero()
                for g in range(k.depth):
                    v = vb_load(q + TILE * i + 64 * (_part * k.depth + g))
                    hh = vh_dot(hh, v, high + 4 * g)
                    hl = vh_dot(hl, v, low + 4 * g)
                sh, sl = vi_add(sh, vh_sum(hh)), vi_add(sl, vh_sum(hl))
                high, low = high + 4 * k.depth, low + 4 * k.depth
            close_block(y, vf_load(d + 16 * i), vf_load(m + 16 * i), scale[b + i], total[b + i],
                        vi_add(vi_times128(sh), sl), True)


cdef inline void tokens_s16(const int16_t* q, const float* d, const float* m, int b, int n, const Acts* x, int t0, int t1,
                            float* y, size_t ldy, bint has_min) noexcept nogil:
    cdef float sums[64]
    cdef FourTokens r
    cdef size_t nb = x.n_blocks, at
    cdef int t = t0, new
    while t < t1:
        new = four_tokens(&r, t, t1)
        at = r.first * nb + b
        tile_load(sums, y + t * ldy, ldy, &r, b == 0)
        panel_s16(q, d, m, n, x.q16 + 32 * at, 32 * nb * r.stride, x.scale16 + at, x.sum16 + at, nb * r.stride, has_min, sums)
        tile_store(sums, y + t * ldy, ldy, &r)
        t += new


cdef void gemm_s16(const Packed* w, const Acts* x, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    cdef uint8_t memory[2 * TILE * S16_BLOCKS + 128 * S16_BLOCKS + 64]
    cdef int16_t* q = <int16_t*>aligned(memory)
    cdef float* d = <float*>(q + TILE * S16_BLOCKS)
    cdef float* m = d + 16 * S16_BLOCKS
    cdef const WeightType* k = w.type
    cdef int t0, t1, b, n, tile
    for t0 in range(0, x.n_rows, 128):
        t1 = min(t0 + PART_TOKENS, x.n_rows)
        b = 0
        while b < w.n_blocks:
            n = min(even_chunk(w.n_blocks, S16_BLOCKS), w.n_blocks - b)
            for tile in range(lo, hi):
                k.unpack_s16(w.tiles + (tile * <size_t>w.n_blocks + b) * k.tile_bytes, n, q, d, m)
                if k.unpacks_min:
                    tokens_s16(q, d, m, b, n, x, t0, t1, y + 16 * tile, ldy, True)
                else:
                    tokens_s16(q, d, m, b, n, x, t0, t1, y + 16 * tile, ldy, False)
            b += n


cdef void gemm_f32(const Packed* w, const Acts* x, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    cdef uint8_t memory[4 * TILE * F32_BLOCKS + 64]
    cdef float* panel = <float*>aligned(memory)
    cdef const WeightType* k = w.type
    cdef int t0, b, n, tile, n_cols
    cdef size_t nb = w.n_blocks
    for t0 in range(0, x.n_rows, 128):
        b = 0
        while b < w.n_blocks:
            n = min(even_chunk(w.n_blocks, F32_BLOCKS), w.n_blocks - b)
            n_cols = min(32 * n, w.n_cols - 32 * b)
            for tile in range(lo, hi):
                k.unpack_f32(w.tiles + (tile * nb + b) * k.tile_bytes, n, panel)
                panel_add(panel, 16, n_cols, x.f32 + t0 * x.ld + 32 * b, x.ld, min(PART_TOKENS, x.n_rows - t0),
                          y + t0 * ldy + 16 * tile, ldy)
            b += n


# ======== few tokens: straight from the tiles ========

cdef inline void few_blocks(const Packed* w, const Acts* x, int tile, float* y, size_t ldy) noexcept nogil:
    """One row group's products: inputs in fours, the rest one by one"""
    cdef const WeightType* k = w.type
    cdef const uint8_t* tiles = w.tiles + <size_t>tile * w.n_blocks * k.tile_bytes
    cdef int t = 0
    while t + 4 <= x.n_rows:
        k.matvec4(tiles, w.n_blocks, x, t, y + t * ldy, ldy)
        t += 4
    while t < x.n_rows:
        k.matvec(tiles, w.n_blocks, w.n_cols, x, t, y + t * ldy)
        t += 1


cdef inline void few_superblocks(const Packed* w, const Acts* x, int tile, float* y, size_t ldy) noexcept nogil:
    """The same for inputs of which SUPERBLOCK blocks share a step"""
    cdef const WeightType* k = w.type
    cdef const uint8_t* tiles = w.tiles + <size_t>tile * w.n_blocks * k.tile_bytes
    cdef const float* units = w.units + 16 * tile
    cdef int t = 0
    while t + 4 <= x.n_rows:
        k.superblock_matvec4(tiles, units, w.n_blocks, x, t, y + t * ldy, ldy)
        t += 4
    while t < x.n_rows:
        k.superblock_matvec(tiles, units, w.n_blocks, x, t, y + t * ldy)
        t += 1


cdef int two_tiles(const Packed* w, const Acts* x, float* y, int lo, int hi) noexcept nogil:
    """One token reads the first and the second half of the row groups side by side where the type can; returns where to go on"""
    cdef const WeightType* k = w.type
    cdef const uint8_t* tiles = w.tiles
    cdef size_t row_bytes = <size_t>w.n_blocks * k.tile_bytes
    cdef int i, half = (hi - lo) // 2
    if x.superblock > 1:
        if k.superblock_matvec2 == NULL:
            return lo
        for i in range(lo, lo + half):
            k.superblock_matvec2(tiles + i * row_bytes, tiles + (i + half) * row_bytes, w.units + 16 * i, w.units + 16 * (i + half),
                           w.n_blocks, x, y + 16 * i, y + 16 * (i + half))
        return lo + 2 * half
    if k.matvec2 == NULL:
        return lo
    for i in range(lo, lo + half):
        k.matvec2(tiles + i * row_bytes, tiles + (i + half) * row_bytes, w.n_blocks, x, y + 16 * i, y + 16 * (i + half))
    return lo + 2 * half


cdef void matmul_tiles(const Packed* w, const Acts* x, int precision, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    """y[t][16 lo .. 16 hi) = W x for all T inputs; rows of y hold N padded to 16.

    precision: the form of x to use, as far as the type has it (precision_of).
    """
    cdef const WeightType* k = w.type
    cdef int t, tile
    precision = precision_of(w, precision)
    if precision == INT8 and x.n_rows == 1:
        lo = two_tiles(w, x, y, lo, hi)
    # matvec knows one form of inputs, the fastest that its type has
    if x.n_rows < (STREAM_TOKENS + 1 if k.matvec4 != NULL else 4) and precision == precision_of(w, INT8):
        for tile in range(lo, hi):
            if precision == INT8 and x.superblock > 1:
                few_superblocks(w, x, tile, y + 16 * tile, ldy)
            else:
                few_blocks(w, x, tile, y + 16 * tile, ldy)
        return
    if x.n_rows < 4 and precision == INT16 and k.depth:
        for tile in range(lo, hi):
            for t in range(x.n_rows):
                matvec_split(w, x, t, tile, y + t * ldy + 16 * tile)
        return
    if precision == INT8:
        gemm_u8(w, x, y, ldy, lo, hi)
    elif precision == INT16:
        gemm_s16(w, x, y, ldy, lo, hi)
    else:
        for t in range(x.n_rows):
            memset(y + t * ldy + 16 * lo, 0, 64 * <size_t>(hi - lo))
        gemm_f32(w, x, y, ldy, lo, hi)


# ======== backward: dx += W^T dy ========

cdef inline int unpack_back(const Packed* w, int group, int b, float* panel) noexcept nogil:
    """Rows 128 group .. +128, columns 32 b .. +32 as f32 [128 rows][32 columns]; returns the rows there are (multiple of 16)."""
    cdef float tile[TILE]
    cdef const WeightType* k = w.type
    cdef int i, r, c, first = group * (BACK_ROWS // TILE_ROWS), n = min(BACK_ROWS // TILE_ROWS, w.n_tiles - first)
    for i in range(n):
        k.unpack_f32(w.tiles + (<size_t>(first + i) * w.n_blocks + b) * k.tile_bytes, 1, tile)
        for r in range(0, 16, 8):
            for c in range(0, 32, 8):
                transpose8(tile + 16 * c + r, 16, panel + TILE * i + 32 * r + c, 32)
    return 16 * n


cdef void backward_f32(const Packed* w, const float* dy, size_t ldy, int n_tokens, float* dx, size_t ldx, int lo, int hi) noexcept nogil:
    cdef uint8_t memory[4 * 32 * BACK_ROWS + 64]
    cdef float* panel = <float*>aligned(memory)
    cdef int b, group, n
    for b in range(lo, hi):
        for group in range((w.n_rows + BACK_ROWS - 1) // BACK_ROWS):
            unpack_back(w, group, b, panel)
            n = min(BACK_ROWS, w.n_rows - group * BACK_ROWS)
            panel_add(panel, 32, n, dy + group * BACK_ROWS, ldy, n_tokens, dx + 32 * b, ldx)
            if 32 * b + 16 < w.n_cols:
                panel_add(panel + 16, 32, n, dy + group * BACK_ROWS, ldy, n_tokens, dx + 32 * b + 16, ldx)


cdef inline void round_panel(const float* panel, int rows, int16_t* q, float* scale) noexcept nogil:
    """16 of the panel's columns to int16 pairs of rows [64][16][2] of at most 2047, scale [16]; missing rows are zero"""
    cdef int r
    cdef vf peak = vf_set1(0), inverse
    for r in range(rows):
        peak = vf_amax(peak, vf_load(panel + 32 * r))
    vf_store(scale, vf_mul(peak, vf_set1(<float>(1.0 / W_LIMIT))))
    # A column of zeros divides by the smallest normal number instead: 0 * finite = 0.
    inverse = vf_div(vf_set1(W_LIMIT), vf_max(peak, vf_set1(1e-34)))
    for r in range(0, rows, 2):
        vw_store(q + 16 * r, vw_join(vf_to_i(vf_mul(vf_load(panel + 32 * r), inverse)),
                                     vf_to_i(vf_mul(vf_load(panel + 32 * r + 32), inverse))))
    memset(q + 16 * rows, 0, 32 * <size_t>(BACK_ROWS - rows))


cdef inline void close_row(float* y, vf d, float scale, vi s) noexcept nogil:
    """y[16] += d * scale * s"""
    vf_store(y, vf_fma(vf_mul(d, vf_set1(scale)), vi_to_f(s), vf_load(y)))


cdef inline void back_tile(const int16_t* q, const float* d, int turns, const int16_t* a0, size_t lda, const float* scale, size_t lds,
                           float* y, size_t ldy) noexcept nogil:
    """y [4 tokens][16] += a panel's product with four tokens' rounded dy"""
    cdef const int16_t* a1 = a0 + lda
    cdef const int16_t* a2 = a1 + lda
    cdef const int16_t* a3 = a2 + lda
    cdef int _turn
    cdef vi s0 = vi_zero()
    cdef vi s1 = s0, s2 = s0, s3 = s0
    cdef vf vd
    for _turn in range(turns):
        block_s16(q, a0, a1, a2, a3, &s0, &s1, &s2, &s3)
        q += TILE
        a0, a1, a2, a3 = a0 + 32, a1 + 32, a2 + 32, a3 + 32
    vd = vf_load(d)
    close_row(y, vd, scale[0], s0)
    close_row(y + ldy, vd, scale[lds], s1)
    close_row(y + 2 * ldy, vd, scale[2 * lds], s2)
    close_row(y + 3 * ldy, vd, scale[3 * lds], s3)


cdef inline void back_last(const int16_t* q, const float* d, int turns, const int16_t* dyq, const float* dys, int n_tokens,
                           float* y, size_t ldy) noexcept nogil:
    """The same for the last n_tokens % 4, beside earlier ones whose results are thrown away"""
    cdef float sums[64]
    cdef FourTokens r
    cdef int t = n_tokens & ~3, new
    while t < n_tokens:
        new = four_tokens(&r, t, n_tokens)
        tile_load(sums, y + t * ldy, ldy, &r, False)
        back_tile(q, d, turns, dyq + BACK_ROWS * r.first, BACK_ROWS * r.stride, dys + r.first, r.stride, sums, 16)
        tile_store(sums, y + t * ldy, ldy, &r)
        t += new


cdef void backward_s16(const Packed* w, const int16_t* dyq, const float* dys, int n_tokens, float* dx, size_t ldx, int lo, int hi) noexcept nogil:
    cdef uint8_t memory[4 * 32 * BACK_ROWS + 2 * 32 * BACK_ROWS + 128 + 64]
    cdef float* panel = <float*>aligned(memory)
    cdef int16_t* q = <int16_t*>(panel + 32 * BACK_ROWS)
    cdef float* scale = <float*>(q + 32 * BACK_ROWS)
    cdef const int16_t* a
    cdef const float* s
    cdef float* out
    cdef int b, b0, group, rows, t, half, halves, groups = (w.n_rows + BACK_ROWS - 1) // BACK_ROWS
    for b0 in range(lo, hi, 2):
        for group in range(groups):
            a, s = dyq + BACK_ROWS * <size_t>n_tokens * group, dys + <size_t>n_tokens * group
            for b in range(b0, min(b0 + 2, hi)):
                halves, out = 2 if 32 * b + 16 < w.n_cols else 1, dx + 32 * b
                rows = unpack_back(w, group, b, panel)
                round_panel(panel, rows, q, scale)
                round_panel(panel + 16, rows, q + 16 * BACK_ROWS, scale + 16)
                # both halves at once: the second finds the tokens in L1
                for t in range(0, n_tokens - 3, 4):
                    for half in range(halves):
                        back_tile(q + 16 * BACK_ROWS * half, scale + 16 * half, back_turns, a + BACK_ROWS * t, BACK_ROWS, s + t, 1,
                                  out + t * ldx + 16 * half, ldx)
                if n_tokens & 3:
                    for half in range(halves):
                        back_last(q + 16 * BACK_ROWS * half, scale + 16 * half, back_turns, a, s, n_tokens, out + 16 * half, ldx)


cdef void matmul_backward_tiles(const Packed* w, const float* dy, size_t ldy, const int16_t* dyq, const float* dys, int n_tokens, float* dx, size_t ldx, int lo, int hi) noexcept nogil:
    """dx[t][32 lo .. 32 hi) += W^T dy: exact where dyq is NULL, else from quantize_gradient's integers (relative error near 5e-4).

    dy (T, ldy), dx (T, ldx) with room for K padded to 16.
    """
    if dyq == NULL:
        backward_f32(w, dy, ldy, n_tokens, dx, ldx, lo, hi)
    else:
        backward_s16(w, dyq, dys, n_tokens, dx, ldx, lo, hi)
