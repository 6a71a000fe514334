"""What a service does when there is nothing to do: it gives pages back that equal the zygote's again (_ext/pages.pyx).

That takes a service some 0.3 ms, and its next call as much again, because it needs some of them. So it waits a while;
one that is called more often than that keeps what it has.
"""

from __future__ import annotations

import _thread

from solo_fast._ext import pages

FIRST_IDLE_S = 1.0  # after it has come up, which takes pages that it never needs again
IDLE_S = 5.0  # after a message


def give_back() -> None:
    """Not while there are other threads: they might write to a page between its comparison and its end."""
    if _thread._count() == 0:
        pages.give_back()
