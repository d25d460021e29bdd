# Rows are padded to a multiple of 16 with zeros (in x and in w); n is the true length.

cdef void rms_norm(const float* x, const float* w, int n, float eps, float* y) noexcept nogil
cdef void rms_norm_backward(const float* x, const float* w, const float* dy, int n, float eps, float* dx) noexcept nogil
