"""Products of packed matrices: y = W x for one token or many, and dx = W^T dy, from quantised weights.

Axes: T tokens, K columns of W (n_in), N rows of W (n_out). Rows of W go in tiles of 16, one vector lane a row, so that no
sum ever crosses lanes; blocks of 32 columns share a scale. Activations enter as f32 (EXACT), 8-bit or 16-bit integers
rounded per block of 32. The float operations of one output element and their order depend on the type and precision
only, never on T, on the thread count or on the tile it falls in.
"""

from libc.stdint cimport int8_t, int16_t, uint8_t
from libc.string cimport memset

from .simd cimport *
from .tiles cimport *

cdef enum:
    T_BLOCK = 256           # tokens whose inputs stay in L2 while the tiles pass
    U8_BLOCKS = 40          # blocks of 32 columns unpacked at a time, at most: 20 KB of codes, L1
    S16_BLOCKS = 20
    F32_BLOCKS = 10

# Steps of a panel's inner loop. Variables on purpose: with a constant count gcc 12 gives sums and products registers of
# their own and copies between them at each step (33 instructions instead of 25); so does -ftree-pre, see setup.py.
cdef int block_pairs = TILE_COLS // 2
cdef int back_pairs = BACK_ROWS // 2


cdef int precision_of(const Packed* w, int wish) noexcept nogil:
    """The form of inputs that W uses when `wish` is asked for: INT8 needs an 8-bit product, both INTs an integer type."""
    if w.kernel.unpack_s16 == NULL:
        return EXACT
    return INT16 if wish == INT8 and w.kernel.depth == 0 else wish


# ======== matrix x matrix: tiles of 16 rows x 4 tokens ========

cdef struct Columns:        # four tokens of a panel product; past the last one they repeat it and write to a spare
    const void* a[4]
    const float* scale[4]
    const float* total[4]
    float* y[4]


cdef inline void columns_at(Columns* c, const uint8_t* a, size_t row_bytes, const float* scale, const float* total,
                            size_t nb, float* y, size_t ldy, int t, int t_end, float* spare) noexcept nogil:
    cdef int i, at
    for i in range(4):
        at = t + i if t + i < t_end else t_end - 1
        c.a[i] = a + at * row_bytes
        c.scale[i] = scale + at * nb
        c.total[i] = total + at * nb
        c.y[i] = y + at * ldy if t + i < t_end else spare


cdef inline vf close_block(vf d, vf m, float scale, float total, vi s, vf acc, bint has_min) noexcept nogil:
    """acc + d * scale * s + m * total, as matvec does it"""
    acc = vf_fma(vf_mul(d, vf_set1(scale)), vi_to_f(s), acc)
    return vf_fma1(m, total, acc) if has_min else acc


cdef void panel_u8(const uint8_t* q, const float* d, const float* m, int nb, int depth, const Columns* c) noexcept nogil:
    """y[4 tokens][16] += the panel's nb blocks; int16 sums are widened every `depth` steps.

    depth is deliberately not a constant: unrolled, gcc sinks the adds below the multiplies and spills the sums.
    """
    cdef const int8_t* a0 = <const int8_t*>c.a[0]
    cdef const int8_t* a1 = <const int8_t*>c.a[1]
    cdef const int8_t* a2 = <const int8_t*>c.a[2]
    cdef const int8_t* a3 = <const int8_t*>c.a[3]
    cdef int b, _g, _part
    cdef vb w
    cdef vh h0, h1, h2, h3
    cdef vi s0, s1, s2, s3
    cdef vf vd, vm
    for b in range(nb):
        s0 = vi_zero()
        s1, s2, s3 = s0, s0, s0
        for _part in range(8 // depth):
            h0 = vh_zero()
            h1, h2, h3 = h0, h0, h0
            for _g in range(depth):
                w = vb_load(q)
                h0 = vh_dot(h0, w, a0)
                h1 = vh_dot(h1, w, a1)
                h2 = vh_dot(h2, w, a2)
                h3 = vh_dot(h3, w, a3)
                q += 64
                a0, a1, a2, a3 = a0 + 4, a1 + 4, a2 + 4, a3 + 4
            s0, s1 = vi_add(s0, vh_sum(h0)), vi_add(s1, vh_sum(h1))
            s2, s3 = vi_add(s2, vh_sum(h2)), vi_add(s3, vh_sum(h3))
        vd, vm = vf_load(d + 16 * b), vf_load(m + 16 * b)
        vf_store(c.y[0], close_block(vd, vm, c.scale[0][b], c.total[0][b], s0, vf_load(c.y[0]), True))
        vf_store(c.y[1], close_block(vd, vm, c.scale[1][b], c.total[1][b], s1, vf_load(c.y[1]), True))
        vf_store(c.y[2], close_block(vd, vm, c.scale[2][b], c.total[2][b], s2, vf_load(c.y[2]), True))
        vf_store(c.y[3], close_block(vd, vm, c.scale[3][b], c.total[3][b], s3, vf_load(c.y[3]), True))


cdef inline void panel_s16(const int16_t* q, const float* d, const float* m, int nb, int pairs, const Columns* c,
                           bint has_min) noexcept nogil:
    cdef const int16_t* a0 = <const int16_t*>c.a[0]
    cdef const int16_t* a1 = <const int16_t*>c.a[1]
    cdef const int16_t* a2 = <const int16_t*>c.a[2]
    cdef const int16_t* a3 = <const int16_t*>c.a[3]
    cdef int b, _p
    cdef vw w
    cdef vi s0, s1, s2, s3
    cdef vf vd, vm = vf_set1(0)
    for b in range(nb):
        s0 = vi_zero()
        s1, s2, s3 = s0, s0, s0
        for _p in range(pairs):
            w = vw_load(q)
            s0 = vi_dot(s0, w, a0)
            s1 = vi_dot(s1, w, a1)
            s2 = vi_dot(s2, w, a2)
            s3 = vi_dot(s3, w, a3)
            q += 32
            a0, a1, a2, a3 = a0 + 2, a1 + 2, a2 + 2, a3 + 2
        vd = vf_load(d + 16 * b)
        if has_min:
            vm = vf_load(m + 16 * b)
        vf_store(c.y[0], close_block(vd, vm, c.scale[0][b], c.total[0][b], s0, vf_load(c.y[0]), has_min))
        vf_store(c.y[1], close_block(vd, vm, c.scale[1][b], c.total[1][b], s1, vf_load(c.y[1]), has_min))
        vf_store(c.y[2], close_block(vd, vm, c.scale[2][b], c.total[2][b], s2, vf_load(c.y[2]), has_min))
        vf_store(c.y[3], close_block(vd, vm, c.scale[3][b], c.total[3][b], s3, vf_load(c.y[3]), has_min))


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
    cdef const Kernel* k = w.kernel
    cdef const uint8_t* source = w.tiles + <size_t>tile * w.n_blocks * k.tile_bytes
    cdef const int8_t* high = x.high16 + 32 * t * w.n_blocks
    cdef const int8_t* low = x.low16 + 32 * t * w.n_blocks
    cdef const float* scale = x.scale16 + t * w.n_blocks
    cdef const float* total = x.sum16 + t * w.n_blocks
    cdef int b, i, n, g, _part
    cdef vb v
    cdef vh hh, hl
    cdef vi sh, sl
    cdef vf acc = vf_set1(0)
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
            acc = close_block(vf_load(d + 16 * i), vf_load(m + 16 * i), scale[b + i], total[b + i],
                              vi_add(vi_times128(sh), sl), acc, True)
    vf_store(y, acc)


cdef inline int even_chunk(int n_blocks, int most) noexcept nogil:
    """n_blocks in equal chunks of at most `most`: no short last one, whose start-up would weigh more"""
    cdef int chunks = (n_blocks + most - 1) // most
    return (n_blocks + chunks - 1) // chunks


cdef void gemm_u8(const Packed* w, const Acts* x, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    cdef uint8_t memory[TILE * U8_BLOCKS + 128 * U8_BLOCKS + 64]
    cdef uint8_t* q = aligned(memory)
    cdef float* d = <float*>(q + TILE * U8_BLOCKS)
    cdef float* m = d + 16 * U8_BLOCKS
    cdef float spare[16]
    cdef Columns c
    cdef const Kernel* k = w.kernel
    cdef int t0, t1, t, b, n, tile
    cdef size_t nb = w.n_blocks
    memset(spare, 0, sizeof(spare))
    for t0 in range(0, x.n_rows, 256):
        t1 = min(t0 + T_BLOCK, x.n_rows)
        b = 0
        while b < w.n_blocks:
            n = min(even_chunk(w.n_blocks, U8_BLOCKS), w.n_blocks - b)
            for tile in range(lo, hi):
                k.unpack_u8(w.tiles + (tile * nb + b) * k.tile_bytes, n, q, d, m)
                for t in range(t0, t1, 4):
                    columns_at(&c, <const uint8_t*>x.q8 + 32 * b, 32 * nb, x.scale8 + b, x.sum8 + b, nb,
                               y + 16 * tile, ldy, t, t1, spare)
                    panel_u8(q, d, m, n, k.depth, &c)
            b += n


cdef void gemm_s16(const Packed* w, const Acts* x, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    cdef uint8_t memory[2 * TILE * S16_BLOCKS + 128 * S16_BLOCKS + 64]
    cdef int16_t* q = <int16_t*>aligned(memory)
    cdef float* d = <float*>(q + TILE * S16_BLOCKS)
    cdef float* m = d + 16 * S16_BLOCKS
    cdef float spare[16]
    cdef Columns c
    cdef const Kernel* k = w.kernel
    cdef int t0, t1, t, b, n, tile
    cdef size_t nb = w.n_blocks
    memset(spare, 0, sizeof(spare))
    for t0 in range(0, x.n_rows, 256):
        t1 = min(t0 + T_BLOCK, x.n_rows)
        b = 0
        while b < w.n_blocks:
            n = min(even_chunk(w.n_blocks, S16_BLOCKS), w.n_blocks - b)
            for tile in range(lo, hi):
                k.unpack_s16(w.tiles + (tile * nb + b) * k.tile_bytes, n, q, d, m)
                for t in range(t0, t1, 4):
                    columns_at(&c, <const uint8_t*>(x.q16 + 32 * b), 64 * nb, x.scale16 + b, x.sum16 + b, nb,
                               y + 16 * tile, ldy, t, t1, spare)
                    if k.has_min:
                        panel_s16(q, d, m, n, block_pairs, &c, True)
                    else:
                        panel_s16(q, d, m, n, block_pairs, &c, False)
            b += n


cdef void gemm_f32(const Packed* w, const Acts* x, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    cdef uint8_t memory[4 * TILE * F32_BLOCKS + 64]
    cdef float* panel = <float*>aligned(memory)
    cdef const Kernel* k = w.kernel
    cdef int t0, b, n, tile, n_cols
    cdef size_t nb = w.n_blocks
    for t0 in range(0, x.n_rows, 256):
        b = 0
        while b < w.n_blocks:
            n = min(even_chunk(w.n_blocks, F32_BLOCKS), w.n_blocks - b)
            n_cols = min(32 * n, w.n_cols - 32 * b)
            for tile in range(lo, hi):
                k.unpack_f32(w.tiles + (tile * nb + b) * k.tile_bytes, n, panel)
                panel_add(panel, 16, n_cols, x.f32 + t0 * x.ld + 32 * b, x.ld, min(T_BLOCK, x.n_rows - t0),
                          y + t0 * ldy + 16 * tile, ldy)
            b += n


cdef void matmul_tiles(const Packed* w, const Acts* x, int precision, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    """y[t][16 lo .. 16 hi) = W x for all T inputs; rows of y hold N padded to 16.

    precision: the form of x to use, as far as the type has it (precision_of).
    """
    cdef const Kernel* k = w.kernel
    cdef int t, tile
    precision = precision_of(w, precision)
    # matvec knows one form of inputs, the fastest that its type has
    if x.n_rows < 4 and (precision == precision_of(w, INT8) or (precision == INT16 and k.depth)):
        for tile in range(lo, hi):
            for t in range(x.n_rows):
                if precision == INT16 and k.depth:
                    matvec_split(w, x, t, tile, y + t * ldy + 16 * tile)
                else:
                    k.matvec(w.tiles + <size_t>tile * w.n_blocks * k.tile_bytes, w.n_blocks, w.n_cols, x, t, y + t * ldy + 16 * tile)
        return
    for t in range(x.n_rows):
        memset(y + t * ldy + 16 * lo, 0, 64 * <size_t>(hi - lo))
    if precision == INT8:
        gemm_u8(w, x, y, ldy, lo, hi)
    elif precision == INT16:
        gemm_s16(w, x, y, ldy, lo, hi)
    else:
        gemm_f32(w, x, y, ldy, lo, hi)


# ======== backward: dx += W^T dy ========

cdef inline int unpack_back(const Packed* w, int group, int b, float* panel) noexcept nogil:
    """Rows 128 group .. +128, columns 32 b .. +32 as f32 [128 rows][32 columns]; returns the rows there are (multiple of 16)."""
    cdef float tile[TILE]
    cdef const Kernel* k = w.kernel
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
        peak = vf_max(peak, vf_abs(vf_load(panel + 32 * r)))
    vf_store(scale, vf_mul(peak, vf_set1(<float>(1.0 / W_LIMIT))))
    # A column of zeros divides by the smallest normal number instead: 0 * finite = 0.
    inverse = vf_div(vf_set1(W_LIMIT), vf_max(peak, vf_set1(1e-34)))
    for r in range(0, rows, 2):
        vw_store(q + 16 * r, vw_join(vf_to_i(vf_mul(vf_load(panel + 32 * r), inverse)),
                                     vf_to_i(vf_mul(vf_load(panel + 32 * r + 32), inverse))))
    memset(q + 16 * rows, 0, 32 * <size_t>(BACK_ROWS - rows))


cdef void backward_s16(const Packed* w, const int16_t* dyq, const float* dys, int n_tokens, float* dx, size_t ldx, int lo, int hi) noexcept nogil:
    cdef uint8_t memory[4 * 32 * BACK_ROWS + 2 * 32 * BACK_ROWS + 128 + 64]
    cdef float* panel = <float*>aligned(memory)
    cdef int16_t* q = <int16_t*>(panel + 32 * BACK_ROWS)
    cdef float* scale = <float*>(q + 32 * BACK_ROWS)
    cdef float spare[16]
    cdef Columns c
    cdef int b, group, rows, t, half, groups = (w.n_rows + BACK_ROWS - 1) // BACK_ROWS
    memset(spare, 0, sizeof(spare))
    for b in range(lo, hi):
        for group in range(groups):
            rows = unpack_back(w, group, b, panel)
            round_panel(panel, rows, q, scale)
            round_panel(panel + 16, rows, q + 16 * BACK_ROWS, scale + 16)
            for half in range(2 if 32 * b + 16 < w.n_cols else 1):
                for t in range(0, n_tokens, 4):
                    columns_at(&c, <const uint8_t*>(dyq + group * BACK_ROWS), 2 * BACK_ROWS * <size_t>groups, dys + group,
                               dys, groups, dx + 32 * b + 16 * half, ldx, t, n_tokens, spare)
                    panel_s16(q + 16 * BACK_ROWS * half, scale + 16 * half, NULL, 1, back_pairs, &c, False)


cdef void matmul_backward_tiles(const Packed* w, const float* dy, size_t ldy, const int16_t* dyq, const float* dys, int n_tokens, float* dx, size_t ldx, int lo, int hi) noexcept nogil:
    """dx[t][32 lo .. 32 hi) += W^T dy: exact where dyq is NULL, else from quantize_gradient's integers (relative error near 5e-4).

    dy (T, ldy), dx (T, ldx) with room for K padded to 16.
    """
    if dyq == NULL:
        backward_f32(w, dy, ldy, n_tokens, dx, ldx, lo, hi)
    else:
        backward_s16(w, dyq, dys, n_tokens, dx, ldx, lo, hi)
