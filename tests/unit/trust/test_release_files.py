# SPDX-License-Identifier: Apache-2.0
"""Releases that arrive in parts: what has its name on the disk is what was signed, whatever came in between."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jarvis_trust import release_files
from jarvis_trust.errors import FirmwareError
from jarvis_trust.firmware import MANIFEST_FILE, SIGNATURE_FILE, Manifest
from jarvis_trust.release_files import Part, PartError, ReleaseError, ReleaseFiles

OBJECTS = {"libjarvis_capture.so": b"the library " * 20, "libjarvis_capture_xdp.so": b"a module"}
MAX_PART = 64


def make_manifest(version: str = "1.0.0") -> Manifest:
    return Manifest(
        name="jarvis-capture",
        version=version,
        security_version=1,
        architecture="x86_64",
        objects={name: hashlib.sha256(data).hexdigest() for name, data in OBJECTS.items()},
        created="2026-11-22T10:00:00Z",
        expires="2100-01-01T00:00:00Z",
    )


def contents(manifest: Manifest) -> dict[str, bytes]:
    data = manifest.to_bytes()
    return {MANIFEST_FILE: data, SIGNATURE_FILE: b"signed " + hashlib.sha256(data).digest(), **OBJECTS}


def judge(manifest: bytes, signature: bytes) -> Manifest:
    """A signature of our own making."""
    if signature != b"signed " + hashlib.sha256(manifest).digest():
        raise FirmwareError("FIRMWARE_SIGNATURE_INVALID", "not ours")
    return Manifest.from_bytes(manifest)


def store(root: Path, *, limit: int = 3, keep: frozenset[str] = frozenset()) -> ReleaseFiles:
    return ReleaseFiles(root, judge=judge, max_part=MAX_PART, limit=limit, may_evict=lambda name, _: name not in keep)


def name_of(files: dict[str, bytes]) -> str:
    return hashlib.sha256(files[MANIFEST_FILE]).hexdigest()


def parts(files: dict[str, bytes]) -> list[Part]:
    digest = hashlib.sha256(files[MANIFEST_FILE]).digest()
    return [
        Part(manifest_sha256=digest, file_name=name, offset=at, data=data[at : at + MAX_PART], size=len(data))
        for name, data in files.items()
        for at in range(0, len(data), MAX_PART)
    ]


def add_all(releases: ReleaseFiles, files: dict[str, bytes]) -> str:
    for part in parts(files):
        releases.add(part)
    return name_of(files)


FILES = contents(make_manifest())
NAME = name_of(FILES)


def test_a_release_that_came_whole_is_opened(tmp_path: Path) -> None:
    releases = store(tmp_path)
    assert add_all(releases, FILES) == NAME
    found = releases.open(NAME)
    assert (found.manifest, found.size) == (make_manifest(), sum(map(len, FILES.values())))
    assert found.file_names == (MANIFEST_FILE, SIGNATURE_FILE, *sorted(OBJECTS))
    assert {path.name: path.read_bytes() for path in found.directory.iterdir()} == FILES
    assert {path.stat().st_mode & 0o777 for path in found.directory.iterdir()} == {0o600}
    assert (found.directory.stat().st_mode & 0o777) == 0o700


def test_adding_it_again_changes_nothing(tmp_path: Path) -> None:
    releases = store(tmp_path)
    add_all(releases, FILES)
    add_all(releases, FILES)
    assert releases.names() == [NAME]
    releases.open(NAME)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(parts(FILES)),
            st.none() | st.binary(min_size=1, max_size=MAX_PART),
            st.none() | st.integers(0, 400),
            st.none() | st.sampled_from([*FILES, "../evil", ".part-x", "", "/etc/passwd", "a/b", "manifest.json\0"]),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_whatever_comes_in_whatever_order_a_file_with_its_name_is_the_signed_one(
    sent: list[tuple[Part, bytes | None, int | None, str | None, bool]],
) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        releases = store(root / "releases")
        for part, data, offset, file_name, restarts in sent:
            changes = {"data": data, "offset": offset, "file_name": file_name}
            changed = dataclasses.replace(part, **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]
            with contextlib.suppress(PartError, ReleaseError, FirmwareError):
                releases.add(changed)
            if restarts:
                releases = store(root / "releases")
        found = [path for path in root.rglob("*") if path.is_file()]
        for path in found:
            assert path.parent == root / "releases" / NAME, path
            assert path.name.startswith(".part-") or path.read_bytes() == FILES[path.name]
    finally:
        shutil.rmtree(root)


def test_nothing_but_manifest_and_signature_is_taken_before_they_are_judged(tmp_path: Path) -> None:
    releases = store(tmp_path)
    by_name = {part.file_name: part for part in reversed(parts(FILES))}
    for name in (SIGNATURE_FILE, *OBJECTS):
        with pytest.raises(PartError, match=r"manifest\.json is accepted first"):
            releases.add(by_name[name])
    for part in parts(FILES):
        if part.file_name == MANIFEST_FILE:
            releases.add(part)
    for name in OBJECTS:
        with pytest.raises(PartError, match=r"manifest\.sig is accepted next"):
            releases.add(by_name[name])


def test_a_release_whose_signature_is_refused_is_gone(tmp_path: Path) -> None:
    releases = store(tmp_path)
    with pytest.raises(FirmwareError) as refused:
        add_all(releases, {**FILES, SIGNATURE_FILE: b"forged"})
    assert refused.value.reason == "FIRMWARE_SIGNATURE_INVALID"
    assert releases.names() == []


def test_a_forged_signature_does_not_take_a_good_release_away(tmp_path: Path) -> None:
    releases = store(tmp_path)
    add_all(releases, FILES)
    (forged,) = parts({MANIFEST_FILE: FILES[MANIFEST_FILE], SIGNATURE_FILE: b"forged"})[-1:]
    with pytest.raises(FirmwareError):
        releases.add(forged)
    assert releases.open(NAME).signature == FILES[SIGNATURE_FILE]


def test_a_manifest_of_another_digest_is_gone(tmp_path: Path) -> None:
    releases = store(tmp_path)
    digest = hashlib.sha256(b"another").digest()
    *first, last = [dataclasses.replace(part, manifest_sha256=digest) for part in parts(FILES) if part.file_name == MANIFEST_FILE]
    for part in first:
        releases.add(part)
    with pytest.raises(ReleaseError) as refused:
        releases.add(last)
    assert refused.value.reason == "RELEASE_ALTERED"
    assert not releases.is_whole(digest.hex())


def test_an_object_of_another_digest_is_gone_and_may_come_again(tmp_path: Path) -> None:
    releases = store(tmp_path)
    with pytest.raises(ReleaseError) as refused:
        add_all(releases, {**FILES, "libjarvis_capture.so": b"X" + FILES["libjarvis_capture.so"][1:]})
    assert refused.value.reason == "RELEASE_ALTERED"
    add_all(releases, FILES)
    releases.open(NAME)


@pytest.mark.parametrize("name", [MANIFEST_FILE, SIGNATURE_FILE, *OBJECTS])
def test_what_was_changed_on_the_disk_is_not_opened(tmp_path: Path, name: str) -> None:
    releases = store(tmp_path)
    add_all(releases, FILES)
    path = tmp_path / NAME / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises((ReleaseError, FirmwareError)) as refused:
        releases.open(NAME)
    assert refused.value.reason in {"RELEASE_ALTERED", "FIRMWARE_SIGNATURE_INVALID"}
    path.unlink()
    with pytest.raises(ReleaseError, match=f"{name} is not here"):
        releases.open(NAME)


def test_a_link_in_the_place_of_an_object_is_not_followed(tmp_path: Path) -> None:
    releases = store(tmp_path / "releases")
    add_all(releases, FILES)
    path = tmp_path / "releases" / NAME / "libjarvis_capture.so"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ReleaseError) as refused:
        releases.open(NAME)
    assert refused.value.reason == "RELEASE_IO"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"manifest_sha256": b""}, "manifest_sha256"),
        ({"manifest_sha256": b"../" * 11}, "manifest_sha256"),
        ({"data": b""}, "data"),
        ({"data": bytes(MAX_PART + 1)}, "data"),
        ({"size": 0}, "size"),
        ({"size": 64 * 1024 + 1}, "size"),
        ({"size": 3, "data": b"four"}, "offset"),
        ({"offset": 2**63}, "offset"),
        ({"offset": 1}, "offset"),
    ],
)
def test_a_part_that_does_not_fit_names_its_field(tmp_path: Path, changes: dict[str, object], field: str) -> None:
    part = dataclasses.replace(parts(FILES)[0], **changes)  # type: ignore[arg-type]
    with pytest.raises(PartError) as refused:
        store(tmp_path).add(part)
    assert refused.value.field == field
    assert list(tmp_path.rglob("*.json")) == []


def test_a_part_must_follow_the_last_one(tmp_path: Path) -> None:
    releases = store(tmp_path)
    library = [part for part in parts(FILES) if part.file_name == "libjarvis_capture.so"]
    for part in parts(FILES):
        if part.file_name in {MANIFEST_FILE, SIGNATURE_FILE}:
            releases.add(part)
    assert releases.add(library[0]) == MAX_PART
    for wrong, accepted in (
        (library[2], f"{MAX_PART} is accepted"),
        (dataclasses.replace(library[1], size=999), "is accepted, as"),
    ):
        with pytest.raises(PartError, match=accepted):
            releases.add(wrong)
    with pytest.raises(PartError, match="was not begun"):
        store(tmp_path).add(library[1])  # after a restart


def test_the_oldest_release_that_may_go_makes_room(tmp_path: Path) -> None:
    made = [contents(make_manifest(f"1.0.{number}")) for number in range(4)]
    keep = frozenset({name_of(made[0])})
    releases = store(tmp_path, keep=keep)
    for age, files in enumerate(made[:3]):
        add_all(releases, files)
        os.utime(tmp_path / name_of(files), ns=(age, age))
    add_all(releases, made[3])
    assert set(releases.names()) == {name_of(files) for files in (made[0], made[2], made[3])}
    full = store(tmp_path, keep=frozenset(releases.names()))
    with pytest.raises(ReleaseError) as refused:
        add_all(full, made[1])
    assert refused.value.reason == "RELEASE_LIMIT"


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_files, "DISK_RESERVE_BYTES", 1 << 62)
    with pytest.raises(ReleaseError) as refused:
        add_all(store(tmp_path), FILES)
    assert refused.value.reason == "RELEASE_DISK_FULL"
    assert list(tmp_path.rglob("*.json")) == []


def test_all_files_of_a_release_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_files, "MAX_RELEASE_BYTES", 400)
    with pytest.raises(PartError, match="a release has 400"):
        add_all(store(tmp_path), FILES)


def test_parts_that_a_crash_left_go_with_the_next_start(tmp_path: Path) -> None:
    releases = store(tmp_path)
    releases.add(parts(FILES)[0])
    assert len(list(tmp_path.rglob(".part-*"))) == 1
    store(tmp_path)
    assert list(tmp_path.rglob(".part-*")) == []
