# AVX2 + FMA + F16C: the verbs of generic.pxd, which says what they do, over two registers. vh is 16 rows x 2 x i16.

from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint16_t, uint32_t

from .immintrin cimport *
from .x86 cimport prefetch_here

cdef struct vf:
    __m256 lo
    __m256 hi

cdef struct vi:
    __m256i lo
    __m256i hi

cdef struct vb:
    __m256i lo
    __m256i hi

cdef struct vw:
    __m256i lo
    __m256i hi

cdef struct vh:
    __m256i lo
    __m256i hi


cdef enum:
    U8_OFFSET = 128     # what vh_mix wants its inputs raised by: maddubs takes one side without a sign


cdef inline void pause() noexcept nogil:
    _mm_pause()

cdef inline void prefetch(const void* p) noexcept nogil:
    _mm_prefetch(<const char*>p, 3)

cdef inline void prefetch_line(const void* p) noexcept nogil:
    prefetch_here(p)


# ---- f32 ----

cdef inline vf vf_load(const float* p) noexcept nogil:
    return vf(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8))

cdef inline void vf_store(float* p, vf a) noexcept nogil:
    _mm256_storeu_ps(p, a.lo)
    _mm256_storeu_ps(p + 8, a.hi)

cdef inline vf vf_set1(float x) noexcept nogil:
    cdef __m256 all16 = _mm256_set1_ps(x)
    return vf(all16, all16)

cdef inline vf vf_add(vf a, vf b) noexcept nogil:
    return vf(_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi))

cdef inline vf vf_sub(vf a, vf b) noexcept nogil:
    return vf(_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi))

cdef inline vf vf_mul(vf a, vf b) noexcept nogil:
    return vf(_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi))

cdef inline vf vf_div(vf a, vf b) noexcept nogil:
    return vf(_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi))

cdef inline vf vf_max(vf a, vf b) noexcept nogil:
    return vf(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi))

cdef inline vf vf_min(vf a, vf b) noexcept nogil:
    return vf(_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi))

cdef inline vf vf_sqrt(vf a) noexcept nogil:
    return vf(_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi))

cdef inline vf vf_abs(vf a) noexcept nogil:
    cdef __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))
    return vf(_mm256_and_ps(a.lo, mask), _mm256_and_ps(a.hi, mask))

cdef inline vf vf_amax(vf most, vf a) noexcept nogil:
    cdef vf r = vf_abs(a)
    r.lo = _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(most.lo), _mm256_castps_si256(r.lo)))
    r.hi = _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(most.hi), _mm256_castps_si256(r.hi)))
    return r

cdef inline vf vf_fma(vf a, vf b, vf c) noexcept nogil:
    return vf(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi))

cdef inline vf vf_fnma(vf a, vf b, vf c) noexcept nogil:
    return vf(_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi))

cdef inline vf vf_fma1(vf a, float x, vf c) noexcept nogil:
    cdef __m256 b = _mm256_set1_ps(x)
    return vf(_mm256_fmadd_ps(a.lo, b, c.lo), _mm256_fmadd_ps(a.hi, b, c.hi))

cdef inline vf vf_round(vf a) noexcept nogil:
    return vf(_mm256_round_ps(a.lo, 8), _mm256_round_ps(a.hi, 8))

cdef inline vf vf_pow2(vf n) noexcept nogil:
    cdef __m256i bias = _mm256_set1_epi32(127)
    return vf(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.lo), bias), 23)),
              _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.hi), bias), 23)))

cdef inline float vf_hsum(vf a) noexcept nogil:
    cdef __m256 s = _mm256_add_ps(a.lo, a.hi)
    cdef __m128 h = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1))
    h = _mm_add_ps(h, _mm_movehl_ps(h, h))
    return _mm_cvtss_f32(_mm_add_ps(h, _mm_movehdup_ps(h)))

cdef inline float vf_hmax(vf a) noexcept nogil:
    cdef __m256 s = _mm256_max_ps(a.lo, a.hi)
    cdef __m128 h = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1))
    h = _mm_max_ps(h, _mm_movehl_ps(h, h))
    return _mm_cvtss_f32(_mm_max_ps(h, _mm_movehdup_ps(h)))

cdef inline float vf_hamax(vf most) noexcept nogil:
    cdef __m256i s = _mm256_max_epi32(_mm256_castps_si256(most.lo), _mm256_castps_si256(most.hi))
    cdef __m128i h = _mm_max_epi32(_lower(s), _mm256_extracti128_si256(s, 1))
    h = _mm_max_epi32(h, _mm_unpackhi_epi64(h, h))
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(h, _mm_shuffle_epi32(h, 1))))


# ---- 16-bit floats in memory ----

cdef inline vf vf_load_f16(const void* p) noexcept nogil:
    return vf(_mm256_cvtph_ps(_mm_loadu_si128(<const __m128i*>p)), _mm256_cvtph_ps(_mm_loadu_si128(<const __m128i*>p + 1)))

cdef inline void vf_store_f16(void* p, vf a) noexcept nogil:
    _mm_storeu_si128(<__m128i*>p, _mm256_cvtps_ph(a.lo, 0))
    _mm_storeu_si128(<__m128i*>p + 1, _mm256_cvtps_ph(a.hi, 0))

cdef inline vf vf_load_bf16(const void* p) noexcept nogil:
    return vf(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(<const __m128i*>p)), 16)),
              _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(<const __m128i*>p + 1)), 16)))

cdef inline __m256i _bf16_bits(__m256 a) noexcept nogil:
    # round half to even: add 0x7fff plus the lowest kept bit; all of NaN's bits below the sign are set
    cdef __m256i x = _mm256_castps_si256(a), none = _mm256_castps_si256(_mm256_cmp_ps(a, a, 3))
    cdef __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1))
    x = _mm256_srli_epi32(_mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16)
    return _mm256_or_si256(x, _mm256_srli_epi32(none, 17))

cdef inline void vf_store_bf16(void* p, vf a) noexcept nogil:
    cdef __m256i x = _mm256_packus_epi32(_bf16_bits(a.lo), _bf16_bits(a.hi))
    _mm256_storeu_si256(<__m256i*>p, _mm256_permute4x64_epi64(x, 0xd8))


# ---- integers ----

cdef inline vf vf_load_s8(const int8_t* p) noexcept nogil:
    cdef __m128i x = _mm_loadu_si128(<const __m128i*>p)
    return vf(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x))))

cdef inline vi vi_zero() noexcept nogil:
    cdef __m256i x = _mm256_setzero_si256()
    return vi(x, x)

cdef inline vi vi_load(const int32_t* p) noexcept nogil:
    return vi(_mm256_loadu_si256(<const __m256i*>p), _mm256_loadu_si256(<const __m256i*>p + 1))

cdef inline void vi_store(int32_t* p, vi a) noexcept nogil:
    _mm256_storeu_si256(<__m256i*>p, a.lo)
    _mm256_storeu_si256(<__m256i*>p + 1, a.hi)

cdef inline vi vi_add(vi a, vi b) noexcept nogil:
    return vi(_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi))

cdef inline vi vi_sub(vi a, vi b) noexcept nogil:
    return vi(_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi))

cdef inline vi vi_bits(const uint8_t* p, int shift, int mask, int to) noexcept nogil:
    cdef __m128i n = _mm_cvtsi32_si128(shift), up = _mm_cvtsi32_si128(to)
    cdef __m256i keep = _mm256_set1_epi32(mask)
    return vi(_mm256_sll_epi32(_mm256_and_si256(_mm256_srl_epi32(_mm256_loadu_si256(<const __m256i*>p), n), keep), up),
              _mm256_sll_epi32(_mm256_and_si256(_mm256_srl_epi32(_mm256_loadu_si256(<const __m256i*>p + 1), n), keep), up))

cdef inline vi vi_nibbles(const uint8_t* p, int i) noexcept nogil:
    cdef __m256i x = _mm256_srl_epi32(_mm256_loadu_si256(<const __m256i*>p), _mm_cvtsi32_si128(8 * i)), keep = _mm256_set1_epi32(15)
    return vi(_mm256_and_si256(x, keep), _mm256_and_si256(_mm256_srli_epi32(x, 4), keep))

cdef inline vi vi_byte(const uint8_t* p, int i) noexcept nogil:
    cdef __m128i up = _mm_cvtsi32_si128(24 - 8 * i)
    return vi(_mm256_srai_epi32(_mm256_sll_epi32(_mm256_loadu_si256(<const __m256i*>p), up), 24),
              _mm256_srai_epi32(_mm256_sll_epi32(_mm256_loadu_si256(<const __m256i*>p + 1), up), 24))

cdef inline vi vi_times128(vi a) noexcept nogil:
    return vi(_mm256_slli_epi32(a.lo, 7), _mm256_slli_epi32(a.hi, 7))

cdef inline vf vi_to_f(vi a) noexcept nogil:
    return vf(_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi))

cdef inline vi vf_to_i(vf a) noexcept nogil:
    return vi(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi))

cdef inline int32_t vi_hsum(vi a) noexcept nogil:
    cdef __m256i x = _mm256_add_epi32(a.lo, a.hi)
    cdef __m128i h = _mm_add_epi32(_lower(x), _mm256_extracti128_si256(x, 1))
    h = _mm_add_epi32(h, _mm_unpackhi_epi64(h, h))
    return _mm_cvtsi128_si32(_mm_add_epi32(h, _mm_shuffle_epi32(h, 1)))

cdef inline void vi_store_s16(int16_t* p, vi a) noexcept nogil:
    cdef __m256i x = _mm256_packs_epi32(a.lo, a.hi)
    _mm256_storeu_si256(<__m256i*>p, _mm256_permute4x64_epi64(x, 0xd8))

cdef inline void vi_store_s8(int8_t* p, vi a) noexcept nogil:
    cdef __m256i x = _mm256_packs_epi32(a.lo, a.hi)
    x = _mm256_packs_epi16(x, x)
    x = _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5))
    _mm_storeu_si128(<__m128i*>p, _lower(x))

cdef inline vb vb_load(const uint8_t* p) noexcept nogil:
    return vb(_mm256_loadu_si256(<const __m256i*>p), _mm256_loadu_si256(<const __m256i*>p + 1))

cdef inline void vb_store(uint8_t* p, vb a) noexcept nogil:
    _mm256_storeu_si256(<__m256i*>p, a.lo)
    _mm256_storeu_si256(<__m256i*>p + 1, a.hi)

cdef inline vb vb_nibbles(const uint8_t* p) noexcept nogil:
    cdef __m256i x = loaded_once(_mm256_loadu_si256(<const __m256i*>p)), mask = _mm256_set1_epi8(15)
    return vb(_mm256_and_si256(x, mask), _mm256_and_si256(_mm256_srli_epi16(x, 4), mask))

cdef inline vb vb_or_bit(vb a, vb bits, int g, int to) noexcept nogil:
    cdef vb r
    cdef __m256i mask = _mm256_set1_epi8(<char>(1 << to))
    if g <= to:
        r.lo = _mm256_slli_epi16(bits.lo, to - g)
        r.hi = _mm256_slli_epi16(bits.hi, to - g)
    else:
        r.lo = _mm256_srli_epi16(bits.lo, g - to)
        r.hi = _mm256_srli_epi16(bits.hi, g - to)
    r.lo = _mm256_or_si256(a.lo, _mm256_and_si256(r.lo, mask))
    r.hi = _mm256_or_si256(a.hi, _mm256_and_si256(r.hi, mask))
    return r

cdef inline vb vb_minus(vb a, int n) noexcept nogil:
    return vb(_mm256_sub_epi8(a.lo, _mm256_set1_epi8(<char>n)), _mm256_sub_epi8(a.hi, _mm256_set1_epi8(<char>n)))

cdef inline vb vb_add(vb a, vb b) noexcept nogil:
    return vb(_mm256_add_epi8(a.lo, b.lo), _mm256_add_epi8(a.hi, b.hi))

cdef inline vh vh_zero() noexcept nogil:
    cdef __m256i x = _mm256_setzero_si256()
    return vh(x, x)

cdef inline vh vh_start(const int16_t* twice) noexcept nogil:
    cdef __m256i x = _mm256_set1_epi32((<const int32_t*>twice)[0])
    return vh(x, x)

cdef inline vh vh_dot(vh acc, vb w, const int8_t* a) noexcept nogil:
    cdef __m256i x = _mm256_set1_epi32((<const int32_t*>a)[0])
    return vh(_mm256_add_epi16(acc.lo, _mm256_maddubs_epi16(w.lo, x)), _mm256_add_epi16(acc.hi, _mm256_maddubs_epi16(w.hi, x)))

cdef inline vh vh_mix(vh acc, vb w, const uint8_t* a) noexcept nogil:
    cdef __m256i x = _mm256_set1_epi32((<const int32_t*>a)[0])
    return vh(_mm256_add_epi16(acc.lo, _mm256_maddubs_epi16(x, w.lo)), _mm256_add_epi16(acc.hi, _mm256_maddubs_epi16(x, w.hi)))

cdef inline vi vh_weigh(vi acc, vh sums, vw by) noexcept nogil:
    return vi(_mm256_add_epi32(acc.lo, _mm256_madd_epi16(sums.lo, by.lo)), _mm256_add_epi32(acc.hi, _mm256_madd_epi16(sums.hi, by.hi)))

cdef inline vi vh_sum(vh acc) noexcept nogil:
    cdef __m256i ones = _mm256_set1_epi16(1)
    return vi(_mm256_madd_epi16(acc.lo, ones), _mm256_madd_epi16(acc.hi, ones))

cdef inline vw vw_load(const int16_t* p) noexcept nogil:
    return vw(_mm256_loadu_si256(<const __m256i*>p), _mm256_loadu_si256(<const __m256i*>p + 1))

cdef inline void vw_store(int16_t* p, vw a) noexcept nogil:
    _mm256_storeu_si256(<__m256i*>p, a.lo)
    _mm256_storeu_si256(<__m256i*>p + 1, a.hi)

cdef inline vw vw_load_s8(const int8_t* p) noexcept nogil:
    return vw(_mm256_cvtepi8_epi16(_mm_loadu_si128(<const __m128i*>p)), _mm256_cvtepi8_epi16(_mm_loadu_si128(<const __m128i*>p + 1)))

cdef inline __m256i _pair(__m256i x, int shift, int offset) noexcept nogil:
    cdef __m256i even = _mm256_and_si256(_mm256_srli_epi32(x, shift), _mm256_set1_epi32(0xff))
    cdef __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, shift + 8), _mm256_set1_epi32(0xff))
    return _mm256_sub_epi16(_mm256_or_si256(even, _mm256_slli_epi32(odd, 16)), _mm256_set1_epi16(<short>offset))

cdef inline vw vb_pair(vb a, int j, int offset) noexcept nogil:
    return vw(_pair(a.lo, 16 * j, offset), _pair(a.hi, 16 * j, offset))

cdef inline vw vw_mul(vw a, vw b) noexcept nogil:
    return vw(_mm256_mullo_epi16(a.lo, b.lo), _mm256_mullo_epi16(a.hi, b.hi))

cdef inline vi vi_dot(vi acc, vw w, const int16_t* a) noexcept nogil:
    cdef __m256i x = _mm256_set1_epi32((<const int32_t*>a)[0])
    return vi(_mm256_add_epi32(acc.lo, _mm256_madd_epi16(w.lo, x)), _mm256_add_epi32(acc.hi, _mm256_madd_epi16(w.hi, x)))

cdef inline vf vw_even(vw a) noexcept nogil:
    return vf(_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(a.lo, 16), 16)),
              _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(a.hi, 16), 16)))

cdef inline vf vw_odd(vw a) noexcept nogil:
    return vf(_mm256_cvtepi32_ps(_mm256_srai_epi32(a.lo, 16)), _mm256_cvtepi32_ps(_mm256_srai_epi32(a.hi, 16)))

cdef inline vw vw_join(vi even, vi odd) noexcept nogil:
    cdef __m256i mask = _mm256_set1_epi32(0xffff)
    return vw(_mm256_or_si256(_mm256_and_si256(even.lo, mask), _mm256_slli_epi32(odd.lo, 16)),
              _mm256_or_si256(_mm256_and_si256(even.hi, mask), _mm256_slli_epi32(odd.hi, 16)))


# ---- shuffles ----

cdef inline void transpose8(const float* src, size_t ss, float* dst, size_t ds) noexcept nogil:
    cdef __m256 a0 = _mm256_loadu_ps(src), a1 = _mm256_loadu_ps(src + ss)
    cdef __m256 a2 = _mm256_loadu_ps(src + 2 * ss), a3 = _mm256_loadu_ps(src + 3 * ss)
    cdef __m256 a4 = _mm256_loadu_ps(src + 4 * ss), a5 = _mm256_loadu_ps(src + 5 * ss)
    cdef __m256 a6 = _mm256_loadu_ps(src + 6 * ss), a7 = _mm256_loadu_ps(src + 7 * ss)
    cdef __m256 b0 = _mm256_unpacklo_ps(a0, a1), b1 = _mm256_unpackhi_ps(a0, a1)
    cdef __m256 b2 = _mm256_unpacklo_ps(a2, a3), b3 = _mm256_unpackhi_ps(a2, a3)
    cdef __m256 b4 = _mm256_unpacklo_ps(a4, a5), b5 = _mm256_unpackhi_ps(a4, a5)
    cdef __m256 b6 = _mm256_unpacklo_ps(a6, a7), b7 = _mm256_unpackhi_ps(a6, a7)
    a0 = _mm256_shuffle_ps(b0, b2, 0x44)
    a1 = _mm256_shuffle_ps(b0, b2, 0xee)
    a2 = _mm256_shuffle_ps(b1, b3, 0x44)
    a3 = _mm256_shuffle_ps(b1, b3, 0xee)
    a4 = _mm256_shuffle_ps(b4, b6, 0x44)
    a5 = _mm256_shuffle_ps(b4, b6, 0xee)
    a6 = _mm256_shuffle_ps(b5, b7, 0x44)
    a7 = _mm256_shuffle_ps(b5, b7, 0xee)
    _mm256_storeu_ps(dst, _mm256_permute2f128_ps(a0, a4, 0x20))
    _mm256_storeu_ps(dst + ds, _mm256_permute2f128_ps(a1, a5, 0x20))
    _mm256_storeu_ps(dst + 2 * ds, _mm256_permute2f128_ps(a2, a6, 0x20))
    _mm256_storeu_ps(dst + 3 * ds, _mm256_permute2f128_ps(a3, a7, 0x20))
    _mm256_storeu_ps(dst + 4 * ds, _mm256_permute2f128_ps(a0, a4, 0x31))
    _mm256_storeu_ps(dst + 5 * ds, _mm256_permute2f128_ps(a1, a5, 0x31))
    _mm256_storeu_ps(dst + 6 * ds, _mm256_permute2f128_ps(a2, a6, 0x31))
    _mm256_storeu_ps(dst + 7 * ds, _mm256_permute2f128_ps(a3, a7, 0x31))
