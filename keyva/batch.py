"""Keys, values and batches: what is allowed, and how a batch is encoded.

A batch is a msgpack map ``{key: value | nil}``, nil meaning delete, at most once per key; it travels over the wire and lies in
the log in this one form (docs/format.md, "Batch"). A batch that carries more later becomes an array whose first item is this map.

Invariant: nothing gets past `BatchCodec.decode` that `check_key` or the value limit would refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec

from keyva.errors import InvalidArgumentError
from keyva.options import KEY_BYTES_MAX, RESERVED_PREFIX

__all__ = ["Batch", "BatchCodec", "Puts", "Text", "check_key", "check_keys", "check_value", "encode_batch", "make_batch", "show_key"]

Batch = dict[bytes, bytes | None]
"""Key to value; None deletes."""

Text = bytes | str | bytearray | memoryview
"""What keys and values may be; str becomes UTF-8."""

Puts = Mapping[bytes, Text] | Mapping[str, Text] | Mapping[bytes | str, Text] | Iterable[tuple[Text, Text]]
"""What ``put_many`` takes. (Mappings are named one by one, for a mapping's key type is invariant.)"""

_SHOWN = 40
_BYTES_ONLY = {bytes}
_encode = msgspec.msgpack.Encoder().encode
_decode_any = msgspec.msgpack.Decoder().decode


def show_key(key: object) -> str:
    """Return a key's beginning for a message, at most about 40 bytes of it."""
    if isinstance(key, bytes) and len(key) > _SHOWN:
        return f"{key[:_SHOWN]!r}... ({len(key)} bytes)"
    text = repr(key)
    return text if len(text) <= 4 * _SHOWN else text[: 4 * _SHOWN] + "..."


def check_key(key: Text) -> bytes:
    """Return ``key`` as bytes (str becomes UTF-8); raises TypeError or `InvalidArgumentError`. Costs about 0.1 us."""
    if type(key) is not bytes:
        if isinstance(key, str):
            try:
                key = key.encode()
            except UnicodeEncodeError as error:
                raise InvalidArgumentError(f"key {show_key(key)} is not valid UTF-8 text: {error.reason}") from None
        elif isinstance(key, bytes | bytearray | memoryview):
            key = bytes(key)
        else:
            raise TypeError(f"key must be bytes or str, not {type(key).__name__}: {show_key(key)}")
    if len(key) > KEY_BYTES_MAX:
        raise InvalidArgumentError(f"key {show_key(key)} is longer than {KEY_BYTES_MAX} bytes")
    if key[:2] == RESERVED_PREFIX:
        raise InvalidArgumentError(f"key {show_key(key)} begins with FF FF, which the store keeps for itself")
    return key


def check_value(key: bytes, value: Text, bytes_max: int) -> bytes:
    """Return ``value`` as bytes (str becomes UTF-8); raises TypeError or `InvalidArgumentError` naming the key."""
    if type(value) is not bytes:
        if isinstance(value, str):
            try:
                value = value.encode()
            except UnicodeEncodeError as error:
                raise InvalidArgumentError(f"value of key {show_key(key)} is not valid UTF-8 text: {error.reason}") from None
        elif isinstance(value, bytes | bytearray | memoryview):
            value = bytes(value)
        else:
            raise TypeError(f"value of key {show_key(key)} must be bytes or str, not {type(value).__name__}")
    if len(value) > bytes_max:
        raise InvalidArgumentError(f"value of key {show_key(key)} has {len(value)} bytes, more than max_value_size = {bytes_max}")
    return value


def check_keys(keys: Iterable[Text], call: str) -> list[bytes]:
    """Return ``keys`` as `check_key` does; raises TypeError for a single key, which would be taken for a sequence of short ones."""
    if isinstance(keys, bytes | str | bytearray | memoryview):
        raise TypeError(f"{call} takes a sequence of keys, not one key")
    return [check_key(key) for key in keys]


def make_batch(entries: Puts, value_bytes_max: int) -> Batch:
    """Return checked entries as a batch of puts, in which the last entry of a key wins; raises like `check_key` and `check_value`,
    naming the first bad key.

    Hot: 0.1 us per entry when all are bytes already, for the checks then run in C; else 0.4 us.
    """
    given: Any = entries if isinstance(entries, Mapping | list) else list(entries)
    try:
        batch: Batch = dict(given)
    except (TypeError, ValueError, BytesWarning):  # a bytearray as a key, no pairs, or bytes compared with str under python -bb
        return _make_batch_slowly(given, value_bytes_max)
    if (
        batch
        and set(map(type, batch)) == _BYTES_ONLY
        and set(map(type, values := batch.values())) == _BYTES_ONLY
        and max(batch) < RESERVED_PREFIX
        and max(map(len, batch)) <= KEY_BYTES_MAX
        and max(map(len, values)) <= value_bytes_max  # type: ignore[arg-type]
    ):
        return batch
    return _make_batch_slowly(given, value_bytes_max)


def _make_batch_slowly(given: Any, value_bytes_max: int) -> Batch:
    """From the pairs as they were given: in a dict of them, a key given as str and as bytes would be two."""
    checked: Batch = {}
    for pair in given.items() if isinstance(given, Mapping) else given:
        try:
            if type(pair) is not tuple and isinstance(pair, bytes | str):
                raise TypeError  # two characters are no pair
            key, value = pair
        except (TypeError, ValueError):
            raise TypeError(f"entries must be pairs of key and value, not {show_key(pair)}") from None
        name = check_key(key)
        checked[name] = check_value(name, value, value_bytes_max)
    return checked


def encode_batch(batch: Batch) -> bytes:
    """Encode a checked batch; about 0.02 us per entry."""
    return _encode(batch)


class BatchCodec:
    """Decodes and checks batches for one value limit."""

    def __init__(self, value_bytes_max: int) -> None:
        self._value_bytes_max = value_bytes_max
        key = Annotated[bytes, msgspec.Meta(max_length=KEY_BYTES_MAX)]
        value = Annotated[bytes, msgspec.Meta(max_length=value_bytes_max)]
        self._decode = msgspec.msgpack.Decoder(dict[key, value | None]).decode

    def decode(self, payload: bytes | memoryview) -> Batch:
        """Decode and check a batch from outside; raises `InvalidArgumentError` naming what is wrong. Hot: 0.06 us per entry."""
        try:
            batch: Batch = self._decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._explain(payload, error) from None
        if not batch:
            raise InvalidArgumentError("the batch is empty")
        if max(batch) >= RESERVED_PREFIX:  # reserved keys sort after all others
            raise InvalidArgumentError(f"key {show_key(max(batch))} begins with FF FF, which the store keeps for itself")
        return batch

    def _explain(self, payload: bytes | memoryview, error: Exception) -> InvalidArgumentError:
        try:
            entries = _decode_any(payload)
        except Exception:  # the payload is not msgpack at all: the first error says enough
            entries = None
        if not isinstance(entries, dict):
            return InvalidArgumentError(f"the batch is not a msgpack map of bytes to bytes or nil: {error}")
        for key, value in entries.items():
            try:
                if not isinstance(key, bytes):
                    return InvalidArgumentError(f"the batch holds a key that is not bytes: {show_key(key)}")
                check_key(key)
                if value is not None:
                    if not isinstance(value, bytes):
                        return InvalidArgumentError(f"value of key {show_key(key)} is neither bytes nor nil")
                    check_value(key, value, self._value_bytes_max)
            except InvalidArgumentError as found:
                return found
        return InvalidArgumentError(f"the batch was refused: {error}")


_trusted: msgspec.msgpack.Decoder[Batch] = msgspec.msgpack.Decoder(dict[bytes, bytes | None])
decode_trusted = _trusted.decode
"""Decode a batch or block that was checked when it was written and whose checksum has just been verified."""
