# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl certs list|revoke|request|issue|renew`: the register of certificates, and operators' own."""

import json
import re
from collections.abc import AsyncIterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from jarvis.capture.v1 import certificate_pb2 as pb
from jarvis.capture.v1.certificate_pb2_grpc import CertificateServiceStub
from jarvis_trust.ca import generate_key, make_csr
from jarvis_trust.errors import TrustError
from jarvis_trust.identities import Identity, Role

from jarvisctl.client import Fleet, run
from jarvisctl.config import read_public
from jarvisctl.errors import ExitCode, usage_error
from jarvisctl.format.objects import enum_text, to_object
from jarvisctl.format.output import Output
from jarvisctl.format.table import Column, Table
from jarvisctl.format.units import age, local_time, printable
from jarvisctl.options import parse_duration, to_duration
from jarvisctl.settings import settings_of
from jarvisctl.trust_files import replace, update_trust, write_new

app = typer.Typer(no_args_is_help=True, add_completion=False)

_PAGE_SIZE = 500
_STATE = pb.CertificateState.DESCRIPTOR
_SERIAL = re.compile(r"[0-9a-fA-F]{40}")


class OperatorRole(StrEnum):
    """What an operator may be."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


class CertificateRole(StrEnum):
    """Whose certificates there are."""

    AGENT = "agent"
    CONTROLLER = "controller"
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"
    AUDIT = "audit"


class State(StrEnum):
    """What a certificate may be; `superseded` is accepted until its end, but a newer one was issued."""

    VALID = "valid"
    EXPIRING = "expiring"
    EXPIRED = "expired"
    REVOKED = "revoked"
    SUPERSEDED = "superseded"
    UNTRUSTED = "untrusted"


@app.command("list")
def list_certificates(
    context: typer.Context,
    role: Annotated[CertificateRole | None, typer.Option("--role", help="Only of this role.")] = None,
    state: Annotated[State | None, typer.Option("--state", help="Only in this state.")] = None,
) -> None:
    """Lists every certificate that the fleet CA issued, newest first."""
    wanted = pb.CertificateState.Value(f"CERTIFICATE_STATE_{state.name}") if state else pb.CERTIFICATE_STATE_UNSPECIFIED
    run(context, lambda fleet: _list(fleet, role or "", wanted))


@app.command()
def revoke(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="SERIAL|SPIFFE-ID", help="One certificate, or all of an id until now.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the audit chain.")],
) -> None:
    """Takes certificates out of use at once, calls under way included. Needs role admin.

    An agent comes back only with a new join file; an operator with a certificate that is issued later, for a new key.
    """
    if not reason.strip():
        raise usage_error(f"--reason is {reason!r}: some words are needed, they are kept in the audit chain")
    if _SERIAL.fullmatch(target):
        request = pb.RevokeCertificateRequest(serial=target.lower(), reason=reason)
    elif target.startswith("spiffe://"):
        request = pb.RevokeCertificateRequest(subject=target, reason=reason)
    else:
        raise usage_error(f"SERIAL|SPIFFE-ID is {target!r}: 40 hexadecimal digits or spiffe://... are accepted (`certs list`)")
    run(context, lambda fleet: _revoke(fleet, request))


@app.command()
def request(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The operator's name.")],
    role: Annotated[OperatorRole, typer.Option("--role", help="The role that is asked for; the administrator decides.")],
    directory: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where NAME.key and NAME.csr go.")] = Path(),
) -> None:
    """Makes a key, which stays here, and a request for an administrator to issue a certificate on. Needs no controller."""
    try:
        Identity(fleet="lab", role=Role(role), name=name)
    except TrustError as error:
        raise usage_error(f"NAME: {error.message}") from error
    key = generate_key()
    csr = x509.load_der_x509_csr(make_csr(key)).public_bytes(Encoding.PEM)
    write_new(directory / f"{name}.key", key, "--out")
    write_new(directory / f"{name}.csr", csr, "--out")
    output = Output(json=settings_of(context).json)
    command = f"jarvisctl certs issue {name}.csr --name {name} --role {role}"
    if output.json:
        output.line({"key": str(directory / f"{name}.key"), "csr": str(directory / f"{name}.csr"), "next": command})
    else:
        output.remark(f"{directory / f'{name}.csr'}: an administrator runs `{command}`; {name}.key is yours alone")


@app.command()
def issue(  # noqa: PLR0917 - typer gives them by name
    context: typer.Context,
    csr: Annotated[Path, typer.Argument(metavar="CSR", help="What `jarvisctl certs request` wrote.")],
    name: Annotated[str, typer.Option("--name", help="The operator's name.")],
    role: Annotated[OperatorRole, typer.Option("--role", help="viewer, operator or admin.")],
    lifetime: Annotated[str, typer.Option("--lifetime", metavar="TIME", help="How long it is valid: 1h to 365d.")] = "30d",
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where NAME.crt, fleet-ca.crt and jarvisctl.toml go.")
    ] = Path(),
) -> None:
    """Issues an operator's certificate. Needs role admin."""
    seconds = parse_duration("--lifetime", lifetime, 3600, 365 * 86_400)
    wanted = pb.IssueOperatorCertificateRequest(csr=_csr(csr), name=name, role=role, lifetime=to_duration(seconds))
    run(context, lambda fleet: _issue(fleet, wanted, out))


@app.command()
def renew(
    context: typer.Context,
    lifetime: Annotated[
        str | None, typer.Option("--lifetime", metavar="TIME", help="At most that of the certificate in hand, the default.")
    ] = None,
) -> None:
    """Replaces this operator's certificate by a new one under the same name and role, as long as it is valid.

    Takes over into the `ca` file which CAs the fleet trusts now.
    """
    seconds = None if lifetime is None else parse_duration("--lifetime", lifetime, 3600, 365 * 86_400)
    run(context, lambda fleet: _renew(fleet, seconds))


async def _each(fleet: Fleet, role: str, state: pb.CertificateState.ValueType) -> AsyncIterator[pb.Certificate]:
    token = ""
    while True:
        wanted = pb.ListCertificatesRequest(page_size=_PAGE_SIZE, page_token=token, role=role, state=state)
        answer = await CertificateServiceStub(fleet.channel).ListCertificates(wanted, timeout=fleet.timeout_s)
        for certificate in answer.certificates:
            yield certificate
        token = answer.next_page_token
        if not token:
            return


async def _list(fleet: Fleet, role: str, state: pb.CertificateState.ValueType) -> ExitCode:
    found = [certificate async for certificate in _each(fleet, role, state)]
    _print(fleet, found)
    return ExitCode.OK


async def _revoke(fleet: Fleet, wanted: pb.RevokeCertificateRequest) -> ExitCode:
    answer = await CertificateServiceStub(fleet.channel).RevokeCertificate(wanted, timeout=fleet.timeout_s)
    _print(fleet, list(answer.certificates))
    return ExitCode.OK


async def _issue(fleet: Fleet, wanted: pb.IssueOperatorCertificateRequest, out: Path) -> ExitCode:
    certificate_path = out / f"{wanted.name}.crt"
    if certificate_path.exists():
        raise usage_error(f"--out: {certificate_path} exists: a name that is free is needed")
    answer = await CertificateServiceStub(fleet.channel).IssueOperatorCertificate(wanted, timeout=fleet.timeout_s)
    write_new(certificate_path, answer.certificate_pem, "--out")
    fleet_ca, settings = out / "fleet-ca.crt", out / "jarvisctl.toml"
    if not fleet_ca.exists():
        write_new(fleet_ca, answer.ca_pem, "--out")
    if not settings.exists():
        values = {
            "endpoint": fleet.config.endpoint,
            "fleet": fleet.config.fleet,
            "ca": fleet_ca.name,
            "certificate": certificate_path.name,
            "key": f"{wanted.name}.key",
        }
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        write_new(settings, f"# jarvisctl; paths are relative to this file.\n{text}".encode(), "--out")
    _print(fleet, [answer.certificate])
    fleet.output.remark(f"{certificate_path}, {fleet_ca}, {settings}: none is a secret; they go beside {wanted.name}.key")
    return ExitCode.OK


async def _renew(fleet: Fleet, seconds: float | None) -> ExitCode:
    wanted = pb.RenewOperatorCertificateRequest(csr=make_csr(fleet.credentials.key_pem))
    if seconds is not None:
        wanted.lifetime.CopyFrom(to_duration(seconds))
    answer = await CertificateServiceStub(fleet.channel).RenewOperatorCertificate(wanted, timeout=fleet.timeout_s)
    # The CAs first: a certificate is never there without its CA.
    for sentence in update_trust(fleet.config, answer.ca_pem):
        fleet.output.remark(sentence)
    replace(fleet.config.certificate, answer.certificate_pem)
    _print(fleet, [answer.certificate])
    return ExitCode.OK


def _csr(path: Path) -> bytes:
    data = read_public(path, "the request")
    try:
        return x509.load_pem_x509_csr(data).public_bytes(Encoding.DER)
    except ValueError as error:
        raise usage_error(f"CSR {path} is not a PEM certificate request: {error}") from error


def _print(fleet: Fleet, certificates: list[pb.Certificate]) -> None:
    if fleet.output.json:
        for certificate in certificates:
            fleet.output.line(to_object(certificate))
        return
    table = Table(
        columns=[
            Column(title="SERIAL"),
            Column(title="SUBJECT", fold=True),
            Column(title="ROLE"),
            Column(title="ISSUER", cut=12),
            Column(title="STATE"),
            Column(title="ENDS"),
            Column(title="IN"),
            Column(title="REASON", fold=True),
        ]
    )
    for certificate in certificates:
        end = certificate.not_after
        table.add(
            certificate.serial,
            printable(certificate.subject),
            certificate.role,
            certificate.issuer,
            enum_text(_STATE, certificate.state).lower(),
            local_time(end),
            age(end),
            printable(certificate.revoke_reason) or "-",
        )
    fleet.output.table(table)
