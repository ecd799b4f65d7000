"""Unpickling of ``torch.save`` files: tensors and plain values are built, all other calls only recorded.

Only the few constructors in this module are called, and nothing is imported for a pickle.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bcu_cli.checkpoints.pickles.effects import DTYPES
from bcu_cli.checkpoints.pickles.inert import KIND_DTYPES, REBUILDERS, Global, InertUnpickler, StorageRef

if TYPE_CHECKING:
    from collections.abc import Callable

_FLAGS = {"conj", "neg"}  # mark tensors whose values are stored as conjugates or negatives
_V3 = "torch._utils._rebuild_tensor_v3"


@dataclass(frozen=True)
class Storage:
    """A storage in memory, and its reference in the pickle, which gives the element type."""

    ref: StorageRef
    memory: torch.UntypedStorage


@dataclass(frozen=True, eq=False)
class _Maker(Global):
    """A global whose calls are made by a function from the table ``_MAKERS``."""

    make: Callable[..., Any]

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Build the value."""
        return self.make(*args, **keywords)


def open_values(data: bytes, memory: Callable[[StorageRef], torch.UntypedStorage]) -> Any:
    """Unpickle data that has passed :func:`bcu_cli.checkpoints.pickles.inspection.inspect_pickle`.

    The sizes must have been checked too (:func:`~bcu_cli.checkpoints.pickles.inert.size_fault`). An object
    of a class becomes a :class:`~bcu_cli.checkpoints.pickles.inert.RecordedCall`. A class or function that is
    only named becomes a :class:`~bcu_cli.checkpoints.pickles.inert.Global`.

    Args:
        data: The pickle.
        memory: Reads the memory of a storage; called once for each storage.

    Raises:
        Exception: The pickle is malformed; the exception can be of any class.
    """
    return _ValueUnpickler(data, memory).load()


def _tensor(storage: Storage, offset: int, shape: Any, stride: Any, *rest: Any) -> torch.Tensor:
    """A tensor; ``rest`` is (requires_grad, hooks, flags), of which only the flags are used."""
    dtype = getattr(torch, KIND_DTYPES[storage.ref.kind])
    return _rebuilt(storage, dtype, (offset, tuple(shape), tuple(stride)), rest[2:])


def _tensor_v3(storage: Storage, offset: int, shape: Any, stride: Any, *rest: Any) -> torch.Tensor:
    """A tensor; ``rest`` is (requires_grad, hooks, dtype, flags)."""
    return _rebuilt(storage, rest[2], (offset, tuple(shape), tuple(stride)), rest[3:])


def _rebuilt(
    storage: Storage, dtype: torch.dtype, view: tuple[Any, ...], rest: tuple[Any, ...]
) -> torch.Tensor:
    tensor = torch.empty(0, dtype=dtype).set_(storage.memory, *view)
    flags = rest[0] if rest else None
    if flags:
        if not isinstance(flags, dict) or not set(flags) <= _FLAGS:
            raise ValueError("a tensor has flags that torch does not write")
        torch._C._set_tensor_metadata(tensor, flags)  # type: ignore[attr-defined]  # as torch.load does
    return tensor


def _parameter_tensor(data: Any = None, *_: Any) -> torch.Tensor:
    """The tensor of a parameter."""
    if data is None:
        return torch.empty(0)
    if not isinstance(data, torch.Tensor):
        raise TypeError("a parameter is no tensor")
    return data


def _from_type(function: Any, _: Any, args: Any, *__: Any) -> Any:
    """A tensor, without the subclass and the attributes that the pickle gives it."""
    return function(*args)


def _encode(text: str, encoding: str) -> bytes:
    """The bytes of a text; old protocols store bytes as text."""
    if encoding != "latin1":
        raise ValueError("bytes are not stored as torch stores them")
    return text.encode("latin1")


_MAKERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(REBUILDERS, _tensor),
    _V3: _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter_tensor,
    "torch._utils._rebuild_parameter_with_state": _parameter_tensor,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.nn.parameter.Parameter": _parameter_tensor,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "collections.OrderedDict": OrderedDict,
    "collections.Counter": Counter,
    "_codecs.encode": _encode,
    **{f"{module}.set": set for module in ("builtins", "__builtin__")},
    **{f"{module}.complex": complex for module in ("builtins", "__builtin__")},
}


class _ValueUnpickler(InertUnpickler):
    def __init__(self, data: bytes, memory: Callable[[StorageRef], torch.UntypedStorage]) -> None:
        super().__init__(data)
        self._memory = memory
        self._built: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a global, which builds a value or only records calls."""
        qualname = f"{module}.{name}"
        if qualname in DTYPES:
            return getattr(torch, name)
        if qualname in _MAKERS:
            return _Maker(qualname, self.calls, _MAKERS[qualname])
        return Global(qualname, self.calls)

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a persistent id refers to."""
        ref = self.storage_ref(pid)
        if ref.key not in self._built:
            self._built[ref.key] = Storage(ref, self._memory(ref))
        return self._built[ref.key]
