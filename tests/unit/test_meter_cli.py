# SPDX-License-Identifier: Apache-2.0
"""`jarvis-agent meter` as users start it: outputs, exit codes, error sentences, interrupts, start-up."""

from __future__ import annotations

import csv
import io
import json
import os
import runpy
import select
import signal
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jarvis_agent import meter as offline
from jarvis_agent import meter_terminal
from jarvis_agent.cli import plain_meter_options
from jarvis_agent.commands import app
from jarvis_agent.meter_output import OutputError, check_output
from jarvis_native.loader import Firmware
from typer.testing import CliRunner

from tests.support import DATA

CONNECTION = str(DATA / "connection.pcap")
SUMMARY_KEYS = ["packets", "ip_packets", "octets", "flows", "malformed", "dropped", "seconds", "packets_per_second"]
RECORD_KEYS = [
    "src_addr", "dst_addr", "src_port", "dst_port", "ip_protocol", "vlan_id", "fwd_packets", "fwd_octets", "rev_packets",
    "rev_octets", "start_time_unix_ns", "end_time_unix_ns", "tcp_flags", "end_reason", "flow_id",
]  # fmt: skip

Environment = dict[str, str]


def program(environment: Environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jarvis_agent", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def meter(environment: Environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    return program(environment, "meter", *arguments)


@pytest.fixture(scope="module")
def many_flows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of 100,000 flows of one packet each: more records than the core's log holds, more text than a pipe does."""
    make = runpy.run_path(str(DATA / "make_captures.py"))
    frame = make["ethernet"](0x0800, make["ip4"]("192.0.2.1", "192.0.2.2", 17, make["udp"](0, 0)))
    packets = [(n * 1000, frame[:26] + (0x0A000000 + n).to_bytes(4, "big") + frame[30:]) for n in range(100_000)]
    path = tmp_path_factory.mktemp("captures") / "many.pcap"
    path.write_bytes(make["pcap"](packets))
    return path


# ---- what comes out


def test_json_is_one_object_a_line_and_the_summary_is_on_stderr(program_environment: Environment) -> None:
    done = meter(program_environment, CONNECTION)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    summary = json.loads(done.stderr)
    assert done.returncode == 0
    assert [list(record)[: len(RECORD_KEYS)] for record in records] == [RECORD_KEYS] * 3
    assert list(summary)[: len(SUMMARY_KEYS)] == SUMMARY_KEYS
    assert [summary[key] for key in SUMMARY_KEYS[:6]] == [12, 11, 1740, 3, 0, 0]
    assert summary["packets_per_second"] == pytest.approx(12 / summary["seconds"], abs=1)


def test_without_output_the_summary_is_the_only_line_on_stdout(program_environment: Environment) -> None:
    done = meter(program_environment, CONNECTION, "--output", "none")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, done.stdout, 1)
    assert json.loads(done.stdout)["flows"] == 3


def test_csv_has_a_header_line_also_without_records(program_environment: Environment) -> None:
    rows = list(csv.DictReader(meter(program_environment, CONNECTION, "--output", "csv").stdout.splitlines()))
    assert list(rows[0])[: len(RECORD_KEYS)] == RECORD_KEYS
    assert [row["fwd_octets"] for row in rows] == ["260", "84", "80"]
    assert meter(program_environment, CONNECTION, "--output", "csv", "--filter", "host 203.0.113.1").stdout.startswith(
        "src_addr,"
    )


def test_parquet_holds_the_same_records(program_environment: Environment, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    path = tmp_path / "flows.parquet"
    done = meter(program_environment, CONNECTION, "--output", "parquet", "-o", str(path))
    table = parquet.read_table(path)
    assert (done.returncode, done.stdout) == (0, "")
    assert table.column("fwd_octets").to_pylist() == [260, 84, 80]
    assert table.column("end_reason").to_pylist() == [3, 4, 4]


def test_every_record_comes_out_however_many(program_environment: Environment, many_flows: Path, tmp_path: Path) -> None:
    path = tmp_path / "flows.json"
    done = meter(program_environment, str(many_flows), "-o", str(path))
    assert (done.returncode, done.stdout) == (0, "")
    with path.open(encoding="utf-8") as lines:
        sources = {json.loads(line)["src_addr"] for line in lines}
    assert len(sources) == 100_000 == json.loads(done.stderr)["flows"]


def test_a_named_file_appears_complete_and_leaves_nothing_beside_it(program_environment: Environment, tmp_path: Path) -> None:
    path = tmp_path / "flows.json"
    path.write_text("old", encoding="utf-8")
    assert meter(program_environment, CONNECTION, "-o", str(path)).returncode == 0
    assert path.read_text(encoding="utf-8").count("\n") == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["flows.json"]


def test_a_failure_leaves_the_old_file_alone(program_environment: Environment, tmp_path: Path) -> None:
    path = tmp_path / "flows.json"
    path.write_text("old", encoding="utf-8")
    assert meter(program_environment, str(tmp_path / "absent.pcap"), "-o", str(path)).returncode == 1
    assert path.read_text(encoding="utf-8") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["flows.json"]


def test_a_fifo_is_written_in_place_and_never_replaced(program_environment: Environment, tmp_path: Path) -> None:
    path = tmp_path / "flows.fifo"
    os.mkfifo(path)
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE, text=True) as cat:
        done = meter(program_environment, CONNECTION, "-o", str(path))
        text, _ = cat.communicate(timeout=10)
    assert (done.returncode, text.count("\n")) == (0, 3)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_full_disk_is_an_error(program_environment: Environment) -> None:
    done = meter(program_environment, CONNECTION, "-o", "/dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: /dev/full: No space left on device\n"


# ---- options


@pytest.mark.parametrize(
    "options", [["--workers", "3"], ["--workers", "0"], ["--workers", "2", "--worker-cpus", "0,0"]], ids=" ".join
)
def test_several_workers_write_the_records_of_one(program_environment: Environment, many_flows: Path, options: list[str]) -> None:
    one = meter(program_environment, str(many_flows))
    several = meter(program_environment, str(many_flows), *options)
    assert (several.returncode, one.returncode) == (0, 0)
    assert sorted(several.stdout.splitlines()) == sorted(one.stdout.splitlines())


def test_filter_and_timeouts_reach_the_core(program_environment: Environment) -> None:
    summary = json.loads(meter(program_environment, CONNECTION, "--output=none", "--filter", "icmp or ip6").stdout)
    assert (summary["packets"], summary["ip_packets"], summary["filtered"], summary["flows"]) == (12, 4, 8, 2)
    pauses = str(DATA / "pauses.pcap")
    assert json.loads(meter(program_environment, pauses, "--output", "none").stdout)["flows"] == 3
    assert json.loads(meter(program_environment, pauses, "--output", "none", "--idle", "0", "--active", "0").stdout)["flows"] == 1


def test_sampling_leaves_packets_out_and_counts_them(program_environment: Environment, many_flows: Path) -> None:
    for method in ("systematic", "flow-hash"):
        done = meter(program_environment, str(many_flows), "--sampling", f"{method}:10")
        summary = json.loads(done.stderr)
        assert summary["packets"] == summary["ip_packets"] + summary["unsampled"] == 100_000
        assert 9_500 < summary["ip_packets"] < 10_500
        assert {json.loads(line)["sampling_interval"] for line in done.stdout.splitlines()} == {10}


def test_a_small_table_evicts_and_counts(program_environment: Environment, many_flows: Path) -> None:
    summary = json.loads(meter(program_environment, str(many_flows), "--output", "none", "--max-flows", "4096").stdout)
    assert summary["flows"] == summary["ip_packets"] == 100_000
    assert 0 < summary["evicted"] < 100_000


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([CONNECTION, "--filter", "port port"], 2, "error: --filter"),
        ([CONNECTION, "--mirror-timestamps"], 2, "error: --mirror-timestamps is given and --tunnel is outer: accepted with"),
        ([CONNECTION, "--sampling", "random:5"], 2, "error: --sampling is 'random:5': accepted are systematic:N and flow-hash:N"),
        ([CONNECTION, "--sampling", "systematic:0"], 2, "error: --sampling is 'systematic:0': accepted are systematic:N and"),
        ([CONNECTION, "--sampling", "flow-hash:1000001"], 2, "with N from 1 to 1000000"),
        ([CONNECTION, "--idle", "0.5"], 2, "error: --idle is 0.5: accepted are 0 (never) and 1 to 86400"),
        ([CONNECTION, "--active", "1e99"], 2, "error: --active is 1e+99: accepted are 0 (never) and 1 to 86400"),
        ([CONNECTION, "--max-flows", "17"], 2, "error: --max-flows is 17: accepted are"),
        ([CONNECTION, "--max-flows", "-17"], 2, "error: --max-flows is -17: accepted are"),
        ([CONNECTION, "--workers", "65"], 2, "error: --workers is 65: accepted are 1 to 64, and 0 for one a CPU"),
        ([CONNECTION, "--workers", "-1"], 2, "error: --workers is -1: accepted are"),
        (
            [CONNECTION, "--worker-cpus", "4095"],
            2,
            "error: --worker-cpus: worker_cpus[0] is 4095: this machine has the CPUs 0 to",
        ),
        ([CONNECTION, "--worker-cpus", "0,0"], 2, "error: --worker-cpus: the number of CPUs is 2: accepted is one CPU for each"),
        ([CONNECTION, "--workers", "2", "--tunnel", "both"], 2, "error: --tunnel is both and --workers is 2: accepted are outer"),
        ([CONNECTION, "--output", "none", "-o", "x"], 2, "error: -o x: --output none writes no records"),
        ([CONNECTION, "--output", "parquet"], 2, "error: --output parquet writes a file: name it with -o PATH"),
        ([CONNECTION, "-o", "/nonexistent/flows.json"], 1, "error: -o /nonexistent/flows.json"),
        ([CONNECTION, "-o", "/"], 1, "error: -o /: is a directory"),
        (["/nonexistent.pcap"], 1, "error: /nonexistent.pcap cannot be opened: No such file or directory"),
        ([str(DATA / "expected.jsonl")], 1, "is not a capture file"),
        ([CONNECTION, str(DATA / "expected.jsonl")], 1, "expected.jsonl is not a capture file"),
        ([CONNECTION, "--release-root", "/nonexistent.json"], 3, "error: RELEASE_ROOT_MISSING"),
        ([CONNECTION, "--firmware-dir", "/nonexistent"], 3, "error: FIRMWARE_MISSING: /nonexistent/libjarvis_capture.so"),
    ],
)
def test_bad_input_gets_one_sentence_and_its_exit_code(
    program_environment: Environment, arguments: list[str], code: int, sentence: str
) -> None:
    done = meter(program_environment, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--output", "xml", CONNECTION],
        [CONNECTION, "--idle", "soon"],
        [CONNECTION, "--speed"],
        [CONNECTION, "-o"],
        [CONNECTION, "--worker-cpus", "0;1"],
    ],
)
def test_what_is_no_command_line_exits_with_2(program_environment: Environment, arguments: list[str]) -> None:
    done = meter(program_environment, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_parquet_without_pyarrow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OutputError, match=r"pip install 'jarvis-capture\[arrow\]'"):
        check_output("parquet", Path("flows.parquet"))


LINES = [
    ["a.pcap"],
    ["a.pcap", "b.pcapng", "--output", "csv", "-o", "out.csv"],
    ["--filter", "tcp port 80", "--idle=0", "--active", "60.5", "--max-flows", "4096", "a.pcap"],
    ["--tunnel", "inner", "a.pcap"],
    ["a.pcap", "--tunnel=both"],
    ["--sampling", "systematic:100", "a.pcap"],
    ["a.pcap", "--tunnel", "both", "--mirror-timestamps", "--idle", "5"],
    ["a.pcap", "--sampling=flow-hash:1"],
    ["a.pcap", "--workers", "2", "--worker-cpus=0,1"],
    ["a.pcap", "--statistics", "tcp,sizes,intervals,headers"],
    ["a.pcap", "--statistics=tcp"],
    ["a.pcap", "--export", "ipfix:h", "--export=netflow9:[::1]:2055", "--biflow", "--export-rate", "0", "--export-time", "us"],
    ["a.pcap", "--export", "ipfix/tls:h", "--export-tls-ca", "a", "--export-tls-certificate=b", "--export-tls-key", "c"],
    ["--export", "ipfix:a", "--export", "ipfix:b", "a.pcap", "--export-balance", "--output", "csv", "--export-profile=full"],
    ["a.pcap", "--export", "netflow5:a", "--export-routes", "--export-asn-database", "as.mmdb"],
    ["a.pcap", "--output", "ipfix", "--export-domain", "7"],
    ["a.pcap", "--filter=", "--release-root", "root.json", "--firmware-dir=/lib/x", "--output=none"],
]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_plain_line_means_the_same_with_and_without_typer(monkeypatch: pytest.MonkeyPatch, line: list[str]) -> None:
    seen: list[Any] = []

    def note(options: offline.MeterOptions) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(offline, "meter", note)
    result = CliRunner().invoke(app, ["meter", *line])
    assert result.exit_code == 0, result.output
    assert plain_meter_options(line) == seen[0]


@pytest.mark.parametrize(
    "line",
    [[], ["-h"], ["a.pcap", "--help"], ["--"], ["a.pcap", "--idle", "-1"], ["a.pcap", "--idle", "1e3"], ["a.pcap", "-oout"],
     ["a.pcap", "--output", "xml"], ["a.pcap", "--idle"], ["a.pcap", "--idle", "1", "--idle", "2"], ["--fil", "tcp", "a.pcap"],
     ["--mirror-timestamps=yes", "a.pcap"], ["--mirror-timestamps", "a.pcap", "--mirror-timestamps"],
     ["a.pcap", "--sampling", "systematic"], ["a.pcap", "--sampling", "1:2"], ["a.pcap", "--sampling", "flow-hash:-1"],
     ["a.pcap", "--statistics", "tcp,"], ["a.pcap", "--export"], ["a.pcap", "--export-rate", "-1"],
     ["a.pcap", "--biflow", "--biflow"], ["a.pcap", "--export-domain", "1", "--export-domain", "1"]],
    ids=" ".join,
)  # fmt: skip
def test_any_other_line_is_left_to_typer(line: list[str]) -> None:
    assert plain_meter_options(line) is None


def test_the_statistics_memory_is_said_at_the_start_and_in_the_summary(program_environment: Environment) -> None:
    done = meter(program_environment, CONNECTION, "--output", "none", "--max-flows", "4096", "--statistics", "tcp,intervals")
    first, summary = done.stderr.splitlines()
    assert first.startswith("statistics take 1.0 MiB of the flow table's ")
    assert json.loads(summary)["statistics_bytes"] == 4096 * (160 + 96)
    assert json.loads(summary)["flow_table_bytes"] > 4096 * (128 + 160 + 96)


def test_a_parquet_file_has_the_statistics_columns(program_environment: Environment, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    path = tmp_path / "flows.parquet"
    done = meter(program_environment, CONNECTION, "--output", "parquet", "-o", str(path), "--statistics", "sizes")
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(path)
    assert table.column_names[-8:-4] == [f"fwd_payload_{part}" for part in ("min", "max", "mean", "stddev")]
    assert max(table.column("fwd_payload_max").to_pylist()) > 0


def test_an_unknown_statistic_is_refused_with_what_is_accepted(program_environment: Environment) -> None:
    done = meter(program_environment, CONNECTION, "--statistics", "tcp,rtt")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'rtt': accepted are tcp, sizes, intervals and headers" in done.stderr


# ---- damage, interrupts, broken pipes


def test_a_file_without_any_ip_packet_is_a_warning(program_environment: Environment, tmp_path: Path) -> None:
    path = tmp_path / "unknown.pcap"
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 147)  # LINKTYPE_USER0
    path.write_bytes(header + struct.pack("<IIII", 1, 0, 4, 4) + b"abcd")
    done = meter(program_environment, str(path), "--output", "none")
    assert (done.returncode, json.loads(done.stdout)["non_ip"]) == (0, 1)
    assert "warning: no packet of 1 has an IP header behind a link layer that is decoded" in done.stderr
    assert "warning" not in meter(program_environment, CONNECTION, "--output", "none").stderr


def test_a_cut_tail_is_a_warning_that_names_the_file(program_environment: Environment) -> None:
    done = meter(program_environment, str(DATA / "cut.pcap"), "--output", "none")
    assert done.returncode == 0
    _summary, warning = done.stderr.splitlines()
    assert warning.startswith("warning: ")
    assert "cut.pcap is damaged at byte" in warning
    assert json.loads(done.stdout)["ip_packets"] == 10


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_cut_file_is_named(program_environment: Environment, workers: str) -> None:
    files = [str(DATA / "cut.pcap"), CONNECTION, str(DATA / "cut.pcapng")]
    done = meter(program_environment, *files, "--output", "none", "--workers", workers)
    assert done.returncode == 0
    _summary, *warnings = done.stderr.splitlines()
    assert ["cut.pcap is" in line for line in warnings] == [True, False]
    assert ["cut.pcapng is" in line for line in warnings] == [False, True]


def test_damage_in_the_middle_is_metered_around_and_exits_with_1(program_environment: Environment, tmp_path: Path) -> None:
    data = bytearray((DATA / "connection.pcap").read_bytes())
    data[24 + 16 + 42 + 8 : 24 + 16 + 42 + 12] = (1 << 31).to_bytes(4, "little")  # the second record's captured length
    damaged = tmp_path / "lying.pcap"
    damaged.write_bytes(data)
    done = meter(program_environment, str(damaged), CONNECTION, "--output", "none")
    assert done.returncode == 1
    assert "lying.pcap is damaged at byte 82" in done.stderr
    summary = json.loads(done.stdout)
    assert (summary["packets"], summary["ip_packets"], summary["malformed"]) == (14, 11, 1)


def test_a_reader_that_goes_away_ends_it_quietly(program_environment: Environment, many_flows: Path) -> None:
    command = [sys.executable, "-m", "jarvis_agent", "meter", str(many_flows)]
    with subprocess.Popen(command, env=program_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(100)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=10) == 141


def test_ctrl_c_ends_with_whole_lines_the_summary_so_far_and_130(program_environment: Environment, many_flows: Path) -> None:
    command = [sys.executable, "-m", "jarvis_agent", "meter", str(many_flows)]
    with subprocess.Popen(command, env=program_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 10)[0], "no record came"
        process.send_signal(signal.SIGINT)  # it is writing to a full pipe
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    lines = out.splitlines()
    assert all(json.loads(line)["fwd_packets"] == 1 for line in lines)
    assert json.loads(err)["flows"] == len(lines) > 0


class Terminal(io.StringIO):
    """Standard error as a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_is_one_rewritten_line_on_a_terminal(
    firmware: Firmware, firmware_directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(meter_terminal, "_PROGRESS_S", 0)  # due at once
    code = offline.meter(
        offline.MeterOptions(
            files=(Path(CONNECTION),),
            output_path=tmp_path / "flows.json",
            firmware_directory=firmware_directory,
            release_root=firmware_directory / "root.json",
        )
    )
    *progress, summary = terminal.getvalue().split("\x1b[K")
    assert code == 0
    assert progress[0].startswith("\r12 packets (")
    assert progress[-1] == "\r"  # cleared before the summary
    assert json.loads(summary)["packets"] == 12


def test_no_progress_is_shown_when_stderr_is_no_terminal(program_environment: Environment, many_flows: Path) -> None:
    done = meter(program_environment, *[str(many_flows)] * 3, "--output", "none")
    assert (done.returncode, done.stderr) == (0, done.stdout)


def test_untrusted_firmware_exits_with_3_and_the_reason(program_environment: Environment, tmp_path: Path) -> None:
    source = Path(program_environment["JARVIS_FIRMWARE_DIR"])
    for name in ("libjarvis_capture.so", "manifest.json", "manifest.sig"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    with (tmp_path / "libjarvis_capture.so").open("r+b") as library:
        library.seek(1000)
        library.write(b"\xff\xfe")
    done = meter(program_environment, CONNECTION, "--firmware-dir", str(tmp_path))
    assert done.returncode == 3
    assert done.stderr.startswith("error: FIRMWARE_ALTERED: ")


# ---- start-up, help and the other commands


def test_the_meter_imports_neither_grpc_nor_the_tpm_stack(program_environment: Environment) -> None:
    code = f"""
import sys
sys.argv = ["jarvis-agent", "meter", {CONNECTION!r}, "--output", "none"]
from jarvis_agent.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
print("\\n".join(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], env=program_environment, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[1:]}
    assert "jarvis_native" in loaded
    assert not loaded & {"grpc", "google", "tpm2_pytss", "jarvis", "pyarrow", "rich", "typer", "pydantic", "structlog", "cffi"}


@pytest.mark.parametrize(
    "command", ["run", "meter", "backends", "version", "tpm show", "tpm clear-handles", "tpm rotate-tls-key"]
)
def test_the_help_of_every_command_documents_its_exit_codes(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Exit codes: 0" in result.output


def test_the_shell_completion_script_is_offered(program_environment: Environment) -> None:
    done = program(program_environment | {"_JARVIS_AGENT_COMPLETE": "source_bash"})
    assert done.returncode == 0
    assert "_JARVIS_AGENT_COMPLETE=complete_bash" in done.stdout


def test_version_names_agent_and_firmware(program_environment: Environment) -> None:
    done = program(program_environment, "version")
    agent, library = done.stdout.splitlines()
    assert (done.returncode, agent) == (0, "jarvis-agent 0.1.0")
    assert library.startswith("libjarvis_capture 0.1.0 sha256:")


def test_backends_are_shown_with_their_reasons(program_environment: Environment) -> None:
    table = program(program_environment, "backends", "no-such-if0").stdout
    assert "interface no-such-if0 does not exist" in table
    rows = json.loads(program(program_environment, "backends", "--output", "json").stdout)
    assert {row["name"] for row in rows} >= {"file", "pcap", "afpacket"}
    assert all(row["reason"] for row in rows)


def test_run_refuses_a_configuration_that_is_not_there(program_environment: Environment, tmp_path: Path) -> None:
    pytest.importorskip("grpc", reason="the agent's extra is not installed")
    pytest.importorskip("tpm2_pytss", reason="the agent's extra is not installed")
    done = program(program_environment, "run", "--config", str(tmp_path / "absent.toml"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "absent.toml" in done.stderr
    assert done.stderr.count("\n") == 1


def test_run_without_the_agents_extra_names_it(program_environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("raise ModuleNotFoundError('hidden', name='grpc')", encoding="utf-8")
    hidden = program_environment | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{program_environment['PYTHONPATH']}"}
    done = program(hidden, "run")
    assert done.returncode == 1
    assert done.stderr == "error: run needs the Python module grpc: install it with pip install 'jarvis-capture[agent]'\n"
