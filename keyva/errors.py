"""Every error keyva raises, as one tree.

::

    KeyvaError
    ├── InvalidArgumentError (also ValueError)   a key, value, range or batch that is not allowed; nothing was written
    │   ├── NotACounterError                     increment met a value that is no counter
    │   └── CounterOverflowError                 increment would leave the 64-bit range
    ├── ConfigError (also ValueError)            a setting is unknown, of the wrong type or out of range
    ├── CorruptionError                          bytes on disk are not what was written; names file and offset
    ├── FormatVersionError                       the store was written by a newer keyva
    ├── StoreError                               the directory cannot be used as a store
    │   └── StoreLockedError                     another node owns the directory
    ├── ConditionFailedError                     a key is not as the write expected; nothing was written
    ├── NoSpaceError                             the disk is full; nothing was written, reads go on
    ├── WriteStallError                          flushing or compaction is too far behind; nothing was written
    ├── UnavailableError                         nobody answered in time; nothing was changed
    │   └── SnapshotLostError                    the reader that held a snapshot or iterator has gone
    ├── OutcomeUnknownError                      nobody answered in time; the change may or may not have been made
    ├── ProtocolError                            a message was malformed or of an unknown version
    └── ClosedError                              the client, snapshot or iterator was used after close()

Wrong Python types raise the built-in ``TypeError``.
"""

from __future__ import annotations

__all__ = [
    "ClosedError",
    "ConditionFailedError",
    "ConfigError",
    "CorruptionError",
    "CounterOverflowError",
    "FormatVersionError",
    "InvalidArgumentError",
    "KeyvaError",
    "NoSpaceError",
    "NotACounterError",
    "OutcomeUnknownError",
    "ProtocolError",
    "SnapshotLostError",
    "StoreError",
    "StoreLockedError",
    "UnavailableError",
    "WriteStallError",
    "by_name",
]


class KeyvaError(Exception):
    """Is the root of all errors that keyva raises by itself."""


class InvalidArgumentError(KeyvaError, ValueError):
    """Is raised when a key, value, range or batch is not allowed; nothing was written."""


class NotACounterError(InvalidArgumentError):
    """Is raised when ``increment`` meets a value that is not a decimal 64-bit integer; the value is unchanged."""


class CounterOverflowError(InvalidArgumentError):
    """Is raised when ``increment`` would leave the range of a signed 64-bit integer; the value is unchanged."""


class ConfigError(KeyvaError, ValueError):
    """Is raised when a setting is unknown, of the wrong type or out of range."""


class CorruptionError(KeyvaError):
    """Is raised when bytes on disk are not what was written.

    ``path`` and ``offset`` (bytes from the start of the file) say where; the damaged data is never returned.
    """

    def __init__(self, message: str, path: str = "", offset: int = 0) -> None:
        super().__init__(f"{path}: offset {offset}: {message}" if path else message)
        self.path = path
        self.offset = offset


class FormatVersionError(KeyvaError):
    """Is raised when a file has a format version or a feature that this keyva does not know."""


class StoreError(KeyvaError):
    """Is raised when a directory cannot be used as a store (no permission, not a directory, manifest missing)."""


class StoreLockedError(StoreError):
    """Is raised when another process owns the directory; ``pid`` is that process, 0 when it is not known."""

    def __init__(self, message: str, pid: int = 0) -> None:
        super().__init__(message)
        self.pid = pid


class ConditionFailedError(KeyvaError):
    """Is raised when a key is not what a conditional write expected it to be; nothing was written."""


class NoSpaceError(KeyvaError):
    """Is raised when the disk is full; the write was not made, reads go on, and writes work again when there is room."""


class WriteStallError(KeyvaError):
    """Is raised when flushing or compaction is so far behind that a write waited for its limit; nothing was written."""


class UnavailableError(KeyvaError):
    """Is raised when nobody answered in time; nothing was changed."""


class SnapshotLostError(UnavailableError):
    """Is raised when the reader process that held a snapshot or iterator has gone; take a new one."""


class OutcomeUnknownError(KeyvaError):
    """Is raised when nobody answered in time; the change may or may not have been made."""


class ProtocolError(KeyvaError):
    """Is raised when a message is malformed, too large, or of a version that is not spoken here."""


class ClosedError(KeyvaError):
    """Is raised when a client, snapshot, iterator or batch is used after ``close()``."""


def by_name(name: str, message: str) -> KeyvaError:
    """Build the error called ``name`` as it came over the wire; a name that is not known becomes `KeyvaError`."""
    kind = globals().get(name)
    if not (isinstance(kind, type) and issubclass(kind, KeyvaError)):
        return KeyvaError(f"{name}: {message}")
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    if isinstance(error, CorruptionError):
        error.path, error.offset = "", 0
    elif isinstance(error, StoreLockedError):
        error.pid = 0
    return error
