# SPDX-License-Identifier: Apache-2.0
"""The files of an operator's trust, written: certificate, key, request, and the CAs.

What is trusted is replaced only by what the controller said over a connection that the CAs of before authenticated. A CA that is
trusted no more moves to `<ca>.retired`, so that old signatures of the audit chain can be checked still.
"""

from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from jarvis_trust.ca_bundle import CaBundle
from jarvis_trust.errors import TrustError
from jarvis_trust.keyfiles import replace_private, write_private

from jarvisctl.config import CtlConfig, retired_cas, retired_path
from jarvisctl.errors import CtlError, ExitCode, usage_error


def write_new(path: Path, data: bytes, option: str) -> None:
    """A new file, 0600.

    Raises:
        CtlError: there is one, or it cannot be written.
    """
    try:
        write_private(path, data)
    except FileExistsError:
        raise usage_error(f"{option}: {path} exists: a name that is free is needed") from None
    except OSError as error:
        raise usage_error(f"{option}: {path} cannot be written: {error.strerror}") from error


def replace(path: Path, data: bytes) -> None:
    """Takes a file's place in one step.

    Raises:
        CtlError: it cannot be written.
    """
    try:
        replace_private(path, data)
    except OSError as error:
        raise CtlError(f"{path} cannot be written: {error.strerror}", ExitCode.FAILED) from error


def update_trust(config: CtlConfig, ca_pem: bytes, retired_pem: bytes = b"") -> list[str]:
    """Takes over what the fleet trusts now; what changed, as sentences.

    Args:
        config: names the files.
        ca_pem: every CA that is trusted, as the controller said.
        retired_pem: CAs of before, likewise.

    Raises:
        CtlError: they are no CAs of this fleet, or a file cannot be written.
    """
    try:
        trusted = CaBundle.parse(ca_pem, fleet=config.fleet)
        before = CaBundle.parse(config.ca.read_bytes(), fleet=config.fleet)
        old = CaBundle.parse(retired_cas(config) + before.pem + retired_pem, fleet=config.fleet)
    except TrustError as error:
        raise CtlError(f"the controller's answer cannot be used: {error.message}", ExitCode.FAILED) from error
    left = [certificate for certificate in old.certificates if certificate not in trusted.certificates]
    changed = []
    if left:
        data = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in left)
        if data != retired_cas(config):
            replace(retired_path(config), data)
            changed.append(f"{retired_path(config)}: {len(left)} of before")
    if trusted.sha256 != before.sha256:
        replace(config.ca, trusted.pem)
        changed.append(f"{config.ca}: {len(trusted.certificates)} trusted now")
    return changed
