"""The values in a pickle of ``torch.save``: tensors and plain values are made; all else becomes a note.

Only the few constructors named here are called, all of them bcu's choice; nothing is imported for a pickle.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .effects import DTYPES
from .inert import KIND_DTYPES, REBUILDERS, Global, InertUnpickler, StorageRef

if TYPE_CHECKING:
    from collections.abc import Callable

_FLAGS = {"conj", "neg"}  # of tensors whose numbers are stored as their conjugates or negatives
_V3 = "torch._utils._rebuild_tensor_v3"


@dataclass(frozen=True)
class Storage:
    """The memory of tensors, and the type that its pickle gives it."""

    of: StorageRef
    memory: torch.UntypedStorage


@dataclass(frozen=True, eq=False)
class _Maker(Global):
    """A global whose calls are made, by a function of bcu's choice."""

    make: Callable[..., Any]

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Make the value."""
        return self.make(*args, **keywords)


def open_values(data: bytes, memory: Callable[[StorageRef], torch.UntypedStorage]) -> Any:
    """Unpickle what :func:`bcu_cli.checkpoints.pickle_inspection.look` found no fault with.

    The sizes must have been checked too (:func:`bcu_cli.checkpoints.inert.size_fault`). An object of a class
    is a :class:`~bcu_cli.checkpoints.inert.RecordedCall`, and a class or function by itself a
    :class:`~bcu_cli.checkpoints.inert.Global`.

    Args:
        data: The pickle.
        memory: Gives the memory of a storage; asked once for each.

    Raises:
        Exception: Of any kind, if the pickle is not well-formed.
    """
    return _ValueUnpickler(data, memory).load()


def _tensor(storage: Storage, offset: int, shape: Any, stride: Any, *rest: Any) -> torch.Tensor:
    """A tensor of ``rest`` = (requires_grad, hooks, flags), none of which but the flags has a use here."""
    dtype = getattr(torch, KIND_DTYPES[storage.of.kind])
    return _rebuilt(storage, dtype, (offset, tuple(shape), tuple(stride)), rest[2:])


def _tensor_v3(storage: Storage, offset: int, shape: Any, stride: Any, *rest: Any) -> torch.Tensor:
    """A tensor of ``rest`` = (requires_grad, hooks, dtype, flags)."""
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


def _of_parameter(data: Any = None, *_: Any) -> torch.Tensor:
    """The tensor of a parameter, which is what weights need of it."""
    if data is None:
        return torch.empty(0)
    if not isinstance(data, torch.Tensor):
        raise TypeError("a parameter is no tensor")
    return data


def _from_type(function: Any, _: Any, args: Any, *__: Any) -> Any:
    """A tensor without the class and the attributes of its own."""
    return function(*args)


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, which old protocols hold as a text."""
    if encoding != "latin1":
        raise ValueError("bytes are not stored as torch stores them")
    return text.encode("latin1")


_MAKERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(REBUILDERS, _tensor),
    _V3: _tensor_v3,
    "torch._utils._rebuild_parameter": _of_parameter,
    "torch._utils._rebuild_parameter_with_state": _of_parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.nn.parameter.Parameter": _of_parameter,
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
        self._made: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Take what makes a value for the place of a global, or what notes its calls."""
        qualname = f"{module}.{name}"
        if qualname in DTYPES:
            return getattr(torch, name)
        if qualname in _MAKERS:
            return _Maker(qualname, self.calls, _MAKERS[qualname])
        return Global(qualname, self.calls)

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a tensor looks at."""
        of = self.storage_ref(pid)
        if of.key not in self._made:
            self._made[of.key] = Storage(of, self._memory(of))
        return self._made[of.key]
