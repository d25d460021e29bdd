# The types and instructions of the compiler's arm_neon.h that simd/neon.pxd is written in.

from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint16_t, uint32_t

cdef extern from "arm_neon.h" nogil:
    ctypedef struct float32x2_t:
        pass
    ctypedef struct float32x4_t:
        pass
    ctypedef struct float16x4_t:
        pass
    ctypedef struct int8x8_t:
        pass
    ctypedef struct int8x16_t:
        pass
    ctypedef struct int16x4_t:
        pass
    ctypedef struct int16x8_t:
        pass
    ctypedef struct int32x4_t:
        pass
    ctypedef struct int32x2_t:
        pass
    ctypedef struct uint8x16_t:
        pass
    ctypedef struct uint16x4_t:
        pass
    ctypedef struct uint16x8_t:
        pass
    ctypedef struct uint32x4_t:
        pass
    ctypedef struct int8x16x2_t:
        int8x16_t[2] val
    ctypedef struct int16x8x2_t:
        int16x8_t[2] val
    float32x4_t vld1q_f32(const float*)
    void vst1q_f32(float*, float32x4_t)
    float32x4_t vdupq_n_f32(float)
    float32x4_t vaddq_f32(float32x4_t, float32x4_t)
    float32x4_t vsubq_f32(float32x4_t, float32x4_t)
    float32x4_t vmulq_f32(float32x4_t, float32x4_t)
    float32x4_t vdivq_f32(float32x4_t, float32x4_t)
    float32x4_t vsqrtq_f32(float32x4_t)
    float32x4_t vabsq_f32(float32x4_t)
    float32x4_t vfmaq_f32(float32x4_t, float32x4_t, float32x4_t)
    float32x4_t vfmaq_n_f32(float32x4_t, float32x4_t, float)
    float32x4_t vfmsq_f32(float32x4_t, float32x4_t, float32x4_t)
    float32x4_t vrndnq_f32(float32x4_t)
    float32x4_t vbslq_f32(uint32x4_t, float32x4_t, float32x4_t)
    uint32x4_t vcgtq_f32(float32x4_t, float32x4_t)
    float vmaxvq_f32(float32x4_t)
    uint32x4_t vceqq_f32(float32x4_t, float32x4_t)
    uint32x4_t vmvnq_u32(uint32x4_t)
    uint32x4_t vorrq_u32(uint32x4_t, uint32x4_t)
    int32x4_t vmaxq_s32(int32x4_t, int32x4_t)
    int32_t vmaxvq_s32(int32x4_t)
    int32x4_t vreinterpretq_s32_f32(float32x4_t)
    float32x4_t vtrn1q_f32(float32x4_t, float32x4_t)
    float32x4_t vtrn2q_f32(float32x4_t, float32x4_t)
    float32x2_t vget_low_f32(float32x4_t)
    float32x2_t vget_high_f32(float32x4_t)
    float32x4_t vcombine_f32(float32x2_t, float32x2_t)
    float32x2_t vadd_f32(float32x2_t, float32x2_t)
    float vpadds_f32(float32x2_t)
    float32x4_t vcvt_f32_f16(float16x4_t)
    float16x4_t vcvt_f16_f32(float32x4_t)
    float16x4_t vreinterpret_f16_u16(uint16x4_t)
    uint16x4_t vreinterpret_u16_f16(float16x4_t)
    uint16x4_t vld1_u16(const uint16_t*)
    void vst1_u16(uint16_t*, uint16x4_t)
    uint32x4_t vshll_n_u16(uint16x4_t, int)
    uint16x4_t vshrn_n_u32(uint32x4_t, int)
    uint32x4_t vshrq_n_u32(uint32x4_t, int)
    uint32x4_t vandq_u32(uint32x4_t, uint32x4_t)
    uint32x4_t vaddq_u32(uint32x4_t, uint32x4_t)
    uint32x4_t vshlq_u32(uint32x4_t, int32x4_t)
    uint32x4_t vreinterpretq_u32_u8(uint8x16_t)
    uint32x4_t vreinterpretq_u32_s32(int32x4_t)
    int32x4_t vreinterpretq_s32_u32(uint32x4_t)
    uint32x4_t vdupq_n_u32(uint32_t)
    float32x4_t vreinterpretq_f32_u32(uint32x4_t)
    float32x4_t vreinterpretq_f32_s32(int32x4_t)
    uint32x4_t vreinterpretq_u32_f32(float32x4_t)
    float32x4_t vcvtq_f32_s32(int32x4_t)
    int32x4_t vcvtq_s32_f32(float32x4_t)
    int32x4_t vcvtnq_s32_f32(float32x4_t)
    int32x4_t vdupq_n_s32(int32_t)
    int32x4_t vaddq_s32(int32x4_t, int32x4_t)
    int32x4_t vsubq_s32(int32x4_t, int32x4_t)
    int32x4_t vshlq_n_s32(int32x4_t, int)
    int32x4_t vreinterpretq_s32_u8(uint8x16_t)
    int32x4_t vmlaq_s32(int32x4_t, int32x4_t, int32x4_t)
    int32x4_t vshrq_n_s32(int32x4_t, int)
    int32x4_t vshlq_s32(int32x4_t, int32x4_t)
    void vst1q_s32(int32_t*, int32x4_t)
    int32x4_t vld1q_s32(const int32_t*)
    int32_t vaddvq_s32(int32x4_t)
    int16x4_t vqmovn_s32(int32x4_t)
    int16x4_t vmovn_s32(int32x4_t)
    int8x8_t vqmovn_s16(int16x8_t)
    int16x8_t vcombine_s16(int16x4_t, int16x4_t)
    int8x16_t vcombine_s8(int8x8_t, int8x8_t)
    void vst1q_s16(int16_t*, int16x8_t)
    void vst1q_s8(int8_t*, int8x16_t)
    uint8x16_t vld1q_u8(const uint8_t*)
    void vst1q_u8(uint8_t*, uint8x16_t)
    uint8x16_t vdupq_n_u8(uint8_t)
    int8x16_t vdupq_n_s8(int8_t)
    uint8x16_t vandq_u8(uint8x16_t, uint8x16_t)
    uint8x16_t vsubq_u8(uint8x16_t, uint8x16_t)
    uint8x16_t vaddq_u8(uint8x16_t, uint8x16_t)
    uint8x16_t vorrq_u8(uint8x16_t, uint8x16_t)
    uint8x16_t vshrq_n_u8(uint8x16_t, int)
    uint8x16_t vshlq_u8(uint8x16_t, int8x16_t)
    int8x16_t vreinterpretq_s8_u8(uint8x16_t)
    int8x16_t vreinterpretq_s8_s32(int32x4_t)
    int32x4_t vdotq_s32(int32x4_t, int8x16_t, int8x16_t)
    int8x16_t vld1q_s8(const int8_t*)
    int8x16x2_t vld2q_s8(const int8_t*)
    int16x8x2_t vld2q_s16(const int16_t*)
    void vst2q_s16(int16_t*, int16x8x2_t)
    int8x8_t vget_low_s8(int8x16_t)
    int16x8_t vmovl_s8(int8x8_t)
    int16x8_t vmovl_high_s8(int8x16_t)
    uint16x8_t vreinterpretq_u16_u8(uint8x16_t)
    uint16x8_t vuzp1q_u16(uint16x8_t, uint16x8_t)
    uint16x8_t vuzp2q_u16(uint16x8_t, uint16x8_t)
    uint16x8_t vandq_u16(uint16x8_t, uint16x8_t)
    uint16x8_t vshrq_n_u16(uint16x8_t, int)
    uint16x8_t vdupq_n_u16(uint16_t)
    int16x8_t vreinterpretq_s16_u16(uint16x8_t)
    int16x8_t vdupq_n_s16(int16_t)
    int16x8_t vsubq_s16(int16x8_t, int16x8_t)
    int16x8_t vmulq_s16(int16x8_t, int16x8_t)
    int16x4_t vget_low_s16(int16x8_t)
    int16x4_t vget_high_s16(int16x8_t)
    int16x4_t vreinterpret_s16_s32(int32x2_t)
    int32x2_t vdup_n_s32(int32_t)
    int32x4_t vmlal_lane_s16(int32x4_t, int16x4_t, int16x4_t, int)
    int32x4_t vmlal_high_lane_s16(int32x4_t, int16x8_t, int16x4_t, int)
    int32x4_t vmovl_s16(int16x4_t)
    int32x4_t vmovl_high_s16(int16x8_t)
