# SPDX-License-Identifier: Apache-2.0
"""What a controller reads before it starts: the keys, certificates, release root and policy that its configuration names."""

from __future__ import annotations

from dataclasses import dataclass

from jarvis_trust.audit_checkpoint import CheckpointSigner
from jarvis_trust.commands import CommandSigner
from jarvis_trust.keyfiles import load_private_key

from jarvis_controller.audit_checkpoints import audit_signer
from jarvis_controller.authorities import CA_DIRECTORY, Authorities
from jarvis_controller.config import ConfigError, ControllerConfig
from jarvis_controller.config_files import as_config_error
from jarvis_controller.issuer import Issuer
from jarvis_controller.policy_keeper import PolicyKeeper
from jarvis_controller.release_policy import ReleasePolicy
from jarvis_controller.store_approvals import StoreApprovals
from jarvis_controller.tls import ControllerCredentials, controller_identity

COMMAND_KEY_FILE = "command.key"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFiles:
    """The parts that live on disk."""

    authorities: Authorities
    issuer: Issuer
    signer: CommandSigner
    approvals: StoreApprovals
    audit_key: CheckpointSigner
    releases: ReleasePolicy
    policies: PolicyKeeper
    credentials: ControllerCredentials

    @classmethod
    def open(cls, config: ControllerConfig) -> StateFiles:
        """Reads them; what is due is issued, and noted for the register.

        Raises:
            ConfigError: a file cannot be used, or the CA is another fleet's.
        """
        directory = config.state_directory
        with as_config_error():
            authorities = Authorities(directory)
            if authorities.fleet != config.fleet:
                raise ConfigError(f"fleet = {config.fleet!r}: the CA in {directory / CA_DIRECTORY} is of {authorities.fleet!r}")
            issuer = Issuer(authorities)
            issuer.collect_spooled(directory)
            signer = CommandSigner(load_private_key(directory / COMMAND_KEY_FILE))
            approvals = StoreApprovals.open(directory, signer, config.store_pcrs)
            audit_key = audit_signer(directory, issuer, config.name)
            releases = ReleasePolicy(
                root_path=config.release_root, revocations_path=config.revocations, state_directory=directory
            )
            policies = PolicyKeeper(config.policy, directory, releases)
            credentials = ControllerCredentials(directory, issuer, controller_identity(config.fleet, config.name))
        issuer.note(credentials.current.certificate_pem, "init")
        issuer.note(audit_key.certificate, "init")
        return cls(
            authorities=authorities,
            issuer=issuer,
            signer=signer,
            approvals=approvals,
            audit_key=audit_key,
            releases=releases,
            policies=policies,
            credentials=credentials,
        )
