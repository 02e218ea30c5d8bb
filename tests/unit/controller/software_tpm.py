# SPDX-License-Identifier: Apache-2.0
"""A TPM made of software keys: what an agent's TPM says, built byte by byte, with every field open to a test.

Unlike swtpm it can lie: wrong magic, other PCRs, a clock that runs backwards. The real thing is in tests/unit/trust and e2e.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier
from jarvis.capture.v1 import trust_pb2
from jarvis_trust.boot_log import parse_boot_log
from jarvis_trust.eventlog import encode_event, event_digest, load_attempt, trial
from jarvis_trust.identities import agent_id_from_ek
from jarvis_trust.ima_log import split_ima_log
from jarvis_trust.quote import quote_binding
from jarvis_trust.software_identity import SoftwareSigner
from jarvis_trust.tpm_structures import TpmPublic, parse_public, qualified_name
from jarvis_trust.tpm_templates import AK_ATTRIBUTES, EK_ATTRIBUTES, EK_POLICY_SHA256

from testbed.ima import IMA_PCR, Measured, ima_log, pcr_of

LIBRARY = "libjarvis_capture.so"
MAGIC = bytes.fromhex("ff544347")
QUOTE = bytes.fromhex("8018")
CERTIFY = bytes.fromhex("8017")
_EK_USAGE = ObjectIdentifier("2.23.133.8.1")


def sized(data: bytes) -> bytes:
    """A TPM2B."""
    return struct.pack(">H", len(data)) + data


class Vendor:
    """A TPM manufacturer's CA."""

    def __init__(self, name: str = "Test vendor") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        public = self._key.public_key()
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(_usage(key_cert_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def root_pem(self) -> bytes:
        """What a controller is configured with."""
        return self.certificate.public_bytes(Encoding.PEM)

    def certify(self, key: rsa.RSAPublicKey) -> bytes:
        """An EK certificate, DER."""
        now = datetime.now(UTC)
        attributes = {1: "id:00001014", 2: "software", 3: "id:20261122"}  # manufacturer, model, version
        tpm = x509.Name(
            [x509.NameAttribute(ObjectIdentifier(f"2.23.133.2.{number}"), value) for number, value in attributes.items()]
        )
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=3000))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(key_encipherment=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([_EK_USAGE]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DirectoryName(tpm)]), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(Encoding.DER)
        )


def _usage(**on: bool) -> x509.KeyUsage:
    off = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**{**off, **on})


def ecc_public(key: ec.EllipticCurvePublicKey, attributes: int) -> bytes:
    """TPMT_PUBLIC of an ECDSA P-256 key with these TPMA_OBJECT bits: an AK's, or a TLS key's."""
    numbers = key.public_numbers()
    head = bytes.fromhex("0023000b") + struct.pack(">I", attributes) + sized(b"") + bytes.fromhex("00100018000b00030010")
    return head + sized(numbers.x.to_bytes(32, "big")) + sized(numbers.y.to_bytes(32, "big"))


@dataclass(slots=True, kw_only=True)
class SoftwareTpm:
    """EK and AK, one PCR with its event log, a clock."""

    ak_key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    ek_key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    pcr: int = 14
    clock: int = 1000
    reset_count: int = 2
    restart_count: int = 0
    firmware_version: int = 0x2019102300163636
    boot_id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    session_id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    pcr_value: bytes = bytes(32)
    events: list[bytes] = field(default_factory=list)
    boot_log: bytes = b""
    boot_values: dict[int, bytes] = field(default_factory=dict)
    ima_log: bytes = b""
    ima_value: bytes = bytes(32)
    """PCR 10."""
    ak_attributes: int = AK_ATTRIBUTES
    """TPMA_OBJECT of the AK."""

    # -- keys --

    @property
    def ak_public(self) -> bytes:
        """TPMT_PUBLIC."""
        return ecc_public(self.ak_key.public_key(), self.ak_attributes)

    @property
    def ek_public(self) -> bytes:
        """TPMT_PUBLIC, template L-1."""
        modulus = self.ek_key.public_key().public_numbers().n.to_bytes(256, "big")
        head = bytes.fromhex("0001000b") + struct.pack(">I", EK_ATTRIBUTES) + sized(EK_POLICY_SHA256)
        return head + bytes.fromhex("0006008000430010080000000000") + sized(modulus)

    @property
    def ak(self) -> TpmPublic:
        """The AK as the controller reads it."""
        return parse_public(self.ak_public)

    @property
    def agent_id(self) -> str:
        """What the controller derives from the EK."""
        return agent_id_from_ek(parse_public(self.ek_public).spki_der)

    def certify(self, name: bytes, qualifying_data: bytes, /, **changes: Any) -> bytes:
        """TPMS_ATTEST of TPM2_Certify over a primary of the endorsement hierarchy; any field can be given."""
        self.clock += 7
        fields: dict[str, bytes] = {
            "magic": MAGIC,
            "type": CERTIFY,
            "signer": sized(qualified_name(self.ak.name)),
            "extra": sized(qualifying_data),
            "clock": struct.pack(">QIIB", self.clock, self.reset_count, self.restart_count, 1),
            "firmware": struct.pack(">Q", self.firmware_version),
            "name": sized(name),
            "qualified_name": sized(qualified_name(name)),
        }
        return b"".join({**fields, **changes}.values())

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """TPM2_ActivateCredential for this EK and AK; ValueError when the credential is for others."""
        oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=b"IDENTITY\0")
        seed = self.ek_key.decrypt(encrypted_secret[2:], oaep)
        blob = credential_blob[2:]
        integrity, identity = blob[2:34], blob[34:]
        name = self.ak.name
        if not hmac.compare_digest(integrity, hmac.digest(_kdfa(seed, b"INTEGRITY", b"", 256), identity + name, hashlib.sha256)):
            raise ValueError("the credential is not for this AK")
        cipher = Cipher(AES(_kdfa(seed, b"STORAGE", name, 128)), CFB(bytes(16))).decryptor()
        return (cipher.update(identity) + cipher.finalize())[2:]

    # -- measuring --

    def measure(
        self,
        sha256: bytes,
        *,
        name: str = LIBRARY,
        boot_id: bytes | None = None,
        session_id: bytes | None = None,
        is_trial: bool = False,
    ) -> None:
        """Logs a load attempt, or a trial, and extends the PCR."""
        make = trial if is_trial else load_attempt
        content = make(
            object_name=name,
            sha256=sha256,
            time=datetime.now(UTC),
            boot_id=boot_id or self.boot_id,
            session_id=session_id or self.session_id,
        )
        self.events.append(encode_event(len(self.events), self.pcr, content))
        self.pcr_value = hashlib.sha256(self.pcr_value + event_digest(content)).digest()

    def boot(self, log: bytes) -> None:
        """What firmware does before the host comes up: this log, and the PCRs 0 to 13 that it gives."""
        self.boot_log = log
        self.boot_values = parse_boot_log(log).replay(range(14))

    def measure_files(self, *measured: Measured, shown: bool = True) -> None:
        """What the kernel's IMA does when files are opened; not shown: in the PCR, and not in the list."""
        log = ima_log(measured)
        self.ima_value = pcr_of(log, start=self.ima_value)
        if shown:
            self.ima_log += log

    def value(self, pcr: int) -> bytes:
        """What a PCR holds."""
        if pcr == IMA_PCR:
            return self.ima_value
        return self.pcr_value if pcr == self.pcr else self.boot_values.get(pcr, bytes(32))

    def restart_process(self) -> None:
        """The agent starts again on the same boot: a new session, the same log."""
        self.session_id = secrets.token_bytes(16)

    def reset(self) -> None:
        """A reboot: PCR and log start over, the reset counter rises, the clock may go back a little."""
        self.reset_count += 1
        self.restart_count = 0
        self.clock -= 1
        self.boot_id, self.session_id = secrets.token_bytes(16), secrets.token_bytes(16)
        self.pcr_value, self.events = bytes(32), []

    # -- quoting --

    def attest(self, extra_data: bytes, pcrs: Sequence[int] = (), **changes: Any) -> bytes:
        """TPMS_ATTEST over these PCRs, the firmware's when none are named; any field can be given."""
        self.clock += 7
        selected = sorted(pcrs or (self.pcr,))
        bitmap = sum(1 << pcr for pcr in selected).to_bytes(3, "little")
        fields: dict[str, bytes] = {
            "magic": MAGIC,
            "type": QUOTE,
            "signer": sized(qualified_name(self.ak.name)),
            "extra": sized(extra_data),
            "clock": struct.pack(">QIIB", self.clock, self.reset_count, self.restart_count, 1),
            "firmware": struct.pack(">Q", self.firmware_version),
            "count": struct.pack(">I", 1),
            "selection": bytes.fromhex("000b03") + bitmap,
            "digest": sized(hashlib.sha256(b"".join(self.value(pcr) for pcr in selected)).digest()),
        }
        return b"".join({**fields, **changes}.values())

    def sign(self, attest: bytes, key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
        """TPMT_SIGNATURE."""
        r, s = decode_dss_signature((key or self.ak_key).sign(attest, ec.ECDSA(hashes.SHA256())))
        return bytes.fromhex("0018000b") + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))

    def evidence(
        self,
        *,
        nonce: bytes,
        agent_spki: bytes,
        controller_spki: bytes,
        manifest: bytes,
        manifest_signature: bytes,
        agent_id: str = "",
        attest: dict[str, bytes] | None = None,
        pcrs: Sequence[int] = (),
        known_boot_log_sha256: bytes = b"",
        known_ima: tuple[bytes, int] = (b"", 0),
    ) -> trust_pb2.Evidence:
        """An honest agent's evidence, but for the attest fields that are given."""
        log = b"".join(self.events)
        extra = quote_binding(
            nonce=nonce,
            agent_spki_sha256=agent_spki,
            controller_spki_sha256=controller_spki,
            agent_id=agent_id or self.agent_id,
            boot_id=self.boot_id,
            session_id=self.session_id,
            manifest=manifest,
            event_log=log,
        )
        selected = sorted(pcrs or (self.pcr,))
        quoted = self.attest(extra, selected, **(attest or {}))
        boot_log = b"" if selected == [self.pcr] else self.boot_log
        known = known_ima[1] if known_ima[0] == self.boot_id else 0
        list_part = self.ima_log[split_ima_log(self.ima_log, known)[1] :] if IMA_PCR in selected else b""
        boot_digest = hashlib.sha256(boot_log).digest() if boot_log else b""
        return trust_pb2.Evidence(
            attest=quoted,
            signature=self.sign(quoted),
            pcrs=[trust_pb2.PcrValue(index=pcr, digest=self.value(pcr)) for pcr in selected],
            event_log=log,
            manifest=manifest,
            manifest_signature=manifest_signature,
            boot_id=self.boot_id,
            session_id=self.session_id,
            boot_log=b"" if boot_digest == known_boot_log_sha256 else boot_log,
            boot_log_sha256=boot_digest,
            ima_log=list_part,
            ima_first_entry=known if IMA_PCR in selected else 0,
        )


def software_evidence(
    signer: SoftwareSigner,
    measured: SoftwareTpm,
    *,
    nonce: bytes,
    agent_spki: bytes,
    controller_spki: bytes,
    manifest: bytes,
    manifest_signature: bytes,
    agent_id: str = "",
) -> trust_pb2.Evidence:
    """An honest agent's evidence without a TPM; its event log is what `measured` logged."""
    log = b"".join(measured.events)
    signature = signer.sign_evidence(
        nonce=nonce,
        agent_spki_sha256=agent_spki,
        controller_spki_sha256=controller_spki,
        agent_id=agent_id or signer.agent_id,
        boot_id=measured.boot_id,
        session_id=measured.session_id,
        manifest=manifest,
        event_log=log,
    )
    return trust_pb2.Evidence(
        event_log=log,
        manifest=manifest,
        manifest_signature=manifest_signature,
        boot_id=measured.boot_id,
        session_id=measured.session_id,
        software_signature=signature,
    )


def _kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    return hmac.digest(key, struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", bits), hashlib.sha256)[: bits // 8]
