from ..layers.norm cimport Norm
from .trainbuffers cimport Gradient
from .trainlayers cimport TrainLayers

cdef class TrainMixers(TrainLayers):
    cdef void second_product(self, int layer, int slot, const Norm* norm, const float* x, size_t ldx, float* seen, float* y, size_t ldy, int i, int n) noexcept nogil
    cdef void second_backward(self, int layer, int slot, const Norm* norm, float* x, const void* kept, size_t ldx, float* seen, Gradient* dy, float* dx, int i, int n) noexcept nogil
    cdef void convolve_units(self, int layer, bint backward) noexcept nogil
