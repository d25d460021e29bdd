from libc.stdint cimport uint8_t

from ..layers.block cimport Block
from ..layers.experts cimport Experts
from ..layers.linear cimport Linear
from ..products.inputs cimport Acts
from .decodermixers cimport DecoderMixers

cdef struct ExpertRows:     # R = T k rows: a token at one of its experts; sorted by expert
    int n_active            # experts with rows
    int* active             # (n)
    int* first              # (n + 1): where each expert's rows begin
    int* chosen             # (T, k)
    float* weights          # (T, k)
    int* place              # (T, k): each choice's row
    int* token_of           # (R)
    float* weight_of        # (R)
    float* scales           # (R, n_adapters)
    float* logits           # (T, n padded to 16)
    size_t ldl
    float* shared           # (T): what the shared expert's output is multiplied with
    float* x                # (R, embd_p): what the token's expert sees
    float* gate             # (R, expert_p)
    uint8_t* rounded        # of x, then of gate
    float* u                # (R, ldu)
    size_t ldu

cdef class DecoderExperts(DecoderMixers):
    cdef ExpertRows rows
    cdef int max_rows
    cdef uint8_t[::1] expert_memory
    cdef float[:, ::1] expert_u, expert_scales
    cdef place_experts(self, int max_tokens)
    cdef room_for_adapters(self)
    cdef void route_tokens(self, const Block* b, int i, int n) noexcept nogil
    cdef void sort_rows(self, const Experts* x) noexcept nogil
    cdef void gather_rows(self, const Experts* x, int lo, int hi) noexcept nogil
    cdef void expert_input(self, Acts* a, const Linear* first, int n_linear, int e, const float* input_, size_t ld, int i) noexcept nogil
    cdef void round_expert_rows(self, const Experts* x, int slot, int n_linear, const float* input_, size_t ld, int i, int n) noexcept nogil
    cdef void low_ranks(self, const Experts* x, int slot, int n_linear, const float* input_, size_t ld, int i, int n) noexcept nogil
    cdef void gate_experts(self, const Block* b, int i, int n) noexcept nogil
    cdef void gate_expert(self, const Experts* x, int e, int lo, int hi, int i) noexcept nogil
    cdef void add_experts(self, const Block* b, int i, int n) noexcept nogil
    cdef void add_expert(self, const Experts* x, int e, int lo, int hi, int i) noexcept nogil
