from libc.stdint cimport int16_t, uint8_t

from ..layers.block cimport Config
from ..layers.lowrank cimport LoraPair
from ..products.inputs cimport Acts
from .trainbuffers cimport Extent, Gradient
from .trainmixers cimport TrainMixers

cdef struct ExpertBuffers:  # R = T k rows: a token at one of its experts; sorted by expert
    int n_active            # experts with rows
    int* active             # (n)
    int* first              # (n + 1): where each expert's rows begin
    int* place              # (T, k): each choice's row
    int* token_of           # (R)
    float* weight_of        # (R)
    float* e                # (R): the weight times its gradient
    float* x                # (R, E): what the token's expert sees
    float* y                # (R, E): what it gives; backward the gradient of that, then of x
    float* gate             # (R, F)
    float* up
    float* h
    float* dh
    float* dlogits          # (T, n padded to 16)
    float* dn               # (T, E): the gradient of what router and experts see
    float* shared           # (T): the shared expert's weight,
    float* dshared          # (T): and the gradient of what it is the sigmoid of
    float* du               # (R, expert_ldu)
    float* ut               # (expert_ldu, R): transposed
    float* dut
    int16_t* rounded_dy
    float* dy_scale
    uint8_t* rounded

cdef size_t place_expert_buffers(ExpertBuffers* x, const Config* c, const Extent* e, uint8_t* base) noexcept nogil

cdef class TrainExperts(TrainMixers):
    cdef ExpertBuffers xb
    cdef uint8_t[::1] expert_memory
    cdef LoraPair* expert_pair(self, int layer, int e, int j) noexcept nogil
    cdef int pair_number(self, int layer, int e, int j) noexcept nogil
    cdef void normed_rows(self, int layer, int i, int n) noexcept nogil
    cdef void route_tokens(self, int layer, int i, int n) noexcept nogil
    cdef void sort_rows(self, int layer, int i) noexcept nogil
    cdef void gather_inputs(self, int layer, int i, int n) noexcept nogil
    cdef void expert_acts(self, Acts* a, int e, const float* x, size_t ld, int n_cols) noexcept nogil
    cdef void expert_inputs(self, int layer, int first, int n_linear, const float* x, size_t ld, int i, int n) noexcept nogil
    cdef void expert_outputs(self, int layer, int first, int n_linear, const float* x, size_t ldx, float** y, size_t ldy) noexcept nogil
    cdef void gate_rows(self, int layer, bint keep, int i, int n) noexcept nogil
    cdef void add_expert_rows(self, int layer, const float* x, int i, int n) noexcept nogil
    cdef Gradient expert_gradient(self, int e, const float* dy, size_t ld, int n_rows, size_t at) noexcept nogil
    cdef void expert_gradients(self, int layer, int first, int n_linear, float** dy, size_t ld, int i, int n) noexcept nogil
    cdef void expert_rows_backward(self, int layer, int first, int n_linear, const float* x, size_t ldx, float** dy, size_t ldy,
                                   float* dx, size_t lddx, int i) noexcept nogil
    cdef void expert_columns(self, int layer, int e, int first, int n_linear, float** dy, size_t ldy, float* dx, size_t lddx,
                             int lo, int hi, int i) noexcept nogil
    cdef void expert_pair_columns(self, int layer, int e, int j, const float* x, size_t ldx, const float* dy, size_t ldy, int lo, int hi,
                                  int i) noexcept nogil
    cdef int expert_of(self, int r) noexcept nogil
    cdef void route_backward_tokens(self, int layer, int i, int n) noexcept nogil
