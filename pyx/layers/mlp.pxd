# n: a multiple of 16

cdef void swiglu(const float* gate, const float* up, int n, float* h) noexcept nogil
cdef void swiglu_backward(const float* dh, int n, float* gate, float* up) noexcept nogil
