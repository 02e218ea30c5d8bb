# SPDX-License-Identifier: Apache-2.0
"""The C library as a C programmer gets it: `cmake --install`, pkg-config, its headers, and a program that meters a file."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support import DATA, ROOT

VERSION = "0.1.0"

PROGRAM = r"""
#include <inttypes.h>
#include <jarvis_capture.h>
#include <stdio.h>

static int fail(const struct capture_error_info *error) {
    fprintf(stderr, "%s: %s\n", error->field, error->message);
    return 1;
}

int main(int count, char **arguments) {
    const char *files[] = {arguments[count - 1]};
    struct capture_config config = {.struct_size = sizeof(config), .files = files, .file_count = 1};
    struct capture_flow_config flow_config = {.struct_size = sizeof(flow_config)};
    struct capture_error_info error = {0};
    struct capture_stats stats;
    capture_t *capture;
    if (capture_init(&config, &capture, &error) < 0)
        return fail(&error);
    if (capture_flow_enable(capture, &flow_config, &error) < 0 || capture_start(capture, &error) < 0)
        return fail(&error);
    while (capture_poll(capture, 100) > 0)
        continue;
    capture_stop(capture, true);
    capture_get_stats(capture, &stats);
    printf("{\"version\": \"%s\", \"packets\": %" PRIu64 ", \"octets\": %" PRIu64 ", \"flows\": %" PRIu64 "}\n",
           capture_version(), stats.metered, stats.metered_octets, stats.flows_total);
    capture_destroy(capture);
    return 0;
}
"""


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | (env or {}))
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library was installed."""
    build, installed = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("prefix")
    run(
        "cmake", "-S", ROOT / "native", "-B", build, "-G", "Ninja", "-Wno-dev", "-DJARVIS_TESTS=OFF",
        f"-DCMAKE_INSTALL_PREFIX={installed}", "-DCMAKE_INSTALL_LIBDIR=lib",
    )  # fmt: skip
    run("cmake", "--build", build, "-j2")
    run("cmake", "--install", build)
    return installed


@pytest.fixture(scope="module")
def program(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A C program built against the installed library with nothing but what pkg-config says."""
    directory = tmp_path_factory.mktemp("program")
    source, binary = directory / "meter.c", directory / "meter"
    source.write_text(PROGRAM)
    flags = run("pkg-config", "--cflags", "--libs", "jarvis_capture", env=pkg_config(prefix)).split()
    run("cc", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", source, "-o", binary, *flags)
    return binary


def pkg_config(prefix: Path) -> dict[str, str]:
    return {"PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}


def modules_of(prefix: Path) -> list[Path]:
    """Beside the library: those whose own libraries were there when it was built."""
    return sorted((prefix / "lib").glob("libjarvis_capture_*.so"))


def library_path(prefix: Path) -> dict[str, str]:
    return {"LD_LIBRARY_PATH": str(prefix / "lib")}


def test_header_versioned_library_and_pkg_config_file_are_installed(prefix: Path) -> None:
    modules = {str(path.relative_to(prefix)) for path in modules_of(prefix)}
    installed = {str(path.relative_to(prefix)) for path in prefix.rglob("*") if not path.is_dir()} - modules
    library = "lib/libjarvis_capture.so"
    assert installed == {
        "include/jarvis_capture.h", "include/jarvis_capture_export.h",
        library, f"{library}.0", f"{library}.{VERSION}", "lib/pkgconfig/jarvis_capture.pc",
    }  # fmt: skip
    assert run("pkg-config", "--modversion", "jarvis_capture", env=pkg_config(prefix)).strip() == VERSION


def test_the_library_exports_nothing_but_its_public_interface(prefix: Path) -> None:
    lines = run("nm", "-D", "--defined-only", prefix / "lib" / "libjarvis_capture.so").splitlines()
    names = {line.split()[-1] for line in lines}
    assert "capture_init" in names
    assert {name for name in names if not name.startswith("capture_")} == set()
    header = "".join(path.read_text() for path in (prefix / "include").iterdir())
    assert {name for name in names if f"{name}(" not in header} == set()


def test_a_module_exports_one_symbol(prefix: Path) -> None:
    for module in modules_of(prefix):
        lines = run("nm", "-D", "--defined-only", module).splitlines()
        assert [line.split()[-1] for line in lines] == ["jarvis_capture_module"], module


@pytest.mark.parametrize("capture", ["connection.pcap", "several-interfaces.pcapng", "tagged.pcap"])
def test_a_program_built_with_pkg_config_meters_a_file_to_its_totals(prefix: Path, program: Path, capture: str) -> None:
    rows = (json.loads(line) for line in (DATA / "expected.jsonl").read_text().splitlines())
    (expected,) = (row for row in rows if row["file"] == capture)
    counted = json.loads(run(program, DATA / capture, env=library_path(prefix)))
    assert counted == {
        "version": VERSION,
        "packets": expected["ip_packets"],
        "octets": expected["octets"],
        "flows": len(expected["flows"]),
    }


def test_the_program_is_told_what_is_wrong_with_a_file(prefix: Path, program: Path, tmp_path: Path) -> None:
    bad = tmp_path / "notes.txt"
    bad.write_text("no packets here")
    done = subprocess.run([program, bad], capture_output=True, text=True, check=False, env=os.environ | library_path(prefix))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("files: ")
    assert "is not a capture file" in done.stderr
    assert "accepted are pcap and pcapng" in done.stderr


def test_the_header_is_also_a_cplusplus_header(prefix: Path, tmp_path: Path) -> None:
    source = tmp_path / "header.cpp"
    source.write_text("#include <jarvis_capture.h>\nint main() { return capture_version() == nullptr; }\n")
    flags = run("pkg-config", "--cflags", "--libs", "jarvis_capture", env=pkg_config(prefix)).split()
    binary = tmp_path / "header"
    run("c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", source, "-o", binary, *flags)
    run(binary, env=library_path(prefix))
