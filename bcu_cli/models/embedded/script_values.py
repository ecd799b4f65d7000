"""The operators of TorchScript on numbers, strings, lists and dictionaries.

Integers have 64 bits; an overflow is an error, and so is a division by zero.
"""

from __future__ import annotations

import math
import operator
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bcu_cli.models.embedded.script_limits import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcu_cli.models.embedded.script_limits import Run

    Plain = Callable[..., Any]

_INT_BOUND = 2**63
_SHOWN = 200  # characters of a value in a formatted text
_NUMBERS = (bool, int, float)


class Enumerated:
    """A member of an enumeration of the file.

    Args:
        qualname: The full name of the enumeration.
        value: The member's value.
    """

    def __init__(self, qualname: str, value: Any) -> None:
        self.qualname = qualname
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Enumerated) and (self.qualname, self.value) == (other.qualname, other.value)

    def __hash__(self) -> int:
        return hash((self.qualname, self.value))


class Uninitialized:
    """The result of ``uninitialized(T)``, which can only be assigned."""


UNINITIALIZED = Uninitialized()


def integer(value: Any) -> int:
    """Check that a value is a whole number of 64 bits.

    Raises:
        RefusedError: The value is no such number.
    """
    if not isinstance(value, int) or not -_INT_BOUND <= value < _INT_BOUND:
        raise RefusedError("it computes a whole number of more than 64 bits, or takes something else for one")
    return value


def _checked(value: Any) -> Any:
    return integer(value) if isinstance(value, int) else value


def _require(fits: bool, what: str) -> None:
    if not fits:
        raise RefusedError(f"it gives {what} something that it does not take")


def alone(compute: Callable[..., Any]) -> Plain:
    """Wrap an operator that does not need the run."""

    def apply(run: Run, *args: Any, **named: Any) -> Any:
        del run
        return compute(*args, **named)

    return apply


def _arithmetic(name: str, compute: Callable[[Any, Any], Any]) -> Plain:
    def apply(run: Run, a: Any, b: Any) -> Any:  # noqa: ARG001 - all operators take the run
        _require(isinstance(a, _NUMBERS) and isinstance(b, _NUMBERS), name)
        return _checked(compute(a, b))

    return apply


def _comparison(name: str, compute: Callable[[Any, Any], bool]) -> Plain:
    def apply(run: Run, a: Any, b: Any) -> bool:  # noqa: ARG001
        numbers = isinstance(a, _NUMBERS) and isinstance(b, _NUMBERS)
        _require(numbers or (isinstance(a, str) and isinstance(b, str)), name)
        return compute(a, b)

    return apply


def _function(name: str, compute: Callable[[Any], Any]) -> Plain:
    def apply(run: Run, a: Any) -> Any:  # noqa: ARG001
        _require(isinstance(a, _NUMBERS), name)
        return _checked(compute(a))

    return apply


def _logical(name: str, compute: Callable[[Any, Any], Any]) -> Plain:
    def apply(run: Run, a: Any, b: Any) -> Any:  # noqa: ARG001
        _require(isinstance(a, int) and isinstance(b, int), name)
        return compute(a, b)

    return apply


def _add(run: Run, a: Any, b: Any) -> Any:
    for kind in (list, str):
        if isinstance(a, kind) and isinstance(b, kind):
            run.spend_on(len(a) + len(b))
            return operator.add(a, b)
    _require(isinstance(a, _NUMBERS) and isinstance(b, _NUMBERS), "add")
    return _checked(a + b)


def _mul(run: Run, a: Any, b: Any) -> Any:
    if isinstance(a, list) and isinstance(b, int):
        run.spend_on(max(len(a) * b, 0))
        return a * b
    _require(isinstance(a, _NUMBERS) and isinstance(b, _NUMBERS), "mul")
    return _checked(a * b)


def _power(a: Any, b: Any) -> float:
    result = math.pow(a, b)  # a float even for two whole numbers
    _require(isinstance(result, float), "pow")
    return result


def _extreme(name: str, choose: Callable[..., Any]) -> Plain:
    def apply(run: Run, a: Any, b: Any = None) -> Any:
        values = a if b is None and isinstance(a, list) else [a, b]
        run.spend_on(len(values))
        _require(all(isinstance(value, _NUMBERS) for value in values), name)
        return choose(values)

    return apply


def _same(run: Run, a: Any, b: Any) -> bool:  # noqa: ARG001
    if a is None or b is None or isinstance(a, Tensor | list | dict):
        return a is b
    return type(a) is type(b) and bool(a == b)


def _equal(run: Run, a: Any, b: Any) -> bool:
    for value in (a, b):
        if isinstance(value, list | str):
            run.spend_on(len(value))
    _require(not any(isinstance(value, Tensor | Uninitialized) for value in (a, b)), "eq")
    return bool(a == b)


def _contains(run: Run, container: Any, item: Any) -> bool:
    _require(isinstance(container, list | dict | str) and not isinstance(item, Tensor), "__contains__")
    run.spend_on(len(container))
    return item in container


def _key(key: Any) -> Any:
    _require(isinstance(key, bool | int | float | str), "a dictionary")
    return key


def get_item(run: Run, container: Any, key: Any) -> Any:  # noqa: ARG001
    """The element of a list, tuple, string or dictionary.

    Raises:
        RefusedError: The container is none of these, or has no such element.
    """
    if isinstance(container, dict):
        if _key(key) not in container:
            raise RefusedError(f"it asks a dictionary for {str(key)[:_SHOWN]!r}, which it does not have")
        return container[key]
    _require(isinstance(container, list | tuple | str) and isinstance(key, int), "an index")
    if not -len(container) <= key < len(container):
        raise RefusedError(f"it asks for element {key} of {len(container)}")
    return container[key]


def _set_item(run: Run, container: Any, key: Any, value: Any) -> Any:
    get = container if isinstance(container, dict) else None
    if get is not None:
        get[_key(key)] = value
    else:
        get_item(run, container, key)
        _require(isinstance(container, list), "_set_item")
        container[key] = value
    return container


def _slice(run: Run, values: Any, start: Any = None, end: Any = None, step: int = 1) -> Any:
    _require(isinstance(values, list | str | tuple) and step > 0, "slice")
    run.spend_on(len(values))
    return values[start:end:step]


def _length(run: Run, value: Any) -> int:  # noqa: ARG001
    _require(isinstance(value, list | tuple | str | dict | Tensor), "len")
    return len(value)


def _list_method(name: str, apply: Callable[..., Any]) -> Plain:
    def method(run: Run, values: Any, *args: Any, **named: Any) -> Any:
        _require(isinstance(values, list), name)
        run.spend_on(len(values) if name != "append" else 0)
        result = apply(values, *args, **named)
        run.spend_on(len(result) if isinstance(result, list) else 0)
        return result

    return method


def _extend(values: list[Any], more: Any) -> None:
    _require(isinstance(more, list), "extend")
    values.extend(more)


def _index(values: list[Any], item: Any) -> int:
    _require(not isinstance(item, Tensor) and item in values, "index")
    return values.index(item)


def _dict_method(name: str, apply: Callable[..., Any]) -> Plain:
    def method(run: Run, table: Any, *args: Any) -> Any:
        _require(isinstance(table, dict), name)
        run.spend_on(len(table))
        return apply(table, *args)

    return method


def _update(table: dict[Any, Any], other: Any) -> None:
    _require(isinstance(other, dict), "update")
    table.update(other)


def _pop(run: Run, values: Any, key: Any = -1, *default: Any) -> Any:
    if not isinstance(values, dict) or not default:
        get_item(run, values, key)
    _require(isinstance(values, list | dict), "pop")
    return values.pop(key, *default)


def _copy(run: Run, values: Any) -> Any:
    _require(isinstance(values, list | dict), "copy")
    run.spend_on(len(values))
    return values.copy()


def to_int(run: Run, value: Any) -> int:  # noqa: ARG001
    """Compute ``int(x)`` of a number, a string, or a tensor of one element."""
    _require(isinstance(value, bool | int | float | str | Tensor), "int")
    if isinstance(value, str):
        _require(re.fullmatch(r"[+-]?[0-9]{1,20}", value) is not None, "int")
    return integer(int(_item(value)))


def to_float(run: Run, value: Any) -> float:  # noqa: ARG001
    """Compute ``float(x)`` of a number, a string, or a tensor of one element."""
    _require(isinstance(value, bool | int | float | str | Tensor), "float")
    if isinstance(value, str):
        _require(len(value) < _SHOWN, "float")
    return float(_item(value))


def to_bool(run: Run, value: Any) -> bool:  # noqa: ARG001
    """Compute ``bool(x)`` of a number, or a tensor of one element."""
    _require(isinstance(value, bool | int | float | Tensor), "bool")
    return bool(_item(value))


def _item(value: Any) -> Any:
    """The number in a tensor of one element; other values are returned unchanged."""
    if isinstance(value, Tensor):
        _require(value.numel() == 1 and not value.is_complex(), "item")
        return value.item()
    return value


def _to_string(run: Run, value: Any) -> str:
    _require(not isinstance(value, Uninitialized), "str")
    if isinstance(value, list | tuple | dict):
        return f"<{type(value).__name__} of {len(value)}>"
    if isinstance(value, str):
        run.spend_on(len(value))
        return value
    return "<tensor>" if isinstance(value, Tensor) else str(value)[:_SHOWN]


def _format(run: Run, text: Any, *values: Any) -> str:
    _require(isinstance(text, str) and text.count("{}") <= len(values), "format")
    parts = text.split("{}")
    shown = [_to_string(run, value) for value in values[: len(parts) - 1]]
    run.spend_on(len(text) + sum(map(len, shown)))
    return "".join(part + filled for part, filled in zip(parts, [*shown, ""], strict=True))


def _percent_format(run: Run, text: Any, *values: Any) -> str:
    _require(isinstance(text, str), "percentFormat")
    if len(values) == 1 and isinstance(values[0], tuple):
        values = values[0]
    parts = re.split(r"%[a-zA-Z]", text)  # no widths: TorchScript has none
    _require(len(parts) == len(values) + 1, "percentFormat")
    shown = [_to_string(run, value) for value in values]
    run.spend_on(len(text) + sum(map(len, shown)))
    return "".join(part + filled for part, filled in zip(parts, [*shown, ""], strict=True))


def _join(run: Run, text: Any, parts: Any) -> str:
    _require(isinstance(text, str) and isinstance(parts, list), "join")
    _require(all(isinstance(part, str) for part in parts), "join")
    run.spend_on(len(text) * len(parts) + sum(map(len, parts)))
    return str(text.join(parts))


def _string_method(name: str, apply: Callable[..., Any]) -> Plain:
    def method(run: Run, *texts: Any) -> Any:
        _require(all(isinstance(text, str) for text in texts), name)
        run.spend_on(sum(map(len, texts)))
        return apply(*texts)

    return method


def _raise(run: Run, message: Any = "", *_: Any) -> None:
    raise RefusedError(f"it stops itself: {' '.join(_to_string(run, message).split())[:_SHOWN]}")


def _range_length(run: Run, low: Any, high: Any, step: Any) -> int:  # noqa: ARG001
    _require(all(isinstance(value, int) for value in (low, high, step)) and step != 0, "range")
    return len(range(low, high, step))


def _range_list(run: Run, count: Any) -> list[int]:
    run.spend_on(max(integer(count), 0))
    return list(range(count))


def _sum(run: Run, values: Any) -> Any:
    _require(isinstance(values, list) and all(isinstance(value, _NUMBERS) for value in values), "sum")
    run.spend_on(len(values))
    return _checked(sum(values))


def _all_of(name: str, compute: Callable[[Any], bool]) -> Plain:
    def apply(run: Run, values: Any) -> bool:
        _require(isinstance(values, list) and all(isinstance(value, _NUMBERS) for value in values), name)
        run.spend_on(len(values))
        return compute(values)

    return apply


def _to_list(run: Run, value: Any) -> Any:
    if isinstance(value, Tensor):
        _require(value.is_floating_point() or not value.is_complex(), "tolist")
        run.spend_on(value.numel())
        return value.tolist()
    _require(isinstance(value, list | str | tuple), "list")
    run.spend_on(len(value))
    return list(value)


def _to_dict(run: Run, *values: Any) -> dict[Any, Any]:
    _require(len(values) <= 1, "dict")
    table = values[0] if values else {}
    _require(isinstance(table, dict), "dict")
    run.spend_on(len(table))
    return dict(table)


def _named(make: Callable[[str, Any], Plain], **computed: Any) -> dict[str, Plain]:
    """Operators of one kind by their full names."""
    return {f"aten::{name}": make(name, compute) for name, compute in computed.items()}


PLAIN: dict[str, Plain] = {
    **_named(
        _logical,
        __and__=operator.and_,
        __or__=operator.or_,
        __xor__=operator.xor,
        bitwise_and=operator.and_,
        bitwise_or=operator.or_,
    ),
    **_named(
        _function,
        abs=abs,
        ceil=math.ceil,
        cos=math.cos,
        exp=math.exp,
        floor=math.floor,
        log=math.log,
        neg=operator.neg,
        round=lambda value: float(round(value)),
        sin=math.sin,
        sqrt=math.sqrt,
        tan=math.tan,
        trunc=math.trunc,
    ),
    **_named(
        _arithmetic,
        div=operator.truediv,
        floordiv=operator.floordiv,
        pow=_power,
        remainder=operator.mod,
        sub=operator.sub,
    ),
    **_named(_comparison, ge=operator.ge, gt=operator.gt, le=operator.le, lt=operator.lt),
    **_named(_string_method, endswith=str.endswith, lower=str.lower, startswith=str.startswith),
    **_named(
        _list_method,
        append=lambda values, item: values.append(item),
        extend=_extend,
        index=_index,
        insert=lambda values, place, item: values.insert(integer(place), item),
        reverse=lambda values: values.reverse(),
        sort=lambda values, reverse=False: values.sort(reverse=bool(reverse)),
        sorted=sorted,
    ),
    **_named(
        _dict_method,
        get=lambda table, key, default=None: table.get(_key(key), default),
        items=lambda table: list(table.items()),
        keys=list,
        update=_update,
        values=lambda table: list(table.values()),
    ),
    **_named(_all_of, all=all, any=any),
    "aten::__contains__": _contains,
    "aten::__derive_index": alone(
        lambda index, start, step: integer(integer(start) + integer(index) * integer(step))
    ),
    "aten::__getitem__": get_item,
    "aten::__is__": _same,
    "aten::__isnot__": lambda run, a, b: not _same(run, a, b),
    "aten::__not__": lambda run, value: not to_bool(run, value),
    "aten::__range_length": _range_length,
    "aten::_set_item": _set_item,
    "aten::add": _add,
    "aten::Bool": to_bool,
    "aten::clear": alone(lambda values: _dict_or_list(values).clear()),
    "aten::copy": _copy,
    "aten::dict": _to_dict,
    "aten::eq": _equal,
    "aten::Float": to_float,
    "aten::FloatImplicit": to_float,
    "aten::format": _format,
    "aten::Int": to_int,
    "aten::IntImplicit": to_int,
    "aten::is_autocast_enabled": lambda run: torch.is_autocast_enabled(run.device.type),
    "aten::is_grad_enabled": alone(torch.is_grad_enabled),
    "aten::item": alone(_item),
    "aten::join": _join,
    "aten::len": _length,
    "aten::list": _to_list,
    "aten::mul": _mul,
    "aten::ne": lambda run, a, b: not _equal(run, a, b),
    "aten::percentFormat": _percent_format,
    "aten::pop": _pop,
    "aten::ScalarImplicit": alone(_item),
    "aten::slice": _slice,
    "aten::str": _to_string,
    "aten::sum": _sum,
    "aten::tolist": _to_list,
    "aten::warn": alone(lambda *_, **__: None),  # warnings of a file are not shown
    "prim::abs": _function("abs", abs),
    "prim::divmod": _arithmetic("divmod", divmod),
    "prim::max": _extreme("max", max),
    "prim::min": _extreme("min", min),
    "prim::RaiseException": _raise,
    "prim::rangelist": _range_list,
    "prim::tolist": _to_list,
    "prim::TupleConstruct": alone(lambda *values: tuple(values)),
    "prim::unchecked_unwrap_optional": alone(lambda value: value),
}
"""Operators that take no tensor, or only store it; the first argument is the run."""

_TAKE_TENSORS = """
    aten::__contains__ aten::__getitem__ aten::__is__ aten::__isnot__ aten::__not__ aten::_set_item
    aten::append aten::Bool aten::clear aten::dict aten::extend aten::Float aten::FloatImplicit aten::get
    aten::format
    aten::insert aten::Int aten::IntImplicit aten::item aten::items aten::join aten::keys aten::len aten::list
    aten::percentFormat aten::pop aten::ScalarImplicit aten::str aten::tolist aten::update aten::values
    aten::warn prim::tolist prim::TupleConstruct prim::unchecked_unwrap_optional
"""
TAKES_TENSORS = frozenset(_TAKE_TENSORS.split())
"""Operators of :data:`PLAIN` that may take a tensor; for the others, torch's operator takes it."""


def _dict_or_list(values: Any) -> Any:
    _require(isinstance(values, list | dict), "clear")
    return values
