"""The event store's figures, each beside its floor and its peers in the same run: `./build.sh bench` prints them.

    python -m bench.store [--rounds N] [--replay EVENTS]

Durable events a second with 1, 16 and 256 writers that each wait for their event before the next one: Solo's store
(in its process, as its operations use it), bare SQLite that commits as many rows at once as there are writers, Redis
Streams with appendfsync always and NATS JetStream (both on loopback, started and ended here; skipped with a word where
they are not installed). Then what an emit costs up to the ring, and how fast a million events are read and verified.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import shutil
import socket
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from bench.measure import in_turn, versus
from solo_fast._ext.ring import Ring
from solo_fast.domain.events import Event
from solo_fast.store import chain, database
from solo_fast.store.eventstore import FOLD_AFTER_S, EventStore

WRITERS = (1, 16, 256)
SECONDS = 0.2
"""How long one measurement writes; that many events of it count which are durable by then."""

WARM_UP_S = 2 * FOLD_AFTER_S
"""How long a store has been writing by then. A write-ahead log that still grows makes each fsync take half as long
again; one that has been folded in once is written over, and stays so for as long as a kernel runs."""

PAYLOAD = {"version": 7, "kind": "stateful", "pid": 12345, "text": "a payload as services have it"}

UNSYNCED = "Solo with no fsync, for what has none"


def event() -> Event:
    return Event.new("acme", "service_started", "api", PAYLOAD)


async def rate(writers: int, write: Callable[[], Awaitable[Any]], seconds: float = SECONDS) -> float:
    """Events a second of so many writers that each wait for their event."""
    done = 0
    end = time.perf_counter() + seconds

    async def writer() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await write()
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(writer() for _ in range(writers)))
    return done / (time.perf_counter() - began)


# -- contenders ------------------------------------------------------------------------------------------------------


async def solo(writers: int, folder: Path, *, synced: bool = True) -> float:
    store = EventStore.open(folder / "solo.db")
    if not synced:
        store._connection.execute("PRAGMA synchronous = OFF")
    store.start(asyncio.get_running_loop())
    try:
        await rate(writers, lambda: store.record(event()), WARM_UP_S)
        return await rate(writers, lambda: store.record(event()))
    finally:
        await store.close()


async def solo_without_fsync(writers: int, folder: Path) -> float:
    """As durable as a JetStream that does not sync: an acknowledged event survives the process, not the machine."""
    return await solo(writers, folder, synced=False)


async def bare_sqlite(writers: int, folder: Path) -> float:
    """The same table, indexes and settings, filled by the fastest that the sqlite3 module has for so many rows."""
    connection = database.connect(folder / "bare.db")
    done = 0
    for seconds in (WARM_UP_S, SECONDS):
        database.fold_log(connection)
        first, began = done, time.perf_counter()
        while time.perf_counter() - began < seconds:
            done = _write_rows(connection, writers, done)
        taken = time.perf_counter() - began
    connection.close()
    return (done - first) / taken


def _write_rows(connection: sqlite3.Connection, count: int, newest: int) -> int:
    now_ms, link = time.time_ns() // 1_000_000, bytes(32)
    rows = []
    for number in range(newest + 1, newest + count + 1):
        one = event()
        rows.append((number, now_ms, 1, one.tenant, one.event_type, one.subject, one.payload, 0, link))
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    connection.execute("COMMIT")
    return newest + count


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def started(command: list[str], port: int) -> Iterator[None]:
    """A server of our own, accepting on loopback; ended at the end."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(500):
                with socket.socket() as sock:
                    if sock.connect_ex(("127.0.0.1", port)) == 0:
                        break
                if process.poll() is not None:
                    raise RuntimeError(f"{command[0]} ended with {process.returncode}")
                time.sleep(0.01)
            yield
        finally:
            process.terminate()
            process.wait()


async def redis_streams(port: int, writers: int) -> float:
    import redis.asyncio as redis

    pool = redis.ConnectionPool(host="127.0.0.1", port=port, max_connections=writers)
    client = redis.Redis(connection_pool=pool)

    async def write() -> None:
        one = event()
        fields = {"tenant": one.tenant, "type": one.event_type, "subject": one.subject, "payload": one.payload}
        await client.xadd("events", fields)

    try:
        await asyncio.gather(*(client.ping() for _ in range(writers)))
        return await rate(writers, write)
    finally:
        await client.aclose()
        await pool.aclose()


def redis_in_c(port: int, writers: int) -> float:
    """The same by Redis's own load generator, so that no client in Python is in the way."""
    fields = ["tenant", "acme", "type", "service_started", "subject", "api", "payload", event().payload.decode()]
    count = {1: 500, 16: 5000, 256: 40_000}[writers]
    command = ["redis-benchmark", "-p", str(port), "-c", str(writers), "-n", str(count), "-q"]
    ended = subprocess.run([*command, "XADD", "events", "*", *fields], capture_output=True, text=True, check=True)
    found = re.findall(r"([\d.]+) requests per second", ended.stdout)
    return float(found[-1])


async def jetstream(port: int, writers: int) -> float:
    import nats

    client = await nats.connect(f"nats://127.0.0.1:{port}")
    stream = client.jetstream(timeout=30)
    try:
        await stream.add_stream(name="events", subjects=["events.*"])
        return await rate(writers, lambda: stream.publish("events.api", event().payload))
    finally:
        await client.close()


# -- the table -------------------------------------------------------------------------------------------------------


def servers(stack: contextlib.ExitStack, folder: Path) -> dict[str, Callable[[int], float]]:
    """The peers that can be had, by name."""
    found: dict[str, Callable[[int], float]] = {}
    have_redis, have_nats = shutil.which("redis-server"), shutil.which("nats-server")
    if have_redis and importable("redis"):
        port = free_port()
        data = folder / "redis"
        data.mkdir()
        command = [have_redis, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data), "--save", ""]
        stack.enter_context(started([*command, "--appendonly", "yes", "--appendfsync", "always"], port))
        found["Redis Streams, appendfsync always (redis-py)"] = partial(run, redis_streams, port)
        if shutil.which("redis-benchmark"):
            found["Redis Streams, appendfsync always (redis-benchmark)"] = partial(redis_in_c, port)
    else:
        print("redis-server or redis-py is not installed: skipped (apt-get install redis-server, pip install redis)")
    if have_nats and importable("nats"):
        port = free_port()
        config = folder / "nats.conf"
        config.write_text(
            f'port: {port}\nhost: "127.0.0.1"\njetstream {{ store_dir: "{folder}/nats", sync_interval: always }}'
        )
        always = subprocess.run([have_nats, "-t", "-c", str(config)], capture_output=True, check=False).returncode == 0
        if not always:
            config.write_text(f'port: {port}\nhost: "127.0.0.1"\njetstream {{ store_dir: "{folder}/nats" }}')
        stack.enter_context(started([have_nats, "-c", str(config)], port))
        kept = "sync_interval always" if always else "no fsync: this version can't"
        found[f"NATS JetStream, {kept} (nats-py)"] = partial(run, jetstream, port)
    else:
        print("nats-server or nats-py is not installed: skipped (apt-get install nats-server, pip install nats-py)")
    return found


def run(contender: Callable[[int, int], Any], port: int, writers: int) -> float:
    return uvloop.run(contender(port, writers))  # type: ignore[no-any-return]


def importable(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def throughput(rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-store-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        peers = servers(stack, folder)
        print(
            f"\ndurable events a second (medians of {rounds} rounds in turn; each ratio is the median of the rounds')"
        )
        for writers in WRITERS:
            contenders: dict[str, Callable[[int], float]] = {
                "Solo": lambda n: in_a_folder(solo, n, folder),
                "bare SQLite, as many rows a commit": lambda n: in_a_folder(bare_sqlite, n, folder),
                UNSYNCED: lambda n: in_a_folder(solo_without_fsync, n, folder),
                **peers,
            }
            figures: dict[str, list[float]] = {name: [] for name in contenders}
            for _ in range(rounds):
                for contender in random.sample(list(contenders), len(contenders)):
                    os.sync()  # nobody pays for what another one has left to the disk
                    figures[contender].append(contenders[contender](writers))
            print(f"  {writers} writer{'s' if writers > 1 else ''}")
            for contender, values in figures.items():
                equal = figures[UNSYNCED if "no fsync" in contender else "Solo"]
                ratio = statistics.median(ours / theirs for ours, theirs in zip(equal, values, strict=True))
                said = "" if contender in ("Solo", UNSYNCED) else f"   Solo has {ratio:6.2f} times that"
                print(f"    {contender:<62}{statistics.median(values):12,.0f}{said}", flush=True)


def in_a_folder(contender: Callable[[int, Path], Awaitable[float]], writers: int, folder: Path) -> float:
    """A fresh folder each time, so that nobody's file grows from round to round."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        return uvloop.run(contender(writers, Path(fresh)))  # type: ignore[arg-type]


# -- emit, replay, verify --------------------------------------------------------------------------------------------


def emit_to_ring() -> None:
    """Making an event (its payload encoded) and appending it to the ring; a thousand a measurement."""
    import orjson

    ring = Ring(65_536)

    def emit() -> None:
        for _ in range(1000):
            one = event()
            ring.append(one, one.tenant, one.subject)

    def encode() -> None:
        for _ in range(1000):
            orjson.dumps(PAYLOAD)

    ours, floor = ([seconds / 1000 for seconds in times] for times in in_turn(200, emit, encode))
    print()
    versus(
        "emit to the ring, encoding included (goal: under 2 us)", ours, "orjson.dumps of the payload alone", floor, "us"
    )


def replay(events: int) -> None:
    """How fast a log that is on disk comes back through a watch, and how fast its chain is walked."""
    with tempfile.TemporaryDirectory(prefix="bench-replay-") as name:
        path = Path(name) / "events.db"

        async def fill() -> None:
            store = EventStore.open(path)
            store.start(asyncio.get_running_loop())
            for first in range(0, events, 1000):
                await store.record(*(event() for _ in range(min(1000, events - first))))
            await store.close()

        uvloop.run(fill())

        async def watched() -> None:
            store = EventStore.open(path)
            store.start(asyncio.get_running_loop())
            async for some in store.watch("acme", since_id=0):
                if some[-1].id == events:
                    break
            await store.close()

        def bare() -> None:
            connection = sqlite3.connect(path)
            columns = "id, timestamp_ms, tenant, event_type, subject, payload, causation_id"
            sql = f"SELECT {columns} FROM events WHERE tenant = ? ORDER BY id"
            assert sum(1 for _ in connection.execute(sql, ("acme",))) == events
            connection.close()

        def verified() -> None:
            connection = database.connect_to_read(path)
            assert chain.verify(connection).events == events
            connection.close()

        watch_s, bare_s, verify_s = (
            statistics.median(times) for times in in_turn(3, lambda: uvloop.run(watched()), bare, verified, warm_up=0)
        )
        print(f"replay of {events:,} events, oldest first")
        print(f"  watch from the first to the last      {events / watch_s:12,.0f} events/s")
        print(f"  beside a bare SELECT of the same rows {events / bare_s:12,.0f} rows/s (ratio {bare_s / watch_s:.2f})")
        print(f"  the chain verified                    {events / verify_s:12,.0f} events/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--replay", type=int, default=1_000_000, metavar="EVENTS")
    asked = parser.parse_args()
    throughput(asked.rounds)
    emit_to_ring()
    replay(asked.replay)


if __name__ == "__main__":
    main()
