# SPDX-License-Identifier: Apache-2.0
"""Software TPMs with endorsement certificates of a vendor CA of their own, for tests, demo and benchmarks.

A `TpmVendor` is one local CA (root -> issuer) and manufactures TPM state directories with swtpm_setup. The issuer's certificate
is written to the TPM's NV index 0x1c00100, where real TPMs keep their intermediates: a verifier needs only the vendor's root.
A `Swtpm` runs one state directory: start, power cut (`kill`), orderly end (`stop`), `reboot` on the same ports.
Manufacturing takes seconds: `TpmVendor.copy_of` manufactures once per name and hands out copies.

All paths are made absolute: swtpm changes its directory when it daemonises, and a relative path puts the TPM in failure mode.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SU, TPMA_NV
from tpm2_pytss.types import TPM2B_NV_PUBLIC, TPMS_NV_PUBLIC

from testbed.netns import Namespace
from testbed.ports import free_ports

INTERMEDIATE_NV_INDEX = 0x01C00100
"""First NV index of the EK certificate chain, TCG EK Credential Profile 2.4, 2.2.1.5."""

READY_TIMEOUT_S = 10.0


class TestbedError(RuntimeError):
    """A part of the test bed could not be built or started; the message carries the tool's own words."""

    __test__ = False  # not a test class, whatever its name suggests to pytest


class TpmVendor:
    """A TPM manufacturer: a CA directory and the TPMs made with it. Not thread-safe: swtpm_localca keeps its serial in a file."""

    def __init__(self, directory: Path) -> None:
        """`directory` holds everything of this vendor; it is made when it does not exist, and used as it is when it does."""
        self.directory = directory.absolute()
        self._ca = self.directory / "ca"
        self._ca.mkdir(parents=True, exist_ok=True)
        self._config = self._write_config()

    @property
    def roots(self) -> Path:
        """PEM file of the vendor's self-signed root: what a controller trusts. The CA is made with the first TPM."""
        path = self._ca / "swtpm-localca-rootca-cert.pem"
        if not path.exists():
            with tempfile.TemporaryDirectory() as scratch:
                self.manufacture(Path(scratch) / "tpm")
        return path

    @property
    def root_pem(self) -> bytes:
        """The vendor's self-signed root."""
        return self.roots.read_bytes()

    @property
    def issuer_der(self) -> bytes:
        """The intermediate that signs endorsement certificates."""
        certificate = x509.load_pem_x509_certificate((self._ca / "issuercert.pem").read_bytes())
        return certificate.public_bytes(Encoding.DER)

    def manufacture(self, state_directory: Path) -> Path:
        """Makes a new TPM with EK certificate and chain in NV; takes seconds. Returns its absolute state directory."""
        state = state_directory.absolute()
        state.mkdir(parents=True, exist_ok=True)
        _run(
            [
                "swtpm_setup",
                "--tpm2",
                "--tpmstate",
                str(state),
                "--config",
                str(self._config),
                "--create-ek-cert",
                "--pcr-banks",
                "sha256",
                "--overwrite",
            ]
        )
        with Swtpm(state) as tpm:
            _write_intermediate(tpm.tcti, self.issuer_der)
        return state

    def make(self, state_directory: Path, *, namespace: Namespace | None = None) -> Swtpm:
        """Manufactures a TPM of its own kind and gives it not yet started; it will run in `namespace` if one is given."""
        return Swtpm(self.manufacture(state_directory), namespace=namespace)

    def copy_of(self, name: str, state_directory: Path) -> Path:
        """A copy of this vendor's TPM `name`, manufactured when it is first asked for. Two copies of one name are clones."""
        original = self.directory / "tpms" / name
        if not original.exists():
            partial = original.with_name(f"{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            self.manufacture(partial)
            partial.rename(original)
        state = state_directory.absolute()
        shutil.copytree(original, state, dirs_exist_ok=True)
        return state

    def _write_config(self) -> Path:
        options = self.directory / "localca.options"
        options.write_text("--platform-manufacturer JARVIS\n--platform-version 1\n--platform-model testbed\n")
        localca = self.directory / "localca.conf"
        localca.write_text(
            f"statedir = {self._ca}\nsigningkey = {self._ca}/signkey.pem\n"
            f"issuercert = {self._ca}/issuercert.pem\ncertserial = {self._ca}/certserial\n"
        )
        setup = self.directory / "setup.conf"
        setup.write_text(
            "create_certs_tool = /usr/bin/swtpm_localca\n"
            f"create_certs_tool_config = {localca}\ncreate_certs_tool_options = {options}\n"
        )
        return setup


class Swtpm:
    """One running software TPM on a pair of loopback TCP ports (command P, control P + 1). Not thread-safe."""

    def __init__(self, state_directory: Path, *, namespace: Namespace | None = None) -> None:
        """Nothing runs yet.

        Args:
            state_directory: a manufactured one.
            namespace: network namespace whose loopback it listens on; None = ours.
        """
        self.state_directory = state_directory.absolute()
        self._namespace = namespace
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._startup = "startup-clear"
        self._log = self.state_directory / "swtpm.log"

    @property
    def tcti(self) -> str:
        """The TCTI configuration string that reaches it."""
        return f"swtpm:host=127.0.0.1,port={self._port}"

    @property
    def port(self) -> int:
        """Of its commands; the control port is the next one."""
        return self._port

    @property
    def pid(self) -> int:
        """Process id while it runs."""
        if self._process is None:
            raise TestbedError(f"the TPM in {self.state_directory} is not running")
        return self._process.pid

    def start(self, *, resume: bool = False) -> None:
        """Powers it on. The first start picks the ports; later ones come back on the same.

        Args:
            resume: TPM2_Startup(STATE), as from suspend: PCRs are kept if `suspend` came before.
        """
        self._startup = "startup-state" if resume else "startup-clear"
        if self._process is not None:
            raise TestbedError(f"the TPM in {self.state_directory} is already running")
        attempts = 1 if self._port else 20
        for _ in range(attempts):
            port = self._port or free_ports(2)
            self._process = self._spawn(port)
            if self._answers(port):
                self._port = port
                return
            self._reap(signal.SIGKILL)
        said = self._log.read_text(errors="replace")[-2000:]
        raise TestbedError(f"swtpm did not answer within {READY_TIMEOUT_S:.0f} s: {said}")

    def kill(self) -> None:
        """A power cut: the process is killed, nothing is shut down in order."""
        self._reap(signal.SIGKILL)

    def stop(self) -> None:
        """Ends the process with SIGTERM; does nothing when it does not run."""
        if self._process is not None:
            self._reap(signal.SIGTERM)

    def suspend(self) -> None:
        """TPM2_Shutdown(STATE), then power off. Nobody else may be connected: the command port serves one client at a time."""
        with ESAPI(self.tcti) as esapi:
            esapi.shutdown(TPM2_SU.STATE)
        self.stop()

    def reboot(self) -> None:
        """A power cut and a cold start: PCRs are zero again, the reset count rises by one."""
        self.kill()
        self.start()

    def __enter__(self) -> Swtpm:
        """Started."""
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Stopped, whatever happened."""
        self.stop()

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        command = [
            "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.state_directory}",
            "--server", f"type=tcp,bindaddr=127.0.0.1,port={port}",
            "--ctrl", f"type=tcp,bindaddr=127.0.0.1,port={port + 1}", "--flags", f"not-need-init,{self._startup}",
        ]  # fmt: skip
        if self._namespace is not None:
            return self._namespace.start(command, log=self._log)
        with self._log.open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _answers(self, port: int) -> bool:
        """Waits until both ports listen. Looks from outside: the command port serves one client only and is left alone."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                return False
            if {port, port + 1} <= _listening_ports(self._process.pid):
                return True
            time.sleep(0.005)
        return False

    def _reap(self, signal_number: int) -> None:
        if self._process is None:
            raise TestbedError(f"the TPM in {self.state_directory} is not running")
        process, self._process = self._process, None
        process.send_signal(signal_number)
        try:
            process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=5.0)


def _listening_ports(pid: int) -> set[int]:
    """TCP ports that listen in the process's network namespace, from the kernel's table (proc_net_tcp: state 0A)."""
    try:
        table = Path(f"/proc/{pid}/net/tcp").read_text(encoding="ascii")
    except OSError:
        return set()
    rows = [line.split() for line in table.splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


def _write_intermediate(tcti: str, issuer_der: bytes) -> None:
    """Puts the issuer's certificate where a real TPM's vendor puts it; readable by everyone, written with owner authority."""
    public = TPM2B_NV_PUBLIC(
        TPMS_NV_PUBLIC(
            nvIndex=INTERMEDIATE_NV_INDEX,
            nameAlg=TPM2_ALG.SHA256,
            attributes=TPMA_NV.OWNERWRITE | TPMA_NV.AUTHREAD | TPMA_NV.OWNERREAD | TPMA_NV.NO_DA,
            dataSize=len(issuer_der),
        )
    )
    with ESAPI(tcti) as esapi:
        index = esapi.nv_define_space(None, public)
        for offset in range(0, len(issuer_der), 512):
            esapi.nv_write(index, issuer_der[offset : offset + 512], offset, auth_handle=ESYS_TR.OWNER)


def _run(command: list[str]) -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    result = subprocess.run(command, capture_output=True, check=False, env=environment, timeout=120.0)
    if result.returncode != 0:
        output = (result.stdout + result.stderr).decode(errors="replace")
        raise TestbedError(f"{command[0]} failed with status {result.returncode}: {output[-2000:]}")
