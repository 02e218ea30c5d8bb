# SPDX-License-Identifier: Apache-2.0
"""Releases on the agent: staged beside the running one, tried, changed over to by a new process, and left again if that fails.

    StageRelease      parts → <state_directory>/releases/<manifest>/                       (jarvis_trust.release_files)
    ActivateRelease   judge → measure and try in a process of its own → pointer "trial" → drain → exec
    new process       start counted → loads it → first lease in time → pointer "current"
                                               └ refused, crashed, no lease ─▶ pointer back → exec → the old one goes on

The process is replaced because glibc hands out the old library for an old path, and a loaded one cannot be unloaded (loader.py);
exec keeps the pid: no supervisor takes part. What watches over the trial needs nothing of the new release: a thread with
the deadline, the kernel's alarm for when no Python runs any more, the count of starts for when the process is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from jarvis.capture.v1.agent_pb2 import ReleaseStatus, RolledBack
from jarvis_native import MeasuredObject
from jarvis_trust.firmware import Manifest
from jarvis_trust.release_files import Part, PartError, ReleaseError, ReleaseFiles

from jarvis_agent.errors import RequestError
from jarvis_agent.lease import boottime_ns
from jarvis_agent.release_pointer import NO_LEASE, Failed, Pointer, PointerFile

_LOG = logging.getLogger(__name__)

MAX_PART_BYTES = 48 * 1024
KEPT_RELEASES = 3
MIN_TRIAL_S, MAX_TRIAL_S, DEFAULT_TRIAL_S = 5.0, 600.0, 60.0
_STDERR = 2
_ALARM_GRACE_S = 10
"""The kernel's alarm comes so much after the watching thread, which may wait for the GIL."""


def restart_process() -> NoReturn:
    """Becomes a new process of the same program with the same arguments and pid.

    Raises:
        OSError: it could not; the caller goes on.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        # A TPM's device or socket that outlived us would be busy for who comes after; libraries do not mark all of theirs.
        if int(name) > _STDERR:
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ourselves


class Releases:
    """Pointer, staged files and the trial of one agent. Coroutines on the event loop; the watching thread is its own."""

    def __init__(
        self,
        state_directory: Path,
        *,
        firmware_directory: Path,
        boot_id: bytes,
        judge: Callable[[bytes, bytes], Manifest],
        try_out: Callable[[Path, Callable[[MeasuredObject], None]], str],
        clock: Callable[[], int] = boottime_ns,
        restart: Callable[[], object] = restart_process,
    ) -> None:
        """Reads the pointer.

        Args:
            state_directory: the agent's.
            firmware_directory: of the configuration: what is loaded while no release was activated.
            boot_id: the kernel's, 16 bytes.
            judge: verifies manifest.json and its signature as the loader would; raises FirmwareError.
            try_out: tries the release of a directory in a process of its own, every object measured first; its version. Blocks;
                raises ReleaseError, FirmwareError.
            clock: CLOCK_BOOTTIME, ns.
            restart: replaces the process; tests give their own.

        Raises:
            OSError: the directory cannot be made.
        """
        root = state_directory / "releases"
        self._files = ReleaseFiles(
            root, judge=judge, max_part=MAX_PART_BYTES, limit=KEPT_RELEASES, may_evict=lambda name, _: name not in self._in_use()
        )
        self._file = PointerFile(root / "pointer.json")
        self._pointer = self._file.read()
        self._firmware_directory = firmware_directory
        self._try_out = try_out
        self._boot_id = boot_id.hex()
        self._clock = clock
        self._restart = restart
        self._running = ""
        """SHA-256 of the manifest of the loaded firmware, hex; empty while none is."""
        self._change = threading.Lock()
        """Held while the pointer changes: the watching thread is one of those who change it."""
        self._settled = threading.Event()
        """Set once the trial is over: the watching thread has nothing to do any more."""
        self._activation = asyncio.Lock()

    # ---- this process's own release

    def begin_process(self) -> Path:
        """Counts the start of a release on trial and begins to watch it; the directory to load from.

        A trial that is over is rolled back. One that cannot be counted is not started.
        """
        with self._change:
            started = self._pointer.start(boot_id=self._boot_id, now_ns=self._clock())
            try:
                if started != self._pointer:
                    self._set(started)
            except OSError as error:
                _LOG.error("the release pointer cannot be written (%s): the release on trial is not started", error)
                return self._directory(self._pointer.current)
            if started.trial is not None:
                self._watch(started.trial.deadline_ns)
            if started.failed is not None and not started.failed.is_told:
                failed = started.failed
                _LOG.error("release %s did not hold (%s): %s", failed.version, failed.reason, failed.message)
            return self._directory(started.loads)

    def loaded(self, manifest_sha256: bytes) -> None:
        """The firmware of this process is that manifest's."""
        self._running = manifest_sha256.hex()

    @property
    def is_on_trial(self) -> bool:
        """Whether this process runs a release that has had no lease yet."""
        return self._pointer.trial is not None and self._pointer.trial.starts > 0

    def roll_back(self, reason: str, message: str) -> None:
        """The release on trial does not hold. The caller restarts the process.

        Raises:
            OSError: the pointer cannot be written: the start counter ends the trial then.
        """
        with self._change:
            self._set(self._pointer.roll_back(reason, message))
            self._settle()

    def confirm(self) -> tuple[str, str] | None:
        """The first lease came. (version, manifest SHA-256) when that ended a trial, which is now current; else None.

        Raises:
            OSError: the pointer cannot be written: the trial goes on.
        """
        with self._change:
            trial = self._pointer.trial
            if trial is None or trial.starts == 0:
                return None
            self._set(self._pointer.confirm())
            self._settle()
            return trial.version, trial.sha256

    def untold_failure(self) -> Failed | None:
        """The roll-back that is in no journal yet."""
        failed = self._pointer.failed
        return None if failed is None or failed.is_told else failed

    def told(self) -> None:
        """It is now."""
        with self._change, contextlib.suppress(OSError):  # then it is told twice
            self._set(self._pointer.told())

    def status(self) -> ReleaseStatus:
        """The wire's form."""
        status = ReleaseStatus(manifest_sha256=bytes.fromhex(self._running), on_trial=self.is_on_trial)
        failed = self._pointer.failed
        if failed is not None:
            status.rolled_back.CopyFrom(
                RolledBack(
                    manifest_sha256=bytes.fromhex(failed.sha256),
                    version=failed.version,
                    reason=failed.reason,
                    message=failed.message,
                )
            )
        return status

    # ---- the next one

    async def stage(self, part: Part) -> int:
        """Writes a part of a release; returns the octets of the file that are there now.

        Raises:
            RequestError: a field is not acceptable.
            ReleaseError: RELEASE_BUSY, and as ReleaseFiles.add.
            FirmwareError: manifest or signature are refused.
        """
        if self._activation.locked():
            raise ReleaseError("RELEASE_BUSY", "a release is being activated; nothing is staged meanwhile")
        async with self._activation:
            try:
                return await asyncio.to_thread(self._files.add, part)
            except PartError as error:
                raise RequestError((error.field, error.description)) from error

    async def activate(self, manifest_sha256: bytes, trial_s: float, measure: Callable[[MeasuredObject], None]) -> str:
        """Judges, measures and tries a staged release, and points to it; the caller drains and restarts the process.

        Args:
            manifest_sha256: names it, 32 bytes.
            trial_s: how long its process may take to get its first lease.
            measure: logs and extends an object's digest; blocks; called in a worker thread before the object is judged.

        Returns:
            Its version.

        Raises:
            RequestError: a field is not acceptable.
            ReleaseError: RELEASE_BUSY, RELEASE_RUNNING, RELEASE_INCOMPLETE, RELEASE_ALTERED, RELEASE_TRIAL_FAILED, RELEASE_IO.
            FirmwareError: the release is refused.
            TpmError, EventLogError: it could not be measured.
        """
        if len(manifest_sha256) != 32:
            raise RequestError(("manifest_sha256", f"{len(manifest_sha256)} bytes; 32 are accepted"))
        if not MIN_TRIAL_S <= trial_s <= MAX_TRIAL_S:
            raise RequestError(("trial", f"{trial_s:g} s; {MIN_TRIAL_S:g} s to {MAX_TRIAL_S:g} s are accepted"))
        name = manifest_sha256.hex()
        if name == self._running:
            raise ReleaseError("RELEASE_RUNNING", f"release {name} is what runs here")
        if self._activation.locked() or self._pointer.trial is not None:
            raise ReleaseError("RELEASE_BUSY", "another release is being staged, activated or on trial")
        async with self._activation:
            release = await asyncio.to_thread(self._files.open, name)
            version = await asyncio.to_thread(self._try_out, release.directory, measure)
            with self._change:
                begun = self._pointer.begin(name, version, trial_ns=round(trial_s * 1e9), boot_id=self._boot_id)
                try:
                    self._set(begun)
                except OSError as error:
                    raise ReleaseError("RELEASE_IO", f"the release pointer cannot be written: {error.strerror}") from error
        _LOG.info("release %s (%s) passed its trial run; the process changes over to it", version, name)
        return version

    def _in_use(self) -> set[str]:
        trial = self._pointer.trial
        return {self._pointer.current, self._running, "" if trial is None else trial.sha256}

    def _directory(self, name: str) -> Path:
        return self._files.directory(name) if name else self._firmware_directory

    def _set(self, pointer: Pointer) -> None:
        self._file.write(pointer)
        self._pointer = pointer

    def _watch(self, deadline_ns: int) -> None:
        left_s = max(0.0, (deadline_ns - self._clock()) / 1e9)
        signal.alarm(int(left_s) + _ALARM_GRACE_S)
        threading.Thread(target=self._wait_for_lease, args=(deadline_ns,), name="release-trial", daemon=True).start()

    def _settle(self) -> None:
        self._settled.set()
        signal.alarm(0)

    def _wait_for_lease(self, deadline_ns: int) -> None:
        while (left_ns := deadline_ns - self._clock()) > 0:
            if self._settled.wait(min(left_ns / 1e9, 1.0)):
                return
        with self._change:
            trial = self._pointer.trial
            if self._settled.is_set() or trial is None:
                return
            message = f"no lease within {trial.trial_ns / 1e9:g} s"
            try:
                self._set(self._pointer.roll_back(NO_LEASE, message))
            except OSError as error:
                _LOG.error("the release pointer cannot be written (%s): the next start goes back", error)
            _LOG.error("release %s: %s: going back to the one before", trial.version, message)
            signal.alarm(0)
            self._restart()
