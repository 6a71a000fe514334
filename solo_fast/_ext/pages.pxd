cdef void populate() noexcept nogil
