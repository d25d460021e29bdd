from .panels cimport PanelProducts

cdef const PanelProducts* four_tokens() noexcept nogil
