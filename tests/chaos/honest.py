"""What an honest service does. Deployed as it stands; each function says "done", or raises."""

import asyncio
import concurrent.futures
import fcntl
import multiprocessing
import os
import selectors
import socket
import sqlite3
import tempfile
import time

MUCH = bytes(range(256)) * 16384  # more than a socket takes at once


def files():
    with tempfile.NamedTemporaryFile(dir=".") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX)
        file.write(MUCH)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, 8192)
        with os.fdopen(os.dup(file.fileno()), "rb") as again:
            os.dup2(again.fileno(), 70)
            again.seek(0)
            assert again.read() == MUCH
        os.close(70)
    return "done"


def blocking():
    """By each of the calls that libraries use: FIONBIO, and F_SETFL after F_GETFL."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    assert not os.get_blocking(read_end)
    flags = fcntl.fcntl(write_end, fcntl.F_GETFL)
    fcntl.fcntl(write_end, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    assert not os.get_blocking(write_end)
    fcntl.fcntl(read_end, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    os.close(read_end)
    os.close(write_end)
    return "done"


def pairs():
    ours, theirs = socket.socketpair()
    with ours, theirs, selectors.DefaultSelector() as selector:
        theirs.setblocking(False)
        selector.register(theirs, selectors.EVENT_READ)
        ours.sendall(b"word")
        assert selector.select(5)
        assert theirs.recv(10) == b"word"
        assert not theirs.getblocking()
    return "done"


def processes():
    """Processes and pipes of multiprocessing, of both kinds."""
    context = multiprocessing.get_context("fork")
    for duplex in (True, False):
        reader, writer = context.Pipe(duplex)
        process = context.Process(target=lambda writer=writer: writer.send({"from": "below", "much": MUCH}))
        process.start()
        assert reader.poll(20)
        assert reader.recv() == {"from": "below", "much": MUCH}
        process.join()
        assert process.exitcode == 0
    process = context.Process(target=lambda: time.sleep(100))
    process.start()
    process.terminate()
    process.join()
    return "done"


async def streams():
    """asyncio's streams, whose buffers grow when the other side is slow; and its threads."""
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=ours)
    reader, answers = await asyncio.open_connection(sock=theirs)
    writer.writelines([MUCH, MUCH])
    writer.write(b"end")
    got = await reader.readexactly(2 * len(MUCH) + 3)
    assert got == MUCH + MUCH + b"end"
    assert await asyncio.to_thread(len, MUCH) == len(MUCH)
    for one in (writer, answers):
        one.close()
    return "done"


def executors():
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(len, [MUCH] * 8)) == 8 * len(MUCH)
    return "done"


def sqlite():
    with sqlite3.connect("data.db") as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE IF NOT EXISTS t (x)")
        database.execute("INSERT INTO t VALUES (1)")
    database.close()
    return "done"


async def conversation():
    """A server and a client by TCP, with more than a socket takes at once."""

    async def answer(reader, writer):
        writer.write((await reader.readline()) + MUCH)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"word\n")
        assert await reader.read(-1) == b"word\n" + MUCH
        writer.close()
    return "done"
