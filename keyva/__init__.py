"""keyva: a durable, ordered key-value store for Python programs, served by processes of its own.

`open` a directory on this host, or `connect` to a node elsewhere; both give a `Client`.
"""

from keyva.client import Client, connect
from keyva.client import open_directory as open  # noqa: A004 - the name users expect, as in dbm.open and shelve.open
from keyva.errors import (
    ClosedError,
    ConditionFailedError,
    ConfigError,
    CorruptionError,
    CounterOverflowError,
    FormatVersionError,
    InvalidArgumentError,
    KeyvaError,
    NoSpaceError,
    NotACounterError,
    OutcomeUnknownError,
    ProtocolError,
    SnapshotLostError,
    StoreError,
    StoreLockedError,
    UnavailableError,
    WriteStallError,
)
from keyva.iterator import Iterator
from keyva.options import Options
from keyva.pipeline import Pipeline
from keyva.reserved import Typed
from keyva.view import Snapshot
from keyva.writebatch import WriteBatch

__version__ = "0.1.0"

__all__ = [
    "Client",
    "ClosedError",
    "ConditionFailedError",
    "ConfigError",
    "CorruptionError",
    "CounterOverflowError",
    "FormatVersionError",
    "InvalidArgumentError",
    "Iterator",
    "KeyvaError",
    "NoSpaceError",
    "NotACounterError",
    "Options",
    "OutcomeUnknownError",
    "Pipeline",
    "ProtocolError",
    "Snapshot",
    "SnapshotLostError",
    "StoreError",
    "StoreLockedError",
    "Typed",
    "UnavailableError",
    "WriteBatch",
    "WriteStallError",
    "__version__",
    "connect",
    "open",
]
