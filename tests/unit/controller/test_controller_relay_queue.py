# SPDX-License-Identifier: Apache-2.0
"""The relay's bytes and queue: nothing forged passes, nothing is lost without an exact account."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jarvis.capture.v1 import agent_pb2, fleet_pb2, flow_pb2
from jarvis_controller.flow_wire import FlowWireError, agent_id_suffix, batch_header, check_batch, count_records, parse
from jarvis_controller.subscriber_queue import SlowConsumerError, SubscriberQueue

SECOND = 10**9
AGENT = "a" * 32


def batch(first: int, records: int, *, shard: int = 0, skipped: int = 0) -> bytes:
    """A StreamFlowsResponse as an agent sends it; `skipped` records did not match the filter."""
    message = flow_pb2.FlowBatch(
        shard=shard,
        first_sequence=first,
        next_sequence=first + records + skipped,
        base_time_unix_ns=1,
        resume_token=b"token %d" % (first + records + skipped),
        records=[flow_pb2.FlowRecord(flow_id=first + number, fwd_packets=300) for number in range(records)],
    )
    return agent_pb2.StreamFlowsResponse(batch=message).SerializeToString()


def put(queue: SubscriberQueue, message: bytes, now_ns: int, agent_id: str = AGENT) -> None:
    queue.put_batch(agent_id, message + agent_id_suffix(agent_id), batch_header(message), now_ns)


def received(message: bytes) -> fleet_pb2.WatchFlowsResponse:
    return fleet_pb2.WatchFlowsResponse.FromString(message)


def test_a_batch_with_the_agents_id_appended_reads_as_the_operators_message() -> None:
    answer = received(batch(7, 3) + agent_id_suffix(AGENT))
    assert (answer.agent_id, answer.batch.first_sequence, len(answer.batch.records)) == (AGENT, 7, 3)


def test_the_header_is_read_without_the_records() -> None:
    header = batch_header(batch(7, 3, shard=2, skipped=10))
    assert (header.shard, header.first_sequence, header.next_sequence, header.resume_token) == (2, 7, 20, b"token 20")


def test_a_batch_of_shard_and_sequence_zero_is_read() -> None:
    header = batch_header(batch(0, 0))
    assert (header.shard, header.first_sequence, header.next_sequence) == (0, 0, 0)


@pytest.mark.parametrize(
    "forged",
    [
        fleet_pb2.WatchFlowsResponse(agent_id="b" * 32).SerializeToString() + batch(1, 1),
        batch(1, 1) + fleet_pb2.WatchFlowsResponse(agent_id="b" * 32).SerializeToString(),
        batch(1, 1) + fleet_pb2.WatchFlowsResponse(status=fleet_pb2.AgentStatusEvent(state=2)).SerializeToString(),
        batch(1, 1) + batch(2, 1),
        batch(1, 1)[:-1],
        batch(1, 1) + b"\0",
        b"\x12",
        b"\x12" + b"\xff" * 11,
        b"",
    ],
    ids=["id first", "id last", "status", "two batches", "cut", "trailing byte", "no length", "endless length", "empty"],
)
def test_a_message_that_is_not_exactly_one_batch_is_refused(forged: bytes) -> None:
    with pytest.raises(FlowWireError):
        check_batch(forged)


def test_an_id_that_an_agent_hid_in_its_bytes_is_overruled() -> None:
    hidden = batch(1, 1) + fleet_pb2.WatchFlowsResponse(agent_id="b" * 32).SerializeToString()
    assert received(hidden + agent_id_suffix(AGENT)).agent_id == AGENT


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_a_refusal(data: bytes) -> None:
    try:
        batch_header(b"\x12" + bytes([len(data) & 0x7F]) + data[: len(data) & 0x7F])
    except FlowWireError:
        return


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(FlowWireError):
        parse(b"\xff\xff")


def test_messages_leave_in_the_order_in_which_they_came() -> None:
    queue = SubscriberQueue(max_messages=10, max_bytes=10**6, drop_oldest=True)
    for first in (1, 4, 7):
        put(queue, batch(first, 3), 0)
    taken = [queue.take(0) for _ in range(4)]
    assert [received(message).batch.first_sequence for message in taken if message is not None] == [1, 4, 7]
    assert taken[3] is None


def test_a_full_queue_drops_the_oldest_batch_and_says_exactly_what_was_lost() -> None:
    queue = SubscriberQueue(max_messages=2, max_bytes=10**6, drop_oldest=True)
    put(queue, batch(1, 3, skipped=5), 10 * SECOND)
    put(queue, batch(9, 4), 10 * SECOND)
    put(queue, batch(13, 2), 11 * SECOND)
    put(queue, batch(15, 1), 12 * SECOND)
    first = queue.take(12 * SECOND)
    assert first is not None
    loss = received(first).loss
    assert received(first).agent_id == AGENT
    assert loss.point == flow_pb2.LOSS_POINT_CONTROLLER_QUEUE
    # 3 records of the first batch (the 5 that did not match were never to be sent) and 4 of the second.
    assert (loss.lost, loss.first_sequence, loss.last_sequence) == (7, 1, 12)
    assert (loss.first_time.ToNanoseconds(), loss.last_time.ToNanoseconds()) == (11 * SECOND, 12 * SECOND)
    rest = [queue.take(12 * SECOND) for _ in range(2)]
    assert [received(message).batch.first_sequence for message in rest if message is not None] == [13, 15]


def test_the_bound_in_bytes_counts_too() -> None:
    size = len(batch(1, 3) + agent_id_suffix(AGENT))
    queue = SubscriberQueue(max_messages=100, max_bytes=2 * size, drop_oldest=True)
    for first in (1, 4, 7):
        put(queue, batch(first, 3), 0)
    assert queue.has_losses


def test_a_subscriber_that_wants_no_loss_is_disconnected() -> None:
    queue = SubscriberQueue(max_messages=1, max_bytes=10**6, drop_oldest=False)
    put(queue, batch(1, 1), 0)
    with pytest.raises(SlowConsumerError):
        put(queue, batch(2, 1), 0)


def test_losses_are_told_at_most_once_a_second_and_place_and_coalesced() -> None:
    queue = SubscriberQueue(max_messages=1, max_bytes=10**6, drop_oldest=True)
    told: list[tuple[int, int]] = []
    for step in range(50):  # 5 s: every 100 ms two batches of 2 records come and one message is read
        now = step * SECOND // 10
        put(queue, batch(1 + 4 * step, 2), now)
        put(queue, batch(3 + 4 * step, 2), now)
        message = queue.take(now)
        assert message is not None
        if received(message).HasField("loss"):
            told.append((now, received(message).loss.lost))
    times = [now for now, _ in told]
    assert all(later - earlier >= SECOND for earlier, later in itertools.pairwise(times))
    assert 4 <= len(told) <= 5
    assert max(lost for _, lost in told) > 2


def test_notices_are_never_dropped() -> None:
    queue = SubscriberQueue(max_messages=1, max_bytes=10**6, drop_oldest=True)
    notice = fleet_pb2.WatchFlowsResponse(agent_id=AGENT, watermark=flow_pb2.Watermark()).SerializeToString()
    for first in range(1, 20):
        queue.put_notice(AGENT, notice)
        put(queue, batch(first, 1), 0)
    taken = []
    while (message := queue.take(0)) is not None:
        taken.append(received(message).WhichOneof("event"))
    assert Counter(taken) == {"watermark": 19, "batch": 1, "loss": 1}


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(
                st.just("put"), st.sampled_from(["a" * 32, "b" * 32]), st.integers(0, 1), st.integers(1, 5), st.integers(0, 3)
            ),
            st.tuples(st.just("take"), st.integers(0, SECOND)),
        ),
        max_size=80,
    ),
    max_messages=st.integers(2, 6),
)
def test_every_record_is_delivered_or_accounted_for_once(steps: list[tuple[object, ...]], max_messages: int) -> None:
    queue = SubscriberQueue(max_messages=max_messages, max_bytes=10**9, drop_oldest=True)
    sent: Counter[tuple[str, int]] = Counter()
    got: Counter[tuple[str, int]] = Counter()
    lost: Counter[tuple[str, int]] = Counter()
    next_sequence: Counter[tuple[str, int]] = Counter()
    now = 0

    def note(message: bytes) -> None:
        answer = received(message)
        if answer.HasField("loss"):
            lost[answer.agent_id, answer.loss.shard] += answer.loss.lost
        else:
            got[answer.agent_id, answer.batch.shard] += len(answer.batch.records)

    for step in steps:
        if step[0] == "put":
            _, agent_id, shard, records, skipped = step
            assert isinstance(agent_id, str)
            assert isinstance(shard, int)
            assert isinstance(records, int)
            assert isinstance(skipped, int)
            key = (agent_id, shard)
            put(queue, batch(next_sequence[key], records, shard=shard, skipped=skipped), now, agent_id)
            next_sequence[key] += records + skipped
            sent[key] += records
        else:
            assert isinstance(step[1], int)
            now += step[1]
            if (message := queue.take(now)) is not None:
                note(message)
    while (message := queue.take(now)) is not None:
        note(message)
    for message in queue.take_losses():
        note(message)
    assert sent == got + lost


def test_records_are_counted_by_what_is_in_the_batch() -> None:
    assert count_records(batch(1, 17, skipped=100)) == 17
