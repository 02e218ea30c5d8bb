# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl policy show|apply`: the policy in force, and another one in its place. `jarvisctl attest --simulate` tries one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from jarvis.capture.v1 import policy_pb2
from jarvis.capture.v1.policy_pb2_grpc import PolicyServiceStub
from jarvis_trust.errors import PolicyError
from jarvis_trust.policy_document import PolicyDocument, read_document

from jarvisctl.client import Fleet, run
from jarvisctl.errors import CtlError, ExitCode
from jarvisctl.format.objects import to_object
from jarvisctl.format.units import local_time, printable

if TYPE_CHECKING:
    # Exists in the type stubs only.
    from jarvis.capture.v1.policy_pb2_grpc import PolicyServiceAsyncStub

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.command()
def show(context: typer.Context) -> None:
    """Shows the policy in force: who put it there, when, and its text. Needs role viewer."""
    run(context, _show)


@app.command()
def apply(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A policy.toml; the files that it names go with it.")],
) -> None:
    """Puts a policy in force whose version is higher; every agent is attested again soon. Needs role admin."""
    document = read_policy("FILE", file)
    run(context, lambda fleet: _apply(fleet, document))


def read_policy(option: str, path: Path) -> PolicyDocument:
    """A policy.toml with its files.

    Raises:
        CtlError: a file cannot be read, or the text is not TOML. What it says is judged by the controller.
    """
    try:
        return read_document(path)
    except PolicyError as error:
        raise CtlError(f"{option} {error.message}", ExitCode.USAGE, reason=error.reason) from error


def policy_stub(fleet: Fleet) -> "PolicyServiceAsyncStub":
    """PolicyService of the fleet's controller."""
    return PolicyServiceStub(fleet.channel)


async def _show(fleet: Fleet) -> ExitCode:
    policy = (await policy_stub(fleet).GetPolicy(policy_pb2.GetPolicyRequest(), timeout=fleet.timeout_s)).policy
    if fleet.output.json:
        files = {file.name: len(file.data) for file in policy.document.files}
        fleet.output.line({**_summary(policy), "text": policy.document.text, "files": files})
        return ExitCode.OK
    # As comments, so that what is printed is the policy itself.
    fleet.output.text(f"# in force since {local_time(policy.apply_time)} by {printable(policy.principal)}\n")
    fleet.output.text(f"# SHA-256 with {len(policy.document.files)} files: {policy.sha256.hex()}\n")
    fleet.output.text("".join(printable(line) + "\n" for line in policy.document.text.splitlines()))
    return ExitCode.OK


async def _apply(fleet: Fleet, document: PolicyDocument) -> ExitCode:
    request = policy_pb2.ApplyPolicyRequest(document=document.to_message())
    policy = (await policy_stub(fleet).ApplyPolicy(request, timeout=fleet.timeout_s)).policy
    if fleet.output.json:
        fleet.output.line(_summary(policy))
    else:
        fleet.output.text(f"version {policy.version} of policy {printable(policy.name)} is in force\n")
    return ExitCode.OK


def _summary(policy: policy_pb2.AppliedPolicy) -> dict[str, object]:
    return {name: value for name, value in to_object(policy).items() if name != "document"}
