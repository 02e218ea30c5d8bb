# SPDX-License-Identifier: Apache-2.0
"""Where the controller's TunnelService is, as the enrolment said: kept in the state directory over restarts.

It is also the memory of which carrier the controller was told: where it and the configuration differ, the agent enrols anew.
Nothing is trusted because of it: the TLS name and the fleet's CA say who answers there.
"""

from __future__ import annotations

import logging
from pathlib import Path

from jarvis_trust.errors import EnrollmentError, TrustError
from jarvis_trust.joinfile import check_address
from jarvis_trust.keyfiles import read_private, replace_private

_LOG = logging.getLogger(__name__)
FILE = "tunnel-address"


class TunnelAddress:
    """The address on disk. Used from one thread."""

    def __init__(self, state_directory: Path, *, is_wanted: bool) -> None:
        """Reads what is kept.

        Args:
            state_directory: the agent's.
            is_wanted: whether the configuration's carrier is the tunnel.
        """
        self._path = state_directory / FILE
        self.is_wanted = is_wanted
        self.current = self._read()

    @property
    def is_told(self) -> bool:
        """Whether the controller knows the carrier that the configuration wants."""
        return self.is_wanted == bool(self.current)

    def told(self, address: str) -> None:
        """The controller was told our carrier and gave its address; for carrier direct that is forgotten.

        Raises:
            EnrollmentError: ENROLLMENT_RESULT_INVALID, it gave none.
            OSError: it cannot be written.
        """
        if not self.is_wanted:
            self._path.unlink(missing_ok=True)
            self.current = ""
            return
        try:
            check_address(address)
        except TrustError as error:
            message = f"tunnel_address: {error.message}; this controller serves no tunnel, or names none"
            raise EnrollmentError("ENROLLMENT_RESULT_INVALID", message) from error
        if address != self.current:
            replace_private(self._path, address.encode("ascii") + b"\n")
            self.current = address

    def _read(self) -> str:
        if not self._path.exists():
            return ""
        address = read_private(self._path).decode("ascii", "replace").strip()
        try:
            check_address(address)
        except TrustError as error:
            _LOG.warning("%s: %s: the controller is asked for it again", self._path, error.message)
            return ""
        return address
