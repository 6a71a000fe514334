"""What is kept of a swap for as long as it can be taken back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from solo_fast.domain.events import Event
from solo_fast.runtime.check.examination import Examination
from solo_fast.runtime.spec import Spec
from solo_fast.runtime.swap.keepsake import Keepsake


@dataclass(slots=True)
class Probation:
    """The time in which a swap can be taken back.

    Attributes:
        former: the version before it; persist: whether that one kept its state; examination: its check's findings.
        state: of the moment of the swap; what happened since is lost if it is taken back.
        cause: the event of the swap.
        end: of the time; None while the swap is not on record yet.
    """

    former: Spec
    persist: bool
    examination: Examination
    state: Keepsake
    cause: Event
    end: asyncio.TimerHandle | None = None
