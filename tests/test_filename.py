from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyva.filename import index_path, parse_number, sst_path, wal_path


def test_paths() -> None:
    assert wal_path("/d", 7) == "/d/wal/000007.wal"
    assert sst_path("/d", 1234567) == "/d/sst/1234567.sst"
    assert index_path("/d", 5) == "/d/sst/000005.index"


@given(st.integers(0, 2**32 - 1))
def test_every_number_comes_back_from_its_name(number: int) -> None:
    for path, kind in ((wal_path("d", number), "wal"), (sst_path("d", number), "sst"), (index_path("d", number), "index")):
        assert parse_number(os.path.basename(path)) == (number, kind, False)


@pytest.mark.parametrize("name", ["000005.index.123.tmp", "000005.index.tmp"])
def test_temporary_files_are_recognised(name: str) -> None:
    assert parse_number(name) == (5, "index", True)


@pytest.mark.parametrize(
    "name",
    [
        "5.sst",
        "000005",
        "000005.sst~",
        "000005.log",
        "x000005.sst",
        "000005.sst.bak",
        "0000005.sst",
        "",
        "-00005.sst",
        "٠٠٠٠٠٥.sst",
        "000005.sst\n",
    ],
)
def test_names_that_keyva_does_not_give_are_not_taken(name: str) -> None:
    assert parse_number(name) is None


@given(st.text(max_size=20))
def test_no_other_name_stands_for_a_file(name: str) -> None:
    parsed = parse_number(name)
    if parsed is not None and not parsed[2]:
        assert name == f"{parsed[0]:06d}.{parsed[1]}"
