from __future__ import annotations

import stat
import struct
import tempfile
import zipfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bcu_cli.errors import ImagesError
from bcu_cli.images.sources import zipped
from bcu_cli.images.sources.zipped import unpacked

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made in this test: nothing may be left there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def pack(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)  # the same bytes at any time
    return path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_was_packed_is_there_until_the_context_ends(tmp_path: Path, temporary: Path) -> None:
    members = {"a/x.png": b"1", "a/b/y.png": b"2" * 5000, "z.txt": b""}
    path = pack(tmp_path / "a.zip", members | {"./": b"", "empty/": b"", "__MACOSX/a/._x.png": b"3"})
    with unpacked(path) as folder:
        assert folder.parent == temporary
        assert everything(folder) == members
        assert (folder / "empty").is_dir()
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_it_goes_away_when_the_work_is_interrupted(tmp_path: Path, temporary: Path, stop: type) -> None:
    with pytest.raises(stop), unpacked(pack(tmp_path / "a.zip", {"a/x": b"1"})) as folder:
        assert folder.exists()
        raise stop
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    "name",
    ["/etc/x", "../x", "a/../../x", "..\\x", "a\\..\\..\\x", "C:\\x", "C:x", "\\\\host\\share\\x", "\\x"],
)
def test_names_that_lead_out_are_refused(tmp_path: Path, temporary: Path, name: str) -> None:
    path = pack(tmp_path / "a.zip", {"good.png": b"1", name: b"2"})
    with pytest.raises(ImagesError, match="points out of the archive"), unpacked(path):
        pass
    assert not list(temporary.iterdir())
    assert not list(tmp_path.glob("x"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_are_refused(tmp_path: Path, temporary: Path, kind: int) -> None:
    info = zipfile.ZipInfo("a/link")
    info.create_system = 3
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ImagesError, match="'a/link' is a link"), unpacked(tmp_path / "a.zip"):
        pass


def in_directory(path: Path, offset: int, layout: str, value: int) -> None:
    """Overwrite a field of the first entry of a zip's directory."""
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, content.index(b"PK\x01\x02") + offset, value)
    path.write_bytes(content)


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"a/x": b"1"})
    in_directory(path, 8, "<H", 0x1)
    with pytest.raises(ImagesError, match="'a/x' is encrypted"), unpacked(path):
        pass


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_rare_packings_are_refused(tmp_path: Path, method: int) -> None:
    path = pack(tmp_path / "a.zip", {"a/x": b"1"}, method)
    with pytest.raises(ImagesError, match="packed in a way"), unpacked(path):
        pass


def test_a_bomb_is_refused_before_anything_is_written(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipped, "HARMLESS_BYTES", 1000)
    monkeypatch.setattr(zipped, "_extract", lambda *_: pytest.fail("something was written"))
    path = pack(tmp_path / "a.zip", {f"a/{i}": bytes(300_000) for i in range(3)})
    with pytest.raises(ImagesError, match="it would grow to 900,000 bytes"), unpacked(path):
        pass


def test_small_archives_may_shrink_a_lot(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"a/flat.bmp": bytes(1_000_000)})
    with unpacked(path) as folder:
        assert (folder / "a" / "flat.bmp").stat().st_size == 1_000_000


def test_more_than_the_disk_has_room_for_is_refused(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(zipped.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    path = pack(tmp_path / "a.zip", {"a/x": b"12"})
    with pytest.raises(ImagesError, match=r"needs 2 bytes, and .* has 1"), unpacked(path):
        pass


def test_a_member_never_gets_longer_than_its_directory_says(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "a.zip", {"a/x": bytes(5_000_000)})
    in_directory(path, 24, "<L", 10)
    written, copy = [], zipped.shutil.copyfileobj

    def watched(packed, out) -> None:
        try:
            copy(packed, out)
        finally:
            written.append(out.tell())

    monkeypatch.setattr(zipped.shutil, "copyfileobj", watched)
    with pytest.raises(ImagesError, match="is damaged"), unpacked(path):
        pass
    assert len(written) == 1
    assert written[0] <= 10
    assert not list(temporary.iterdir())


def test_twins_are_refused(tmp_path: Path, temporary: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/x", "1")
        archive.writestr("a\\x", "2")
    with pytest.raises(ImagesError, match="cannot be unpacked"), unpacked(tmp_path / "a.zip"):
        pass
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("content", [b"", b"no zip", b"\x1f\x8b\x08 a tar.gz", b"PK\x03\x04 cut short"])
def test_no_zip(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ImagesError, match=r"a\.zip is no zip file") as raised, unpacked(tmp_path / "a.zip"):
        pass
    assert raised.value.hint


def wrong_checksum(path: Path) -> None:
    pack(path, {"a/x": b"some content"}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"some content", b"same content"))


def wrong_bits(path: Path) -> None:
    pack(path, {"a/x": bytes(1000)})
    content = bytearray(path.read_bytes())
    content[33:36] = b"\xff\xff\xff"
    path.write_bytes(content)


def longer_than_the_file(path: Path) -> None:
    pack(path, {"a/x": b"some content"}, zipfile.ZIP_STORED)
    in_directory(path, 20, "<L", 100_000)
    in_directory(path, 24, "<L", 100_000)


def written_by_no_tool(path: Path) -> None:
    pack(path, {"a/x": b"some content"})
    in_directory(path, 8, "<H", 0x20)  # "patched data"


@pytest.mark.parametrize("make", [wrong_checksum, wrong_bits, longer_than_the_file, written_by_no_tool])
def test_damage(tmp_path: Path, temporary: Path, make) -> None:
    make(tmp_path / "a.zip")
    with pytest.raises(ImagesError, match=r"a\.zip is damaged"), unpacked(tmp_path / "a.zip"):
        pass
    assert not list(temporary.iterdir())


@given(data=st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_damaged_ends_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    path = pack(tmp_path / "a.zip", {"a/x": b"1" * 100, "b/y": b"2" * 100})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) - 30, len(content)))])
    try:
        with unpacked(path) as folder:
            assert all(len(member) <= 2**20 for member in everything(folder).values())
    except ImagesError as error:
        assert error.hint


def test_a_list_of_members_that_would_take_gigabytes_is_not_read(tmp_path: Path, temporary: Path) -> None:
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 0, 0)
    end64 = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 4 * 10**6, 4 * 10**6, 2**28, 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, 2**28, 1)
    for name, tail in (
        ("a.zip", end64 + locator + end),
        ("b.zip", end[:12] + struct.pack("<IIH", 2**28, 0, 0)),
    ):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**28)  # a hole, which takes no room
            file.seek(0, 2)
            file.write(tail)
        with (
            pytest.raises(ImagesError, match="its list of members has 268,435,456 bytes"),
            unpacked(tmp_path / name),
        ):
            pass


def test_an_archive_of_several_disks_is_damaged(tmp_path: Path, temporary: Path) -> None:
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, 0, 9)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)
    (tmp_path / "a.zip").write_bytes(bytes(100) + locator + end)
    with pytest.raises(ImagesError, match="span multiple disks"), unpacked(tmp_path / "a.zip"):
        pass
