# cython: language_level=3
"""The live services, and the discovery index.

Metadata filters go through an inverted index, (key, value) -> registrations, and start at the rarest pair; expiry
comes from a heap whose outdated entries are dropped when they surface. A lease that has run out is never returned,
reaped or not.
"""

from cpython.dict cimport PyDict_GetItem
from cpython.ref cimport PyObject
from heapq import heapify, heappop, heappush
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef double INFINITY = float("inf")


cdef class Services:
    cdef dict _tenants
    cdef Py_ssize_t _count

    def __init__(self):
        self._tenants = {}
        self._count = 0

    def put(self, str tenant not None, str service_id not None, object entry):
        cdef dict own = self._tenants.setdefault(tenant, {})
        if service_id not in own:
            self._count += 1
        own[service_id] = entry

    def get(self, str tenant not None, str service_id not None):
        cdef PyObject *own = PyDict_GetItem(self._tenants, tenant)
        cdef PyObject *entry
        if own == NULL:
            return None
        entry = PyDict_GetItem(<dict>own, service_id)
        return None if entry == NULL else <object>entry

    def remove(self, str tenant not None, str service_id not None):
        cdef dict own = self._tenants.get(tenant)
        if own is None or service_id not in own:
            return None
        entry = own.pop(service_id)
        self._count -= 1
        if not own:
            del self._tenants[tenant]
        return entry

    def of_tenant(self, str tenant not None):
        cdef dict own = self._tenants.get(tenant)
        return [own[key] for key in sorted(own)] if own is not None else []

    def count(self, str tenant=None):
        if tenant is None:
            return self._count
        own = self._tenants.get(tenant)
        return len(own) if own is not None else 0

    def tenants(self):
        return len(self._tenants)

    def all(self):
        return [entry for own in self._tenants.values() for entry in own.values()]


cdef class Registration:
    cdef readonly str handle
    cdef readonly str tenant
    cdef readonly str service_id
    cdef readonly str name
    cdef readonly str version
    cdef readonly dict metadata
    cdef readonly double ttl_s
    cdef readonly double expires_at
    cdef unsigned long long order  # of arrival


cdef class _Name:
    """What is registered under one name of one tenant."""

    cdef dict by_service  # service id -> Registration, in order of arrival
    cdef dict by_pair  # (metadata key, value) -> set of Registration

    def __cinit__(self):
        self.by_service = {}
        self.by_pair = {}


def _by_order(Registration registration):
    return registration.order


cdef class Directory:
    cdef dict _handles  # handle -> Registration
    cdef dict _names  # tenant -> {name: _Name}
    cdef dict _services  # (tenant, service id) -> set of Registration
    cdef dict _counts  # tenant -> number of registrations
    cdef list _heap  # (expires_at, order, Registration); outdated where the registration says otherwise
    cdef object _clock
    cdef unsigned long long _order

    def __init__(self, clock=None):
        self._handles = {}
        self._names = {}
        self._services = {}
        self._counts = {}
        self._heap = []
        self._clock = clock
        self._order = 0

    cdef double _now(self) except -1:
        cdef timespec now
        if self._clock is not None:
            return self._clock()
        clock_gettime(CLOCK_MONOTONIC, &now)
        return <double>now.tv_sec + <double>now.tv_nsec * 1e-9

    def register(self, str handle not None, str tenant not None, str service_id not None, str name not None,
                 str version not None, dict metadata not None, double ttl_s):
        cdef Registration new = Registration.__new__(Registration)
        cdef _Name place
        cdef Registration former
        if handle in self._handles:
            raise ValueError("this handle is taken")
        new.handle, new.tenant, new.service_id, new.name, new.version = handle, tenant, service_id, name, version
        new.metadata = metadata
        new.ttl_s = ttl_s
        new.expires_at = self._now() + ttl_s if ttl_s > 0 else INFINITY
        self._order += 1
        new.order = self._order
        names = self._names.setdefault(tenant, {})
        place = names.get(name)
        if place is not None:
            former = place.by_service.get(service_id)
            if former is not None:
                self._take_out(former)
        names = self._names.setdefault(tenant, {})
        place = names.get(name)
        if place is None:
            place = names[name] = _Name()
        place.by_service[service_id] = new
        for pair in metadata.items():
            place.by_pair.setdefault(pair, set()).add(new)
        self._handles[handle] = new
        self._services.setdefault((tenant, service_id), set()).add(new)
        self._counts[tenant] = self._counts.get(tenant, 0) + 1
        if ttl_s > 0:
            heappush(self._heap, (new.expires_at, new.order, new))
        return new

    cdef _take_out(self, Registration gone):
        cdef dict names = self._names[gone.tenant]
        cdef _Name place = names[gone.name]
        del self._handles[gone.handle]
        del place.by_service[gone.service_id]
        for pair in gone.metadata.items():
            matching = place.by_pair[pair]
            matching.discard(gone)
            if not matching:
                del place.by_pair[pair]
        if not place.by_service:
            del names[gone.name]
            if not names:
                del self._names[gone.tenant]
        own = self._services[gone.tenant, gone.service_id]
        own.discard(gone)
        if not own:
            del self._services[gone.tenant, gone.service_id]
        left = self._counts[gone.tenant] - 1
        if left:
            self._counts[gone.tenant] = left
        else:
            del self._counts[gone.tenant]
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._handles):
            self._heap = [entry for entry in self._heap if self._is_current(entry)]
            heapify(self._heap)

    cdef bint _is_current(self, tuple entry):
        cdef Registration registration = entry[2]
        return self._handles.get(registration.handle) is registration and registration.expires_at == entry[0]

    cdef Registration _live(self, str tenant, str handle):
        cdef Registration found = self._handles.get(handle)
        if found is None or found.tenant != tenant or found.expires_at <= self._now():
            return None
        return found

    def get(self, str tenant not None, str handle not None):
        return self._live(tenant, handle)

    def heartbeat(self, str tenant not None, str handle not None):
        cdef Registration found = self._live(tenant, handle)
        if found is not None and found.ttl_s > 0:
            found.expires_at = self._now() + found.ttl_s
            heappush(self._heap, (found.expires_at, found.order, found))
        return found

    def unregister(self, str tenant not None, str handle not None):
        cdef Registration found = self._live(tenant, handle)
        if found is not None:
            self._take_out(found)
        return found

    def discover(self, str tenant not None, str name not None, filters=None):
        cdef dict names = self._names.get(tenant)
        cdef _Name place
        cdef Registration one
        cdef double now = self._now()
        place = names.get(name) if names is not None else None
        if place is None:
            return []
        if not filters:
            return [one for one in place.by_service.values() if one.expires_at > now]
        sets = []
        for pair in filters.items():
            matching = place.by_pair.get(pair)
            if matching is None:
                return []
            sets.append(matching)
        if len(sets) > 1:
            sets.sort(key=len)
        found = []
        for one in sets[0]:
            if one.expires_at <= now:
                continue
            for matching in sets[1:]:
                if one not in matching:
                    break
            else:
                found.append(one)
        if len(found) > 1:
            found.sort(key=_by_order)
        return found

    def of_tenant(self, str tenant not None, str name=None):
        cdef dict names = self._names.get(tenant)
        cdef _Name place
        cdef Registration one
        cdef double now = self._now()
        if names is None:
            return []
        if name is not None:
            return self.discover(tenant, name)
        found = [one for place in names.values() for one in place.by_service.values() if one.expires_at > now]
        found.sort(key=_by_order)
        return found

    def expire(self):
        cdef double now = self._now()
        expired = []
        while self._heap and self._heap[0][0] <= now:
            entry = heappop(self._heap)
            if self._is_current(entry):
                self._take_out(entry[2])
                expired.append(entry[2])
        return expired

    def next_expiry(self):
        while self._heap and not self._is_current(self._heap[0]):
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def count(self, str tenant=None):
        return len(self._handles) if tenant is None else self._counts.get(tenant, 0)

    def remove_service(self, str tenant not None, str service_id not None):
        found = sorted(self._services.get((tenant, service_id), ()), key=_by_order)
        for registration in found:
            self._take_out(registration)
        return found
