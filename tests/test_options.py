from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest

from keyva.errors import ConfigError
from keyva.options import KEY_BYTES_MAX, LIMITS, OPTION_DOCS, Options, load_toml
from keyva.reserved import CONTENT_TYPE_CHARS_MAX
from keyva.writes import messages_of, update_of

TOML = Path(__file__).parent.parent / "configs" / "keyva.toml"
HINTS = get_type_hints(Options)
DEFAULTS = msgspec.structs.asdict(Options())


def test_the_defaults_are_allowed() -> None:
    assert Options.of() == Options()


def test_every_setting_is_documented() -> None:
    assert list(OPTION_DOCS) == list(DEFAULTS)
    assert all(text.endswith(".") for text in OPTION_DOCS.values())


def test_every_number_has_limits_and_the_default_lies_within() -> None:
    numbers = [name for name, hint in HINTS.items() if hint in (int, float)]
    assert sorted(LIMITS) == sorted(numbers)
    assert all(low <= DEFAULTS[name] <= high for name, (low, high) in LIMITS.items())


class TestConfigFile:
    """configs/keyva.toml shows every setting, commented out, with its meaning, unit and default."""

    text = TOML.read_text()

    def test_nothing_is_set_as_it_stands(self) -> None:
        assert load_toml(str(TOML)) == {}

    def test_names_order_and_defaults_are_those_of_options(self) -> None:
        shown = tomllib.loads("\n".join(line[1:] for line in self.text.splitlines() if re.match(r"#\w+ = ", line)))
        assert list(shown.items()) == list(DEFAULTS.items())
        assert Options.of(**shown) == Options()

    @pytest.mark.parametrize("name", list(DEFAULTS))
    def test_every_setting_has_its_documentation_above_it(self, name: str) -> None:
        above = re.search(rf"((?:^# .*\n)+)#{name} = ", self.text, re.MULTILINE)
        assert above is not None
        comment = " ".join(line[2:] for line in above[1].splitlines())
        assert " ".join(OPTION_DOCS[name].split()) in " ".join(comment.split())

    @pytest.mark.parametrize("name", list(LIMITS))
    def test_every_number_shows_its_limits(self, name: str) -> None:
        low, high = LIMITS[name]
        line = re.search(rf"^#{name} = .*$", self.text, re.MULTILINE)
        assert line is not None
        assert f"{low:_} to {high:_}" in line[0]

    @pytest.mark.parametrize("name", [name for name, hint in HINTS.items() if get_origin(hint) is not None])
    def test_every_choice_shows_what_there_is(self, name: str) -> None:
        line = re.search(rf"^#{name} = .*$", self.text, re.MULTILINE)
        assert line is not None
        assert all(f'"{choice}"' in line[0] for choice in get_args(HINTS[name]))


class TestBadSettings:
    """The error names the setting."""

    def test_an_unknown_name(self) -> None:
        with pytest.raises(ConfigError, match=r"unknown setting 'blok_size'; did you mean 'block_size'\?"):
            Options.of(blok_size=1)
        with pytest.raises(ConfigError, match=r"unknown setting 'xyzzy'$"):
            Options.of(xyzzy=1)

    @pytest.mark.parametrize("name", list(DEFAULTS))
    @pytest.mark.parametrize("value", [None, [1], {"a": 1}, b"x", object()])
    def test_a_wrong_type(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=name):
            Options.of(**{name: value})

    def test_bytes_are_no_text_and_are_not_compared_with_any(self) -> None:
        program = "from keyva.options import Options\ntry: Options.of(durability=b'sync')\nexcept ValueError as error: print(error)"
        told = subprocess.run([sys.executable, "-bb", "-c", program], check=True, capture_output=True, text=True).stdout
        assert told == "setting 'durability' must be one of 'sync', 'os', not b'sync'\n"

    @pytest.mark.parametrize("name", list(DEFAULTS))
    def test_a_truth_value_is_no_number_and_no_text(self, name: str) -> None:
        if HINTS[name] is bool:
            assert getattr(Options.of(**{name: True}), name) is True
        else:
            with pytest.raises(ConfigError, match=name):
                Options.of(**{name: True})

    @pytest.mark.parametrize("name", list(LIMITS))
    def test_a_number_out_of_its_range(self, name: str) -> None:
        low, high = LIMITS[name]
        for value in (low - 1, high + 1, -(10**400), 10**400):
            with pytest.raises(ConfigError, match=name):
                Options.of(**{name: value if HINTS[name] is float else int(value)})

    @pytest.mark.parametrize("name", [name for name in LIMITS if HINTS[name] is float])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_not_a_number(self, name: str, value: float) -> None:
        with pytest.raises(ConfigError, match=name):
            Options.of(**{name: value})

    @pytest.mark.parametrize("name", [name for name, hint in HINTS.items() if hint is int])
    def test_a_fraction_where_a_whole_number_is_wanted(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"'{name}' must be a whole number"):
            Options.of(**{name: 4096.5})

    @pytest.mark.parametrize("name", ["durability", "compression", "compaction_style", "log_level"])
    def test_a_word_that_is_no_choice(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"'{name}' must be one of"):
            Options.of(**{name: "best"})

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"level0_slowdown_writes_trigger": 40}, "level0_slowdown_writes_trigger"),
            ({"level0_file_num_compaction_trigger": 40}, "level0_file_num_compaction_trigger"),
            ({"max_value_size": 128 * 1024 * 1024}, "max_batch_size"),
            ({"max_value_size": 65_536, "max_batch_size": 2 * 65_536}, "'max_batch_size' must be at least 132096"),
            ({"heartbeat_interval_s": 10}, "heartbeat_timeout_s"),
        ],
    )
    def test_settings_that_do_not_go_together(self, settings: dict[str, Any], named: str) -> None:
        with pytest.raises(ConfigError, match=named):
            Options.of(**settings)


@pytest.mark.parametrize("types", [{}, {b"": "x" * CONTENT_TYPE_CHARS_MAX}])
def test_a_batch_has_room_for_the_largest_value_with_the_longest_key(types: dict[bytes, str]) -> None:
    options = Options.of(max_value_size=1000, max_batch_size=1000 + 66_560)
    key = b"k" * (0 if types else KEY_BYTES_MAX)
    write = update_of({key: bytes(1000)}, types, None)
    (message,) = messages_of([write], options.max_batch_size)
    assert len(message.body()) <= options.max_batch_size
    messages_of([(key, bytes(1000))], options.max_batch_size)
    with pytest.raises(ConfigError, match="max_batch_size"):
        options.replace(max_batch_size=1000 + 66_559)


def test_a_whole_number_serves_where_a_number_is_wanted() -> None:
    options = Options.of(bloom_filter_bits=8)
    assert type(options.bloom_filter_bits) is float


def test_replace_checks_too_and_leaves_the_original() -> None:
    options = Options.of(block_size=8192)
    assert options.replace(readers=2).block_size == 8192
    assert options.readers == 1
    with pytest.raises(ConfigError, match="readers"):
        options.replace(readers=-1)


def test_options_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Options().readers = 2  # type: ignore[misc]


class TestLoadToml:
    def test_values_are_handed_on(self, tmp_path: Path) -> None:
        file = tmp_path / "k.toml"
        file.write_text('durability = "os"\nreaders = 2\n')
        assert Options.of(**load_toml(str(file))) == Options(durability="os", readers=2)

    def test_a_table_is_no_setting(self, tmp_path: Path) -> None:
        file = tmp_path / "k.toml"
        file.write_text("[node]\nreaders = 2\n")
        with pytest.raises(ConfigError, match="unknown setting 'node'"):
            Options.of(**load_toml(str(file)))

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
            load_toml(str(tmp_path / "none.toml"))

    @pytest.mark.parametrize("content", [b"readers = \n", b"\xff\xfe"])
    def test_what_is_not_toml_is_named(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "k.toml"
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"k\.toml is not valid TOML"):
            load_toml(str(file))
