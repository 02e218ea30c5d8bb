# SPDX-License-Identifier: Apache-2.0
"""agent.toml: every error names the field, its value and what would be accepted."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jarvis_agent.config import AgentConfig
from jarvis_agent.errors import ConfigError

from tests.support import ROOT

GOOD: dict[str, Any] = {
    "fleet": "lab.example",
    "join_file": "join.json",
    "advertise": "probe:7443",
    "release_root": "root.json",
    "firmware_directory": "/fw",
}


def test_the_required_fields_are_enough_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = AgentConfig.from_mapping(GOOD, base=tmp_path)
    assert (config.join_file, config.firmware_directory) == (tmp_path / "join.json", Path("/fw"))
    assert (config.tcti, config.pcr, config.replay_directory) == ("device:/dev/tpmrm0", 14, None)


def test_the_example_is_accepted_and_shows_the_real_defaults(tmp_path: Path) -> None:
    text = (ROOT / "agent" / "agent.example.toml").read_text()
    config = AgentConfig.load(ROOT / "agent" / "agent.example.toml")
    shown = tomllib.loads("\n".join(re.findall(r"^# ([a-z_]+ = .*)$", text, re.MULTILINE)))
    with_defaults = AgentConfig.from_mapping(GOOD, base=tmp_path)
    for name in (
        "firmware_floor",
        "tcti",
        "pcr",
        "store_pcrs",
        "listen",
        "carrier",
        "tunnel_retry_s",
        "tunnel_retry_max_s",
        "enroll_retry_s",
        "flow_log_records",
        "spool_memory_mb",
        "spool_disk_mb",
        "export_routes",
        "log_format",
    ):
        value = tuple(shown[name]) if isinstance(shown[name], list) else shown[name]
        assert value == getattr(with_defaults, name) == getattr(config, name), name
    assert Path(shown["state_directory"]) == with_defaults.state_directory
    assert Path(shown["spool_directory"]) == with_defaults.state_directory / "spool"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fleet", "Not A Name"),
        ("fleet", 5),
        ("join_file", ""),
        ("spool_memory_mb", 0),
        ("spool_disk_mb", -1),
        ("export_routes", 1),
        ("export_directory", ""),
        ("advertise", "probe"),
        ("advertise", "probe:0"),
        ("listen", "0.0.0.0:70000"),
        ("carrier", "pigeon"),
        ("tunnel_address", "controller"),
        ("tunnel_retry_s", 0),
        ("tunnel_retry_max_s", 301),
        ("firmware_floor", -1),
        ("firmware_floor", True),
        ("tcti", "swtpm"),
        ("pcr", 16),
        ("pcr", 23),
        ("ak_handle", 0x81010002),
        ("ek_handle", "0x81800000"),
        ("tls_key_handle", "81010003"),
        ("store_pcrs", []),
        ("store_pcrs", [7, 7]),
        ("store_pcrs", [24]),
        ("enroll_retry_s", 0),
        ("worker_cpus", [-1]),
        ("worker_cpus", "0"),
        ("dpdk_eal_args", "--no-huge"),
        ("dpdk_eal_args", ["--no-huge", ""]),
        ("dpdk_eal_args", ["--no-huge", 1]),
        ("dpdk_eal_args", ["-v"] * 65),
        ("flow_log_records", 1000),
        ("flow_log_records", 3000),
        ("log_format", "xml"),
    ],
)
def test_a_bad_value_is_named_with_what_would_be_accepted(field: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        AgentConfig.from_mapping(GOOD | {field: value}, base=tmp_path)
    assert str(refused.value).startswith(f"{field}: {value!r} is not accepted")
    assert "accepted" in str(refused.value).split(";")[-1]


def test_handles_are_read_and_each_key_has_its_own(tmp_path: Path) -> None:
    config = AgentConfig.from_mapping(GOOD | {"ak_handle": "0x81010002", "ek_handle": ""}, base=tmp_path)
    assert (config.ak_handle, config.ek_handle, config.tls_key_handle) == (0x81010002, None, None)
    with pytest.raises(ConfigError, match="tls_key_handle: 0x81010002 is ak_handle too"):
        AgentConfig.from_mapping(GOOD | {"ak_handle": "0x81010002", "tls_key_handle": "0x81010002"}, base=tmp_path)


def test_the_store_key_never_hangs_on_the_pcr_that_every_start_extends(tmp_path: Path) -> None:
    for values in ({"store_pcrs": [7, 14]}, {"pcr": 7}):
        with pytest.raises(ConfigError, match=r"store_pcrs: .* holds `pcr`"):
            AgentConfig.from_mapping(GOOD | values, base=tmp_path)


def test_missing_and_unknown_fields_are_all_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        AgentConfig.from_mapping({"fleet": "lab.example", "skip_checks": True}, base=tmp_path)
    lines = str(refused.value).splitlines()
    assert lines[0].startswith("skip_checks: no such field; accepted are advertise, ")
    assert {line.split(":")[0] for line in lines[1:]} == {"join_file", "release_root", "firmware_directory"}


def test_an_agent_that_is_dialled_has_to_say_where(tmp_path: Path) -> None:
    values = {name: value for name, value in GOOD.items() if name != "advertise"}
    assert AgentConfig.from_mapping(values, base=tmp_path).carrier == "tunnel"
    with pytest.raises(ConfigError, match=r'^advertise: is missing; with carrier = "direct" host:port is accepted'):
        AgentConfig.from_mapping({**values, "carrier": "direct"}, base=tmp_path)


def test_a_file_that_is_not_toml_or_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: No such file"):
        AgentConfig.load(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("fleet = ")
    with pytest.raises(ConfigError, match="is not TOML"):
        AgentConfig.load(tmp_path / "bad.toml")


def test_tls_towards_collectors_needs_ca_certificate_and_key(tmp_path: Path) -> None:
    files = dict.fromkeys(("export_tls_ca", "export_tls_certificate", "export_tls_key"), "file.pem")
    assert AgentConfig.from_mapping(GOOD | files, base=tmp_path).export_tls_ca == tmp_path / "file.pem"
    for missing in files:
        rest = {name: value for name, value in files.items() if name != missing}
        with pytest.raises(ConfigError, match=f"^{missing}: is missing"):
            AgentConfig.from_mapping(GOOD | rest, base=tmp_path)
