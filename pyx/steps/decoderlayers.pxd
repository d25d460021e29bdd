from libc.stdint cimport uint8_t

from ..layers.block cimport Block
from ..layers.kvcache cimport KvHead
from ..layers.linear cimport Linear
from ..layers.norm cimport Norm
from ..layers.rope cimport RopeTables
from ..products.inputs cimport Acts
from .cachelayout cimport CacheLayout
from .stepbuffers cimport Run, Step
from .team cimport Team
from .weights cimport Weights

cdef class DecoderLayers:
    cdef Weights weights
    cdef RopeTables ropes
    cdef int n_ctx, precision
    cdef CacheLayout layout
    cdef int* place                             # each layer's number among those of its kind in the cache
    cdef uint8_t[::1] cache
    cdef size_t work_bytes, own_bytes, unpacking_bytes
    cdef uint8_t[::1] work, own, unpacking      # each thread's, one after the other
    cdef Step step_
    cdef Team team
    cdef int unit_tokens(self) noexcept nogil
    cdef KvHead kv_head_of(self, int layer, int slot, int kv_head) noexcept nogil
    cdef void run(self, int i, int n) noexcept nogil
    cdef void layer(self, int layer, int i, int n) noexcept nogil
    cdef void mlp(self, const Block* b, int i, int n) noexcept nogil
    cdef float* own_normed(self, int i) noexcept nogil
    cdef uint8_t* own_rounded(self, int i) noexcept nogil
    cdef void inputs(self, Acts* a, const Linear* first, int n_linear, const float* x, size_t ld, int rows, uint8_t* memory, int i) noexcept nogil
    cdef void input_rows(self, Acts* a, const Linear* first, int n_linear, const Norm* norm, int i, int n) noexcept nogil
    cdef void round_rows(self, Acts* a, const Linear* l, const float* x, size_t ld, int i, int n) noexcept nogil
    cdef void low_rank(self, const Linear* first, int n_linear, const Acts* a, int i, int n) noexcept nogil
    cdef bint next_tiles(self, int n_tiles, int i, int n, int* n_taken, int* lo, int* hi) noexcept nogil
    cdef float* epilogue(self, int i, int lo, size_t* ld) noexcept nogil
    cdef void linears(self, const Linear* first, int n_linear, const Acts* a, int t, float** y, const size_t* ldy, const int* lo, const int* hi) noexcept nogil
    cdef void add_linear(self, const Linear* l, const Norm* after, const float* input_, size_t ldi, int i, int n) noexcept nogil
    cdef void add_normed(self, const Norm* after, int i, int n) noexcept nogil
    cdef void project_heads(self, const Block* b, bint fewer, int i, int n) noexcept nogil
    cdef void norm_whole_rows(self, const Block* b, int first_query, int i, int n) noexcept nogil
    cdef void late_queries(self, const Linear* q, const Acts* a, int lo, int hi) noexcept nogil
    cdef void leave_wanted(self, int i, int n) noexcept nogil
    cdef void store_token(self, const Block* b, int layer, int t, int h) noexcept nogil
    cdef void queries_of(self, const Block* b, const Run* r, int h, float* q) noexcept nogil
    cdef void attend_units(self, const Block* b, int layer, bint fewer, int i, int n) noexcept nogil
    cdef void attend_unit(self, const Block* b, int layer, const Run* r, bint wanted, int unit, float* q) noexcept nogil
    cdef void gate_rows(self, const Block* b, int i, int n) noexcept nogil
    cdef void logits(self, int i, int n) noexcept nogil
    cdef void look(self, const float* results, int n) noexcept nogil
