"""Grammars of the texts in a ``torch.export`` archive that torch turns into Python code.

torch pastes names into source code that it executes, evaluates expressions with sympy, and looks up targets
by name. These functions work as allow-lists: a text passes only if it has one of the few forms that torch
writes.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,999}")
_HIDDEN = re.compile(r"__\w*__")
_PLAIN = re.compile(r"[^\"'\\\x00-\x1f\x7f-\x9f\u2028\u2029]*")
_TEXT = re.compile(r"[^\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]*")
_DEVICE = re.compile(r"[a-z]{1,20}(:\d{1,4})?")
_SYMBOL = re.compile(r"(s|u|d|i|ps|zf|zuf)\d{1,6}")
"""The names that torch gives to the symbolic sizes of a graph."""
_WORDS = frozenset({"True", "False", "true", "false", "oo", "int_oo", "inf", "math"})
_FUNCTION_NAMES = """
    Add Mul Pow Max Min Abs Mod PythonMod FloorDiv CleanDiv CeilDiv IntTrueDiv FloatTrueDiv TrueDiv
    ModularIndexing Where CeilToInt FloorToInt TruncToInt TruncToFloat RoundToInt RoundDecimal ToFloat LShift
    RShift PowByNatural FloatPow Identity IsNonOverlappingAndDenseIndicator And Or Not Xor Eq Ne Lt Le Gt Ge
    Equality Unequality LessThan GreaterThan StrictLessThan StrictGreaterThan Rational Piecewise
    ExprCondPair Tuple floor ceiling
    BooleanTrue BooleanFalse Infinity NegativeInfinity
"""
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
"""Arithmetic functions, by the names that sympy and torch's extension of it write."""
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift", "RShift"})
_GUARD_FUNCTIONS = frozenset({"max", "min", "abs", "int", "float", "IsNonOverlappingAndDenseIndicator"})
_MATH_FUNCTIONS = frozenset({"floor", "ceil", "trunc", "isnan", "sqrt", "pow"})
_SIZE_METHODS = frozenset({"size", "stride", "storage_offset", "dim", "numel"})
_OPERATORS = (
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.USub, ast.UAdd),
    *(ast.Not, ast.And, ast.Or, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Load),
)
_EXPRESSION_CHARACTERS = re.compile(r"[A-Za-z0-9_ ()+*/%,.='<>!-]{1,10000}")
_GUARD_CHARACTERS = re.compile(r"[^\"\\#\x00-\x1f\x7f-\x9f\u2028\u2029]{1,10000}")
_FLOAT = re.compile(r"-?\d{1,60}(\.\d{0,60})?(e[+-]?\d{1,3})?")
_MOST_POWER, _MOST_NUMBER = 64, 2**64
_MOST_SPEC_NODES = 100_000
_SEQUENCES = (
    *("builtins.tuple", "builtins.list", "torch.Size"),
    "torch.fx.immutable_collections.immutable_list",
)

_CONTROL_FLOW = """
    cond while_loop map_impl map scan associative_scan wrap_with_set_grad_enabled wrap_with_autocast
    auto_functionalized auto_functionalized_v2 flex_attention out_dtype strict_mode hints_wrapper
    invoke_subgraph wrap tag_activation_checkpoint
"""
_HIGHER_ORDER = frozenset(_CONTROL_FLOW.split())
"""Control flow operators, whose graphs are in the archive and are checked too."""
_FUNC_NAMES = """
    _add_batch_dim _remove_batch_dim _vmap_increment_nesting _vmap_decrement_nesting lazy_load_decompositions
    _make_dual _unpack_dual _jvp_increment_nesting _jvp_decrement_nesting _unwrap_for_grad _enter_dual_level
    _exit_dual_level
"""
_FUNC_TRANSFORMS = frozenset(_FUNC_NAMES.split())
"""Operators that ``torch.vmap`` and the derivatives of ``torch.func`` put into a graph."""
_SIZE_ARITHMETIC = re.compile(
    r"math\.(ceil|floor|trunc|sqrt|pow|log2?|exp|a?(sin|cos|tan)h?)|"
    r"torch\.(_?sym_(sqrt|float|int|max|min|not|ite|sum)|_sym_a?(sin|cos|tan)h?|_sym_(exp|log2))|"
    r"_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_|xor|"
    r"lshift|rshift|trunc)"
)
_OPERATOR = re.compile(r"torch\.ops\.([A-Za-z]\w{0,99})\.(\w{1,199})\.([A-Za-z]\w{0,99})", re.ASCII)
_SIGNS = re.compile(r"__(and|or|xor|iand|ior|ixor|lshift|rshift|ilshift|irshift)__")


def is_name(text: str) -> bool:
    """Whether a text is an ASCII identifier, and neither a keyword nor a dunder name (``__x__``)."""
    return bool(_NAME.fullmatch(text)) and not keyword.iskeyword(text) and not _HIDDEN.fullmatch(text)


def is_argument(text: str) -> bool:
    """Whether a text can name an operator's argument; such a name may be empty or a keyword."""
    return not text or (bool(_NAME.fullmatch(text)) and not _HIDDEN.fullmatch(text))


def is_path(text: str) -> bool:
    """Whether a text is a path to a module or tensor, which torch splits at dots and puts between quotes."""
    return text.isascii() and is_plain(text) and not any(_HIDDEN.fullmatch(part) for part in text.split("."))


def is_plain(text: str) -> bool:
    """Whether a text can stand between quotes: it has no quote, backslash or control character."""
    return _PLAIN.fullmatch(text) is not None


def is_text(text: str) -> bool:
    """Whether a text has no control characters but tabs and line breaks."""
    return _TEXT.fullmatch(text) is not None


def is_device(text: str) -> bool:
    """Whether a text names a device, such as ``cuda:0``."""
    return _DEVICE.fullmatch(text) is not None


def is_sources(text: str) -> bool:
    """Whether a text lists functions as ``name,target;...`` and no target is outside torch."""
    if not is_plain(text):
        return False
    targets = [item.partition(",")[2] for item in text.split(";")]
    looked_up = [one for one in targets if one.startswith(("torch", "_operator", "math", "#"))]
    return all(
        re.fullmatch(r"\w+(\.\w+)*", one, re.ASCII) and not re.search(r"(^|\.)__", one) for one in looked_up
    )


def operator_of(target: str) -> str:
    """The operator of a target: ``torch.ops.aten.conv2d.default`` gives ``aten::conv2d``.

    A target of another form is returned unchanged.
    """
    match = _OPERATOR.fullmatch(target)
    if match is None or (match[2].startswith("__") and not _SIGNS.fullmatch(match[2])):
        return target
    return f"{match[1]}::{match[2]}"


def is_size_arithmetic(operator: str) -> bool:
    """Whether a target only computes sizes, or is control flow whose graphs are checked too."""
    if operator.startswith("torch.ops.higher_order."):
        return operator.removeprefix("torch.ops.higher_order.") in _HIGHER_ORDER
    if operator.startswith("torch._functorch.predispatch."):
        return operator.removeprefix("torch._functorch.predispatch.") in _FUNC_TRANSFORMS
    return _SIZE_ARITHMETIC.fullmatch(operator) is not None


def is_expression(text: str) -> bool:
    """Whether a text is pure size arithmetic; sympy evaluates such texts as Python code."""
    return bool(_EXPRESSION_CHARACTERS.fullmatch(text)) and _holds(text, _is_part_of_expression)


def is_guard(text: str) -> bool:
    """Whether a guard only compares sizes of the inputs; torch pastes guards into a function."""
    return bool(_GUARD_CHARACTERS.fullmatch(text)) and _holds(text, _is_part_of_guard)


def _holds(text: str, is_part: Callable[[ast.AST], bool]) -> bool:
    """Whether a text parses as one expression all of whose nodes pass ``is_part``."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    pending: list[ast.AST] = [tree.body]
    while pending:
        node = pending.pop()
        if not is_part(node):
            return False
        if isinstance(node, ast.Call) and _called(node) in {"Symbol", "Integer", "Float"}:
            continue  # a constant, checked as a whole
        pending += ast.iter_child_nodes(node)
    return True


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _is_part_of_expression(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        name = _called(node)
        if name in {"Symbol", "Integer", "Float"}:
            return _is_sympy_constant(name, node)
        exponents_fit = name not in _POWERS or all(_is_exponent(one) for one in node.args[1:])
        return name in _FUNCTIONS and not node.keywords and exponents_fit
    if isinstance(node, ast.Name):
        return bool(_SYMBOL.fullmatch(node.id)) or node.id in _WORDS - {"math"} or node.id in _FUNCTIONS
    return _is_common(node)


def _is_part_of_guard(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Attribute):
            of_math = isinstance(function.value, ast.Name) and function.value.id == "math"
            fits = function.attr in (_MATH_FUNCTIONS if of_math else _SIZE_METHODS)
        else:
            fits = _called(node) in _GUARD_FUNCTIONS
        return fits and not node.keywords
    if isinstance(node, ast.Attribute):
        return node.attr in _SIZE_METHODS | _MATH_FUNCTIONS | {"inf"}
    if isinstance(node, ast.Name):
        return node.id in _WORDS | _GUARD_FUNCTIONS | {"L"} or bool(_SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return is_plain(node.value)
    return isinstance(node, ast.Subscript) or _is_common(node)


def _is_common(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) and abs(node.value) <= _MOST_NUMBER
    if isinstance(node, ast.BinOp):
        return not isinstance(node.op, ast.Pow) or _is_exponent(node.right)
    return isinstance(node, (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Tuple, *_OPERATORS))


def _is_sympy_constant(name: str, node: ast.Call) -> bool:
    """Whether a call is of the form ``Symbol('s0', positive=True)``, ``Integer(3)`` or ``Float('0.5')``."""
    settings = {one.arg: one.value for one in node.keywords}
    if len(node.args) != 1 or not all(
        key in {"positive", "negative", "nonnegative", "integer", "real", "precision"}
        and isinstance(value, ast.Constant)
        and isinstance(value.value, int)
        and 0 <= value.value <= _MOST_POWER
        for key, value in settings.items()
    ):
        return False
    if name == "Integer":
        return _integer(node.args[0]) is not None and not settings
    value = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
    pattern = _SYMBOL if name == "Symbol" else _FLOAT
    return isinstance(value, str) and bool(pattern.fullmatch(value))


def _is_exponent(node: ast.expr) -> bool:
    """Whether an exponent keeps the power small: it is a small number or a symbolic size."""
    if isinstance(node, ast.Call) and _called(node) == "Integer" and len(node.args) == 1:
        node = node.args[0]
    value = _integer(node)
    if value is not None:
        return abs(value) <= _MOST_POWER
    return (isinstance(node, ast.Name) and bool(_SYMBOL.fullmatch(node.id))) or (
        isinstance(node, ast.Call) and _called(node) == "Symbol"
    )


def _integer(node: ast.expr) -> int | None:
    """The value of an integer literal of at most 64 bits; None for anything else."""
    sign = -1 if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else 1
    inner = node.operand if isinstance(node, ast.UnaryOp) and sign < 0 else node
    value = inner.value if isinstance(inner, ast.Constant) else None
    fits = isinstance(value, int) and not isinstance(value, bool) and value <= _MOST_NUMBER
    return sign * value if fits and isinstance(value, int) else None


def spec_fault(text: str, *, of_inputs: bool) -> str | None:
    """What is wrong with a description of inputs or outputs; None if all its containers are known.

    Args:
        text: The description: JSON of ``[1, {"type": ..., "context": ..., "children_spec": [...]}]``.
        of_inputs: Whether it describes inputs, whose keywords torch pastes into source code.
    """
    try:
        protocol, root = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return "is not readable"
    pending, seen = [root], 0
    while pending:
        node = pending.pop()
        seen += 1
        if seen > _MOST_SPEC_NODES:
            return "is too large"
        if not isinstance(node, dict) or set(node) != {"type", "context", "children_spec"}:
            return "is not as torch writes it"
        children = node["children_spec"]
        if not isinstance(children, list) or not _is_container(node["type"], node["context"], len(children)):
            return f"asks for {str(node['type'])[:60]!r} with {str(node['context'])[:60]!r}"
        pending += children
    if protocol != 1 or (of_inputs and not _are_names(_keywords(root))):
        return "has a keyword that is no name"
    return None


def _is_container(kind: Any, context: Any, children: int) -> bool:
    """Whether a node of a description is a leaf or a known container of Python, torch or transformers."""
    if kind is None:
        return context is None and not children
    if kind in _SEQUENCES:
        return bool(context == "null")
    if kind == "collections.deque":
        most = _loaded(context)
        return most is None or (isinstance(most, int) and 0 <= most <= _MOST_SPEC_NODES)
    if kind == "collections.namedtuple":
        return isinstance(context, str) and is_path(context)
    if kind == "collections.defaultdict":
        return (
            isinstance(context, dict)
            and set(context) == {"default_factory_module", "default_factory_name", "dict_context"}
            and context["default_factory_module"] == "builtins"
            and context["default_factory_name"] in {"list", "dict", "set", "tuple", "int", "float", "str"}
            and _are_keys(context["dict_context"], children)
        )
    is_table = kind in {
        "builtins.dict",
        "collections.OrderedDict",
        "torch.fx.immutable_collections.immutable_dict",
    }
    is_output = isinstance(kind, str) and re.fullmatch(r"transformers\.modeling_outputs\.[A-Z]\w{0,99}", kind)
    return bool(is_table or is_output) and _are_keys(_loaded(context), children)


def _are_keys(keys: Any, number: int) -> bool:
    return (
        isinstance(keys, list)
        and len(keys) == number
        and all(is_plain(key) if isinstance(key, str) else isinstance(key, int) for key in keys)
    )


def _loaded(context: Any) -> Any:
    """The value of a context that is a JSON text; a context that is no valid JSON is returned unchanged."""
    try:
        return json.loads(context) if isinstance(context, str) else context
    except (ValueError, RecursionError):
        return context


def _keywords(root: Any) -> list[Any]:
    """The keyword names in a description of (positional arguments, keyword arguments)."""
    children = root["children_spec"]
    if root["type"] != "builtins.tuple" or len(children) != 2 or children[1]["type"] != "builtins.dict":
        return []
    keys = _loaded(children[1]["context"])
    return keys if isinstance(keys, list) else []


def _are_names(keys: list[Any]) -> bool:
    return all(isinstance(key, str) and is_name(key) for key in keys)
