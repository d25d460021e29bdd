# The types and instructions of the compiler's immintrin.h that simd/avx2.pxd is written in.

cdef extern from "immintrin.h" nogil:
    ctypedef struct __m128i:
        pass
    ctypedef struct __m128:
        pass
    ctypedef struct __m256:
        pass
    ctypedef struct __m256i:
        pass
    __m256 _mm256_loadu_ps(const float*)
    void _mm256_storeu_ps(float*, __m256)
    __m256 _mm256_setzero_ps()
    __m256 _mm256_set1_ps(float)
    __m256 _mm256_add_ps(__m256, __m256)
    __m256 _mm256_sub_ps(__m256, __m256)
    __m256 _mm256_mul_ps(__m256, __m256)
    __m256 _mm256_div_ps(__m256, __m256)
    __m256 _mm256_sqrt_ps(__m256)
    __m256 _mm256_max_ps(__m256, __m256)
    __m256 _mm256_min_ps(__m256, __m256)
    __m256 _mm256_and_ps(__m256, __m256)
    __m256 _mm256_fmadd_ps(__m256, __m256, __m256)
    __m256 _mm256_fnmadd_ps(__m256, __m256, __m256)
    __m256 _mm256_round_ps(__m256, int)
    __m256 _mm256_cvtph_ps(__m128i)
    __m128i _mm256_cvtps_ph(__m256, int)
    __m256 _mm256_cvtepi32_ps(__m256i)
    __m256i _mm256_cvtps_epi32(__m256)
    __m256 _mm256_castsi256_ps(__m256i)
    __m256i _mm256_castps_si256(__m256)
    __m256 _mm256_unpacklo_ps(__m256, __m256)
    __m256 _mm256_unpackhi_ps(__m256, __m256)
    __m256 _mm256_shuffle_ps(__m256, __m256, int)
    __m256 _mm256_permute2f128_ps(__m256, __m256, int)
    __m128 _mm256_castps256_ps128(__m256)
    __m128 _mm256_extractf128_ps(__m256, int)
    __m128 _mm_add_ps(__m128, __m128)
    __m128 _mm_max_ps(__m128, __m128)
    __m128 _mm_movehl_ps(__m128, __m128)
    __m128 _mm_movehdup_ps(__m128)
    float _mm_cvtss_f32(__m128)
    __m128i _mm_loadu_si128(const __m128i*)
    void _mm_storeu_si128(__m128i*, __m128i)
    __m256i _mm256_loadu_si256(const __m256i*)
    void _mm256_storeu_si256(__m256i*, __m256i)
    __m256i _mm256_setzero_si256()
    __m256i _mm256_set1_epi8(char)
    __m256i _mm256_set1_epi16(short)
    __m256i _mm256_set1_epi32(int)
    __m256i _mm256_and_si256(__m256i, __m256i)
    __m256i _mm256_or_si256(__m256i, __m256i)
    __m256i _mm256_srli_epi16(__m256i, int)
    __m256i _mm256_slli_epi16(__m256i, int)
    __m256i _mm256_srli_epi32(__m256i, int)
    __m256i _mm256_slli_epi32(__m256i, int)
    __m256i _mm256_srai_epi32(__m256i, int)
    __m256i _mm256_add_epi16(__m256i, __m256i)
    __m256i _mm256_add_epi32(__m256i, __m256i)
    __m256i _mm256_sub_epi32(__m256i, __m256i)
    __m256i _mm256_sub_epi16(__m256i, __m256i)
    __m256i _mm256_sub_epi8(__m256i, __m256i)
    __m256i _mm256_add_epi8(__m256i, __m256i)
    __m256i _mm256_maddubs_epi16(__m256i, __m256i)
    __m256i _mm256_madd_epi16(__m256i, __m256i)
    __m256i _mm256_mullo_epi16(__m256i, __m256i)
    __m256i _mm256_cvtepi8_epi16(__m128i)
    __m256i _mm256_cvtepi8_epi32(__m128i)
    __m128i _mm_unpackhi_epi64(__m128i, __m128i)
    __m128i _mm_add_epi32(__m128i, __m128i)
    __m128i _mm_shuffle_epi32(__m128i, int)
    __m128i _mm256_extracti128_si256(__m256i, int)
    __m128i _lower "_mm256_castsi256_si128"(__m256i)
    int _mm_cvtsi128_si32(__m128i)
    __m128i _mm_cvtsi32_si128(int)
    __m256i _mm256_srl_epi32(__m256i, __m128i)
    __m256i _mm256_sll_epi32(__m256i, __m128i)
    __m256i _mm256_cvtepu16_epi32(__m128i)
    __m256i _mm256_packs_epi32(__m256i, __m256i)
    __m256i _mm256_packs_epi16(__m256i, __m256i)
    __m256i _mm256_packus_epi32(__m256i, __m256i)
    __m256i _mm256_permute4x64_epi64(__m256i, int)
    __m256i _mm256_permutevar8x32_epi32(__m256i, __m256i)
    __m256i _mm256_setr_epi32(int, int, int, int, int, int, int, int)
    void _mm_pause()
    void _mm_prefetch(const char*, int)

cdef extern from *:
    """
    /* a loaded value that stays in its register: used twice, gcc would load it twice */
    static inline __m256i loaded_once(__m256i x) { __asm__("" : "+x"(x)); return x; }
    """
    __m256i loaded_once(__m256i) noexcept nogil
