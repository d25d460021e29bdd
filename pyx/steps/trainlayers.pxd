from libc.stdint cimport uint8_t

from ..layers.dropout cimport Dropout
from ..layers.lowrank cimport LoraPair
from ..layers.norm cimport Norm
from ..layers.rope cimport RopeTables
from ..products.inputs cimport Acts
from .team cimport Team
from .trainbuffers cimport Buffers, Extent, Gradient, Kept
from .weights cimport Weights

cdef class TrainLayers:
    cdef Weights weights
    cdef RopeTables ropes
    cdef LoraPair* pairs
    cdef int precision, n_slots             # n_slots: pairs a layer may have
    cdef bint magnified                     # pairs have magnitudes, those of experts apart
    cdef Extent extent
    cdef Kept* kept
    cdef Buffers b
    cdef Dropout dropout
    cdef uint8_t[::1] work
    cdef size_t work_bytes
    cdef Team team
    # the call
    cdef int T, n_segments, n_targets
    cdef bint keeping, entered, dropping
    cdef float* entry                       # (T, embd_p) of the first trained layer, or NULL
    cdef const int* tokens
    cdef const int* starts
    cdef const int* targets
    cdef int* scored                        # indices of tokens with a target
    cdef int* rank_of                       # (T,): a token's place among them, or -1
    cdef int* position
    cdef double* losses
    cdef float weight                   # of every target's gradient; times that of its token, where there are any
    cdef const float* token_weights
    cdef const float* noise             # (T, E): added to what enters the first layer, NULL for none
    cdef LoraPair* pair(self, int layer, int slot) noexcept nogil
    cdef void work_through(self, bint backward, int i, int n) noexcept nogil
    cdef void measure(self, int i, int n) noexcept nogil
    cdef int rows(self, int layer) noexcept nogil
    cdef float* gradient_of(self, int layer) noexcept nogil
    cdef float* scratch(self, int i) noexcept nogil
    cdef void place_input(self, Acts* a, const float* x, size_t ld, int n_cols, int rows) noexcept nogil
    cdef void linear_inputs(self, int layer, int slot, int n_linear, Acts* a, int lo, int hi, float* work) noexcept nogil
    cdef void magnify(self, int layer, int slot, float* y, size_t ldy, int lo, int hi) noexcept nogil
    cdef bint plain_heads(self, int layer) noexcept nogil
    cdef void linear(self, int layer, int slot, const Acts* a, int first, float* y, size_t ldy, int lo, int hi) noexcept nogil
    cdef void linears(self, int layer, int slot, int n_linear, const Acts* a, float** y, const size_t* ldy) noexcept nogil
    cdef void add_linear(self, int layer, int slot, const Norm* after, void* kept, const Acts* a, const float* x, const int* row, float* y,
                         int i, int n) noexcept nogil
    cdef void attention(self, int layer, int i, int n) noexcept nogil
    cdef void project_heads(self, int layer, bint keeping, int i, int n) noexcept nogil
    cdef void normed_inputs(self, int layer, int slot, int n_linear, Acts* a, int i, int n) noexcept nogil
    cdef void attend_units(self, int layer, int i, int n) noexcept nogil
    cdef void mlp(self, int layer, bint onward, int i, int n) noexcept nogil
    cdef void shared_rows(self, int layer, int lo, int hi) noexcept nogil
    cdef void shared_rows_backward(self, int layer, int lo, int hi) noexcept nogil
    cdef float weight_of(self, int target) noexcept nogil
    cdef void loss_head(self, bint backward, int i, int n) noexcept nogil
    cdef Gradient gradient(self, const float* dy, size_t ld, size_t at) noexcept nogil
    cdef void linear_gradients(self, int layer, int slot, const Gradient* g, int rows, int lo, int hi) noexcept nogil
    cdef void linears_backward(self, int layer, int slot, int n_linear, const float* x, size_t ldx, const Gradient* dy, int rows,
                               float* dx, size_t lddx, int i) noexcept nogil
    cdef void input_backward(self, int layer, int slot, int n_linear, const Gradient* dy, int rows, float* dx, size_t lddx,
                             int lo, int hi, int i) noexcept nogil
    cdef void pair_gradients(self, int layer, int slot, const float* x, size_t ldx, const Gradient* dy, int rows, int lo, int hi, int i) noexcept nogil
    cdef void mlp_backward(self, int layer, int i, int n) noexcept nogil
    cdef Gradient branch_gradient(self, int layer, int slot, const Norm* after, const void* kept, int lo, int hi) noexcept nogil
    cdef void restore_product(self, int layer, int slot, const void* kept, float* y, size_t ld, Gradient* g, int lo, int hi) noexcept nogil
    cdef void spread_rows(self, const float* scored, float* all_, size_t ld, int i, int n) noexcept nogil
    cdef void output_backward(self, int layer, int i, int n) noexcept nogil
    cdef void attention_backward(self, int layer, int i, int n) noexcept nogil
    cdef void heads_backward(self, int layer, int i, int n) noexcept nogil
    cdef void project_backward(self, int layer, float* dn, int i, int n) noexcept nogil
    cdef void normed_backward(self, int layer, int slot, int n_linear, Gradient* g, float* dn, int i, int n) noexcept nogil
