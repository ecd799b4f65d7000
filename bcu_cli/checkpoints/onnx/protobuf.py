"""A strict Protocol Buffers decoder in pure Python, driven by tables of known fields.

A hostile file could crash a parser in C. A lenient parser merges duplicate fields, so that two readers can
see different models. Unknown fields are skipped, as the format demands. Texts and numbers are not copied
until they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; the deprecated types 3 and 4 (groups) are refused."""
_FIXED = {FIXED64: 8, FIXED32: 4}
_WIRES = {  # type of a field: the wire types it may have; all other types are BYTES
    "int": (VARINT,),
    "float": (FIXED32,),
    "numbers": (BYTES, FIXED32, FIXED64),
    "varints": (BYTES, VARINT),
}
_MOST_FIELDS = 300_000
"""Limit of the fields of all messages in a file; a network of 1,000 operators has about 30,000."""
_MOST_DEPTH = 40
_MOST_VARINT_BYTES = 10
_MAX_FIELD = 2**29 - 1

Message: TypeAlias = dict[str, Any]
Schema: TypeAlias = Mapping[str, Mapping[int, tuple[str, str]]]
"""Maps each kind of message to its fields, and the number of each field to (name, type).

A type is ``int`` (signed), ``float``, ``text``, ``bytes``, ``ints`` (varints, one by one or packed) or a kind
of message; ``*`` before it marks a repeated field. ``numbers`` (of fixed size) and ``varints`` can be very
many, so they are not decoded: their values are bytes, or a single varint."""


class BrokenMessageError(Exception):
    """The bytes are no valid message of the schema; the text says why."""


class TooManyFieldsError(BrokenMessageError):
    """There are more fields than any legitimate file has."""


def fields(data: memoryview, *, is_cut: bool = False) -> Iterator[tuple[int, int, Any]]:
    """Iterate over the fields of a message.

    Args:
        data: The message.
        is_cut: Whether ``data`` is only the beginning of a message; the last value may then be incomplete.

    Yields:
        The number of a field, its wire type, and its value (an int, or its bytes).

    Raises:
        BrokenMessageError: The message is cut short or violates the format.
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
    """Read an unsigned number of up to 64 bits, and return it with the offset after it.

    Raises:
        BrokenMessageError: The number is cut short or too long.
    """
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
    """Convert the unsigned value of a varint to an int64."""
    return value - 2**64 if value >= 2**63 else value


def packed(data: memoryview) -> Iterator[int]:
    """Iterate over the int64 values of a packed field."""
    at = 0
    while at < len(data):
        value, at = varint(data, at)
        yield signed(value)


class Decoder:
    """Decodes messages by a schema, and limits the total number of fields.

    Args:
        schema: The known kinds of message and their fields.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._left = _MOST_FIELDS

    def decode(self, data: memoryview, kind: str, depth: int = 0) -> Message:
        """Decode the known fields of a message, by name; a repeated field is a list, which may be empty.

        Raises:
            BrokenMessageError: The message is broken, nested too deeply or too long, or it has a duplicate
                field.
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
