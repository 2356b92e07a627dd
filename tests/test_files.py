from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from faultfiles import FaultFiles

from keyva.errors import NoSpaceError
from keyva.files import FILES, Files, Lock, translate


class TestFiles:
    def test_files_are_private(self, tmp_path: Path) -> None:
        FILES.close(FILES.open_write(str(tmp_path / "f"), create=True))
        FILES.make_dir(str(tmp_path / "a" / "b"))
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700

    def test_a_directory_that_somebody_else_makes_meanwhile_is_fine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def lose_the_race(path: str, mode: int) -> None:
            real(path, mode)
            real(path, mode)

        real = os.mkdir
        monkeypatch.setattr(os, "mkdir", lose_the_race)
        FILES.make_dir(str(tmp_path / "d"))
        assert (tmp_path / "d").is_dir()

    def test_a_file_where_the_directory_should_be_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "d").write_bytes(b"")
        with pytest.raises(FileExistsError):
            FILES.make_dir(str(tmp_path / "d"))
        with pytest.raises((FileExistsError, NotADirectoryError)):
            FILES.make_dir(str(tmp_path / "d" / "e"))

    def test_descriptors_are_not_inherited(self, tmp_path: Path) -> None:
        write = FILES.open_write(str(tmp_path / "f"), create=True)
        read = FILES.open_read(str(tmp_path / "f"))
        assert not os.get_inheritable(write)
        assert not os.get_inheritable(read)
        FILES.close(write)
        FILES.close(read)

    def test_create_never_takes_a_file_that_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"old")
        with pytest.raises(FileExistsError):
            FILES.open_write(str(tmp_path / "f"), create=True)
        assert (tmp_path / "f").read_bytes() == b"old"

    @pytest.mark.parametrize("count", [0, 1, 3, 1024, 1025, 3000])
    def test_any_number_of_buffers_is_written_whole(self, tmp_path: Path, count: int) -> None:
        fd = FILES.open_write(str(tmp_path / "f"), create=True)
        buffers = [b"%d," % number for number in range(count)]
        assert FILES.pwritev(fd, buffers, 5) == len(b"".join(buffers))
        FILES.close(fd)
        assert (tmp_path / "f").read_bytes()[5:] == b"".join(buffers)

    @pytest.mark.parametrize("first", [0, 1, 7, 9])
    def test_a_short_write_is_completed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
        real = os.pwritev
        monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: real(fd, [b"".join(buffers)[:first]], offset))
        fd = FILES.open_write(str(tmp_path / "f"), create=True)
        assert FILES.pwritev(fd, [b"abc", b"", b"defghi"], 0) == 9
        FILES.close(fd)
        assert (tmp_path / "f").read_bytes() == b"abcdefghi"

    def test_a_short_read_is_completed_up_to_the_end_of_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "f").write_bytes(b"abcdefghi")
        real = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, length, offset: real(fd, min(length, 2), offset))
        fd = FILES.open_read(str(tmp_path / "f"))
        assert FILES.pread(fd, 5, 1) == b"bcdef"
        assert FILES.pread(fd, 100, 6) == b"ghi"
        assert FILES.pread(fd, 100, 9) == b""
        FILES.close(fd)

    def test_missing_things_are_no_error_where_that_is_the_wish(self, tmp_path: Path) -> None:
        assert FILES.unlink(str(tmp_path / "none")) is False
        assert FILES.listdir(str(tmp_path / "none")) == []
        FILES.make_dir(str(tmp_path))

    def test_reserved_space_reads_as_zeros(self, tmp_path: Path) -> None:
        fd = FILES.open_write(str(tmp_path / "f"), create=True)
        FILES.pwritev(fd, [b"abc"], 0)
        FILES.allocate(fd, 3, 5)
        assert FILES.read_file(str(tmp_path / "f")) == b"abc" + bytes(5)
        FILES.truncate(fd, 3)
        assert FILES.size(fd) == 3
        FILES.close(fd)


class TestTranslate:
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
    def test_a_full_disk_says_what_was_being_done(self, code: int) -> None:
        error = translate(OSError(code, "x"), "writing the log")
        assert isinstance(error, NoSpaceError)
        assert "while writing the log" in str(error)

    def test_other_errors_stay_what_they_are(self) -> None:
        error = OSError(errno.EIO, "x")
        assert translate(error, "writing the log") is error


class TestWriteAtomic:
    @pytest.mark.parametrize("before", [None, b"old"])
    def test_the_file_has_the_new_content_and_there_is_no_other(self, tmp_path: Path, before: bytes | None) -> None:
        target = tmp_path / "f"
        if before is not None:
            target.write_bytes(before)
        FILES.write_atomic(str(target), b"new")
        assert target.read_bytes() == b"new"
        assert os.listdir(tmp_path) == ["f"]

    def test_what_a_killed_process_of_this_pid_left_is_no_obstacle(self, tmp_path: Path) -> None:
        (tmp_path / f"f.{os.getpid()}.tmp").write_bytes(b"half")
        FILES.write_atomic(str(tmp_path / "f"), b"new")
        assert os.listdir(tmp_path) == ["f"]

    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
    @pytest.mark.parametrize("step", ["open_write", "pwritev", "fdatasync", "rename"])
    def test_a_failure_leaves_the_old_file_and_no_other(self, tmp_path: Path, step: str, code: int) -> None:
        files = FaultFiles()
        (tmp_path / "f").write_bytes(b"old")
        files.fail(step, code, partial=2)
        with pytest.raises(OSError) as raised:
            files.write_atomic(str(tmp_path / "f"), b"new")
        assert raised.value.errno == code
        assert (tmp_path / "f").read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["f"]

    def test_when_only_the_last_sync_fails_the_new_file_is_in_place_but_not_safe(self, tmp_path: Path) -> None:
        files = FaultFiles()
        (tmp_path / "f").write_bytes(b"old")
        files.fail("fsync_dir")
        with pytest.raises(OSError):
            files.write_atomic(str(tmp_path / "f"), b"new")
        assert (tmp_path / "f").read_bytes() == b"new"
        files.power_cut()
        assert (tmp_path / "f").read_bytes() == b"old"

    def test_it_survives_a_power_cut_once_it_returned(self, tmp_path: Path) -> None:
        files = FaultFiles()
        files.write_atomic(str(tmp_path / "f"), b"new")
        files.power_cut()
        assert (tmp_path / "f").read_bytes() == b"new"

    @pytest.mark.parametrize("calls", range(5))
    def test_a_power_cut_at_any_step_leaves_the_old_content_or_the_new(self, tmp_path: Path, calls: int) -> None:
        files = FaultFiles()
        (tmp_path / "f").write_bytes(b"old")
        step = ["open_write", "pwritev", "fdatasync", "rename", "fsync_dir"][calls]
        files.fail(step)
        with pytest.raises(OSError):
            files.write_atomic(str(tmp_path / "f"), b"new")
        files.power_cut(Random(calls))
        assert (tmp_path / "f").read_bytes() in (b"old", b"new")


class Child:
    """A forked child that has done ``work`` and lives on while the block runs."""

    def __init__(self, work: Callable[[], object]) -> None:
        ready_read, ready_write = os.pipe()
        end_read, end_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(end_write)
                work()
                os.write(ready_write, b"1")
                os.read(end_read, 1)
            finally:
                os._exit(0)
        os.close(ready_write)
        os.close(end_read)
        self._end = end_write
        assert os.read(ready_read, 1) == b"1"
        os.close(ready_read)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        os.close(self._end)
        os.waitpid(self.pid, 0)


class TestLock:
    def test_a_second_opening_in_the_same_process_does_not_get_it(self, tmp_path: Path) -> None:
        first, second = Lock(str(tmp_path / "L")), Lock(str(tmp_path / "L"))
        assert first.acquire()
        assert not second.acquire()
        assert not second.acquire(shared=True)
        first.release()
        assert second.acquire()
        second.release()

    def test_a_forked_child_neither_keeps_nor_drops_it(self, tmp_path: Path) -> None:
        path = str(tmp_path / "L")
        kept, released = Lock(path), Lock(str(tmp_path / "M"))
        assert kept.acquire()
        assert released.acquire(shared=True)
        with Child(lambda: kept.release()):
            assert Lock.is_held(path)
            released.release()
            assert not Lock.is_held(released.path, also_shared=True)
        assert Lock.is_held(path)
        kept.release()

    def test_a_fork_in_another_thread_finds_every_descriptor(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Between the opening of the file and the moment from which the lock knows its descriptor."""
        forking, opened = threading.Event(), threading.Event()

        def slow_open(path: str, flags: int, mode: int = 0o777) -> int:
            fd = real(path, flags, mode)
            if threading.current_thread() is not thread:
                return fd
            opened.set()
            assert not forking.wait(0.2)  # the fork waits until this has returned
            return fd

        real = os.open
        monkeypatch.setattr(os, "open", slow_open)
        locks: list[Lock] = []
        thread = threading.Thread(target=lambda: locks.append(Lock(str(tmp_path / "L"))))
        thread.start()
        assert opened.wait(30)
        with Child(lambda: None):
            forking.set()
            thread.join()
            assert locks[0].acquire()
            locks[0].release()
            assert not Lock.is_held(locks[0].path)

    def test_one_that_is_dropped_is_released(self, tmp_path: Path) -> None:
        lock = Lock(str(tmp_path / "L"))
        assert lock.acquire()
        del lock
        assert not Lock.is_held(str(tmp_path / "L"))

    def test_closing_another_descriptor_of_the_file_does_not_drop_it(self, tmp_path: Path) -> None:
        first, second = Lock(str(tmp_path / "L")), Lock(str(tmp_path / "L"))
        assert first.acquire()
        second.release()
        (tmp_path / "L").read_bytes()
        assert Lock.is_held(str(tmp_path / "L"))
        first.release()

    def test_is_held_says_so_without_taking_it(self, tmp_path: Path) -> None:
        path = str(tmp_path / "L")
        assert not Lock.is_held(path)
        assert not os.path.exists(path)
        lock = Lock(path)
        assert not Lock.is_held(path)
        assert lock.acquire()
        assert Lock.is_held(path)
        lock.unlock()
        assert not Lock.is_held(path)
        assert lock.acquire()
        lock.release()
        assert not Lock.is_held(path)

    def test_many_may_share_it_and_none_has_it_alone_meanwhile(self, tmp_path: Path) -> None:
        path = str(tmp_path / "L")
        one, two, alone = Lock(path), Lock(path), Lock(path)
        assert one.acquire(shared=True)
        assert two.acquire(shared=True)
        assert not alone.acquire()
        assert not Lock.is_held(path)
        one.release()
        assert not alone.acquire()
        two.release()
        assert alone.acquire()
        alone.release()

    def test_the_owner_is_named(self, tmp_path: Path) -> None:
        lock, other = Lock(str(tmp_path / "L")), Lock(str(tmp_path / "L"))
        assert other.owner() == 0
        (tmp_path / "L").write_bytes(b"12345678901234567890 something longer\n")
        assert other.owner() == 0
        assert lock.acquire()
        lock.write_owner()
        assert other.owner() == os.getpid()
        assert (tmp_path / "L").read_bytes() == b"%d\n" % os.getpid()
        lock.release()
        other.release()
        other.release()

    def test_it_ends_with_a_killed_holder_and_not_before(self, tmp_path: Path) -> None:
        path = str(tmp_path / "L")
        code = f"from keyva.files import Lock; l = Lock({path!r}); print(l.acquire(), flush=True); input()"
        holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "True\n"
            lock = Lock(path)
            assert not lock.acquire()
            assert Lock.is_held(path)
            holder.kill()
            assert lock.acquire(wait=True)
            lock.release()


class TestFaultFiles:
    """The instrument itself: a test that relies on it must be able to fail."""

    def test_calls_are_counted(self, tmp_path: Path) -> None:
        files = FaultFiles()
        files.write_atomic(str(tmp_path / "f"), b"x")
        assert files.calls["pwritev"] == files.calls["fdatasync"] == files.calls["rename"] == files.calls["fsync_dir"] == 1

    def test_the_chosen_call_fails_and_the_next_succeeds(self, tmp_path: Path) -> None:
        files = FaultFiles()
        files.fail("fdatasync", errno.EIO, after=1, times=2)
        fd = files.open_write(str(tmp_path / "f"), create=True)
        files.fdatasync(fd)
        for _ in range(2):
            with pytest.raises(OSError):
                files.fdatasync(fd)
        files.fdatasync(fd)
        files.close(fd)

    def test_a_full_disk_takes_what_fits(self, tmp_path: Path) -> None:
        files = FaultFiles(space_bytes=10)
        fd = files.open_write(str(tmp_path / "f"), create=True)
        files.pwritev(fd, [b"1234567"], 0)
        files.pwritev(fd, [b"7654321"], 0)
        with pytest.raises(OSError) as raised:
            files.pwritev(fd, [b"12345"], 7)
        assert raised.value.errno == errno.ENOSPC
        assert files.size(fd) == 10
        files.truncate(fd, 5)
        assert files.space_bytes == 5
        with pytest.raises(OSError):
            files.allocate(fd, 5, 6)
        files.close(fd)
        files.unlink(str(tmp_path / "f"))
        assert files.space_bytes == 10

    def test_a_power_cut_takes_unsynced_bytes_and_unsynced_names(self, tmp_path: Path) -> None:
        files = FaultFiles()
        for name, sync_content, sync_name in (("a", True, True), ("b", False, True), ("c", True, False)):
            fd = files.open_write(str(tmp_path / name), create=True)
            files.pwritev(fd, [b"content"], 0)
            if sync_content:
                files.fdatasync(fd)
            if sync_name:
                files.fsync_dir(str(tmp_path))
            files.pwritev(fd, [b"later"], 7)
        files.power_cut()
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"content", "b": b""}

    def test_an_unsynced_removal_is_undone(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"kept")
        files = FaultFiles()
        files.unlink(str(tmp_path / "a"))
        files.power_cut()
        assert (tmp_path / "a").read_bytes() == b"kept"

    def test_unsynced_sectors_may_survive_in_any_order(self, tmp_path: Path) -> None:
        seen = set()
        for seed in range(20):
            files = FaultFiles()
            fd = files.open_write(str(tmp_path / str(seed)), create=True)
            files.pwritev(fd, [b"x" * 2048], 0)
            files.fsync_dir(str(tmp_path))
            files.power_cut(Random(seed))
            seen.add((tmp_path / str(seed)).read_bytes())
        assert len(seen) > 5


def test_every_method_of_files_that_changes_something_has_a_fault() -> None:
    reading = {"size", "listdir", "read_file", "read_in_parts", "make_dir", "write_atomic"}
    methods = {name for name in vars(Files) if not name.startswith("_")}
    assert methods - reading <= set(vars(FaultFiles))


class TestManyFiles:
    """A process may usually have 1024 files open, a large store has more SSTs."""

    def run(self, tmp_path: Path, soft: int, hard: int) -> subprocess.CompletedProcess[str]:
        (tmp_path / "f").write_bytes(b"x")
        program = f"""
import resource
from keyva.files import FILES
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
for _ in range(200):
    FILES.open_read({str(tmp_path / "f")!r})
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    def test_the_soft_limit_is_raised_when_it_is_met(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, 100, 400).stdout == "(400, 400)\n"

    def test_it_is_left_alone_while_it_is_enough(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, 300, 400).stdout == "(300, 400)\n"

    def test_the_hard_limit_is_named_with_what_helps(self, tmp_path: Path) -> None:
        done = self.run(tmp_path, 100, 150)
        assert done.returncode == 1
        assert "StoreError" in done.stderr
        assert "has 150 files open, which is its limit; raise it (ulimit -n" in done.stderr
