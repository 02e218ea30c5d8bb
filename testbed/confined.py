# SPDX-License-Identifier: Apache-2.0
"""Runs a program as a systemd unit of ours confines it, on machines where systemd is not in charge.

    python -m testbed.confined --unit UNIT [--drop-in FILE ...] --uid N -- PROGRAM ARGUMENT ...

Taken from the unit: another user, capabilities (bounding, inheritable, ambient), NoNewPrivileges, SystemCallFilter,
RestrictAddressFamilies, MemoryDenyWriteExecute, LimitMEMLOCK, UMask. Not taken: file-system protection and namespaces, which hide
files and forbid nothing that our programs do. System calls that the filter leaves out fail with EPERM, as the units say.

Two steps, because a filter has to be loaded by the process that it is for: setpriv changes user and capabilities and starts this
module again, which loads the filter and becomes the program.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROT_WRITE, PROT_EXEC, SHM_EXEC = 0x2, 0x4, 0o100000
_SET = re.compile(r"^@[a-z0-9-]+$")


@dataclass(slots=True, kw_only=True)
class Confinement:
    """What of a unit restricts the process."""

    capabilities: list[str] = field(default_factory=list)
    """As the unit writes them, CAP_NET_RAW."""
    system_calls: set[str] = field(default_factory=set)
    families: list[str] = field(default_factory=list)
    """Address families that sockets may have."""
    denies_write_execute: bool = False
    locks_any_memory: bool = False
    umask: int = 0o022

    @classmethod
    def of(cls, unit: Path, drop_ins: Iterable[Path] = ()) -> Confinement:
        """Reads a unit and what is dropped in beside it, in that order."""
        sets = system_call_sets()
        made = cls()
        for path in (unit, *drop_ins):
            for line in path.read_text().splitlines():
                name, _, value = line.partition("=")
                made._take(name, value.split(), sets)
        return made

    def _take(self, name: str, values: list[str], sets: dict[str, set[str]]) -> None:
        if name == "AmbientCapabilities":
            self.capabilities += values
        elif name == "SystemCallFilter":
            removes = values[0].startswith("~")
            named = {call for value in values for call in expand(value.lstrip("~"), sets)}
            self.system_calls = self.system_calls - named if removes else self.system_calls | named
        elif name == "RestrictAddressFamilies":
            self.families += values
        elif name == "MemoryDenyWriteExecute":
            self.denies_write_execute = values == ["yes"]
        elif name == "LimitMEMLOCK":
            self.locks_any_memory = values == ["infinity"]
        elif name == "UMask":
            self.umask = int(values[0], 8)

    def lift_memory_limit(self) -> None:
        """LimitMEMLOCK=infinity; in a container that may not raise its limits, the capability that has the same effect."""
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except ValueError:
            self.capabilities.append("CAP_IPC_LOCK")

    def privileges(self, uid: int) -> list[str]:
        """The command line that drops everything else."""
        kept = ",".join(["-all", *("+" + name.removeprefix("CAP_").lower() for name in self.capabilities)])
        return [
            "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs",
            f"--bounding-set={kept}", f"--inh-caps={kept}", f"--ambient-caps={kept}",
        ]  # fmt: skip

    def load_filter(self) -> None:
        """Restricts this process and what it becomes, for good."""
        import pyseccomp as seccomp  # type: ignore[import-untyped]  # noqa: PLC0415 - it looks for libseccomp when it is imported

        rules: Any = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))

        def allow(call: str, *conditions: Any) -> None:
            rules.add_rule(seccomp.ALLOW, call, *conditions)

        def clear(argument: int, bits: int) -> Any:
            return seccomp.Arg(argument, seccomp.MASKED_EQ, bits, 0)

        special = {"socket": [[seccomp.Arg(0, seccomp.EQ, _family(name))] for name in self.families]}
        if self.denies_write_execute:
            special["mmap"] = [[clear(2, PROT_WRITE)], [clear(2, PROT_EXEC)]]
            special["mprotect"] = special["pkey_mprotect"] = [[clear(2, PROT_EXEC)]]
            special["shmat"] = [[clear(2, SHM_EXEC)]]
        known = (call for call in sorted(self.system_calls) if _is_known(seccomp, call))
        for call in known:
            for conditions in special.get(call, [[]]):
                allow(call, *conditions)
        rules.load()


def system_call_sets() -> dict[str, set[str]]:
    """The named sets of system calls, as this machine's systemd has them."""
    printed = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager"], capture_output=True, text=True, check=True)
    sets: dict[str, set[str]] = {}
    members: set[str] = set()
    for line in printed.stdout.splitlines():
        if _SET.match(line):
            members = sets.setdefault(line, set())
        elif line.startswith("    ") and not line.lstrip().startswith("#"):
            members.add(line.strip())
    return sets


def expand(name: str, sets: dict[str, set[str]]) -> set[str]:
    """A system call, or all that a set names; sets hold sets."""
    if not name.startswith("@"):
        return {name}
    return {call for member in sets[name] for call in expand(member, sets)}


def _family(name: str) -> int:
    # AF_XDP is missing from the socket module of Python 3.11.
    return int(getattr(socket, name, 44 if name == "AF_XDP" else -1))


def _is_known(seccomp: Any, call: str) -> bool:
    try:
        return bool(seccomp.resolve_syscall(seccomp.Arch.NATIVE, call) >= 0)
    except (RuntimeError, ValueError, OSError):
        return False


def command(unit: Path, drop_ins: Sequence[Path], uid: int, program: Sequence[str]) -> list[str]:
    """The command line that runs the program confined."""
    options = [option for path in drop_ins for option in ("--drop-in", str(path))]
    return [sys.executable, "-m", "testbed.confined", "--unit", str(unit), *options, "--uid", str(uid), "--", *program]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unit", type=Path, required=True)
    parser.add_argument("--drop-in", type=Path, action="append", default=[])
    parser.add_argument("--uid", type=int, required=True)
    parser.add_argument("program", nargs="+")
    options = parser.parse_args()
    confinement = Confinement.of(options.unit, options.drop_in)
    if os.getuid() != options.uid:
        if confinement.locks_any_memory:
            confinement.lift_memory_limit()
        again = command(options.unit, options.drop_in, options.uid, options.program)
        os.execvp("setpriv", [*confinement.privileges(options.uid), *again])  # noqa: S606 - a test's own command
    os.umask(confinement.umask)
    confinement.load_filter()
    os.execvp(options.program[0], options.program)  # noqa: S606


if __name__ == "__main__":
    main()
