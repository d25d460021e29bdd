from .inputs cimport Acts
from .gemm cimport Packed

cdef size_t unpacking_bytes() noexcept nogil
cdef void gemm_u8(const Packed* w, const Acts* x, float* y, size_t ldy, int lo, int hi) noexcept nogil
