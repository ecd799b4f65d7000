"""Abstract interpretation of a pickle: its program is followed, and none of its instructions is executed.

A pickle is a program for a small stack machine. Python has two readers for it and torch a third; they differ
where bytes are not as Python writes them. So only one canonical form is accepted here. Stack and memo hold
strings, names of globals and sizes of containers. This reveals global names that are assembled on the
stack, and the work that opening the pickle would take.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_OPCODES = 1_000_000  # enough for about 20,000 tensors
MAX_WORK = 4_000_000  # elements copied, hashed or compared when the pickle is opened: less than a second
_MAX_KEY_DEPTH = 100  # hashing a deeper tuple can overflow the C stack
_HEAVIEST = 2**40  # larger weights are capped to it
_KEPT_ITEMS = 16  # longest tuple whose items are kept, to check the arguments of calls
_BYTES_A_UNIT = 16  # bytes that cost as much to copy as one element
_MAX_DIGITS = 1000
_UNDERFLOW = "it takes more from its stack than is there"


@dataclass(frozen=True)
class GlobalUse:
    """A global that a pickle imports.

    Attributes:
        name: Full name; None if only running the pickle would reveal it.
        opcode: Name of the opcode that imports it.
        offset: Offset of the opcode in the pickle, in bytes.
        module: The module that is imported, which is the first part of ``name``.
    """

    name: str | None
    opcode: str
    offset: int
    module: str = ""


@dataclass(frozen=True)
class Argument:
    """An argument of a call, reduced to what decides the effect of the call.

    Attributes:
        kind: ``plain`` for numbers, bytes, booleans and None, ``table`` for dictionaries, ``items`` for other
            containers, ``global`` for globals, ``result`` for results of calls.
        text: The text itself, or the name of the global or of the called global.
    """

    kind: Literal["text", "plain", "table", "items", "global", "result"]
    text: str | None = None


@dataclass(frozen=True)
class Call:
    """A call that a pickle makes.

    Attributes:
        name: Name of the global that is called.
        only_new: Whether only ``__new__`` of a class is called, and not ``__init__``.
        arguments: The arguments; None if there are too many to keep.
    """

    name: str
    only_new: bool
    arguments: tuple[Argument, ...] | None


@dataclass(frozen=True)
class Program:
    """The effects of a whole pickle.

    Attributes:
        uses: The globals that it imports, in order.
        end: Offset of the first byte after its last opcode.
        faults: Descriptions of operations on torch's functions and classes that torch never writes.
        calls: The distinct calls that it makes, without those that rebuild tensors.
        holds_module: Whether it sets the state of an object to that of an ``nn.Module``.
    """

    uses: list[GlobalUse]
    end: int
    faults: list[str]
    calls: list[Call]
    holds_module: bool


class BrokenPickleError(Exception):
    """The bytes are not a complete pickle in canonical form.

    Attributes:
        uses: The globals that it imports before the error.
        calls: The calls that it makes before the error.
        ambiguous: Whether readers could disagree about it; no library writes such pickles.
        heavy: Whether it exceeds a limit of size or work, though it may be well-formed.
        cut: Whether the error is that the given bytes end too early.
    """

    def __init__(
        self, message: str, *, ambiguous: bool = False, heavy: bool = False, cut: bool = False
    ) -> None:
        super().__init__(message)
        self.uses: tuple[GlobalUse, ...] = ()
        self.calls: tuple[Call, ...] = ()
        self.ambiguous = ambiguous
        self.heavy = heavy
        self.cut = cut


class _Item:
    """A value other than a string, reduced to the cost of copying and hashing it.

    Attributes:
        weight: Number of elements, including nested ones.
        collidable: Number of values in it whose hashes an attacker could make equal.
        depth: Depth of nesting.
    """

    __slots__ = ("collidable", "depth", "weight")

    def __init__(self, weight: int = 1, collidable: int = 0, depth: int = 0) -> None:
        self.weight = weight
        self.collidable = collidable
        self.depth = depth


class _Global(_Item):
    __slots__ = ("name",)

    def __init__(self, name: str | None) -> None:
        super().__init__(collidable=1)
        self.name = name


class _CallResult(_Item):
    """The result of a call of the global ``name``."""

    __slots__ = ("name",)

    def __init__(self, name: str | None, arguments: _Value) -> None:
        super().__init__(_weight(arguments), 1, _depth(arguments))
        self.name = name


class _Tuple(_Item):
    __slots__ = ("count", "items")

    def __init__(self, items: list[_Value]) -> None:
        self.weight, self.collidable, self.depth = 1, 1, 0
        _add_items(self, items)
        self.count = len(items)
        self.items = tuple(items) if len(items) <= _KEPT_ITEMS and self.depth <= _MAX_KEY_DEPTH else ()


class _Table(_Item):
    """A dictionary; ``is_module`` says whether it holds the attributes of an ``nn.Module``."""

    __slots__ = ("is_module",)

    def __init__(self) -> None:
        super().__init__()
        self.is_module = False


_Value: TypeAlias = str | _Item
_PLAIN: Final = _Item()  # None, a boolean, a short number, or bytes
_LARGE: Final = _Item(collidable=1)  # numbers of more than 56 bits can be chosen to have equal hashes

_Named: TypeAlias = tuple[str, str]
_Argument: TypeAlias = "Callable[[bytes, int], tuple[Any, int]]"

_NAME = re.compile(r"[^\W\d][\w-]*(\.[^\W\d][\w-]*|\.<\w+>)*|<\w+>")
_COUNT = re.compile(rb"0|[1-9][0-9]{0,17}")
_INTEGER = re.compile(rb"00|01|-?(0|[1-9][0-9]{0,999})")
_FLOAT = re.compile(rb"-?([0-9]{1,400}(\.[0-9]{1,400})?(e[+-]?[0-9]{1,3})?|inf)|nan")
_LIKE_A_NUMBER = re.compile(  # what at least one reader accepts as a number
    rb"\s*[+-]?([0-9._][0-9a-fox_.+-]*l?|inf|infinity|nan|l)?\s*(\0.*)?", re.IGNORECASE | re.DOTALL
)
_QUOTED = re.compile(rb"'[^'\\]*'|\"[^\"\\]*\"")


def follow(data: bytes) -> Program:
    """Follow the program of the first pickle in ``data``.

    Raises:
        BrokenPickleError: ``data`` does not begin with a complete pickle in canonical form, or opening it
            would take too much work.
    """
    machine = _Machine(data)
    try:
        end = machine.run()
    except BrokenPickleError as error:
        error.uses = tuple(machine.uses)
        error.calls = tuple(machine.calls)
        raise
    return Program(machine.uses, end, machine.faults, list(machine.calls), machine.holds_module)


def _weight(value: _Value) -> int:
    return 1 if isinstance(value, str) else value.weight


def _collidable(value: _Value) -> int:
    return 0 if isinstance(value, str) else value.collidable


def _depth(value: _Value) -> int:
    return 0 if isinstance(value, str) else value.depth


def _add_items(container: _Item, items: list[_Value]) -> None:
    """Add the weights of items to a container."""
    for item in items:
        if isinstance(item, str):
            container.weight += 1
            continue
        container.weight += item.weight
        container.collidable += item.collidable
        if item.depth >= container.depth:
            container.depth = item.depth + 1
    if container.weight > _HEAVIEST or container.collidable > _HEAVIEST:
        container.weight = container.collidable = _HEAVIEST


# Readers of opcode arguments: they take the bytes and the start, and return the value and the end.


def _cut() -> BrokenPickleError:
    return BrokenPickleError("it has no end", cut=True)


def _ambiguous(what: str) -> BrokenPickleError:
    return BrokenPickleError(what, ambiguous=True)


def _number(form: str) -> _Argument:
    size = struct.calcsize(form)

    def read(data: bytes, at: int) -> tuple[int, int]:
        if at + size > len(data):
            raise _cut()
        return struct.unpack_from(form, data, at)[0], at + size

    return read


def _counted(form: str, *, as_text: bool = False) -> _Argument:
    """A reader of bytes or a text with their length before them."""
    length = _number(form)

    def read(data: bytes, at: int) -> tuple[Any, int]:
        count, start = length(data, at)
        if count < 0:
            raise BrokenPickleError("it holds something of negative length")
        if start + count > len(data):
            raise _cut()
        value = data[start : start + count]
        if not as_text:
            return value, start + count
        try:
            return value.decode("utf-8", "surrogatepass"), start + count
        except UnicodeDecodeError as error:
            raise BrokenPickleError("a text in it is no UTF-8") from error

    return read


def _line(data: bytes, at: int) -> tuple[bytes, int]:
    end = data.find(b"\n", at)
    if end < 0:
        raise _cut()
    return data[at:end], end + 1


def _matching(form: re.Pattern[bytes], most: int, suffix: bytes = b"") -> _Argument:
    """A reader of a line in one form; pickle readers disagree about other ways to write numbers."""

    def read(data: bytes, at: int) -> tuple[bytes, int]:
        line, end = _line(data, at)
        if len(line) <= most and line.endswith(suffix) and form.fullmatch(line.removesuffix(suffix)):
            return line, end
        if len(line) > most or _LIKE_A_NUMBER.fullmatch(line):
            raise _ambiguous("has a number that is not written as Python writes it")
        raise BrokenPickleError("a number in it is none")

    return read


def _index(data: bytes, at: int) -> tuple[int, int]:
    line, end = _matching(_COUNT, 18)(data, at)
    return int(line), end


def _quoted(data: bytes, at: int) -> tuple[_Value, int]:
    """Read a quoted line; the text is known only if it needs no escapes, which readers treat differently."""
    line, end = _line(data, at)
    bare = line.strip()
    if len(bare) < 2 or bare[:1] not in (b"'", b'"') or bare[:1] != bare[-1:]:
        raise BrokenPickleError("a text in it has no quotes")
    return (line[1:-1].decode() if line.isascii() and _QUOTED.fullmatch(line) else _PLAIN), end


def _raw_line(data: bytes, at: int) -> tuple[_Value, int]:
    line, end = _line(data, at)
    return (line.decode() if line.isascii() and b"\\" not in line else _PLAIN), end


def _names(data: bytes, at: int) -> tuple[_Named | None, int]:
    """Read the module and the name of a global from two lines; None if they are no valid names."""
    module, middle = _line(data, at)
    name, end = _line(data, middle)
    try:
        return _named(module.decode(), name.decode()), end
    except UnicodeDecodeError as error:
        raise BrokenPickleError("a text in it is no UTF-8") from error


def _named(module: str, name: str) -> _Named | None:
    return (module, name) if _NAME.fullmatch(module) and _NAME.fullmatch(name) else None


def _argument(value: _Value) -> Argument:
    if isinstance(value, str):
        return Argument("text", value)
    if value is _PLAIN or value is _LARGE:
        return Argument("plain")
    if isinstance(value, _Table):
        return Argument("table")
    if isinstance(value, _Global):
        return Argument("global", value.name)
    return Argument("result", value.name) if isinstance(value, _CallResult) else Argument("items")


def _arguments(value: _Value) -> tuple[Argument, ...] | None:
    if not isinstance(value, _Tuple) or len(value.items) != value.count:
        return None
    return tuple(map(_argument, value.items))


class _Machine:
    """The pickle machine, with the abstract values on its stack and in its memo."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.stack: list[_Value] = []
        self.marks: list[int] = []
        self.fence = 0  # height of the stack at the last mark
        self.memo: dict[int, _Value] = {}
        self.uses: list[GlobalUse] = []
        self.faults: list[str] = []
        self.calls: dict[Call, None] = {}
        self.holds_module = False
        self.position = 0
        self.count = 0
        self._protocol = 0
        self._frame_end = 0
        self._work = 0
        self._collidable_keys = 0

    def run(self) -> int:
        """Follow all opcodes, and return the offset after the last one."""
        data, length, table = self.data, len(self.data), _OPCODES
        at = 0
        while at < length:
            entry = table.get(data[at])
            if entry is None:
                raise BrokenPickleError("an opcode is broken")
            self.position = at
            read, act = entry
            value, at = read(data, at + 1) if read else (None, at + 1)
            if self._frame_end:
                self._leave_frame(at)
            if act(self, value):
                return at
            self.count += 1
            if self.count > MAX_OPCODES:
                raise BrokenPickleError(f"it has more than {MAX_OPCODES:,} opcodes", heavy=True)
        raise _cut()

    def _leave_frame(self, end: int) -> None:
        if end > self._frame_end:
            raise _ambiguous("has a frame that ends within an opcode")
        if end == self._frame_end:
            self._frame_end = 0

    # The stack.

    def push(self, value: _Value) -> None:
        self.stack.append(value)

    def top(self) -> _Value:
        if len(self.stack) <= self.fence:
            raise BrokenPickleError(_UNDERFLOW)
        return self.stack[-1]

    def pop(self) -> _Value:
        self.top()
        return self.stack.pop()

    def mark(self, _: Any) -> None:
        self.fence = len(self.stack)
        self.marks.append(self.fence)

    def pop_mark(self) -> list[_Value]:
        if not self.marks:
            raise BrokenPickleError("it goes back to a mark without a mark")
        start = self.marks.pop()
        self.fence = self.marks[-1] if self.marks else 0
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def discard(self, _: Any) -> None:
        if self.marks and len(self.stack) == self.fence:
            self.pop_mark()
        else:
            self.pop()

    def stop(self, _: Any) -> bool:
        self.pop()
        if self._frame_end:
            raise _ambiguous("has a frame that goes on behind its end")
        return True

    # The memo.

    def put(self, index: int) -> None:
        if index > self.count:  # a real reader would allocate all entries below the index
            raise BrokenPickleError(f"it skips to entry {index} of its memo", heavy=True)
        self.memo[index] = self.top()

    def refuse_number(self, size: int) -> None:
        raise BrokenPickleError(f"it holds a number of {size:,} bytes", heavy=True)

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise BrokenPickleError(f"it asks for entry {index} of its memo, which is empty")
        self.stack.append(self.memo[index])

    # Protocol and frames.

    def protocol(self, value: int) -> None:
        if self.position:
            raise _ambiguous("changes its protocol on the way")
        if value > 5:  # the latest protocol
            raise _ambiguous(f"is of protocol {value}, which does not exist")
        self._protocol = value

    def frame(self, size: int) -> None:
        end = self.position + 9 + size
        if self._frame_end or not size or self._protocol < 4 or end > len(self.data):
            raise _ambiguous("has a frame where none can be")
        self._frame_end = end

    # Containers.

    def make_tuple(self, items: list[_Value]) -> None:
        self.stack.append(_Tuple(items))

    def make_short_tuple(self, size: int) -> None:
        if len(self.stack) - size < self.fence:
            raise BrokenPickleError(_UNDERFLOW)
        items = self.stack[-size:]
        del self.stack[-size:]
        self.stack.append(_Tuple(items))

    def extend(self, items: list[_Value], *, as_keys: bool = False) -> None:
        """Put items into the container on top of the stack."""
        container = self.top()
        if isinstance(container, _Global):
            self.faults.append("it changes what it imports")
        for item in items if as_keys else ():
            self.hash(item)
        if isinstance(container, _Item):
            _add_items(container, items)

    def set_items(self, items: list[_Value]) -> None:
        if len(items) % 2:
            raise BrokenPickleError("it holds a key without a value")
        for key in items[::2]:
            self.hash(key)
        table = self.top()
        if isinstance(table, _Table) and _MODULE_KEY in items[::2]:
            table.is_module = True
        self.extend(items)

    def make_container(self, items: list[_Value], *, every: int = 0) -> None:
        """Push a new container with items.

        Args:
            items: The items.
            every: 2 for a dictionary (keys alternate with values), 1 for a set, 0 for a list.
        """
        self.stack.append(_Table() if every == 2 else _Item())
        self.set_items(items) if every == 2 else self.extend(items, as_keys=bool(every))

    def hash(self, key: _Value) -> None:
        """Charge the work of hashing a key and comparing it to keys that collide with it."""
        if key is _PLAIN or isinstance(key, str):
            return
        if key.depth > _MAX_KEY_DEPTH:
            raise BrokenPickleError("it uses a deeply nested value as a key", heavy=True)
        self._collidable_keys += 1
        self.charge(key.weight * self._collidable_keys)

    def charge(self, work: int) -> None:
        self._work += work
        if self._work > MAX_WORK:
            raise BrokenPickleError("opening it would take too much work", heavy=True)

    # Globals and calls.

    def record_global(self, named: _Named | None, opcode: str) -> _Global:
        """Record that a global is imported."""
        if named and f"{named[0]}.".startswith("__builtin__.") and self._protocol >= 3:
            named = None  # protocols up to 2 mean builtins; later ones mean any module of that name
        name = ".".join(named) if named else None
        self.uses.append(GlobalUse(name, opcode, self.position, named[0] if named else ""))
        return _Global(name)

    def push_global(self, named: _Named | None) -> None:
        self.stack.append(self.record_global(named, "GLOBAL"))

    def push_stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        known = _named(module, name) if isinstance(module, str) and isinstance(name, str) else None
        self.stack.append(self.record_global(known, "STACK_GLOBAL"))

    def push_unknown(self, opcode: str) -> None:
        """Push a value that only running the pickle would reveal."""
        self.stack.append(self.record_global(None, opcode))

    def make_instance(self, named: _Named | None) -> None:
        self.call(self.record_global(named, "INST"), _Tuple(self.pop_mark()))

    def push_storage(self, reference: _Value) -> None:
        """Push the storage that a reference stands for: (word, class, key, device, size, view)."""
        self.charge(_weight(reference))
        for item in reference.items[2:] if isinstance(reference, _Tuple) else ():
            if isinstance(item, _Tuple):
                self.hash(item)
        self.stack.append(_CallResult(None, _PLAIN))

    def call(self, function: _Value, arguments: _Value, *, only_new: bool = False) -> None:
        """Push the result of a call, and record a fault if torch never makes such a call."""
        self.charge(_weight(arguments))
        name = function.name if isinstance(function, _Global) else None
        if not isinstance(function, _Global):
            self.faults.append("it calls a value that it computed")
        elif fault := self._fault_of_call(name, arguments):
            self.faults.append(fault)
        if name and name not in _REBUILDERS:
            self.calls[Call(name, only_new, _arguments(arguments))] = None
        self.stack.append(_CallResult(name, arguments))

    def _fault_of_call(self, name: str | None, arguments: _Value) -> str | None:
        items = arguments.items if isinstance(arguments, _Tuple) else ()
        if name in _NEVER_CALLED:
            return f"it calls {name}"
        if name == "_codecs.encode":
            text = items[0] if items else _PLAIN
            if not isinstance(text, str) or items[1:] != ("latin1",):
                return f"it calls {name} with other than a text and latin1"
            self.charge(len(text) // _BYTES_A_UNIT)
        if name in _HASHING:
            if _depth(arguments) > _MAX_KEY_DEPTH:
                raise BrokenPickleError("it uses a deeply nested value as a key", heavy=True)
            collidable = _collidable(arguments)
            self._collidable_keys += collidable
            self.charge(collidable * _weight(arguments) if collidable > 1 else 0)
        if name == _FROM_TYPE:
            function, kind = items[:2] if len(items) == 4 else (_PLAIN, _PLAIN)
            if not isinstance(function, _Global) or function.name not in _REBUILDERS:
                return f"it calls {name} with no function that makes a tensor"
            if not isinstance(kind, _Global):
                return f"it calls {name} without a class"
        return None

    def build(self, state: _Value) -> None:
        """Set the state of the object on top of the stack."""
        target = self.top()
        self.charge(_weight(state))
        parts = state.items if isinstance(state, _Tuple) else (state,)
        self.holds_module |= any(isinstance(part, _Table) and part.is_module for part in parts)
        if isinstance(target, _Global):
            self.faults.append("it changes what it imports")
        elif isinstance(target, _CallResult) and target.name in _WITHOUT_STATE:
            is_old = target.name == _PARAMETER and isinstance(state, _Tuple) and state.count == 3
            if not is_old:  # torch before 0.4 set three flags of parameters
                self.faults.append(f"it changes the state of what {target.name} made")


_MODULE_KEY = "_modules"  # an attribute of every nn.Module, and hardly of any other class
_PARAMETER = "torch.nn.parameter.Parameter"
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_REBUILDERS = frozenset(
    f"torch._utils._rebuild_{what}"
    for what in ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state")
)
_NEVER_CALLED = frozenset({"torch.Tensor", "torch.storage.UntypedStorage", "torch.storage.TypedStorage"})
"""Classes that torch's pickles only name; a call could allocate any amount of memory."""
_HASHING = frozenset({"builtins.set", "__builtin__.set", "collections.Counter", "collections.OrderedDict"})
_WITHOUT_STATE = _REBUILDERS | _NEVER_CALLED | {_FROM_TYPE, _PARAMETER}


def _push_plain(machine: _Machine, _: Any) -> None:
    machine.stack.append(_PLAIN)


def _push_long(machine: _Machine, value: bytes) -> None:
    machine.stack.append(_PLAIN if len(value) < 8 else _LARGE)


def _push_digits(machine: _Machine, line: bytes) -> None:
    machine.stack.append(_PLAIN if len(line) < 17 else _LARGE)


def _push_bytes_as_text(machine: _Machine, value: bytes) -> None:
    machine.stack.append(value.decode() if value.isascii() else _PLAIN)


def _push_container(machine: _Machine, _: Any) -> None:
    machine.stack.append(_Item())


def _discard_to_mark(machine: _Machine, _: Any) -> None:
    machine.pop_mark()


def _call(machine: _Machine, _: Any) -> None:
    arguments = machine.pop()
    machine.call(machine.pop(), arguments)


def _call_new(machine: _Machine, _: Any) -> None:
    arguments = machine.pop()
    machine.call(machine.pop(), arguments, only_new=True)


def _call_new_with_keywords(machine: _Machine, _: Any) -> None:
    keywords, arguments = machine.pop(), machine.pop()
    machine.call(machine.pop(), _Tuple([arguments, keywords]), only_new=True)


def _call_to_mark(machine: _Machine, _: Any) -> None:
    items = machine.pop_mark()
    if not items:
        raise BrokenPickleError("it calls nothing")
    machine.call(items[0], _Tuple(items[1:]))


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


_Action: TypeAlias = "Callable[[_Machine, Any], bool | None]"

_TABLE: dict[bytes, tuple[_Argument | None, _Action]] = {
    b"\x80": (_number("B"), _Machine.protocol),
    b"\x95": (_number("<Q"), _Machine.frame),
    b".": (None, _Machine.stop),
    b"(": (None, _Machine.mark),
    b"0": (None, _Machine.discard),
    b"1": (None, _discard_to_mark),
    b"2": (None, lambda machine, _: machine.push(machine.top())),
    b"N": (None, _push_plain),
    b"\x88": (None, _push_plain),
    b"\x89": (None, _push_plain),
    b"I": (_matching(_INTEGER, _MAX_DIGITS), _push_digits),
    b"L": (_matching(_INTEGER, _MAX_DIGITS, b"L"), _push_digits),
    b"F": (_matching(_FLOAT, _MAX_DIGITS), _push_plain),
    b"J": (_number("<i"), _push_plain),
    b"K": (_number("B"), _push_plain),
    b"M": (_number("<H"), _push_plain),
    b"G": (_number(">d"), _push_plain),
    b"\x8a": (_counted("B"), _push_long),
    b"\x8b": (_number("<i"), _Machine.refuse_number),
    b"S": (_quoted, _Machine.push),
    b"V": (_raw_line, _Machine.push),
    b"T": (_counted("<i"), _push_bytes_as_text),
    b"U": (_counted("B"), _push_bytes_as_text),
    b"X": (_counted("<I", as_text=True), _Machine.push),
    b"\x8c": (_counted("B", as_text=True), _Machine.push),
    b"\x8d": (_counted("<Q", as_text=True), _Machine.push),
    b"B": (_counted("<I"), _push_plain),
    b"C": (_counted("B"), _push_plain),
    b"\x8e": (_counted("<Q"), _push_plain),
    b"\x96": (_counted("<Q"), _push_container),
    b"]": (None, _push_container),
    b"}": (None, lambda machine, _: machine.push(_Table())),
    b"\x8f": (None, _push_container),
    b")": (None, lambda machine, _: machine.make_tuple([])),
    b"t": (None, lambda machine, _: machine.make_tuple(machine.pop_mark())),
    b"\x85": (None, lambda machine, _: machine.make_short_tuple(1)),
    b"\x86": (None, lambda machine, _: machine.make_short_tuple(2)),
    b"\x87": (None, lambda machine, _: machine.make_short_tuple(3)),
    b"l": (None, lambda machine, _: machine.make_container(machine.pop_mark())),
    b"d": (None, lambda machine, _: machine.make_container(machine.pop_mark(), every=2)),
    b"\x91": (None, lambda machine, _: machine.make_container(machine.pop_mark(), every=1)),
    b"a": (None, lambda machine, _: machine.extend([machine.pop()])),
    b"e": (None, lambda machine, _: machine.extend(machine.pop_mark())),
    b"\x90": (None, lambda machine, _: machine.extend(machine.pop_mark(), as_keys=True)),
    b"s": (None, _set_item),
    b"u": (None, lambda machine, _: machine.set_items(machine.pop_mark())),
    b"p": (_index, _Machine.put),
    b"q": (_number("B"), _Machine.put),
    b"r": (_number("<I"), _Machine.put),
    b"\x94": (None, lambda machine, _: machine.put(len(machine.memo))),
    b"g": (_index, _Machine.get),
    b"h": (_number("B"), _Machine.get),
    b"j": (_number("<I"), _Machine.get),
    b"c": (_names, _Machine.push_global),
    b"\x93": (None, _Machine.push_stack_global),
    b"i": (_names, _Machine.make_instance),
    b"o": (None, _call_to_mark),
    b"R": (None, _call),
    b"\x81": (None, _call_new),
    b"\x92": (None, _call_new_with_keywords),
    b"b": (None, lambda machine, _: machine.build(machine.pop())),
    b"P": (_line, lambda machine, _: machine.push_unknown("PERSID")),
    b"Q": (None, lambda machine, _: machine.push_storage(machine.pop())),
    b"\x82": (_number("B"), lambda machine, _: machine.push_unknown("EXT1")),
    b"\x83": (_number("<H"), lambda machine, _: machine.push_unknown("EXT2")),
    b"\x84": (_number("<i"), lambda machine, _: machine.push_unknown("EXT4")),
    b"\x97": (None, lambda machine, _: machine.push_unknown("NEXT_BUFFER")),
    b"\x98": (None, lambda machine, _: machine.push(machine.pop())),
}
_OPCODES = {code[0]: entry for code, entry in _TABLE.items()}
