"""Operators in ``bytecode.pkl``, which torch's lite interpreter runs instead of the archive's code."""

from __future__ import annotations

from typing import Any

from bcu_cli.checkpoints.pickles.inert import open_inertly

BYTECODE = "bytecode.pkl"
_KNOWN = """
    OP OPN LOAD MOVE STORE STOREN DROP DROPR LOADC JF JMP LOOP RET GET_ATTR SET_ATTR LIST_CONSTRUCT
    LIST_UNPACK TUPLE_CONSTRUCT TUPLE_SLICE DICT_CONSTRUCT NAMED_TUPLE_CONSTRUCT CREATE_OBJECT ISINSTANCE
    WARN RAISE_EXCEPTION UNCHECKED_CAST __IS__ UN_INITIALIZED __ISNOT__ FORMAT DEVICE DTYPE DIM __NOT__
    TO_LIST NUM_TO_TENSOR IS_CUDA CALL INTERFACE_CALL
"""
_INSTRUCTIONS = frozenset(_KNOWN.split())
_TABLES = ("instructions", "operators", "constants", "types", "register_size")


class UnreadableBytecodeError(Exception):
    """The bytecode is not in the form that torch writes, so the operators it calls are unknown."""


def operators_of(data: bytes) -> tuple[str, ...]:
    """Every operator and custom class that a ``bytecode.pkl`` names, sorted.

    Raises:
        UnreadableBytecodeError: The bytecode is not in the form that torch writes.
    """
    try:
        value = open_inertly(data).value
        version, *functions = value
        if type(value) is not tuple or type(version) is not int:
            raise UnreadableBytecodeError
        return tuple(sorted({name for function in functions for name in _function_operators(function)}))
    except UnreadableBytecodeError:
        raise
    except Exception as error:  # broken bytes can raise any error in the unpickler
        raise UnreadableBytecodeError from error


def _function_operators(function: Any) -> set[str]:
    name, tables, *schema = function
    if not isinstance(name, str) or not name.startswith("__torch__.") or len(schema) > 1:
        raise UnreadableBytecodeError
    if tuple(key for key, _ in tables) != _TABLES:
        raise UnreadableBytecodeError
    parts = dict(tables)
    found = {_operator(entry) for entry in parts["operators"]}
    for instruction, *_ in parts["instructions"]:
        if instruction not in _INSTRUCTIONS:
            found.add(f"<instruction {instruction}>")
    for kind in parts["types"]:
        if not isinstance(kind, str):
            raise UnreadableBytecodeError
        if "__torch__.torch.classes." in kind:
            found.add(f"<custom class {kind.split('__torch__.torch.classes.')[1]}>")
    return found


def _operator(entry: tuple[Any, ...]) -> str:
    name = entry[0]
    if not isinstance(name, str) or "::" not in name:
        raise UnreadableBytecodeError
    return name
