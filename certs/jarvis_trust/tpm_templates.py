# SPDX-License-Identifier: Apache-2.0
"""The three key templates that are accepted, exactly: endorsement, attestation and TLS key.

The attribute check is what makes a quote mean anything: an unrestricted signing key in a genuine TPM signs forged quotes.
"""

from __future__ import annotations

from typing import Final

from jarvis_trust.errors import AttestationError
from jarvis_trust.tpm_structures import ALG_AES, ALG_CFB, ALG_ECC, ALG_ECDSA, ALG_RSA, ALG_SHA256, ECC_NIST_P256, TpmPublic

FIXED_TPM: Final = 1 << 1
FIXED_PARENT: Final = 1 << 4
SENSITIVE_DATA_ORIGIN: Final = 1 << 5
USER_WITH_AUTH: Final = 1 << 6
ADMIN_WITH_POLICY: Final = 1 << 7
NO_DA: Final = 1 << 10
RESTRICTED: Final = 1 << 16
DECRYPT: Final = 1 << 17
SIGN_ENCRYPT: Final = 1 << 18

_ATTRIBUTE_NAMES: Final = {
    1 << 2: "stClear",
    FIXED_TPM: "fixedTPM",
    FIXED_PARENT: "fixedParent",
    SENSITIVE_DATA_ORIGIN: "sensitiveDataOrigin",
    USER_WITH_AUTH: "userWithAuth",
    ADMIN_WITH_POLICY: "adminWithPolicy",
    NO_DA: "noDA",
    1 << 11: "encryptedDuplication",
    RESTRICTED: "restricted",
    DECRYPT: "decrypt",
    SIGN_ENCRYPT: "sign",
    1 << 19: "x509sign",
}

AK_ATTRIBUTES: Final = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | NO_DA | RESTRICTED | SIGN_ENCRYPT
TLS_KEY_ATTRIBUTES: Final = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | NO_DA | SIGN_ENCRYPT
EK_ATTRIBUTES: Final = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT
EK_POLICY_SHA256: Final = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
"""PolicyA of the TCG EK Credential Profile: PolicySecret(TPM_RH_ENDORSEMENT)."""


def check_ak_template(public: TpmPublic) -> None:
    """A restricted ECC P-256 signing key, ECDSA with SHA-256, made in this TPM and unable to leave it, exempt from lockout.

    Raises:
        AttestationError: AK_TEMPLATE_WRONG, naming every field that differs.
    """
    _check_signing_key("AK", public, AK_ATTRIBUTES)


def check_tls_key_template(public: TpmPublic) -> None:
    """An unrestricted ECC P-256 signing key, ECDSA with SHA-256, made in this TPM and unable to leave it, exempt from lockout.

    Raises:
        AttestationError: TLS_KEY_TEMPLATE_WRONG, naming every field that differs.
    """
    _check_signing_key("TLS key", public, TLS_KEY_ATTRIBUTES)


def check_ek_template(public: TpmPublic) -> None:
    """Template L-1 of the TCG EK Credential Profile: restricted RSA-2048 storage key under PolicyA.

    Raises:
        AttestationError: EK_TEMPLATE_WRONG, naming every field that differs.
    """
    _check(
        "EK",
        public,
        attributes=EK_ATTRIBUTES,
        fields=(
            ("type", public.kind, ALG_RSA),
            ("authPolicy", public.auth_policy.hex(), EK_POLICY_SHA256.hex()),
            ("symmetric", public.symmetric, (ALG_AES, 128, ALG_CFB)),
            ("scheme", public.scheme, None),
            ("keyBits", public.parameter, 2048),
            ("exponent", public.exponent, 0),
        ),
    )


def _check_signing_key(what: str, public: TpmPublic, attributes: int) -> None:
    _check(
        what,
        public,
        attributes=attributes,
        fields=(
            ("type", public.kind, ALG_ECC),
            ("authPolicy", public.auth_policy.hex(), ""),
            ("symmetric", public.symmetric, None),
            ("scheme", public.scheme, (ALG_ECDSA, ALG_SHA256)),
            ("curveID", public.parameter, ECC_NIST_P256),
        ),
    )


def _check(what: str, public: TpmPublic, *, attributes: int, fields: tuple[tuple[str, object, object], ...]) -> None:
    wrong = [f"{name} is {found!r}, {accepted!r} is accepted" for name, found, accepted in fields if found != accepted]
    wrong += _attribute_differences(public.attributes, attributes)
    if wrong:
        raise AttestationError(f"{what.upper().replace(' ', '_')}_TEMPLATE_WRONG", f"{what} public area: {'; '.join(wrong)}")


def _attribute_differences(found: int, accepted: int) -> list[str]:
    differences = []
    for bit in (1 << index for index in range(32)):
        if (found ^ accepted) & bit:
            name = _ATTRIBUTE_NAMES.get(bit, f"attribute {bit:#x}")
            is_set, wanted = ("set", "clear") if found & bit else ("clear", "set")
            differences.append(f"{name} is {is_set}, {wanted} is accepted")
    return differences
