# cython: language_level=3, binding=False, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The load shedder: who may start another request, and who is asked to come back later.

Each tenant has a token bucket (a rate and a burst) and a limit of requests in flight, and all of them share one limit.
The last tenth of that is kept for tenants under their fair share of it (the limit over the tenants that have something
in flight, and over two when there is one only): a tenant that floods fills nine tenths at most, and what the
others need is still there. Kills, revocations, health and the like are admitted always, and counted.

The adaptive limit, off by default, is Gradient2 of Netflix's concurrency-limits ("Performance Under Load", 2018;
github.com/Netflix/concurrency-limits): each class of requests may have as many in flight as keeps its latency
near its long-term mean.

Not thread-safe by itself: everything happens under the GIL, on the thread of the event loop.
"""

from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject, PyTypeObject, destructor
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.math cimport INFINITY, ceil
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

cimport cython

cdef enum:
    CLASSES = 5
    REASONS = 5
    KEPT_IDLE = 1024  # tenants; above it each new one sends two idle ones away
    RETRY_MS_DEFAULT = 100  # while nothing is known of how long requests take
    RETRY_MS_MIN = 10
    RETRY_MS_MAX = 10_000
    RATE_RETRY_MS_MAX = 86_400_000  # a day, however low the rate
    ADAPTIVE_LIMIT_MIN = 20
    WINDOW_SAMPLES_MIN = 10
    QUEUE = 4  # requests by which a limit grows while latency is flat
    LONG_WARM_UP = 10  # windows whose plain mean begins the long-term mean

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <time.h>

    #if defined(__x86_64__)
    #include <x86intrin.h>
    #define SOLO_TICKS() __rdtsc()
    #else
    #define SOLO_TICKS() 0
    #endif

    #define ANCHORED_S 0.001

    /* CLOCK_MONOTONIC, which takes 40 ns in a virtual machine, read once a millisecond; between two readings the
       processor's own counter, at a third of that. A counter that jumps (the machine was moved to another host) is off
       for a millisecond at most, and counted anew. All zeros before the first reading. */
    struct solo_clock { uint64_t ticks; double at_s, tick_s; };

    static double solo_read_clock(struct solo_clock *clock, uint64_t ticks) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        double now_s = (double)t.tv_sec + (double)t.tv_nsec * 1e-9, passed_s = now_s - clock->at_s;
        if (ticks == 0 || (clock->ticks != 0 && ticks > clock->ticks && passed_s < ANCHORED_S)) return now_s;
        double tick_s = clock->ticks != 0 && ticks > clock->ticks ? passed_s / (double)(ticks - clock->ticks) : 0;
        int steady = clock->tick_s == 0 || (tick_s < 1.5 * clock->tick_s && clock->tick_s < 1.5 * tick_s);
        clock->tick_s = steady ? tick_s : 0;
        clock->ticks = ticks;
        clock->at_s = now_s;
        return now_s;
    }

    static inline double solo_monotonic_s(struct solo_clock *clock) {
        uint64_t ticks = SOLO_TICKS();
        double passed_s = (double)(ticks - clock->ticks) * clock->tick_s;
        return clock->tick_s > 0 && passed_s < ANCHORED_S ? clock->at_s + passed_s : solo_read_clock(clock, ticks);
    }
    """
    struct solo_clock:
        pass
    double solo_monotonic_s(solo_clock *clock)

cdef double WINDOW_S = 0.1
cdef double SMOOTHING = 0.2
cdef double LONG_WINDOWS = 600.0
cdef double LATENCY_WEIGHT = 0.05  # of a sample in the mean that retry advice is made from

CONTROL, READ, WRITE, CALL, STREAM = range(CLASSES)

cdef enum Reason:
    TENANT_RATE
    TENANT_IN_FLIGHT
    FAIR_SHARE
    KERNEL_IN_FLIGHT
    ADAPTIVE

cdef tuple REASON_NAMES = ("tenant_rate", "tenant_in_flight", "fair_share", "kernel_in_flight", "adaptive")
cdef tuple SCOPES = ("tenant", "tenant", "tenant", "kernel", "kernel")

cdef struct Counts:
    uint64_t shed[CLASSES * REASONS]
    uint64_t taken[CLASSES * REASONS]  # of those, told by take_shed


@cython.final
@cython.no_gc
cdef class _Tenant:
    """What is known of a tenant, and its place on the ring of them all (`older`, `newer`)."""

    cdef str name
    cdef int64_t in_flight
    cdef int64_t in_flight_max
    cdef double rate
    cdef double burst
    cdef double tokens
    cdef double refilled_at
    cdef uint64_t seen  # round in which it last asked
    cdef Counts *counts
    cdef bint untold  # it is on the shedder's list for take_shed
    cdef void *older
    cdef void *newer

    def __dealloc__(self):
        free(self.counts)

    cdef inline void refill(self, double now) noexcept:
        if self.tokens < self.burst:
            self.tokens += (now - self.refilled_at) * self.rate
            if self.tokens > self.burst:
                self.tokens = self.burst
        self.refilled_at = now

    cdef inline void unlink(self) noexcept:
        (<_Tenant>self.older).newer = self.newer
        (<_Tenant>self.newer).older = self.older

    cdef inline void link_before(self, _Tenant other) noexcept:
        self.older = other.older
        self.newer = <void *>other
        (<_Tenant>other.older).newer = <void *>self
        other.older = <void *>self


cdef struct Gradient:
    double limit
    double long_s
    double long_weight
    int64_t windows
    double sum_s
    int64_t samples
    int64_t peak
    double ends_at


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class Slot:
    """One admitted request, until it is released. A slot that is lost is released when it is collected."""

    cdef PyObject *_shedder  # these two are references that `_collect` drops
    cdef PyObject *_tenant
    cdef bint _held
    cdef readonly int admission

    def __init__(self):
        raise TypeError("a slot is made by Shedder.acquire")

    def __reduce__(self):
        raise TypeError("a slot can't be copied or pickled")

    @property
    def tenant(self):
        """Whose request it is."""
        return "" if self._tenant == NULL else (<_Tenant>self._tenant).name

    @property
    def released(self):
        """Whether it has been given back."""
        return not self._held


cdef destructor _to_free_list = (<PyTypeObject *>Slot).tp_dealloc


cdef void _collect(Slot slot) noexcept:
    """In place of a __dealloc__ and fields that Cython counts, which cost 9 of the 60 ns of acquire and release.

    Cython would put the current exception aside, which nothing here looks at, and set each field to None and back.
    """
    if slot._held:
        (<Shedder>slot._shedder)._give_back(slot)
    Py_XDECREF(slot._shedder)
    Py_XDECREF(slot._tenant)
    _to_free_list(<PyObject *>slot)


(<PyTypeObject *>Slot).tp_dealloc = <destructor>_collect


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Shed:
    """Why a request was not admitted, and when to come back.

    Attributes:
        reason: "tenant_rate", "tenant_in_flight", "fair_share", "kernel_in_flight" or "adaptive".
        scope: whose limit it was, "tenant" or "kernel".
        retry_after_ms: milliseconds; exact for a rate (up to a day), else from the mean latency.
        limit: that was met: requests a second for a rate, else requests in flight.
        remaining: what is left of it.
    """

    cdef readonly str reason
    cdef readonly str scope
    cdef readonly int64_t retry_after_ms
    cdef readonly double limit
    cdef readonly int64_t remaining

    def __init__(self):
        raise TypeError("made by Shedder.acquire")

    def __repr__(self):
        return f"<Shed {self.reason}, limit {self.limit:g}, retry in {self.retry_after_ms} ms>"


cdef inline int64_t _near(double limit) noexcept:
    """Requests in flight from which on only tenants under their fair share are admitted."""
    cdef int64_t tenth = <int64_t>limit // 10
    return <int64_t>limit - (tenth if tenth > 1 else 1)


cdef inline double _fair_share(double limit, int64_t active) noexcept:
    cdef double share = limit / <double>(active if active > 2 else 2)
    return share if share > 1.0 else 1.0


@cython.final
cdef class Shedder:
    """Admission control for every request.

    Time never goes back: a clock that steps backwards counts as standing still until it has caught up.

    Args:
        max_total: requests in flight of all tenants together.
        max_per_tenant: requests in flight of one tenant.
        rate: requests a second of one tenant; 0: as many as it likes.
        burst: requests that it may make at once; 0: one second's worth, at least 1.
        adaptive: also limit what each class has in flight by its latency.
        clock: gives monotonic seconds; None: CLOCK_MONOTONIC, read in C, and what the processor has counted since.

    Raises:
        ValueError: a limit is under 1, or a rate or burst is negative, not finite, or (a burst) between 0 and 1.
    """

    cdef dict _tenants
    cdef dict _own_limits  # tenant -> (in flight, rate, burst)
    cdef tuple _limits
    cdef _Tenant _ring  # of all tenants; its `newer` is the next to be sent away, unless it has something in flight
    cdef list _untold
    cdef object _clock
    cdef solo_clock _machine_clock
    cdef double _latest
    cdef int64_t _max_total
    cdef int64_t _near_total  # from here on fair shares count
    cdef int64_t _in_flight
    cdef int64_t _active
    cdef int64_t _class_in_flight[CLASSES]
    cdef double _latency_s[CLASSES]
    cdef bint _adaptive
    cdef Gradient _gradients[CLASSES]
    cdef uint64_t _admitted
    cdef uint64_t _shed
    cdef uint64_t _round
    cdef Counts _departed  # of tenants that were sent away

    def __cinit__(
        self,
        *,
        int64_t max_total,
        int64_t max_per_tenant,
        double rate=0,
        double burst=0,
        bint adaptive=False,
        clock=None,
    ):
        cdef int admission
        if max_total < 1:
            raise ValueError(f"max_total is {max_total}; give 1 or more")
        self._limits = _checked(max_per_tenant, rate, burst)
        self._tenants = {}
        self._own_limits = {}
        self._untold = []
        self._ring = _Tenant.__new__(_Tenant)
        self._ring.older = self._ring.newer = <void *>self._ring
        self._clock = clock
        self._latest = -INFINITY
        self._max_total = max_total
        self._near_total = _near(<double>max_total)
        self._adaptive = adaptive
        for admission in range(CLASSES):
            self._latency_s[admission] = -1.0
            self._gradients[admission].limit = <double>max_total

    # -- time --------------------------------------------------------------------------------------------------------

    cdef double _now(self) except? -1:
        cdef double now = solo_monotonic_s(&self._machine_clock) if self._clock is None else self._clock()
        if now > self._latest:
            self._latest = now
        return self._latest

    # -- tenants -----------------------------------------------------------------------------------------------------

    cdef _Tenant _enter(self, str name):
        """Begin to know a tenant: idle, its bucket full."""
        cdef _Tenant tenant = _Tenant.__new__(_Tenant)
        limits = self._own_limits.get(name, self._limits)
        cdef double now = self._now()
        tenant.name = name
        tenant.in_flight_max, tenant.rate, tenant.burst = limits
        tenant.tokens = tenant.burst
        tenant.refilled_at = now
        tenant.seen = self._round
        if len(self._tenants) >= KEPT_IDLE:
            self._send_away_one(now)
            self._send_away_one(now)
        self._tenants[name] = tenant
        tenant.link_before(self._ring)
        return tenant

    cdef int _send_away_one(self, double now) except -1:
        """Forget the tenant whose turn on the ring it is, or pass it by.

        With two turns for each new tenant, there are no more idle ones than busy ones, or KEPT_IDLE of both.
        """
        cdef _Tenant tenant = <_Tenant>self._ring.newer
        if tenant is not self._ring and not self._forget(tenant, now):
            tenant.unlink()
            tenant.link_before(self._ring)
        return 0

    cdef bint _forget(self, _Tenant tenant, double now) except -1:
        """Forget a tenant, unless something is in flight, or its bucket or its counts still say something."""
        cdef int at
        if tenant.in_flight or tenant.untold:
            return False
        if tenant.rate > 0 and tenant.tokens + (now - tenant.refilled_at) * tenant.rate < tenant.burst:
            return False
        if tenant.counts != NULL:
            for at in range(CLASSES * REASONS):
                self._departed.shed[at] += tenant.counts.shed[at]
        tenant.unlink()
        del self._tenants[tenant.name]
        return True

    cdef int _send_away_idle(self) except -1:
        """Forget the tenants that did nothing since the call before the last one."""
        cdef double now = self._now()
        cdef void *at = self._ring.newer
        cdef _Tenant tenant
        while at != <void *>self._ring:
            tenant = <_Tenant>at
            at = tenant.newer
            if tenant.seen + 1 < self._round:
                self._forget(tenant, now)
        self._round += 1
        return 0

    def set_tenant(self, str tenant not None, *, int64_t max_in_flight, double rate, double burst):
        """Give a tenant limits of its own, from now on.

        Raises:
            ValueError: as the constructor.
        """
        cdef tuple limits = _checked(max_in_flight, rate, burst)
        cdef _Tenant known = self._tenants.get(tenant)
        cdef double now = self._now()
        cdef bint full
        if known is not None:
            known.refill(now)
            full = known.rate == 0 or known.tokens == known.burst
            known.in_flight_max, known.rate, known.burst = limits
            # A full bucket stays full, so that it makes no difference whether an idle tenant was forgotten.
            known.tokens = known.burst if full else min(known.tokens, known.burst)
            known.refilled_at = now
        self._own_limits[tenant] = limits

    # -- requests ----------------------------------------------------------------------------------------------------

    def acquire(self, str tenant not None, int admission):
        """A slot for one request of a tenant, or the reason why not.

        Raises:
            ValueError: there is no such admission class.
        """
        cdef PyObject *hit
        cdef _Tenant known
        cdef Slot slot
        cdef double now
        if not 0 <= admission < CLASSES:
            raise ValueError(f"admission class {admission} does not exist; give one from 0 (control) to 4 (stream)")
        hit = PyDict_GetItemWithError(self._tenants, tenant)
        known = self._enter(tenant) if hit == NULL else <_Tenant>hit
        if admission != 0:
            if known.rate > 0:
                now = self._now()
                known.refill(now)
                if known.tokens < 1.0:
                    return self._refuse(known, admission, TENANT_RATE)
            if known.in_flight >= known.in_flight_max:
                return self._refuse(known, admission, TENANT_IN_FLIGHT)
            if self._in_flight >= self._near_total:
                if <double>(known.in_flight + 1) > _fair_share(<double>self._max_total, self._active_with(known)):
                    return self._refuse(known, admission, FAIR_SHARE)
                if self._in_flight >= self._max_total:
                    return self._refuse(known, admission, KERNEL_IN_FLIGHT)
            if self._adaptive and self._slowed(known, admission):
                return self._refuse(known, admission, ADAPTIVE)
            if known.rate > 0:
                known.tokens -= 1.0
        slot = Slot.__new__(Slot)
        Py_INCREF(self)
        Py_INCREF(known)
        slot._shedder = <PyObject *>self
        slot._tenant = <PyObject *>known
        slot._held = True
        slot.admission = admission
        if known.in_flight == 0:
            self._active += 1
        known.in_flight += 1
        known.seen = self._round
        self._in_flight += 1
        self._class_in_flight[admission] += 1
        self._admitted += 1
        return slot

    cdef inline int64_t _active_with(self, _Tenant tenant) noexcept:
        return self._active + (1 if tenant.in_flight == 0 else 0)

    cdef bint _slowed(self, _Tenant tenant, int admission) noexcept:
        cdef double limit = self._gradients[admission].limit
        cdef int64_t used = self._class_in_flight[admission]
        if used < _near(limit):
            return False
        return used >= <int64_t>limit or <double>(tenant.in_flight + 1) > _fair_share(limit, self._active_with(tenant))

    cdef Shed _refuse(self, _Tenant tenant, int admission, Reason reason):
        cdef Shed shed = Shed.__new__(Shed)
        cdef double limit
        cdef double used
        if tenant.counts == NULL:
            tenant.counts = <Counts *>calloc(1, sizeof(Counts))
            if tenant.counts == NULL:
                raise MemoryError("no memory to count what was shed")
        if not tenant.untold:
            self._untold.append(tenant)
            tenant.untold = True
        tenant.counts.shed[admission * REASONS + <int>reason] += 1
        tenant.seen = self._round
        self._shed += 1
        shed.reason = <str>REASON_NAMES[<int>reason]
        shed.scope = <str>SCOPES[<int>reason]
        if reason == TENANT_RATE:
            shed.limit = tenant.rate
            shed.retry_after_ms = _whole_ms((1.0 - tenant.tokens) / tenant.rate)
            return shed
        if reason == TENANT_IN_FLIGHT:
            limit, used = <double>tenant.in_flight_max, <double>tenant.in_flight
        elif reason == FAIR_SHARE:
            limit, used = _fair_share(<double>self._max_total, self._active_with(tenant)), <double>tenant.in_flight
        elif reason == KERNEL_IN_FLIGHT:
            limit, used = <double>self._max_total, <double>self._in_flight
        else:
            limit, used = self._gradients[admission].limit, <double>self._class_in_flight[admission]
        shed.limit = limit
        shed.remaining = <int64_t>(limit - used) if limit > used else 0
        shed.retry_after_ms = self._advice_ms(admission)
        return shed

    cdef int64_t _advice_ms(self, int admission) noexcept:
        """When a slot of this class is likely to be free again."""
        cdef int64_t wait_ms
        if self._latency_s[admission] < 0:
            return RETRY_MS_DEFAULT
        wait_ms = _whole_ms(self._latency_s[admission])
        return RETRY_MS_MIN if wait_ms < RETRY_MS_MIN else RETRY_MS_MAX if wait_ms > RETRY_MS_MAX else wait_ms

    def release(self, Slot slot not None, double latency_s=-1.0):
        """Give a slot back. Again, or with a slot that was never acquired: nothing happens.

        Args:
            latency_s: seconds that the request took; negative: don't learn from it (streams).

        Raises:
            ValueError: another shedder gave this slot.
        """
        cdef int admission = slot.admission
        cdef int64_t in_flight = self._class_in_flight[admission]
        if not slot._held:
            return
        if slot._shedder != <PyObject *>self:
            raise ValueError("the slot belongs to another shedder; release it there")
        self._give_back(slot)  # first: an injected clock may raise
        if not 0 <= latency_s < INFINITY:
            return
        if self._latency_s[admission] < 0:
            self._latency_s[admission] = latency_s
        else:
            self._latency_s[admission] += (latency_s - self._latency_s[admission]) * LATENCY_WEIGHT
        if self._adaptive:
            self._learn(&self._gradients[admission], in_flight, latency_s, self._now())

    cdef void _give_back(self, Slot slot) noexcept:
        cdef _Tenant tenant = <_Tenant>slot._tenant
        slot._held = False
        self._in_flight -= 1
        self._class_in_flight[slot.admission] -= 1
        tenant.in_flight -= 1
        if tenant.in_flight == 0:
            self._active -= 1

    cdef void _learn(self, Gradient *gradient, int64_t in_flight, double latency_s, double now) noexcept:
        """Gradient2: at the end of each window move the limit by the ratio of long- to short-term latency."""
        cdef double short_s, slope, wanted, weight
        if gradient.samples == 0:
            gradient.ends_at = now + WINDOW_S
            gradient.peak = 0
            gradient.sum_s = 0.0
        gradient.samples += 1
        gradient.sum_s += latency_s
        if in_flight > gradient.peak:
            gradient.peak = in_flight
        if now < gradient.ends_at or gradient.samples < WINDOW_SAMPLES_MIN:
            return
        short_s = gradient.sum_s / <double>gradient.samples
        gradient.samples = 0
        gradient.windows += 1
        if gradient.windows <= LONG_WARM_UP:
            gradient.long_s += (short_s - gradient.long_s) / <double>gradient.windows
        else:
            weight = 2.0 / (LONG_WINDOWS + 1.0)
            gradient.long_s += (short_s - gradient.long_s) * weight
        if gradient.long_s > 2.0 * short_s:
            gradient.long_s *= 0.9  # the load is over: don't wait for the slow mean to find out
        if <double>gradient.peak < gradient.limit / 2.0 or short_s <= 0.0:
            return  # it was not the limit that kept requests back
        slope = gradient.long_s / short_s
        slope = 0.5 if slope < 0.5 else 1.0 if slope > 1.0 else slope
        wanted = gradient.limit * slope + QUEUE
        wanted = gradient.limit * (1.0 - SMOOTHING) + wanted * SMOOTHING
        if wanted < ADAPTIVE_LIMIT_MIN:
            wanted = ADAPTIVE_LIMIT_MIN
        gradient.limit = wanted if wanted < <double>self._max_total else <double>self._max_total

    # -- figures -----------------------------------------------------------------------------------------------------

    @property
    def in_flight(self):
        """Requests in flight, of all tenants."""
        return self._in_flight

    def tenant_in_flight(self, str tenant not None):
        """Requests in flight of one tenant."""
        cdef _Tenant known = self._tenants.get(tenant)
        return 0 if known is None else known.in_flight

    def stats(self):
        """Figures since the start.

        "in_flight", "tenants" (that are in memory), "admitted", "shed", "shed_by" ((tenant, class, reason) -> count; idle
        tenants that were sent away are counted together as tenant "*"), and "adaptive_limits" (class -> requests in
        flight; empty unless adaptive).
        """
        cdef _Tenant tenant
        cdef dict shed_by = {}
        cdef int admission
        for tenant in self._tenants.values():
            if tenant.counts != NULL:
                _tell(shed_by, tenant.name, tenant.counts, False)
        _tell(shed_by, "*", &self._departed, False)
        limits = {admission: self._gradients[admission].limit for admission in range(1, CLASSES) if self._adaptive}
        return {
            "in_flight": self._in_flight,
            "tenants": len(self._tenants),
            "admitted": self._admitted,
            "shed": self._shed,
            "shed_by": shed_by,
            "adaptive_limits": limits,
        }

    def take_shed(self):
        """What was shed since the last call: (tenant, class, reason) -> count.

        Call it about once a second: it also forgets the tenants that have been idle since the call before the last.
        """
        cdef _Tenant tenant
        cdef dict shed_by = {}
        for tenant in self._untold:
            _tell(shed_by, tenant.name, tenant.counts, True)
            tenant.untold = False
        self._untold = []
        self._send_away_idle()
        return shed_by


cdef tuple _checked(int64_t max_in_flight, double rate, double burst):
    if max_in_flight < 1:
        raise ValueError(f"the limit of requests in flight is {max_in_flight}; give 1 or more")
    if not 0 <= rate < INFINITY:
        raise ValueError(f"rate is {rate}; give requests a second, or 0 for no limit")
    if not 0 <= burst < INFINITY or 0 < burst < 1:
        raise ValueError(f"burst is {burst}; give 1 request or more, or 0 for one second's worth")
    if burst == 0:
        burst = rate if rate > 1 else 1.0
    return max_in_flight, rate, burst


cdef inline int64_t _whole_ms(double seconds) noexcept:
    cdef double ms = ceil(seconds * 1000.0)
    return 1 if ms < 1 else <int64_t>ms if ms < RATE_RETRY_MS_MAX else RATE_RETRY_MS_MAX


cdef int _tell(dict shed_by, str tenant, Counts *counts, bint only_new) except -1:
    cdef int at
    cdef uint64_t count
    for at in range(CLASSES * REASONS):
        count = counts.shed[at] - (counts.taken[at] if only_new else 0)
        if count:
            shed_by[(tenant, at // REASONS, REASON_NAMES[at % REASONS])] = count
        if only_new:
            counts.taken[at] = counts.shed[at]
    return 0
