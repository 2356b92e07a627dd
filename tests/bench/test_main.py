"""The command keyva-bench: its help, reports and errors, and that it leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import msgspec
import psutil
import pytest
from click.testing import CliRunner, Result
from nodes import eventually

from keyva.bench.main import main
from keyva.bench.systems import SYSTEMS, available
from keyva.bench.workloads import WORKLOADS

SCRIPT = os.path.join(sysconfig.get_path("scripts"), "keyva-bench")
EMBEDDED = [name for name in ("plyvel", "rocksdict", "lmdb", "sqlite") if name in available()]


class About(msgspec.Struct, forbid_unknown_fields=True):
    processor: str
    cores: int
    memory: str
    kernel: str
    file_system: str
    python: str
    keyva: str
    load: float
    command: str
    date: str


class Kind(msgspec.Struct, forbid_unknown_fields=True):
    version: str
    setup: str


class Report(msgspec.Struct):
    machine: About
    systems: dict[str, Kind]
    left_out: dict[str, str]
    settings: dict[str, int | float | str]


class Round(msgspec.Struct, forbid_unknown_fields=True):
    entries: int
    seconds: float
    per_second: float
    p50_us: float
    p99_us: float
    p999_us: float


class Measured(msgspec.Struct, forbid_unknown_fields=True):
    workload: str
    system: str
    setup: str
    rounds: list[Round]


class RunReport(Report, forbid_unknown_fields=True):
    measurements: list[Measured]


class TableRow(msgspec.Struct, forbid_unknown_fields=True):
    row: str
    peer: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    goal: float
    reached: bool
    rounds: list[tuple[float, float]]


class TableReport(Report, forbid_unknown_fields=True):
    rows: list[TableRow]


class Point(msgspec.Struct, forbid_unknown_fields=True):
    system: str
    entries: int
    start_s: float
    fill_us: float
    settle_s: float
    get_us: float
    absent_us: float
    scan_us: float | None
    bytes_written_per_byte_given: float
    bytes_kept_per_byte_given: float
    bytes_read_per_get: float | None
    memory_empty_bytes: int | float | None
    memory_bytes: int | float | None
    memory_by_process_bytes: dict[str, int | float | None]
    memory_peak_by_process_bytes: dict[str, int | float | None]
    recovery_log_entries: int | None
    recovery_s: float | None


class MeasureReport(Report, forbid_unknown_fields=True):
    points: list[Point]
    settings: dict[str, int | float | str | list[int]]  # type: ignore[assignment]


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_the_help_names_every_command_and_how_to_begin() -> None:
    text = run("--help").output
    for command in ("list", "run", "table", "measure", "plot"):
        assert f"keyva-bench {command}" in text
        assert run(command, "--help").output.count("\n") > 5


def test_list_shows_every_workload_and_system() -> None:
    text = run("list").output
    assert all(f"  {name} " in text for name in [*WORKLOADS, *SYSTEMS])


def test_run_compares_every_system_over_all_rounds(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    names = ["keyva", *EMBEDDED]
    systems = [part for name in names for part in ("--system", name)]
    workloads = ["fillbatch", "compact", "readrandom", "readseq", "ycsb-b"]
    result = run("run", *workloads, *systems, "--num", 300, "--rounds", 2, "--dir", tmp_path, "--json", path)
    report = msgspec.json.decode(path.read_bytes(), type=RunReport)
    assert [(found.workload, found.system) for found in report.measurements] == [(w, name) for w in workloads for name in names]
    assert list(report.systems) == names and report.left_out == {}
    for found in report.measurements:
        assert len(found.rounds) == 2
        for one in found.rounds:
            assert one.entries == (1 if found.workload == "compact" else 300)
            assert 0 < one.p50_us <= one.p99_us <= one.p999_us and one.per_second == pytest.approx(one.entries / one.seconds)
    assert all(SYSTEMS[name].setup in result.stdout for name in names), "what was set must be printed"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_workload_a_system_cannot_do_is_left_out_and_said_so() -> None:
    name = "plyvel" if "plyvel" in EMBEDDED else "sqlite"
    workload = "fillsync" if name == "plyvel" else "fillpipeline"
    result = run("run", workload, "fillbatch", "--system", "keyva", "--system", name, "--num", 200, "--rounds", 1)
    assert f"left out: {workload} on {name}: " in result.stdout


@pytest.mark.skipif("plyvel" not in EMBEDDED, reason="plyvel is not installed")
def test_systems_for_one_process_are_left_out_of_several_whatever_the_workload(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    systems = ["--system", "keyva", "--system", "plyvel"]
    result = run("run", "fillbatch", "readseq", *systems, "--num", 200, "--rounds", 1, "--processes", 2, "--json", path)
    assert "left out: plyvel: cannot be used by several processes" in result.stdout
    alone = run("run", "readseq", "--system", "plyvel", "--num", 200, "--processes", 2, code=2)
    assert "nothing can be measured: plyvel cannot be used by several processes" in alone.stderr
    report = msgspec.json.decode(path.read_bytes(), type=RunReport)
    assert [found.system for found in report.measurements] == ["keyva", "keyva"]


@pytest.mark.parametrize("arguments", ["list", "--help", "run --help"])
def test_a_reader_that_leaves_ends_it_quietly(arguments: str) -> None:
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen([SCRIPT, *arguments.split()], stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait(60)) == (b"", 141)


def test_a_report_goes_through_a_link_and_keeps_the_mode_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    run("run", "fillbatch", "--system", "sqlite", "--num", 200, "--rounds", 1, "--json", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    msgspec.json.decode((tmp_path / "file").read_bytes(), type=RunReport)


def test_ctrl_c_while_a_store_opens_leaves_nothing(tmp_path: Path) -> None:
    command = [SCRIPT, "run", "fillbatch", "--system", "keyva", "--num", "1000", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        own = psutil.Process(process.pid)
        (node,) = eventually(lambda: [child for child in own.children() if "keyva.workers.node" in child.cmdline()], "the node is started")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "keyva-bench: interrupted\n"
    assert not node.is_running() or node.status() == psutil.STATUS_ZOMBIE
    assert os.listdir(tmp_path) == []


def test_a_system_that_is_not_there_is_left_out_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SYSTEMS["redis"], "program", "no-such-redis-server")
    monkeypatch.setattr(SYSTEMS["redis"], "module", "")
    result = run("run", "fillbatch", "--system", "sqlite", "--system", "redis", "--num", 200, "--rounds", 1, "--markdown")
    assert "left out: redis: no-such-redis-server is not installed" in result.stdout
    assert result.stdout.startswith("| workload | system |")
    assert "none of the systems can run here" in run("run", "fillbatch", "--system", "redis", code=1).stderr


def test_table_reports_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    result = run("table", "--only", "empty store", "--num", 200, "--rounds", 1, "--json", path, "--markdown")
    report = msgspec.json.decode(path.read_bytes(), type=TableReport)
    (row,) = report.rows
    assert (row.row, row.theirs, row.goal) == ("ready, empty store", 0.5, 1.0)
    assert row.reached == (row.ratio >= row.goal) and row.ratio == pytest.approx(0.5 / row.ours)
    assert "| ready, empty store | (limit) |" in result.stdout


def test_measure_reports_costs_by_size(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    names = [name for name in ("keyva", "redis", "sqlite") if name in available()]
    systems = [part for name in names for part in ("--system", name)]
    run("measure", *systems, "--size", 400, "--size", 200, "--rounds", 1, "--dir", "/tmp", "--json", path)
    report = msgspec.json.decode(path.read_bytes(), type=MeasureReport)
    assert [(point.entries, point.system) for point in report.points] == [(size, name) for size in (200, 400) for name in names]
    for point in report.points:
        own = point.system != "sqlite"
        assert point.bytes_written_per_byte_given > 0 and point.bytes_kept_per_byte_given > 0
        assert bool(point.memory_bytes) == bool(point.recovery_s) == own
        if own:
            assert point.memory_bytes == sum(value or 0 for value in point.memory_by_process_bytes.values())
        assert set(point.memory_peak_by_process_bytes) == set(point.memory_by_process_bytes)
        for role, size in point.memory_by_process_bytes.items():
            assert 0 < (size or 0) <= (point.memory_peak_by_process_bytes[role] or 0)
        if point.system == "keyva":
            assert {"node", "writer"} <= set(point.memory_by_process_bytes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "fillsequence"], "'fillsequence' is not one of 'fillseq'"),
        (["run", "fillseq", "--system", "mysql"], "'mysql' is not one of 'keyva'"),
        (["run", "fillseq", "--num", "5"], "5 is not in the range 100<=x<=100000000"),
        (["run", "fillseq", "--threads", "2", "--processes", "2"], "--threads and --processes cannot be combined"),
        (["run", "fillseq", "--processes", "1000"], "1000 is not in the range"),
        (["run", "fillseq", "--dir", "/no/such/directory"], "does not exist"),
        (["table", "--quick", "--full"], "--quick and --full cannot be combined"),
        (["table", "--quick", "--num", "1000"], "--num cannot be combined with --quick or --full"),
        (["table", "--only", "no such row"], "no row's name contains 'no such row'; the rows are: fillbatch"),
        (["plot", "/no/such/report.json"], "does not exist"),
        (["graph"], "No such command 'graph'"),
        (["run", "fillseq", "--json", "/no/such/report.json"], "there is no directory /no/such"),
        (["table", "--json", "/no/such/report.json"], "there is no directory /no/such"),
        (["measure", "--json", "/no/such/report.json"], "there is no directory /no/such"),
        (["run", "fillsync", "--system", "keyva-nosync"], "nothing can be measured: fillsync on keyva-nosync does not sync"),
    ],
)
def test_wrong_arguments_end_with_2_and_say_what_is_wrong(arguments: list[str], message: str) -> None:
    result = run(*arguments, code=2)
    assert message in result.stderr and "Traceback" not in result.output


def test_too_little_room_on_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    result = run("run", "fillseq", "--num", 100_000_000, "--value-size", 10_000_000, "--dir", tmp_path, code=1)
    assert "GB are needed; name another --dir" in result.stderr and os.listdir(tmp_path) == []


ROUND = '{"per_second": 1, "p50_us": 1, "p99_us": 1, "p999_us": 1}'


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[1]",
        "{}",
        '{"measurements": []}',
        '{"measurements": {}}',
        '{"measurements": [{"workload": "fillseq"}]}',
        '{"measurements": [{"workload": "fillseq", "system": "keyva", "rounds": []}]}',
        '{"measurements": [{"workload": "fillseq", "system": "keyva", "rounds": [1]}]}',
        '{"measurements": [{"workload": "../up", "system": "keyva", "rounds": [' + ROUND + "]}]}",
        '{"measurements": [{"workload": "fillseq", "system": "keyva", "rounds": [' + ROUND.replace(": 1", ': "1"') + "]}]}",
        '{"rows": [{"row": "a"}]}',
        '{"rows": [null]}',
        '{"points": [{"system": "keyva"}]}',
    ],
)
def test_plot_refuses_what_is_no_report(tmp_path: Path, content: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    assert str(path) in run("plot", path, "--to", tmp_path, code=1).stderr
    assert os.listdir(tmp_path) == ["report.json"]


def test_plot_draws_each_kind_of_report(tmp_path: Path) -> None:
    rounds = [{"entries": 10, "seconds": 1.0, "per_second": 10.0, "p50_us": 1.0, "p99_us": 2.0, "p999_us": 3.0}]
    row = {"row": "a", "peer": "b", "ours": 1.0, "theirs": 2.0, "unit": "s", "ratio": 2.0, "goal": 1.0, "reached": True, "rounds": []}
    costs = dict.fromkeys(Point.__struct_fields__, 1.0) | {"system": "keyva", "memory_bytes": None}
    contents = {
        "measurements": ([{"workload": "fillseq", "system": "keyva", "setup": "", "rounds": rounds}], "fillseq.png"),
        "rows": ([row], "table.png"),
        "points": ([costs | {"entries": 100}, costs | {"entries": 1000}], "growth-get_us.png"),
    }
    for name, (content, picture) in contents.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({name: content}))
        run("plot", path, "--to", tmp_path / "pictures")
        assert (tmp_path / "pictures" / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_all_it_started(number: signal.Signals) -> None:
    names = [name for name in ("keyva", "redis") if name in available()]
    systems = [part for name in names for part in ("--system", name)]
    with subprocess.Popen(
        [SCRIPT, "run", "readrandom", "--num", "1000", "--reads", "50000000", *systems, "--processes", "2", "--dir", "/tmp"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert "readrandom" in process.stderr.readline()
            own = psutil.Process(process.pid)
            found = eventually(
                lambda: [child for child in own.children(recursive=True) if "spawn_main" in " ".join(child.cmdline())], "workers"
            )
            family = {*found, *own.children(recursive=True)}
            directories = {word for child in family for word in child.cmdline() if word.startswith("/tmp/keyva-bench-")}
            assert directories
            process.send_signal(number)
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
        assert "interrupted" in process.stderr.read()
    eventually(lambda: not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE], "all ended")
    assert not [path for path in directories if os.path.exists(path)]


def test_without_its_libraries_the_command_says_how_to_get_them() -> None:
    program = f"import runpy, sys; sys.modules['hdrh'] = None; runpy.run_path({SCRIPT!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "pip install 'keyva[bench]'" in done.stderr
    assert "Traceback" not in done.stderr
