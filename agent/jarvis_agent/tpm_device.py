# SPDX-License-Identifier: Apache-2.0
"""One connection to a TPM 2.0: endorsement and attestation keys, quotes, PCRs, credential activation.

Every method blocks and must run on the thread that made the connection (TpmWorker's): an ESYS context serves one thread.
Results are plain bytes and ints, copied out of the library's memory before a method returns; structures that the library
returns are held in a variable while their members are read, because members of a temporary point into freed memory.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from jarvis_trust.tpm_structures import parse_attest_quote
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPM2_ECC, TPM2_HC, TPM2_SE, TPMA_OBJECT
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import (
    TPM2B_ATTEST,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PUBLIC,
    TPML_DIGEST_VALUES,
    TPML_PCR_SELECTION,
    TPMS_ECC_PARMS,
    TPMS_SCHEME_HASH,
    TPMT_ECC_SCHEME,
    TPMT_HA,
    TPMT_KDF_SCHEME,
    TPMT_PUBLIC,
    TPMT_SIGNATURE,
    TPMT_SYM_DEF_OBJECT,
    TPMU_ASYM_SCHEME,
    TPMU_HA,
    TPMU_PUBLIC_PARMS,
)
from tpm2_pytss.utils import NoSuchIndex, NVReadEK, create_ek_template

from jarvis_agent.errors import TpmError

_LOG = logging.getLogger(__name__)

EK_TEMPLATE = "EK-RSA2048"
"""Template L-1 of the TCG EK Credential Profile: one EK algorithm, so that one TPM is one agent."""

NV_FIRST = 0x01C00000
EK_CHAIN_FIRST, EK_CHAIN_LAST = 0x01C00100, 0x01C001FF
"""NV indices of the TCG: EK certificates, and the intermediates of their chain (one or more, concatenated over the indices)."""
PCR_READ_MAX = 8
"""TPM2_PCR_Read returns at most this many digests."""
_CONSISTENT_READS = 5
_RC_MASK = 0xFFF
_RC_REFERENCES = range(0x910, 0x917)
"""TPM_RC_REFERENCE_H0..H6: the command names an object that is not loaded."""

AK_TEMPLATE = TPM2B_PUBLIC(
    publicArea=TPMT_PUBLIC(
        type=TPM2_ALG.ECC,
        nameAlg=TPM2_ALG.SHA256,
        objectAttributes=(
            TPMA_OBJECT.FIXEDTPM
            | TPMA_OBJECT.FIXEDPARENT
            | TPMA_OBJECT.SENSITIVEDATAORIGIN
            | TPMA_OBJECT.USERWITHAUTH
            | TPMA_OBJECT.NODA
            | TPMA_OBJECT.RESTRICTED
            | TPMA_OBJECT.SIGN_ENCRYPT
        ),
        parameters=TPMU_PUBLIC_PARMS(
            eccDetail=TPMS_ECC_PARMS(
                symmetric=TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL),
                scheme=TPMT_ECC_SCHEME(
                    scheme=TPM2_ALG.ECDSA, details=TPMU_ASYM_SCHEME(ecdsa=TPMS_SCHEME_HASH(hashAlg=TPM2_ALG.SHA256))
                ),
                curveID=TPM2_ECC.NIST_P256,
                kdf=TPMT_KDF_SCHEME(scheme=TPM2_ALG.NULL),
            )
        ),
    )
)
"""Attestation key: restricted (signs only what the TPM itself made), noda (power cuts must not lock it out)."""


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
    """A connected TPM. The AK stays loaded while connected; everything else is flushed before a method returns."""

    def __init__(self, tcti: str) -> None:
        """Connects.

        Args:
            tcti: TCTI configuration string, e.g. "device:/dev/tpmrm0" or "swtpm:host=127.0.0.1,port=2321".

        Raises:
            TSS2_Exception: nobody answers there.
        """
        self._esapi = ESAPI(tcti)
        # Without a resource manager (swtpm) objects of an agent that was killed stay loaded and fill the TPM's three slots.
        if tcti.startswith("swtpm:"):
            self._flush_leftovers()
        self._ak: ESYS_TR | None = None
        self._ak_public = b""

    def close(self) -> None:
        """Flushes the AK if the TPM still answers, and disconnects."""
        try:
            if self._ak is not None:
                self._esapi.flush_context(self._ak)
        except TSS2_Exception as error:
            _LOG.debug("the attestation key was not flushed: %s", error)
        finally:
            self._ak = None
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
        with self._primary(template) as (_, public):
            certificates = split_der(certificate or b"")
            return EndorsementIdentity(
                certificate=certificates[0] if certificates else b"", chain=tuple(split_der(chain)), public=public
            )

    def attestation_public(self) -> bytes:
        """The AK's TPMT_PUBLIC. The same TPM always gives the same key: it is derived from the endorsement seed."""
        self._attestation_key()
        return self._ak_public

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
        """Quotes; when the loaded AK is gone (the TPM was reset under us, somebody flushed it) it is made again, once."""
        try:
            attest, signature = self._esapi.quote(self._attestation_key(), selection, extra_data)
        except TSS2_Exception as error:
            if int(error.rc) & _RC_MASK not in _RC_REFERENCES:
                raise
            self._ak = None
            attest, signature = self._esapi.quote(self._attestation_key(), selection, extra_data)
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
        with self._primary(template) as (endorsement_key, _), self._endorsement_session() as session:
            result = self._esapi.activate_credential(
                self._attestation_key(), endorsement_key, blob, secret, session1=ESYS_TR.PASSWORD, session2=session
            )
            return bytes(result)

    def clock(self) -> ClockInfo:
        """TPM2_ReadClock."""
        time_info = self._esapi.read_clock()
        info = time_info.clockInfo
        return ClockInfo(
            clock=int(info.clock), reset_count=int(info.resetCount), restart_count=int(info.restartCount), safe=bool(info.safe)
        )

    def _attestation_key(self) -> ESYS_TR:
        if self._ak is None:
            handle, public, *_ = self._esapi.create_primary(None, AK_TEMPLATE, ESYS_TR.ENDORSEMENT)
            area = public.publicArea
            self._ak_public = bytes(area.marshal())
            self._ak = handle
        return self._ak

    def _primary(self, template: TPM2B_PUBLIC) -> _TransientKey:
        handle, public, *_ = self._esapi.create_primary(None, template, ESYS_TR.ENDORSEMENT)
        area = public.publicArea
        return _TransientKey(self._esapi, handle, bytes(area.marshal()))

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


class _TransientKey:
    """A loaded primary, flushed at the end of its `with` block."""

    def __init__(self, esapi: ESAPI, handle: ESYS_TR, public: bytes) -> None:
        self._esapi, self._handle, self._public = esapi, handle, public

    def __enter__(self) -> tuple[ESYS_TR, bytes]:
        return self._handle, self._public

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._esapi.flush_context(self._handle)


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
