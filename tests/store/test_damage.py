"""Damaged, missing, foreign and unwritable files: the kernel says which file it is, and what to do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from solo_fast.domain.errors import InternalError, StoreUnavailable
from solo_fast.domain.events import Event
from solo_fast.store import chain, copies, database
from solo_fast.store.backlog import EVENTS_MAX, Backlog
from solo_fast.store.database import StoreError
from solo_fast.store.desired import NoteRestarts, RemoveService, RenewRegistration
from solo_fast.store.eventstore import EventStore
from solo_fast.store.logbook import LogBook
from solo_fast.store.writer import Commit
from tests.harness import ROOT, command, environment
from tests.store.test_eventstore import event, run


def start(data_dir: Path) -> tuple[int, str]:
    """Exit code and messages of a kernel that is not expected to come up."""
    serve = [*command(), "serve", "--data-dir", str(data_dir), "--grpc-port", "0", "--http-port", "0"]
    ended = subprocess.run(serve, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with 2,000 events, as a killed kernel leaves it: some of them only in the write-ahead log."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)

    async def work(store: EventStore) -> None:
        for first in range(0, 2000, 100):
            await store.record(*(event(n) for n in range(first, first + 100)))
        shutil.copytree(folder, tmp_path / "killed")

    run(folder / "events.db", work)
    return tmp_path / "killed"


def truncate_wal(folder: Path) -> None:
    wal = folder / "events.db-wal"
    os.truncate(wal, wal.stat().st_size // 2)


def lose_wal(folder: Path) -> None:
    (folder / "events.db-wal").unlink()


def lose_everything(folder: Path) -> None:
    for name in ("events.db", "events.db-wal", "events.db-shm"):
        (folder / name).unlink(missing_ok=True)


def empty(folder: Path) -> None:
    lose_everything(folder)
    (folder / "events.db").touch()


def corrupt_pages(folder: Path) -> None:
    with sqlite3.connect(folder / "events.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with (folder / "events.db").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for page in range(8, size // 4096, 3):
            file.seek(page * 4096)
            file.write(os.urandom(4096))


def fill_with_garbage(folder: Path) -> None:
    lose_everything(folder)
    (folder / "events.db").write_bytes(os.urandom(50_000))


def make_newer(folder: Path) -> None:
    with sqlite3.connect(folder / "events.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def make_a_folder_of_it(folder: Path) -> None:
    lose_everything(folder)
    (folder / "events.db").mkdir()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate_wal, "write-ahead log"),
        (lose_wal, "write-ahead log"),
        (lose_everything, "missing or empty"),
        (empty, "missing or empty"),
        (corrupt_pages, "is damaged"),
        (fill_with_garbage, "is damaged"),
        (make_newer, "newer Solo"),
        (make_a_folder_of_it, "can't be opened"),
    ],
)
def test_a_kernel_does_not_start_on_damage_and_says_what_to_do(
    data_dir: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(data_dir)
    code, said = start(data_dir)
    assert code == 1
    assert str(data_dir / "events.db") in said
    assert says in said
    assert any(word in said for word in ("restore", "use that version", "check the file"))


def test_without_its_head_a_database_is_taken_as_it_is(data_dir: Path) -> None:
    """The way out that the message names, and what a bare copy of the file is."""
    truncate_wal(data_dir)
    (data_dir / "events.db-head").unlink()

    async def work(store: EventStore) -> None:
        assert 0 < store.last_id < 2000
        assert await store.verify() is None
        await store.record(event())

    run(data_dir / "events.db", work)


def test_a_rewritten_end_is_found(data_dir: Path) -> None:
    path = data_dir / "events.db"

    async def work(store: EventStore) -> None:
        await store.record(event())

    shutil.copytree(data_dir, data_dir.with_name("other"))
    run(path, work)
    other = data_dir.with_name("other") / "events.db"
    run(other, work)
    shutil.copy(other, path)
    with pytest.raises(StoreError, match="not the one that was acknowledged"):
        EventStore.open(path)


@pytest.fixture
def read_only(data_dir: Path) -> Iterator[Path]:
    """A data directory on a file system that is mounted read-only."""
    mounted = data_dir.with_name("mounted")
    mounted.mkdir()
    bind = ["mount", "--bind", str(data_dir), str(mounted)]
    if os.geteuid() or subprocess.run(bind, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a folder read-only, which takes root")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(mounted)], check=True)
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def test_a_read_only_data_dir(read_only: Path) -> None:
    code, said = start(read_only)
    assert code == 1
    assert str(read_only) in said
    assert "Read-only file system" in said
    assert "--data-dir" in said


def test_a_start_notices_an_edited_event_and_goes_on(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = data_dir / "events.db"
    with sqlite3.connect(path) as edited:
        edited.execute("UPDATE events SET subject = 'x' WHERE id = 1990")
    edited.close()

    async def work(store: EventStore) -> None:
        await store.record(event())
        assert await store.verify() == 1990

    run(path, work)
    assert "solo events verify" in caplog.text


def test_a_large_database_is_checked_beside_the_work(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt_pages(data_dir)
    monkeypatch.setattr(database, "QUICK_CHECK_BYTES", 1000)

    async def work(store: EventStore) -> None:
        await until(lambda: store.damage is not None)
        assert store.damage is not None
        assert "is damaged" in store.damage.message
        with pytest.raises(StoreError, match="kernel's log"):
            await store.page("acme", 0, 1000, "nothing")

    with contextlib.suppress(StoreError):  # also fine: what each start reads was hit
        run(data_dir / "events.db", work)


# -- migrations --------------------------------------------------------------------------------------------------


def version_1(path: Path) -> None:
    """A database as the first version of Solo made it, with three events."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(f"BEGIN; {database.MIGRATIONS[0]} PRAGMA user_version = 1; COMMIT;")
    link = chain.GENESIS
    for number in range(1, 4):
        row = (number, 1_700_000_000_000 + number, number, "acme", "test.old", "a", b'{"n":%d}' % number, 0)
        link = chain.chained(link, row)
        connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, link))
    connection.close()


def test_a_database_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    version_1(path)

    async def work(store: EventStore) -> None:
        one = event()
        await store.record(one, changes=[NoteRestarts("acme", "a", 1)])
        assert one.id == 4
        assert [found.event_type for found in await store.page("acme", 0, 10)] == ["test.old"] * 3 + ["test.event"]
        assert await store.verify() is None

    run(path, work)
    connection = sqlite3.connect(path)
    assert database.schema_version(connection) == len(database.MIGRATIONS)
    connection.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.db"
    version_1(path)
    broken = (*database.MIGRATIONS, "CREATE TABLE half (a); INSERT INTO nowhere VALUES (1);")
    monkeypatch.setattr(database, "MIGRATIONS", broken)
    with pytest.raises(StoreError, match=r"events\.db can't be used: no such table: nowhere"):
        EventStore.open(path)
    connection = sqlite3.connect(path)
    assert database.schema_version(connection) == 1
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert tables == {"events", "logs"}
    assert chain.verify(connection).events == 3
    connection.close()


# -- while it runs -----------------------------------------------------------------------------------------------


class NoRoom:
    """Take the room away from a store, and give it back, by SQLite's own limit of pages."""

    def __init__(self, store: EventStore) -> None:
        self._connection = store._connection

    def __enter__(self) -> None:
        pages = self._connection.execute("PRAGMA page_count").fetchone()[0]
        self._connection.execute(f"PRAGMA max_page_count = {pages}")

    def __exit__(self, *exc: object) -> None:
        self._connection.execute("PRAGMA max_page_count = 1000000")


def big(number: int = 0) -> Event:
    return Event.new("acme", "test.big", "a", {"n": number, "text": "x" * 60_000})


async def until(condition: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), 20)


def test_what_has_happened_is_kept_in_order_and_written_when_there_is_room(tmp_path):
    async def work(store: EventStore) -> None:
        await store.record(event())
        with NoRoom(store):
            with pytest.raises(StoreUnavailable):
                await store.record(*(big(n) for n in range(50)))
            with pytest.raises(StoreUnavailable):
                store.check_writable()
            cause = big(1)
            store.record_soon(cause)
            assert await store.keep(event(2, cause=cause), changes=[RemoveService("acme", "a")]) is False
            store.record_soon(changes=[RenewRegistration("acme", "h", 5)])
            store.record_soon(Event.new("acme", "load_shed", "", {}))
            with pytest.raises(StoreUnavailable):
                await store.record(big(3))
            assert [found.id for found in await store.page("acme", 0, 10)] == [1], "reads go on"
        await until(lambda: store.refusal is None)
        store.check_writable()
        assert await store.keep(event(4)) is True
        found = await store.page("acme", 0, 10)
        assert [one.event_type for one in found] == ["test.event", "test.big", "test.event", "test.event"]
        assert found[2].causation_id == found[1].id
        recovered = (await store.page("", 0, 10))[-1]
        assert b'"events_dropped":1' in recovered.payload
        assert found[2].id < recovered.id < found[3].id
        assert await store.verify() is None

    run(tmp_path / "events.db", work)


def test_lines_that_have_no_room_are_dropped_and_their_log_says_so(tmp_path):
    async def work(store: EventStore) -> None:
        book = LogBook(store)
        book.append("acme", "a", "stdout", "before")
        await book.tail("acme", "a", 10)
        with NoRoom(store):
            for _ in range(200):
                book.append("acme", "a", "stdout", "x" * 10_000)
            await book.tail("acme", "a", 10)
            assert not book.saturated
            await store.record(event())  # small enough for the pages that are there: lines take no event down
        book.append("acme", "a", "stdout", "after")
        lines = [line.line for line in await book.tail("acme", "a", 10)]
        assert lines[0] == "before"
        assert "lines were lost here" in lines[1]
        assert lines[2:] == ["after"]

    run(tmp_path / "events.db", work)


def test_an_event_that_can_not_be_written_takes_no_other_down(tmp_path):
    async def work(store: EventStore) -> None:
        odd = Event("acme", "test.event", "\ud800", b"{}")
        outcomes = await asyncio.gather(
            store.record(event(1)), store.record(odd), store.record(event(2)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [type(None), InternalError, type(None)]
        store.record_soon(Event("acme", "test.event", "\ud800", b"{}"))
        await store.record(event(3))
        assert [one.id for one in await store.page("acme", 0, 10)] == [1, 2, 3]
        assert store.refusal is None

    run(tmp_path / "events.db", work)


def test_the_backlog_is_bounded_and_keeps_every_change():
    backlog = Backlog()
    for number in range(EVENTS_MAX + 500):
        changes = [NoteRestarts("acme", f"s{number % 100}", number)]
        backlog.add(Commit((event(number),), None, changes, lasting=True))
    assert backlog.events == EVENTS_MAX
    assert backlog.dropped == 500
    assert len(backlog) == EVENTS_MAX + 100
    seen = []
    while backlog:
        commits, changes = backlog.first(777)
        seen += [change.restarts for commit in commits for change in commit.changes]
        seen += [change.restarts for change in changes]
        backlog.written(len(commits), len(changes))
    assert seen[:EVENTS_MAX] == list(range(EVENTS_MAX))
    assert sorted(seen[EVENTS_MAX:]) == list(range(EVENTS_MAX + 400, EVENTS_MAX + 500))


def test_what_the_backlog_lets_go_is_not_overtaken():
    backlog = Backlog()
    while backlog.dropped == 0:
        backlog.add(Commit((big(),), None, [], lasting=True))
    swapped = NoteRestarts("acme", "a", 1)
    backlog.add(Commit((big(),), None, [swapped], lasting=True))
    backlog.add(Commit((event(),), None, [RemoveService("acme", "a")], lasting=True))  # small enough to fit again
    seen: list[object] = []
    while backlog:
        commits, changes = backlog.first(1000)
        seen += [change for commit in commits for change in commit.changes]
        seen += changes
        backlog.written(len(commits), len(changes))
    assert seen == [swapped, RemoveService("acme", "a")]
    backlog.add(Commit((event(),), None, [], lasting=True))
    assert backlog.events == 1, "there is room again"


class NoMemory:
    """A connection that answers as SQLite does where there is no memory."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, *arguments: object) -> sqlite3.Cursor:
        raise MemoryError

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


def test_no_memory_for_a_commit_is_no_room(tmp_path):
    async def work(store: EventStore) -> None:
        await store.record(event())
        connection = store._writer._connection
        store._writer._connection = NoMemory(connection)  # type: ignore[assignment]
        assert await store.keep(event(1)) is False
        assert store.refusal is not None
        store._writer._connection = connection
        await until(lambda: store.refusal is None)
        assert len(await store.page("acme", 0, 10)) == 2

    run(tmp_path / "events.db", work)


def test_a_writer_that_fails_says_so_and_goes_on(tmp_path, caplog):
    async def work(store: EventStore) -> None:
        handle = store._writer._handle

        def fail(*batch: object) -> None:
            store._writer._handle = handle  # type: ignore[method-assign]
            raise RuntimeError("a bug")

        store._writer._handle = fail  # type: ignore[method-assign]
        with pytest.raises(InternalError, match="a bug"):
            await store.record(event(1))
        await store.record(event(2))
        assert [one.id for one in await store.page("acme", 0, 10)] == [1]

    run(tmp_path / "events.db", work)
    assert "RuntimeError: a bug" in caplog.text


def unfolded(path: Path) -> None:
    """A database whose newest events are in its write-ahead log alone, as `kill -9` leaves it."""
    code = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from tests.store.test_eventstore import event\n"
        "from solo_fast.store import database\n"
        "from solo_fast.store.eventstore import EventStore\n"
        "database.fold_log = lambda connection: None\n"
        "async def main():\n"
        "    store = EventStore.open(Path(sys.argv[1]))\n"
        "    store.start(asyncio.get_running_loop())\n"
        "    for number in range(20): await store.record(event(number))\n"
        "    os._exit(9)\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, env=environment(), check=False)
    assert path.with_name(f"{path.name}-wal").stat().st_size


def backup_of_ten(folder: Path) -> Path:
    async def work(store: EventStore) -> None:
        for number in range(10):
            await store.record(event(number))

    run(folder / "other.db", work)
    copies.backup(folder / "other.db", folder / "backup.db")
    return folder / "backup.db"


def last_id(path: Path) -> int:
    found: list[int] = []

    async def work(store: EventStore) -> None:
        found.append(store.last_id)

    run(path, work)
    return found[0]


def test_a_restore_that_fails_leaves_all_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, backup = tmp_path / "data" / "events.db", backup_of_ten(tmp_path)
    path.parent.mkdir()
    unfolded(path)
    before = sorted(os.listdir(path.parent))
    replace = os.replace

    def refuse(old: Path, new: Path) -> None:
        if new == path and old.name == path.name:
            raise OSError(5, "Input/output error")
        replace(old, new)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Input/output"):
        copies.restore(backup, path)
    assert sorted(os.listdir(path.parent)) == before
    assert last_id(path) == 20


def test_a_restore_that_is_killed_is_noticed_and_can_be_repeated(tmp_path: Path) -> None:
    path, backup = tmp_path / "data" / "events.db", backup_of_ten(tmp_path)
    path.parent.mkdir()
    unfolded(path)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from solo_fast.store import copies\n"
        "path, replace = Path(sys.argv[2]), os.replace\n"
        "os.replace = lambda old, new: os._exit(9) if new == path else replace(old, new)\n"
        "copies.restore(Path(sys.argv[1]), path)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, backup, path], cwd=ROOT, env=environment(), check=False)
    assert killed.returncode == 9
    with pytest.raises(StoreError, match="was acknowledged"):
        EventStore.open(path)
    assert copies.restore(backup, path).copy.last_id == 10
    assert last_id(path) == 11  # and the event that tells of it
