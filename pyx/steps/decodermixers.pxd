from ..layers.block cimport Block
from ..layers.linear cimport Linear
from ..layers.norm cimport Norm
from ..products.inputs cimport Acts
from .decoderlayers cimport DecoderLayers

cdef class DecoderMixers(DecoderLayers):
    cdef float[:, :, :, ::1] states     # (n_slots, layers with a convolution, positions, embd_p): a ring of what these saw
    cdef void products(self, const Linear* first, int n_linear, const Acts* a, float** y, const size_t* ldy, int i, int n) noexcept nogil
    cdef void second_product(self, const Linear* l, const Norm* norm, const float* x, size_t ldx, float* seen, float* y, size_t ldy, int i, int n) noexcept nogil
    cdef void convolve_units(self, const Block* b, int layer, int i, int n) noexcept nogil
