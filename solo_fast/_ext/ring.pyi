from collections.abc import Generator
from typing import Any, final

class Overrun(Exception):
    """A cursor lagged: the entries `first` to `last` were overwritten before it read them.

    Fetch them from the store; the cursor now stands behind `last`.
    """

    first: int
    last: int
    def __init__(self, first: int, last: int) -> None: ...

@final
class Ring:
    """The last `capacity` items, with gap-free 64-bit ids. Not thread-safe: everything happens on the loop's thread.

    Items are held by references that the cycle collector doesn't look into: an item must not refer to its ring.

    Raises:
        ValueError: capacity is no power of two, or first_id is under 1 or over 2**62.
    """

    def __init__(self, capacity: int, first_id: int = 1) -> None: ...
    @property
    def capacity(self) -> int:
        """Entries that are held at most."""
    @property
    def next_id(self) -> int:
        """Id that the next append gets."""
    @property
    def oldest_id(self) -> int:
        """Smallest id still held; `next_id` when there is none."""
    def append(self, item: object, tenant: str, subject: str) -> int:
        """Add an item and return its id. Nobody is woken: call `wake` after the batch."""
    def drop(self, until_id: int) -> None:
        """Let go of the entries up to `until_id`, as if they had been overwritten: cursors behind them are overrun.

        Args:
            until_id: of an entry that was appended; one that is no longer held changes nothing.

        Raises:
            ValueError: there is no such entry yet.
        """
    def wake(self, matching_only: bool = False) -> None:
        """Wake the waiting cursors, each once; the writer calls this after a batch.

        Args:
            matching_only: leave asleep whose filter matches nothing of what was appended since: they are moved past it,
                so that other tenants' floods neither wake them nor overrun them.
        """
    def cursor(self, since_id: int | None = None, tenant: str | None = None, subject: str | None = None) -> Cursor:
        """A reader of its own.

        Args:
            since_id: last id that the reader knows; None: from now on. An id that was not given out yet counts as now.
            tenant: only its items; None: everybody's; "" is a tenant of its own (the system).
            subject: only items on it; None: any.

        Raises:
            ValueError: since_id is negative.
        """

class _Wait:
    def __await__(self) -> Generator[Any]: ...

@final
class Cursor:
    """A place in the ring, and a filter. Made by `Ring.cursor`."""

    @property
    def position(self) -> int:
        """Id of the last entry that was passed over, whether it matched or not."""
    def read(self, limit: int = 256) -> list[Any]:
        """The next matching items in order, `limit` at most; [] when caught up.

        Raises:
            Overrun: entries were lost; once per overrun, the next read goes on behind them.
            ValueError: the cursor is closed, or the limit is under 1.
        """
    def wait(self) -> _Wait:
        """An awaitable that ends when there may be something to read: at once if entries were appended behind
        `position`, else after the next `Ring.wake`. It can be cancelled at any time.

        Raises:
            ValueError: the cursor is closed.
        """
    def close(self) -> None:
        """Let go of the ring; whoever waits on this cursor is woken. Closing twice is fine."""
