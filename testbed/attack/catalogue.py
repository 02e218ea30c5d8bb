# SPDX-License-Identifier: Apache-2.0
"""Every attack, in the order in which they run."""

from __future__ import annotations

from testbed.attack import (
    boot,
    certificates,
    commands,
    enrollment,
    evidence,
    exports,
    ima,
    patched,
    policy,
    releases,
    roles,
    signatures,
    stored,
    tls_keys,
    transport,
    tunnel,
    without_tpm,
)
from testbed.attack.model import Attack

ATTACKS: tuple[Attack, ...] = (
    *evidence.ATTACKS,
    *enrollment.ATTACKS,
    *tls_keys.ATTACKS,
    *roles.ATTACKS,
    *commands.ATTACKS,
    *patched.ATTACKS,
    *releases.ATTACKS,
    *transport.ATTACKS,
    *tunnel.ATTACKS,
    *boot.ATTACKS,
    *policy.ATTACKS,
    *exports.ATTACKS,
    *certificates.ATTACKS,
    *ima.ATTACKS,
    *without_tpm.ATTACKS,
    *signatures.ATTACKS,
    *stored.ATTACKS,
)
