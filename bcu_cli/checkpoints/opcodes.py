"""The static look at a pickle: which globals would it ask for if it were opened?

A pickle is a program for a small stack machine. The look follows the machine's stack and memo with the
effects that :mod:`pickletools` documents, without carrying out a single instruction, so that also names which
are put together from the stack or the memo are seen.
"""

from __future__ import annotations

import io
import pickletools
import sys
from _compat_pickle import IMPORT_MAPPING  # what Python 2 called its modules
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .archive import MAX_PICKLE_BYTES
from .checkpoint import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class GlobalUse:
    """A global that a pickle asks for, and where; ``name`` is None if it can only be known by running it."""

    name: str | None
    opcode: str
    offset: int


OBJECT_WORDS = "holds an object of "  # how the message of a "pickle-object" begins


class BrokenPickleError(Exception):
    """The bytes are not a complete pickle; ``uses`` is what it asks for before it breaks."""

    uses: tuple[GlobalUse, ...] = ()


_MARK = object()  # pickletools.markobject, on the stack
_OTHER = object()  # any value that is no string
_KINDS = "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble"
_TYPES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool "
    "complex64 complex128 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
)
_STORAGES = frozenset(
    [f"{module}.{kind}Storage" for module in ("torch", "torch.cuda") for kind in _KINDS.split()]
    + ["torch.storage.UntypedStorage", "torch.storage.TypedStorage"]
)
_DTYPES = frozenset(f"torch.{name}" for name in _TYPES.split())
_WEIGHTS_GLOBALS = (
    _STORAGES
    | _DTYPES
    | {
        "_codecs.encode",
        "builtins.complex",
        "builtins.set",
        "__builtin__.complex",
        "__builtin__.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
    }
)
_SCRIPT_GLOBALS = _STORAGES | {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch.device",
    "torch.jit._pickle.build_boollist",
    "torch.jit._pickle.build_doublelist",
    "torch.jit._pickle.build_intlist",
    "torch.jit._pickle.build_tensorlist",
    "torch.jit._pickle.restore_type_tag",
}
_PLAIN_OBJECTS = frozenset(  # of Python's own library, and yet no way to run a program
    {
        "argparse.Namespace",
        "builtins.object",
        "collections.defaultdict",
        "datetime.datetime",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
    }
)
_REBUILDERS = frozenset(  # functions of numpy and sklearn that make objects of what the pickle holds
    f"{module}.{name}"
    for module, name in [
        *((module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
        *((module, "scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("copy_reg", "_reconstructor"),
        ("copyreg", "_reconstructor"),
    ]
)


def globals_of(data: bytes) -> tuple[list[GlobalUse], int]:
    """The globals that the first pickle in ``data`` asks for, in order, and where that pickle ends.

    Raises:
        BrokenPickleError: There is no complete, well-formed pickle at the start of ``data``.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(io.BytesIO(data))):
            machine.step(opcode, argument, position or 0, count)
            if opcode.name == "STOP":
                return machine.uses, (position or 0) + 1
    except Exception as error:  # genops raises whatever the broken argument of an opcode led to
        broken = error if isinstance(error, BrokenPickleError) else BrokenPickleError("an opcode is broken")
        broken.uses = tuple(machine.uses)
        raise broken from error
    raise BrokenPickleError("it has no end")  # pragma: no cover - genops raises first


def look(data: bytes, *, script: bool = False, position: int = 0) -> list[Finding]:
    """What is unsafe about one pickle, by the globals that it asks for.

    Args:
        data: The pickle, with nothing after it.
        script: Judge it as part of a TorchScript archive, not as a pickle of torch.save.
        position: Where the pickle begins; added to the findings' offsets.

    Raises:
        BrokenPickleError: It is not complete or not well-formed, with nothing unsafe before that, or it is
            too large to be looked at.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise BrokenPickleError(f"it is larger than {MAX_PICKLE_BYTES:,} bytes")
    try:
        uses, end = globals_of(data)
    except BrokenPickleError as error:
        findings = _judge(error.uses, script, position)
        if not findings:
            raise
        message = "is broken behind that, where its program would already have run"
        return [*findings, Finding(rule="pickle-broken", message=message, severity="unsafe")]
    findings = _judge(uses, script, position)
    if end != len(data):
        message = f"hides {len(data) - end:,} bytes behind the end of its pickle"
        findings.append(
            Finding(rule="pickle-trailing", message=message, severity="unsafe", offset=position + end)
        )
    return findings


def _judge(uses: Iterable[GlobalUse], script: bool, position: int) -> list[Finding]:
    """One finding for each global that is not needed to hold weights."""
    findings: dict[str | None, Finding] = {}
    for use in uses:
        if use.name in findings or _is_allowed(use.name, script):
            continue
        if use.name is None:
            rule, message = "pickle-hidden-global", f"hides what it asks for ({use.opcode})"
        elif _is_class_of_user(use.name):
            rule, message = "pickle-object", OBJECT_WORDS + use.name
        else:
            rule, message = "pickle-global", f"asks for {use.name} when opened"
        offset = position + use.offset
        findings[use.name] = Finding(rule=rule, message=message, severity="unsafe", offset=offset)
    return list(findings.values())


def _is_class_of_user(name: str) -> bool:
    """Whether a global looks like a class that somebody pickled, rather than a way to run a program."""
    top, _, rest = name.partition(".")
    if top == "torch":
        return rest.startswith(
            ("nn.", "optim.", "_utils._rebuild_", "per_", "Q")
        )  # also sparse and quantized
    if name in _PLAIN_OBJECTS or name in _REBUILDERS:
        return True
    if top in sys.stdlib_module_names or top in IMPORT_MAPPING:
        return False
    return name.rpartition(".")[2].lstrip("_")[:1].isupper()  # a function of some library may run anything


def _is_allowed(name: str | None, script: bool) -> bool:
    if name is None:
        return False
    if script:
        own = name.startswith("__torch__.") and not name.startswith("__torch__.torch.classes.")
        return own or name in _SCRIPT_GLOBALS
    return name in _WEIGHTS_GLOBALS


class _Machine:
    """The pickle machine's stack and memo, with only the strings known."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.uses: list[GlobalUse] = []

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any, position: int, count: int) -> None:
        """Follow one opcode."""
        name = opcode.name
        if name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self._remember(len(self.memo) if name == "MEMOIZE" else argument, count)
            return
        if name in ("GLOBAL", "INST"):
            self._use(".".join(str(argument).split(" ", 1)), name, position)
        elif name == "STACK_GLOBAL":
            parts = self.stack[-2:]
            known = len(parts) == 2 and all(isinstance(part, str) for part in parts)
            self._use(".".join(parts) if known else None, name, position)
        elif name in ("EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER"):
            self._use(None, name, position)
        self._move(opcode, argument)

    def _use(self, name: str | None, opcode: str, position: int) -> None:
        self.uses.append(GlobalUse(name, opcode, position))

    def _remember(self, index: int, count: int) -> None:
        if not 0 <= index <= count:  # the real machine would take memory for all the entries below
            raise BrokenPickleError(f"it skips to entry {index} of its memo")
        self.memo[index] = self._top()

    def _move(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Apply the documented effect on the stack."""
        if opcode.name == "POP" and self.stack and self.stack[-1] is _MARK:
            self.stack.pop()
            return
        top = self.stack[-1] if self.stack else _OTHER
        self._pop(opcode)
        if opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise BrokenPickleError(f"it asks for entry {argument} of its memo, which is empty")
            self.stack.append(self.memo[argument])
        elif opcode.name == "DUP":
            self.stack += [top, top]
        else:
            text = argument if isinstance(argument, str) and "UNICODE" in opcode.name else _OTHER
            if "STRING" in opcode.name:
                text = argument
            after = opcode.stack_after
            self.stack += [_MARK if item is pickletools.markobject else text for item in after]

    def _pop(self, opcode: pickletools.OpcodeInfo) -> None:
        before = list(opcode.stack_before)
        if pickletools.markobject in before:
            while self.stack and self.stack[-1] is not _MARK:
                self.stack.pop()
            if not self.stack:
                raise BrokenPickleError(f"{opcode.name} without a mark")
            self.stack.pop()
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            self._top()
            self.stack.pop()

    def _top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise BrokenPickleError("it takes more from its stack than is there")
        return self.stack[-1]
