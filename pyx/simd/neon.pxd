# NEON with the dot-product instructions (armv8.2-a+dotprod): the verbs of generic.pxd, which says what they do, over four
# registers of 128 bits.
#   vb  16 rows x 4 x u8 of at most 127, a register four rows: what keeps int16 sums whole makes sdot right
#   vw  the even int16 of all rows apart from the odd ones: one multiply-add takes four rows' element
#   vh  16 x i32, for sdot adds a row's four products to 32 bits

from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from .arm_neon cimport *

cdef extern from *:
    """
    static inline void cpu_yield(void) { __asm__ volatile("yield"); }
    """
    void cpu_yield() noexcept nogil
    void __builtin_prefetch(const void*) noexcept nogil

cdef struct vf:             # rows 0..3, 4..7, 8..11, 12..15, as in vi, vb and vh
    float32x4_t a
    float32x4_t b
    float32x4_t c
    float32x4_t d

cdef struct vi:
    int32x4_t a
    int32x4_t b
    int32x4_t c
    int32x4_t d

cdef struct vb:
    uint8x16_t a
    uint8x16_t b
    uint8x16_t c
    uint8x16_t d

cdef struct vw:             # rows 0..7 and 8..15
    int16x8_t even_lo
    int16x8_t even_hi
    int16x8_t odd_lo
    int16x8_t odd_hi

cdef struct vh:
    int32x4_t a
    int32x4_t b
    int32x4_t c
    int32x4_t d


cdef enum:
    U8_OFFSET = 0     # what vh_mix wants its inputs raised by: nothing, sdot takes signs on both sides


cdef inline void pause() noexcept nogil:
    cpu_yield()

cdef inline void prefetch(const void* p) noexcept nogil:
    __builtin_prefetch(p)

cdef inline void prefetch_line(const void* p) noexcept nogil:
    __builtin_prefetch(p)


# ---- f32 ----

cdef inline vf vf_load(const float* p) noexcept nogil:
    return vf(vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12))

cdef inline void vf_store(float* p, vf a) noexcept nogil:
    vst1q_f32(p, a.a)
    vst1q_f32(p + 4, a.b)
    vst1q_f32(p + 8, a.c)
    vst1q_f32(p + 12, a.d)

cdef inline vf vf_set1(float x) noexcept nogil:
    cdef float32x4_t all16 = vdupq_n_f32(x)
    return vf(all16, all16, all16, all16)

cdef inline vf vf_add(vf a, vf b) noexcept nogil:
    return vf(vaddq_f32(a.a, b.a), vaddq_f32(a.b, b.b), vaddq_f32(a.c, b.c), vaddq_f32(a.d, b.d))

cdef inline vf vf_sub(vf a, vf b) noexcept nogil:
    return vf(vsubq_f32(a.a, b.a), vsubq_f32(a.b, b.b), vsubq_f32(a.c, b.c), vsubq_f32(a.d, b.d))

cdef inline vf vf_mul(vf a, vf b) noexcept nogil:
    return vf(vmulq_f32(a.a, b.a), vmulq_f32(a.b, b.b), vmulq_f32(a.c, b.c), vmulq_f32(a.d, b.d))

cdef inline vf vf_div(vf a, vf b) noexcept nogil:
    return vf(vdivq_f32(a.a, b.a), vdivq_f32(a.b, b.b), vdivq_f32(a.c, b.c), vdivq_f32(a.d, b.d))

cdef inline float32x4_t _max(float32x4_t a, float32x4_t b) noexcept nogil:
    # not fmax: a NaN shall give b, as everywhere else
    return vbslq_f32(vcgtq_f32(a, b), a, b)

cdef inline vf vf_max(vf a, vf b) noexcept nogil:
    return vf(_max(a.a, b.a), _max(a.b, b.b), _max(a.c, b.c), _max(a.d, b.d))

cdef inline float32x4_t _min(float32x4_t a, float32x4_t b) noexcept nogil:
    return vbslq_f32(vcgtq_f32(b, a), a, b)

cdef inline vf vf_min(vf a, vf b) noexcept nogil:
    return vf(_min(a.a, b.a), _min(a.b, b.b), _min(a.c, b.c), _min(a.d, b.d))

cdef inline vf vf_sqrt(vf a) noexcept nogil:
    return vf(vsqrtq_f32(a.a), vsqrtq_f32(a.b), vsqrtq_f32(a.c), vsqrtq_f32(a.d))

cdef inline vf vf_abs(vf a) noexcept nogil:
    return vf(vabsq_f32(a.a), vabsq_f32(a.b), vabsq_f32(a.c), vabsq_f32(a.d))

cdef inline float32x4_t _amax(float32x4_t most, float32x4_t a) noexcept nogil:
    return vreinterpretq_f32_s32(vmaxq_s32(vreinterpretq_s32_f32(most), vreinterpretq_s32_f32(vabsq_f32(a))))

cdef inline vf vf_amax(vf most, vf a) noexcept nogil:
    return vf(_amax(most.a, a.a), _amax(most.b, a.b), _amax(most.c, a.c), _amax(most.d, a.d))

cdef inline vf vf_fma(vf a, vf b, vf c) noexcept nogil:
    return vf(vfmaq_f32(c.a, a.a, b.a), vfmaq_f32(c.b, a.b, b.b), vfmaq_f32(c.c, a.c, b.c), vfmaq_f32(c.d, a.d, b.d))

cdef inline vf vf_fnma(vf a, vf b, vf c) noexcept nogil:
    return vf(vfmsq_f32(c.a, a.a, b.a), vfmsq_f32(c.b, a.b, b.b), vfmsq_f32(c.c, a.c, b.c), vfmsq_f32(c.d, a.d, b.d))

cdef inline vf vf_fma1(vf a, float x, vf c) noexcept nogil:
    return vf(vfmaq_n_f32(c.a, a.a, x), vfmaq_n_f32(c.b, a.b, x), vfmaq_n_f32(c.c, a.c, x), vfmaq_n_f32(c.d, a.d, x))

cdef inline vf vf_round(vf a) noexcept nogil:
    return vf(vrndnq_f32(a.a), vrndnq_f32(a.b), vrndnq_f32(a.c), vrndnq_f32(a.d))

cdef inline float32x4_t _pow2(float32x4_t n) noexcept nogil:
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23))

cdef inline vf vf_pow2(vf n) noexcept nogil:
    return vf(_pow2(n.a), _pow2(n.b), _pow2(n.c), _pow2(n.d))

cdef inline float vf_hsum(vf a) noexcept nogil:
    cdef float32x4_t s = vaddq_f32(vaddq_f32(a.a, a.c), vaddq_f32(a.b, a.d))
    return vpadds_f32(vadd_f32(vget_low_f32(s), vget_high_f32(s)))

cdef inline float vf_hmax(vf a) noexcept nogil:
    return vmaxvq_f32(_max(_max(a.a, a.c), _max(a.b, a.d)))

cdef inline float vf_hamax(vf most) noexcept nogil:
    cdef int32_t bits = vmaxvq_s32(vreinterpretq_s32_f32(_amax(_amax(most.a, most.c), _amax(most.b, most.d))))
    cdef float r
    memcpy(&r, &bits, 4)
    return r


# ---- 16-bit floats in memory ----

cdef inline float32x4_t _from_f16(const uint16_t* p) noexcept nogil:
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))

cdef inline vf vf_load_f16(const void* p) noexcept nogil:
    cdef const uint16_t* h = <const uint16_t*>p
    return vf(_from_f16(h), _from_f16(h + 4), _from_f16(h + 8), _from_f16(h + 12))

cdef inline void vf_store_f16(void* p, vf a) noexcept nogil:
    cdef uint16_t* h = <uint16_t*>p
    vst1_u16(h, vreinterpret_u16_f16(vcvt_f16_f32(a.a)))
    vst1_u16(h + 4, vreinterpret_u16_f16(vcvt_f16_f32(a.b)))
    vst1_u16(h + 8, vreinterpret_u16_f16(vcvt_f16_f32(a.c)))
    vst1_u16(h + 12, vreinterpret_u16_f16(vcvt_f16_f32(a.d)))

cdef inline float32x4_t _from_bf16(const uint16_t* p) noexcept nogil:
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))

cdef inline vf vf_load_bf16(const void* p) noexcept nogil:
    cdef const uint16_t* h = <const uint16_t*>p
    return vf(_from_bf16(h), _from_bf16(h + 4), _from_bf16(h + 8), _from_bf16(h + 12))

cdef inline uint16x4_t _to_bf16(float32x4_t a) noexcept nogil:
    # round half to even: add 0x7fff plus the lowest kept bit; all of NaN's bits below the sign are set
    cdef uint32x4_t x = vreinterpretq_u32_f32(a), none = vmvnq_u32(vceqq_f32(a, a))
    cdef uint32x4_t odd = vandq_u32(vshrq_n_u32(x, 16), vdupq_n_u32(1))
    x = vaddq_u32(x, vaddq_u32(odd, vdupq_n_u32(0x7fff)))
    return vshrn_n_u32(vorrq_u32(x, vshrq_n_u32(none, 1)), 16)

cdef inline void vf_store_bf16(void* p, vf a) noexcept nogil:
    cdef uint16_t* h = <uint16_t*>p
    vst1_u16(h, _to_bf16(a.a))
    vst1_u16(h + 4, _to_bf16(a.b))
    vst1_u16(h + 8, _to_bf16(a.c))
    vst1_u16(h + 12, _to_bf16(a.d))


# ---- integers ----

cdef inline vf _floats(int16x8_t lo, int16x8_t hi) noexcept nogil:
    return vf(vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))), vcvtq_f32_s32(vmovl_high_s16(lo)),
              vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))), vcvtq_f32_s32(vmovl_high_s16(hi)))

cdef inline vf vf_load_s8(const int8_t* p) noexcept nogil:
    cdef int8x16_t x = vld1q_s8(p)
    return _floats(vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x))

cdef inline vi vi_zero() noexcept nogil:
    cdef int32x4_t x = vdupq_n_s32(0)
    return vi(x, x, x, x)

cdef inline vi vi_load(const int32_t* p) noexcept nogil:
    return vi(vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12))

cdef inline void vi_store(int32_t* p, vi a) noexcept nogil:
    vst1q_s32(p, a.a)
    vst1q_s32(p + 4, a.b)
    vst1q_s32(p + 8, a.c)
    vst1q_s32(p + 12, a.d)

cdef inline vi vi_add(vi a, vi b) noexcept nogil:
    return vi(vaddq_s32(a.a, b.a), vaddq_s32(a.b, b.b), vaddq_s32(a.c, b.c), vaddq_s32(a.d, b.d))

cdef inline vi vi_sub(vi a, vi b) noexcept nogil:
    return vi(vsubq_s32(a.a, b.a), vsubq_s32(a.b, b.b), vsubq_s32(a.c, b.c), vsubq_s32(a.d, b.d))

cdef inline int32x4_t _bits(const uint8_t* p, int32x4_t down, int32x4_t keep, int32x4_t up) noexcept nogil:
    cdef uint32x4_t x = vshlq_u32(vreinterpretq_u32_u8(vld1q_u8(p)), down)
    return vreinterpretq_s32_u32(vshlq_u32(vandq_u32(x, vreinterpretq_u32_s32(keep)), up))

cdef inline vi vi_bits(const uint8_t* p, int shift, int mask, int to) noexcept nogil:
    cdef int32x4_t down = vdupq_n_s32(-shift), keep = vdupq_n_s32(mask), up = vdupq_n_s32(to)
    return vi(_bits(p, down, keep, up), _bits(p + 16, down, keep, up), _bits(p + 32, down, keep, up), _bits(p + 48, down, keep, up))

cdef inline vi vi_nibbles(const uint8_t* p, int i) noexcept nogil:
    cdef int32x4_t keep = vdupq_n_s32(15), up = vdupq_n_s32(0)
    return vi(_bits(p, vdupq_n_s32(-8 * i), keep, up), _bits(p + 16, vdupq_n_s32(-8 * i), keep, up),
              _bits(p, vdupq_n_s32(-8 * i - 4), keep, up), _bits(p + 16, vdupq_n_s32(-8 * i - 4), keep, up))

cdef inline int32x4_t _byte(const uint8_t* p, int32x4_t up) noexcept nogil:
    return vshrq_n_s32(vshlq_s32(vreinterpretq_s32_u8(vld1q_u8(p)), up), 24)

cdef inline vi vi_byte(const uint8_t* p, int i) noexcept nogil:
    cdef int32x4_t up = vdupq_n_s32(24 - 8 * i)
    return vi(_byte(p, up), _byte(p + 16, up), _byte(p + 32, up), _byte(p + 48, up))

cdef inline vi vi_times128(vi a) noexcept nogil:
    return vi(vshlq_n_s32(a.a, 7), vshlq_n_s32(a.b, 7), vshlq_n_s32(a.c, 7), vshlq_n_s32(a.d, 7))

cdef inline vf vi_to_f(vi a) noexcept nogil:
    return vf(vcvtq_f32_s32(a.a), vcvtq_f32_s32(a.b), vcvtq_f32_s32(a.c), vcvtq_f32_s32(a.d))

cdef inline vi vf_to_i(vf a) noexcept nogil:
    return vi(vcvtnq_s32_f32(a.a), vcvtnq_s32_f32(a.b), vcvtnq_s32_f32(a.c), vcvtnq_s32_f32(a.d))

cdef inline int32_t vi_hsum(vi a) noexcept nogil:
    return vaddvq_s32(vaddq_s32(vaddq_s32(a.a, a.b), vaddq_s32(a.c, a.d)))

cdef inline int16x8_t _saturated(int32x4_t a, int32x4_t b) noexcept nogil:
    return vcombine_s16(vqmovn_s32(a), vqmovn_s32(b))

cdef inline void vi_store_s16(int16_t* p, vi a) noexcept nogil:
    vst1q_s16(p, _saturated(a.a, a.b))
    vst1q_s16(p + 8, _saturated(a.c, a.d))

cdef inline void vi_store_s8(int8_t* p, vi a) noexcept nogil:
    vst1q_s8(p, vcombine_s8(vqmovn_s16(_saturated(a.a, a.b)), vqmovn_s16(_saturated(a.c, a.d))))

cdef inline vb vb_load(const uint8_t* p) noexcept nogil:
    return vb(vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48))

cdef inline void vb_store(uint8_t* p, vb a) noexcept nogil:
    vst1q_u8(p, a.a)
    vst1q_u8(p + 16, a.b)
    vst1q_u8(p + 32, a.c)
    vst1q_u8(p + 48, a.d)

cdef inline vb vb_nibbles(const uint8_t* p) noexcept nogil:
    cdef uint8x16_t x = vld1q_u8(p), y = vld1q_u8(p + 16), mask = vdupq_n_u8(15)
    return vb(vandq_u8(x, mask), vandq_u8(y, mask), vshrq_n_u8(x, 4), vshrq_n_u8(y, 4))

cdef inline vb vb_or_bit(vb a, vb bits, int g, int to) noexcept nogil:
    cdef uint8x16_t mask = vdupq_n_u8(<uint8_t>(1 << to))
    cdef int8x16_t left = vdupq_n_s8(<int8_t>(to - g))
    return vb(vorrq_u8(a.a, vandq_u8(vshlq_u8(bits.a, left), mask)), vorrq_u8(a.b, vandq_u8(vshlq_u8(bits.b, left), mask)),
              vorrq_u8(a.c, vandq_u8(vshlq_u8(bits.c, left), mask)), vorrq_u8(a.d, vandq_u8(vshlq_u8(bits.d, left), mask)))

cdef inline vb vb_minus(vb a, int n) noexcept nogil:
    cdef uint8x16_t x = vdupq_n_u8(<uint8_t>n)
    return vb(vsubq_u8(a.a, x), vsubq_u8(a.b, x), vsubq_u8(a.c, x), vsubq_u8(a.d, x))

cdef inline vb vb_add(vb a, vb b) noexcept nogil:
    return vb(vaddq_u8(a.a, b.a), vaddq_u8(a.b, b.b), vaddq_u8(a.c, b.c), vaddq_u8(a.d, b.d))

cdef inline vh vh_zero() noexcept nogil:
    cdef int32x4_t x = vdupq_n_s32(0)
    return vh(x, x, x, x)

cdef inline vh vh_start(const int16_t* twice) noexcept nogil:
    cdef int32x4_t x = vdupq_n_s32(2 * twice[0])
    return vh(x, x, x, x)

cdef inline vh vh_dot(vh acc, vb w, const int8_t* a) noexcept nogil:
    cdef int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32((<const int32_t*>a)[0]))
    return vh(vdotq_s32(acc.a, vreinterpretq_s8_u8(w.a), x), vdotq_s32(acc.b, vreinterpretq_s8_u8(w.b), x),
              vdotq_s32(acc.c, vreinterpretq_s8_u8(w.c), x), vdotq_s32(acc.d, vreinterpretq_s8_u8(w.d), x))

cdef inline vh vh_mix(vh acc, vb w, const uint8_t* a) noexcept nogil:
    return vh_dot(acc, w, <const int8_t*>a)

cdef inline vi vh_weigh(vi acc, vh sums, vw by) noexcept nogil:
    return vi(vmlaq_s32(acc.a, sums.a, vmovl_s16(vget_low_s16(by.even_lo))), vmlaq_s32(acc.b, sums.b, vmovl_s16(vget_high_s16(by.even_lo))),
              vmlaq_s32(acc.c, sums.c, vmovl_s16(vget_low_s16(by.even_hi))), vmlaq_s32(acc.d, sums.d, vmovl_s16(vget_high_s16(by.even_hi))))

cdef inline vi vh_sum(vh acc) noexcept nogil:
    return vi(acc.a, acc.b, acc.c, acc.d)

cdef inline vw vw_load(const int16_t* p) noexcept nogil:
    cdef int16x8x2_t lo = vld2q_s16(p), hi = vld2q_s16(p + 16)
    return vw(lo.val[0], hi.val[0], lo.val[1], hi.val[1])

cdef inline void vw_store(int16_t* p, vw a) noexcept nogil:
    cdef int16x8x2_t lo, hi
    lo.val[0], lo.val[1], hi.val[0], hi.val[1] = a.even_lo, a.odd_lo, a.even_hi, a.odd_hi
    vst2q_s16(p, lo)
    vst2q_s16(p + 16, hi)

cdef inline vw vw_load_s8(const int8_t* p) noexcept nogil:
    cdef int8x16x2_t x = vld2q_s8(p)
    return vw(vmovl_s8(vget_low_s8(x.val[0])), vmovl_high_s8(x.val[0]), vmovl_s8(vget_low_s8(x.val[1])), vmovl_high_s8(x.val[1]))

cdef inline uint16x8_t _pairs(uint8x16_t low, uint8x16_t high, int j) noexcept nogil:
    cdef uint16x8_t x = vreinterpretq_u16_u8(low), y = vreinterpretq_u16_u8(high)
    return vuzp1q_u16(x, y) if j == 0 else vuzp2q_u16(x, y)

cdef inline vw vb_pair(vb a, int j, int offset) noexcept nogil:
    cdef uint16x8_t lo = _pairs(a.a, a.b, j), hi = _pairs(a.c, a.d, j), mask = vdupq_n_u16(0xff)
    cdef int16x8_t less = vdupq_n_s16(<int16_t>offset)
    return vw(vsubq_s16(vreinterpretq_s16_u16(vandq_u16(lo, mask)), less), vsubq_s16(vreinterpretq_s16_u16(vandq_u16(hi, mask)), less),
              vsubq_s16(vreinterpretq_s16_u16(vshrq_n_u16(lo, 8)), less), vsubq_s16(vreinterpretq_s16_u16(vshrq_n_u16(hi, 8)), less))

cdef inline vw vw_mul(vw a, vw b) noexcept nogil:
    return vw(vmulq_s16(a.even_lo, b.even_lo), vmulq_s16(a.even_hi, b.even_hi),
              vmulq_s16(a.odd_lo, b.odd_lo), vmulq_s16(a.odd_hi, b.odd_hi))

cdef inline vi vi_dot(vi acc, vw w, const int16_t* a) noexcept nogil:
    cdef int16x4_t x = vreinterpret_s16_s32(vdup_n_s32((<const int32_t*>a)[0]))
    return vi(vmlal_lane_s16(acc.a, vget_low_s16(w.even_lo), x, 0), vmlal_high_lane_s16(acc.b, w.even_lo, x, 0),
              vmlal_lane_s16(acc.c, vget_low_s16(w.even_hi), x, 0), vmlal_high_lane_s16(acc.d, w.even_hi, x, 0))

cdef inline vf vw_even(vw a) noexcept nogil:
    return _floats(a.even_lo, a.even_hi)

cdef inline vf vw_odd(vw a) noexcept nogil:
    return _floats(a.odd_lo, a.odd_hi)

cdef inline int16x8_t _narrow(int32x4_t a, int32x4_t b) noexcept nogil:
    return vcombine_s16(vmovn_s32(a), vmovn_s32(b))

cdef inline vw vw_join(vi even, vi odd) noexcept nogil:
    return vw(_narrow(even.a, even.b), _narrow(even.c, even.d), _narrow(odd.a, odd.b), _narrow(odd.c, odd.d))


# ---- shuffles ----

cdef inline void _transpose4(const float* src, size_t ss, float* dst, size_t ds) noexcept nogil:
    cdef float32x4_t a0 = vld1q_f32(src), a1 = vld1q_f32(src + ss)
    cdef float32x4_t a2 = vld1q_f32(src + 2 * ss), a3 = vld1q_f32(src + 3 * ss)
    cdef float32x4_t b0 = vtrn1q_f32(a0, a1), b1 = vtrn2q_f32(a0, a1)
    cdef float32x4_t b2 = vtrn1q_f32(a2, a3), b3 = vtrn2q_f32(a2, a3)
    vst1q_f32(dst, vcombine_f32(vget_low_f32(b0), vget_low_f32(b2)))
    vst1q_f32(dst + ds, vcombine_f32(vget_low_f32(b1), vget_low_f32(b3)))
    vst1q_f32(dst + 2 * ds, vcombine_f32(vget_high_f32(b0), vget_high_f32(b2)))
    vst1q_f32(dst + 3 * ds, vcombine_f32(vget_high_f32(b1), vget_high_f32(b3)))

cdef inline void transpose8(const float* src, size_t ss, float* dst, size_t ds) noexcept nogil:
    _transpose4(src, ss, dst, ds)
    _transpose4(src + 4, ss, dst + 4 * ds, ds)
    _transpose4(src + 4 * ss, ss, dst + 4, ds)
    _transpose4(src + 4 * ss + 4, ss, dst + 4 * ds + 4, ds)
