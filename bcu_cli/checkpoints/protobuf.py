"""Messages of Protocol Buffers, read strictly and in Python alone, by tables of the fields that are known.

A protobuf parser in C is one more thing that a hostile file can crash, and a lenient one merges what stands
twice, so that two readers can see two models. Unknown fields are passed over, as the format asks; texts and
numbers are not copied until they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; 3 and 4 (groups) are out of use, and refused."""
_FIXED = {FIXED64: 8, FIXED32: 4}
_WIRES = {  # by the type of a field; messages are bytes
    "int": (VARINT,),
    "float": (FIXED32,),
    "numbers": (BYTES, FIXED32, FIXED64),
    "varints": (BYTES, VARINT),
}
_MOST_FIELDS = 300_000
"""Of all messages of a file together; a network's thousand operators have some tens of thousands."""
_MOST_DEPTH = 40
_MOST_VARINT_BYTES = 10
_MAX_FIELD = 2**29 - 1

Message: TypeAlias = dict[str, Any]
Schema: TypeAlias = Mapping[str, Mapping[int, tuple[str, str]]]
"""Name of a kind of message to the numbers of its fields to (name, type): ``int`` (signed), ``float``,
``text``, ``bytes``, ``ints`` or the name of a kind of message, with ``*`` before it where it may stand more
than once. ``ints`` are varints, one by one or packed. ``numbers`` (of fixed size) and ``varints`` are given
as they stand, since there may be very many: their bytes, or a varint alone."""


class BrokenMessageError(Exception):
    """The bytes are no such message; the text says why."""


class TooManyFieldsError(BrokenMessageError):
    """There are more fields than any honest file has."""


def fields(data: memoryview, *, is_cut: bool = False) -> Iterator[tuple[int, int, Any]]:
    """Each field of a message: its number, its wire type, and its value (an int, or its bytes).

    Args:
        data: The message.
        is_cut: It is only the beginning of one: of the last bytes give what is there.

    Raises:
        BrokenMessageError: While iterating: it is cut short, or breaks the format.
    """
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not 1 <= number <= _MAX_FIELD:
            raise BrokenMessageError("a field has an impossible number")
        if wire == VARINT:
            value, at = varint(data, at)
            yield number, wire, value
            continue
        if wire == BYTES:
            size, at = varint(data, at)
        elif wire in _FIXED:
            size = _FIXED[wire]
        else:
            raise BrokenMessageError("a field is of a type that is out of use")
        if size > len(data) - at and not is_cut:
            raise BrokenMessageError("a field reaches beyond the end")
        yield number, wire, data[at : at + size]
        at += size


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """The unsigned number of up to 64 bits at an offset, and the offset behind it."""
    value = 0
    for i in range(_MOST_VARINT_BYTES):
        if at + i >= len(data):
            raise BrokenMessageError("a number is cut short")
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & (2**64 - 1), at + i + 1
    raise BrokenMessageError("a number is too long")


def signed(value: int) -> int:
    """An int64 of its varint."""
    return value - 2**64 if value >= 2**63 else value


def packed(data: memoryview) -> Iterator[int]:
    """The int64s of a packed field."""
    at = 0
    while at < len(data):
        value, at = varint(data, at)
        yield signed(value)


class Decoder:
    """Reads messages by a schema, and counts what it reads.

    Args:
        schema: The kinds of message.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._left = _MOST_FIELDS

    def decode(self, data: memoryview, kind: str, depth: int = 0) -> Message:
        """The known fields by name; those that may stand more than once as lists, also where there is none.

        Raises:
            BrokenMessageError: It is broken, nested too deeply, too long, or something stands twice.
        """
        if depth > _MOST_DEPTH:
            raise BrokenMessageError("it is nested too deeply")
        known = self._schema[kind]
        message: Message = {name: [] for name, of in known.values() if of.startswith("*") or of == "ints"}
        for number, wire, value in fields(data):
            self._count(1)
            if number not in known:
                continue
            name, of = known[number]
            if of == "ints":
                message[name] += self._ints(wire, value, name)
                continue
            one = self._value(wire, value, of.removeprefix("*"), name, depth)
            if of.startswith("*"):
                message[name].append(one)
            elif name in message:
                raise BrokenMessageError(f"its {kind} has two fields {name}")
            else:
                message[name] = one
        return message

    def _count(self, number: int) -> None:
        self._left -= number
        if self._left < 0:
            raise TooManyFieldsError(f"it has more than {_MOST_FIELDS:,} fields")

    def _ints(self, wire: int, value: Any, name: str) -> list[int]:
        if wire == VARINT:
            return [signed(value)]
        if wire != BYTES:
            raise BrokenMessageError(f"a field {name} is of another type")
        self._count(len(value))
        return list(packed(value))

    def _value(self, wire: int, value: Any, of: str, name: str, depth: int) -> Any:
        if wire not in _WIRES.get(of, (BYTES,)):
            raise BrokenMessageError(f"a field {name} is of another type")
        if of == "int":
            return signed(value)
        if of in {"float", "bytes", "numbers", "varints"}:
            return value
        if of == "text":
            try:
                return str(value, "utf-8")
            except UnicodeDecodeError as error:
                raise BrokenMessageError(f"a field {name} is no text") from error
        return self.decode(value, of, depth + 1)
