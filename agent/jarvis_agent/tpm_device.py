# SPDX-License-Identifier: Apache-2.0
"""One connection to a TPM 2.0: endorsement, attestation and TLS keys, quotes, PCRs, credential activation.

Every method blocks and must run on the thread that made the connection (TpmWorker's): an ESYS context serves one thread.
Results are plain bytes and ints, copied out of the library's memory before a method returns; structures that the library
returns are held in a variable while their members are read, because members of a temporary point into freed memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from jarvis.capture.v1.trust_pb2 import StoreApproval
from jarvis_trust.tpm_structures import parse_attest_quote, parse_ecdsa_signature
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPM2_HC, TPM2_RH, TPM2_SE, TPM2_ST
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import (
    TPM2B_ATTEST,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PUBLIC,
    TPML_DIGEST_VALUES,
    TPML_PCR_SELECTION,
    TPMT_HA,
    TPMT_SIG_SCHEME,
    TPMT_SIGNATURE,
    TPMT_TK_HASHCHECK,
    TPMU_HA,
)
from tpm2_pytss.utils import NoSuchIndex, NVReadEK, create_ek_template

from jarvis_agent.errors import TpmError
from jarvis_agent.nv_floor import NvFloor
from jarvis_agent.tpm_handles import KeyHandles, PersistentKeys
from jarvis_agent.tpm_keys import AK_TEMPLATE, Made, PrimaryKey, tls_key_template
from jarvis_agent.tpm_seal import SealedBlob, seal, unseal

_LOG = logging.getLogger(__name__)

EK_TEMPLATE = "EK-RSA2048"
"""Template L-1 of the TCG EK Credential Profile: one EK algorithm, so that one TPM is one agent."""

TRANSIENT = KeyHandles()
"""No key is kept."""
NV_FIRST = 0x01C00000
EK_CHAIN_FIRST, EK_CHAIN_LAST = 0x01C00100, 0x01C001FF
"""NV indices of the TCG: EK certificates, and the intermediates of their chain (one or more, concatenated over the indices)."""
PCR_READ_MAX = 8
"""TPM2_PCR_Read returns at most this many digests."""
_CONSISTENT_READS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementIdentity:
    """What names a TPM: its endorsement key and the certificates that its vendor left in NV."""

    certificate: bytes
    """DER; empty when the TPM holds none."""
    chain: tuple[bytes, ...]
    """DER of the intermediates that the TPM holds."""
    public: bytes
    """TPMT_PUBLIC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockInfo:
    """TPMS_CLOCK_INFO."""

    clock: int
    """Milliseconds, over the TPM's life, while powered."""
    reset_count: int
    restart_count: int
    safe: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A quote and the PCR values that its digest covers."""

    attest: bytes
    """TPMS_ATTEST as signed."""
    signature: bytes
    """TPMT_SIGNATURE."""
    pcrs: dict[int, bytes]
    """SHA-256 bank, by index."""
    reset_count: int


class TpmDevice:
    """A connected TPM. AK and TLS key stay loaded while connected; everything else is flushed before a method returns.

    That is what fits: a TPM has at least three slots, and the third one serves whatever else is in hand.
    """

    def __init__(self, tcti: str, handles: KeyHandles = TRANSIENT) -> None:
        """Connects.

        Args:
            tcti: TCTI configuration string, e.g. "device:/dev/tpmrm0" or "swtpm:host=127.0.0.1,port=2321".
            handles: where keys are kept in the TPM.

        Raises:
            TSS2_Exception: nobody answers there.
        """
        self._esapi = ESAPI(tcti)
        # Without a resource manager (swtpm) objects of an agent that was killed stay loaded and fill the TPM's three slots.
        if tcti.startswith("swtpm:"):
            self._flush_leftovers()
        self._kept_at = handles
        self.kept = PersistentKeys(self._esapi, handles)
        self._ak = PrimaryKey(self._esapi, AK_TEMPLATE, keep=self._keeping(handles.ak, "ak_handle", "attestation key"))
        self._tls_keys: dict[int, PrimaryKey] = {}

    def close(self) -> None:
        """Flushes the keys if the TPM still answers, and disconnects."""
        try:
            for key in (self._ak, *self._tls_keys.values()):
                key.flush()
        except TSS2_Exception as error:
            _LOG.debug("the keys were not flushed: %s", error)
        finally:
            self._esapi.close()

    def __enter__(self) -> TpmDevice:
        """Connected already."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Closed."""
        self.close()

    def endorsement_identity(self) -> EndorsementIdentity:
        """EK certificate and chain from NV, and the EK's public area (the key is made from its template and flushed)."""
        nv = _NvReader(self._esapi, self._handles(NV_FIRST))
        certificate, template = create_ek_template(EK_TEMPLATE, nv)
        chain = b"".join(nv(index) for index in nv.indices if EK_CHAIN_FIRST <= index <= EK_CHAIN_LAST)
        with self._endorsement_key(template) as (_, public):
            certificates = split_der(certificate or b"")
            return EndorsementIdentity(
                certificate=certificates[0] if certificates else b"", chain=tuple(split_der(chain)), public=public
            )

    def attestation_public(self) -> bytes:
        """The AK's TPMT_PUBLIC. The same TPM always gives the same key: it is derived from the endorsement seed."""
        return self._ak.public()

    def tls_public(self, number: int) -> bytes:
        """TPMT_PUBLIC of the TLS key with this number. The same TPM and number always give the same key."""
        return self._tls_key(number).public()

    def sign_tls(self, number: int, digest: bytes) -> bytes:
        """ECDSA signature, DER, by the TLS key with this number.

        Args:
            number: of the key.
            digest: SHA-256 of what is signed.
        """
        scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)  # the key's own
        no_ticket = TPMT_TK_HASHCHECK(tag=TPM2_ST.HASHCHECK, hierarchy=TPM2_RH.NULL)
        signature = self._tls_key(number).use(lambda key: self._esapi.sign(key, digest, scheme, no_ticket))
        _, der = parse_ecdsa_signature(bytes(signature.marshal()))
        return der

    def certify_tls(self, number: int, qualifying_data: bytes) -> tuple[bytes, bytes]:
        """The AK's word that the TLS key with this number is in this TPM: TPMS_ATTEST and TPMT_SIGNATURE of TPM2_Certify."""
        scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
        attest, signature = self._ak.use(
            lambda ak: self._tls_key(number).use(lambda key: self._esapi.certify(key, ak, qualifying_data, scheme))
        )
        return bytes(attest), bytes(signature.marshal())

    def quote(self, *, extra_data: bytes, pcrs: Sequence[int]) -> Quote:
        """A quote by the AK with the PCR values it covers, SHA-256 bank.

        Args:
            extra_data: at most 64 bytes, signed as they are.
            pcrs: indices 0..23, ascending, without repetition.

        Raises:
            TpmError: TPM_COMMAND_FAILED when the PCRs keep changing between reading and quoting.
        """
        selection = ",".join(str(index) for index in pcrs)
        for _ in range(_CONSISTENT_READS):
            values = self.read_pcrs(pcrs)
            attest, signature = self._sign_quote(f"sha256:{selection}", extra_data)
            signed = bytes(attest)
            parsed = parse_attest_quote(signed)
            if parsed.pcr_digest == hashlib.sha256(b"".join(values[index] for index in sorted(values))).digest():
                return Quote(attest=signed, signature=bytes(signature.marshal()), pcrs=values, reset_count=parsed.reset_count)
        raise TpmError("TPM_COMMAND_FAILED", f"PCRs {selection} changed in each of {_CONSISTENT_READS} attempts to quote them")

    def _sign_quote(self, selection: str, extra_data: bytes) -> tuple[TPM2B_ATTEST, TPMT_SIGNATURE]:
        attest, signature = self._ak.use(lambda key: self._esapi.quote(key, selection, extra_data))
        return attest, signature

    def read_pcrs(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        """Values of the SHA-256 bank, all of one moment (equal update counter), 32 bytes each.

        Raises:
            TpmError: TPM_COMMAND_FAILED when the bank has no such PCR or the PCRs keep changing.
        """
        for _ in range(_CONSISTENT_READS):
            values: dict[int, bytes] = {}
            counters: set[int] = set()
            for start in range(0, len(pcrs), PCR_READ_MAX):
                part = pcrs[start : start + PCR_READ_MAX]
                selection = TPML_PCR_SELECTION.parse("sha256:" + ",".join(str(index) for index in part))
                counter, _, digests = self._esapi.pcr_read(selection)
                found = [bytes(digests[position]) for position in range(len(digests))]
                if len(found) != len(part):
                    raise TpmError("TPM_COMMAND_FAILED", f"the TPM's SHA-256 bank gave {len(found)} of the PCRs {list(part)}")
                values.update(zip(sorted(part), found, strict=True))
                counters.add(int(counter))
            if len(counters) <= 1:
                return values
        raise TpmError("TPM_COMMAND_FAILED", f"PCRs {list(pcrs)} changed in each of {_CONSISTENT_READS} attempts to read them")

    def extend_pcr(self, pcr: int, digest: bytes) -> None:
        """TPM2_PCR_Extend of the SHA-256 bank with 32 bytes."""
        values = TPML_DIGEST_VALUES([TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=digest))])
        self._esapi.pcr_extend(ESYS_TR(pcr), values)

    def activate_credential(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """The secret that a verifier hid for this EK and this AK (TPM2_ActivateCredential).

        Args:
            credential_blob: TPM2B_ID_OBJECT, size included.
            encrypted_secret: TPM2B_ENCRYPTED_SECRET, size included.

        Raises:
            TSS2_Exception: they were not made for this TPM's EK and AK.
        """
        blob, blob_size = TPM2B_ID_OBJECT.unmarshal(credential_blob)
        secret, secret_size = TPM2B_ENCRYPTED_SECRET.unmarshal(encrypted_secret)
        if blob_size != len(credential_blob) or secret_size != len(encrypted_secret):
            raise TpmError("TPM_COMMAND_FAILED", "the enrolment challenge has bytes behind its TPM structures")
        _, template = create_ek_template(EK_TEMPLATE, _NvReader(self._esapi, self._handles(NV_FIRST)))
        with self._endorsement_key(template) as (endorsement_key, _), self._endorsement_session() as session:
            result = self._esapi.activate_credential(
                self._ak.handle(), endorsement_key, blob, secret, session1=ESYS_TR.PASSWORD, session2=session
            )
            return bytes(result)

    @contextlib.contextmanager
    def nv_floor(self, index: int) -> Iterator[NvFloor]:
        """The rollback floor in NV, made if there is none: see nv_floor.py."""
        floor = NvFloor(self._esapi, index, is_defined=index in self._handles(index))
        try:
            yield floor
        finally:
            floor.close()

    def seal(self, secret: bytes, auth_policy: bytes) -> SealedBlob:
        """Seals at most 128 bytes under a policy digest (tpm_seal)."""
        self._make_room()
        return seal(self._esapi, secret, auth_policy)

    def unseal(self, blob: SealedBlob, approval: StoreApproval) -> bytes:
        """What was sealed, in the boot state that the approval is for (tpm_seal).

        Raises:
            TpmError: STORE_KEY_SEALED, the PCRs are in another state.
        """
        self._make_room()
        return unseal(self._esapi, blob, approval)

    def _make_room(self) -> None:
        """Sealing takes two of the three slots; the keys are made again when they are next used."""
        for key in (self._ak, *self._tls_keys.values()):
            key.flush()

    def clock(self) -> ClockInfo:
        """TPM2_ReadClock."""
        time_info = self._esapi.read_clock()
        info = time_info.clockInfo
        return ClockInfo(
            clock=int(info.clock), reset_count=int(info.resetCount), restart_count=int(info.restartCount), safe=bool(info.safe)
        )

    def _tls_key(self, number: int) -> PrimaryKey:
        """The key of this number; that of another number leaves its slot."""
        if number not in self._tls_keys:
            for key in self._tls_keys.values():
                key.flush()
            keep = self._keeping(self._kept_at.tls_key, "tls_key_handle", f"TLS key {number}")
            self._tls_keys = {number: PrimaryKey(self._esapi, tls_key_template(number), keep=keep)}
        return self._tls_keys[number]

    def _endorsement_key(self, template: TPM2B_PUBLIC) -> _EndorsementKey:
        return _EndorsementKey(
            PrimaryKey(self._esapi, template, keep=self._keeping(self._kept_at.ek, "ek_handle", "endorsement key"))
        )

    def _keeping(self, handle: int | None, field: str, key: str) -> Callable[[Callable[[], Made]], Made] | None:
        """How a key with a handle is got; None for one without."""
        if handle is None:
            return None
        return lambda make: self.kept.keep(handle, field=field, key=key, make=make)

    def _endorsement_session(self) -> _Session:
        """A policy session that satisfies the L-1 template's policy: PolicySecret(endorsement hierarchy)."""
        session = self._esapi.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, None, TPM2_ALG.SHA256)
        guard = _Session(self._esapi, session)
        try:
            self._esapi.policy_secret(ESYS_TR.ENDORSEMENT, session, expiration=0)
        except BaseException:
            guard.flush()
            raise
        return guard

    def _handles(self, first: int) -> list[int]:
        _, capability = self._esapi.get_capability(TPM2_CAP.HANDLES, first, 256)
        data = capability.data
        handles = data.handles
        return [int(handles[position]) for position in range(len(handles))]

    def _flush_leftovers(self) -> None:
        for kind in (TPM2_HC.TRANSIENT_FIRST, TPM2_HC.LOADED_SESSION_FIRST):
            for handle in self._handles(int(kind)):
                self._esapi.flush_context(self._esapi.tr_from_tpmpublic(handle))


class _EndorsementKey:
    """The endorsement key, its slot freed at the end of its `with` block."""

    def __init__(self, key: PrimaryKey) -> None:
        self._key = key

    def __enter__(self) -> tuple[ESYS_TR, bytes]:
        return self._key.handle(), self._key.public()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._key.flush()


class _Session:
    """An authorisation session, flushed at the end of its `with` block."""

    def __init__(self, esapi: ESAPI, handle: ESYS_TR) -> None:
        self._esapi, self._handle = esapi, handle

    def flush(self) -> None:
        self._esapi.flush_context(self._handle)

    def __enter__(self) -> ESYS_TR:
        return self._handle

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.flush()


class _NvReader:
    """NV contents by index. Asks for the list first: the library logs an error for each index that is not there."""

    def __init__(self, esapi: ESAPI, indices: list[int]) -> None:
        self._read = NVReadEK(esapi)
        self.indices = indices

    def __call__(self, index: int) -> bytes:
        if int(index) not in self.indices:
            raise NoSuchIndex(index)
        return bytes(self._read(index))


def split_der(data: bytes) -> list[bytes]:
    """The DER SEQUENCEs that stand one behind the other in `data`; what follows them (NV padding) is left out."""
    found = []
    while len(data) >= 4 and data[0] == 0x30:
        if data[1] < 0x80:
            size = 2 + data[1]
        else:
            octets = data[1] & 0x7F
            size = 2 + octets + int.from_bytes(data[2 : 2 + octets], "big")
        if size > len(data):
            break
        found.append(data[:size])
        data = data[size:]
    return found
