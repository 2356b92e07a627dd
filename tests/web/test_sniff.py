from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyva.web.sniff import sniff


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        # those of the table tests of Go's http.DetectContentType
        (b"", "text/plain; charset=utf-8"),
        (b"This is a test of the emergency broadcast system.", "text/plain; charset=utf-8"),
        (b"<HtMl><bOdY>blah blah blah</body></html>", "text/html; charset=utf-8"),
        (b"\n\n<html>", "text/html; charset=utf-8"),
        (b"   <!DOCTYPE HTML>...", "text/html; charset=utf-8"),
        (b'\n<?xml version="1.0"?>', "text/xml; charset=utf-8"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a...", "image/gif"),
        (b"\x89PNG\x0d\x0a\x1a\x0a", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"RIFFb\xb8\x00\x00WAVEfmt \x12\x00\x00\x00\x06", "audio/wave"),
        (b"MThd\x00\x00\x00\x06\x00\x01", "audio/midi"),
        (b"OggS\x00\x02\x00\x00", "application/ogg"),
        (b"%PDF-1.7", "application/pdf"),
        (b"PK\x03\x04", "application/zip"),
        (b"\x1f\x8b\x08", "application/x-gzip"),
        (b"\x1a\x45\xdf\xa3\x42\x82\x88\x77\x65\x62\x6d\x42\x87\x81\x02", "video/webm"),
        (b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom<\x06t\xbfmdat", "video/mp4"),
        (b"\x01\x02\x03", "application/octet-stream"),
        (b"\xfe\xff\x00h", "text/plain; charset=utf-16be"),
        (b"\xff\xfeh\x00", "text/plain; charset=utf-16le"),
        (b"\xef\xbb\xbftext", "text/plain; charset=utf-8"),
        (b"wOFF", "font/woff"),
        (b"wOF2", "font/woff2"),
        (b"OTTO", "font/otf"),
        (b"\x00\x01\x00\x00", "font/ttf"),
        (b"\x00asm\x01\x00", "application/wasm"),
        (b"          <ht", "text/plain; charset=utf-8"),
        (b"\n" * 2000, "text/plain; charset=utf-8"),
        (b"         <html>", "text/html; charset=utf-8"),
        ("Привет".encode(), "text/plain; charset=utf-8"),
    ],
    ids=lambda value: repr(value[:16]),
)
def test_the_type_is_what_the_standard_says(value: bytes, kind: str) -> None:
    assert sniff(value).decode() == kind


def test_only_the_head_counts() -> None:
    assert sniff(b"a" * 1445 + b"\x00") == b"text/plain; charset=utf-8"
    assert sniff(b"a" * 1444 + b"\x00") == b"application/octet-stream"


@given(
    st.binary(max_size=64)
    | st.text(alphabet=" \n<!-?htmlxPDF%", max_size=32).map(str.encode)
    | st.binary(max_size=60).map(b"\xff\xfb".__add__)
)
def test_every_value_has_a_type(value: bytes) -> None:
    assert b"/" in sniff(value)
