# SPDX-License-Identifier: Apache-2.0
"""Keys that are slow to make, and one software TPM with its EK, AK and a real quote, each made once per test run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from jarvis_trust.release_signatures import generate_release_key

from tests.unit.trust.support import AK_TEMPLATE_ATTRIBUTES, KeyPair, RealTpm, signing_key_template


@pytest.fixture(scope="session")
def release_key() -> KeyPair:
    private, public = generate_release_key()
    return KeyPair(private=private, public=public)


@pytest.fixture(scope="session")
def other_release_key() -> KeyPair:
    private, public = generate_release_key()
    return KeyPair(private=private, public=public)


@pytest.fixture(scope="session")
def third_release_key() -> KeyPair:
    private, public = generate_release_key()
    return KeyPair(private=private, public=public)


@pytest.fixture(scope="session")
def fourth_release_key() -> KeyPair:
    private, public = generate_release_key()
    return KeyPair(private=private, public=public)


@pytest.fixture(scope="session")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTpm]:
    """One TPM for all tests: they only add transient objects and flush them."""
    pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed: the agent extra brings it")
    if shutil.which("swtpm") is None or shutil.which("swtpm_setup") is None:
        pytest.skip("swtpm and swtpm-tools are not installed")
    from tpm2_pytss import ESAPI  # noqa: PLC0415
    from tpm2_pytss.constants import ESYS_TR  # noqa: PLC0415
    from tpm2_pytss.types import TPMT_PUBLIC  # noqa: PLC0415
    from tpm2_pytss.utils import NVReadEK, create_ek_template  # noqa: PLC0415

    from testbed.swtpm import Swtpm, TpmVendor  # noqa: PLC0415

    directory = tmp_path_factory.mktemp("tpm")
    vendor, other = TpmVendor(directory / "vendor"), TpmVendor(directory / "other-vendor")
    state = vendor.manufacture(directory / "state")
    other.manufacture(directory / "other-state")
    with Swtpm(state) as machine, ESAPI(machine.tcti) as esapi:
        certificate, template = create_ek_template("EK-RSA2048", NVReadEK(esapi))
        ek_handle, ek_public, *_ = esapi.create_primary(None, template, ESYS_TR.ENDORSEMENT)
        ak_handle, ak_public, *_ = esapi.create_primary(None, signing_key_template(AK_TEMPLATE_ATTRIBUTES), ESYS_TR.ENDORSEMENT)
        attest, signature = esapi.quote(ak_handle, "sha256:14", bytes(range(32)))
        _, _, values = esapi.pcr_read("sha256:14")
        ek_area: TPMT_PUBLIC = ek_public.publicArea
        ak_area: TPMT_PUBLIC = ak_public.publicArea
        yield RealTpm(
            esapi=esapi,
            ek_certificate=bytes(certificate),
            issuer=vendor.issuer_der,
            root_pem=vendor.root_pem,
            other_vendor_root_pem=other.root_pem,
            ek_handle=ek_handle,
            ek_public=ek_area.marshal(),
            ak_handle=ak_handle,
            ak_public=ak_area.marshal(),
            attest=bytes(attest),
            signature=signature.marshal(),
            pcr14=bytes(values[0]),
        )
