# SPDX-License-Identifier: Apache-2.0
"""Rules of the house that no other tool checks; the direction of imports is import-linter's (`make lint`)."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto"


def tracked(*patterns: str) -> list[Path]:
    """Files that git tracks, or all of them where this is not a checkout."""
    done = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("this is not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def test_generated_code_is_what_the_protos_give(tmp_path: Path) -> None:
    for source in PROTO.rglob("*.proto"):
        copy = tmp_path / source.relative_to(PROTO)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    script = tmp_path / "generate"
    script.write_bytes((PROTO / "generate").read_bytes())
    subprocess.run(["sh", str(script), sys.executable], check=True, capture_output=True)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*_pb2*")}
    committed = {path.relative_to(PROTO): path.read_bytes() for path in PROTO.rglob("*_pb2*") if "__pycache__" not in path.parts}
    assert made.keys() == committed.keys()
    assert [str(name) for name in made if made[name] != committed[name]] == [], "run `make proto`"


def test_no_program_can_load_unsigned_firmware() -> None:
    sources = [path for folder in ("agent", "controller") for path in (ROOT / folder).rglob("*.py")]
    assert sources
    passing = [str(path) for path in sources if re.search(r"allow_unsigned\s*=", path.read_text())]
    assert passing == []


def test_no_private_key_is_in_the_repository() -> None:
    marker = b"-----BEGIN " + b"(?:[A-Z]+ )*PRIVATE KEY-----\n[A-Za-z0-9+/=]{20}"
    assert [str(path) for path in tracked() if re.search(marker, path.read_bytes())] == []


def test_every_source_file_names_its_licence_first() -> None:
    sources = [path for path in tracked("*.py", "*.c", "*.h", "*.proto", "*.toml") if "_pb2" not in path.name]
    lacking = [
        str(path) for path in sources if "SPDX-License-Identifier: Apache-2.0" not in "".join(path.read_text().splitlines()[:2])
    ]
    assert lacking == []


def test_the_controller_and_the_cli_start_without_capture_stack_and_tpm_stack() -> None:
    block = "import sys; sys.modules.update(dict.fromkeys(('jarvis_native', 'jarvis_agent', 'tpm2_pytss', 'cffi')));"
    for module in ("jarvis_controller.server", "jarvis_controller.cli", "jarvisctl.cli", "jarvisctl.client"):
        subprocess.run([sys.executable, "-c", f"{block} import {module}"], check=True, cwd=ROOT)


def test_the_library_and_the_distribution_have_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    cmake = re.search(r"project\(jarvis_capture VERSION ([0-9.]+)", (ROOT / "native" / "CMakeLists.txt").read_text())
    assert cmake is not None
    assert cmake[1] == project


def test_every_reason_that_the_programs_give_is_explained() -> None:
    reason = re.compile(r'"([A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+)"')
    no_reasons = re.compile(r"(JARVIS|JARVISCTL|GRPC|XDG|TSS2|TPMS|TPMT)_|PACKET_DTYPE$")
    used: set[str] = set()
    for folder in ("certs", "agent", "controller", "native/python"):
        for path in (ROOT / folder).rglob("*.py"):
            used |= set(reason.findall(path.read_text()))
    explained = set(re.findall(r"[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+", (ROOT / "docs" / "reasons.md").read_text()))
    assert sorted(name for name in used - explained if not no_reasons.match(name)) == []
