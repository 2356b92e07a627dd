from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyva.errors import StoreError
from keyva.pulse import PAGE_BYTES, Pulse, position_of, split_position, sum_of

words32 = st.integers(0, 2**32 - 1)


@given(words32, words32)
def test_a_position_comes_back(log: int, offset: int) -> None:
    assert split_position(position_of(log, offset)) == (log, offset)
    assert position_of(log, offset) < 2**64


@given(st.tuples(words32, words32), st.tuples(words32, words32))
def test_positions_grow_with_every_commit(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert (position_of(*one) < position_of(*other)) == (one < other)


@given(st.tuples(words32, words32, words32), st.tuples(words32, words32, words32))
def test_the_sum_is_another_one_after_every_change(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    earlier, later = ((position_of(log, offset), generation) for log, offset, generation in sorted([one, other]))
    if later[1] >= earlier[1]:  # neither falls
        assert (sum_of(*earlier) == sum_of(*later)) == (earlier == later)
        assert sum_of(*later) < 2**64


def test_what_is_published_is_seen_by_others_at_once(tmp_path: Path) -> None:
    writer = Pulse(str(tmp_path), write=True)
    reader = Pulse(str(tmp_path))
    assert list(reader.words[:3]) == [0, 0, 0]
    writer.publish(position_of(7, 195), 9)
    assert list(reader.words[:3]) == [position_of(7, 195), 9, position_of(7, 204)]
    code = f"from keyva.pulse import Pulse; print(list(Pulse({str(tmp_path)!r}).words[:3]))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert other.stdout == f"{[position_of(7, 195), 9, position_of(7, 204)]}\n"
    writer.close()
    reader.close()


def test_the_sum_is_stored_first_and_the_generation_before_the_position(tmp_path: Path) -> None:
    class Recorded:
        def __init__(self) -> None:
            self.stores: list[int] = []
            self.values = [0, 0, 0]

        def __getitem__(self, at: int) -> int:
            return self.values[at]

        def __setitem__(self, at: int, value: int) -> None:
            self.stores.append(at)
            self.values[at] = value

    pulse = Pulse(str(tmp_path), write=True)
    words, recorded = pulse.words, Recorded()
    pulse.words = recorded  # type: ignore[assignment]
    pulse.publish(5, 1)
    pulse.publish(6, 1)
    assert recorded.stores == [2, 1, 0, 2, 0]
    pulse.words = words
    pulse.close()


def test_the_file_is_kept_and_never_replaced(tmp_path: Path) -> None:
    first = Pulse(str(tmp_path), write=True)
    first.publish(5, 1)
    inode = os.stat(tmp_path / "PULSE").st_ino
    second = Pulse(str(tmp_path), write=True)
    assert list(second.words[:2]) == [5, 1]
    second.publish(6, 2)
    assert list(first.words[:2]) == [6, 2]
    assert os.stat(tmp_path / "PULSE").st_ino == inode
    first.close()
    second.close()


def test_the_page_has_real_blocks_and_is_private(tmp_path: Path) -> None:
    Pulse(str(tmp_path), write=True).close()
    found = os.stat(tmp_path / "PULSE")
    assert found.st_size == PAGE_BYTES
    assert found.st_blocks * 512 >= PAGE_BYTES
    assert stat.S_IMODE(found.st_mode) == 0o600


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    Pulse(str(tmp_path), write=True).close()
    reader = Pulse(str(tmp_path))
    with pytest.raises(TypeError):
        reader.words[0] = 1
    reader.close()


def test_a_reader_refuses_a_page_cut_short_and_a_writer_makes_it_whole(tmp_path: Path) -> None:
    (tmp_path / "PULSE").write_bytes(b"short")
    with pytest.raises(StoreError, match="cut short"):
        Pulse(str(tmp_path))
    Pulse(str(tmp_path), write=True).close()
    reader = Pulse(str(tmp_path))
    assert list(reader.words[:2]) == [0, 0]
    reader.close()


def test_a_reader_of_a_store_without_one_gets_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Pulse(str(tmp_path))
