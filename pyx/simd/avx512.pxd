# AVX-512 with VNNI: the verbs of generic.pxd, which says what they do, over one register. A row's four 8-bit products go straight
# to 32 bits (vpdpbusd does not saturate), so vh is 16 x i32: equal sums wherever a caller's bounds keep int16 ones whole.

from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t

from .immintrin cimport *
from .x86 cimport prefetch_here

ctypedef __m512 vf
ctypedef __m512i vi
ctypedef __m512i vb
ctypedef __m512i vw
ctypedef __m512i vh


cdef enum:
    U8_OFFSET = 128     # what vh_mix wants its inputs raised by: dpbusd takes one side without a sign


cdef inline void pause() noexcept nogil:
    _mm_pause()

cdef inline void prefetch(const void* p) noexcept nogil:
    _mm_prefetch(<const char*>p, 3)

cdef inline void prefetch_line(const void* p) noexcept nogil:
    prefetch_here(p)


# ---- f32 ----

cdef inline vf vf_load(const float* p) noexcept nogil:
    return _mm512_loadu_ps(p)

cdef inline void vf_store(float* p, vf a) noexcept nogil:
    _mm512_storeu_ps(p, a)

cdef inline vf vf_set1(float x) noexcept nogil:
    return _mm512_set1_ps(x)

cdef inline vf vf_add(vf a, vf b) noexcept nogil:
    return _mm512_add_ps(a, b)

cdef inline vf vf_sub(vf a, vf b) noexcept nogil:
    return _mm512_sub_ps(a, b)

cdef inline vf vf_mul(vf a, vf b) noexcept nogil:
    return _mm512_mul_ps(a, b)

cdef inline vf vf_div(vf a, vf b) noexcept nogil:
    return _mm512_div_ps(a, b)

cdef inline vf vf_max(vf a, vf b) noexcept nogil:
    return _mm512_max_ps(a, b)

cdef inline vf vf_min(vf a, vf b) noexcept nogil:
    return _mm512_min_ps(a, b)

cdef inline vf vf_sqrt(vf a) noexcept nogil:
    return _mm512_sqrt_ps(a)

cdef inline vf vf_abs(vf a) noexcept nogil:
    return _mm512_abs_ps(a)

cdef inline vf vf_amax(vf most, vf a) noexcept nogil:
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(most), _mm512_castps_si512(_mm512_abs_ps(a))))

cdef inline vf vf_fma(vf a, vf b, vf c) noexcept nogil:
    return _mm512_fmadd_ps(a, b, c)

cdef inline vf vf_fnma(vf a, vf b, vf c) noexcept nogil:
    return _mm512_fnmadd_ps(a, b, c)

cdef inline vf vf_fma1(vf a, float x, vf c) noexcept nogil:
    return _mm512_fmadd_ps(a, _mm512_set1_ps(x), c)

cdef inline vf vf_round(vf a) noexcept nogil:
    return _mm512_roundscale_ps(a, 8)

cdef inline vf vf_pow2(vf n) noexcept nogil:
    return _mm512_scalef_ps(_mm512_set1_ps(1), n)

cdef inline float vf_hsum(vf a) noexcept nogil:
    cdef __m256 s = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1))
    cdef __m128 h = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1))
    h = _mm_add_ps(h, _mm_movehl_ps(h, h))
    return _mm_cvtss_f32(_mm_add_ps(h, _mm_movehdup_ps(h)))

cdef inline float vf_hmax(vf a) noexcept nogil:
    cdef __m256 s = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1))
    cdef __m128 h = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1))
    h = _mm_max_ps(h, _mm_movehl_ps(h, h))
    return _mm_cvtss_f32(_mm_max_ps(h, _mm_movehdup_ps(h)))

cdef inline float vf_hamax(vf most) noexcept nogil:
    cdef __m512i x = _mm512_castps_si512(most)
    cdef __m256i s = _mm256_max_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1))
    cdef __m128i h = _mm_max_epi32(_lower(s), _mm256_extracti128_si256(s, 1))
    h = _mm_max_epi32(h, _mm_unpackhi_epi64(h, h))
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(h, _mm_shuffle_epi32(h, 1))))


# ---- 16-bit floats in memory ----

cdef inline vf vf_load_f16(const void* p) noexcept nogil:
    return _mm512_cvtph_ps(_mm256_loadu_si256(<const __m256i*>p))

cdef inline void vf_store_f16(void* p, vf a) noexcept nogil:
    _mm256_storeu_si256(<__m256i*>p, _mm512_cvtps_ph(a, 0))

cdef inline vf vf_load_bf16(const void* p) noexcept nogil:
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(<const __m256i*>p)), 16))

cdef inline void vf_store_bf16(void* p, vf a) noexcept nogil:
    # add 0x7fff plus the lowest kept bit
    cdef __m512i x = _mm512_castps_si512(a)
    cdef __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1))
    x = _mm512_srli_epi32(_mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16)
    x = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a, a, 3), x, _mm512_set1_epi32(0x7fff))
    _mm256_storeu_si256(<__m256i*>p, _mm512_cvtepi32_epi16(x))


# ---- integers ----

cdef inline vf vf_load_s8(const int8_t* p) noexcept nogil:
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(<const __m128i*>p)))

cdef inline vi vi_zero() noexcept nogil:
    return _mm512_setzero_si512()

cdef inline vi vi_load(const int32_t* p) noexcept nogil:
    return _mm512_loadu_si512(p)

cdef inline void vi_store(int32_t* p, vi a) noexcept nogil:
    _mm512_storeu_si512(p, a)

cdef inline vi vi_add(vi a, vi b) noexcept nogil:
    return _mm512_add_epi32(a, b)

cdef inline vi vi_sub(vi a, vi b) noexcept nogil:
    return _mm512_sub_epi32(a, b)

cdef inline vi vi_bits(const uint8_t* p, int shift, int mask, int to) noexcept nogil:
    cdef __m512i x = _mm512_srl_epi32(_mm512_loadu_si512(p), _mm_cvtsi32_si128(shift))
    return _mm512_sll_epi32(_mm512_and_si512(x, _mm512_set1_epi32(mask)), _mm_cvtsi32_si128(to))

cdef inline vi vi_nibbles(const uint8_t* p, int i) noexcept nogil:
    cdef __m256i x = _mm256_srl_epi32(_mm256_loadu_si256(<const __m256i*>p), _mm_cvtsi32_si128(8 * i))
    cdef __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(x), _mm256_srli_epi32(x, 4), 1)
    return _mm512_and_si512(both, _mm512_set1_epi32(15))

cdef inline vi vi_byte(const uint8_t* p, int i) noexcept nogil:
    return _mm512_srai_epi32(_mm512_sll_epi32(_mm512_loadu_si512(p), _mm_cvtsi32_si128(24 - 8 * i)), 24)

cdef inline vi vi_times128(vi a) noexcept nogil:
    return _mm512_slli_epi32(a, 7)

cdef inline vf vi_to_f(vi a) noexcept nogil:
    return _mm512_cvtepi32_ps(a)

cdef inline vi vf_to_i(vf a) noexcept nogil:
    return _mm512_cvtps_epi32(a)

cdef inline int32_t vi_hsum(vi a) noexcept nogil:
    return _mm512_reduce_add_epi32(a)

cdef inline void vi_store_s16(int16_t* p, vi a) noexcept nogil:
    _mm256_storeu_si256(<__m256i*>p, _mm512_cvtsepi32_epi16(a))

cdef inline void vi_store_s8(int8_t* p, vi a) noexcept nogil:
    _mm_storeu_si128(<__m128i*>p, _mm512_cvtsepi32_epi8(a))

cdef inline vb vb_load(const uint8_t* p) noexcept nogil:
    return _mm512_loadu_si512(p)

cdef inline void vb_store(uint8_t* p, vb a) noexcept nogil:
    _mm512_storeu_si512(p, a)

cdef inline vb vb_nibbles(const uint8_t* p) noexcept nogil:
    cdef __m256i x = _mm256_loadu_si256(<const __m256i*>p)
    cdef __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(x), _mm256_srli_epi16(x, 4), 1)
    return _mm512_and_si512(both, _mm512_set1_epi8(15))

cdef inline vb vb_or_bit(vb a, vb bits, int g, int to) noexcept nogil:
    cdef __m512i moved = _mm512_slli_epi16(bits, to - g) if g <= to else _mm512_srli_epi16(bits, g - to)
    return _mm512_or_si512(a, _mm512_and_si512(moved, _mm512_set1_epi8(<char>(1 << to))))

cdef inline vb vb_minus(vb a, int n) noexcept nogil:
    return _mm512_sub_epi8(a, _mm512_set1_epi8(<char>n))

cdef inline vb vb_add(vb a, vb b) noexcept nogil:
    return _mm512_add_epi8(a, b)

cdef inline vh vh_zero() noexcept nogil:
    return _mm512_setzero_si512()

cdef inline vh vh_start(const int16_t* twice) noexcept nogil:
    return _mm512_set1_epi32(2 * twice[0])

cdef inline vh vh_dot(vh acc, vb w, const int8_t* a) noexcept nogil:
    return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32((<const int32_t*>a)[0]))

cdef inline vh vh_mix(vh acc, vb w, const uint8_t* a) noexcept nogil:
    return _mm512_dpbusd_epi32(acc, _mm512_set1_epi32((<const int32_t*>a)[0]), w)

cdef inline vi vh_weigh(vi acc, vh sums, vw by) noexcept nogil:
    return _mm512_add_epi32(acc, _mm512_mullo_epi32(sums, _mm512_srai_epi32(by, 16)))

cdef inline vi vh_sum(vh acc) noexcept nogil:
    return acc

cdef inline vw vw_load(const int16_t* p) noexcept nogil:
    return _mm512_loadu_si512(p)

cdef inline void vw_store(int16_t* p, vw a) noexcept nogil:
    _mm512_storeu_si512(p, a)

cdef inline vw vw_load_s8(const int8_t* p) noexcept nogil:
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(<const __m256i*>p))

cdef inline vw vb_pair(vb a, int j, int offset) noexcept nogil:
    cdef __m512i even = _mm512_and_si512(_mm512_srli_epi32(a, 16 * j), _mm512_set1_epi32(0xff))
    cdef __m512i odd = _mm512_and_si512(_mm512_srli_epi32(a, 16 * j + 8), _mm512_set1_epi32(0xff))
    return _mm512_sub_epi16(_mm512_or_si512(even, _mm512_slli_epi32(odd, 16)), _mm512_set1_epi16(<short>offset))

cdef inline vw vw_mul(vw a, vw b) noexcept nogil:
    return _mm512_mullo_epi16(a, b)

cdef inline vi vi_dot(vi acc, vw w, const int16_t* a) noexcept nogil:
    return _mm512_dpwssd_epi32(acc, w, _mm512_set1_epi32((<const int32_t*>a)[0]))

cdef inline vf vw_even(vw a) noexcept nogil:
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(a, 16), 16))

cdef inline vf vw_odd(vw a) noexcept nogil:
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(a, 16))

cdef inline vw vw_join(vi even, vi odd) noexcept nogil:
    return _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16))


# ---- shuffles ----

cdef inline __m512 _two_rows(const float* low, const float* high) noexcept nogil:
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(low)), _mm256_loadu_ps(high), 1)

cdef inline void _two_columns(float* left, float* right, __m512 a) noexcept nogil:
    # a's quarters: rows 0-3 of the left column, of the right one, then rows 4-7 of both
    a = _mm512_shuffle_f32x4(a, a, 0xd8)
    _mm256_storeu_ps(left, _mm512_castps512_ps256(a))
    _mm256_storeu_ps(right, _mm512_extractf32x8_ps(a, 1))

cdef inline void transpose8(const float* src, size_t ss, float* dst, size_t ds) noexcept nogil:
    cdef __m512 a0 = _two_rows(src, src + 4 * ss), a1 = _two_rows(src + ss, src + 5 * ss)
    cdef __m512 a2 = _two_rows(src + 2 * ss, src + 6 * ss), a3 = _two_rows(src + 3 * ss, src + 7 * ss)
    cdef __m512 b0 = _mm512_unpacklo_ps(a0, a1), b1 = _mm512_unpackhi_ps(a0, a1)
    cdef __m512 b2 = _mm512_unpacklo_ps(a2, a3), b3 = _mm512_unpackhi_ps(a2, a3)
    _two_columns(dst, dst + 4 * ds, _mm512_shuffle_ps(b0, b2, 0x44))
    _two_columns(dst + ds, dst + 5 * ds, _mm512_shuffle_ps(b0, b2, 0xee))
    _two_columns(dst + 2 * ds, dst + 6 * ds, _mm512_shuffle_ps(b1, b3, 0x44))
    _two_columns(dst + 3 * ds, dst + 7 * ds, _mm512_shuffle_ps(b1, b3, 0xee))
