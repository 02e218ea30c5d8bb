# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl ca show|prepare|activate|retire|trust`: the fleet CA, and the change to a new one."""

from typing import Annotated

import typer
from jarvis.capture.v1 import certificate_pb2 as pb
from jarvis.capture.v1.certificate_pb2_grpc import CertificateServiceStub

from jarvisctl.client import Fleet, run
from jarvisctl.errors import ExitCode, usage_error
from jarvisctl.format.objects import enum_text, to_object
from jarvisctl.format.table import Column, Table
from jarvisctl.format.units import age, local_time
from jarvisctl.trust_files import update_trust

app = typer.Typer(no_args_is_help=True, add_completion=False)

ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept in the audit chain.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Even though some are cut off by it: the refusal says whom.")]


@app.command()
def show(context: typer.Context) -> None:
    """Shows the CAs and how far a change is."""
    run(context, _show)


@app.command()
def prepare(context: typer.Context, reason: ReasonOption) -> None:
    """Stage 1: makes a new CA that is trusted beside the one that issues. Needs role admin."""
    _rotate(context, pb.ROTATION_STAGE_PREPARED, reason, force=False)


@app.command()
def activate(context: typer.Context, reason: ReasonOption, force: ForceOption = False) -> None:
    """Stage 2: the new CA issues. Refused while an agent does not trust it yet. Needs role admin."""
    _rotate(context, pb.ROTATION_STAGE_ACTIVATED, reason, force=force)


@app.command()
def retire(context: typer.Context, reason: ReasonOption, force: ForceOption = False) -> None:
    """Stage 3: the old CA is not trusted any more; after stage 1 the new one is given up.

    Refused while certificates of it are in use. Needs role admin.
    """
    _rotate(context, pb.ROTATION_STAGE_NONE, reason, force=force)


@app.command()
def trust(context: typer.Context) -> None:
    """Takes over into the `ca` file which CAs the fleet trusts now. `certs renew` does it too."""
    run(context, _trust)


def _rotate(context: typer.Context, stage: pb.RotationStage.ValueType, reason: str, *, force: bool) -> None:
    if not reason.strip():
        raise usage_error(f"--reason is {reason!r}: some words are needed, they are kept in the audit chain")

    async def action(fleet: Fleet) -> ExitCode:
        request = pb.RotateAuthorityRequest(stage=stage, force=force, reason=reason)
        answer = await CertificateServiceStub(fleet.channel).RotateAuthority(request, timeout=fleet.timeout_s)
        _learn(fleet, answer.authorities)
        _print(fleet, answer.authorities)
        return ExitCode.OK

    run(context, action)


async def _show(fleet: Fleet) -> ExitCode:
    _print(fleet, await _authorities(fleet))
    return ExitCode.OK


async def _trust(fleet: Fleet) -> ExitCode:
    answer = await _authorities(fleet)
    if not _learn(fleet, answer):
        fleet.output.remark(f"{fleet.config.ca}: nothing has changed")
    return ExitCode.OK


async def _authorities(fleet: Fleet) -> pb.GetAuthoritiesResponse:
    request = pb.GetAuthoritiesRequest()
    return await CertificateServiceStub(fleet.channel).GetAuthorities(request, timeout=fleet.timeout_s)


def _learn(fleet: Fleet, answer: pb.GetAuthoritiesResponse) -> list[str]:
    retired = b"".join(authority.certificate_pem for authority in answer.authorities if authority.role == "retired")
    changed = update_trust(fleet.config, answer.ca_pem, retired)
    for sentence in changed:
        fleet.output.remark(sentence)
    return changed


def _print(fleet: Fleet, answer: pb.GetAuthoritiesResponse) -> None:
    if fleet.output.json:
        fleet.output.line(to_object(answer))
        return
    table = Table(
        columns=[Column(title="CA"), Column(title="ROLE"), Column(title="CERTIFICATES"), Column(title="ENDS"), Column(title="IN")]
    )
    for authority in answer.authorities:
        end = authority.not_after
        table.add(authority.id, authority.role, str(authority.certificates), local_time(end), age(end))
    fleet.output.table(table)
    fleet.output.remark(f"stage: {enum_text(pb.RotationStage.DESCRIPTOR, answer.stage).lower()}")
