"""A service's own state on its way to a successor or to the store, as its process packs and unpacks it.

Pickle carries what Python has, types and shared references included, and is code execution for whoever unpacks it:
it is read only in a process of the tenant that wrote it, and to the kernel it is bytes.
"""

from __future__ import annotations

import _pickle as pickle  # what pickle.py gives too, without its own pages
import heapq
import time
from typing import Any

from solo_fast.runtime.frames import Kind
from solo_fast.runtime.inside import Link

Pending = list[tuple[float, Any]]
"""Timers that have not fired: seconds left, and the message."""

_PROTOCOL = 5


class StateError(Exception):
    """The state can't be packed or is too large; the message says what to do."""


def pack(state: Any, timers: Pending, limit: int) -> bytes:
    """State and timers as bytes.

    Args:
        limit: most bytes it may have.

    Raises:
        StateError: pickle can't carry it, or it is over the limit.
    """
    try:
        packed = pickle.dumps((state, timers), _PROTOCOL)
    except Exception as error:
        raise StateError(_culprit(state, error)) from error
    if len(packed) > limit:
        raise StateError(
            f"the state has {len(packed)} bytes, more than limits.max_state_bytes ({limit}): keep less in it, have "
            "get_state() return what matters, or raise the limit"
        )
    return packed


def _culprit(state: Any, error: Exception) -> str:
    """The first attribute that pickle refuses, where the state is a dict."""
    advice = "have get_state() leave it out, and make it anew in code_change() or restore()"
    for name, value in state.items() if type(state) is dict else ():
        try:
            pickle.dumps(value, _PROTOCOL)
        except Exception as refused:
            return f"the state can't be handed over: {name!r}: {type(refused).__name__}: {refused}; {advice}"
    return f"the state can't be handed over: {type(error).__name__}: {error}; {advice}"


def unpack(packed: bytes) -> tuple[Any, Pending]:
    """State and timers. Raises what pickle raises: a class may be gone from this version."""
    state, timers = pickle.loads(packed)
    return state, timers


class Timers:
    """The messages of `send_after` that are still to come."""

    __slots__ = ("_count", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Any]] = []
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._heap)

    @property
    def next_at(self) -> float:
        """When the next one is due, monotonic seconds; there must be one."""
        return self._heap[0][0]

    def schedule(self, seconds: float, message: Any) -> None:
        self._push(time.monotonic() + seconds, message)

    def _push(self, due: float, message: Any) -> None:
        self._count += 1  # keeps the order of equal times, and messages from being compared
        heapq.heappush(self._heap, (due, self._count, message))

    def take_due(self) -> list[Any]:
        """The messages whose time has come, in its order."""
        now = time.monotonic()
        due = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        return due

    def pending(self) -> Pending:
        now = time.monotonic()
        return [(max(0.0, due - now), message) for due, _, message in sorted(self._heap, key=lambda entry: entry[:2])]

    def adopt(self, handed: Pending) -> None:
        """Take over a former version's timers.

        A version that starts its rounds in `init` would have one more of them after each swap: a message that is
        scheduled here already absorbs an equal one, and the earlier time of the two holds.
        """
        now = time.monotonic()
        own, self._heap = sorted(self._heap, key=lambda entry: entry[:2]), []
        for seconds, message in handed:
            due = now + seconds
            for place, (time_of_own, _, mine) in enumerate(own):
                if _equal(mine, message):
                    due = min(due, time_of_own)
                    del own[place]
                    break
            self._push(due, message)
        for due, _, message in own:
            self._push(due, message)


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # user code's own __eq__
        return False


class Checkpoints:
    """When a persisting service's state goes to the kernel, and sending it there where it has changed.

    Args:
        seconds: least time between two of them; None: only when they are asked for.
        limit: most bytes of one.

    Attributes:
        due: when the next is to be taken (monotonic seconds); None while nothing has happened since the last.
    """

    __slots__ = ("_last", "_limit", "_link", "_seconds", "_sent", "due")

    def __init__(self, link: Link, seconds: float | None, limit: int) -> None:
        self._link = link
        self._seconds = seconds
        self._limit = limit
        self._last = float("-inf")
        self._sent = (0, 0)
        self.due: float | None = None

    def touched(self) -> None:
        """A message was handled, which may have changed the state."""
        if self.due is None and self._seconds is not None:
            self.due = max(time.monotonic(), self._last + self._seconds)

    def pack(self, state: Any) -> bytes:
        """The state as a checkpoint that the kernel is about to be given; raises StateError."""
        packed = pack(state, [], self._limit)
        self._sent = (len(packed), hash(packed))
        self._note_time()
        return packed

    def _note_time(self) -> None:
        self._last, self.due = time.monotonic(), None

    def send(self, state: Any) -> None:
        """Send the state if its bytes have changed; raises StateError."""
        before = self._sent
        self._note_time()  # also when it fails: no more often than the others
        packed = self.pack(state)
        if self._sent != before:
            self._link.send(Kind.CHECKPOINT, 0, packed)


def wait_for(link: Link, kinds: tuple[int, ...]) -> tuple[int, int, Any]:
    """The first frame of one of these kinds, waiting for it; the others stay where they are."""
    while True:
        for place, entry in enumerate(link.inbox):
            if entry[0] in kinds:
                del link.inbox[place]
                return entry
        link.receive()
