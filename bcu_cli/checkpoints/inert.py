"""Opening a pickle so that nothing happens: every object becomes a note of what it would have been.

Used for the tensors of a TorchScript archive, which has no safe loader of its own, for what stands beside
weights, and to compare the sizes that a pickle claims with the file's before memory is taken for them.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from .effects import plain_name

ITEM_BYTES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "UntypedStorage": 1,
}
KIND_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
"""The type of elements of each kind of storage but the untyped."""
_DTYPE_ARGUMENT = 6
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_MAKING_OTHERS = (  # they make an object of the class that they are given
    "builtins.getattr",
    "__builtin__.getattr",
    "copyreg._reconstructor",
    "copy_reg._reconstructor",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
)
REBUILDERS = tuple(f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3"))
"""The functions of torch that make a tensor of a storage."""


@dataclass(frozen=True, eq=False)
class RecordedCall:
    """A call that the pickle asked for and that was not made."""

    name: str
    args: tuple[Any, ...]

    @property
    def kind(self) -> str:
        """The name of the class whose object it would have been."""
        if self.name in _MAKING_OTHERS and self.args and isinstance(self.args[0], Global):
            return self.args[0].kind
        return "numpy.generic" if self.name.endswith(".multiarray.scalar") else plain_name(self.name)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore an entry that the pickle would set, as of a dictionary of a user's class."""

    def extend(self, items: list[Any]) -> None:
        """Ignore items that the pickle would append."""

    def append(self, item: Any) -> None:
        """Ignore an item that the pickle would append."""

    def add(self, item: Any) -> None:
        """Ignore an item that the pickle would put into a set."""


@dataclass(frozen=True, eq=False)
class Global:
    """A global by its name; calling it only notes the call."""

    name: str
    calls: list[RecordedCall]

    @property
    def kind(self) -> str:
        """Its own name, as Python 3 has it."""
        return plain_name(self.name)

    def __call__(self, *args: Any, **_: Any) -> RecordedCall:
        """Note the call, and that of the function that a tensor with attributes of its own is made by."""
        self.calls.append(RecordedCall(self.name, args))
        made = self.calls[-1]
        if self.name == _FROM_TYPE and isinstance(args[0], Global) and isinstance(args[2], tuple):
            args[0](*args[2])
        return made


def shown(key: Any) -> str:
    """A key of a table as a text; only its type if it is of a kind whose text can be of any length."""
    if isinstance(key, RecordedCall | Global):
        return key.kind
    return str(key) if type(key) in (str, int, float, bool, type(None)) else type(key).__name__


@dataclass(frozen=True)
class StorageRef:
    """The memory that a tensor would use: ``numel`` elements of the kind ``FloatStorage`` and so on."""

    kind: str
    key: str
    numel: int

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.numel * ITEM_BYTES[self.kind]


class ScriptRecord:
    """An object of a class of a TorchScript archive: its class's name and its attributes."""

    qualname = ""
    attributes: dict[str, Any]
    arguments: tuple[Any, ...]

    def __new__(cls, *arguments: Any) -> Self:
        """Take the place of an object; the only argument is the value of an enumeration's member."""
        record = super().__new__(cls)
        record.attributes = {}
        record.arguments = arguments
        return record

    def __setstate__(self, state: Any) -> None:
        """Keep the attributes; a state of another form (a quantized layer's) is not looked into."""
        self.attributes = state if isinstance(state, dict) else {}


@dataclass(frozen=True)
class Contents:
    """What a pickle holds: its object, and all tensors and storages, also those that the object hides."""

    value: Any
    tensors: list[RecordedCall]
    storages: dict[str, StorageRef]


def open_inertly(data: bytes) -> Contents:
    """Unpickle without importing or calling anything.

    Look at it first (:func:`bcu_cli.checkpoints.pickle_inspection.look`), which also stops tricks with the memo.

    Raises:
        Exception: Of any kind, if the pickle is not well-formed.
    """
    unpickler = InertUnpickler(data)
    value = unpickler.load()
    tensors = [call for call in unpickler.calls if call.name in REBUILDERS]
    return Contents(value, tensors, unpickler.storages)


def size_fault(contents: Contents, limit: int) -> str | None:
    """What is wrong with the sizes that the contents claim, if they are to come from ``limit`` bytes."""
    total = sum(storage.nbytes for storage in contents.storages.values())
    if total > limit:
        return f"its tensors claim {total:,} bytes and the file has {limit:,}"
    for tensor in contents.tensors:
        fault = tensor_fault(tensor.args, limit)
        if fault:
            return fault
    return None


def tensor_fault(args: tuple[Any, ...], limit: int) -> str | None:
    """What is wrong with a tensor of (storage, offset, shape, stride), to come from ``limit`` bytes."""
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
    """The size of an element, by the digits in its type's name; the largest where that does not say."""
    if dtype.name == "torch.bool":
        return 1
    bits = re.search(r"[a-z](\d+)", dtype.name)
    return int(bits[1]) // 8 if bits else 16


class InertUnpickler(pickle._Unpickler):  # Python's own in Python: broken bytes cannot crash it
    """Python's unpickler, with notes in the place of all that a pickle would import, make or call.

    Args:
        data: The pickle.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    """By the code of an instruction, what follows it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.stack: list[Any]
        self.calls: list[RecordedCall] = []
        self.storages: dict[str, StorageRef] = {}
        self._records: dict[str, type[ScriptRecord]] = {}

    def load_reduce(self) -> None:
        """Note a call; TorchScript writes the single argument of an enumeration without its tuple."""
        arguments = self.stack.pop()
        function = self.stack[-1]
        self.stack[-1] = function(*arguments) if isinstance(arguments, tuple) else function(arguments)

    def load_build(self) -> None:
        """Give attributes to an object of a TorchScript archive; nothing else gets any."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], ScriptRecord):
            self.stack[-1].__setstate__(state)

    def load_newobj(self) -> None:
        """Note the making of an object."""
        arguments = self.stack.pop()
        self.stack.append(self.stack.pop()(*arguments))

    def load_newobj_ex(self) -> None:
        """Note the making of an object with arguments by name."""
        keywords, arguments = self.stack.pop(), self.stack.pop()
        self.stack.append(self.stack.pop()(*arguments, **keywords))

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def find_class(self, module: str, name: str) -> Any:
        """Take a note's maker for the place of a global."""
        qualname = f"{module}.{name}"
        if qualname == "collections.OrderedDict":
            return OrderedDict
        if qualname.startswith("__torch__."):
            if qualname not in self._records:
                self._records[qualname] = type("ScriptRecord", (ScriptRecord,), {"qualname": qualname})
            return self._records[qualname]
        return Global(qualname, self.calls)

    def persistent_load(self, pid: Any) -> Any:
        """Take a note for the place of a storage."""
        return self.storage_ref(pid)

    def storage_ref(self, pid: Any) -> StorageRef:
        """What a persistent id says of its storage."""
        tag, kind, key, _, numel, *part = pid
        if part not in ([], [None]):
            raise pickle.UnpicklingError("it has a part of a storage, as torch wrote before 0.4")
        kind = kind.name.rpartition(".")[2] if isinstance(kind, Global) else ""
        if tag != "storage" or kind not in ITEM_BYTES or not isinstance(key, str):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        if type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError("it has a storage of impossible size")
        storage = StorageRef(kind, key, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"it gives storage {key} two sizes or kinds")
        return storage
