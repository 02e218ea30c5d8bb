# SPDX-License-Identifier: Apache-2.0
"""What the agent asks of a TPM, asked of a real one and judged by the trust package."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from jarvis_agent.errors import TpmError
from jarvis_agent.event_log import EventLog
from jarvis_agent.tpm import TpmPriority, TpmWorker
from jarvis_agent.tpm_device import TpmDevice
from jarvis_trust.credential import make_credential
from jarvis_trust.ek_certificate import verify_ek_certificate
from jarvis_trust.errors import AttestationError
from jarvis_trust.eventlog import encode_event, load_attempt, parse_log, replay
from jarvis_trust.tpm_structures import parse_attest_quote, parse_ecdsa_signature, parse_public, qualified_name
from jarvis_trust.tpm_templates import check_ak_template, check_ek_template

from testbed.swtpm import Swtpm, TpmVendor

T = TypeVar("T")


def ask(worker: TpmWorker, operation: Callable[[TpmDevice], T]) -> T:
    return worker.submit(TpmPriority.QUOTE, operation).result(30)


def extend(worker: TpmWorker, pcr: int, digest: bytes) -> None:
    ask(worker, lambda device: device.extend_pcr(pcr, digest))


def test_the_ek_leads_to_its_vendor_through_the_chain_in_nv_and_to_no_other(
    worker: TpmWorker, vendor: TpmVendor, tmp_path: Path
) -> None:
    identity = ask(worker, TpmDevice.endorsement_identity)
    ek, soon = parse_public(identity.public), datetime.now(UTC) + timedelta(minutes=5)
    check_ek_template(ek)
    assert identity.chain == (vendor.issuer_der,)
    assert verify_ek_certificate(identity.certificate, identity.chain, [vendor.root_pem], ek, soon).not_after > soon
    stranger = TpmVendor(tmp_path / "stranger")
    with pytest.raises(AttestationError):
        verify_ek_certificate(identity.certificate, identity.chain, [stranger.root_pem], ek, soon)
    with pytest.raises(AttestationError):
        verify_ek_certificate(identity.certificate, (), [vendor.root_pem], ek, soon)


def test_the_attestation_key_has_the_exact_template_and_is_the_same_after_every_start(worker: TpmWorker, tpm: Swtpm) -> None:
    first = ask(worker, TpmDevice.attestation_public)
    check_ak_template(parse_public(first))
    tpm.reboot()
    with TpmDevice(tpm.tcti) as device:
        assert device.attestation_public() == first


def test_a_quote_over_all_pcrs_covers_their_values_and_is_signed_by_the_ak(worker: TpmWorker) -> None:
    extend(worker, 14, b"\x01" * 32)
    extra_data = secrets.token_bytes(32)
    quote = ask(worker, lambda device: device.quote(extra_data=extra_data, pcrs=range(24)))
    ak = parse_public(ask(worker, TpmDevice.attestation_public))
    parsed = parse_attest_quote(quote.attest)
    _, der = parse_ecdsa_signature(quote.signature)
    assert isinstance(ak.key, ec.EllipticCurvePublicKey)
    ak.key.verify(der, quote.attest, ec.ECDSA(hashes.SHA256()))
    assert (parsed.extra_data, parsed.qualified_signer) == (extra_data, qualified_name(ak.name))
    assert parsed.pcr_indices == tuple(range(24))
    assert parsed.pcr_digest == hashlib.sha256(b"".join(quote.pcrs[index] for index in range(24))).digest()
    assert quote.pcrs[14] == hashlib.sha256(bytes(32) + b"\x01" * 32).digest()
    assert quote.reset_count == parsed.reset_count == ask(worker, TpmDevice.clock).reset_count


def test_only_the_tpm_with_both_keys_learns_the_secret(worker: TpmWorker, vendor: TpmVendor, tmp_path: Path) -> None:
    ek = parse_public(ask(worker, TpmDevice.endorsement_identity).public)
    ak = parse_public(ask(worker, TpmDevice.attestation_public))
    secret = secrets.token_bytes(32)
    blob, encrypted = make_credential(ek, ak.name, secret)
    assert ask(worker, lambda device: device.activate_credential(blob, encrypted)) == secret
    for wrong_blob, wrong_encrypted in (
        make_credential(ek, b"\x00\x0b" + secrets.token_bytes(32), secret),  # another AK
        (blob[:-1] + bytes([blob[-1] ^ 1]), encrypted),
        (blob + b"\0", encrypted),
    ):
        with pytest.raises(TpmError) as refused:
            ask(worker, lambda device, b=wrong_blob, e=wrong_encrypted: device.activate_credential(b, e))  # type: ignore[misc]
        assert refused.value.reason == "TPM_COMMAND_FAILED"
    with Swtpm(vendor.copy_of("second", tmp_path / "second")) as other, TpmDevice(other.tcti) as device:
        other_worker = TpmWorker.for_tcti(other.tcti)
        with pytest.raises(TpmError):
            ask(other_worker, lambda elsewhere: elsewhere.activate_credential(blob, encrypted))
        other_worker.close()
        assert device.attestation_public() != ak.raw


def test_hundreds_of_operations_leave_no_object_and_no_session_behind(worker: TpmWorker, tpm: Swtpm) -> None:
    """swtpm has three slots and no resource manager."""
    ek = parse_public(ask(worker, TpmDevice.endorsement_identity).public)
    ak = parse_public(ask(worker, TpmDevice.attestation_public))
    for _ in range(70):
        secret = secrets.token_bytes(32)
        blob, encrypted = make_credential(ek, ak.name, secret)
        assert ask(worker, lambda device, b=blob, e=encrypted: device.activate_credential(b, e)) == secret  # type: ignore[misc]
        with pytest.raises(TpmError):
            ask(worker, lambda device, b=blob: device.activate_credential(b, b"\0\0"))  # type: ignore[misc]
    for _ in range(200):
        ask(worker, lambda device: device.quote(extra_data=b"x", pcrs=[14]))
    worker.close()
    with TpmDevice(tpm.tcti) as device:
        assert len(device.quote(extra_data=b"x", pcrs=[14]).signature) == 72


def test_twenty_power_cuts_in_a_row_lock_no_key_out(worker: TpmWorker, tpm: Swtpm) -> None:
    """Without noda each one counts as a failed authorisation once a key was used, and after a few the TPM refuses every key."""
    public = ask(worker, lambda device: device.tls_public(0))
    for cuts in range(20):
        tpm.kill()
        with pytest.raises(TpmError) as lost:
            ask(worker, lambda device: device.quote(extra_data=b"x", pcrs=[14]))
        assert lost.value.reason == "TPM_UNAVAILABLE"
        tpm.start()
        assert len(ask(worker, lambda device: device.quote(extra_data=b"x", pcrs=[14])).signature) == 72, cuts
        assert ask(worker, lambda device: device.sign_tls(0, bytes(32))), cuts
    assert ask(worker, lambda device: device.tls_public(0)) == public


def test_two_connections_do_not_take_each_other_s_key_away_for_good(worker: TpmWorker, tpm: Swtpm) -> None:
    ask(worker, lambda device: device.quote(extra_data=b"1", pcrs=[14]))
    with TpmDevice(tpm.tcti) as intruder:  # flushes what it finds loaded
        intruder.quote(extra_data=b"2", pcrs=[14])
        ask(worker, lambda device: device.quote(extra_data=b"3", pcrs=[14]))


def test_a_real_pcr_follows_its_event_log_over_a_lost_extend(worker: TpmWorker, tmp_path: Path) -> None:
    log = EventLog(tmp_path / "state", 14)
    ask(worker, log.open)

    def event(name: str) -> dict[str, str]:
        return load_attempt(object_name=name, sha256=bytes(32), time=datetime.now(UTC), boot_id=bytes(16), session_id=bytes(16))

    ask(worker, lambda device: log.record(device, event("a.so")))
    with log.path.open("ab") as file:  # what a crash between fsync and extend leaves behind
        file.write(encode_event(1, 14, event("b.so")))
    again = EventLog(tmp_path / "state", 14)
    ask(worker, again.open)
    value = ask(worker, lambda device: device.read_pcrs([14]))[14]
    assert replay(parse_log(again.read())) == value
    assert len(parse_log(again.read())) == 2
