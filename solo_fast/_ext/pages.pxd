cdef void populate() noexcept nogil
cdef void forget() noexcept nogil
