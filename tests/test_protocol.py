"""Messages to frames and back; nothing that comes from outside raises anything but `ProtocolError`."""

from __future__ import annotations

import pytest

from keyva import errors
from keyva.errors import CorruptionError, KeyvaError, ProtocolError
from keyva.protocol import (
    HEADER_BYTES_MAX,
    Request,
    Response,
    decode_body,
    decode_error,
    decode_request,
    decode_response,
    encode,
    error_body,
)


def test_headers_come_back() -> None:
    request = Request(1, "write", 2**64 - 1, 7, 6, 5, 3)
    assert decode_request(encode(request)) == request
    assert decode_request(encode([1, "get", 0, 1])) == Request(1, "get", 0, 1)
    response = Response(1, 7, 2, 99)
    assert decode_response(encode(response)) == response


@pytest.mark.parametrize(
    "frame",
    [b"", b"x", b"\xc1", encode({}), encode([1]), encode(["1", "get", 0, 1]), encode([1, "get", -1, 1]), encode([1, "x" * 2000, 0, 1])],
)
def test_a_bad_header_is_a_protocol_error(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_request(frame)


def test_a_header_has_a_limit() -> None:
    with pytest.raises(ProtocolError, match=str(HEADER_BYTES_MAX)):
        decode_request(bytes(HEADER_BYTES_MAX + 1))


def test_a_body_is_checked_against_its_type() -> None:
    assert decode_body(encode([0, b"k"]), tuple[int, bytes]) == (0, b"k")
    for wrong in (encode([0, "k"]), encode([0]), b"\xc1", b"", b"\x91" * 100_000):
        with pytest.raises(ProtocolError):
            decode_body(wrong, tuple[int, bytes])


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "by_name"])
def test_every_error_crosses_the_wire(name: str) -> None:
    error = errors.by_name(name, "what happened")
    back = decode_error(error_body(error))
    assert type(back) is type(error)
    assert str(back) == "what happened"


def test_corruption_keeps_file_and_offset() -> None:
    error = decode_error(error_body(CorruptionError("bad", "/d/sst/000001.sst", 77)))
    assert isinstance(error, CorruptionError)
    assert (error.path, error.offset) == ("/d/sst/000001.sst", 77)
    assert str(error) == "/d/sst/000001.sst: offset 77: bad"


def test_other_errors_become_a_keyva_error_that_names_them() -> None:
    assert type(decode_error(error_body(TypeError("no")))) is TypeError
    error = decode_error(error_body(OSError("disk")))
    assert type(error) is KeyvaError
    assert str(error) == "OSError: disk"
