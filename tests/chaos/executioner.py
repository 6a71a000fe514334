"""Kills a kernel at a chosen moment, from a process of its own, which nothing delays by as much as a write takes.

    python executioner.py PID WAL DELAY_S IN_COMMIT AFTER_S

waits DELAY_S seconds; where IN_COMMIT is 1, also until the write-ahead log WAL is written to, and AFTER_S from there.
"""

import os
import signal
import sys
import time

WRITE_SECONDS_MAX = 1.0


def main(pid: int, wal: str, delay_s: float, in_commit: int, after_s: float) -> None:
    time.sleep(delay_s)
    if in_commit:
        before, deadline = os.stat(wal).st_mtime_ns, time.monotonic() + WRITE_SECONDS_MAX
        while os.stat(wal).st_mtime_ns == before and time.monotonic() < deadline:
            pass
        until = time.perf_counter() + after_s
        while time.perf_counter() < until:
            pass
    os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
