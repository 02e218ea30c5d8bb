# SPDX-License-Identifier: Apache-2.0
"""Strict readers of the few TPM 2.0 structures that attestation needs (TCG TPM 2.0 Library, Part 2). All integers are big-endian.

    TPMS_ATTEST -> AttestReading -> QuoteAttest, CertifyAttest      TPMT_PUBLIC -> TpmPublic      TPMT_SIGNATURE -> DER

Bytes come from agents and are hostile. Every reader takes all of its input or refuses it, knows only the algorithms that this
project uses, and gives one reading for one byte string. Nothing of libtss2 is involved: 3.2.1 accepts a wrong magic and trailing
bytes.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from jarvis_trust.errors import AttestationError

TPM_GENERATED: Final = 0xFF544347
TPM_ST_ATTEST_CERTIFY: Final = 0x8017
TPM_ST_ATTEST_QUOTE: Final = 0x8018
TPM_RH_ENDORSEMENT: Final = 0x4000000B

ALG_RSA: Final = 0x0001
ALG_AES: Final = 0x0006
ALG_SHA256: Final = 0x000B
ALG_NULL: Final = 0x0010
ALG_RSASSA: Final = 0x0014
ALG_RSAPSS: Final = 0x0016
ALG_ECDSA: Final = 0x0018
ALG_ECC: Final = 0x0023
ALG_CFB: Final = 0x0043
ECC_NIST_P256: Final = 0x0003
ECC_NIST_P384: Final = 0x0004

MAX_ATTEST_BYTES: Final = 1024
MAX_PUBLIC_BYTES: Final = 1024
MAX_SIGNATURE_BYTES: Final = 1024

_CURVES: Final = {ECC_NIST_P256: ec.SECP256R1(), ECC_NIST_P384: ec.SECP384R1()}
_NAME_BYTES: Final = 34
_PCR_SELECT_BYTES: Final = 3  # 24 PCRs, PC Client platform


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteAttest:
    """TPMS_ATTEST of a quote over exactly one PCR bank."""

    magic: int
    type: int
    qualified_signer: bytes
    """TPM2B_NAME contents: nameAlg and digest, 34 bytes."""
    extra_data: bytes
    """At most 64 bytes."""
    clock: int
    """ms while the TPM had power; may go back a little across a power cut, so compare within one reset_count only."""
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    pcr_bank: int
    """TPM_ALG_ID of the hash, e.g. ALG_SHA256."""
    pcr_indices: tuple[int, ...]
    """Ascending; may be empty."""
    pcr_digest: bytes
    """Digest of the selected PCRs' values, ascending, in the signing scheme's hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyAttest:
    """TPMS_ATTEST of TPM2_Certify: that an object is loaded in the signer's TPM."""

    qualified_signer: bytes
    """TPM2B_NAME contents, 34 bytes."""
    extra_data: bytes
    """At most 64 bytes."""
    name: bytes
    """Of the object, 34 bytes."""
    qualified_name: bytes
    """Of the object: where in which hierarchy it is, 34 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestReading:
    """A TPMS_ATTEST read as a quote, and everything that is wrong with it: reading and judging are two steps."""

    quote: QuoteAttest | None
    """The fields as they are; None when the bytes cannot be read as a quote at all."""
    violations: tuple[AttestationError, ...]
    """In the order of the bytes; empty exactly when parse_attest_quote accepts them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmPublic:
    """TPMT_PUBLIC of an RSA or ECC key with nameAlg SHA-256."""

    raw: bytes
    """The bytes as received; the Name is computed over these."""
    kind: int
    """ALG_RSA or ALG_ECC."""
    name_alg: int
    attributes: int
    """TPMA_OBJECT."""
    auth_policy: bytes
    symmetric: tuple[int, int, int] | None
    """(algorithm, key bits, mode) of a storage key; None for TPM_ALG_NULL."""
    scheme: tuple[int, int] | None
    """(algorithm, hash); None for TPM_ALG_NULL."""
    parameter: int
    """RSA: key bits. ECC: TPM_ECC_CURVE."""
    exponent: int
    """RSA: as sent, 0 means 65537. ECC: 0."""
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey

    @property
    def name(self) -> bytes:
        """The object's Name, computed here: nameAlg and SHA-256 of the public area, 34 bytes."""
        return struct.pack(">H", ALG_SHA256) + hashlib.sha256(self.raw).digest()

    @property
    def spki_der(self) -> bytes:
        """The key as SubjectPublicKeyInfo, DER."""
        return self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class _Reader:
    """A cursor that never reads past the end and knows what it is reading, for its errors."""

    def __init__(self, data: bytes, *, what: str, reason: str, max_bytes: int) -> None:
        self._what, self._reason = what, reason
        if len(data) > max_bytes:
            raise self.error(f"{len(data)} bytes; at most {max_bytes} are accepted")
        self._data, self._offset = data, 0

    def error(self, message: str) -> AttestationError:
        return AttestationError(self._reason, f"{self._what}: {message}")

    def take(self, size: int, field: str) -> bytes:
        end = self._offset + size
        if end > len(self._data):
            left = len(self._data) - self._offset
            raise self.error(f"ends inside {field}: {size} bytes wanted at offset {self._offset}, {left} left")
        chunk = self._data[self._offset : end]
        self._offset = end
        return chunk

    def integer(self, size: int, field: str) -> int:
        return int.from_bytes(self.take(size, field), "big")

    def sized(self, field: str, *, accepted: range) -> bytes:
        """A TPM2B: size (u16), then that many bytes."""
        size = self.integer(2, f"{field}.size")
        if size not in accepted:
            raise self.error(f"{field} has {size} bytes; {accepted[0]} to {accepted[-1]} are accepted")
        return self.take(size, field)

    def finish(self) -> None:
        if self._offset != len(self._data):
            raise self.error(f"{len(self._data) - self._offset} bytes follow its end")


def parse_attest_quote(data: bytes) -> QuoteAttest:
    """Reads a TPMS_ATTEST. Verify the signature over the same bytes first.

    Raises:
        AttestationError: ATTEST_MAGIC_WRONG, ATTEST_TYPE_WRONG (Certify, Time, ... are no quotes), ATTEST_PCR_SELECTION_INVALID
            (not exactly one bank), ATTEST_INVALID.
    """
    reading = read_attest_quote(data)
    if reading.violations:
        raise reading.violations[0]
    if reading.quote is None:
        raise AttestationError("ATTEST_INVALID", "TPMS_ATTEST: could not be read")
    return reading.quote


def parse_attest_certify(data: bytes) -> CertifyAttest:
    """Reads a TPMS_ATTEST of TPM2_Certify. Verify the signature over the same bytes first.

    Raises:
        AttestationError: ATTEST_MAGIC_WRONG, ATTEST_TYPE_WRONG (a quote certifies no key), ATTEST_INVALID.
    """
    reader = _Reader(data, what="TPMS_ATTEST", reason="ATTEST_INVALID", max_bytes=MAX_ATTEST_BYTES)
    magic = reader.integer(4, "magic")
    if magic != TPM_GENERATED:
        raise AttestationError("ATTEST_MAGIC_WRONG", f"TPMS_ATTEST: magic is {magic:#010x}; {TPM_GENERATED:#010x} is accepted")
    kind = reader.integer(2, "type")
    if kind != TPM_ST_ATTEST_CERTIFY:
        message = f"TPMS_ATTEST: type is {kind:#06x}; {TPM_ST_ATTEST_CERTIFY:#06x} (certify) is accepted"
        raise AttestationError("ATTEST_TYPE_WRONG", message)
    names = range(_NAME_BYTES, _NAME_BYTES + 1)
    qualified_signer = reader.sized("qualifiedSigner", accepted=names)
    extra_data = reader.sized("extraData", accepted=range(65))
    reader.take(16, "clock, resetCount and restartCount")
    safe = reader.integer(1, "safe")
    if safe > 1:
        raise reader.error(f"safe is {safe}; 0 and 1 are accepted")
    reader.take(8, "firmwareVersion")
    name = reader.sized("name", accepted=names)
    certified = CertifyAttest(
        qualified_signer=qualified_signer,
        extra_data=extra_data,
        name=name,
        qualified_name=reader.sized("qualifiedName", accepted=names),
    )
    reader.finish()
    return certified


def read_attest_quote(data: bytes) -> AttestReading:
    """Reads a TPMS_ATTEST as a quote whatever its magic and type say, for one who judges these by themselves. Never raises."""
    violations: list[AttestationError] = []
    quote = None
    try:
        reader = _Reader(data, what="TPMS_ATTEST", reason="ATTEST_INVALID", max_bytes=MAX_ATTEST_BYTES)
        quote = _quote(reader, violations)
        reader.finish()
    except AttestationError as error:
        violations.append(error)
    return AttestReading(quote=quote, violations=tuple(violations))


def _quote(reader: _Reader, violations: list[AttestationError]) -> QuoteAttest:
    """Every field in its order; what is wrong but can be read past is noted."""
    magic = reader.integer(4, "magic")
    if magic != TPM_GENERATED:
        message = f"TPMS_ATTEST: magic is {magic:#010x}; {TPM_GENERATED:#010x} is accepted"
        violations.append(AttestationError("ATTEST_MAGIC_WRONG", message))
    kind = reader.integer(2, "type")
    if kind != TPM_ST_ATTEST_QUOTE:
        message = f"TPMS_ATTEST: type is {kind:#06x}; {TPM_ST_ATTEST_QUOTE:#06x} (quote) is accepted"
        violations.append(AttestationError("ATTEST_TYPE_WRONG", message))
    qualified_signer = reader.sized("qualifiedSigner", accepted=range(_NAME_BYTES, _NAME_BYTES + 1))
    extra_data = reader.sized("extraData", accepted=range(65))
    clock = reader.integer(8, "clock")
    reset_count = reader.integer(4, "resetCount")
    restart_count = reader.integer(4, "restartCount")
    safe = reader.integer(1, "safe")
    if safe > 1:
        violations.append(reader.error(f"safe is {safe}; 0 and 1 are accepted"))
    firmware_version = reader.integer(8, "firmwareVersion")
    bank, indices = _pcr_selection(reader)
    return QuoteAttest(
        magic=magic,
        type=kind,
        qualified_signer=qualified_signer,
        extra_data=extra_data,
        clock=clock,
        reset_count=reset_count,
        restart_count=restart_count,
        safe=bool(safe),
        firmware_version=firmware_version,
        pcr_bank=bank,
        pcr_indices=indices,
        pcr_digest=reader.sized("pcrDigest", accepted=range(65)),
    )


def _pcr_selection(reader: _Reader) -> tuple[int, tuple[int, ...]]:
    """TPML_PCR_SELECTION with one member: two banks would leave open which one the digest is of."""
    count = reader.integer(4, "pcrSelect.count")
    if count != 1:
        raise AttestationError("ATTEST_PCR_SELECTION_INVALID", f"TPMS_ATTEST: {count} PCR selections; exactly one is accepted")
    bank = reader.integer(2, "pcrSelect.hash")
    size = reader.integer(1, "pcrSelect.sizeofSelect")
    if size != _PCR_SELECT_BYTES:
        raise AttestationError(
            "ATTEST_PCR_SELECTION_INVALID", f"TPMS_ATTEST: sizeofSelect is {size}; {_PCR_SELECT_BYTES} is accepted"
        )
    bitmap = int.from_bytes(reader.take(size, "pcrSelect.pcrSelect"), "little")
    return bank, tuple(index for index in range(8 * size) if bitmap >> index & 1)


def parse_public(data: bytes) -> TpmPublic:
    """Reads a TPMT_PUBLIC (no TPM2B size in front). The key's point or modulus is checked; its template is not: see check_*.

    Raises:
        AttestationError: TPM_PUBLIC_INVALID.
    """
    reader = _Reader(data, what="TPMT_PUBLIC", reason="TPM_PUBLIC_INVALID", max_bytes=MAX_PUBLIC_BYTES)
    kind = reader.integer(2, "type")
    if kind not in (ALG_RSA, ALG_ECC):
        raise reader.error(f"type is {kind:#06x}; {ALG_RSA:#06x} (RSA) and {ALG_ECC:#06x} (ECC) are accepted")
    name_alg = reader.integer(2, "nameAlg")
    if name_alg != ALG_SHA256:
        raise reader.error(f"nameAlg is {name_alg:#06x}; {ALG_SHA256:#06x} (SHA-256) is accepted")
    attributes = reader.integer(4, "objectAttributes")
    auth_policy = reader.sized("authPolicy", accepted=range(65))
    symmetric = _symmetric(reader)
    scheme = _scheme(reader, (ALG_RSASSA, ALG_RSAPSS) if kind == ALG_RSA else (ALG_ECDSA,))
    parameter, exponent, key = _rsa_key(reader) if kind == ALG_RSA else _ecc_key(reader)
    reader.finish()
    return TpmPublic(
        raw=bytes(data),
        kind=kind,
        name_alg=name_alg,
        attributes=attributes,
        auth_policy=auth_policy,
        symmetric=symmetric,
        scheme=scheme,
        parameter=parameter,
        exponent=exponent,
        key=key,
    )


def _symmetric(reader: _Reader) -> tuple[int, int, int] | None:
    algorithm = reader.integer(2, "symmetric.algorithm")
    if algorithm == ALG_NULL:
        return None
    if algorithm != ALG_AES:
        raise reader.error(f"symmetric.algorithm is {algorithm:#06x}; NULL and AES are accepted")
    bits, mode = reader.integer(2, "symmetric.keyBits"), reader.integer(2, "symmetric.mode")
    if bits not in (128, 192, 256) or mode != ALG_CFB:
        raise reader.error(f"symmetric is AES-{bits} in mode {mode:#06x}; AES-128, -192 or -256 in CFB is accepted")
    return algorithm, bits, mode


def _scheme(reader: _Reader, accepted: tuple[int, ...]) -> tuple[int, int] | None:
    algorithm = reader.integer(2, "scheme")
    if algorithm == ALG_NULL:
        return None
    if algorithm not in accepted:
        known = ", ".join(f"{value:#06x}" for value in accepted)
        raise reader.error(f"scheme is {algorithm:#06x}; NULL and {known} are accepted")
    return algorithm, reader.integer(2, "scheme.hashAlg")


def _rsa_key(reader: _Reader) -> tuple[int, int, rsa.RSAPublicKey]:
    bits = reader.integer(2, "keyBits")
    if bits not in (2048, 3072, 4096):
        raise reader.error(f"keyBits is {bits}; 2048, 3072 and 4096 are accepted")
    exponent = reader.integer(4, "exponent")
    if exponent not in (0, 65537):
        raise reader.error(f"exponent is {exponent}; 0 (the default) and 65537 are accepted")
    modulus = int.from_bytes(reader.sized("unique", accepted=range(bits // 8, bits // 8 + 1)), "big")
    if modulus.bit_length() != bits or not modulus & 1:
        raise reader.error(f"unique is not an odd modulus of {bits} bits")
    try:
        return bits, exponent, rsa.RSAPublicNumbers(65537, modulus).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise reader.error(f"unique is not an RSA modulus: {error}") from error


def _ecc_key(reader: _Reader) -> tuple[int, int, ec.EllipticCurvePublicKey]:
    curve_id = reader.integer(2, "curveID")
    curve = _CURVES.get(curve_id)
    if curve is None:
        raise reader.error(f"curveID is {curve_id:#06x}; {', '.join(f'{known:#06x}' for known in _CURVES)} are accepted")
    kdf = reader.integer(2, "kdf")
    if kdf != ALG_NULL:
        raise reader.error(f"kdf is {kdf:#06x}; NULL is accepted")
    size = range(1, (curve.key_size + 7) // 8 + 1)
    x = int.from_bytes(reader.sized("unique.x", accepted=size), "big")
    y = int.from_bytes(reader.sized("unique.y", accepted=size), "big")
    try:
        return curve_id, 0, ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise reader.error(f"unique is not a point of the curve: {error}") from error


def parse_ecdsa_signature(data: bytes) -> tuple[int, bytes]:
    """Reads a TPMT_SIGNATURE of ECDSA over P-256 or P-384: (hash TPM_ALG_ID, signature as DER).

    Raises:
        AttestationError: TPM_SIGNATURE_INVALID.
    """
    reader = _Reader(data, what="TPMT_SIGNATURE", reason="TPM_SIGNATURE_INVALID", max_bytes=MAX_SIGNATURE_BYTES)
    algorithm = reader.integer(2, "sigAlg")
    if algorithm != ALG_ECDSA:
        raise reader.error(f"sigAlg is {algorithm:#06x}; {ALG_ECDSA:#06x} (ECDSA) is accepted")
    hash_alg = reader.integer(2, "hash")
    r = int.from_bytes(reader.sized("signatureR", accepted=range(1, 49)), "big")
    s = int.from_bytes(reader.sized("signatureS", accepted=range(1, 49)), "big")
    reader.finish()
    if not r or not s:
        raise reader.error("a half of the signature is zero")
    return hash_alg, encode_dss_signature(r, s)


def qualified_name(name: bytes, hierarchy: int = TPM_RH_ENDORSEMENT) -> bytes:
    """The qualified name of a primary key with this Name: nameAlg and SHA-256(hierarchy handle || Name), 34 bytes."""
    return struct.pack(">H", ALG_SHA256) + hashlib.sha256(struct.pack(">I", hierarchy) + name).digest()
