"""Hostile files that two readers read differently, that hide where nobody looks, or that never end.

They belong to the corpus of :mod:`hostile`.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def _run(canary: Path) -> bytes:
    """The opcodes that create the canary and leave nothing on the stack."""
    command = f"touch {canary}".encode()
    return b"cos\nsystem\n(X" + struct.pack("<I", len(command)) + command + b"tR0"


def hidden_by_a_frame(canary: Path) -> bytes:
    """A pickle whose frame ends within a text: C's unpickler goes on with others than those that follow.

    Read on as it stands, it is a text, bytes and nothing else. In C, of a file without ``peek``, as
    torch gives it, the rest of the frame is dropped and the text is taken from behind the frame.
    """
    run = b"xxx" + _run(canary)
    swallowed = b"B" + struct.pack("<I", len(run)) + run  # for who reads on: bytes, not opcodes
    in_frame, behind = (
        b"\x8c\x0d" + b"x" * 8,
        b"x" * 5,
    )  # a text; in C those behind and 8 of what is swallowed
    return b"\x80\x04\x95" + struct.pack("<Q", len(in_frame)) + in_frame + behind + swallowed + b"0N."


def pickles(canary: Path) -> dict[str, bytes]:
    """Pickles that are not written as Python writes them, or behind what looks like another kind of file."""
    run = _run(canary)
    page = b"This is a model card. " * 3500
    return {
        "frame_in_an_argument": hidden_by_a_frame(canary),
        "frame_empty": b"\x80\x04\x95" + bytes(8) + run + b"N.",
        "frame_in_a_frame": b"\x80\x04\x95\x0b" + bytes(7) + b"\x95\x02" + bytes(7) + b"N0" + run + b"N.",
        "frame_behind_its_end": b"\x80\x04\x95\x05" + bytes(7) + b"N.N0.",
        "number_with_blanks": b"I 5\n0" + run + b"N.",
        "number_in_hexadecimal": b"I0x5\n0" + run + b"N.",
        "number_with_underscores": b"F1_0\n0" + run + b"N.",
        "protocol_twice": b"\x80\x02\x80\x04" + run + b"N.",
        "behind_gif": b"GIF89a\x01\x00\x01" + b"0" + run + b"N.",
        "behind_bmp": b"BM" + struct.pack("<I", 0)[:3] + b"x" * 77 + b"0" + run + b"N.",
        "behind_long_text": b"V" + page + b"\n0" + run + b"N.",
        "behind_a_second_text": b"VVit models\n." + run + b"N.",
    }


def _local(name: bytes, data: bytes) -> bytes:
    sizes = (zlib.crc32(data), len(data), len(data), len(name), 0)
    return b"PK\x03\x04" + struct.pack("<5H3L2H", 20, 0, 0, 0, 33, *sizes) + name + data


def _entry(name: bytes, data: bytes, offset: int, attributes: int = 0) -> bytes:
    numbers = (20, 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0, 0, 0, 0)
    return b"PK\x01\x02" + struct.pack("<6H3L5H2L", *numbers, attributes, offset) + name


def _ends(count: int, size: int, start: int, record: int, leads_to: int) -> tuple[bytes, bytes]:
    """The large end record at ``record``, and the locator (to ``leads_to``) with the small end record."""
    large = b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, count, count, size, start)
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, leads_to, 1)
    return large, locator + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, count, count, size, start, 0)


def two_directories(members: dict[str, bytes], evil: bytes) -> bytes:
    """An archive with two directories: Python reads the one, torch the other, where ``evil`` is data.pkl."""
    data, entries = b"", []
    for name, content in members.items():
        entries.append((name.encode(), content, len(data)))
        data += _local(name.encode(), content)
    name = next(name for name, *_ in entries if name.endswith(b"/data.pkl"))
    other = [(name, evil, len(data)) if entry[0] == name else entry for entry in entries]
    data += _local(name, evil)
    for_torch, for_python = (b"".join(_entry(*entry) for entry in both) for both in (other, entries))
    count, found = len(entries), len(data) + len(for_torch)
    first, _ = _ends(count, len(for_torch), len(data), found, found)
    start = found + len(first)
    last, end = _ends(count, len(for_python), start, start + len(for_python), found)
    return data + for_torch + first + for_python + last + end


def archives(canary: Path, members: dict[str, bytes], good: bytes) -> dict[str, bytes]:
    """Archives that two readers read differently, or that carry what torch.save does not write."""
    root = next(iter(members)).partition("/")[0]
    evil = b"\x80\x02" + _run(canary) + b"N."
    data, entries = b"", b""
    for name, content in (members | {f"{root}/notes.bin": evil}).items():
        entries += _entry(name.encode(), content, len(data))
        data += _local(name.encode(), content)
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, *[len(members) + 1] * 2, len(entries), len(data), 0)
    return {
        "zip_unknown_member": data + entries + end,
        "image_with_zip_comment": b"\xff\xd8\xff\xe0" + bytes(60) + good + b"x",
    }


def broken(canary: Path, members: dict[str, bytes], good: bytes, legacy: bytes) -> dict[str, bytes]:
    """Archives and pickles that are refused before anybody could say what they hold."""
    root = next(iter(members)).partition("/")[0]
    evil = b"\x80\x02" + _run(canary) + b"N."
    end = good.rfind(b"PK\x05\x06")
    made = {
        "zip_two_directories": two_directories(members, evil),
        "zip_comment": good[: end + 20] + b"\x04\0more",
        "zip_behind": good + b"more",
        "zip_unused_storage": _archive(members | {f"{root}/data/99": evil}),
        "zip_short_storage": _archive(members | {f"{root}/data/0": members[f"{root}/data/0"][:-4]}),
        "zip_folder_by_attributes": _archive(members, attributes=0x10),
        "zip_twin_in_path": _archive(members | {f"{root}/./data.pkl": evil}),
        "zip_several_disks": b"PK\x03\x04" + good[4:-18] + b"\x01\0\x01\0" + good[-14:],
        "legacy_behind": legacy + evil,
    }
    for name, data in (bombs() | misused()).items():
        made[name] = _archive(members | {f"{root}/data.pkl": data})
    return made


def _archive(members: dict[str, bytes], attributes: int = 0) -> bytes:
    data, entries = b"", b""
    for name, content in members.items():
        entries += _entry(name.encode(), content, len(data), attributes)
        data += _local(name.encode(), content)
    count = len(members)
    return (
        data + entries + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, count, count, len(entries), len(data), 0)
    )


def misused() -> dict[str, bytes]:
    """Pickles that use what they may ask for as torch never does."""
    head = b"\x80\x02"
    return {
        "build_on_import": head + b"ctorch._utils\n_rebuild_tensor_v2\n}b.",
        "build_on_tensor": head + b"ctorch._utils\n_rebuild_tensor_v2\n)R}b.",
        "call_of_a_class": head + b"ctorch\nTensor\nJ\0\0\0\x70\x85R.",
        "call_of_a_result": head + b"ccollections\nOrderedDict\n)R)R.",
        "encode_with_a_module": head + b"c_codecs\nencode\nX\1\0\0\0aX\4\0\0\0uu__\x86R.",
        "tensor_from_anything": head + b"ctorch._tensor\n_rebuild_from_type_v2\n(N)N}tR.",
    }


def bombs() -> dict[str, bytes]:
    """Small pickles that take a reader minutes, gigabytes or its stack."""
    head = b"\x80\x02"
    tower = b"K\x01" + b"".join(b"q%ch%c\x86" % (index, index) for index in range(60))
    text = b"X" + struct.pack("<I", 30_000) + b"a" * 30_000
    numbers = (((2**61 - 1) * index).to_bytes(12, "little") for index in range(1, 50_000))
    return {
        "bomb_key": head + b"}" + tower + b"Ns.",
        "bomb_in_set": head + b"c__builtin__\nset\n]" + tower + b"a\x85R.",
        "bomb_deep_key": head + b"})" + b"\x85" * 300_000 + b"Ns.",
        "bomb_encode": head
        + b"c_codecs\nencode\nq\0"
        + text
        + b"X\6\0\0\0latin1\x86q\1R"
        + b"0h\0h\1R" * 9000
        + b".",
        "bomb_collisions": head + b"}(" + b"".join(b"\x8a\x0c" + number + b"N" for number in numbers) + b"u.",
        "bomb_long_number": head + b"\x8b" + struct.pack("<i", 2**22) + b"\x7f" * 2**22 + b".",
        "bomb_opcodes": head + b"N0" * 4_000_000 + b"N.",
        "bomb_memo": head + b"N" + b"r\xff\xff\xff\x0f" + b".",
        "bomb_doubling": head + b")" + b"2\x86" * 100 + b"q\0}h\0Ns.",
    }


SEVERAL_DISKS = (
    b"A text that looks like a zip archive of several disks to those who read from its end.\n".ljust(
        112, b"."
    )
    + b"PK\x06\x07"
    + struct.pack("<LQL", 3, 0, 7)
    + b"PK\x05\x06"
    + struct.pack("<4H2LH", 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
)
"""154 bytes for which zipfile.is_zipfile raises an error."""


def image_and_tar() -> bytes:
    """A tar archive, of the kind without a mark, whose first member is called like a JPEG begins."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    header = bytearray(buffer.getvalue()[:512])
    header[:4], header[257:265] = b"\xff\xd8\xff\xe0", bytes(8)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def image_and_hdf5() -> bytes:
    """An HDF5 file that begins as a PNG."""
    return b"\x89PNG\r\n\x1a\n".ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n" + bytes(64)
