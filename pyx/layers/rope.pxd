cdef enum Layout:
    PAIRS = 0       # a head's element 2 i turns with 2 i + 1 (GGUF's llama)
    HALVES = 1      # element i turns with i + n_rot / 2 (Hugging Face, most newer families)

cdef void rope_angles(int position, const double* frequencies, int n_rot, float* cosine, float* sine) noexcept nogil
cdef void rope(float* x, int n_head, int head_dim, int n_rot, const float* cosine, const float* sine, int layout) noexcept nogil
cdef void rope_backward(float* dx, int n_head, int head_dim, int n_rot, const float* cosine, const float* sine, int layout) noexcept nogil
