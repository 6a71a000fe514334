# cython: language_level=3, binding=False, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The event ring: the last events, numbered without a gap, for any number of readers at their own pace.

One writer and many cursors, as in the LMAX Disruptor (Thompson et al. 2011): a power-of-two array and a sequence
number that only grows. Unlike there the writer never waits: a cursor that falls a whole round behind is told which
ids it lost, and fetches them from the store.

Everything happens under the GIL, on the thread of the event loop. Whatever could run foreign code (the destructor of an
overwritten item) runs when the ring is whole again, so nobody ever sees half of an entry.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free

cimport cython

from asyncio import get_running_loop as _get_running_loop

cdef extern from "Python.h":
    int PyUnicode_Compare(PyObject *left, PyObject *right)

cdef struct Place:
    PyObject *item
    PyObject *tenant
    PyObject *subject
    uint32_t tenant_hash
    uint32_t subject_hash

cdef int64_t LARGEST_ID = (<int64_t>1) << 62
cdef Py_ssize_t LARGEST_CAPACITY = (<Py_ssize_t>1) << 32


class Overrun(Exception):
    """A cursor lagged: the entries `first` to `last` were overwritten before it read them.

    Fetch them from the store; the cursor now stands behind `last`.
    """

    def __init__(self, first, last):
        super().__init__(f"entries {first} to {last} were overwritten before they were read; fetch them from the store")
        self.first = first
        self.last = last


cdef inline bint _same(PyObject *held, uint32_t held_hash, PyObject *wanted, uint32_t wanted_hash) noexcept:
    # Both are exact str, so this can't run Python code.
    return held == wanted or (held_hash == wanted_hash and PyUnicode_Compare(held, wanted) == 0)


@cython.final
cdef class Ring:
    """A ring of the last `capacity` items.

    It holds items by plain references that the cycle collector doesn't look into (65,536 of them would make each
    full collection slower): an item must not refer to the ring itself.

    Args:
        capacity: entries, a power of two.
        first_id: of the first append; a ring that continues a stored sequence begins behind it.

    Raises:
        ValueError: capacity is no power of two, or first_id is under 1 or over 2**62.
    """

    cdef Place *_places
    cdef int64_t _mask
    cdef int64_t _first
    cdef int64_t _next
    cdef int64_t _dropped
    cdef dict _waiting

    def __cinit__(self, Py_ssize_t capacity, int64_t first_id=1):
        if capacity < 1 or capacity & (capacity - 1) or capacity > LARGEST_CAPACITY:
            raise ValueError(f"capacity is {capacity}; give a power of two")
        if first_id < 1 or first_id > LARGEST_ID:
            raise ValueError(f"first_id is {first_id}; give one from 1 to 2**62")
        self._waiting = {}
        self._places = <Place *>calloc(<size_t>capacity, sizeof(Place))
        if self._places == NULL:
            raise MemoryError(f"no memory for a ring of {capacity} entries")
        self._mask = capacity - 1
        self._first = first_id
        self._next = first_id
        self._dropped = first_id

    def __dealloc__(self):
        cdef int64_t at
        cdef Place place
        if self._places == NULL:
            return
        for at in range(self._mask + 1):
            place = self._places[at]
            if place.item == NULL:
                continue
            Py_DECREF(<object>place.item)
            Py_DECREF(<object>place.tenant)
            Py_DECREF(<object>place.subject)
        free(self._places)

    @property
    def capacity(self):
        """Entries that are held at most."""
        return self._mask + 1

    @property
    def next_id(self):
        """Id that the next append gets."""
        return self._next

    @property
    def oldest_id(self):
        """Smallest id still held; `next_id` when there is none."""
        return self._oldest()

    cdef inline int64_t _oldest(self) noexcept:
        cdef int64_t oldest = self._next - self._mask - 1
        return oldest if oldest > self._dropped else self._dropped

    def append(self, object item, str tenant not None, str subject not None):
        """Add an item and return its id. Nobody is woken: call `wake` after the batch."""
        cdef uint32_t tenant_hash = <uint32_t>hash(tenant)
        cdef uint32_t subject_hash = <uint32_t>hash(subject)
        cdef int64_t number = self._next
        cdef Place *place = &self._places[(number - self._first) & self._mask]
        cdef Place old = place[0]
        Py_INCREF(item)
        Py_INCREF(tenant)
        Py_INCREF(subject)
        place.item = <PyObject *>item
        place.tenant = <PyObject *>tenant
        place.subject = <PyObject *>subject
        place.tenant_hash = tenant_hash
        place.subject_hash = subject_hash
        self._next = number + 1
        if old.item != NULL:  # last: a destructor may append or read
            Py_DECREF(<object>old.tenant)
            Py_DECREF(<object>old.subject)
            Py_DECREF(<object>old.item)
        return number

    def drop(self, int64_t until_id):
        """Let go of the entries up to `until_id`, as if they had been overwritten: cursors behind them are overrun.

        Args:
            until_id: of an entry that was appended; one that is no longer held changes nothing.

        Raises:
            ValueError: there is no such entry yet.
        """
        cdef int64_t number
        cdef Place *place
        cdef Place old
        if until_id >= self._next:
            raise ValueError(f"until_id is {until_id}; the newest entry is {self._next - 1}")
        while True:
            number = self._oldest()  # anew each time: a destructor may append, read or drop
            if number > until_id:
                return
            place = &self._places[(number - self._first) & self._mask]
            old = place[0]
            place.item = NULL
            self._dropped = number + 1
            Py_DECREF(<object>old.tenant)
            Py_DECREF(<object>old.subject)
            Py_DECREF(<object>old.item)

    def wake(self, bint matching_only=False):
        """Wake the waiting cursors, each once; the writer calls this after a batch.

        Args:
            matching_only: leave asleep whose filter matches nothing of what was appended since: they are moved past it,
                so that other tenants' floods neither wake them nor overrun them.
        """
        cdef dict waiting = self._waiting
        cdef Cursor cursor
        if not waiting:
            return
        self._waiting = {}
        for future, cursor in waiting.items():
            if matching_only and not cursor._seek():
                self._waiting[future] = cursor
            else:
                _finish(future)

    def cursor(self, since_id=None, str tenant=None, str subject=None):
        """A reader of its own.

        Args:
            since_id: last id that the reader knows; None: from now on. An id that was not given out yet counts as now.
            tenant: only its items; None: everybody's; "" is a tenant of its own (the system).
            subject: only items on it; None: any.

        Raises:
            ValueError: since_id is negative.
        """
        cdef Cursor made = Cursor.__new__(Cursor)
        cdef int64_t newest = self._next - 1
        if since_id is None:
            made._position = newest
        elif since_id < 0:
            raise ValueError(f"since_id is {since_id}; give 0 or the id of an entry")
        else:
            made._position = newest if since_id > newest else since_id
        made._ring = self
        if tenant is not None:
            made._tenant = tenant
            made._tenant_hash = <uint32_t>hash(tenant)
        if subject is not None:
            made._subject = subject
            made._subject_hash = <uint32_t>hash(subject)
        return made


@cython.final
cdef class Cursor:
    """A place in the ring, and a filter. Made by `Ring.cursor`."""

    cdef Ring _ring
    cdef str _tenant
    cdef str _subject
    cdef uint32_t _tenant_hash
    cdef uint32_t _subject_hash
    cdef int64_t _position

    def __init__(self):
        raise TypeError("a cursor is made by Ring.cursor")

    def __reduce__(self):
        raise TypeError("a cursor can't be copied or pickled")

    @property
    def position(self):
        """Id of the last entry that was passed over, whether it matched or not."""
        return self._position

    cdef inline int64_t _next_match(self, int64_t number) noexcept:
        """Smallest matching id from `number` on; the ring's next id when there is none."""
        cdef Ring ring = self._ring
        cdef int64_t end = ring._next
        cdef PyObject *tenant = NULL if self._tenant is None else <PyObject *>self._tenant
        cdef PyObject *subject = NULL if self._subject is None else <PyObject *>self._subject
        cdef Place *place
        while number < end:
            place = &ring._places[(number - ring._first) & ring._mask]
            if (tenant == NULL or _same(place.tenant, place.tenant_hash, tenant, self._tenant_hash)) and (
                subject == NULL or _same(place.subject, place.subject_hash, subject, self._subject_hash)
            ):
                return number
            number += 1
        return end

    cdef bint _seek(self):
        """Pass over what doesn't match; whether there is something to read (or to raise)."""
        cdef int64_t number
        if self._ring is None:
            return True
        if self._position + 1 < self._ring._oldest():
            return True
        number = self._next_match(self._position + 1)
        self._position = number - 1
        return number < self._ring._next

    cdef int _check_open(self) except -1:
        if self._ring is None:
            raise ValueError("the cursor is closed; make another one with Ring.cursor")
        return 0

    def read(self, Py_ssize_t limit=256):
        """The next matching items in order, `limit` at most; [] when caught up.

        Raises:
            Overrun: entries were lost; once per overrun, the next read goes on behind them.
            ValueError: the cursor is closed, or the limit is under 1.
        """
        self._check_open()
        if limit < 1:
            raise ValueError(f"limit is {limit}; give 1 or more")
        # A new list may start a garbage collection and so run anything, even an append; nothing below does.
        cdef list items = []
        cdef Ring ring = self._ring
        cdef int64_t number = self._position + 1
        cdef int64_t oldest = ring._oldest()
        if number < oldest:
            self._position = oldest - 1
            raise Overrun(number, oldest - 1)
        number = self._next_match(number)
        while number < ring._next:
            items.append(<object>ring._places[(number - ring._first) & ring._mask].item)
            self._position = number
            limit -= 1
            if limit == 0:
                return items
            number = self._next_match(number + 1)
        self._position = number - 1
        return items

    def wait(self):
        """An awaitable that ends when there may be something to read: at once if entries were appended behind
        `position`, else after the next `Ring.wake`. It can be cancelled at any time.

        Raises:
            ValueError: the cursor is closed.
        """
        self._check_open()
        cdef _Wait waiting = _Wait.__new__(_Wait)
        waiting._cursor = self
        return waiting

    def close(self):
        """Let go of the ring; whoever waits on this cursor is woken. Closing twice is fine."""
        cdef Ring ring = self._ring
        if ring is None:
            return
        self._ring = None
        for future in [future for future, cursor in ring._waiting.items() if cursor is self]:
            del ring._waiting[future]
            _finish(future)


@cython.final
cdef class _Wait:
    cdef Cursor _cursor

    def __await__(self):
        cdef Cursor cursor = self._cursor
        cdef Ring ring = cursor._ring
        if ring is None or cursor._position < ring._next - 1:
            return
        future = _get_running_loop().create_future()
        ring._waiting[future] = cursor
        try:
            yield from future
        finally:
            ring._waiting.pop(future, None)


cdef int _finish(object future) except -1:
    if not future.done():
        try:
            future.set_result(None)
        except RuntimeError:
            # Its loop was closed under it: nobody waits any more, and the others must still be woken.
            pass
    return 0
