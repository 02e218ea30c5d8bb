# SPDX-License-Identifier: Apache-2.0
"""The dead-man's switch on a real link, with the real clock and a process that misbehaves.

Nothing received after the end of the lease is metered or given out, whoever holds the interpreter, stops the process or sets the
wall clock.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.netns import Namespace, is_available
from tests.support import ROOT

pytestmark = pytest.mark.skipif(bool(is_available()), reason=is_available() or "-")

SEND = """
import socket, sys
frame = bytes.fromhex("ffffffffffff020000000001080045000020000000004011") + bytes(2)
frame += bytes([10, 9, 0, 1, 10, 9, 0, 2]) + (1000).to_bytes(2) + int(sys.argv[1]).to_bytes(2) + bytes([0, 12, 0, 0]) + b"1234"
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
    sender.bind(("peer0", 0))
    for _ in range(int(sys.argv[2])):
        sender.send(frame)
"""

WALL_CLOCK = """
/* SPDX-License-Identifier: Apache-2.0 */
/* The wall clock set back by an hour for each second that passes; the boot clock is left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
static time_t first;
static time_t set_back(time_t now) {
    struct timespec since;
    int (*real)(clockid_t, struct timespec *) = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    real(CLOCK_MONOTONIC, &since);
    if (!first)
        first = since.tv_sec;
    return now - 3600 * (since.tv_sec - first);
}
int clock_gettime(clockid_t clock, struct timespec *out) {
    int (*real)(clockid_t, struct timespec *) = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, out);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
        out->tv_sec = set_back(out->tv_sec);
    return result;
}
int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    *out = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
    return 0;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}
"""


def boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wait_for(end_ns: int) -> None:
    while (left := end_ns - boottime_ns()) > 0:
        time.sleep(left / 1e9)


class Subject:
    """The process, and the link that it captures from."""

    def __init__(self, namespace: Namespace, firmware: Path, wrapper: tuple[str, ...], environment: dict[str, str]) -> None:
        self.namespace = namespace
        command = namespace.command(*wrapper, sys.executable, "-m", "tests.integration.dead_man", str(firmware), "lan0")
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, env=os.environ | environment)

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process ended"
        return dict(json.loads(line))

    def ask(self, command: str) -> dict[str, Any]:
        self.tell(command)
        return self.answer()

    def send(self, count: int) -> None:
        """From the other end of the link; on return the kernel has them."""
        self.namespace.run(sys.executable, "-c", SEND, "53", str(count))
        time.sleep(0.05)

    def settled(self, frames: int) -> dict[str, Any]:
        """Once so many frames are accounted for."""
        until = time.monotonic() + 20
        while (report := self.ask("report"))["metered"] + report["paused"] < frames:
            assert time.monotonic() < until, report
            time.sleep(0.01)
        return report

    def resumed(self, metered: int, paused: int) -> None:
        """Under a new lease, what comes is metered again, once the worker has put aside what was in its ring."""
        sent, report = 0, self.ask("report")
        assert (report["metered"], report["paused"], report["refusal"]) == (metered, paused, "")
        while report["metered"] == metered:
            assert sent < 200, report
            self.send(1)
            sent += 1
            report = self.settled(metered + paused + sent)
        self.send(20)
        assert self.settled(metered + paused + sent + 20)["metered"] == report["metered"] + 20

    def leased(self, frames: int) -> int:
        """Captures under a lease, with so many frames metered; when it ends (CLOCK_BOOTTIME, ns), a second from now."""
        assert self.ask("lease 3600")["in_force"]
        self.ask("start")
        self.send(frames)
        report = self.settled(frames)
        assert (report["metered"], report["paused"], report["refusal"]) == (frames, 0, "")
        return int(self.ask("shorten 1")["end_ns"])


Make = Callable[..., Subject]


@pytest.fixture
def subject(firmware_directory: Path) -> Iterator[Make]:
    made: list[Subject] = []
    with Namespace("dead") as namespace:
        namespace.run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "peer0")
        namespace.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        namespace.run("ip", "link", "set", "lan0", "up")
        namespace.run("ip", "link", "set", "peer0", "up")

        def make(*wrapper: str, **environment: str) -> Subject:
            made.append(Subject(namespace, firmware_directory, wrapper, environment))
            return made[-1]

        yield make
        for one in made:
            one.process.kill()
            one.process.wait(10)


def test_a_thread_that_never_gives_the_interpreter_back_lengthens_no_lease(subject: Make) -> None:
    one = subject()
    end_ns = one.leased(40)
    one.tell("hold")
    wait_for(end_ns)
    one.send(70)
    time.sleep(0.2)
    one.tell("")  # the line that `hold` waits for
    report = one.answer()
    assert report["ticks"] <= 1, "other threads of Python ran"
    assert (report["metered"], report["paused"], report["refusal"]) == (40, 70, "LEASE_EXPIRED")
    assert (report["in_flight"], report["dropped"]) == (0, 0)


def test_a_process_that_is_stopped_beyond_its_lease_meters_nothing_of_that_time(subject: Make) -> None:
    one = subject()
    end_ns = one.leased(40)
    one.process.send_signal(signal.SIGSTOP)
    wait_for(end_ns)
    one.send(70)
    one.process.send_signal(signal.SIGCONT)
    report = one.settled(110)
    assert (report["metered"], report["paused"], report["refusal"]) == (40, 70, "LEASE_EXPIRED")
    one.ask("lease 3600")
    one.resumed(metered=40, paused=70)


def test_what_fills_the_ring_of_a_stopped_process_is_not_metered_under_a_lease_that_comes_the_moment_it_goes_on(
    subject: Make,
) -> None:
    one = subject()
    end_ns = one.leased(40)
    one.tell("renew 3600")
    one.process.send_signal(signal.SIGSTOP)
    wait_for(end_ns)
    one.send(70)
    one.process.send_signal(signal.SIGCONT)
    assert one.answer()["in_force"]
    one.settled(110)
    one.resumed(metered=40, paused=70)


def test_the_wall_clock_may_be_set_back_as_often_as_one_likes(subject: Make, tmp_path: Path) -> None:
    source, library = tmp_path / "wall_clock.c", tmp_path / "wall_clock.so"
    source.write_text(WALL_CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    one = subject(LD_PRELOAD=str(library))
    first = one.ask("report")["realtime_ns"]
    end_ns = one.leased(40)
    wait_for(end_ns)
    one.send(70)
    report = one.settled(110)
    assert report["realtime_ns"] < first - 3500 * 10**9, "the wall clock was not set back"
    assert (report["metered"], report["paused"], report["refusal"]) == (40, 70, "LEASE_EXPIRED")


def test_leases_are_counted_on_the_boot_clock_of_the_process_and_no_other(subject: Make) -> None:
    ahead = 1_000_000 * 10**9
    one = subject("unshare", "--time", "--fork", "--kill-child", "--boottime", str(ahead // 10**9))
    before = boottime_ns()
    terms = one.ask("lease 60")
    assert before + ahead <= terms["quoted_ns"] <= boottime_ns() + ahead
    assert terms["end_ns"] == terms["quoted_ns"] + 60 * 10**9
    assert terms["in_force"]
