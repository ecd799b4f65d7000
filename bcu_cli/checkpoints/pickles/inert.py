"""Unpickling without side effects: nothing is imported or called, calls are only recorded.

This reads the tensors of TorchScript archives, for which torch has no safe loader, and the entries besides
the weights. It also compares the tensor sizes that a pickle claims with the file's size before memory is
allocated.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from bcu_cli.checkpoints.pickles.effects import plain_name

_FLOAT8 = ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")
_KINDS = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
    **{f"Float8_{each}Storage": (f"float8_{each}", 1) for each in _FLOAT8},
}
ITEM_BYTES = {kind: size for kind, (_, size) in _KINDS.items()} | {"UntypedStorage": 1}
KIND_DTYPES = {kind: dtype for kind, (dtype, _) in _KINDS.items()}
"""The element type of each typed storage class."""
_DTYPE_ARGUMENT = 6
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_GENERIC_MAKERS = (  # functions that make an object of a class given as their first argument
    "builtins.getattr",
    "__builtin__.getattr",
    "copyreg._reconstructor",
    "copy_reg._reconstructor",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
)
REBUILDERS = tuple(f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3"))
"""The functions of torch that make a tensor from a storage."""


@dataclass(frozen=True, eq=False)
class RecordedCall:
    """A call in a pickle, recorded but not made."""

    name: str
    args: tuple[Any, ...]

    @property
    def kind(self) -> str:
        """The name of the class of which the call would have made an object."""
        if self.name in _GENERIC_MAKERS and self.args and isinstance(self.args[0], Global):
            return self.args[0].kind
        return "numpy.generic" if self.name.endswith(".multiarray.scalar") else plain_name(self.name)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore an item that the pickle would set, such as an entry of a custom dictionary class."""

    def extend(self, items: list[Any]) -> None:
        """Ignore items that the pickle would append."""

    def append(self, item: Any) -> None:
        """Ignore an item that the pickle would append."""

    def add(self, item: Any) -> None:
        """Ignore an item that the pickle would add to a set."""


@dataclass(frozen=True, eq=False)
class Global:
    """A global by its name; calling it only records the call."""

    name: str
    calls: list[RecordedCall]

    @property
    def kind(self) -> str:
        """The Python 3 name of the global."""
        return plain_name(self.name)

    def __call__(self, *args: Any, **_: Any) -> RecordedCall:
        """Record the call; for a tensor with attributes, record the call that makes the tensor too."""
        self.calls.append(RecordedCall(self.name, args))
        made = self.calls[-1]
        if self.name == _FROM_TYPE and isinstance(args[0], Global) and isinstance(args[2], tuple):
            args[0](*args[2])
        return made


def key_text(key: Any) -> str:
    """A key of a table as a text; the name of its type if its text could be very long."""
    if isinstance(key, RecordedCall | Global):
        return key.kind
    return str(key) if type(key) in (str, int, float, bool, type(None)) else type(key).__name__


@dataclass(frozen=True)
class StorageRef:
    """A reference to the storage of tensors: ``numel`` elements of a kind such as ``FloatStorage``."""

    kind: str
    key: str
    numel: int

    @property
    def nbytes(self) -> int:
        """Size of the storage, in bytes."""
        return self.numel * ITEM_BYTES[self.kind]


class ScriptRecord:
    """An object in a TorchScript archive: the name of its class, and its attributes."""

    qualname = ""
    attributes: dict[str, Any]
    arguments: tuple[Any, ...]

    def __new__(cls, *arguments: Any) -> Self:
        """Create the record of an object; an enumeration member has its value as the only argument."""
        record = super().__new__(cls)
        record.attributes = {}
        record.arguments = arguments
        return record

    def __setstate__(self, state: Any) -> None:
        """Keep the attributes; a state of another form (of a quantized layer) is ignored."""
        self.attributes = state if isinstance(state, dict) else {}


@dataclass(frozen=True)
class Contents:
    """The contents of a pickle: its value, and all its tensors and storages, even those not in the value."""

    value: Any
    tensors: list[RecordedCall]
    storages: dict[str, StorageRef]


def open_inertly(data: bytes) -> Contents:
    """Unpickle without importing or calling anything.

    Inspect the pickle first (:func:`bcu_cli.checkpoints.pickles.inspection.inspect_pickle`): that limits the
    work of unpickling.

    Raises:
        Exception: The pickle is malformed; the exception can be of any class.
    """
    unpickler = InertUnpickler(data)
    value = unpickler.load()
    tensors = [call for call in unpickler.calls if call.name in REBUILDERS]
    return Contents(value, tensors, unpickler.storages)


def size_fault(contents: Contents, limit: int) -> str | None:
    """What is wrong with the tensor sizes that a pickle claims; None if they fit.

    Args:
        contents: The contents of the pickle.
        limit: Size of the file, in bytes.
    """
    total = sum(storage.nbytes for storage in contents.storages.values())
    if total > limit:
        return f"its tensors claim {total:,} bytes and the file has {limit:,}"
    for tensor in contents.tensors:
        fault = tensor_fault(tensor.args, limit)
        if fault:
            return fault
    return None


def tensor_fault(args: tuple[Any, ...], limit: int) -> str | None:
    """What is wrong with the sizes that a tensor claims; None if they fit.

    Args:
        args: Storage, offset, shape and stride, in elements.
        limit: Size of the file, in bytes.
    """
    if len(args) < 4 or not isinstance(args[0], StorageRef):
        return "a tensor has no storage"
    storage, offset, shape, stride = args[:4]
    item_bytes = ITEM_BYTES[storage.kind]
    if len(args) > _DTYPE_ARGUMENT and isinstance(args[_DTYPE_ARGUMENT], Global):  # of _rebuild_tensor_v3
        item_bytes = _bytes_of_dtype(args[_DTYPE_ARGUMENT])
    numbers = [offset, *shape, *stride] if isinstance(shape, tuple) and isinstance(stride, tuple) else [-1]
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers) or len(shape) > 64:
        return "the shape of a tensor is not made of whole numbers"
    last = offset + sum((count - 1) * step for count, step in zip(shape, stride, strict=False))
    if len(shape) != len(stride) or (0 not in shape and (last + 1) * item_bytes > storage.nbytes):
        return f"a tensor of shape {list(shape)} reaches beyond its storage of {storage.nbytes:,} bytes"
    if math.prod(shape) * item_bytes > limit:
        return f"a tensor of shape {list(shape)} is larger than the file"
    return None


def _bytes_of_dtype(dtype: Global) -> int:
    """The size of an element in bytes, from the digits in the dtype's name; 16 if there are none."""
    if dtype.name == "torch.bool":
        return 1
    bits = re.search(r"[a-z](\d+)", dtype.name)
    return int(bits[1]) // 8 if bits else 16


class InertUnpickler(pickle._Unpickler):  # the version in pure Python, which broken bytes cannot crash
    """An unpickler that records what a pickle would import, create or call.

    Args:
        data: The pickle.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    """The handler of each opcode."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.stack: list[Any]
        self.calls: list[RecordedCall] = []
        self.storages: dict[str, StorageRef] = {}
        self._records: dict[str, type[ScriptRecord]] = {}

    def load_reduce(self) -> None:
        """Record a call; TorchScript writes the single argument of an enumeration without a tuple."""
        arguments = self.stack.pop()
        function = self.stack[-1]
        self.stack[-1] = function(*arguments) if isinstance(arguments, tuple) else function(arguments)

    def load_build(self) -> None:
        """Set the attributes of a TorchScript object; other objects get none."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], ScriptRecord):
            self.stack[-1].__setstate__(state)

    def load_newobj(self) -> None:
        """Record the creation of an object."""
        arguments = self.stack.pop()
        self.stack.append(self.stack.pop()(*arguments))

    def load_newobj_ex(self) -> None:
        """Record the creation of an object with keyword arguments."""
        keywords, arguments = self.stack.pop(), self.stack.pop()
        self.stack.append(self.stack.pop()(*arguments, **keywords))

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a global; only ``OrderedDict`` is the real class."""
        qualname = f"{module}.{name}"
        if qualname == "collections.OrderedDict":
            return OrderedDict
        if qualname.startswith("__torch__."):
            if qualname not in self._records:
                self._records[qualname] = type("ScriptRecord", (ScriptRecord,), {"qualname": qualname})
            return self._records[qualname]
        return Global(qualname, self.calls)

    def persistent_load(self, pid: Any) -> Any:
        """The reference that stands in for a storage."""
        return self.storage_ref(pid)

    def storage_ref(self, pid: Any) -> StorageRef:
        """The storage that a persistent id describes.

        Raises:
            pickle.UnpicklingError: It is not the id of a storage in the form that torch writes.
        """
        tag, kind, key, _, numel, *part = pid
        if part not in ([], [None]):
            raise pickle.UnpicklingError("it has a part of a storage, as torch before 0.4 wrote")
        kind = kind.name.rpartition(".")[2] if isinstance(kind, Global) else ""
        if tag != "storage" or kind not in ITEM_BYTES or not isinstance(key, str):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        if type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError("it has a storage of impossible size")
        storage = StorageRef(kind, key, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"it gives storage {key} two sizes or kinds")
        return storage
