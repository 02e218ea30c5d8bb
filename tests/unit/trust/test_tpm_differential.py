# SPDX-License-Identifier: Apache-2.0
"""The pure-Python readers against libtss2 (tpm2-pytss) on what a real TPM made, whole and mutated.

    accepted here -> libtss2 accepts it too, takes every byte of it, writes the same bytes again and reads the same values
    refused by libtss2 -> refused here

The other way round they differ on purpose: libtss2 3.2.1 takes a wrong magic and trailing bytes, and knows algorithms that this
project does not use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jarvis_trust.errors import AttestationError
from jarvis_trust.tpm_structures import (
    parse_attest_quote,
    parse_ecdsa_signature,
    parse_public,
    read_attest_quote,
)

from tests.unit.trust.support import RealTpm

EXAMPLES = settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def attest_of_libtss2(data: bytes) -> tuple[Any, ...]:
    """Its values, once it has taken all of them."""
    from tpm2_pytss.types import TPMS_ATTEST  # noqa: PLC0415

    theirs, consumed = TPMS_ATTEST.unmarshal(data)
    assert consumed == len(data)
    assert theirs.marshal() == data
    clock, quote = theirs.clockInfo, theirs.attested.quote
    selections = quote.pcrSelect
    (selection,) = [selections[index] for index in range(int(selections.count))]
    bitmap = bytes(selection.pcrSelect)[: int(selection.sizeofSelect)]
    indices = tuple(index for index in range(8 * len(bitmap)) if bitmap[index // 8] >> index % 8 & 1)
    return (
        int(theirs.magic),
        int(theirs.type),
        bytes(theirs.qualifiedSigner),
        bytes(theirs.extraData),
        (int(clock.clock), int(clock.resetCount), int(clock.restartCount), bool(clock.safe)),
        int(theirs.firmwareVersion),
        int(selection.hash),
        indices,
        bytes(quote.pcrDigest),
    )


def attest_of_ours(data: bytes) -> tuple[Any, ...]:
    ours = parse_attest_quote(data)
    return (
        ours.magic,
        ours.type,
        ours.qualified_signer,
        ours.extra_data,
        (ours.clock, ours.reset_count, ours.restart_count, ours.safe),
        ours.firmware_version,
        ours.pcr_bank,
        ours.pcr_indices,
        ours.pcr_digest,
    )


def public_of_libtss2(data: bytes) -> tuple[Any, ...]:
    from tpm2_pytss.types import TPM2B_PUBLIC, TPMT_PUBLIC  # noqa: PLC0415

    area, consumed = TPMT_PUBLIC.unmarshal(data)
    assert consumed == len(data)
    assert area.marshal() == data
    return (
        int(area.type),
        int(area.nameAlg),
        int(area.objectAttributes),
        bytes(area.authPolicy),
        bytes(TPM2B_PUBLIC(area).get_name()),
        area.to_der(),
    )


def public_of_ours(data: bytes) -> tuple[Any, ...]:
    ours = parse_public(data)
    return ours.kind, ours.name_alg, ours.attributes, ours.auth_policy, ours.name, ours.spki_der


def signature_of_libtss2(data: bytes) -> tuple[Any, ...]:
    from tpm2_pytss.types import TPMT_SIGNATURE  # noqa: PLC0415

    theirs, consumed = TPMT_SIGNATURE.unmarshal(data)
    assert consumed == len(data)
    assert theirs.marshal() == data
    ecdsa = theirs.signature.ecdsa
    r, s = bytes(ecdsa.signatureR), bytes(ecdsa.signatureS)
    return int(ecdsa.hash), (int.from_bytes(r, "big"), int.from_bytes(s, "big"))


def signature_of_ours(data: bytes) -> tuple[Any, ...]:
    hash_algorithm, der = parse_ecdsa_signature(data)
    return hash_algorithm, decode_dss_signature(der)


READERS: dict[str, tuple[Callable[[bytes], Any], Callable[[bytes], Any]]] = {
    "attest": (attest_of_ours, attest_of_libtss2),
    "signature": (signature_of_ours, signature_of_libtss2),
    "ak_public": (public_of_ours, public_of_libtss2),
    "ek_public": (public_of_ours, public_of_libtss2),
}


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A change of a few bytes: bits turned, bytes replaced, cut out, put in, a tail cut off or repeated."""
    kinds = draw(
        st.lists(st.sampled_from(["flip", "set", "cut", "insert", "truncate", "repeat", "extreme"]), min_size=1, max_size=3)
    )
    places = [draw(st.floats(0, 1, exclude_max=True)) for _ in kinds]
    values = [draw(st.integers(0, 255)) for _ in kinds]

    def mutate(data: bytes) -> bytes:
        changed = bytearray(data)
        for kind, place, value in zip(kinds, places, values, strict=True):
            position = int(place * len(changed))
            if kind == "flip" and changed:
                changed[position] ^= 1 << value % 8
            elif kind == "set" and changed:
                changed[position] = value
            elif kind == "extreme":
                changed[position : position + 2] = bytes([255 * (value & 1), 255 * (value >> 1 & 1)])
            elif kind == "cut":
                del changed[position : position + 1 + value % 4]
            elif kind == "insert":
                changed[position:position] = bytes([value])
            elif kind == "truncate":
                del changed[position:]
            elif kind == "repeat":
                changed += changed[position : position + value]
        return bytes(changed)

    return mutate


@pytest.mark.parametrize("name", list(READERS))
def test_what_a_real_tpm_made_reads_the_same(tpm: RealTpm, name: str) -> None:
    ours, theirs = READERS[name]
    assert ours(getattr(tpm, name)) == theirs(getattr(tpm, name))


@pytest.mark.parametrize("name", list(READERS))
@given(mutate=mutations())
@EXAMPLES
def test_what_is_accepted_here_libtss2_reads_to_the_same_values(
    tpm: RealTpm, name: str, mutate: Callable[[bytes], bytes]
) -> None:
    from tpm2_pytss import TSS2_Exception  # noqa: PLC0415

    ours, theirs = READERS[name]
    data = mutate(getattr(tpm, name))
    try:
        mine = ours(data)
    except AttestationError:
        return
    try:
        assert mine == theirs(data)
    except TSS2_Exception as error:
        raise AssertionError(f"libtss2 refuses what was accepted here: {data.hex()}") from error


@given(mutate=mutations())
@EXAMPLES
def test_a_quote_is_accepted_exactly_when_its_reading_finds_nothing_wrong(tpm: RealTpm, mutate: Callable[[bytes], bytes]) -> None:
    data = mutate(tpm.attest)
    reading = read_attest_quote(data)
    try:
        quote = parse_attest_quote(data)
    except AttestationError as refused:
        assert reading.violations[0].reason == refused.reason  # noqa: PT017 - which reason is the point
    else:
        assert (reading.quote, reading.violations) == (quote, ())
