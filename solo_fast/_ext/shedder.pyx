# cython: language_level=3
"""The load shedder. Every request of both gateways takes a slot here and gives it back.

A tenant costs memory only while it has something in flight or its bucket is not yet full again: idle entries are
swept out, a few at a time, as others come.
"""

from cpython.dict cimport PyDict_GetItem
from cpython.ref cimport PyObject
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

CONTROL, READ, WRITE, CALL, STREAM = range(5)

DEF NEAR = 0.8  # part of max_total from which fair shares count
cdef int IN_FLIGHT_RETRY_MS = 100
cdef Py_ssize_t SWEEP_EVERY = 1024  # acquisitions
cdef Py_ssize_t SHED_COUNTS_MAX = 10_000  # anybody can make a tenant's name up


cdef class Slot:
    cdef _Tenant _owner
    cdef readonly int admission
    cdef readonly bint released

    def __init__(self):
        raise TypeError("only a Shedder makes slots")

    @property
    def tenant(self):
        return self._owner.name


cdef class Shed:
    cdef readonly str reason
    cdef readonly str scope
    cdef readonly int retry_after_ms
    cdef readonly double limit
    cdef readonly long remaining

    def __init__(self):
        raise TypeError("only a Shedder sheds")


cdef class _Tenant:
    cdef str name
    cdef long in_flight
    cdef long max_in_flight
    cdef double rate
    cdef double burst
    cdef double tokens
    cdef double filled_at  # monotonic seconds of the last refill


cdef class Shedder:
    cdef dict _tenants
    cdef dict _own_limits  # tenant -> (max_in_flight, rate, burst)
    cdef dict _shed_by
    cdef dict _shed_since
    cdef object _clock
    cdef long _max_total
    cdef long _near
    cdef long _max_per_tenant
    cdef double _rate
    cdef double _burst
    cdef long _active  # tenants with something in flight
    cdef unsigned long long _admitted
    cdef unsigned long long _shed
    cdef Py_ssize_t _since_sweep
    cdef readonly long in_flight

    def __init__(self, *, long max_total, long max_per_tenant, double rate=0, double burst=0, clock=None):
        if max_total < 1 or max_per_tenant < 1 or rate < 0 or burst < 0:
            raise ValueError("limits are positive; a rate or burst of 0 sets none")
        self._tenants = {}
        self._own_limits = {}
        self._shed_by = {}
        self._shed_since = {}
        self._clock = clock
        self._max_total = max_total
        self._near = <long>(max_total * NEAR)
        self._max_per_tenant = max_per_tenant
        self._rate = rate
        self._burst = burst if burst > 0 else rate

    cdef inline double _now(self) except -1:
        cdef timespec now
        if self._clock is not None:
            return self._clock()
        clock_gettime(CLOCK_MONOTONIC, &now)
        return <double>now.tv_sec + <double>now.tv_nsec * 1e-9

    def set_tenant(self, str tenant not None, *, long max_in_flight, double rate, double burst):
        if max_in_flight < 1 or rate < 0 or burst < 0:
            raise ValueError("limits are positive; a rate or burst of 0 sets none")
        self._own_limits[tenant] = (max_in_flight, rate, burst if burst > 0 else rate)
        cdef _Tenant known = self._tenants.get(tenant)
        if known is not None:
            known.max_in_flight, known.rate, known.burst = self._own_limits[tenant]
            known.tokens = min(known.tokens, known.burst)

    cdef _Tenant _new(self, str name, double now):
        cdef _Tenant tenant = _Tenant.__new__(_Tenant)
        tenant.name = name
        own = self._own_limits.get(name)
        if own is None:
            tenant.max_in_flight, tenant.rate, tenant.burst = self._max_per_tenant, self._rate, self._burst
        else:
            tenant.max_in_flight, tenant.rate, tenant.burst = own
        tenant.tokens = tenant.burst
        tenant.filled_at = now
        self._tenants[name] = tenant
        return tenant

    cdef Shed _refuse(self, _Tenant tenant, int admission, str reason, str scope, int retry_ms, double limit,
                      long remaining):
        cdef Shed shed = Shed.__new__(Shed)
        shed.reason, shed.scope, shed.retry_after_ms, shed.limit, shed.remaining = (
            reason, scope, retry_ms, limit, remaining
        )
        key = (tenant.name, admission, reason)
        self._shed_by[key] = self._shed_by.get(key, 0) + 1
        self._shed_since[key] = self._shed_since.get(key, 0) + 1
        self._shed += 1
        return shed

    def acquire(self, str tenant not None, int admission):
        cdef PyObject *found = PyDict_GetItem(self._tenants, tenant)
        cdef _Tenant owner
        cdef double now = 0
        cdef double fair
        cdef Slot slot
        if found != NULL:
            owner = <_Tenant>found
        else:
            owner = self._new(tenant, self._now())
        if admission != 0:
            if owner.in_flight >= owner.max_in_flight:
                return self._refuse(owner, admission, "tenant_in_flight", "tenant", IN_FLIGHT_RETRY_MS,
                                    owner.max_in_flight, 0)
            if self.in_flight >= self._near:
                fair = <double>self._max_total / (self._active + (1 if owner.in_flight == 0 else 0))
                if owner.in_flight >= fair:
                    return self._refuse(owner, admission, "fair_share", "tenant", IN_FLIGHT_RETRY_MS, fair, 0)
                if self.in_flight >= self._max_total:
                    return self._refuse(owner, admission, "kernel_in_flight", "kernel", IN_FLIGHT_RETRY_MS,
                                        self._max_total, 0)
            if owner.rate > 0:
                now = self._now()
                if now > owner.filled_at:
                    owner.tokens = min(owner.burst, owner.tokens + (now - owner.filled_at) * owner.rate)
                    owner.filled_at = now
                if owner.tokens < 1:
                    return self._refuse(owner, admission, "tenant_rate", "tenant",
                                        <int>min(2147483647.0, (1 - owner.tokens) / owner.rate * 1000 + 1),
                                        owner.rate, 0)
                owner.tokens -= 1
        if owner.in_flight == 0:
            self._active += 1
        owner.in_flight += 1
        self.in_flight += 1
        self._admitted += 1
        self._since_sweep += 1
        if self._since_sweep >= SWEEP_EVERY:
            self._sweep()
        slot = Slot.__new__(Slot)
        slot._owner = owner
        slot.admission = admission
        return slot

    def release(self, Slot slot not None, double latency_s=-1.0):
        if slot.released:
            return
        slot.released = True
        cdef _Tenant owner = slot._owner
        owner.in_flight -= 1
        self.in_flight -= 1
        if owner.in_flight == 0:
            self._active -= 1
            if owner.rate == 0:
                # No bucket to remember: an idle tenant costs nothing.
                self._tenants.pop(owner.name, None)

    cdef _sweep(self):
        """Forget idle tenants whose bucket is full again, and the counts of what was shed long ago."""
        cdef _Tenant one
        cdef double now = self._now()
        self._since_sweep = 0
        idle = []
        for one in self._tenants.values():
            if one.in_flight == 0 and one.tokens + (now - one.filled_at) * one.rate >= one.burst:
                idle.append(one.name)
        for name in idle:
            del self._tenants[name]
        if len(self._shed_by) > SHED_COUNTS_MAX:
            self._shed_by.clear()

    def tenant_in_flight(self, str tenant not None):
        cdef _Tenant known = self._tenants.get(tenant)
        return known.in_flight if known is not None else 0

    def stats(self):
        return {
            "in_flight": self.in_flight,
            "tenants": len(self._tenants),
            "admitted": self._admitted,
            "shed": self._shed,
            "shed_by": dict(self._shed_by),
        }

    def take_shed(self):
        taken, self._shed_since = self._shed_since, {}
        return taken
