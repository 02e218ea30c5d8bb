# SPDX-License-Identifier: Apache-2.0
"""What the files are that the configuration names: certificates, the collector's keys."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from jarvis_trust.errors import TrustError
from jarvis_trust.keyfiles import load_private_key

from jarvis_controller.audit_export import AuditExporter
from jarvis_controller.config import ConfigError, ControllerConfig
from jarvis_controller.store import Store
from jarvis_controller.syslog_sender import SyslogTarget
from jarvis_controller.tls import controller_identity


def read_certificates(field: str, path: Path) -> bytes:
    """Certificates in PEM.

    Raises:
        ConfigError: the file holds something else.
        OSError: it cannot be read.
    """
    pem = path.read_bytes()
    try:
        x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigError(f"{field}: {path} holds no certificates in PEM: {error}") from error
    return pem


def audit_exporter(config: ControllerConfig, store: Store) -> AuditExporter | None:
    """The sender to the syslog collector; None when the configuration names none.

    Raises:
        ConfigError: a file for it cannot be used.
    """
    if not config.audit_syslog:
        return None
    host, port = config.syslog_address()
    with as_config_error():
        if config.audit_syslog_ca is not None:
            read_certificates("audit_syslog_ca", config.audit_syslog_ca)
        if config.audit_syslog_certificate is not None:
            load_private_key(config.audit_syslog_certificate)
    target = SyslogTarget(
        host=host,
        port=port,
        ca=config.audit_syslog_ca,
        certificate=config.audit_syslog_certificate,
        sd_id=config.audit_syslog_sd_id,
        hostname=controller_identity(config.fleet, config.name).dns_names[0],
    )
    return AuditExporter(store, target)


@contextlib.contextmanager
def as_config_error() -> Iterator[None]:
    """Whatever a file is refused for inside, as a ConfigError."""
    try:
        yield
    except TrustError as error:
        raise ConfigError(f"{error.reason}: {error.message}") from error
    except OSError as error:
        raise ConfigError(f"{Path(str(error.filename))}: {error.strerror}") from error
