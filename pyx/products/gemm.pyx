"""Products of packed matrices: y = W x for one token or many, and dx = W^T dy, from quantised weights.

Axes: T tokens, K columns of W (n_in), N rows of W (n_out). Rows of W go in tiles of 16, one vector lane a row, so that no
sum ever crosses lanes; blocks of 32 columns share a scale. Activations enter as f32 (EXACT), 8-bit or 16-bit integers
rounded per block of 32. The float operations of one output element and their order depend on the type and precision
only, never on T, on the thread count or on the tile it falls in.

What is here goes over blocks and row groups; what multiplies: weight_types (few tokens), panels (many).
"""

from libc.stdint cimport int8_t, int16_t, uint8_t

from .inputs cimport BACK_ROWS, EXACT, INT16, INT8, PART_TOKENS, STREAM_TOKENS, U8_BLOCKS, aligned, even_chunk
from .outliers cimport Columns, add_columns, find_columns
from .panels cimport MOST_GROUPS, BackPanel, BackProduct, Gradients, PanelProducts, Product, panel_products
from ..simd.verbs cimport (
    prefetch, transpose8, vb, vb_load, vf_load, vf_set1, vf_store, vh, vh_dot, vh_sum, vh_zero, vi, vi_add, vi_times128,
    vi_zero,
)
from .sizes cimport TILE, TILE_COLS, TILE_ROWS
from .tiles cimport Panel, close_block
from .weight_types cimport Streaming, WeightType

cdef struct Unpacking:      # one thread's: more than a stack may hold
    Panel[MOST_GROUPS] panels
    Columns found
    float columns[TILE_COLS * U8_BLOCKS * TILE_ROWS]

cdef struct OnePanel:       # a stack holds one of them
    Panel panel
    uint8_t[64] to_align

cdef struct OneBackPanel:
    BackPanel panel
    uint8_t[64] to_align


cdef size_t unpacking_bytes() noexcept nogil:
    """Bytes of an input's `unpacking`, which products of many tokens want."""
    return sizeof(Unpacking) + 64


cdef int precision_of(const Packed* w, int wish) noexcept nogil:
    """The form of inputs that W uses when `wish` is asked for: INT8 needs an 8-bit product, both INTs an integer type."""
    if w.type.unpack_s16 == NULL:
        return EXACT
    return INT16 if wish == INT8 and w.type.depth == 0 else wish


cdef inline const uint8_t* tile_at(const Packed* w, int tile, int b) noexcept nogil:
    return w.tiles + (<size_t>tile * w.n_blocks + b) * w.type.tile_bytes


cdef inline const float* units_at(const Packed* w, int tile) noexcept nogil:
    return w.units + TILE_ROWS * tile if w.units != NULL else NULL


# ======== few tokens: straight from the tiles ========

cdef inline void few_tokens(const Packed* w, const Streaming* s, const Acts* x, int tile, float* y, size_t ldy) noexcept nogil:
    """One row group's products: inputs in fours, the rest one by one"""
    cdef const uint8_t* tiles = tile_at(w, tile, 0)
    cdef const float* units = units_at(w, tile)
    cdef int t = 0
    while t + 4 <= x.n_rows:
        s.matvec4(tiles, units, x, t, y + t * ldy, ldy)
        t += 4
    while t < x.n_rows:
        s.matvec(tiles, units, x, t, y + t * ldy)
        t += 1


cdef int two_tiles(const Packed* w, const Streaming* s, const Acts* x, float* y, int lo, int hi) noexcept nogil:
    """One token reads the first and the second half of the row groups side by side where the type can; returns where to go on"""
    cdef int i, half = (hi - lo) // 2
    if s.matvec2 == NULL:
        return lo
    for i in range(lo, lo + half):
        s.matvec2(tile_at(w, i, 0), tile_at(w, i + half, 0), units_at(w, i), units_at(w, i + half), x, y + TILE_ROWS * i,
                  y + TILE_ROWS * (i + half))
    return lo + 2 * half


cdef void matvec_split(const Packed* w, const Acts* x, size_t t, int tile, float* y) noexcept nogil:
    """y[16] = one row group's product with 16-bit input t, from two 8-bit products: 128 high + low, exactly multiply_s16's sums.

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


# ======== many tokens: panels ========

cdef inline const Product* product_of(const WeightType* k, const Acts* x, int precision) noexcept nogil:
    cdef const PanelProducts* table = panel_products()
    if precision == EXACT:
        return &table.floats
    if precision == INT16:
        return &table.blocks16[k.unpacks_min]
    return &table.superblocks8[k.fifth] if x.superblock > 1 else &table.blocks8[k.fifth]


cdef void many_tokens(const Packed* w, const Product* p, const Acts* x, Panel* panels, int most_groups, Unpacking* work, float* y, size_t ldy,
                      int lo, int hi) noexcept nogil:
    """panels: room for most_groups of them; work: for what 8-bit inputs set aside, of others NULL"""
    cdef int chunk = p.whole * even_chunk((w.n_blocks + p.whole - 1) // p.whole, p.blocks // p.whole)
    cdef int part, t0, t1, b, n, tile, g, groups
    cdef float* out
    for part in range((x.n_rows + PART_TOKENS - 1) // PART_TOKENS):
        t0, t1, b = part * PART_TOKENS, min((part + 1) * PART_TOKENS, x.n_rows), 0
        while b < w.n_blocks:
            n = min(chunk, w.n_blocks - b)
            if work != NULL:
                find_columns(x, b, n, t0, t1, &work.found)
            tile = lo
            while tile < hi:
                groups, out = min(p.groups, most_groups, hi - tile), y + t0 * ldy + TILE_ROWS * tile
                for g in range(groups):
                    p.unpack(w.type, tile_at(w, tile + g, b), n, units_at(w, tile + g), panels + g)
                p.multiply(panels, groups, x, b, n, t0, t1, b == 0, out, ldy)
                for g in range(groups if work != NULL else 0):
                    add_columns(panels[g].q, panels[g].d, &work.found, t1 - t0, work.columns, out + TILE_ROWS * g, ldy)
                tile += groups
            b += n


cdef void many_with_one_panel(const Packed* w, const Product* p, const Acts* x, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    """Where the caller has no memory for panels"""
    cdef OnePanel memory
    many_tokens(w, p, x, <Panel*>aligned(&memory), 1, NULL, y, ldy, lo, hi)


cdef void matmul_tiles(const Packed* w, const Acts* x, int precision, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    """y[t][16 lo .. 16 hi) = W x for all T inputs; rows of y hold N padded to 16.

    precision: the form of x to use, as far as the type has it (precision_of). x.unpacking: the thread's own memory; many 16-bit
    or f32 inputs do without, one row group at a time.
    """
    cdef const WeightType* k = w.type
    cdef int t, tile
    cdef const Streaming* s = &k.blocks
    cdef Unpacking* work = <Unpacking*>aligned(x.unpacking)
    precision = precision_of(w, precision)
    if precision == INT8 and x.superblock > 1:
        s = &k.superblocks
    if precision == INT8 and x.n_rows == 1:
        lo = two_tiles(w, s, x, y, lo, hi)
    # few tokens' products know one form of inputs, the fastest that the type has
    if x.n_rows < (STREAM_TOKENS + 1 if k.blocks.matvec4 != NULL else 4) and precision == precision_of(w, INT8):
        for tile in range(lo, hi):
            few_tokens(w, s, x, tile, y + TILE_ROWS * tile, ldy)
    elif x.n_rows < 4 and precision == INT16 and k.depth:
        for tile in range(lo, hi):
            for t in range(x.n_rows):
                matvec_split(w, x, t, tile, y + t * ldy + TILE_ROWS * tile)
    elif x.unpacking == NULL and precision != INT8:
        many_with_one_panel(w, product_of(k, x, precision), x, y, ldy, lo, hi)
    else:
        many_tokens(w, product_of(k, x, precision), x, work.panels, MOST_GROUPS, work if precision == INT8 else NULL, y, ldy, lo, hi)


# ======== backward: dx += W^T dy ========

cdef inline void unpack_back(const Packed* w, int group, int b, BackPanel* p) noexcept nogil:
    """Rows BACK_ROWS group .. and columns 32 b .. +32 of W"""
    cdef float tile[TILE]
    cdef int i, r, c, first = group * (BACK_ROWS // TILE_ROWS)
    for i in range(min(BACK_ROWS // TILE_ROWS, w.n_tiles - first)):
        w.type.unpack_f32(tile_at(w, first + i, b), 1, tile)
        for r in range(0, TILE_ROWS, 8):
            for c in range(0, TILE_COLS, 8):
                transpose8(tile + TILE_ROWS * c + r, TILE_ROWS, p.w + TILE * i + TILE_COLS * r + c, TILE_COLS)
    p.rows = min(BACK_ROWS, w.n_rows - group * BACK_ROWS)


cdef void matmul_backward_tiles(const Packed* w, const float* dy, size_t ldy, const int16_t* dyq, const float* dys, int n_tokens, float* dx, size_t ldx, int lo, int hi) noexcept nogil:
    """dx[t][32 lo .. 32 hi) += W^T dy: exact where dyq is NULL, else from quantize_gradient's integers (relative error near 5e-4).

    dy (T, ldy), dx (T, ldx) with room for K padded to 16.
    """
    cdef OneBackPanel memory
    cdef BackPanel* panel = <BackPanel*>aligned(&memory)
    cdef const BackProduct* p = &panel_products().back_floats if dyq == NULL else &panel_products().back16
    cdef Gradients g = Gradients(dy, ldy, dyq, dys, n_tokens)
    cdef int b0, b, group
    # two blocks' columns at a time: the second finds the tokens in L2
    for b0 in range(lo, hi, 2):
        for group in range((w.n_rows + BACK_ROWS - 1) // BACK_ROWS):
            for b in range(b0, min(b0 + 2, hi)):
                unpack_back(w, group, b, panel)
                if p.round != NULL:
                    p.round(panel)
                p.multiply(panel, 2 if 32 * b + 16 < w.n_cols else 1, &g, group, dx + 32 * b, ldx)
