cdef enum Layout:
    PAIRS = 0       # a head's element 2 i turns with 2 i + 1 (GGUF's llama)
    HALVES = 1      # element i turns with i + n_rot / 2 (Hugging Face, most newer families)

cdef enum:
    MAX_ROPES = 4

cdef class RopeTables:          # how positions turn queries and keys in each of a model's ways
    cdef int n, n_rot
    cdef const double* frequencies[4]       # of each (n_rot / 2), radians per position
    cdef double factor[4]                   # on its cosines and sines
    cdef list keep
    cdef void angles(self, int position, float* cosine, float* sine) noexcept nogil

cdef void rope_angles(int position, const double* frequencies, double factor, int n_rot, float* cosine, float* sine) noexcept nogil
cdef void rope(float* x, int n_head, int head_dim, int n_rot, const float* cosine, const float* sine, int layout) noexcept nogil
cdef void rope_backward(float* dx, int n_head, int head_dim, int n_rot, const float* cosine, const float* sine, int layout) noexcept nogil
