# cython: language_level=3, binding=False
"""What any call into Cython costs: the floor that bench/test_hot_core.py measures against. Compiled by it, not shipped."""

cimport cython


@cython.final
cdef class Floor:
    def call(self, str argument not None):
        pass

    def call2(self, str one not None, str two not None):
        pass
