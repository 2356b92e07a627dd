"""The settings of a store and of a node: one frozen structure, checked when it is made.

Each field below is documented once, in `OPTION_DOCS`, with its meaning, unit and trade-off; ``configs/keyva.toml``,
``keyva-node --help`` and the docs are held against it by a test. Spelling follows RocksDB where the option exists there.
"""

from __future__ import annotations

import os
import tomllib
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from keyva.errors import ConfigError

__all__ = ["KEY_BYTES_MAX", "OPTION_DOCS", "RESERVED_PREFIX", "Options", "absolute_paths", "load_toml"]

KEY_BYTES_MAX = 65536
"""The longest key, in bytes."""

RESERVED_PREFIX = b"\xff\xff"
"""Keys that begin with these bytes belong to the store itself."""

BATCH_AROUND_BYTES = 1024
"""What a batch of one value takes beside value and key, amply: lengths, and a content type with a short key."""

KIB = 1024
MIB = 1024 * 1024
GIB = 1024 * MIB


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """All settings; see `OPTION_DOCS` for what each means. Raises `ConfigError` (via `Options.of`) for a bad one."""

    durability: Literal["sync", "os"] = "sync"
    write_buffer_size: int = 64 * MIB
    max_write_buffer_number: int = 3
    block_size: int = 4 * KIB
    block_cache_size: int = 64 * MIB
    block_cache_idle_s: float = 60.0
    compression: Literal["lz4", "zstd", "none"] = "lz4"
    bloom_filter_bits: float = 10.0
    target_file_size_base: int = 64 * MIB
    max_bytes_for_level_base: int = 256 * MIB
    max_bytes_for_level_multiplier: int = 8
    compaction_style: Literal["lazy_leveled", "leveled", "tiered"] = "lazy_leveled"
    max_runs_per_level: int = 4
    max_compaction_bytes: int = 512 * MIB
    level0_file_num_compaction_trigger: int = 4
    level0_slowdown_writes_trigger: int = 20
    level0_stop_writes_trigger: int = 36
    delayed_write_rate: int = 16 * MIB
    write_stall_timeout_s: float = 20.0
    max_value_size: int = 64 * MIB
    max_batch_size: int = 128 * MIB
    allow_mmap_reads: bool = False
    readers: int = 1
    listen: str = ""
    curve_server_key_file: str = ""
    curve_client_keys_dir: str = ""
    http: str = "127.0.0.1:8080"
    http_token_file: str = ""
    heartbeat_interval_s: float = 1.0
    heartbeat_timeout_s: float = 15.0
    idle_stop_s: float = 0.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def of(cls, **settings: Any) -> Options:
        """Check ``settings`` and build the options; raises `ConfigError` that names the first wrong one."""
        hints = get_type_hints(cls)
        for name, value in settings.items():
            if name not in hints:
                raise ConfigError(f"unknown setting {name!r}{_nearest(name, hints)}")
            _check_type(name, value, hints[name])
            if isinstance(value, int) and hints[name] is float:
                settings[name] = _to_float(name, value)
        options = cls(**settings)
        _check_ranges(options)
        return options

    def replace(self, **settings: Any) -> Options:
        """Return a copy with some settings changed, checked like `of`."""
        return Options.of(**{**msgspec.structs.asdict(self), **settings})


PATHS = ("curve_server_key_file", "curve_client_keys_dir", "http_token_file")
"""Settings that name a file or directory."""

LIMITS: dict[str, tuple[float, float]] = {
    "write_buffer_size": (64 * KIB, 1 * GIB),
    "max_write_buffer_number": (2, 16),
    "block_size": (256, 1 * MIB),
    "block_cache_size": (0, 1024 * GIB),
    "block_cache_idle_s": (1, 86400),
    "bloom_filter_bits": (0, 32),
    "target_file_size_base": (64 * KIB, 4 * GIB),
    "max_bytes_for_level_base": (64 * KIB, 1024 * GIB),
    "max_bytes_for_level_multiplier": (2, 64),
    "max_runs_per_level": (2, 32),
    "max_compaction_bytes": (1 * MIB, 64 * GIB),
    "level0_file_num_compaction_trigger": (1, 64),
    "level0_slowdown_writes_trigger": (2, 1000),
    "level0_stop_writes_trigger": (3, 1000),
    "delayed_write_rate": (64 * KIB, 100 * GIB),
    "write_stall_timeout_s": (0.1, 3600),
    "max_value_size": (1, 1 * GIB),
    "max_batch_size": (KEY_BYTES_MAX, 2 * GIB - 1),
    "readers": (0, 64),
    "heartbeat_interval_s": (0.05, 60),
    "heartbeat_timeout_s": (1, 3600),
    "idle_stop_s": (0, 86400 * 365),
}
"""Smallest and largest value allowed, in the setting's unit."""

OPTION_DOCS: dict[str, str] = {
    "durability": "What an acknowledged write survives: 'sync' a power cut (one fdatasync per group of writes), 'os' a crash of "
    "any process but not of the machine. A batch can ask for either by itself (sync=True/False).",
    "write_buffer_size": "Bytes of memory (estimated) one memtable may take before it is flushed. Larger means fewer, larger "
    "flushes and less compaction, and more memory in the writer and in every process that reads.",
    "max_write_buffer_number": "Memtables, the active one included, that may exist before writes wait for the flusher.",
    "block_size": "Bytes of entries in a block before compression. Smaller blocks make a point read cheaper, larger ones "
    "compress better and need a smaller index.",
    "block_cache_size": "Bytes each reading process may keep of blocks, decompressed; single entries found take up to half as much more, "
    "or as much again where that holds all entries of the store. 0 turns the cache off.",
    "block_cache_idle_s": "Seconds after which a block that nobody read is dropped from the cache, and after which a process that "
    "reads nothing lets go of its memory and of files that compaction has removed.",
    "compression": "Codec of new blocks: 'lz4', 'zstd' (level 1: smaller, slower) or 'none'.",
    "bloom_filter_bits": "Bits per key of an SST's bloom filter; 10 gives about 1 % false positives, 0 turns filters off.",
    "target_file_size_base": "Bytes at which compaction starts a new SST.",
    "max_bytes_for_level_base": "Bytes level 1 may hold before it is compacted into level 2.",
    "max_bytes_for_level_multiplier": "How many times larger each level is than the one above it.",
    "compaction_style": "'lazy_leveled' keeps several runs per upper level and one in the last (least CPU for its space), "
    "'leveled' one run per level (least space, cheapest reads), 'tiered' several runs everywhere (cheapest writes).",
    "max_runs_per_level": "Runs a level below level 0 may hold before it is compacted, where the style allows more than one.",
    "max_compaction_bytes": "Input bytes of one compaction step; a longer compaction is a row of steps, each put into the manifest.",
    "level0_file_num_compaction_trigger": "Runs in level 0 that start a compaction.",
    "level0_slowdown_writes_trigger": "Runs in level 0 from which writes are slowed down to delayed_write_rate.",
    "level0_stop_writes_trigger": "Runs in level 0 from which writes wait.",
    "delayed_write_rate": "Bytes per second taken while writes are slowed down.",
    "write_stall_timeout_s": "Seconds a write waits for flusher or compactor before it is refused with WriteStallError.",
    "max_value_size": "Bytes of the largest value.",
    "max_batch_size": "Bytes of the largest write batch, encoded; at least max_value_size + 66560, for one value and its key.",
    "allow_mmap_reads": "Read SSTs through a memory map instead of pread. A little faster; but an I/O error then kills the "
    "process with SIGBUS instead of raising an error.",
    "readers": "Reader processes, for clients that are not on this host. 0 is allowed when all clients are local.",
    "listen": "tcp://HOST:PORT for clients on other hosts; readers take the ports that follow. Empty: ipc in the directory only. "
    "Anything but loopback needs curve_server_key_file and curve_client_keys_dir.",
    "curve_server_key_file": "Certificate with the node's CURVE secret key (made by `keyva keygen`).",
    "curve_client_keys_dir": "Directory with the public certificates of the clients that are let in.",
    "http": "HOST:PORT of the HTTP API and the page; port 0 takes a free one, and the ready line says which. Empty: none. "
    "Anything but loopback needs http_token_file.",
    "http_token_file": "File with the secret that HTTP clients must send as `Authorization: Bearer SECRET`; readable by its owner alone.",
    "heartbeat_interval_s": "Seconds between a worker's signs of life to the node.",
    "heartbeat_timeout_s": "Seconds without a sign of life after which the node kills and restarts a worker.",
    "idle_stop_s": "Seconds after which the node stops when no embedded client is attached. 0: never.",
    "log_level": "Least severe messages that are logged: 'debug', 'info', 'warning' or 'error'.",
}


def absolute_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Return ``settings`` with paths made absolute: they mean those of the process that was given them, not of the one that uses them."""
    return {
        name: os.path.abspath(value) if name in PATHS and value and isinstance(value, str) else value for name, value in settings.items()
    }


def load_toml(path: str) -> dict[str, Any]:
    """Read settings from a TOML file of ``name = value`` lines; raises `ConfigError` naming the file. Values are not checked."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read settings from {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _check_type(name: str, value: Any, hint: Any) -> None:
    if get_origin(hint) is Literal:
        allowed = get_args(hint)
        if not isinstance(value, str) or value not in allowed:
            raise ConfigError(f"setting {name!r} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
        return
    if isinstance(value, bool) and hint is not bool:
        raise ConfigError(f"setting {name!r} must be a number, not {value!r}" if hint is not str else f"setting {name!r} must be text")
    wanted: tuple[type, ...] = (int, float) if hint is float else (hint,)
    if not isinstance(value, wanted):
        raise ConfigError(f"setting {name!r} must be {_type_name(hint)}, not {value!r}")


def _check_ranges(options: Options) -> None:
    for name, (low, high) in LIMITS.items():
        value = getattr(options, name)
        if not low <= value <= high:  # also refuses nan
            raise ConfigError(f"setting {name!r} must be between {low:g} and {high:g}, not {value!r}")
    if options.level0_slowdown_writes_trigger > options.level0_stop_writes_trigger:
        raise ConfigError("setting 'level0_slowdown_writes_trigger' must not be above 'level0_stop_writes_trigger'")
    if options.level0_file_num_compaction_trigger > options.level0_stop_writes_trigger:
        raise ConfigError("setting 'level0_file_num_compaction_trigger' must not be above 'level0_stop_writes_trigger'")
    if options.max_batch_size < (least := options.max_value_size + KEY_BYTES_MAX + BATCH_AROUND_BYTES):
        raise ConfigError(
            f"setting 'max_batch_size' must be at least {least}: a value of 'max_value_size', its key, and what is around them"
        )
    if options.heartbeat_timeout_s < 2 * options.heartbeat_interval_s:
        raise ConfigError("setting 'heartbeat_timeout_s' must be at least twice 'heartbeat_interval_s'")


def _to_float(name: str, value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"setting {name!r} is out of range") from None


def _type_name(hint: Any) -> str:
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))


def _nearest(name: str, known: dict[str, Any]) -> str:
    from difflib import get_close_matches  # only on the way to an error

    matches = get_close_matches(name, known, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
