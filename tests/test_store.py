from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest
from faultfiles import FaultFiles
from storetools import SMALL, DiskDiedError, DyingFiles, crash, damage, do_jobs, flush, increment, small, write
from storetools import small_reserve as small_reserve

from keyva.batch import Batch, encode_batch
from keyva.errors import (
    ClosedError,
    ConditionFailedError,
    CounterOverflowError,
    InvalidArgumentError,
    KeyvaError,
    NoSpaceError,
    NotACounterError,
    OutcomeUnknownError,
    StoreError,
    StoreLockedError,
)
from keyva.filename import REQUESTS, wal_path
from keyva.maintenance import Maintenance
from keyva.manifest import load_manifest
from keyva.pulse import position_of
from keyva.reserved import Condition, Update
from keyva.store import FatalError, Store, WriteRequest, add_to_counter
from keyva.view import View

INT64_MAX = 2**63 - 1


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def store(directory: str) -> Iterator[Store]:
    store = Store(directory, SMALL)
    yield store
    store.close()


def reopened(store: Store, files: FaultFiles | None = None) -> Store:
    """Crash the store and start it again."""
    crash(store)
    return Store(store.directory, store.options) if files is None else Store(store.directory, store.options, files=files)


def everything(store: Store) -> Batch:
    return dict(store.iterator())


# Writing


def test_what_was_written_is_read(store: Store) -> None:
    assert write(store, {b"a": b"1", b"b": b"2"}) == (2, None)
    assert write(store, {b"a": None, b"": b"empty key"}) == (4, None)
    assert store.get(b"a") is None
    assert store.get("b") == b"2"
    assert store.get_many([b"", b"a", "b"]) == [b"empty key", None, b"2"]
    assert store.exists(b"b") and not store.exists(b"a")
    assert store.last_sequence == 4


def test_files_are_for_their_owner_only(store: Store) -> None:
    write(store, {b"a": b"1"})
    for folder, _, names in os.walk(store.directory):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700, folder
        for name in names:
            assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600, name


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (encode_batch({b"\xff\xff1": b""}), "FF FF"),
        (encode_batch({b"ok": b"", b"\xff\xff": None}), "FF FF"),
        (encode_batch({b"k" * 65537: b""}), "65536"),
        (encode_batch({}), "empty"),
        (b"", "msgpack"),
        (b"\x81\xa1k\x01", "not bytes"),
    ],
)
def test_a_batch_that_is_not_allowed_is_refused_and_nothing_is_written(store: Store, payload: bytes, says: str) -> None:
    before = store.position
    (answer,) = store.write([WriteRequest(payload=payload)])
    assert isinstance(answer, InvalidArgumentError)
    assert says in str(answer)
    assert (store.position, store.last_sequence, everything(store)) == (before, 0, {})


def test_limits_of_values_and_batches_are_kept(directory: str) -> None:
    store = Store(directory, small(max_value_size=10, max_batch_size=100))
    with pytest.raises(InvalidArgumentError, match="b'key'"):
        write(store, {b"key": b"x" * 11})
    with pytest.raises(InvalidArgumentError, match="max_batch_size"):
        write(store, {b"%d" % key: b"x" * 10 for key in range(20)})
    assert everything(store) == {}
    store.close()


def test_an_error_of_one_request_leaves_the_others_of_its_group_alone(store: Store) -> None:
    answers = store.write(
        [
            WriteRequest(payload=encode_batch({b"a": b"1"})),
            WriteRequest(payload=b"?"),
            WriteRequest(increment=(b"a", 5)),
            WriteRequest(increment=(b"\xff\xff", 5)),
            WriteRequest(payload=encode_batch({b"b": b"2", b"c": b"3"})),
        ]
    )
    assert (answers[0], answers[2], answers[4]) == ((1, None), (2, 6), (4, None))
    assert isinstance(answers[1], InvalidArgumentError) and isinstance(answers[3], InvalidArgumentError)
    assert everything(store) == {b"a": b"6", b"b": b"2", b"c": b"3"}


def test_a_group_is_synced_once(directory: str) -> None:
    files = FaultFiles()
    store = Store(directory, SMALL, files=files)
    before = files.calls["fdatasync"], files.calls["pwritev"]
    store.write([WriteRequest(payload=encode_batch({b"%d" % key: b""})) for key in range(50)])
    assert (files.calls["fdatasync"], files.calls["pwritev"]) == (before[0] + 1, before[1] + 1)
    write(store, {b"a": b""}, sync=False)
    assert files.calls["fdatasync"] == before[0] + 1
    store.close()


def test_durability_os_syncs_only_when_asked(directory: str) -> None:
    files = FaultFiles()
    store = Store(directory, small(durability="os"), files=files)
    before = files.calls["fdatasync"]
    write(store, {b"a": b""})
    assert files.calls["fdatasync"] == before
    write(store, {b"a": b""}, sync=True)
    assert files.calls["fdatasync"] == before + 1
    store.close()


def test_a_sync_write_makes_earlier_unsynced_ones_durable_too(directory: str) -> None:
    files = FaultFiles()
    store = Store(directory, SMALL, files=files)
    write(store, {b"a": b"1"}, sync=False)
    write(store, {b"b": b"2"})
    write(store, {b"c": b"3"}, sync=False)
    crash(store)
    files.power_cut()
    store = Store(directory, SMALL, files=files)
    assert everything(store) == {b"a": b"1", b"b": b"2"}
    store.close()


# Counters


def test_increments_add_up_within_and_between_groups(store: Store) -> None:
    assert increment(store, b"n") == (1, 1)
    assert increment(store, b"n", -5) == (2, -4)
    group = [WriteRequest(increment=(b"n", 1)), WriteRequest(payload=encode_batch({b"n": None})), WriteRequest(increment=(b"n", 7))]
    assert store.write(group) == [(3, -3), (4, None), (5, 7)]
    assert store.get(b"n") == b"7"


def test_an_increment_reads_through_memtables_and_ssts(store: Store) -> None:
    increment(store, b"n", 5)
    store.rotate()
    assert increment(store, b"n", 5)[1] == 10
    store = reopened(store)
    assert increment(store, b"n", 5)[1] == 15
    store.close()


@pytest.mark.parametrize(
    "value", [b"", b"x", b"1.5", b" 1", b"1 ", b"+1", b"01", b"-0", b"-", b"1" * 20, b"\xd9\xa1", b"9223372036854775808"]
)
def test_a_value_that_is_no_counter_is_refused_and_kept(store: Store, value: bytes) -> None:
    write(store, {b"key": value})
    with pytest.raises(NotACounterError, match="b'key'"):
        increment(store, b"key")
    assert store.get(b"key") == value


@pytest.mark.parametrize(
    ("start", "by"), [(INT64_MAX, 1), (INT64_MAX - 1, 2), (-(2**63), -1), (0, 2**63), (0, -(2**63) - 1), (1, INT64_MAX)]
)
def test_a_counter_that_would_leave_64_bits_is_refused_and_kept(store: Store, start: int, by: int) -> None:
    write(store, {b"key": b"%d" % start})
    with pytest.raises(CounterOverflowError, match="b'key'"):
        increment(store, b"key", by)
    assert store.get(b"key") == b"%d" % start


def test_counters_reach_both_ends_of_64_bits() -> None:
    assert add_to_counter(b"k", None, INT64_MAX) == INT64_MAX
    assert add_to_counter(b"k", b"%d" % INT64_MAX, -(2**63)) == -1
    assert add_to_counter(b"k", b"-9223372036854775808", INT64_MAX) == -1
    assert add_to_counter(b"k", b"0", 0) == 0


# Repeats


def test_a_repeat_is_recognised_and_nothing_happens_twice(store: Store) -> None:
    first = write(store, {b"a": b"1"}, client=7, request=1, floor=1)
    write(store, {b"a": b"2"}, client=8, request=1, floor=1)
    before = store.position
    assert write(store, {b"a": b"1"}, client=7, request=1, floor=1, repeated=True) == first
    assert store.get(b"a") == b"2"
    assert store.position == before


def test_a_repeated_increment_answers_the_same_value(store: Store) -> None:
    assert increment(store, b"n", 5, client=7, request=1, floor=1)[1] == 5
    increment(store, b"n", 1, client=8, request=1, floor=1)
    assert increment(store, b"n", 5, client=7, request=1, floor=1, repeated=True)[1] == 5
    assert store.get(b"n") == b"6"


def test_a_repeat_is_recognised_after_crashes(store: Store) -> None:
    as_of = store.position
    first = write(store, {b"a": b"1", b"b": None}, client=7, request=1, floor=1)
    counted = increment(store, b"n", -5, client=7, request=2, floor=1)
    for _ in range(3):
        store = reopened(store)
        assert write(store, {b"a": b"1", b"b": None}, client=7, request=1, as_of=as_of, repeated=True) == first
        assert increment(store, b"n", -5, client=7, request=2, as_of=as_of, repeated=True) == counted
        assert store.get(b"n") == b"-5"
    store.close()


def test_a_repeat_is_recognised_when_its_log_is_gone(store: Store) -> None:
    as_of = store.position
    counted = increment(store, b"n", 5, client=7, request=1, floor=1)
    increment(store, b"n", 1, client=8, request=1, floor=1)
    for _ in range(2):
        flush(store, Maintenance(store))
        write(store, {b"other": b""}, client=8, request=2, floor=2)
        store = reopened(store)
        assert increment(store, b"n", 5, client=7, request=1, as_of=as_of, repeated=True) == counted
    do_jobs(store, Maintenance(store))
    assert increment(store, b"n", 5, client=7, request=1, as_of=as_of, repeated=True) == counted
    assert store.get(b"n") == b"6"
    store.close()


def test_without_the_table_an_old_repeat_has_an_unknown_outcome(store: Store) -> None:
    as_of = store.position
    increment(store, b"n", 5, client=7, request=1, floor=1)
    flush(store, Maintenance(store))
    damage(os.path.join(store.directory, REQUESTS), 20)
    store = reopened(store)
    with pytest.raises(OutcomeUnknownError):
        increment(store, b"n", 5, client=7, request=1, as_of=as_of, repeated=True)
    assert store.get(b"n") == b"5"
    store.close()


def test_a_repeat_of_a_write_that_was_never_made_is_made(store: Store) -> None:
    as_of = store.position
    store = reopened(store)
    assert write(store, {b"a": b"1"}, client=7, request=1, floor=1, as_of=as_of, repeated=True) == (1, None)
    assert store.get(b"a") == b"1"
    store.close()


def test_a_repeat_older_than_what_is_remembered_has_an_unknown_outcome(store: Store) -> None:
    as_of = store.position
    store.requests.covered_from = as_of + 1
    before = store.position
    with pytest.raises(OutcomeUnknownError):
        write(store, {b"a": b"1"}, client=7, request=1, floor=1, as_of=as_of, repeated=True)
    assert store.position == before


def test_a_request_and_its_repeat_in_one_group_are_made_once(store: Store) -> None:
    first = WriteRequest(increment=(b"n", 5), client=7, request=1, floor=1)
    repeat = WriteRequest(increment=(b"n", 5), client=7, request=1, floor=1, repeated=True)
    assert store.write([first, repeat, repeat]) == [(1, 5)] * 3
    assert store.get(b"n") == b"5"
    assert store.last_sequence == 1


def test_a_refused_request_and_its_repeat_in_one_group_are_both_refused(store: Store) -> None:
    write(store, {b"lock": b"B"})
    take = Update(msgspec.Raw(encode_batch({b"lock": b"A"})), [Condition(b"lock", None)])
    first = WriteRequest(update=take, client=1, request=1)
    release = WriteRequest(payload=encode_batch({b"lock": None}), client=2, request=1)
    again = WriteRequest(update=take, client=1, request=1, repeated=True)
    refused, done, refused_again = store.write([first, release, again])
    assert isinstance(refused, ConditionFailedError) and refused_again is refused
    assert not isinstance(done, KeyvaError)
    assert store.get(b"lock") is None, "whoever was told that it has no lock must not get it later"


def test_repeats_alone_in_a_group_share_one_answer(store: Store) -> None:
    repeat = WriteRequest(increment=(b"n", 5), client=7, request=1, floor=1, as_of=store.position, repeated=True)
    assert store.write([repeat, repeat]) == [(1, 5), (1, 5)]


def test_a_repeat_in_a_group_that_finds_no_room_fails_with_it(directory: str) -> None:
    files = FaultFiles()
    store = Store(directory, SMALL, files=files)
    files.fail("pwritev", errno.ENOSPC)
    request = WriteRequest(increment=(b"n", 5), client=7, request=1, floor=1)
    repeat = WriteRequest(increment=(b"n", 5), client=7, request=1, floor=1, repeated=True)
    assert all(isinstance(answer, NoSpaceError) for answer in store.write([request, repeat]))
    assert store.write([repeat]) == [(1, 5)], "a failed request is not remembered as made"
    store.close()


# Faults


def test_a_full_disk_fails_writes_and_nothing_else(directory: str) -> None:
    files = FaultFiles()
    store = Store(directory, SMALL, files=files)
    write(store, {b"a": b"1"})
    store._log.seal()  # gives back what is reserved
    files.space_bytes = 0
    before = store.position
    for _ in range(3):
        answers = store.write([WriteRequest(payload=encode_batch({b"lost%d" % at: b"x"})) for at in range(3)])
        assert all(isinstance(answer, NoSpaceError) for answer in answers)
        assert (store.position, everything(store)) == (before, {b"a": b"1"})
    view = View(directory, SMALL)
    assert dict(view.iterator()) == {b"a": b"1"}
    files.heal()
    assert write(store, {b"b": b"2"}) == (2, None)
    assert view.get(b"b") == b"2"
    view.close()
    store = reopened(store)
    assert everything(store) == {b"a": b"1", b"b": b"2"}
    assert store.dropped_bytes == 0
    store.close()


@pytest.mark.parametrize("step", ["truncate", "fdatasync"])
def test_a_write_that_cannot_be_cut_off_again_is_not_called_unwritten(directory: str, step: str) -> None:
    files = FaultFiles()
    store = Store(directory, SMALL, files=files)
    write(store, {b"a": b"1"})
    files.fail("pwritev", errno.ENOSPC, partial=10_000)
    files.fail(step, errno.ENOSPC)
    with pytest.raises(FatalError, match="could not be cut off"):
        store.write([WriteRequest(payload=encode_batch({b"a": b"2"}))])
    store = reopened(store)
    assert everything(store) in ({b"a": b"1"}, {b"a": b"2"})
    store.close()


@pytest.mark.parametrize("partial", [0, 20, 60, 10_000])
def test_nothing_of_a_failed_write_comes_back(directory: str, partial: int) -> None:
    files = FaultFiles()
    store = Store(directory, SMALL, files=files)
    write(store, {b"a": b"1"})
    files.fail("pwritev", errno.ENOSPC, partial=partial)
    with pytest.raises(NoSpaceError):
        write(store, {b"lost": b"x" * 100})
    crash(store)
    files.power_cut(Random(partial))
    store = Store(directory, SMALL, files=files)
    assert everything(store) == {b"a": b"1"}
    store.close()


def test_a_write_error_other_than_a_full_disk_is_final(directory: str) -> None:
    files = FaultFiles()
    store = Store(directory, SMALL, files=files)
    write(store, {b"a": b"1"})
    files.fail("pwritev", errno.EIO, partial=30)
    with pytest.raises(FatalError, match="wal"):
        write(store, {b"lost": b"x"})
    files.heal()
    store = reopened(store, files)
    assert everything(store) == {b"a": b"1"}
    store.close()


def test_a_failed_sync_is_final_and_the_next_start_recovers(directory: str) -> None:
    files = FaultFiles()
    store = Store(directory, SMALL, files=files)
    write(store, {b"a": b"1"})
    view = View(directory, SMALL)
    files.fail("fdatasync")
    before = files.calls["fdatasync"]
    with pytest.raises(FatalError, match="fdatasync"):
        write(store, {b"b": b"2"})
    assert view.get(b"b") is None, "what was not synced is not published"
    view.close()
    store.close()
    assert files.calls["fdatasync"] == before + 1, "no second sync claims success"
    files.power_cut()
    store = Store(directory, SMALL, files=files)
    assert everything(store) == {b"a": b"1"}
    store.close()


def test_a_store_has_one_writer(store: Store) -> None:
    with pytest.raises(StoreLockedError, match=str(os.getpid())) as caught:
        Store(store.directory, SMALL)
    assert caught.value.pid == os.getpid()
    store.close()
    Store(store.directory, SMALL).close()


def test_a_start_that_fails_lets_the_lock_go(directory: str) -> None:
    Store(directory, SMALL).close()
    files = FaultFiles()
    files.fail("pwritev")
    with pytest.raises(OSError):
        Store(directory, SMALL, files=files)
    Store(directory, SMALL).close()


def test_a_file_where_the_directory_should_be_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        Store(str(path), SMALL)
    with pytest.raises(StoreError, match="not a directory"):
        Store(str(path / "below"), SMALL)


# Memtables


def test_rotation_keeps_everything_readable_and_seals_the_log(store: Store) -> None:
    model: Batch = {}
    for at in range(4):
        batch: Batch = {b"%d" % key: b"%d" % at for key in range(at, 10)}
        write(store, batch)
        model.update(batch)
        store.rotate()
        assert store.memtable_empty
    assert store.immutable_memtables == 4
    assert everything(store) == model
    logs = store.manifest.logs
    assert [log.sealed_bytes for log in logs[:-1]] == [os.path.getsize(wal_path(store.directory, log.number)) for log in logs[:-1]]
    assert [log.first_sequence for log in logs] == [1, 11, 20, 28, 35]
    store = reopened(store)
    assert store.immutable_memtables == 4
    assert everything(store) == model
    store.close()


def test_a_memtable_is_full_at_write_buffer_size(store: Store) -> None:
    while not store.memtable_full:
        write(store, {os.urandom(8): b"x" * 100})
    memtable = store._memtables[-1]
    assert SMALL.write_buffer_size <= memtable.size_bytes < SMALL.write_buffer_size + 500


@pytest.mark.parametrize("method", ["open_write", "pwritev", "fdatasync", "rename", "fsync_dir"])
def test_a_rotation_without_room_changes_nothing(directory: str, method: str) -> None:
    failed = 0
    for after in range(20):
        files = FaultFiles()
        store = Store(f"{directory}{after}", SMALL, files=files)
        write(store, {b"a": b"1"})
        before = store.manifest.logs
        files.fail(method, errno.ENOSPC, after=after)
        try:
            store.rotate()
        except NoSpaceError:
            failed += 1
            assert store.manifest.logs == before
            assert load_manifest(store.directory) == store.manifest
            write(store, {b"b": b"2"})
            store.rotate()
            write(store, {b"c": b"3"})
        except FatalError:  # sealing failed, or the new manifest was in place already
            failed += 1
        else:
            store.close()
            break
        acknowledged = everything(store)
        crash(store)
        files.power_cut()
        store = Store(store.directory, SMALL, files=files)
        assert everything(store) == acknowledged
        store.close()
    assert 0 < failed < 20


@pytest.mark.parametrize("power_cut", [False, True])
def test_a_rotation_may_die_at_every_disk_operation(directory: str, power_cut: bool) -> None:
    for die_at in range(100):
        files = DyingFiles()
        store = Store(f"{directory}{die_at}", SMALL, files=files)
        write(store, {b"a": b"1"})
        write(store, {b"a": b"2", b"b": b"2"})
        files.arm(die_at)
        acknowledged = done = False
        try:
            store.rotate()
            write(store, {b"c": b"3"})
            acknowledged = True
            store.close()
            done = True
        except DiskDiedError:
            crash(store)
        files.revive(power_cut=power_cut)
        store = Store(store.directory, SMALL, files=files)
        assert store.get_many([b"a", b"b"]) == [b"2", b"2"]
        assert store.get(b"c") == b"3" or not acknowledged
        write(store, {b"d": b"4"})
        assert store.get(b"d") == b"4"
        store.close()
        if done:
            assert die_at > 10
            return
    pytest.fail("never got through")


@pytest.mark.parametrize("seed", range(3))
def test_an_error_at_any_disk_operation_loses_nothing_that_was_acknowledged(directory: str, seed: int) -> None:
    """The operation fails once (EIO, ENOSPC), the disk lives on; a store that gives up is started again."""
    for fail_at in range(200):
        random = Random(seed * 1000 + fail_at)
        files = DyingFiles()
        store = Store(f"{directory}{fail_at}", SMALL, files=files)
        files.arm(fail_at, raises=random.choice([errno.EIO, errno.ENOSPC]))
        model: Batch = {}
        unknown: Batch = {}
        try:
            for step in range(8):
                unknown = {b"%d" % random.randrange(5): b"%d" % step for _ in range(3)}
                try:
                    write(store, unknown)
                    model.update(unknown)
                except NoSpaceError:
                    pass
                unknown = {}
                if step in (2, 5):
                    try:
                        store.rotate()
                    except NoSpaceError:
                        pass
                assert everything(store) == model
        except FatalError:
            pass
        hit = files.operations > fail_at
        crash(store)
        files.revive(power_cut=random.random() < 0.5)
        store = Store(store.directory, SMALL, files=files)
        assert everything(store) in (model, {**model, **unknown})
        store.close()
        if not hit:
            assert fail_at > 20
            return
    pytest.fail("never got through")


def test_numbers_are_never_handed_out_twice(store: Store) -> None:
    seen: set[int] = set()
    for _ in range(4):
        for count in (1, 5, 300):
            numbers = store.take_numbers(count)
            assert not seen & set(numbers)
            seen.update(numbers)
        store = reopened(store)
    assert store.manifest.logs[-1].number not in seen
    store.close()


# Snapshots and the end


def test_a_snapshot_is_frozen_and_outlives_the_store(store: Store) -> None:
    write(store, {b"a": b"1"})
    snapshot = store.snapshot()
    again = snapshot.snapshot()
    write(store, {b"a": b"2", b"b": b"2"})
    store.rotate()
    write(store, {b"a": b"3"})
    store.close()
    assert dict(snapshot.iterator()) == {b"a": b"1"}
    assert snapshot.sequence == 1
    snapshot.close()
    snapshot.close()
    assert again.get(b"a") == b"1"
    again.close()
    for call in (lambda: again.get(b"a"), lambda: again.get_many([b"a"]), again.snapshot, again.iterator):
        with pytest.raises(ClosedError):
            call()


def test_close_may_be_called_twice_and_lets_the_directory_go(store: Store) -> None:
    write(store, {b"a": b"1"}, sync=False)
    store.close()
    store.close()
    other = Store(store.directory, SMALL)
    assert everything(other) == {b"a": b"1"}
    other.close()


def test_the_position_grows_with_every_commit(store: Store) -> None:
    positions = [store.position]
    for at in range(3):
        write(store, {b"%d" % at: b""})
        positions.append(store.position)
    store.rotate()
    positions.append(store.position)
    store = reopened(store)
    positions.append(store.position)
    assert positions == sorted(set(positions))
    assert positions[-1] >= position_of(store.manifest.logs[-1].number, 0)
    store.close()


def test_errors_are_all_of_one_family() -> None:
    assert not issubclass(FatalError, KeyvaError), "it is no answer to a client"
