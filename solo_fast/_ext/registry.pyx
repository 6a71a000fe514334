# cython: language_level=3, binding=False, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The live services, and the discovery index with its leases.

Discovery by metadata is an inverted index: each (key, value) of a name has a posting, the set of the registrations that
carry it, and a question with several filters intersects their postings. A posting is a bitmap of two levels: one bit
per word of the lower level, of which only the words that aren't empty are stored (the bitmap and popcount of Bagwell's
"Ideal Hash Trees", 2001). So an intersection looks at 4,096 registrations at a time, and a posting of one registration
still takes few bytes.

Leases end in the order of a heap. A heartbeat doesn't touch the heap: an entry that comes up too early is put back for
its later time. Every question first takes out what is due, so that an expired registration is never seen, reaped
or not.
"""

from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cimport cython

from heapq import heapify as _heapify, heappop as _heappop, heappush as _heappush

cdef extern from *:
    """
    static inline int solo_popcount(uint64_t x) { return __builtin_popcountll(x); }
    static inline int solo_lowest(uint64_t x) { return __builtin_ctzll(x); }
    """
    int solo_popcount(uint64_t x) noexcept nogil
    int solo_lowest(uint64_t x) noexcept nogil

cdef enum:
    FILTERS_INDEXED = 16  # of one question; the rest is compared with what those leave
    DEAD_ENTRIES_MIN = 64  # in the heap, before it is worth rebuilding


# -- live services ---------------------------------------------------------------------------------------------------


@cython.final
cdef class _Shelf:
    """The services of one tenant. `ordered` is None when it must be made anew."""

    cdef dict entries
    cdef list ordered


@cython.final
cdef class Services:
    """The live services: (tenant, service id) -> entry."""

    cdef dict _shelves
    cdef Py_ssize_t _count

    def __cinit__(self):
        self._shelves = {}

    def put(self, str tenant not None, str service_id not None, object entry):
        """Set the entry of a service."""
        cdef _Shelf shelf = self._shelves.get(tenant)
        if shelf is None:
            shelf = _Shelf.__new__(_Shelf)
            shelf.entries = {}
            self._shelves[tenant] = shelf
        cdef Py_ssize_t before = len(shelf.entries)
        shelf.ordered = None
        former = shelf.entries.get(service_id)  # kept until the end: its destructor may come back here
        shelf.entries[service_id] = entry
        self._count += len(shelf.entries) - before

    def get(self, str tenant not None, str service_id not None):
        """The entry, or None. Allocates nothing."""
        cdef PyObject *shelf = PyDict_GetItemWithError(self._shelves, tenant)
        if shelf == NULL:
            return None
        cdef PyObject *entry = PyDict_GetItemWithError((<_Shelf>shelf).entries, service_id)
        return None if entry == NULL else <object>entry

    def remove(self, str tenant not None, str service_id not None):
        """Take an entry out and return it; None when there was none."""
        cdef _Shelf shelf = self._shelves.get(tenant)
        if shelf is None or service_id not in shelf.entries:
            return None
        entry = shelf.entries.pop(service_id)
        shelf.ordered = None
        self._count -= 1
        if not shelf.entries:
            del self._shelves[tenant]
        return entry

    def of_tenant(self, str tenant not None):
        """A tenant's entries, sorted by service id; a new list."""
        cdef _Shelf shelf = self._shelves.get(tenant)
        if shelf is None:
            return []
        if shelf.ordered is None:
            shelf.ordered = [shelf.entries[service_id] for service_id in sorted(shelf.entries)]
        return list(shelf.ordered)

    def count(self, str tenant=None):
        """Entries of a tenant, or of all of them."""
        if tenant is None:
            return self._count
        cdef _Shelf shelf = self._shelves.get(tenant)
        return 0 if shelf is None else len(shelf.entries)

    def tenants(self):
        """Tenants that have an entry."""
        return len(self._shelves)

    def all(self):
        """Every entry, tenant by tenant; a new list."""
        cdef _Shelf shelf
        cdef list entries = []
        for shelf in list(self._shelves.values()):
            entries.extend(shelf.entries.values())
        return entries


# -- postings --------------------------------------------------------------------------------------------------------


cdef int _grow(void **block, Py_ssize_t *room, Py_ssize_t wanted) except -1:
    cdef Py_ssize_t size = room[0] * 2 if room[0] * 2 > wanted else wanted
    cdef void *grown
    if wanted <= room[0]:
        return 0
    grown = realloc(block[0], <size_t>size * sizeof(uint64_t))
    if grown == NULL:
        raise MemoryError("no memory for the discovery index")
    block[0] = grown
    room[0] = size
    return 0


@cython.final
@cython.no_gc
cdef class _Posting:
    """The set of the places (of one name) that carry one (key, value)."""

    cdef str key
    cdef str value
    cdef uint64_t *top  # bit w of it: word w isn't empty
    cdef uint64_t *words  # those that aren't empty, in order
    cdef Py_ssize_t top_used
    cdef Py_ssize_t top_room
    cdef Py_ssize_t words_used
    cdef Py_ssize_t words_room

    def __dealloc__(self):
        free(self.top)
        free(self.words)

    cdef Py_ssize_t rank(self, Py_ssize_t word) noexcept:
        """How many stored words come before `word`."""
        cdef Py_ssize_t at
        cdef Py_ssize_t before = 0
        for at in range(word >> 6):
            before += solo_popcount(self.top[at])
        return before + solo_popcount(self.top[word >> 6] & (((<uint64_t>1) << (word & 63)) - 1))

    cdef int add(self, Py_ssize_t place) except -1:
        cdef Py_ssize_t word = place >> 6
        cdef Py_ssize_t at
        # All memory first: a failure must leave the posting as it was.
        _grow(<void **>&self.top, &self.top_room, (word >> 6) + 1)
        _grow(<void **>&self.words, &self.words_room, self.words_used + 1)
        while self.top_used <= word >> 6:
            self.top[self.top_used] = 0
            self.top_used += 1
        at = self.rank(word)
        if not self.top[word >> 6] >> (word & 63) & 1:
            memmove(&self.words[at + 1], &self.words[at], <size_t>(self.words_used - at) * sizeof(uint64_t))
            self.words[at] = 0
            self.words_used += 1
            self.top[word >> 6] |= (<uint64_t>1) << (word & 63)
        self.words[at] |= (<uint64_t>1) << (place & 63)
        return 0

    cdef void discard(self, Py_ssize_t place) noexcept:
        cdef Py_ssize_t word = place >> 6
        cdef Py_ssize_t at
        if self.top_used <= word >> 6 or not self.top[word >> 6] >> (word & 63) & 1:
            return
        at = self.rank(word)
        self.words[at] &= ~((<uint64_t>1) << (place & 63))
        if self.words[at] == 0:
            self.words_used -= 1
            memmove(&self.words[at], &self.words[at + 1], <size_t>(self.words_used - at) * sizeof(uint64_t))
            self.top[word >> 6] &= ~((<uint64_t>1) << (word & 63))


# -- registrations ---------------------------------------------------------------------------------------------------


@cython.final
cdef class Registration:
    """A service's entry under a name, for as long as its lease.

    Attributes:
        ttl_s: seconds that a heartbeat renews it for; 0: permanent.
        expires_at: seconds of the directory's clock; inf when permanent.
        replaced: the registration of the same tenant, service and name that this one took the place of.
        number: counts up with every register, from 1.
    """

    cdef readonly str handle
    cdef readonly str tenant
    cdef readonly str service_id
    cdef readonly str name
    cdef readonly str version
    cdef readonly dict metadata
    cdef readonly double ttl_s
    cdef readonly double expires_at
    cdef readonly Registration replaced
    cdef readonly int64_t number
    cdef Py_ssize_t _place
    cdef list _postings
    cdef bint _live

    def __init__(self):
        raise TypeError("a registration is made by Directory.register")

    def __reduce__(self):
        raise TypeError("a registration can't be copied or pickled")

    def __repr__(self):
        return f"<Registration {self.name} of {self.tenant}/{self.service_id}>"


def _number_of(Registration registration not None):
    return registration.number


@cython.final
cdef class _Name:
    """The registrations under one name of one tenant. A place in `members` is None when it is free."""

    cdef list members
    cdef list free_places
    cdef dict index  # key -> value -> _Posting
    cdef bint shuffled  # a place was used again: their order is no longer that of registration

    def __cinit__(self):
        self.members = []
        self.free_places = []
        self.index = {}

    cdef bint empty(self):
        return len(self.members) == len(self.free_places)

    cdef int add(self, Registration registration) except -1:
        cdef _Posting posting
        cdef dict values
        if self.free_places:
            registration._place = self.free_places.pop()
            self.members[registration._place] = registration
            self.shuffled = True
        else:
            registration._place = len(self.members)
            self.members.append(registration)
        registration._postings = []
        for key, value in registration.metadata.items():
            values = self.index.setdefault(key, {})
            posting = values.get(value)
            if posting is None:
                posting = _Posting.__new__(_Posting)
                posting.key = key
                posting.value = value
                values[value] = posting
            posting.add(registration._place)
            registration._postings.append(posting)
        return 0

    cdef int remove(self, Registration registration) except -1:
        cdef _Posting posting
        cdef dict values
        for posting in registration._postings:  # not its metadata, which a caller may have changed
            posting.discard(registration._place)
            if posting.words_used == 0:
                values = self.index[posting.key]
                del values[posting.value]
                if not values:
                    del self.index[posting.key]
        registration._postings = None
        self.members[registration._place] = None
        self.free_places.append(registration._place)
        return 0

    cdef list everybody(self):
        return self.in_order([member for member in self.members if member is not None])

    cdef list in_order(self, list found):
        if self.shuffled and len(found) > 1:
            found.sort(key=_number_of)
        return found

    cdef list matching(self, dict filters):
        # A new list may start a garbage collection and so run anything; from here to the end of the intersection
        # nothing does, and the postings may be held by bare pointers.
        cdef list found = []
        cdef PyObject *postings[FILTERS_INDEXED]
        cdef PyObject *hit
        cdef int used = 0
        for key, value in filters.items():
            if type(key) is not str or type(value) is not str:
                raise TypeError(f"filter {key!r}: {value!r} is not a str and a str")
            hit = PyDict_GetItemWithError(self.index, key)
            if hit != NULL:
                hit = PyDict_GetItemWithError(<dict>hit, value)
            if hit == NULL:
                return []
            if used < FILTERS_INDEXED:
                postings[used] = hit
                used += 1
        self.intersect(postings, used, found)
        if len(filters) > FILTERS_INDEXED:
            found = [member for member in found if self.carries(member, filters)]
        return self.in_order(found)

    cdef bint carries(self, Registration member, dict filters):
        cdef _Posting posting
        cdef Py_ssize_t hits = 0
        for posting in member._postings:
            hits += filters.get(posting.key) == posting.value
        return hits == len(filters)

    cdef int intersect(self, PyObject **postings, int used, list found) except -1:
        cdef Py_ssize_t rank[FILTERS_INDEXED]
        cdef _Posting posting
        cdef Py_ssize_t top_used = (<_Posting>postings[0]).top_used
        cdef Py_ssize_t top_at, bit
        cdef uint64_t common, word, below
        cdef int which
        for which in range(used):
            rank[which] = 0
            if (<_Posting>postings[which]).top_used < top_used:
                top_used = (<_Posting>postings[which]).top_used
        for top_at in range(top_used):
            common = (<_Posting>postings[0]).top[top_at]
            for which in range(1, used):
                common &= (<_Posting>postings[which]).top[top_at]
            while common:
                bit = solo_lowest(common)
                common &= common - 1
                below = ((<uint64_t>1) << bit) - 1
                word = ~<uint64_t>0
                for which in range(used):
                    posting = <_Posting>postings[which]
                    word &= posting.words[rank[which] + solo_popcount(posting.top[top_at] & below)]
                while word:
                    found.append(self.members[(top_at << 12) + (bit << 6) + solo_lowest(word)])
                    word &= word - 1
            for which in range(used):
                rank[which] += solo_popcount((<_Posting>postings[which]).top[top_at])
        return 0


@cython.final
cdef class _Holdings:
    """What one tenant has in the directory."""

    cdef dict handles  # handle -> Registration, in the order of registration
    cdef dict services  # service id -> name -> Registration
    cdef dict names  # name -> _Name

    def __cinit__(self):
        self.handles = {}
        self.services = {}
        self.names = {}


@cython.final
cdef class Directory:
    """The discovery index. Tenants don't see each other's registrations.

    Time never goes back: a clock that steps backwards counts as standing still until it has caught up.

    Args:
        clock: gives monotonic seconds; None: CLOCK_MONOTONIC, read in C.
    """

    cdef object _clock
    cdef double _latest
    cdef dict _holdings
    cdef list _heap  # (due, number, Registration); one for each live lease, and dead ones until they come up
    cdef Py_ssize_t _dead
    cdef list _lapsed  # taken out, not yet announced by `expire`
    cdef Py_ssize_t _count
    cdef int64_t _numbers

    def __cinit__(self, clock=None):
        self._clock = clock
        self._latest = -INFINITY
        self._holdings = {}
        self._heap = []
        self._lapsed = []

    # -- time --------------------------------------------------------------------------------------------------------

    cdef double _now(self) except? -1:
        cdef timespec t
        cdef double now
        if self._clock is None:
            clock_gettime(CLOCK_MONOTONIC, &t)
            now = <double>t.tv_sec + <double>t.tv_nsec * 1e-9
        else:
            now = self._clock()
        if now > self._latest:
            self._latest = now
        return self._latest

    cdef inline int _reap(self) except -1:
        """Take out what is due, so that the tables hold only leases that run."""
        if self._heap:
            return self._reap_due(self._now())
        return 0

    cdef int _reap_due(self, double now) except -1:
        cdef Registration registration
        cdef tuple entry
        while self._heap:
            entry = <tuple>self._heap[0]
            if <double>entry[0] > now:
                return 0
            registration = <Registration>entry[2]
            _heappop(self._heap)
            if not registration._live:
                self._dead -= 1
            elif registration.expires_at > <double>entry[0]:  # renewed: also where it is due, others may be before it
                _heappush(self._heap, (registration.expires_at, registration.number, registration))
            else:
                self._take_out(registration)
                self._lapsed.append(registration)
        return 0

    def expire(self):
        """The registrations whose lease has run out since the last call, in the order of their ends, for announcing."""
        self._reap()
        lapsed = self._lapsed
        self._lapsed = []
        return lapsed

    def next_expiry(self):
        """When `expire` will next have something (seconds of the clock); None: never, as things are."""
        cdef Registration registration
        self._reap()
        if self._lapsed:
            return self._latest
        while self._heap:
            due, number, registration = self._heap[0]
            if registration._live and registration.expires_at == due:
                return due
            _heappop(self._heap)
            if registration._live:
                _heappush(self._heap, (registration.expires_at, number, registration))
            else:
                self._dead -= 1
        return None

    # -- writing -----------------------------------------------------------------------------------------------------

    def register(
        self,
        str handle not None,
        str tenant not None,
        str service_id not None,
        str name not None,
        str version not None,
        dict metadata not None,
        double ttl_s,
        double left_s=0,
    ):
        """Enter a service under a name.

        The registration of the same tenant, service and name is replaced; it is the new one's `replaced`.

        Args:
            handle: names the registration to its tenant; must be new to it.
            metadata: copied.
            ttl_s: seconds until it expires unless a heartbeat comes; 0: permanent.
            left_s: seconds until its first end, for a lease that already runs; 0, and no more than, ttl_s.

        Raises:
            ValueError: the tenant has another registration of this handle, or ttl_s or left_s is negative or not a
                number.
            TypeError: a key or value of the metadata is no str.
        """
        cdef Registration registration, former
        cdef _Holdings holdings
        cdef _Name named
        cdef double now
        if not ttl_s >= 0:
            raise ValueError(f"ttl_s is {ttl_s}; give seconds, or 0 for a permanent registration")
        if not left_s >= 0:
            raise ValueError(f"left_s is {left_s}; give seconds, or 0 for a lease that begins now")
        metadata = dict(metadata)
        for key, value in metadata.items():
            if type(key) is not str or type(value) is not str:
                raise TypeError(f"metadata {key!r}: {value!r} is not a str and a str")
        now = self._now()
        self._reap_due(now)
        holdings = self._holdings.get(tenant)
        former = None
        if holdings is not None:
            former = holdings.services.get(service_id, {}).get(name)
            if handle in holdings.handles and holdings.handles[handle] is not former:
                raise ValueError("the handle is taken by another registration of this tenant")
        if former is not None:
            self._remove(former)
            former.replaced = None  # else each would keep all those before it

        registration = Registration.__new__(Registration)
        registration.handle = handle
        registration.tenant = tenant
        registration.service_id = service_id
        registration.name = name
        registration.version = version
        registration.metadata = metadata
        registration.ttl_s = ttl_s
        registration.expires_at = INFINITY if ttl_s == 0 else now + (min(left_s, ttl_s) or ttl_s)
        registration.replaced = former
        self._numbers += 1
        registration.number = self._numbers

        holdings = self._holdings.get(tenant)
        if holdings is None:
            holdings = self._holdings[tenant] = _Holdings.__new__(_Holdings)
        named = holdings.names.get(name)
        if named is None:
            named = holdings.names[name] = _Name.__new__(_Name)
        named.add(registration)
        holdings.handles[handle] = registration
        holdings.services.setdefault(service_id, {})[name] = registration
        registration._live = True
        self._count += 1
        if registration.expires_at < INFINITY:
            _heappush(self._heap, (registration.expires_at, registration.number, registration))
        return registration

    cdef int _take_out(self, Registration registration) except -1:
        cdef _Holdings holdings = self._holdings[registration.tenant]
        cdef _Name named = holdings.names[registration.name]
        cdef dict names = holdings.services[registration.service_id]
        named.remove(registration)
        if named.empty():
            del holdings.names[registration.name]
        del holdings.handles[registration.handle]
        del names[registration.name]
        if not names:
            del holdings.services[registration.service_id]
        if not holdings.handles:
            del self._holdings[registration.tenant]
        registration._live = False
        self._count -= 1
        return 0

    cdef int _remove(self, Registration registration) except -1:
        """Take out a lease before its end; its heap entry stays behind, dead."""
        self._take_out(registration)
        if registration.expires_at == INFINITY:
            return 0
        self._dead += 1
        if self._dead > DEAD_ENTRIES_MIN and self._dead * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if (<Registration>(<tuple>entry)[2])._live]
            _heapify(self._heap)
            self._dead = 0
        return 0

    cdef Registration _find(self, str tenant, str handle):
        cdef PyObject *holdings
        cdef PyObject *registration
        self._reap()
        holdings = PyDict_GetItemWithError(self._holdings, tenant)
        if holdings == NULL:
            return None
        registration = PyDict_GetItemWithError((<_Holdings>holdings).handles, handle)
        return None if registration == NULL else <Registration>registration

    def heartbeat(self, str tenant not None, str handle not None):
        """Renew a lease by its ttl from now; None: unknown to this tenant, or expired."""
        cdef Registration registration = self._find(tenant, handle)
        if registration is not None and registration.ttl_s > 0:
            registration.expires_at = self._now() + registration.ttl_s
        return registration

    def unregister(self, str tenant not None, str handle not None):
        """Take a registration out and return it; None: unknown to this tenant, or expired."""
        cdef Registration registration = self._find(tenant, handle)
        if registration is not None:
            self._remove(registration)
        return registration

    def remove_service(self, str tenant not None, str service_id not None):
        """Take out everything that a service has registered, and return it."""
        cdef _Holdings holdings
        cdef list registrations
        self._reap()
        holdings = self._holdings.get(tenant)
        if holdings is None:
            return []
        registrations = list(holdings.services.get(service_id, {}).values())
        for registration in registrations:
            self._remove(registration)
        return registrations

    # -- reading -----------------------------------------------------------------------------------------------------

    def get(self, str tenant not None, str handle not None):
        """The registration of a handle; None: unknown to this tenant, or expired. Allocates nothing."""
        return self._find(tenant, handle)

    def discover(self, str tenant not None, str name not None, dict filters=None):
        """A tenant's registrations under a name whose metadata carry every filter, in the order of registration."""
        cdef PyObject *hit
        cdef _Name named
        self._reap()
        hit = PyDict_GetItemWithError(self._holdings, tenant)
        if hit != NULL:
            hit = PyDict_GetItemWithError((<_Holdings>hit).names, name)
        if hit == NULL:
            return []
        named = <_Name>hit
        return named.matching(filters) if filters else named.everybody()

    def of_tenant(self, str tenant not None, str name=None):
        """A tenant's registrations (under a name), in the order of registration."""
        cdef _Holdings holdings
        if name is not None:
            return self.discover(tenant, name)
        self._reap()
        holdings = self._holdings.get(tenant)
        return [] if holdings is None else list(holdings.handles.values())

    def count(self, str tenant=None):
        """Registrations of a tenant, or of all of them."""
        cdef _Holdings holdings
        self._reap()
        if tenant is None:
            return self._count
        holdings = self._holdings.get(tenant)
        return 0 if holdings is None else len(holdings.handles)
