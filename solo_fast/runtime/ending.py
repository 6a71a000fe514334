"""How a process ended."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended: an exit code, or the signal that ended it; both None where nobody could say."""

    exit_code: int | None
    signal: str | None

    @classmethod
    def of(cls, status: int | None) -> Ending:
        if status is None:
            return cls(None, None)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            known = number in signal.valid_signals()
            return cls(None, signal.Signals(number).name if known and number < signal.SIGRTMIN else f"signal {number}")
        return cls(os.WEXITSTATUS(status), None)

    def __str__(self) -> str:
        if self.signal:
            return f"was ended by {self.signal}"
        return f"exited with code {self.exit_code}" if self.exit_code is not None else "ended"


class EndedEarlyError(Exception):
    """The process ended before it had answered."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(str(ending))
        self.ending = ending
