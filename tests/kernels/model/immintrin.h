/* The AVX-512 instructions of pyx/simd/avx512.pxd in plain C, so that any CPU can run what is written with them: found
   before the compiler's own header by `make test-avx512`. Written from Intel's descriptions (Software Developer's Manual,
   volume 2); bits that an instruction leaves undefined are filled with garbage. For tests only. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define REGISTER(bytes)                                                                                                  \
    union {                                                                                                              \
        int8_t b[bytes];                                                                                                 \
        uint8_t ub[bytes];                                                                                               \
        int16_t h[bytes / 2];                                                                                            \
        uint16_t uh[bytes / 2];                                                                                          \
        int32_t w[bytes / 4];                                                                                            \
        uint32_t uw[bytes / 4];                                                                                          \
        float f[bytes / 4];                                                                                              \
    }
typedef REGISTER(16) __m128;
typedef REGISTER(32) __m256;
typedef REGISTER(64) __m512;
typedef __m128 __m128i;
typedef __m256 __m256i;
typedef __m512 __m512i;
typedef uint16_t __mmask16;
typedef uint32_t __mmask32;

/* f(a) or f(a, b): each of n lanes of the result is `value` */
#define LANES1(name, to, from, n, lane, value)                                                                           \
    static inline to name(from a) {                                                                                      \
        to r;                                                                                                            \
        for (int i = 0; i < n; i++) r.lane[i] = value;                                                                   \
        return r;                                                                                                        \
    }
#define LANES2(name, to, first, second, n, lane, value)                                                                  \
    static inline to name(first a, second b) {                                                                           \
        to r;                                                                                                            \
        for (int i = 0; i < n; i++) r.lane[i] = value;                                                                   \
        return r;                                                                                                        \
    }
#define LOAD(name, type)                                                                                                 \
    static inline type name(const void* p) {                                                                             \
        type r;                                                                                                          \
        memcpy(&r, p, sizeof(r));                                                                                        \
        return r;                                                                                                        \
    }
#define STORE(name, type)                                                                                                \
    static inline void name(void* p, type a) { memcpy(p, &a, sizeof(a)); }

static inline void model_wants(int truth) {
    if (!truth) abort();
}

static inline int32_t model_to_int(float x) { /* out of range or NaN: the integer indefinite */
    x = rintf(x);
    return x >= -2147483648.0f && x < 2147483648.0f ? (int32_t)x : INT32_MIN;
}

static inline int32_t model_clip(int32_t x, int32_t least, int32_t most) {
    return x < least ? least : x > most ? most : x;
}

static inline float model_half(uint16_t bits) {
    _Float16 h;
    memcpy(&h, &bits, 2);
    return (float)h;
}

static inline uint16_t model_to_half(float x) {
    _Float16 h = (_Float16)x;
    uint16_t bits;
    memcpy(&bits, &h, 2);
    return bits;
}

/* ---- memory ---- */
LOAD(_mm_loadu_si128, __m128i)
LOAD(_mm256_loadu_ps, __m256)
LOAD(_mm256_loadu_si256, __m256i)
LOAD(_mm512_loadu_ps, __m512)
LOAD(_mm512_loadu_si512, __m512i)
STORE(_mm_storeu_si128, __m128i)
STORE(_mm256_storeu_ps, __m256)
STORE(_mm256_storeu_si256, __m256i)
STORE(_mm512_storeu_ps, __m512)
STORE(_mm512_storeu_si512, __m512i)
static inline void _mm_pause(void) {}
static inline void _mm_prefetch(const char* p, int hint) { (void)p, (void)hint; }

/* ---- f32 ---- */
LANES1(_mm512_set1_ps, __m512, float, 16, f, a)
LANES2(_mm512_add_ps, __m512, __m512, __m512, 16, f, a.f[i] + b.f[i])
LANES2(_mm512_sub_ps, __m512, __m512, __m512, 16, f, a.f[i] - b.f[i])
LANES2(_mm512_mul_ps, __m512, __m512, __m512, 16, f, a.f[i] * b.f[i])
LANES2(_mm512_div_ps, __m512, __m512, __m512, 16, f, a.f[i] / b.f[i])
LANES2(_mm512_max_ps, __m512, __m512, __m512, 16, f, a.f[i] > b.f[i] ? a.f[i] : b.f[i])
LANES2(_mm512_min_ps, __m512, __m512, __m512, 16, f, a.f[i] < b.f[i] ? a.f[i] : b.f[i])
LANES1(_mm512_sqrt_ps, __m512, __m512, 16, f, sqrtf(a.f[i]))
LANES1(_mm512_abs_ps, __m512, __m512, 16, uw, a.uw[i] & 0x7fffffff)
LANES2(_mm512_scalef_ps, __m512, __m512, __m512, 16, f, b.f[i] != b.f[i] ? b.f[i] : ldexpf(a.f[i], (int)floorf(b.f[i])))
LANES2(_mm256_add_ps, __m256, __m256, __m256, 8, f, a.f[i] + b.f[i])
LANES2(_mm256_max_ps, __m256, __m256, __m256, 8, f, a.f[i] > b.f[i] ? a.f[i] : b.f[i])
LANES2(_mm_add_ps, __m128, __m128, __m128, 4, f, a.f[i] + b.f[i])
LANES2(_mm_max_ps, __m128, __m128, __m128, 4, f, a.f[i] > b.f[i] ? a.f[i] : b.f[i])

static inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    for (int i = 0; i < 16; i++) c.f[i] = fmaf(a.f[i], b.f[i], c.f[i]);
    return c;
}

static inline __m512 _mm512_fnmadd_ps(__m512 a, __m512 b, __m512 c) {
    for (int i = 0; i < 16; i++) c.f[i] = fmaf(-a.f[i], b.f[i], c.f[i]);
    return c;
}

static inline __m512 _mm512_roundscale_ps(__m512 a, int how) {
    model_wants(how == 8); /* to whole numbers, halves to even, silently */
    for (int i = 0; i < 16; i++) a.f[i] = rintf(a.f[i]);
    return a;
}

/* ---- conversions ---- */
LANES1(_mm512_cvtph_ps, __m512, __m256i, 16, f, model_half(a.uh[i]))
LANES1(_mm512_cvtepi32_ps, __m512, __m512i, 16, f, (float)a.w[i])
LANES1(_mm512_cvtps_epi32, __m512i, __m512, 16, w, model_to_int(a.f[i]))
LANES1(_mm512_cvtepi8_epi16, __m512i, __m256i, 32, h, a.b[i])
LANES1(_mm512_cvtepi8_epi32, __m512i, __m128i, 16, w, a.b[i])
LANES1(_mm512_cvtepu16_epi32, __m512i, __m256i, 16, uw, a.uh[i])
LANES1(_mm512_cvtepi32_epi16, __m256i, __m512i, 16, uh, (uint16_t)a.uw[i])
LANES1(_mm512_cvtsepi32_epi16, __m256i, __m512i, 16, h, model_clip(a.w[i], -32768, 32767))
LANES1(_mm512_cvtsepi32_epi8, __m128i, __m512i, 16, b, model_clip(a.w[i], -128, 127))

static inline __m256i _mm512_cvtps_ph(__m512 a, int how) {
    __m256i r;
    model_wants(how == 0); /* halves to even */
    for (int i = 0; i < 16; i++) r.uh[i] = model_to_half(a.f[i]);
    return r;
}

/* ---- integers ---- */
LANES1(_mm512_set1_epi8, __m512i, char, 64, b, a)
LANES1(_mm512_set1_epi16, __m512i, short, 32, h, a)
LANES1(_mm512_set1_epi32, __m512i, int, 16, w, a)
LANES2(_mm512_and_si512, __m512i, __m512i, __m512i, 16, uw, a.uw[i] & b.uw[i])
LANES2(_mm512_or_si512, __m512i, __m512i, __m512i, 16, uw, a.uw[i] | b.uw[i])
LANES2(_mm512_srli_epi16, __m512i, __m512i, unsigned, 32, uh, b > 15 ? 0 : a.uh[i] >> b)
LANES2(_mm512_slli_epi16, __m512i, __m512i, unsigned, 32, uh, b > 15 ? 0 : (uint16_t)(a.uh[i] << b))
LANES2(_mm512_srli_epi32, __m512i, __m512i, unsigned, 16, uw, b > 31 ? 0 : a.uw[i] >> b)
LANES2(_mm512_slli_epi32, __m512i, __m512i, unsigned, 16, uw, b > 31 ? 0 : a.uw[i] << b)
LANES2(_mm512_srai_epi32, __m512i, __m512i, unsigned, 16, w, a.w[i] >> (b > 31 ? 31 : b))
LANES2(_mm256_srli_epi16, __m256i, __m256i, int, 16, uh, b > 15 ? 0 : a.uh[i] >> b)
LANES2(_mm256_srli_epi32, __m256i, __m256i, int, 8, uw, b > 31 ? 0 : a.uw[i] >> b)
LANES1(_mm_cvtsi32_si128, __m128i, int, 4, w, i ? 0 : a)
LANES2(_mm256_srl_epi32, __m256i, __m256i, __m128i, 8, uw, b.uw[1] || b.uw[0] > 31 ? 0 : a.uw[i] >> b.uw[0])
LANES2(_mm512_srl_epi32, __m512i, __m512i, __m128i, 16, uw, b.uw[1] || b.uw[0] > 31 ? 0 : a.uw[i] >> b.uw[0])
LANES2(_mm512_sll_epi32, __m512i, __m512i, __m128i, 16, uw, b.uw[1] || b.uw[0] > 31 ? 0 : a.uw[i] << b.uw[0])
LANES2(_mm512_add_epi32, __m512i, __m512i, __m512i, 16, uw, a.uw[i] + b.uw[i])
LANES2(_mm512_max_epi32, __m512i, __m512i, __m512i, 16, w, a.w[i] > b.w[i] ? a.w[i] : b.w[i])
LANES2(_mm256_max_epi32, __m256i, __m256i, __m256i, 8, w, a.w[i] > b.w[i] ? a.w[i] : b.w[i])
LANES2(_mm_max_epi32, __m128i, __m128i, __m128i, 4, w, a.w[i] > b.w[i] ? a.w[i] : b.w[i])
LANES2(_mm512_sub_epi32, __m512i, __m512i, __m512i, 16, uw, a.uw[i] - b.uw[i])
LANES2(_mm512_sub_epi16, __m512i, __m512i, __m512i, 32, uh, (uint16_t)(a.uh[i] - b.uh[i]))
LANES2(_mm512_mullo_epi32, __m512i, __m512i, __m512i, 16, uw, a.uw[i] * b.uw[i])
LANES2(_mm512_sub_epi8, __m512i, __m512i, __m512i, 64, ub, (uint8_t)(a.ub[i] - b.ub[i]))
LANES2(_mm512_add_epi8, __m512i, __m512i, __m512i, 64, ub, (uint8_t)(a.ub[i] + b.ub[i]))
LANES2(_mm512_mullo_epi16, __m512i, __m512i, __m512i, 32, uh, (uint16_t)(a.h[i] * b.h[i]))

static inline __m512i _mm512_setzero_si512(void) { return _mm512_set1_epi32(0); }

static inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    for (int i = 0; i < 64; i++) sum.uw[i / 4] += (uint32_t)((int32_t)a.ub[i] * b.b[i]);
    return sum;
}

static inline __m512i _mm512_dpwssd_epi32(__m512i sum, __m512i a, __m512i b) {
    for (int i = 0; i < 32; i++) sum.uw[i / 2] += (uint32_t)((int32_t)a.h[i] * b.h[i]);
    return sum;
}

static inline __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int how) {
    __mmask16 mask = 0;
    model_wants(how == 3); /* unordered: either is NaN */
    for (int i = 0; i < 16; i++) mask |= (a.f[i] != a.f[i] || b.f[i] != b.f[i]) << i;
    return mask;
}

static inline __m512i _mm512_mask_blend_epi32(__mmask16 mask, __m512i a, __m512i b) {
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) a.w[i] = b.w[i];
    return a;
}

static inline __m512i _mm512_mask_blend_epi16(__mmask32 mask, __m512i a, __m512i b) {
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) a.h[i] = b.h[i];
    return a;
}

static inline int _mm512_reduce_add_epi32(__m512i a) {
    uint32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += a.uw[i];
    return (int32_t)sum;
}

/* ---- parts and places ---- */
#define LOWER(name, to, from)                                                                                            \
    static inline to name(from a) {                                                                                      \
        to r;                                                                                                            \
        memcpy(&r, &a, sizeof(r));                                                                                       \
        return r;                                                                                                        \
    }
#define PART(name, to, from)                                                                                             \
    static inline to name(from a, int which) {                                                                           \
        to r;                                                                                                            \
        model_wants(which >= 0 && which < (int)(sizeof(a) / sizeof(r)));                                                 \
        memcpy(&r, a.b + which * (int)sizeof(r), sizeof(r));                                                             \
        return r;                                                                                                        \
    }
#define WIDER(name)                                                                                                      \
    static inline __m512 name(__m256 a) {                                                                                \
        __m512 r;                                                                                                        \
        memset(&r, 0xa5, sizeof(r));                                                                                     \
        memcpy(&r, &a, sizeof(a));                                                                                       \
        return r;                                                                                                        \
    }
#define INSERT(name)                                                                                                     \
    static inline __m512 name(__m512 a, __m256 b, int which) {                                                           \
        model_wants(which == 0 || which == 1);                                                                           \
        memcpy(a.b + 32 * which, &b, 32);                                                                                \
        return a;                                                                                                        \
    }
LOWER(_mm256_castps256_ps128, __m128, __m256)
LOWER(_mm512_castps512_ps256, __m256, __m512)
LOWER(_mm_castsi128_ps, __m128, __m128i)
LOWER(_mm256_castsi256_si128, __m128i, __m256i)
LOWER(_mm512_castsi512_si256, __m256i, __m512i)
LOWER(_mm512_castsi512_ps, __m512, __m512i)
LOWER(_mm512_castps_si512, __m512i, __m512)
PART(_mm256_extractf128_ps, __m128, __m256)
PART(_mm256_extracti128_si256, __m128i, __m256i)
PART(_mm512_extracti64x4_epi64, __m256i, __m512i)
PART(_mm512_extractf32x8_ps, __m256, __m512)
WIDER(_mm512_castps256_ps512)
WIDER(_mm512_castsi256_si512)
INSERT(_mm512_insertf32x8)
INSERT(_mm512_inserti64x4)
LANES2(_mm512_unpacklo_ps, __m512, __m512, __m512, 16, f, (i & 1 ? b : a).f[(i & 12) + (i >> 1 & 1)])
LANES2(_mm512_unpackhi_ps, __m512, __m512, __m512, 16, f, (i & 1 ? b : a).f[(i & 12) + 2 + (i >> 1 & 1)])
LANES2(_mm_unpackhi_epi64, __m128i, __m128i, __m128i, 4, uw, (i < 2 ? a : b).uw[2 + (i & 1)])
LANES2(_mm_shuffle_epi32, __m128i, __m128i, int, 4, uw, a.uw[b >> 2 * i & 3])
LANES2(_mm_movehl_ps, __m128, __m128, __m128, 4, f, (i < 2 ? b : a).f[2 + (i & 1)])
LANES1(_mm_movehdup_ps, __m128, __m128, 4, f, a.f[i | 1])

static inline float _mm_cvtss_f32(__m128 a) { return a.f[0]; }

static inline __m512 _mm512_shuffle_ps(__m512 a, __m512 b, int which) {
    __m512 r;
    for (int i = 0; i < 16; i++) r.f[i] = (i & 2 ? b : a).f[(i & 12) + (which >> 2 * (i & 3) & 3)];
    return r;
}

static inline __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int which) {
    __m512 r;
    for (int i = 0; i < 16; i++) r.f[i] = (i & 8 ? b : a).f[4 * (which >> 2 * (i >> 2) & 3) + (i & 3)];
    return r;
}
