# SPDX-License-Identifier: Apache-2.0
"""One thread for the TPM: order, errors, reconnection."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest
from jarvis_agent.errors import TpmError
from jarvis_agent.tpm import TpmPriority, TpmWorker
from jarvis_agent.tpm_device import TpmDevice, split_der

pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed: the agent extra brings it")

from tpm2_pytss.TSS2_Exception import TSS2_Exception

TCTI_IO_ERROR = 0xA000A
TPM_RC_VALUE = 0x84


class FakeDevice:
    """A connection that only counts."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Connections:
    """Makes fake connections and remembers them."""

    def __init__(self) -> None:
        self.made: list[FakeDevice] = []

    def __call__(self) -> TpmDevice:
        self.made.append(FakeDevice())
        return cast(TpmDevice, self.made[-1])


def failing_with(rc: int) -> Any:
    def operation(_device: TpmDevice) -> None:
        raise TSS2_Exception(rc)

    return operation


def test_what_waits_is_done_by_priority_and_in_order_within_one() -> None:
    worker = TpmWorker(Connections())
    done: list[str] = []
    hold, started = threading.Event(), threading.Event()

    def block(_device: TpmDevice) -> None:
        started.set()
        hold.wait(10)

    blocker = worker.submit(TpmPriority.CREDENTIAL, block)
    assert started.wait(10)
    waiting = [
        worker.submit(priority, lambda _device, name=name: done.append(name))  # type: ignore[misc]
        for priority, name in (
            (TpmPriority.CREDENTIAL, "activate"),
            (TpmPriority.QUOTE, "first quote"),
            (TpmPriority.QUOTE, "second quote"),
            (TpmPriority.MEASUREMENT, "extend"),
        )
    ]
    hold.set()
    for future in [blocker, *waiting]:
        future.result(10)
    assert done == ["extend", "first quote", "second quote", "activate"]
    worker.close()


def test_a_refusal_of_the_tpm_keeps_the_connection() -> None:
    connections = Connections()
    worker = TpmWorker(connections)
    with pytest.raises(TpmError) as refused:
        worker.submit(TpmPriority.QUOTE, failing_with(TPM_RC_VALUE)).result(10)
    assert refused.value.reason == "TPM_COMMAND_FAILED"
    worker.submit(TpmPriority.QUOTE, lambda _device: None).result(10)
    assert len(connections.made) == 1
    worker.close()
    assert connections.made[0].closed


def test_a_lost_connection_is_an_error_once_and_the_next_operation_has_a_new_one() -> None:
    connections = Connections()
    worker = TpmWorker(connections)
    with pytest.raises(TpmError) as lost:
        worker.submit(TpmPriority.QUOTE, failing_with(TCTI_IO_ERROR)).result(10)
    assert lost.value.reason == "TPM_UNAVAILABLE"
    assert connections.made[0].closed
    worker.submit(TpmPriority.QUOTE, lambda _device: None).result(10)
    assert len(connections.made) == 2
    worker.close()


def test_a_tpm_that_is_not_there_is_said_so_and_tried_again_by_the_next_operation() -> None:
    attempts: list[None] = []

    def connect() -> TpmDevice:
        attempts.append(None)
        raise TSS2_Exception(TCTI_IO_ERROR)

    worker = TpmWorker(connect)
    for _ in range(2):
        with pytest.raises(TpmError, match="does not answer"):
            worker.submit(TpmPriority.QUOTE, lambda _device: None).result(10)
    assert len(attempts) == 2
    worker.close()


def test_an_error_of_the_caller_reaches_the_caller_and_the_thread_lives_on() -> None:
    worker = TpmWorker(Connections())
    with pytest.raises(ZeroDivisionError):
        worker.submit(TpmPriority.QUOTE, lambda _device: 1 // 0).result(10)
    assert worker.submit(TpmPriority.QUOTE, lambda _device: 5).result(10) == 5
    worker.close()


def test_after_close_nothing_is_accepted() -> None:
    worker = TpmWorker(Connections())
    worker.close()
    with pytest.raises(TpmError, match="stopping"):
        worker.submit(TpmPriority.QUOTE, lambda _device: None).result(10)


def test_who_is_called_back_is_never_called_from_within_the_call() -> None:
    worker = TpmWorker(Connections())
    callers: list[threading.Thread] = []
    told = threading.Event()

    def done(_future: object) -> None:
        callers.append(threading.current_thread())
        told.set()

    for _ in range(50):
        told.clear()
        worker.call(TpmPriority.TLS_SIGN, lambda _device: b"", done)
        assert told.wait(10)
    assert threading.current_thread() not in callers
    worker.close()
    with pytest.raises(TpmError, match="stopping"):
        worker.call(TpmPriority.TLS_SIGN, lambda _device: b"", done)
    assert len(callers) == 50


def test_certificates_are_split_and_padding_is_left_out() -> None:
    short, long = b"\x30\x03abc", b"\x30\x82\x01\x00" + bytes(256)
    assert split_der(short + long + b"\xff" * 20) == [short, long]
    assert split_der(long[:-1]) == []
    assert split_der(b"") == []
