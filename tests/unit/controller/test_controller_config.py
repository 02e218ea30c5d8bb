# SPDX-License-Identifier: Apache-2.0
"""controller.toml: every mistake is named, with its value and what would be accepted."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
from jarvis_controller.attestation_loop import next_delay_s
from jarvis_controller.config import ConfigError, ControllerConfig, load_config

from tests.support import ROOT

GOOD = """
fleet = "lab.example"
name = "main"
state_directory = "state"
advertise_enroll = "controller.lab.example:7441"
release_root = "root.json"
policy = "policy.toml"
"""
EXAMPLE = ROOT / "controller" / "controller.example.toml"


def config_of(tmp_path: Path, text: str) -> ControllerConfig:
    path = tmp_path / "controller.toml"
    path.write_text(text)
    return load_config(path)


def test_defaults_fill_what_is_not_said_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = config_of(tmp_path, GOOD)
    assert config.state_directory == tmp_path / "state"
    assert config.policy == tmp_path / "policy.toml"
    assert (config.agent_timeout_s, config.agent_certificate_h, config.kept_events) == (10, 24, 100_000)
    assert config.database == f"sqlite:///{tmp_path / 'state' / 'controller.db'}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('agent_timeout_s = "60"', "agent_timeout_s = '60': a number"),
        ("agent_timeout_s = nan", "agent_timeout_s = nan"),
        ("kept_events = true", "kept_events = True: a whole number"),
        ("agent_certificate_h = 25", r"agent_certificate_h = 25\.0"),
        ('listen = "7440"', "listen = '7440': host:port"),
        ('listen = "host:99999"', "listen = 'host:99999'"),
        ("database_url = 3", "database_url = 3: a string"),
        ('audit_syslog = "udp://host:514"', r"audit_syslog = 'udp://host:514': tls://host:port"),
        ('audit_syslog = "tls://host:0"', "audit_syslog = 'tls://host:0': tls://host:port"),
        ('audit_syslog_ca = "ca.pem"', r'audit_syslog = "": with audit_syslog_ca'),
        ('audit_syslog_sd_id = "jarvis"', "audit_syslog_sd_id = 'jarvis': name@enterprise-number"),
        ("audit_checkpoint_entries = 1001", r"audit_checkpoint_entries = 1001: 1\.\.1000"),
        ("verify_tls = false", "unknown field 'verify_tls'"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_what_is_accepted(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(tmp_path, GOOD + line)


@pytest.mark.parametrize("field", ["fleet", "name", "state_directory", "advertise_enroll", "release_root", "policy"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is missing"):
        config_of(tmp_path, re.sub(rf"(?m)^{field} = .*$", "", GOOD))


@pytest.mark.parametrize(
    ("old", "new"), [("lab.example", "Lab_Example"), ('"main"', '"no name"'), ('"policy.toml"', "[]"), ('"policy.toml"', '""')]
)
def test_a_value_that_cannot_be_is_refused(tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(ConfigError):
        config_of(tmp_path, GOOD.replace(old, new, 1))


def test_what_is_not_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not TOML"):
        config_of(tmp_path, "fleet = ")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "nowhere.toml")


def test_the_example_names_every_field_with_its_default(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    uncommented = re.sub(r"(?m)^# (\w+ = )", r"\1", text)
    table = tomllib.loads(uncommented)
    assert set(table) == {field.name for field in dataclasses.fields(ControllerConfig)}
    plain, full = config_of(tmp_path, text), config_of(tmp_path, uncommented)
    assert plain == full


def test_attestations_are_spread_over_a_tenth_of_the_interval() -> None:
    assert next_delay_s(60, 0, lambda low, _: low) == pytest.approx(54)
    assert next_delay_s(60, 0, lambda _, high: high) == pytest.approx(66)


def test_without_answers_the_delay_grows_with_full_jitter_up_to_the_interval() -> None:
    highest = [next_delay_s(60, failures, lambda _, high: high) for failures in (1, 2, 3, 10, 10_000)]
    assert highest == [1, 2, 4, 60, 60]
    assert next_delay_s(60, 5, lambda low, _: low) == 0
