# SPDX-License-Identifier: Apache-2.0
"""Exports as operators and the policy have them, over a real fleet and a real collector: enabled, seen, forbidden, ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.collectors import HOST, Nfcapd, missing
from testbed.fleet import FIRMWARE, Agent, Fleet, wait_for
from testbed.policy import PolicyText
from tests.e2e.conftest import write_capture

ALLOWED = PolicyText(interval_s=1, lease_s=5, collectors=[HOST])

pytestmark = pytest.mark.skipif(bool(missing("nfcapd", "nfdump")), reason=missing("nfcapd", "nfdump"))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A controller and one verified agent, which may export to 127.0.0.1."""
    if not (FIRMWARE / "manifest.sig").exists():
        pytest.fail(f"{FIRMWARE} holds no signed firmware: run `make setup`")
    with Fleet(directory=tmp_path_factory.mktemp("fleet"), policy=ALLOWED) as fleet:
        fleet.start()
        fleet.wait_for_state(fleet.add_agent("host-a"), "verified")
        yield fleet


def status(fleet: Fleet, export_id: str) -> dict[str, Any]:
    """The export of the only agent."""
    ((export,),) = (row["exports"] for row in fleet.rows("export", "status", export_id))
    return dict(export)


def collector_of(fleet: Fleet, export_id: str) -> dict[str, Any]:
    (collector,) = status(fleet, export_id)["collectors"]
    return dict(collector)


def replay(fleet: Fleet, agent: Agent, name: str) -> None:
    fleet.jarvisctl("capture", "start", "--agent", agent.agent_id, "--file", name)

    def is_over() -> bool:
        (row,) = fleet.rows("capture", "status")
        return bool(row["capture"]["state"] == "stopped")

    wait_for("the end of the capture", is_over, log=agent.log)


def audited(fleet: Fleet, action: str) -> list[dict[str, Any]]:
    return [json.loads(row["detail"]) for row in fleet.rows("audit", "list") if row["action"] == action]


@pytest.mark.timeout(120)
def test_an_export_that_was_enabled_reaches_its_collector_until_it_is_disabled(fleet: Fleet, one: Agent, tmp_path: Path) -> None:
    made = write_capture(one, name="export.pcap")
    with Nfcapd(tmp_path / "nfcapd") as collector:
        place = f"{HOST}:{collector.port}"
        fleet.jarvisctl("export", "enable", "--id", "siem", "--collector", place, "--all")
        # The same again is no error, another specification under the id is.
        fleet.jarvisctl("export", "enable", "--id", "siem", "--collector", place, "--all")
        other = fleet.run("export", "enable", "--id", "siem", "--collector", place, "--biflow", "--all")
        assert (other.returncode, "EXPORT_EXISTS" in other.stdout) == (1, True)

        replay(fleet, one, "export.pcap")
        # A record for each direction of each connection.
        wait_for("every record to leave", lambda: collector_of(fleet, "siem")["flows"] == 2 * len(made), log=one.log)
        sent = collector_of(fleet, "siem")
        assert (sent["state"], sent["address"], sent["dropped_flows"], sent["spooled_flows"]) == ("connected", place, 0, 0)

        (ended,) = (row["exports"] for row in fleet.rows("export", "disable", "siem", "--all"))
        assert [export["spec"]["export_id"] for export in ended] == ["siem"]
        assert [row["exports"] for row in fleet.rows("export", "status")] == [[]]
        summary = collector.summary()
    found = (summary.flows, summary.packets, summary.octets, summary.sequence_errors, summary.bad_packets)
    assert found == (sent["flows"], sent["flow_packets"], sent["flow_octets"], 0, 0)
    enabled = audited(fleet, "export.enable")
    assert {entry["request"]["spec"]["collectors"][0]["port"] for entry in enabled} == {collector.port}
    assert [entry["code"] for entry in enabled].count("OK") == 2
    assert [entry["code"] for entry in audited(fleet, "export.disable")] == ["OK"]


@pytest.mark.timeout(120)
def test_a_collector_that_the_policy_no_longer_allows_gets_nothing_until_it_does_again(
    fleet: Fleet, one: Agent, tmp_path: Path
) -> None:
    made = write_capture(one, name="policy.pcap")
    with Nfcapd(tmp_path / "nfcapd") as collector:
        fleet.jarvisctl("export", "enable", "--id", "soc", "--collector", f"{HOST}:{collector.port}", "--all")
        narrow = PolicyText(version=2, interval_s=1, lease_s=5, collectors=["192.0.2.0/24"])
        fleet.jarvisctl("policy", "apply", str(fleet.set_policy(narrow)))
        wait_for("the export to stop", lambda: status(fleet, "soc")["state"] == "not_allowed", log=one.log)
        assert fleet.rows("events", "--type", "export_not_allowed", "--since", "oldest")
        refused = fleet.run("export", "enable", "--id", "more", "--collector", HOST, "--all")
        assert refused.returncode == 1
        assert "EXPORT_NOT_ALLOWED" in refused.stderr
        replay(fleet, one, "policy.pcap")
        assert collector_of(fleet, "soc")["flows"] == 0

        wide = PolicyText(version=3, interval_s=1, lease_s=5, collectors=[HOST])
        fleet.jarvisctl("policy", "apply", str(fleet.set_policy(wide)))
        wait_for("the records to leave", lambda: collector_of(fleet, "soc")["flows"] == 2 * len(made), log=one.log)
        assert status(fleet, "soc")["state"] == "active"
        fleet.jarvisctl("export", "disable", "soc", "--all")
        assert collector.summary().flows == 2 * len(made)


@pytest.mark.timeout(60)
def test_what_only_the_agent_can_know_is_its_outcome_and_leaves_nothing_behind(fleet: Fleet) -> None:
    for options, reason in (
        (("--collector", HOST, "--transport", "tls"), "EXPORT_TLS_CERTIFICATE"),
        (("--collector", HOST, "--filter", "tcp prot 4"), "FILTER_INVALID"),
    ):
        done = fleet.run("--output", "json", "export", "enable", "--id", "bad", *options, "--all")
        assert done.returncode == 1, done.stderr
        assert json.loads(done.stdout)["error"]["reason"] == reason
    assert [row["exports"] for row in fleet.rows("export", "status")] == [[]]
