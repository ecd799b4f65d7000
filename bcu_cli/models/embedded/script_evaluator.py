"""Evaluates the code of a TorchScript file, a small subset of Python, statement by statement.

The code is neither compiled nor passed to torch's interpreter. Names are looked up among the variables of
the code. It can only call functions and methods of the file, and operators of
:mod:`bcu_cli.models.embedded.script_operators`.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli.checkpoints.torchscript.operators import BUILTINS
from bcu_cli.models.embedded import script_batch_norm
from bcu_cli.models.embedded.script_limits import RefusedError
from bcu_cli.models.embedded.script_operators import compute
from bcu_cli.models.embedded.script_values import (
    UNINITIALIZED,
    Enumerated,
    Uninitialized,
    get_item,
    integer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bcu_cli.checkpoints import ScriptCode
    from bcu_cli.models.embedded.script_limits import Run

_CONSTANT_NAMES = {"inf": math.inf, "nan": math.nan}


class Named(tuple[Any, ...]):
    """A named tuple of the file, whose elements can be read by name."""

    names: tuple[str, ...] = ()

    @staticmethod
    def of(names: Sequence[str], values: Sequence[Any]) -> Named:
        """A tuple of values with names."""
        made = Named(values)
        made.names = tuple(names)
        return made


@dataclass(frozen=True)
class _Reference:
    """A function or class of the file that the code refers to by name."""

    qualname: str


@dataclass(frozen=True)
class Program:
    """The code of a file with its constants.

    Args:
        code: The declarations of the code.
        constants: The constants ``CONSTANTS.c0`` and so on.
        attributes: Gives an attribute of a module of the network.
        method_of: Calls a method of a module of the network with positional and named arguments.
    """

    code: ScriptCode
    constants: list[Any]
    attributes: Callable[[nn.Module, str], Any]
    method_of: Callable[[nn.Module, str, list[Any], dict[str, Any]], Any]

    def run(self, run: Run, function: ast.FunctionDef, args: Sequence[Any], named: dict[str, Any]) -> Any:
        """Evaluate a function.

        Args:
            run: The account of the pass.
            function: The function.
            args: Positional arguments, with ``self`` first for a method.
            named: Keyword arguments.

        Raises:
            RefusedError: The code is not supported, or exceeds a limit of the pass.
        """
        run.spend()
        run.depth += 1
        if run.depth > run.limits.depth:
            raise RefusedError(f"its calls are nested more than {run.limits.depth} deep")
        try:
            frame = _Frame(self, run, _bound(self, run, function, args, named))
            result = frame.block(function.body)
        finally:
            run.depth -= 1
        return None if result is _GOES_ON else result


_GOES_ON = object()


def _bound(
    program: Program, run: Run, function: ast.FunctionDef, args: Sequence[Any], named: dict[str, Any]
) -> dict[str, Any]:
    """Bind the arguments of a call to the names of a function's parameters, with defaults."""
    declared = function.args
    if declared.vararg or declared.kwarg or declared.kwonlyargs or declared.posonlyargs:
        raise RefusedError(f"{function.name} takes arguments in a way that torch does not write")
    names = [argument.arg for argument in declared.args]
    values = dict(zip(names, args, strict=False))
    if len(args) > len(names) or named.keys() & values.keys() or named.keys() - set(names):
        raise RefusedError(f"{function.name} is given arguments that it does not take")
    values |= named
    defaults = declared.defaults
    frame = _Frame(program, run, {})
    for name, default in zip(names[len(names) - len(defaults) :], defaults, strict=True):
        if name not in values:
            values[name] = frame.value(default)
    if lacking := [name for name in names if name not in values]:
        raise RefusedError(f"{function.name} is not given {lacking[0]}")
    return values


def _chain(node: ast.expr) -> list[str]:
    """The parts of ``a.b.c``; empty for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


class _Frame:
    """The variables of one call of a function, and the evaluation of its statements and expressions."""

    def __init__(self, program: Program, run: Run, variables: dict[str, Any]) -> None:
        self._program = program
        self._run = run
        self._variables = variables

    def block(self, statements: Sequence[ast.stmt]) -> Any:
        """Evaluate statements; the value that one of them returns, or ``_GOES_ON``."""
        for statement in statements:
            kind = type(statement)
            if kind is ast.Return:
                return None if statement.value is None else self.value(statement.value)  # type: ignore[attr-defined]
            evaluate = _STATEMENTS.get(kind)
            if evaluate is None:
                raise RefusedError(f"it has a statement that bcu does not evaluate: {kind.__name__}")
            result = evaluate(self, statement)
            if result is not _GOES_ON:
                return result
        return _GOES_ON

    def value(self, node: ast.expr) -> Any:
        """The value of an expression."""
        evaluate = _EXPRESSIONS.get(type(node))
        if evaluate is None:
            raise RefusedError(f"it has an expression that bcu does not evaluate: {type(node).__name__}")
        return evaluate(self, node)

    def _assign(self, node: ast.Assign) -> Any:
        value = self.value(node.value)
        for target in node.targets:
            self._store(target, value)
        return _GOES_ON

    def _annotated(self, node: ast.AnnAssign) -> Any:
        if node.value is not None:
            self._store(node.target, self.value(node.value))
        return _GOES_ON

    def _store(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self._variables[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            if not isinstance(value, tuple | list) or len(value) != len(target.elts):
                raise RefusedError(f"it unpacks {len(target.elts)} values from something else")
            for part, one in zip(target.elts, value, strict=True):
                self._store(part, one)
        elif isinstance(target, ast.Attribute):
            self._set_attribute(self.value(target.value), target.attr, value)
        else:
            raise RefusedError("it assigns to something that is no variable")

    def _set_attribute(self, owner: Any, name: str, value: Any) -> None:
        """Set the values of a buffer; other attributes are refused, or results would depend on calls."""
        held = self._program.attributes(owner, name) if isinstance(owner, nn.Module) else None
        own = isinstance(owner, nn.Module) and name in owner._buffers
        if own and isinstance(held, Tensor) and isinstance(value, Tensor):
            if (held.shape, held.dtype) != (value.shape, value.dtype):
                raise RefusedError(f"it gives the buffer {name} another shape or type")
            with torch.no_grad():
                held.copy_(value)
            return
        raise RefusedError(f"it sets the attribute {name}, which bcu does not do")

    def _expression(self, node: ast.Expr) -> Any:
        self.value(node.value)
        return _GOES_ON

    def _pass(self, node: ast.Pass) -> Any:  # noqa: ARG002 - the shape of a statement's evaluation
        return _GOES_ON

    def _if(self, node: ast.If) -> Any:
        return self.block(node.body if self._condition(node.test) else node.orelse)

    def _while(self, node: ast.While) -> Any:
        while self._condition(node.test):
            self._run.spend()
            result = self.block(node.body)
            if result is not _GOES_ON:
                return result
        return _GOES_ON

    def _for(self, node: ast.For) -> Any:
        call = node.iter
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "range":
            raise RefusedError("it has a loop over something else than a range")
        for index in range(*(integer(self.value(bound)) for bound in call.args)):
            self._run.spend()
            self._store(node.target, index)
            result = self.block(node.body)
            if result is not _GOES_ON:
                return result
        return _GOES_ON

    def _condition(self, node: ast.expr) -> bool:
        value = self.value(node)
        if not isinstance(value, bool):
            raise RefusedError(f"it takes a {type(value).__name__} for a condition")
        return value

    def _constant(self, node: ast.Constant) -> Any:
        if isinstance(node.value, int) and not isinstance(node.value, bool):
            return integer(node.value)
        if node.value is None or isinstance(node.value, bool | float | str):
            return node.value
        raise RefusedError(f"it has a constant of type {type(node.value).__name__}")

    def _name(self, node: ast.Name) -> Any:
        if node.id in self._variables:
            return self._variables[node.id]
        if node.id in _CONSTANT_NAMES:
            return _CONSTANT_NAMES[node.id]
        raise RefusedError(f"it names {node.id}, which it never set")

    def _minus(self, node: ast.UnaryOp) -> Any:
        constant = isinstance(node.operand, ast.Constant)  # -2**63 is an integer of 64 bits, but 2**63 is not
        value = node.operand.value if constant else self.value(node.operand)  # type: ignore[attr-defined]
        if not isinstance(node.op, ast.USub) or not isinstance(value, int | float):
            raise RefusedError("it has a sign before something that is no number")
        return integer(-value) if isinstance(value, int) else -value

    def _tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self.value(part) for part in node.elts)

    def _list(self, node: ast.List) -> list[Any]:
        self._run.spend_on(len(node.elts))
        return [self.value(part) for part in node.elts]

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        made = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                raise RefusedError("it unpacks a dictionary")
            name = self.value(key)
            if not isinstance(name, bool | int | float | str):
                raise RefusedError(f"it has a {type(name).__name__} as a key")
            made[name] = self.value(value)
        return made

    def _choice(self, node: ast.IfExp) -> Any:
        return self.value(node.body if self._condition(node.test) else node.orelse)

    def _subscript(self, node: ast.Subscript) -> Any:
        values = self.value(node.value)
        if isinstance(node.slice, ast.Slice):
            bounds = (node.slice.lower, node.slice.upper)
            low, high = (None if bound is None else integer(self.value(bound)) for bound in bounds)
            if not isinstance(values, tuple | list) or node.slice.step is not None:
                raise RefusedError("it takes a slice of something that is no list")
            return values[low:high]
        return get_item(self._run, values, self.value(node.slice))

    def _attribute(self, node: ast.Attribute) -> Any:
        chain = _chain(node)
        if chain and chain[0] == "CONSTANTS" and len(chain) == 2:
            return self._file_constant(chain[1])
        if chain and chain[0] == "__torch__":
            return self._named(".".join(chain))
        return self._attribute_of(self.value(node.value), node.attr)

    def _file_constant(self, name: str) -> Any:
        number = name.removeprefix("c")
        if not number.isdigit() or int(number) >= len(self._program.constants):
            raise RefusedError(f"it names the constant {name}, which the file does not have")
        return self._program.constants[int(number)]

    def _named(self, qualname: str) -> Any:
        """A function, class or member of an enumeration of the file."""
        code = self._program.code
        owner, _, member = qualname.rpartition(".")
        if owner in code.classes and code.classes[owner].kind == "Enum":
            if member in code.classes[owner].constants:
                return Enumerated(owner, code.classes[owner].constants[member])
        elif qualname in code.functions or qualname in code.classes:
            return _Reference(qualname)
        raise RefusedError(f"it names {qualname}, which the file does not have")

    def _attribute_of(self, value: Any, name: str) -> Any:
        if isinstance(value, nn.Module):
            return self._program.attributes(value, name)
        if isinstance(value, Named) and name in value.names:
            return value[value.names.index(name)]
        if isinstance(value, Enumerated) and name == "value":
            return value.value
        raise RefusedError(f"it asks a {type(value).__name__} for its attribute {name}")

    def _call(self, node: ast.Call) -> Any:
        function = node.func
        if isinstance(function, ast.Name):
            if function.id in self._variables:
                return self._call_reference(self._variables[function.id], node)
            special = _SPECIAL_CALLS.get(function.id)
            if special is not None:
                self._run.spend()
                return special(self, node)
            return self._operator(BUILTINS.get(function.id, f"prim::{function.id}"), node)
        if not isinstance(function, ast.Attribute):
            raise RefusedError("it calls something that it computes")
        chain = _chain(function)
        if chain and chain[0] == "torch":
            return self._operator("aten::" + ".".join(chain[1:]), node)
        if chain and chain[0] == "ops" and len(chain) == 3:
            return self._operator(f"{chain[1]}::{chain[2]}", node)
        if chain and chain[0] == "__torch__":
            return self._call_reference(self._named(".".join(chain)), node)
        return self._call_method(self.value(function.value), function.attr, node)

    def _arguments(self, node: ast.Call) -> tuple[list[Any], dict[str, Any]]:
        args = [self.value(arg) for arg in node.args]
        named = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise RefusedError("it unpacks arguments")
            named[keyword.arg] = self.value(keyword.value)
        return args, named

    def _operator(self, name: str, node: ast.Call) -> Any:
        args, named = self._arguments(node)
        if name == script_batch_norm.OPERATOR:
            args = script_batch_norm.in_mode_of(self._variables.get("self"), node, args)
        return compute(self._run, name, args, named)

    def _call_method(self, owner: Any, name: str, node: ast.Call) -> Any:
        args, named = self._arguments(node)
        if isinstance(owner, nn.Module):
            return self._program.method_of(owner, name, args, named)
        return compute(self._run, f"aten::{name}", [owner, *args], named)

    def _call_reference(self, reference: Any, node: ast.Call) -> Any:
        if not isinstance(reference, _Reference):
            raise RefusedError(f"it calls a {type(reference).__name__}")
        args, named = self._arguments(node)
        code = self._program.code
        if reference.qualname in code.functions:
            return self._program.run(self._run, code.functions[reference.qualname], args, named)
        made = code.classes[reference.qualname]
        if made.kind != "NamedTuple" or named or len(args) != len(made.fields):
            raise RefusedError(f"it makes an object of {reference.qualname}, which bcu does not evaluate")
        self._run.spend()
        return Named.of(made.fields, args)

    def _get_attribute(self, node: ast.Call) -> Any:
        owner, name = self._two(node)
        if not isinstance(name, ast.Constant) or not isinstance(name.value, str):
            raise RefusedError("it computes the name of an attribute")
        return self._attribute_of(self.value(owner), name.value)

    def _has_attribute(self, node: ast.Call) -> bool:
        owner, name = self._two(node)
        if not isinstance(name, ast.Constant) or not isinstance(name.value, str):
            raise RefusedError("it computes the name of an attribute")
        try:
            self._attribute_of(self.value(owner), name.value)
        except RefusedError:
            return False
        return True

    def _cast(self, node: ast.Call) -> Any:
        """Evaluate ``annotate(T, x)`` or ``unchecked_cast(T, x)``; both check the type of the value."""
        kind, value = self._two(node)
        result = self.value(value)
        if not fits(kind, result):
            raise RefusedError(f"it takes a {type(result).__name__} for a {ast.unparse(kind)[:60]}")
        return result

    def _is_instance(self, node: ast.Call) -> bool:
        value, kind = self._two(node)
        kinds = kind.elts if isinstance(kind, ast.Tuple | ast.List) else [kind]
        result = self.value(value)
        return any(fits(one, result) for one in kinds)

    def _uninitialized(self, node: ast.Call) -> Uninitialized:  # noqa: ARG002
        return UNINITIALIZED

    def _two(self, node: ast.Call) -> tuple[ast.expr, ast.expr]:
        if len(node.args) != 2 or node.keywords:
            raise RefusedError("it calls a part of the language with other arguments than two")
        return node.args[0], node.args[1]


_STATEMENTS: dict[type[ast.stmt], Callable[[_Frame, Any], Any]] = {
    ast.Assign: _Frame._assign,
    ast.AnnAssign: _Frame._annotated,
    ast.Expr: _Frame._expression,
    ast.Pass: _Frame._pass,
    ast.If: _Frame._if,
    ast.While: _Frame._while,
    ast.For: _Frame._for,
}
_EXPRESSIONS: dict[type[ast.expr], Callable[[_Frame, Any], Any]] = {
    ast.Attribute: _Frame._attribute,
    ast.Call: _Frame._call,
    ast.Constant: _Frame._constant,
    ast.Dict: _Frame._dict,
    ast.IfExp: _Frame._choice,
    ast.List: _Frame._list,
    ast.Name: _Frame._name,
    ast.Subscript: _Frame._subscript,
    ast.Tuple: _Frame._tuple,
    ast.UnaryOp: _Frame._minus,
}
_SPECIAL_CALLS: dict[str, Callable[[_Frame, ast.Call], Any]] = {
    "annotate": _Frame._cast,
    "getattr": _Frame._get_attribute,
    "hasattr": _Frame._has_attribute,
    "isinstance": _Frame._is_instance,
    "unchecked_cast": _Frame._cast,
    "uninitialized": _Frame._uninitialized,
}
_PLAIN_TYPES: dict[str, tuple[type, ...]] = {
    "Tensor": (Tensor,),
    "int": (int,),
    "float": (float,),
    "bool": (bool,),
    "str": (str,),
    "NoneType": (type(None),),
    "None": (type(None),),
    "number": (int, float),
    "Scalar": (int, float),
    "Device": (torch.device,),
    "list": (list,),
    "tuple": (tuple,),
    "dict": (dict,),
}


def fits(kind: ast.expr, value: Any) -> bool:
    """Whether a value is of a type in the code; in lists and dictionaries, the first element is checked."""
    if isinstance(kind, ast.Constant) and kind.value is None:
        return value is None
    if isinstance(kind, ast.Name):
        if kind.id == "Any":
            return not isinstance(value, Uninitialized)
        types = _PLAIN_TYPES.get(kind.id, ())
        return isinstance(value, types) and (bool in types or not isinstance(value, bool))
    if isinstance(kind, ast.Attribute):
        named = isinstance(value, Named | Enumerated | nn.Module)
        return named and _chain(kind)[:1] == ["__torch__"]
    if not isinstance(kind, ast.Subscript) or not isinstance(kind.value, ast.Name):
        return False
    return _fits_container(kind.value.id, kind.slice, value)


def _fits_container(name: str, inner: ast.expr, value: Any) -> bool:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Optional":
        return value is None or fits(parts[0], value)
    if name == "Union":
        return any(fits(part, value) for part in parts)
    if name == "List":
        return isinstance(value, list) and (not value or fits(parts[0], value[0]))
    if name == "Dict":
        return (
            isinstance(value, dict)
            and len(parts) == 2
            and all(fits(parts[0], key) and fits(parts[1], value[key]) for key in list(value)[:1])
        )
    if name == "Tuple":
        empty = len(parts) == 1 and isinstance(parts[0], ast.Tuple) and not parts[0].elts
        parts = [] if empty else parts
        same = isinstance(value, tuple) and len(value) == len(parts)
        return same and all(map(fits, parts, value))
    return False
