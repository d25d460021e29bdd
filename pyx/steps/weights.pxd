from libc.stdint cimport uint8_t

from ..layers.block cimport Block, Config, Rope
from ..layers.rope cimport MAX_ROPES, RopeTables
from ..layers.linear cimport Linear, Lora
from ..layers.norm cimport HeadNorm, Norm
from ..types.quants cimport RowType

cdef int set_sizes(Config* c, sizes) except -1

cdef class Weights:
    cdef Config config
    cdef Block* blocks
    cdef Linear output
    cdef Norm output_norm
    cdef const uint8_t* embedding   # NULL: rows of the output matrix
    cdef size_t embedding_row
    cdef const RowType* embedding_type
    cdef Rope rope[4]               # one for each of its tables
    cdef RopeTables ropes           # the usual tables; a step may be given others
    cdef int n_lora
    cdef Lora* embedding_pairs      # one per adapter; rank 0 where it does not adapt the embedding
    cdef list embedding_loras       # their own scales
    cdef list lora_arrays           # of each adapter, what its pairs point to
    cdef dict norms                 # (layer, name) -> vector; layer -1 the output norm
    cdef int max_width          # widest low-rank input of any group of linears, all adapters together
    cdef int max_expert_width   # and of an expert's
    cdef list keep
    cdef list adapters
    cdef int steps              # that run now; -1: what they read is being changed
    cdef RopeTables tables(self, given)
    cdef int begin_step(self, int n_threads, bint* busy) except -1
    cdef void end_step(self, bint* busy) noexcept
    cdef int begin_change(self) except -1
    cdef void end_change(self) noexcept
    cdef float* vector(self, array) except NULL
    cdef int fill_block(self, int i, dict parts, config) except -1
    cdef int set_norm_of(self, Norm* norm, int layer, name, config, array, bias) except -1
    cdef int set_low_norm(self, Norm* norm, int layer, name, config, array) except -1
    cdef int set_head_norm(self, HeadNorm* h, int layer, name, config, array, int n_head) except -1
    cdef int fill_experts(self, Block* b, dict parts) except -1
    cdef int set_linear(self, Linear* l, matrix, bias) except -1
    cdef int n_slots(self, int layer) noexcept
    cdef int widest_expert(self) noexcept
    cdef Linear* linear_at(self, int layer, int slot) noexcept
    cdef void embed(self, int token, const float* scales, float* x) noexcept nogil
    cdef void add_embedding_pair(self, const Lora* l, int token, float factor, float* x) noexcept nogil
    cdef put_adapter(self, int at, dict pairs, int n_threads)
    cdef object stretched(self, const Linear* l, Lora* lora, magnitude, int n_threads)
    cdef put_embedding(self, int at, int n, pair, list arrays)
