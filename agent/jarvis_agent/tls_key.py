# SPDX-License-Identifier: Apache-2.0
"""The key behind the agent's certificate: in the TPM (tunnel carrier) or in a file (direct carrier).

    TpmTlsKey       an agent that dials: every handshake is signed on the TPM's thread, the private half never leaves the TPM
    SoftwareTlsKey  an agent that is dialled: gRPC servers take a private key in PEM only

Both make certificate requests and client credentials; who dials need not know which one it has.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

import grpc
import grpc.experimental
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jarvis_trust.ca import make_csr, public_key_of
from jarvis_trust.csr import csr_from_signature, csr_info
from jarvis_trust.errors import IdentityError
from jarvis_trust.keyfiles import read_private, replace_private
from jarvis_trust.tpm_structures import parse_public

from jarvis_agent.errors import TpmError
from jarvis_agent.tpm import TpmPriority, TpmWorker
from jarvis_agent.tpm_device import TpmDevice

# That the interface is experimental is known: pyproject.toml bounds grpcio, and tests/integration/swtpm shake hands with it.
warnings.filterwarnings("ignore", category=grpc.experimental.ExperimentalApiWarning, message=".*custom_signer")

_NUMBER_FILE = "tpm-key-number"
_NUMBER_MAX = 2**32 - 1

OnComplete = Callable[[bytes | Exception], None]
"""gRPC's: takes the signature or why there is none; may be called from any thread."""
Signer = Callable[[bytes, grpc.experimental.PrivateKeySignatureAlgorithm, OnComplete], Callable[[], None]]
"""private_key_sign_fn of grpc.experimental.ssl_channel_credentials_with_custom_signer, its asynchronous form."""


class TlsKey(Protocol):
    """What certificates and connections need of a key."""

    @property
    def spki_der(self) -> bytes:
        """SubjectPublicKeyInfo."""

    @property
    def tpm_public(self) -> bytes:
        """TPMT_PUBLIC; empty when the TPM does not hold the key."""

    async def csr(self) -> bytes:
        """PKCS#10 request, DER, that proves possession and names nobody.

        Raises:
            TpmError: the TPM is lost or refuses.
        """

    async def certify(self, qualifying_data: bytes) -> tuple[bytes, bytes]:
        """The attestation key's word that the TPM holds the key: TPMS_ATTEST and TPMT_SIGNATURE; both empty when it does not.

        Raises:
            TpmError: the TPM is lost or refuses.
        """

    def channel_credentials(self, *, root_certificates: bytes, certificate_chain: bytes) -> grpc.ChannelCredentials:
        """Credentials of a client that shows this key's certificate.

        Args:
            root_certificates: PEM, whom the server must be certified by.
            certificate_chain: PEM, leaf of this key first.
        """


class SoftwareTlsKey:
    """A key in memory, from a file."""

    def __init__(self, key_pem: bytes) -> None:
        """Takes a private key.

        Raises:
            IdentityError: KEY_INVALID.
        """
        self.key_pem = key_pem
        self._spki_der = public_key_of(key_pem).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def spki_der(self) -> bytes:
        """See TlsKey."""
        return self._spki_der

    @property
    def tpm_public(self) -> bytes:
        """Empty."""
        return b""

    async def csr(self) -> bytes:
        """See TlsKey."""
        return make_csr(self.key_pem)

    async def certify(self, qualifying_data: bytes) -> tuple[bytes, bytes]:  # noqa: ARG002 - nothing vouches for a file
        """Empty."""
        return b"", b""

    def channel_credentials(self, *, root_certificates: bytes, certificate_chain: bytes) -> grpc.ChannelCredentials:
        """See TlsKey."""
        return grpc.ssl_channel_credentials(root_certificates, self.key_pem, certificate_chain)


class TpmTlsKey:
    """A key that stays in the TPM. Made with `load`; `signer` may be used from any thread."""

    def __init__(self, worker: TpmWorker, *, number: int, public: bytes) -> None:
        """Nothing is asked of the TPM.

        Args:
            worker: the TPM's thread.
            number: of the key, see tpm_keys.tls_key_template.
            public: TPMT_PUBLIC, what `TpmDevice.tls_public(number)` gave.

        Raises:
            AttestationError: TPM_PUBLIC_INVALID.
        """
        self._worker = worker
        self.number = number
        self._public = parse_public(public)

    @classmethod
    async def open(cls, worker: TpmWorker, directory: Path) -> TpmTlsKey:
        """The agent's key: that of the number in `directory`, 0 when there is none.

        Raises:
            IdentityError: KEY_FILE_INVALID, KEY_FILE_EXPOSED.
            TpmError: the TPM is lost or refuses.
            OSError: the number cannot be read.
        """
        return await cls.load(worker, read_key_number(directory))

    @classmethod
    async def load(cls, worker: TpmWorker, number: int) -> TpmTlsKey:
        """The key of this number in the worker's TPM.

        Raises:
            TpmError: the TPM is lost or refuses.
        """
        public = await worker.run(TpmPriority.CREDENTIAL, lambda device: device.tls_public(number))
        return cls(worker, number=number, public=public)

    @property
    def spki_der(self) -> bytes:
        """See TlsKey."""
        return self._public.spki_der

    @property
    def tpm_public(self) -> bytes:
        """See TlsKey."""
        return self._public.raw

    async def csr(self) -> bytes:
        """See TlsKey."""
        info = csr_info(self.spki_der)
        return csr_from_signature(info, await self._worker.run(TpmPriority.TLS_SIGN, self._signing(info)))

    async def certify(self, qualifying_data: bytes) -> tuple[bytes, bytes]:
        """See TlsKey."""
        return await self._worker.run(TpmPriority.CREDENTIAL, lambda device: device.certify_tls(self.number, qualifying_data))

    def channel_credentials(self, *, root_certificates: bytes, certificate_chain: bytes) -> grpc.ChannelCredentials:
        """See TlsKey."""
        credentials: grpc.ChannelCredentials = grpc.experimental.ssl_channel_credentials_with_custom_signer(
            private_key_sign_fn=self.signer(), root_certificates=root_certificates, certificate_chain=certificate_chain
        )
        return credentials

    def signer(self) -> Signer:
        """What gRPC calls, from a thread of its own, in each handshake; it returns at once and the TPM's thread completes it."""

        def sign(
            data: bytes, algorithm: grpc.experimental.PrivateKeySignatureAlgorithm, on_complete: OnComplete
        ) -> Callable[[], None]:
            if algorithm != grpc.experimental.PrivateKeySignatureAlgorithm.ECDSA_SECP256R1_SHA256:
                raise TpmError("TPM_COMMAND_FAILED", f"the TLS key signs ECDSA_SECP256R1_SHA256; {algorithm.name} was asked for")
            # on_complete from within this call would hang the handshake (grpcio 1.85): `call` never does that.
            future = self._worker.call(
                TpmPriority.TLS_SIGN, self._signing(bytes(data)), lambda done: _complete(done, on_complete)
            )
            return lambda: _cancel(future)

        return sign

    def _signing(self, message: bytes) -> Callable[[TpmDevice], bytes]:
        digest = hashlib.sha256(message).digest()

        def operation(device: TpmDevice) -> bytes:
            if device.tls_public(self.number) != self._public.raw:
                raise TpmError("TPM_CHANGED", "this TPM makes another TLS key than the agent's: it is not the TPM of the start")
            return device.sign_tls(self.number, digest)

        return operation


def read_key_number(directory: Path) -> int:
    """The number of the TLS key in the TPM, 0 when no file says another.

    Raises:
        IdentityError: KEY_FILE_INVALID, KEY_FILE_EXPOSED.
    """
    path = directory / _NUMBER_FILE
    if not path.exists():
        return 0
    text = read_private(path).decode("ascii", "replace").strip()
    if not text.isdecimal() or not text.isascii() or int(text) > _NUMBER_MAX:
        raise IdentityError("KEY_FILE_INVALID", f"{path}: {text[:20]!r}; a number 0..{_NUMBER_MAX} is accepted")
    return int(text)


def write_key_number(directory: Path, number: int) -> None:
    """From the agent's next start on its TLS key is the one of this number: another key, and another certificate.

    Raises:
        OSError: it cannot be written.
    """
    replace_private(directory / _NUMBER_FILE, f"{number}\n".encode())


def _complete(done: Future[bytes], on_complete: OnComplete) -> None:
    if done.cancelled():
        return  # gRPC cancelled it and waits for nothing
    error = done.exception()
    if error is None:
        on_complete(done.result())
    else:
        on_complete(error if isinstance(error, Exception) else RuntimeError(str(error)))


def _cancel(future: Future[bytes]) -> None:
    future.cancel()
