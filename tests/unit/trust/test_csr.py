# SPDX-License-Identifier: Apache-2.0
"""Certificate requests that are signed outside, read by the same strict reader as every other."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jarvis_trust.ca import public_key_from_csr
from jarvis_trust.csr import csr_from_signature, csr_info
from jarvis_trust.errors import IdentityError

KEY = ec.generate_private_key(ec.SECP256R1())
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_a_request_signed_outside_is_what_cryptography_makes_itself() -> None:
    ours = csr_from_signature(csr_info(SPKI), KEY.sign(csr_info(SPKI), ec.ECDSA(hashes.SHA256())))
    theirs = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(KEY, hashes.SHA256())
    read = x509.load_der_x509_csr(ours)
    assert read.tbs_certrequest_bytes == theirs.tbs_certrequest_bytes
    assert read.signature_algorithm_oid == theirs.signature_algorithm_oid
    assert public_key_from_csr(ours) == KEY.public_key()


def test_the_signature_of_another_key_makes_no_request() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(IdentityError) as refused:
        public_key_from_csr(csr_from_signature(csr_info(SPKI), other.sign(csr_info(SPKI), ec.ECDSA(hashes.SHA256()))))
    assert refused.value.reason == "CSR_INVALID"


def test_a_larger_key_gets_its_longer_lengths() -> None:
    large = ec.generate_private_key(ec.SECP521R1())
    spki = large.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    request = csr_from_signature(csr_info(spki), large.sign(csr_info(spki), ec.ECDSA(hashes.SHA256())))
    assert x509.load_der_x509_csr(request).is_signature_valid
