"""The processor's way to multiply unpacked panels: chosen here, once, when the module is imported."""

from .four_tokens cimport four_tokens

# A table for some processors, of a module of its own, is chosen here: by what the processor says it has where that is not known
# when the set is compiled.
cdef const PanelProducts* CHOSEN = four_tokens()


cdef const PanelProducts* panel_products() noexcept nogil:
    """The table that this processor's products come from."""
    return CHOSEN


cdef void panel_add(const float* p, size_t ps, int n, const float* x, size_t xs, int rows, float* y, size_t ys) noexcept nogil:
    """y[r][16] += sum over j < n of x[r][j] * p[j][16], for r < rows; ps, xs, ys: row strides in floats.

    The one f32 product of the engine: p is a weight panel, a LoRA factor, keys, values or activations.
    """
    CHOSEN.add(p, ps, n, x, xs, rows, y, ys)
