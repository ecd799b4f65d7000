from __future__ import annotations

import io
import tarfile
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bcu_cli.images.sources.tar import MOST_EXTENDED, DamagedTarError, members

if TYPE_CHECKING:
    from pathlib import Path

LONG = "/".join(["a-folder-with-a-long-name"] * 8)  # more than the 100 bytes of a header
NAMES = (
    "000.jpg",
    "000.cls",
    "000.json",
    "deep/er/001.PNG",
    "._002.png",
    "README",
    f"{LONG}/003.webp",
    "ü.gif",
)
PICTURES = ["000.jpg", "deep/er/001.PNG", f"{LONG}/003.webp", "ü.gif"]


def write(path: Path, names: tuple[str, ...] = NAMES, format_: int = tarfile.PAX_FORMAT) -> Path:
    """An archive whose members hold their own names, of ever longer contents."""
    with tarfile.open(path, "w", format=format_) as archive:
        for number, name in enumerate(names):
            info, content = tarfile.TarInfo(name), name.encode() * (number * 100 + 1)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def found(path: Path) -> tuple[list[tuple[str, int, int]], str]:
    """What is listed, and why it ends where it should not."""
    listed = []
    try:
        for member in members(path):
            listed.append(member)  # noqa: PERF402 - what came before an error counts
    except DamagedTarError as error:
        return listed, str(error)
    return listed, ""


def sealed(header: bytes) -> bytes:
    """A header with the checksum that it should have."""
    total = sum(header[:148]) + sum(header[156:]) + 8 * ord(" ")
    return header[:148] + f"{total:06o}\0 ".encode() + header[156:]


def with_field(content: bytes, at: int, field: bytes) -> bytes:
    """An archive whose first header has another field."""
    return sealed(content[:at] + field + content[at + len(field) : 512]) + content[512:]


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_pictures_are_found_where_they_are_in_every_format(tmp_path: Path, format_: int) -> None:
    path = write(tmp_path / "a.tar", format_=format_)
    listed, why = found(path)
    assert ([name for name, _, _ in listed], why) == (PICTURES, "")
    content = path.read_bytes()
    for name, offset, size in listed:
        assert content[offset : offset + size] == name.encode() * (NAMES.index(name) * 100 + 1)


def test_links_and_folders_are_no_pictures(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert found(tmp_path / "a.tar") == ([], "")


@pytest.mark.parametrize("left", [100, 512, 600, 3000])
def test_of_a_cut_archive_what_is_whole_counts(tmp_path: Path, left: int) -> None:
    path = write(tmp_path / "a.tar", ("0.png", "1.png", "2.png"), tarfile.USTAR_FORMAT)
    path.write_bytes(path.read_bytes()[:left])  # members begin at 0, 1024 and 2048
    listed, why = found(path)
    assert len(listed) == {100: 0, 512: 0, 600: 1, 3000: 2}[left]
    assert "cut short" in why


def test_an_archive_may_end_without_empty_blocks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", ("0.png", "1.png"), tarfile.USTAR_FORMAT)
    whole = found(path)
    path.write_bytes(path.read_bytes()[: 4 * 512])
    assert found(path) == whole


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\0" * 3 + b"\x7f" * 8])
def test_a_member_that_claims_more_than_there_is(tmp_path: Path, size: bytes) -> None:
    path = write(tmp_path / "a.tar", ("0.png",), tarfile.USTAR_FORMAT)
    path.write_bytes(with_field(path.read_bytes(), 124, size))
    listed, why = found(path)
    assert listed == []
    assert why.startswith("it is cut short: 0.png says ")


@pytest.mark.parametrize("size", [b"\xff" * 12, b"no digits!!\0", b"-0000000001\0"])
def test_a_size_that_is_no_number(tmp_path: Path, size: bytes) -> None:
    path = write(tmp_path / "a.tar", ("0.png",), tarfile.USTAR_FORMAT)
    path.write_bytes(with_field(path.read_bytes(), 124, size))
    assert found(path) == ([], "the size of 0.png is no number")


@pytest.mark.parametrize("size", ["-1", "99999999999999999999", "x", "1_0"])
def test_a_size_of_pax_is_held_against_the_file_too(tmp_path: Path, size: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("0.png")
        info.pax_headers = {"size": size}
        archive.addfile(info)
    listed, why = found(tmp_path / "a.tar")
    assert listed == []
    assert "says" in why or "no number" in why


def test_a_name_of_megabytes_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", (f"{LONG}.png",), tarfile.GNU_FORMAT)
    content = with_field(path.read_bytes(), 124, f"{MOST_EXTENDED + 1:011o}\0".encode())
    path.write_bytes(content + bytes(MOST_EXTENDED))
    assert found(path) == ([], f"a header of {MOST_EXTENDED + 1:,} bytes is no header")


@pytest.mark.parametrize("kind", ["gz", "bz2"])
def test_what_is_compressed_is_no_archive(tmp_path: Path, kind: str) -> None:
    with tarfile.open(tmp_path / "a.tar", f"w:{kind}") as archive:
        archive.addfile(tarfile.TarInfo("0.png"))
    assert found(tmp_path / "a.tar")[0] == []
    assert found(tmp_path / "a.tar")[1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(at=st.integers(0, 4 * 512 - 1), value=st.integers(0, 255), seal=st.booleans())
def test_damage_never_leads_out_of_the_file(tmp_path: Path, at: int, value: int, seal: bool) -> None:
    path = tmp_path / "a.tar"
    content = bytearray(write(path, ("0.png", f"{LONG}.png")).read_bytes())
    content[at] = value
    path.write_bytes(sealed(bytes(content[:512])) + content[512:] if seal else content)
    for _, offset, size in found(path)[0]:
        assert 0 < offset <= offset + size <= len(content)


def test_a_header_of_very_many_records_is_read_at_once(tmp_path: Path) -> None:
    records = b"5 a=\n" * (MOST_EXTENDED // 5)
    header = bytearray(write(tmp_path / "a.tar", ("000.jpg",), tarfile.USTAR_FORMAT).read_bytes()[:512])
    header[124:136], header[156:157] = f"{len(records):011o}\0".encode(), b"x"
    content = sealed(bytes(header)) + records + bytes(-len(records) % 512) + (tmp_path / "a.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(content)
    started = time.monotonic()
    listed, why = found(tmp_path / "b.tar")
    assert ([name for name, _, _ in listed], why) == (["000.jpg"], "")
    assert time.monotonic() - started < 5  # and not a minute, as where each record moves all others


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", ("a" * 10_000 + ".jpg",))
    assert found(path) == ([], "a name of 10,004 bytes is no name")
