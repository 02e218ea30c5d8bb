# SPDX-License-Identifier: Apache-2.0
"""The fleet's CAs on disk, and the stages in which one takes the place of another.

    ca/            issues                        every stage
    ca-next/       trusted, does not issue yet   PREPARED
    ca-previous/   trusted, issues the controller's serving certificate only   ACTIVATED
    ca-retired/ID.crt   not trusted; its old signatures of audit checkpoints can be verified still

    NONE --prepare--> PREPARED --activate--> ACTIVATED --finish--> NONE        PREPARED --finish--> NONE (given up)

Every step is a rename, so that a crash leaves one stage or the next; what a crash left half done is finished at the next start.
Used on the event loop's thread, or before there is one.
"""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from jarvis_trust.ca import FleetCA, load_certificate
from jarvis_trust.ca_bundle import CaBundle, ca_id
from jarvis_trust.keyfiles import replace_private

CA_DIRECTORY = "ca"
_NEXT = "ca-next"
_PREVIOUS = "ca-previous"
_RETIRED = "ca-retired"


class Stage(StrEnum):
    """How far a rotation is."""

    NONE = "none"
    PREPARED = "prepared"
    ACTIVATED = "activated"


class StageError(Exception):
    """The step does not follow from the stage; the message says which does."""


class Authorities:
    """All CAs of one controller."""

    def __init__(self, directory: Path) -> None:
        """Reads the CAs of a state directory.

        Raises:
            IdentityError: a file is exposed to others or is not what it should be; the CAs are of different fleets.
            OSError: one cannot be read, or what a crash left cannot be finished.
        """
        self._directory = directory
        if not (directory / CA_DIRECTORY).exists() and (directory / _PREVIOUS).exists() and (directory / _NEXT).exists():
            (directory / _NEXT).rename(directory / CA_DIRECTORY)
        self._load()

    def _load(self) -> None:
        self.issuing = FleetCA.load(self._directory / CA_DIRECTORY)
        """The one that issues."""
        self.next = self._other(_NEXT)
        self.previous = self._other(_PREVIOUS)
        retired = sorted((self._directory / _RETIRED).glob("*.crt"))
        self.retired = tuple(load_certificate(path.read_bytes()) for path in retired)
        """Certificates of CAs that are not trusted any more, for signatures of their time."""
        trusted = [self.issuing, *(other for other in (self.next, self.previous) if other is not None)]
        self.bundle = CaBundle.parse(b"".join(ca.certificate_pem for ca in trusted), fleet=self.issuing.fleet)
        """Every CA that is trusted now, the issuing one first."""

    def _other(self, name: str) -> FleetCA | None:
        directory = self._directory / name
        return FleetCA.load(directory) if directory.exists() else None

    @property
    def fleet(self) -> str:
        """The fleet's name."""
        return self.issuing.fleet

    @property
    def stage(self) -> Stage:
        """As on disk."""
        if self.next is not None:
            return Stage.PREPARED
        return Stage.NONE if self.previous is None else Stage.ACTIVATED

    @property
    def serving(self) -> FleetCA:
        """Whose certificate the ports show: the one that peers have trusted the longest."""
        return self.previous or self.issuing

    @property
    def known(self) -> tuple[x509.Certificate, ...]:
        """Trusted and retired ones: what a signature of the past may come from."""
        return (*self.bundle.certificates, *self.retired)

    @property
    def known_pem(self) -> bytes:
        """The same in PEM."""
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self.known)

    def prepare(self) -> None:
        """Makes the next CA, which is trusted from now on.

        Raises:
            StageError: a rotation is under way.
        """
        self._expect(Stage.NONE)
        made = self._directory / f".{_NEXT}"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o700)
        FleetCA.create(self.fleet).save(made)
        made.rename(self._directory / _NEXT)
        self._load()

    def activate(self) -> None:
        """The next CA issues from now on; the one before is trusted still.

        Raises:
            StageError: there is no next CA.
        """
        self._expect(Stage.PREPARED)
        (self._directory / CA_DIRECTORY).rename(self._directory / _PREVIOUS)
        (self._directory / _NEXT).rename(self._directory / CA_DIRECTORY)
        self._load()

    def finish(self) -> None:
        """Ends the trust in the CA that does not issue, and removes its key: the previous one's, or that of a next one given up.

        Raises:
            StageError: no rotation is under way.
        """
        leaving = self.next or self.previous
        if leaving is None:
            raise StageError("no rotation is under way: PREPARED is accepted")
        name = _PREVIOUS if self.next is None else _NEXT
        if self.next is None:
            (self._directory / _RETIRED).mkdir(mode=0o700, exist_ok=True)
            certificate = load_certificate(leaving.certificate_pem)
            replace_private(self._directory / _RETIRED / f"{ca_id(certificate)}.crt", leaving.certificate_pem)
        gone = self._directory / f".{name}"
        shutil.rmtree(gone, ignore_errors=True)
        (self._directory / name).rename(gone)
        shutil.rmtree(gone)
        self._load()

    def _expect(self, stage: Stage) -> None:
        if self.stage is not stage:
            accepted = {Stage.NONE: "PREPARED", Stage.PREPARED: "ACTIVATED or NONE", Stage.ACTIVATED: "NONE"}[self.stage]
            raise StageError(f"the rotation's stage is {self.stage}: {accepted} is accepted now")
