"""A background worker: `main` runs for as long as the service lives, beside the functions that can be called."""

import asyncio
import time

beats = []


async def main(solo):
    await solo.register("heartbeat", version="1.0", metadata={"kind": "worker"})
    while True:
        beats.append(time.time())
        del beats[:-100]
        solo.log("beat", count=len(beats))
        await asyncio.sleep(0.2)


def count() -> int:
    return len(beats)


def crash() -> None:
    """End the process the hard way, to see it restarted."""
    raise SystemExit(3)
