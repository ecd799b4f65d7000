"""A strict zip reader that refuses every archive in which readers could see different members.

Python reads a zip from its end record, torch from the last bytes that look like one, and other readers from
the front. They agree on an archive in canonical form: the members without gaps, then the directory in the
same order, then one end record without a comment. All other archives are refused.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END_64, _LOCATOR, _DESCRIPTOR = b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08"
_END_BYTES, _LOCATOR_BYTES, _END_64_BYTES, _CENTRAL_BYTES, _LOCAL_BYTES = 22, 20, 56, 46, 30
_MAX_16, _MAX_32 = 0xFFFF, 0xFFFFFFFF
_SIZES_FOLLOW, _UTF_8, _COMPRESSION_LEVEL = 0x8, 0x800, 0x6  # bits of a member's flags
_ENCRYPTED = 0x1
_ZIP64_FIELD, _PADDING_FIELD = 0x0001, 0x4246  # torch aligns tensors with padding of letters Z
_LATEST = 45  # zip version 4.5, which has 64-bit sizes
_MAX_MEMBERS = 200_000
_LONGEST_TAIL = _END_BYTES + _MAX_16  # bytes at the end in which readers search for an end record


class ZipError(Exception):
    """An archive is damaged or not in canonical form; ``rule`` is the id of the violated rule."""

    def __init__(self, message: str, rule: str = "zip-layout") -> None:
        super().__init__(message)
        self.rule = rule


@dataclass(frozen=True)
class Member:
    """One file in an archive.

    Attributes:
        name: Full name of the member.
        start: Offset of its data in the archive, in bytes.
        packed: Size of its data in the archive, in bytes.
        size: Uncompressed size, in bytes.
        checksum: CRC-32 of the uncompressed data.
        is_deflated: Whether it is compressed.
        attributes: External file attributes, such as the Unix mode.
    """

    name: str
    start: int
    packed: int
    size: int
    checksum: int
    is_deflated: bool
    attributes: int

    def read(self, file: IO[bytes]) -> bytes:
        """Read and unpack the member's bytes.

        Raises:
            ZipError: The bytes do not match the size or the checksum in the archive.
        """
        file.seek(self.start)
        data = file.read(self.packed)
        if self.is_deflated:
            unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                data = unpacker.decompress(data, self.size + 1)
            except zlib.error as error:
                raise ZipError(f"its member {self.name!r} cannot be unpacked", "damaged-file") from error
            if not unpacker.eof or unpacker.unused_data:
                raise ZipError(f"its member {self.name!r} does not unpack to its end", "damaged-file")
        if len(data) != self.size or zlib.crc32(data) != self.checksum:
            raise ZipError(f"its member {self.name!r} has the wrong size or checksum", "damaged-file")
        return data


@dataclass(frozen=True)
class _Entry:
    """The entry of one member in the directory."""

    name: bytes
    flags: int
    method: int
    checksum: int
    packed: int
    size: int
    offset: int
    attributes: int


def read_members(file: IO[bytes], size: int) -> list[Member]:
    """Read the members of an archive, in its order.

    Args:
        file: The archive.
        size: Size of the archive, in bytes.

    Raises:
        ZipError: The file is no archive in canonical form.
    """
    count, start, end = _find_directory(file, size)
    file.seek(start)
    directory = file.read(end - start)
    members = []
    position = 0
    for entry in _entries(directory, count):
        if entry.offset != position:
            raise ZipError(f"there are bytes before its zip member {_quoted_name(entry.name)}")
        member, position = _locate(file, entry)
        if position > start:
            raise ZipError("its zip members claim more bytes than the file has", "impossible-size")
        members.append(member)
    if position != start:
        raise ZipError("there are bytes between its zip members and their directory")
    return members


def ends_as_zip(file: IO[bytes], size: int) -> bool:
    """Whether any reader could find the end of a zip archive in a file of ``size`` bytes."""
    start = max(0, size - _LONGEST_TAIL - _LOCATOR_BYTES)
    file.seek(start)
    tail = file.read(size - start)
    at = tail.find(_END)
    while 0 <= at <= len(tail) - _END_BYTES:
        length, offset = struct.unpack_from("<2L", tail, at + 12)
        if tail[max(0, at - _LOCATOR_BYTES) :].startswith(_LOCATOR):
            return True
        for place in (start + at - length, offset):
            if 0 <= place < size:
                file.seek(place)
                if file.read(4) in (_CENTRAL, _END):
                    return True
        at = tail.find(_END, at + 1)
    return False


def _find_directory(file: IO[bytes], size: int) -> tuple[int, int, int]:
    """Find the directory: the number of its members, and its start and end as byte offsets."""
    end = size - _END_BYTES
    record = _read(file, end, _END_BYTES)
    *disks, here, count, length, start, comment = struct.unpack("<4H2LH", record[4:])
    if record[:4] != _END:
        raise ZipError("its zip directory cannot be read: it does not end with an end record", "damaged-file")
    if comment:
        raise ZipError("its zip directory ends with a comment")
    if locator := _read_locator(file, end - _LOCATOR_BYTES):
        end -= _LOCATOR_BYTES + _END_64_BYTES
        large = _read_zip64_end(file, end, locator)
        limits = (_MAX_16, _MAX_16, _MAX_32, _MAX_32)
        if (here, count, length, start) != tuple(map(min, large, limits)):
            raise ZipError("its two zip end records differ")
        here, count, length, start = large
    if any(disks) or here != count:
        raise ZipError("its zip archive spans several disks")
    if start + length != end:
        raise ZipError("its zip directory is not where its end record says")
    if count > _MAX_MEMBERS or count * _CENTRAL_BYTES > length:
        raise ZipError(f"its zip directory claims {count:,} members", "impossible-size")
    return count, start, end


def _read_locator(file: IO[bytes], at: int) -> bytes:
    """The locator of the zip64 end record; empty if there is none."""
    locator = _read(file, at, _LOCATOR_BYTES) if at >= 0 else b""
    return locator if locator.startswith(_LOCATOR) else b""


def _read_zip64_end(file: IO[bytes], at: int, locator: bytes) -> tuple[int, int, int, int]:
    disk, offset, disks = struct.unpack("<LQL", locator[4:])
    record = _read(file, at, _END_64_BYTES)
    length, _, _, first, second, here, count, size, start = struct.unpack("<Q2H2L4Q", record[4:])
    if record[:4] != _END_64 or (disk, offset, disks) != (0, at, 1):
        raise ZipError("its zip locator does not lead to the end record before it")
    if (length, first, second) != (_END_64_BYTES - 12, 0, 0):
        raise ZipError("its zip end record is not as torch writes it")
    return here, count, size, start


def _entries(directory: bytes, count: int) -> Iterator[_Entry]:
    at = 0
    for _ in range(count):
        if len(directory) - at < _CENTRAL_BYTES or directory[at : at + 4] != _CENTRAL:
            raise ZipError("its zip directory cannot be read: an entry is broken", "damaged-file")
        values = struct.unpack_from("<6x3HL3L5H2L", directory, at)
        version, flags, method, _, checksum, packed, size = values[:7]
        named, more, comment, disk, _, attributes, offset = values[7:]
        name = directory[at + _CENTRAL_BYTES : at + _CENTRAL_BYTES + named]
        extra = directory[at + _CENTRAL_BYTES + named : at + _CENTRAL_BYTES + named + more]
        at += _CENTRAL_BYTES + named + more
        if at > len(directory) or comment or disk:
            raise ZipError(f"its zip member {_quoted_name(name)} has a comment or is on another disk")
        if version > _LATEST or attributes & _MAX_16:  # torch takes the latter for a folder
            raise ZipError(f"its zip member {_quoted_name(name)} is no plain file")
        fields = _fields(extra, name)
        sizes = (size, packed, offset)
        large = iter(_zip64_values(fields.pop(_ZIP64_FIELD, b""), sizes.count(_MAX_32), name))
        size, packed, offset = (next(large) if value == _MAX_32 else value for value in sizes)
        if fields:
            raise ZipError(f"its zip member {_quoted_name(name)} has fields that torch does not write")
        yield _Entry(name, flags, method, checksum, packed, size, offset, attributes)
    if at != len(directory):
        raise ZipError("there are bytes after its zip directory")


def _locate(file: IO[bytes], entry: _Entry) -> tuple[Member, int]:
    """Find the member of a directory entry, and return it with the offset of the next member."""
    header = _read(file, entry.offset, _LOCAL_BYTES)
    version, flags, method, _, checksum, packed, size, named, more = struct.unpack("<3HL3L2H", header[4:])
    rest = _read(file, entry.offset + _LOCAL_BYTES, named + more)
    if (
        header[:4] != _LOCAL
        or version > _LATEST
        or (rest[:named], flags, method) != (entry.name, entry.flags, entry.method)
    ):
        raise ZipError(f"its zip member {_quoted_name(entry.name)} has two headers that differ")
    name = _checked_name(entry)
    fields = _fields(rest[named:], entry.name)
    padding = fields.pop(_PADDING_FIELD, b"")
    large = fields.pop(_ZIP64_FIELD, None)
    if fields or padding.strip(b"Z"):
        raise ZipError(f"its zip member {name!r} has fields that torch does not write")
    if large is not None:
        values = _zip64_values(large, len(large) // 8, entry.name)
        if set(values) - {0, entry.size, entry.packed, entry.offset}:
            raise ZipError(f"its zip member {name!r} has two headers that differ")
        if size == packed == _MAX_32 and len(values) >= 2:
            size, packed = values[:2]
    start = entry.offset + _LOCAL_BYTES + named + more
    end = start + entry.packed
    expected = (entry.checksum, entry.packed, entry.size)
    if flags & _SIZES_FOLLOW:
        expected = (0, 0, 0)
        end += _check_descriptor(file, entry, end, is_large=large is not None)
    if (checksum, packed, size) != expected:
        raise ZipError(f"its zip member {name!r} has two headers that differ")
    is_deflated = entry.method != 0
    member = Member(name, start, entry.packed, entry.size, entry.checksum, is_deflated, entry.attributes)
    return member, end


def _checked_name(entry: _Entry) -> str:
    """The name of a member, after a check that all readers decode it alike and can unpack the member."""
    if entry.flags & _ENCRYPTED:
        raise ZipError(f"its zip member {_quoted_name(entry.name)} is encrypted", "zip-encrypted")
    if entry.flags & ~(_SIZES_FOLLOW | _UTF_8 | _COMPRESSION_LEVEL) or entry.method not in (0, 8):
        raise ZipError(
            f"its zip member {_quoted_name(entry.name)} is packed as torch never does", "zip-compressed"
        )
    if not entry.method and entry.packed != entry.size:
        raise ZipError(f"its zip member {_quoted_name(entry.name)} is of two sizes")
    try:
        name = entry.name.decode("utf-8" if entry.flags & _UTF_8 else "ascii")
    except UnicodeDecodeError as error:
        raise ZipError(f"its zip member {_quoted_name(entry.name)} has a name that is no text") from error
    if not name.isprintable():
        raise ZipError(f"its zip member {name!r} has a name that cannot be printed")
    return name


def _check_descriptor(file: IO[bytes], entry: _Entry, at: int, *, is_large: bool) -> int:
    """Check the data descriptor after a member's bytes, and return its length in bytes."""
    form = "<L2Q" if is_large else "<3L"
    count = 4 + struct.calcsize(form)
    found = _read(file, at, count)
    values = struct.unpack(form, found[4:])
    if found[:4] != _DESCRIPTOR or values != (entry.checksum, entry.packed, entry.size):
        raise ZipError(f"its zip member {_quoted_name(entry.name)} is followed by wrong sizes")
    return count


def _fields(extra: bytes, name: bytes) -> dict[int, bytes]:
    """The extra fields of a header, by their ids."""
    fields: dict[int, bytes] = {}
    at = 0
    while at < len(extra):
        kind, length = struct.unpack_from("<2H", extra, at) if len(extra) - at >= 4 else (0, _MAX_16)
        at += 4 + length
        if at > len(extra) or kind in fields:
            raise ZipError(f"its zip member {_quoted_name(name)} has broken fields")
        fields[kind] = extra[at - length : at]
    return fields


def _zip64_values(field: bytes, count: int, name: bytes) -> tuple[int, ...]:
    """The 64-bit numbers in a zip64 field, which replace numbers that do not fit into 32 bits."""
    if len(field) != 8 * count:
        raise ZipError(f"its zip member {_quoted_name(name)} has sizes in a form that torch does not write")
    return struct.unpack(f"<{count}Q", field)


def _read(file: IO[bytes], at: int, count: int) -> bytes:
    if at < 0:
        raise ZipError("its zip directory cannot be read: it is cut short", "damaged-file")
    file.seek(at)
    data = file.read(count)
    if len(data) != count:
        raise ZipError("its zip directory cannot be read: it is cut short", "damaged-file")
    return data


def _quoted_name(name: bytes) -> str:
    return repr(name.decode("utf-8", "replace"))
