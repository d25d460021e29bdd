from .panels cimport PanelProducts

cdef const PanelProducts* eight_tokens() noexcept nogil
