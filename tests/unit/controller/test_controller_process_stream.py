# SPDX-License-Identifier: Apache-2.0
"""When a source's subscriber is told that an agent process took records with it."""

from __future__ import annotations

import pytest
from jarvis.capture.v1 import flow_pb2
from jarvis_controller.flow_wire import BatchHeader
from jarvis_controller.process_stream import ProcessStream

OLD, NEW = b"o" * 16, b"n" * 16


def heard(shards: tuple[int, ...] = (3,)) -> ProcessStream:
    """A stream in the middle, from the process OLD, one batch of each shard."""
    stream = ProcessStream()
    assert stream.message(OLD, 5) is None
    for shard in shards:
        stream.batch(BatchHeader(shard=shard, first_sequence=1, next_sequence=11, resume_token=b""))
    return stream


def test_another_process_in_mid_stream_is_told_once_with_the_next_record_and_the_time_between() -> None:
    stream = heard()
    loss = stream.message(NEW, 9)
    assert loss is not None
    assert (loss.point, loss.lost, loss.count_unknown) == (flow_pb2.LOSS_POINT_AGENT_PROCESS, 0, True)
    assert (loss.shard, loss.first_sequence) == (3, 11)
    assert (loss.first_time.ToNanoseconds(), loss.last_time.ToNanoseconds()) == (5, 9)
    assert stream.message(NEW, 10) is None


def test_of_several_shards_none_is_named() -> None:
    loss = heard((0, 1)).message(NEW, 9)
    assert loss is not None
    assert (loss.shard, loss.first_sequence) == (0, 0)


def test_the_same_process_goes_on_without_a_word() -> None:
    assert heard().message(OLD, 9) is None


def test_a_stream_that_the_agent_ended_is_settled() -> None:
    stream = heard()
    stream.ended()
    assert stream.message(NEW, 9) is None


def test_a_place_that_is_lost_is_told_once_although_another_process_follows() -> None:
    stream = heard()
    assert stream.place_lost(8) is not None
    assert stream.place_lost(8) is None
    assert stream.message(NEW, 9) is None


@pytest.mark.parametrize("settled", [False, True])
def test_a_place_that_was_never_taken_is_no_loss(settled: bool) -> None:
    stream = ProcessStream()
    if settled:
        stream = heard()
        stream.ended()
    assert stream.place_lost(8) is None
