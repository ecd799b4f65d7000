"""Finds the images in a tar archive, such as a WebDataset shard, by its headers, without unpacking it.

It is kept by hand because ``tarfile`` is not safe here. At a damaged header behind the first it ends without
an error, so images would be missing silently. It also reads extended headers of any size: a long name of
200 MiB takes that much memory, and a pax header of 100 MiB keeps it busy for minutes.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from bcu_cli.images.sources.hidden import Hidden

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
)
"""Suffixes of images; a shard also holds labels and texts."""

MOST_EXTENDED = 2**20
"""Most bytes of an extended header, such as one with a long name."""

LONGEST_NAME = 4096
"""Most bytes of a member's name; no file system allows more."""

_BLOCK = 512
_MOST_DIGITS = 10
_FILES, _WITHOUT_DATA, _EXTENDED = (b"0", b"\0", b"7"), (b"1", b"2", b"3", b"4", b"5", b"6"), b"LKxg"


class DamagedTarError(Exception):
    """The archive is damaged from some point on; the message gives the reason."""


def members(path: Path, hidden: Hidden | None = None) -> Iterator[tuple[str, int, int]]:
    """Yield the name of each image in an uncompressed archive, with its offset and size in bytes.

    Names are only displayed; nothing is written under them. Every size is checked against that of the file.

    Args:
        path: An archive in the format of POSIX (ustar, pax), GNU tar or Unix V7.
        hidden: Counts the folders and images that are skipped for their names.

    Raises:
        DamagedTarError: The file is no such archive, truncated or damaged; images before that are valid.
        OSError: The file cannot be read.
    """
    hidden = hidden or Hidden()
    with path.open("rb", buffering=0) as file:
        total = os.fstat(file.fileno()).st_size
        offset, extended = 0, dict[str, str]()
        while offset < total:
            header = os.pread(file.fileno(), _BLOCK, offset)
            if not any(header) and len(header) == _BLOCK:
                return
            _check(header)
            offset, kind = offset + _BLOCK, header[156:157]
            name = extended.get("path") or _name(header)
            if len(name) > LONGEST_NAME:
                raise DamagedTarError(f"a name of {len(name):,} bytes is no name")
            size = 0 if kind in _WITHOUT_DATA else _size(header, extended)
            if size > total - offset:
                raise DamagedTarError(
                    f"it is cut short: {name} says {size:,} bytes, and {total - offset:,} are left"
                )
            if kind in _EXTENDED:
                extended |= _read_extended(file.fileno(), kind, offset, size)
            else:
                extended = {}
                if kind in _FILES and _is_image(name) and not hidden.holds(path, PurePosixPath(name)):
                    yield name, offset, size
            offset += -(-size // _BLOCK) * _BLOCK
        if offset > total:  # members fill whole blocks
            raise DamagedTarError(f"it is cut short behind {name}")


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _check(header: bytes) -> None:
    """Refuse a header whose checksum is wrong: the sum of its bytes, with spaces for the checksum itself."""
    if len(header) < _BLOCK:
        raise DamagedTarError("it is cut short in a header")
    try:
        right = sum(header) - sum(header[148:156]) + 8 * ord(" ") == _number(header[148:156])
    except ValueError:
        right = False
    if not right:
        raise DamagedTarError("it is no tar archive that is not compressed, or damaged")


def _number(field: bytes) -> int:
    """Parse a number field: octal digits, or a big-endian number if the first bit is set."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise ValueError("a negative number")
        return int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big")
    digits = field.strip(b" \0")
    if digits and not digits.isdigit():
        raise ValueError("no digits")
    return int(digits or b"0", 8)


def _size(header: bytes, extended: dict[str, str]) -> int:
    stated = extended.get("size")
    try:
        if stated is None:
            return _number(header[124:136])
        if not (stated.isascii() and stated.isdigit()):
            raise ValueError("no digits")
        return int(stated)
    except ValueError as error:
        raise DamagedTarError(f"the size of {_name(header)} is no number") from error


def _name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _text(field: bytes) -> str:
    return os.fsdecode(field.partition(b"\0")[0])


def _read_extended(descriptor: int, kind: bytes, offset: int, size: int) -> dict[str, str]:
    """Read an extended header, which gives the name of the next member, and its size if that is large."""
    if size > MOST_EXTENDED:
        raise DamagedTarError(f"a header of {size:,} bytes is no header")
    block = os.pread(descriptor, size, offset)
    if kind == b"L":
        return {"path": _text(block)}
    return _records(block) if kind == b"x" else {}


def _records(block: bytes) -> dict[str, str]:
    """Parse the records of a pax header; each is its length, a space, NAME=VALUE and a line feed."""
    found, start = {}, 0
    while start < len(block):
        digits = block[start : start + _MOST_DIGITS].partition(b" ")[0]
        length = int(digits) if digits.isdigit() and len(digits) < _MOST_DIGITS else 0
        if not len(digits) + 1 < length <= len(block) - start:
            raise DamagedTarError("a header of it is damaged")
        key, _, value = block[start + len(digits) + 1 : start + length - 1].partition(b"=")
        if key in {b"path", b"size"}:
            found[key.decode()] = os.fsdecode(value)
        start += length
    return found
