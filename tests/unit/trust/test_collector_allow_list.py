# SPDX-License-Identifier: Apache-2.0
"""The allow-list of collectors: what it admits, and everything that only looks as if it were admitted."""

from __future__ import annotations

import contextlib
import ipaddress
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jarvis_trust.collector_allow_list import MAX_ENTRIES, AllowList, AllowListError, parse_host
from jarvis_trust.errors import PolicyError

LABELS = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8).filter(lambda label: not label[0].isdigit())
NAMES = st.lists(LABELS, min_size=2, max_size=4).map(".".join)
PORTS = st.integers(1, 65535)
V4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
V6 = st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address).filter(lambda address: address.ipv4_mapped is None)


def permits(entry: str, host: str, port: int = 4739) -> bool:
    return AllowList.parse([entry]).permits(host, port)


@pytest.mark.parametrize(
    ("entry", "host", "port"),
    [
        ("192.0.2.0/24", "192.0.2.255", 1),
        ("192.0.2.7", "192.0.2.7", 65535),
        ("192.0.2.0/24:2055", "192.0.2.9", 2055),
        ("192.0.2.7:2055", "192.0.2.7", 2055),
        ("0.0.0.0/0", "203.0.113.5", 4739),
        ("2001:db8::/32", "2001:DB8:0:0::1", 4739),
        ("2001:db8::1", "2001:0db8:0000::0001", 4739),
        ("[2001:db8::1]", "2001:db8::1", 4739),
        ("[2001:db8::1]:4739", "2001:db8::1", 4739),
        ("[2001:db8::]/32:4739", "2001:db8:ffff::", 4739),
        ("[2001:db8::]/32", "2001:db8:ffff::", 4739),
        ("siem.example", "SIEM.Example", 4739),
        ("siem.example", "siem.example.", 4739),
        ("SIEM.example.", "siem.example", 4739),
        ("siem.example:4739", "siem.example", 4739),
        ("*.siem.example", "a.siem.example", 4739),
        ("*.siem.example", "a.b.SIEM.example.", 4739),
        ("*.siem.example:4739", "a.siem.example", 4739),
        ("xn--bcher-kva.example", "XN--BCHER-KVA.example", 4739),
        ("collector", "collector", 4739),
        ("log_stash.docker", "log_stash.docker", 4739),
        # What is mapped from IPv4 is sent by IPv4.
        ("192.0.2.0/24", "::ffff:192.0.2.1", 4739),
        ("192.0.2.0/24", "::ffff:c000:201", 4739),
        ("::ffff:192.0.2.0/120", "192.0.2.1", 4739),
        ("::ffff:192.0.2.1", "192.0.2.1", 4739),
        ("[::ffff:192.0.2.1]:4739", "::ffff:192.0.2.1", 4739),
    ],
)
def test_what_an_entry_admits(entry: str, host: str, port: int) -> None:
    assert permits(entry, host, port)


@pytest.mark.parametrize(
    ("entry", "host"),
    [
        ("192.0.2.0/24", "192.0.3.0"),
        ("192.0.2.7", "192.0.2.8"),
        ("2001:db8::/32", "2001:db9::"),
        # Names that contain, start or end with an admitted one.
        ("siem.example", "siem.example.attacker"),
        ("siem.example", "evilsiem.example"),
        ("siem.example", "evil.siem.example"),
        ("siem.example", "siem-example"),
        ("siem.example", "siemxexample"),
        ("*.siem.example", "siem.example"),
        ("*.siem.example", "evil.siem.example.attacker"),
        ("*.siem.example", "evilsiem.example"),
        ("*.siem.example", ".siem.example"),
        ("*.siem.example", "..siem.example"),
        ("*.siem.example", "a..siem.example"),
        ("*.siem.example", "*.siem.example"),
        ("*.siem.example", "attacker#.siem.example"),
        ("*.siem.example", "attacker/.siem.example"),
        ("*.siem.example", "attacker@x.siem.example"),
        ("*.siem.example", "attacker\0.siem.example"),
        ("*.siem.example", "attacker\n.siem.example"),
        ("*.siem.example", "attacker:53.siem.example"),
        ("*.siem.example", "-a.siem.example"),
        ("*.siem.example", f"{'a' * 64}.siem.example"),
        ("*.siem.example", f"{'a.' * 130}siem.example"),
        ("siem.example", "siem.example.."),
        ("siem.example", ""),
        ("siem.example", "."),
        ("siem.example", " siem.example"),
        ("siem.example", "siem.example\n"),
        # Characters that lower-case, fold or normalise to those of an admitted name.
        ("siem.example", "\u017fiem.example"),
        ("kiem.example", "\u212aiem.example"),
        ("siem.example", "siem\uff0eexample"),
        ("siem.example", "s\u0456em.example"),
        ("siem.example", "xn--sem-3vc.example"),
        # An address is not what a name means, and a name is not what an address means.
        ("0.0.0.0/0", "siem.example"),
        ("::/0", "siem.example"),
        ("0.0.0.0/0", "localhost"),
        ("*.example", "192.0.2.1"),
        ("0.0.0.0/0", "2001:db8::1"),
        ("::/0", "192.0.2.1"),
        ("::/0", "::ffff:192.0.2.1"),
        ("::/64", "::ffff:192.0.2.1"),
        ("192.0.2.0/24", "64:ff9b::192.0.2.1"),
        ("192.0.2.0/24", "::192.0.2.1"),
        # What inet_aton(3) would take for an address of the network.
        ("127.0.0.0/8", "127.1"),
        ("127.0.0.0/8", "0x7f.1"),
        ("127.0.0.0/8", "0x7f000001"),
        ("127.0.0.0/8", "2130706433"),
        ("127.0.0.0/8", "017700000001"),
        ("127.0.0.0/8", "127.0.0.01"),
        ("127.0.0.0/8", "0177.0.0.1"),
        ("127.0.0.0/8", "127.0.0.1."),
        ("127.0.0.0/8", "127.0.0.1 "),
        ("127.0.0.0/8", "127.0.0.1\0"),
        ("127.0.0.0/8", "127.0.0.\u0661"),
        ("127.0.0.0/8", "\uff11\uff12\uff17.0.0.1"),
        ("127.0.0.0/8", "+127.0.0.1"),
        ("127.0.0.0/8", "::ffff:127.0.0.01"),
        ("127.0.0.0/8", "::ffff:127.0.0.1%lo"),
        ("fe80::/10", "fe80::1%eth0"),
        ("fe80::/10", "fe80::1%25eth0"),
        ("2001:db8::/32", "[2001:db8::1]"),
        ("2001:db8::/32", "2001:db8::1]"),
        ("2001:db8::/32", "2001:db8::1/128"),
        ("192.0.2.0/24", "192.0.2.1:4739"),
        ("192.0.2.0/24", "192.0.2.1/32"),
        # The word for files is no host.
        ("file", "file"),
        ("*.file", "file"),
    ],
)
def test_what_only_looks_admitted_is_not(entry: str, host: str) -> None:
    assert not permits(entry, host)


@pytest.mark.parametrize("port", [-1, 0, 65536, 4738, 4740, 47390])
def test_an_entry_with_a_port_admits_no_other(port: int) -> None:
    assert not permits("192.0.2.0/24:4739", "192.0.2.1", port)
    assert not permits("siem.example:4739", "siem.example", port)


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_no_entry_admits_what_is_no_port(port: int) -> None:
    assert not permits("192.0.2.0/24", "192.0.2.1", port)


@pytest.mark.parametrize(
    "entry",
    [
        *("", " ", "*", "*.", "*.*.example", "a.*.example", "**.example", ".example", "a..example", "-a.example", "a-.example"),
        *("siem.example ", "siem example", "siem.example/24", "http://siem.example", "siem.example:4739:1", "user@siem.example"),
        *("siem.example:", "siem.example:0", "siem.example:65536", "siem.example:+1", "siem.example:04739", "siem.example:http"),
        *("192.0.2.1/24", "192.0.2.0/33", "192.0.2.0/", "192.0.2.0/024", "192.0.2.0/255.255.255.0", "192.0.2.0/-1", "192.0.2/24"),
        *("127.1", "0x7f.1", "0x7f000001", "2130706433", "010.0.0.1", "192.0.2.1.", "192.0.2.256", "*.1", "*.192.0.2.1"),
        *("2001:db8::/32:4739", "2001:db8::1/32", "2001:db8::/129", "fe80::1%eth0", "fe80::%eth0/10", "[fe80::1%eth0]:4739"),
        *(
            "[2001:db8::1",
            "2001:db8::1]",
            "[[2001:db8::1]]",
            "[2001:db8::1]4739",
            "[192.0.2.1]:4739",
            "[siem.example]:4739",
            "[]:1",
        ),
        *("[2001:db8::1]:", "[2001:db8::1]:0", "file:4739", "FILE", "bücher.example", "siem.example\n", "\0", "a" * 101),
    ],
)
def test_an_entry_of_another_form_is_refused_with_its_place_and_what_is_accepted(entry: str) -> None:
    with pytest.raises(AllowListError) as caught:
        AllowList.parse(["192.0.2.0/24", entry])
    assert caught.value.reason == "POLICY_INVALID"
    assert caught.value.message.startswith("collectors[1] = ")
    assert entry[:90] in caught.value.message or repr(entry)[1:-1] in caught.value.message
    assert caught.value.message.endswith("accepted")


def test_host_bits_are_refused_and_the_network_is_named() -> None:
    with pytest.raises(AllowListError, match=r'"192\.0\.2\.0/24"'):
        AllowList.parse(["192.0.2.1/24"])


def test_as_many_entries_as_a_lease_takes_are_read_and_no_more() -> None:
    entries = [f"192.0.2.{number}" for number in range(MAX_ENTRIES + 1)]
    assert AllowList.parse(entries[:-1]).entries == tuple(entries[:-1])
    with pytest.raises(PolicyError, match="at most 64"):
        AllowList.parse(entries)


def test_an_empty_list_admits_nothing() -> None:
    nothing = AllowList.parse([])
    assert not nothing.permits_files
    assert not nothing.permits("192.0.2.1", 4739)
    assert not nothing.permits("siem.example", 4739)


def test_a_list_is_described_briefly_however_long_it_is() -> None:
    assert AllowList.parse([]).describe() == "nothing"
    assert AllowList.parse(["192.0.2.1", "file"]).describe() == "192.0.2.1, file"
    entries = [f"{number:02}{'a' * 60}.{'b' * 28}.example" for number in range(64)]
    assert AllowList.parse(entries).describe() == ", ".join(entries[:10]) + " and 54 more"


def test_files_are_admitted_by_their_word_alone() -> None:
    assert AllowList.parse(["siem.example", "file"]).permits_files
    assert not AllowList.parse(["siem.example", "*.file", "file.example"]).permits_files


@given(entry=NAMES, host=NAMES, port=PORTS)
def test_a_name_admits_itself_and_no_other_name(entry: str, host: str, port: int) -> None:
    assert permits(entry, entry.upper() + ".", port)
    assert permits(entry, host, port) is (entry == host)


@given(parent=NAMES, child=NAMES)
def test_a_wildcard_admits_exactly_the_names_below(parent: str, child: str) -> None:
    assert permits(f"*.{parent}", f"{child}.{parent}")
    assert not permits(f"*.{parent}", parent)
    assert not permits(f"*.{parent}", child + parent)
    assert not permits(f"*.{parent}", f"{child}.{parent}.attacker")


@given(base=V4, length=st.integers(0, 32), host=V4, port=PORTS)
def test_an_ipv4_network_admits_its_addresses_and_their_mapped_form(
    base: ipaddress.IPv4Address, length: int, host: ipaddress.IPv4Address, port: int
) -> None:
    network = ipaddress.ip_network((base, length), strict=False)
    mapped = f"::ffff:{host}"
    assert permits(str(network), str(host), port) is (host in network)
    assert permits(str(network), mapped, port) is (host in network)
    assert permits(f"::ffff:{network.network_address}/{96 + length}", str(host), port) is (host in network)
    assert permits(f"{network}:{port}", str(host), port) is (host in network)


@given(base=V6, length=st.integers(0, 128), host=V6, port=PORTS)
def test_an_ipv6_network_admits_its_addresses_however_they_are_written(
    base: ipaddress.IPv6Address, length: int, host: ipaddress.IPv6Address, port: int
) -> None:
    network = ipaddress.IPv6Network((base, length), strict=False)
    bracketed = f"[{network.network_address}]/{length}:{port}"
    # A network that only contains the mapped addresses holds none of them; these hosts are none.
    if not network.subnet_of(ipaddress.IPv6Network("::ffff:0:0/96")):
        assert permits(str(network), host.exploded.upper(), port) is (host in network)
        assert permits(bracketed, str(host), port) is (host in network)


@given(
    entries=st.lists(NAMES | V4.map(str) | V6.map(str) | NAMES.map(lambda name: f"*.{name}"), max_size=5),
    host=st.text(max_size=40),
)
@example(entries=["*.siem.example"], host="\0.siem.example")
def test_any_text_is_judged_as_a_host_without_an_error(entries: list[str], host: str) -> None:
    allowed = AllowList.parse(entries).permits(host, 4739)
    assert isinstance(allowed, bool)
    assert not allowed or parse_host(host) is not None


@given(entry=st.text(string.ascii_lowercase[:6] + string.digits + "*.:/[]%-_x", max_size=20) | st.text(max_size=30))
def test_any_text_is_an_entry_or_an_allow_list_error(entry: str) -> None:
    with contextlib.suppress(AllowListError):
        assert AllowList.parse([entry]).entries == (entry,)


@given(names=st.lists(NAMES | V4.map(str), max_size=4), host=NAMES | V4.map(str) | V6.map(str))
def test_a_list_admits_what_one_of_its_entries_admits(names: list[str], host: str) -> None:
    assert AllowList.parse(names).permits(host, 4739) is any(permits(name, host) for name in names)
