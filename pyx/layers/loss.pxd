cdef double cross_entropy(float* logits, int n, int target, float weight, float cap) noexcept nogil
