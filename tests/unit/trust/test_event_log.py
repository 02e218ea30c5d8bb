# SPDX-License-Identifier: Apache-2.0
"""The firmware event log: golden bytes, replay, and each reason for refusing."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jarvis_trust import eventlog
from jarvis_trust.encoding import parse_json_object
from jarvis_trust.errors import AttestationError
from jarvis_trust.eventlog import MAX_LOG_BYTES, encode_event, event_digest, load_attempt, mapping, parse_log, replay

TIME = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)
BOOT, SESSION = bytes(range(16)), bytes(range(16, 32))
LOAD = load_attempt(object_name="libjarvis_capture.so", sha256=b"\xab" * 32, time=TIME, boot_id=BOOT, session_id=SESSION)
MAPPING = mapping(path="/usr/lib/libc.so.6", sha256=b"\xcd" * 32, time=TIME, boot_id=BOOT, session_id=SESSION)
GOLDEN_CONTENT = (
    b'{"boot_id":"000102030405060708090a0b0c0d0e0f","object":"libjarvis_capture.so",'
    b'"session_id":"101112131415161718191a1b1c1d1e1f","sha256":"' + b"ab" * 32 + b'",'
    b'"time":"2026-11-22T10:00:00Z","type":"load-attempt"}'
)
GOLDEN_DIGEST = "8d6d1a95406d5d961787a4515da2f6320149bb57adb02bc9b149c236e0f6e8ce"
LOG = encode_event(0, 14, LOAD) + encode_event(1, 14, MAPPING)


def reason_for(data: bytes) -> str:
    with pytest.raises(AttestationError) as refused:
        parse_log(data)
    return refused.value.reason


def test_the_digest_covers_the_tag_and_the_canonical_content() -> None:
    assert event_digest(LOAD) == hashlib.sha256(b"jarvis-event-v1\0" + GOLDEN_CONTENT).digest()
    assert event_digest(LOAD).hex() == GOLDEN_DIGEST


def test_a_line_is_these_bytes() -> None:
    line = b'{"content":' + GOLDEN_CONTENT + b',"digest":"' + GOLDEN_DIGEST.encode() + b'","pcr":14,"recnum":0}\n'
    assert encode_event(0, 14, LOAD) == line


def test_events_are_read_back_with_what_was_measured() -> None:
    first, second = parse_log(LOG)
    assert (first.type, first.subject, first.sha256, first.pcr, first.recnum) == (
        "load-attempt", "libjarvis_capture.so", b"\xab" * 32, 14, 0,
    )  # fmt: skip
    assert (second.type, second.subject, second.sha256) == ("mapping", "/usr/lib/libc.so.6", b"\xcd" * 32)


def test_replay_extends_from_zero_in_order() -> None:
    value = bytes(32)
    for content in (LOAD, MAPPING):
        value = hashlib.sha256(value + event_digest(content)).digest()
    assert replay(parse_log(LOG)) == value
    assert replay(parse_log(LOG)) != replay(parse_log(encode_event(0, 14, MAPPING) + encode_event(1, 14, LOAD)))


def test_an_empty_log_replays_to_an_unextended_pcr() -> None:
    assert replay(parse_log(b"")) == bytes(32)


def test_a_path_with_any_characters_survives() -> None:
    for path in ("/tmp/a\nb", '/tmp/"x"', "/tmp/\udcff", "/tmp/é\u2028"):
        content = mapping(path=path, sha256=bytes(32), time=TIME, boot_id=BOOT, session_id=SESSION)
        assert parse_log(encode_event(0, 14, content))[0].subject == path


def test_a_time_is_written_in_utc() -> None:
    local = TIME.astimezone(timezone(timedelta(hours=2)))
    content = load_attempt(object_name="a.so", sha256=bytes(32), time=local, boot_id=BOOT, session_id=SESSION)
    assert content["time"] == LOAD["time"]
    with pytest.raises(ValueError, match="time zone"):
        load_attempt(object_name="a.so", sha256=bytes(32), time=TIME.replace(tzinfo=None), boot_id=BOOT, session_id=SESSION)


def test_an_edited_content_is_named_by_its_record() -> None:
    with pytest.raises(AttestationError, match="record 1") as refused:
        parse_log(LOG.replace(b"libc.so.6", b"libc.so.7"))
    assert refused.value.reason == "EVENT_DIGEST_WRONG"


def test_an_event_relabelled_with_another_type_is_refused() -> None:
    relabelled = encode_event(0, 14, LOAD).replace(b'"object"', b'"path"').replace(b"load-attempt", b"mapping")
    assert reason_for(relabelled) == "EVENT_DIGEST_WRONG"


@pytest.mark.parametrize(
    "data",
    {
        "no final newline": LOG[:-1],
        "a torn last record": LOG[:-20],
        "a blank line": LOG + b"\n",
        "a gap": encode_event(1, 14, LOAD),
        "a repeated number": encode_event(0, 14, LOAD) * 2,
        "another order": encode_event(1, 14, LOAD) + encode_event(0, 14, MAPPING),
        "carriage returns": LOG.replace(b"\n", b"\r\n"),
        "spaces": LOG.replace(b'"pcr":14', b'"pcr": 14'),
        "a duplicate key": LOG.replace(b'"pcr":14', b'"pcr":14,"pcr":14'),
        "an unknown field": LOG.replace(b'"recnum":0', b'"recnum":0,"x":1'),
        "a resettable PCR": LOG.replace(b'"pcr":14', b'"pcr":16'),
        "a PCR as text": LOG.replace(b'"pcr":14', b'"pcr":"14"'),
        "a boolean number": LOG.replace(b'"recnum":0', b'"recnum":false'),
        "an upper-case digest": LOG.replace(GOLDEN_DIGEST.encode(), GOLDEN_DIGEST.upper().encode()),
        "an unknown type": LOG.replace(b"load-attempt", b"load-success"),
        "a path as object": LOG.replace(b"libjarvis_capture.so", b"a/libjarvis_capture.so"),
        "a bad time": LOG.replace(b"10:00:00Z", b"25:00:00Z"),
        "a short boot id": LOG.replace(b"000102", b"0001"),
        "a list as content": b'{"content":[],"digest":"' + b"0" * 64 + b'","pcr":14,"recnum":0}\n',
        "too long a line": encode_event(0, 14, dict(MAPPING, path="/" * 4096)).replace(b"////", b"////" * 9000, 1),
        "too long a log": b"\n" * (MAX_LOG_BYTES + 1),
        "too many records": b"\n" * 16_385,
    }.items(),
    ids=lambda item: item[0],
)
def test_a_log_is_refused_if_it_has(data: tuple[str, bytes]) -> None:
    assert reason_for(data[1]) == "EVENT_LOG_INVALID"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": "AB" * 32}, "sha256"),
        ({"time": "yesterday"}, "time"),
        ({"boot_id": "00"}, "boot_id"),
        ({"session_id": None}, "session_id"),
        ({"object": "../x"}, "object"),
        ({"type": "unload"}, "type"),
        ({"extra": "x"}, "extra"),
    ],
)
def test_nothing_is_written_that_could_not_be_read(change: dict[str, Any], words: str) -> None:
    with pytest.raises(AttestationError, match=words) as refused:
        encode_event(0, 14, {**LOAD, **change})
    assert refused.value.reason == "EVENT_LOG_INVALID"


@pytest.mark.parametrize("pcr", [-1, 16, 17, 23, 24, True])
def test_pcrs_that_prove_nothing_are_refused(pcr: int) -> None:
    with pytest.raises(AttestationError) as refused:
        encode_event(0, pcr, LOAD)
    assert refused.value.reason == "PCR_INVALID"


def test_a_mapping_needs_a_path_of_sane_length() -> None:
    for path in ("", "/" * 4097):
        with pytest.raises(AttestationError, match="path"):
            encode_event(0, 14, dict(MAPPING, path=path))


def test_a_record_number_out_of_range_is_refused() -> None:
    for recnum in (-1, 16_384):
        with pytest.raises(AttestationError, match="recnum"):
            encode_event(recnum, 14, LOAD)


def test_events_of_two_pcrs_do_not_replay_to_one() -> None:
    events = parse_log(encode_event(0, 14, LOAD) + encode_event(1, 13, MAPPING))
    with pytest.raises(AttestationError, match="PCR 13"):
        replay(events)


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_a_mutated_log_is_refused_or_reads_back_to_the_same_bytes(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(LOG) - 1))
    piece = data.draw(st.one_of(st.binary(max_size=3), st.sampled_from([b"\n", b'"', b"0", b"}", b"\\u0061"])))
    changed = LOG[:position] + piece + LOG[position + data.draw(st.integers(0, 3)) :]
    try:
        events = parse_log(changed)
    except AttestationError:
        return
    assert b"".join(encode_event(event.recnum, event.pcr, event.content) for event in events) == changed


@given(path=st.text(min_size=1, max_size=80))
def test_a_record_that_quotes_the_log_itself_keeps_its_digest(path: str) -> None:
    hostile = f'{path}","digest":"{"0" * 64}","pcr":14,"recnum":0' + "}"
    for text in (path, hostile):
        content = mapping(path=text, sha256=bytes(32), time=TIME, boot_id=bytes(16), session_id=bytes(16))
        (event,) = parse_log(encode_event(0, 14, content))
        assert event.digest == event_digest(content)
        assert event.subject == text


@given(path=st.text(min_size=1, max_size=40), record=st.sampled_from([0, 7, 16_383]), pcr=st.integers(0, 15))
def test_the_short_way_to_read_a_record_is_the_json_readers(path: str, record: int, pcr: int) -> None:
    line = encode_event(record, pcr, mapping(path=path, sha256=bytes(32), time=TIME, boot_id=BOOT, session_id=SESSION))[:-1]
    usual = eventlog._usual_record(line)
    is_plain = path.isascii() and path.isprintable() and not {'"', "\\"} & set(path)
    assert (usual is not None) == is_plain
    assert usual is None or usual == parse_json_object(line, max_bytes=MAX_LOG_BYTES, canonical=True)


@given(position=st.integers(0, 400), value=st.integers(0, 255))
def test_a_changed_byte_reads_the_same_by_both_ways_or_by_neither(position: int, value: int) -> None:
    line = bytearray(encode_event(3, 14, MAPPING)[:-1])
    line[position % len(line)] = value
    usual = eventlog._usual_record(bytes(line))
    try:
        expected = parse_json_object(bytes(line), max_bytes=MAX_LOG_BYTES, canonical=True)
    except ValueError:
        expected = None
    assert usual is None or usual == expected
