"""The classes and functions that the code of a TorchScript archive declares.

The code is only parsed here. :mod:`bcu_cli.models.embedded.script` evaluates it with operators that bcu
implements.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints.torchscript.operators import UnreadableCodeError, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_CODE_BYTES = 4 * 2**20
"""Limit of the code in an archive, in bytes; the largest network of timm needs less than a tenth of it."""


@dataclass(frozen=True, kw_only=True)
class ScriptClass:
    """One class that the code declares.

    Args:
        qualname: Full name of the class, such as ``__torch__.M``.
        kind: Name of its base class, ``Module``, ``NamedTuple`` or ``Enum``; empty for a plain class.
        parameters: Names of the attributes that are parameters, in order.
        buffers: Names of the attributes that are buffers, in order.
        fields: Names of all annotated attributes, in order.
        constants: Values of the constants, or of the members of an enumeration, by name.
        methods: The methods, by name.
    """

    qualname: str
    kind: str
    parameters: list[str] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, ast.FunctionDef] = field(default_factory=dict)


@dataclass(frozen=True)
class ScriptCode:
    """The classes and functions of an archive, by their full names."""

    classes: dict[str, ScriptClass]
    functions: dict[str, ast.FunctionDef]


def parse_all(texts: Mapping[str, bytes]) -> dict[str, ast.Module]:
    """Parse the code files of an archive.

    Args:
        texts: Contents of the files, by the names of their modules.

    Raises:
        UnreadableCodeError: A file is not in the form that torch writes, or the code is too long.
    """
    if sum(map(len, texts.values())) > MAX_CODE_BYTES:
        raise UnreadableCodeError(f"it is longer than {MAX_CODE_BYTES:,} bytes")
    try:
        return {module: parse(text.decode("ascii")) for module, text in texts.items()}
    except UnicodeDecodeError as error:
        raise UnreadableCodeError("it holds unusual characters") from error


def declared(modules: Mapping[str, ast.Module]) -> ScriptCode:
    """The classes and functions that parsed code declares."""
    code = ScriptCode({}, {})
    for module, tree in modules.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                code.functions[f"{module}.{node.name}"] = node
            elif isinstance(node, ast.ClassDef):
                made = _class(f"{module}.{node.name}", node)
                code.classes[made.qualname] = made
    return code


def literal(node: ast.expr) -> Any:
    """The value of a literal; None if the expression is no literal."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _class(qualname: str, node: ast.ClassDef) -> ScriptClass:
    bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
    made = ScriptClass(qualname=qualname, kind=bases[0] if len(bases) == 1 else "")
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            made.methods[part.name] = part
        elif isinstance(part, ast.AnnAssign):
            _declare(made, part.target, part.value)
        elif isinstance(part, ast.Assign) and len(part.targets) == 1:
            _assign(made, part.targets[0], part.value)
    return made


def _declare(made: ScriptClass, target: ast.expr, value: ast.expr | None) -> None:
    if isinstance(target, ast.Name):
        if value is None:
            made.fields.append(target.id)
        else:
            made.constants[target.id] = literal(value)


def _assign(made: ScriptClass, target: ast.expr, value: ast.expr) -> None:
    if not isinstance(target, ast.Name):
        return  # __annotations__["0"] = ... declares the type of a module in a list
    if target.id == "__parameters__":
        made.parameters.extend(_strings(value))
    elif target.id == "__buffers__":
        made.buffers.extend(_strings(value))
    else:
        made.constants[target.id] = literal(value)


def _strings(node: ast.expr) -> list[str]:
    elements = node.elts if isinstance(node, ast.List) else []
    return [item.value for item in elements if isinstance(item, ast.Constant) and isinstance(item.value, str)]
