from .acts cimport Acts
from .gemm cimport Packed

cdef void product_tiles(const Packed* w, const Acts* x, int precision, float* y, size_t ldy, int lo, int hi) noexcept nogil
