# SPDX-License-Identifier: Apache-2.0
"""Routes through the façade: AS databases that the test writes itself, and the kernel's routes in a namespace of its own."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from ipaddress import ip_address
from pathlib import Path

import pytest
from jarvis_native.errors import CaptureFileError, CaptureStateError, InvalidArgument
from jarvis_native.loader import Firmware
from jarvis_native.routes import Route, Routes
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from testbed.netns import Namespace, is_available

NETWORKS = {
    "192.0.2.0/24": 64500,
    "192.0.2.128/25": 64501,
    "198.51.100.0/22": 4_200_000_001,
    "2001:db8::/32": 64510,
    "2001:db8:77::/48": 64511,
    "8000::/1": 64512,
}

SCRIPT = """
import json, subprocess, sys, time
from pathlib import Path
from jarvis_native.loader import load_firmware
from jarvis_native.routes import Routes

where = Path(sys.argv[1])
routes = Routes(firmware=load_firmware(where, release_root=(where / "root.json").read_bytes()), asn_database=sys.argv[2])

def look(*addresses):
    found = [routes.lookup(address) for address in addresses]
    return [[str(route.next_hop or ""), route.prefix_length, route.as_number, route.interface_index] for route in found]

def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)

asked = ["192.0.2.200", "192.0.2.1", "203.0.113.9", "2001:db8::9", "2001:db8:77::1"]
answers = {"before": look(*asked)}
ip("route", "add", "192.0.2.0/24", "via", "10.7.0.9")
ip("-6", "route", "add", "2001:db8::/32", "via", "fd00:7::9")
time.sleep(1.1)
routes.refresh()
answers["added"] = look(*asked)
ip("route", "del", "192.0.2.0/24")
ip("-6", "route", "del", "2001:db8::/32")
time.sleep(1.1)
routes.refresh()
answers["removed"] = look(*asked)
json.dump(answers, sys.stdout)
"""


def write_database(path: Path, networks: dict[str, int], *, key: str = "autonomous_system_number", version: int = 6) -> Path:
    """A MaxMind DB file, put in its place at once as geoipupdate does. More specific networks come later."""
    writer = MMDBWriter(version, "GeoLite2-ASN", languages=["en"], ipv4_compatible=version == 6)
    for network, number in networks.items():
        writer.insert_network(IPSet([network]), {key: number, "autonomous_system_organization": f"AS {number}"})
    fresh = path.with_suffix(".new")
    writer.to_db_file(str(fresh))
    fresh.replace(path)
    return path


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return write_database(tmp_path / "asn.mmdb", NETWORKS)


@pytest.fixture
def opened(firmware: Firmware, database: Path) -> Routes:
    return Routes(firmware=firmware, kernel=False, asn_database=database)


def wait_and_refresh(routes: Routes) -> None:
    time.sleep(1.05)  # nothing is looked at twice within a second
    routes.refresh()


def known(as_number: int, prefix_length: int) -> Route:
    return Route(next_hop=None, prefix_length=prefix_length, as_number=as_number, interface_index=0)


UNKNOWN = Route(next_hop=None, prefix_length=None, as_number=0, interface_index=0)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", known(64500, 25)),  # the writer splits the /24 around the /25
        ("192.0.2.200", known(64501, 25)),
        ("198.51.103.255", known(4_200_000_001, 22)),
        ("198.51.104.0", UNKNOWN),
        ("0.0.0.0", UNKNOWN),
        ("255.255.255.255", UNKNOWN),
        ("2001:db8:77::ffff", known(64511, 48)),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", known(64512, 1)),
        ("::", UNKNOWN),
        ("2001:db9::", UNKNOWN),
    ],
)
def test_an_address_has_the_as_number_and_prefix_of_its_network(opened: Routes, address: str, expected: Route) -> None:
    assert opened.lookup(address) == expected
    assert opened.lookup(ip_address(address)) == expected


def test_a_database_of_ipv4_alone_answers_for_ipv4(firmware: Firmware, tmp_path: Path) -> None:
    networks = {network: number for network, number in NETWORKS.items() if ":" not in network}
    routes = Routes(firmware=firmware, kernel=False, asn_database=write_database(tmp_path / "four.mmdb", networks, version=4))
    assert routes.lookup("192.0.2.200") == known(64501, 25)
    assert routes.lookup("2001:db8::1") == UNKNOWN


def test_a_database_that_replaces_another_is_taken_over(opened: Routes, database: Path) -> None:
    write_database(database, {"192.0.2.0/24": 65000})
    opened.refresh()
    assert opened.lookup("192.0.2.200").as_number == 64501, "looked at twice within a second"
    wait_and_refresh(opened)
    assert opened.lookup("192.0.2.200") == known(65000, 24)
    assert opened.lookup("2001:db8::1") == UNKNOWN


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _scramble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[:60] = b"\x00\xff\xff" * 20  # the first nodes of the tree: records beyond its end
    path.write_bytes(data)


def _make_a_circle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)  # every record there points to the first node
    path.write_bytes(data)


def _remove(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [_cut, _scramble, _make_a_circle, _remove, _empty])
def test_a_damaged_database_is_refused_and_the_old_one_kept(
    opened: Routes, database: Path, firmware: Firmware, spoil: Callable[[Path], None]
) -> None:
    spoil(database)
    time.sleep(1.05)
    with pytest.raises(CaptureFileError, match=r"asn_database .*asn\.mmdb") as caught:
        opened.refresh()
    assert caught.value.field == "asn_database"
    assert opened.lookup("192.0.2.200").as_number == 64501
    with pytest.raises(CaptureFileError):
        Routes(firmware=firmware, kernel=False, asn_database=database)


def test_a_refusal_is_told_once_and_a_sound_file_is_taken_over_later(opened: Routes, database: Path) -> None:
    _empty(database)
    with pytest.raises(CaptureFileError):
        wait_and_refresh(opened)
    wait_and_refresh(opened)
    write_database(database, {"192.0.2.0/24": 65000})
    wait_and_refresh(opened)
    assert opened.lookup("192.0.2.200").as_number == 65000


def test_a_database_cut_while_it_is_in_use_harms_nobody(opened: Routes, database: Path) -> None:
    os.truncate(database, 0)
    assert opened.lookup("192.0.2.200") == known(64501, 25)


def test_a_database_without_as_numbers_is_refused(firmware: Firmware, tmp_path: Path) -> None:
    city = write_database(tmp_path / "city.mmdb", NETWORKS, key="geoname_id")
    with pytest.raises(InvalidArgument, match="holds no autonomous_system_number: GeoLite2-ASN has it") as caught:
        Routes(firmware=firmware, kernel=False, asn_database=city)
    assert caught.value.field == "asn_database"


@pytest.mark.parametrize("path", ["", "a/directory", "missing.mmdb", "text"])
def test_what_is_no_database_is_refused_by_name(firmware: Firmware, tmp_path: Path, path: str) -> None:
    (tmp_path / "a/directory").mkdir(parents=True)
    (tmp_path / "text").write_text("no database\n" * 1000, encoding="utf-8")
    with pytest.raises(CaptureFileError, match="asn_database") as caught:
        Routes(firmware=firmware, kernel=False, asn_database=tmp_path / path)
    assert caught.value.field == "asn_database"


def test_nothing_to_look_up_is_refused(firmware: Firmware) -> None:
    with pytest.raises(InvalidArgument, match="give one or both") as caught:
        Routes(firmware=firmware, kernel=False)
    assert caught.value.field == "kernel"


def test_what_is_no_address_is_refused(opened: Routes) -> None:
    with pytest.raises(InvalidArgument, match=r"address is '192\.0\.2': accepted are IPv4 and IPv6"):
        opened.lookup("192.0.2")


def test_routes_that_are_closed_refuse_to_answer(opened: Routes) -> None:
    assert opened.lookup("192.0.2.200").as_number == 64501
    opened.close()
    opened.close()
    with pytest.raises(CaptureStateError):
        opened.lookup("192.0.2.200")
    with pytest.raises(CaptureStateError):
        opened.refresh()


def test_a_route_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        UNKNOWN.as_number = 1  # type: ignore[misc]


@pytest.mark.skipif(bool(is_available()), reason=is_available())
def test_kernel_routes_come_and_go_and_as_numbers_stay(
    firmware_directory: Path, program_environment: dict[str, str], database: Path, tmp_path: Path
) -> None:
    script = tmp_path / "routes.py"
    script.write_text(SCRIPT, encoding="utf-8")
    environment = [f"{name}={program_environment[name]}" for name in ("PYTHONPATH", "JARVIS_FIRMWARE_DIR", "JARVIS_RELEASE_ROOT")]
    with Namespace("routes") as namespace:
        namespace.run("ip", "link", "add", "lan", "type", "veth", "peer", "name", "wire")
        for address in ("10.7.0.1/24", "fd00:7::1/64"):
            namespace.run("ip", "address", "add", address, "dev", "lan")
        for device in ("lan", "wire"):
            namespace.run("ip", "link", "set", device, "up")
        namespace.run("ip", "route", "add", "default", "via", "10.7.0.254")
        index = int(json.loads(namespace.run("ip", "-j", "link", "show", "lan"))[0]["ifindex"])
        printed = namespace.run("env", *environment, sys.executable, str(script), str(firmware_directory), str(database))
    answers = json.loads(printed)
    before = [
        ["10.7.0.254", 0, 64501, index],
        ["10.7.0.254", 0, 64500, index],
        ["10.7.0.254", 0, 0, index],
        ["", 42, 64510, 0],
        ["", 48, 64511, 0],
    ]
    assert answers["before"] == answers["removed"] == before
    assert answers["added"] == [
        ["10.7.0.9", 24, 64501, index],
        ["10.7.0.9", 24, 64500, index],
        ["10.7.0.254", 0, 0, index],
        ["fd00:7::9", 32, 64510, index],
        ["fd00:7::9", 32, 64511, index],
    ]


def test_the_file_that_is_read_is_not_held_open(opened: Routes) -> None:
    assert "asn-database" not in Path("/proc/self/maps").read_text(encoding="utf-8")
    held = [os.readlink(name) for name in Path("/proc/self/fd").iterdir() if name.exists()]  # noqa: PTH115 - a magic link
    assert not [name for name in held if "asn" in name]
    assert opened.lookup("192.0.2.1").as_number == 64500
