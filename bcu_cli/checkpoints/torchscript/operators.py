"""Lists the operators that TorchScript code names, and checks them against an allow-list.

The code is text in a subset of Python's grammar, so Python's parser reads it; nothing is compiled. The form
of a call shows what it can call:

- ``torch.relu(x)`` and ``ops.prim.RaiseException(...)`` name operators (``aten::relu``, …);
- ``x.save(...)`` may be a method of a class in the archive, an operator on a tensor, or both;
- ``len(x)`` is a builtin, unless ``len`` is a local name, which then must stand for code in the archive;
- everything else (a computed callee, ``torch`` itself as a value, ``with``, …) is listed under a name in
  angle brackets, which is on no allow-list.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_ATEN = """
    __and__ __contains__ __derive_index __getitem__ __is__ __isnot__ __not__ __or__ __range_length __xor__
    _adaptive_avg_pool2d _convolution _log_softmax _native_multi_head_attention _set_item _softmax
    _transformer_encoder_layer_fwd _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm abs abs_
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d add add_ addcdiv addcmul
    addmm affine_grid_generator all alpha_dropout alpha_dropout_ amax amin any append arange argmax argmin
    avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bernoulli bernoulli_ bitwise_and bitwise_not
    bitwise_or bmm Bool broadcast_tensors cat ceil celu channel_shuffle chunk clamp clamp_ clamp_max
    clamp_max_ clamp_min clamp_min_ clear clone concat constant_pad_nd contiguous conv1d conv2d conv3d
    conv_transpose2d copy copy_ cos cosine_similarity cumsum detach device diagonal dict dim div div_
    dropout dropout_ einsum elu elu_ empty empty_like endswith eq erf erf_ exp exp_ expand expand_as extend
    eye feature_dropout feature_dropout_ fill_ flatten flip Float FloatImplicit floor floor_ floor_divide
    floordiv format full full_like gather ge gelu gelu_ get glu grid_sampler group_norm gt hardshrink
    hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh hardtanh_ huber_loss im2col index index_put
    index_put_ index_select insert instance_norm Int IntImplicit is_autocast_enabled is_floating_point
    is_grad_enabled isinf isnan item items join keys layer_norm le leaky_relu leaky_relu_ len lerp
    linalg_norm linalg_vector_norm linear linspace list log log1p log2 log_sigmoid log_softmax logical_and
    logical_not logical_or logsumexp lower lt masked_fill masked_fill_ matmul max max_pool1d max_pool2d
    max_pool2d_with_indices max_pool3d max_unpool2d maximum mean meshgrid min minimum mish mish_ mm movedim
    mul mul_ multiply narrow ne neg neg_ new_empty new_full new_ones new_zeros nonzero norm normal normal_
    numel one_hot ones ones_like pad percentFormat permute pixel_shuffle pixel_unshuffle pop pow pow_ prelu
    prod rand rand_like randn_like reciprocal reflection_pad2d relu relu6 relu6_ relu_ remainder repeat
    repeat_interleave replication_pad2d reshape reshape_as reverse roll round rrelu rsqrt rsub
    ScalarImplicit scaled_dot_product_attention scatter scatter_ select selu selu_ sigmoid sigmoid_ sign
    silu silu_ sin size slice softmax softplus softshrink sort sorted split split_with_sizes sqrt sqrt_
    square square_ squeeze squeeze_ stack startswith std std_mean str stride sub sub_ sum sum_to_size
    swapaxes swapdims t tan tanh tanh_ tensor threshold threshold_ tile to tolist topk transpose tril tril_
    triu triu_ true_divide trunc type_as unbind unflatten unfold uniform_ unsqueeze unsqueeze_ update
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d values var var_mean view view_as warn where zero_ zeros
    zeros_like
"""
_PRIM = """
    abs annotate data device divmod dtype getattr hasattr is_cuda is_nested isinstance layout max min
    NumToTensor RaiseException range rangelist requires_grad shape tolist TupleConstruct type unchecked_cast
    unchecked_unwrap_optional Uninitialized
"""
ALLOWED = frozenset([f"aten::{name}" for name in _ATEN.split()] + [f"prim::{name}" for name in _PRIM.split()])
"""Operators that only compute tensors and numbers from their arguments, and check their arguments.

:mod:`bcu_cli.models.embedded.script_operators` has a function for each of them.
"""

BUILTINS = {
    "int": "aten::Int",
    "float": "aten::Float",
    "bool": "aten::Bool",
    "complex": "aten::Complex",
    "str": "aten::str",
    "len": "aten::len",
    "list": "aten::list",
    "dict": "aten::dict",
    "sorted": "aten::sorted",
    "round": "aten::round",
    "pow": "aten::pow",
    "uninitialized": "prim::Uninitialized",
    "print": "prim::Print",
}
"""The operators that the builtins in the code stand for."""

_ROOTS = ("torch", "ops", "__torch__")
_FILE_OPERATORS = ("aten::save", "aten::from_file")
_KNOWN_NAMESPACES = ("aten", "prim", "quantized", "torchvision")
_MARKS_OF_ODD_CODE = ("<with>", "<custom class")  # torch writes such code, but bcu does not run it
_REFUSED_NODES = {
    ast.With: "<with>",
    ast.Lambda: "<lambda>",
    ast.Import: "<import>",
    ast.ImportFrom: "<import>",
    ast.Global: "<global>",
    ast.Nonlocal: "<global>",
    ast.Delete: "<del>",
    ast.Try: "<try>",
    ast.AsyncFunctionDef: "<async>",
    ast.Await: "<async>",
    ast.Yield: "<yield>",
    ast.NamedExpr: "<:=>",
    ast.JoinedStr: "<f-string>",
}
_MAX_NESTING = 90  # Python's parser allows fewer than 100 blocks and 200 brackets
_MAX_HEIGHT = 200
_OPENING, _CLOSING = "([{", ")]}"
_NESTING = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|[(\[{)\]}]|\n *")
"""Matches strings, brackets, and the starts of lines."""
_PLAIN_TOKENS = {tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP, tokenize.NEWLINE, tokenize.NL}
_PLAIN_TOKENS |= {tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


class UnreadableCodeError(Exception):
    """The code is not in the plain subset of Python that torch writes."""


def is_pure(operators: Iterable[str]) -> bool:
    """Whether all operators are on the allow-list, so that they reach no files, processes or other code."""
    return not forbidden_operators(operators)


def forbidden_operators(operators: Iterable[str]) -> tuple[str, ...]:
    """The operators that are not on the allow-list, sorted."""
    return tuple(sorted(set(operators) - ALLOWED))


def is_dangerous(operator: str) -> bool:
    """Whether an operator is more than unknown: it reaches files or custom code, or is disguised."""
    if operator in ALLOWED or operator.startswith(_MARKS_OF_ODD_CODE):
        return False
    return operator in _FILE_OPERATORS or operator.split("::")[0] not in _KNOWN_NAMESPACES


def parse(text: str) -> ast.Module:
    """Parse one code file of an archive.

    Raises:
        UnreadableCodeError: The code does not parse, or it uses forms (comments, unusual strings, line joins)
            that torch never writes and that torch's parser may read differently from Python's.
    """
    try:
        if not text.isascii() or any(char in text for char in "\r\f\v\0") or "\\\n" in text:
            raise UnreadableCodeError("it holds unusual characters")
        _refuse_deep(text)
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            quoted = token.type == tokenize.STRING
            if token.type not in _PLAIN_TOKENS or (quoted and not _is_plain_string(token.string)):
                raise UnreadableCodeError(f"line {token.start[0]} is not written as torch writes it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(text)
        _refuse_tall(tree)
        return tree
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise UnreadableCodeError("it does not parse") from error


def list_operators(modules: Iterable[ast.Module], is_operator: Callable[[str], bool]) -> tuple[str, ...]:
    """Every operator that the code names, sorted.

    Args:
        modules: The parsed code files of the archive.
        is_operator: Whether torch has an operator with this full name (``aten::save``).
    """
    modules = list(modules)
    found: set[str] = set()
    methods = {
        part.name
        for module in modules
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
        for part in node.body
        if isinstance(part, ast.FunctionDef)
    }
    for module in modules:
        scope = _Scope(methods, is_operator, found)
        for node in ast.walk(module):
            scope.visit_anywhere(node)
            if isinstance(node, ast.FunctionDef):
                scope.visit_function(node)
        scope.visit_calls(_outside_functions(module), set())
    return tuple(sorted(found))


def _refuse_deep(text: str) -> None:
    """Refuse too deeply nested code before it reaches the parser."""
    depth = 0
    for mark in _NESTING.finditer(text):
        part = mark.group()
        if part in _OPENING:
            depth += 1
        elif part in _CLOSING:
            depth -= 1
        elif part[0] == "\n" and len(part) > 2 * _MAX_NESTING + 1:
            raise UnreadableCodeError("its blocks are nested too deeply")
        if depth > _MAX_NESTING:
            raise UnreadableCodeError("its brackets are nested too deeply")


def _refuse_tall(tree: ast.Module) -> None:
    """Refuse code whose syntax tree is too tall, since evaluation recurses once for each level."""
    level: list[ast.AST] = [tree]
    for _ in range(_MAX_HEIGHT):
        level = [part for node in level for part in ast.iter_child_nodes(node)]
        if not level:
            return
    raise UnreadableCodeError("it is nested too deeply")


def _is_plain_string(text: str) -> bool:
    return text[0] in "\"'" and not text.startswith(('"""', "'''"))


def _outside_functions(module: ast.Module) -> list[ast.AST]:
    """All nodes outside functions, where torch puts only declarations."""
    inside = {
        id(part)
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef)
        for statement in node.body
        for part in ast.walk(statement)
    }
    return [node for node in ast.walk(module) if id(node) not in inside]


def _chain(node: ast.AST) -> list[str] | None:
    """The parts of ``a.b.c``; None for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else None


class _Scope:
    """Collects the operators of one module."""

    def __init__(self, methods: set[str], is_operator: Callable[[str], bool], found: set[str]) -> None:
        self._methods = methods
        self._is_operator = is_operator
        self._found = found
        self._rooted: set[int] = set()  # ids of nodes within attribute chains that begin with a root

    def visit_anywhere(self, node: ast.AST) -> None:
        """Record forbidden syntax and attribute chains; whole chains are visited before their parts."""
        if type(node) in _REFUSED_NODES:
            self._found.add(_REFUSED_NODES[type(node)])
        if isinstance(node, ast.Attribute) and id(node) not in self._rooted:
            chain = _chain(node)
            if chain and chain[0] in _ROOTS:
                self._record_chain(chain)
                self._rooted.update(id(part) for part in ast.walk(node))
        elif isinstance(node, ast.Name) and node.id in _ROOTS and id(node) not in self._rooted:
            self._found.add(f"<{node.id} as a value>")
        elif isinstance(node, ast.arg) and node.arg in _ROOTS:
            self._found.add(f"<{node.arg} as an argument>")

    def visit_function(self, function: ast.FunctionDef) -> None:
        """Record the calls in one function."""
        nodes = [part for statement in function.body for part in ast.walk(statement)]
        if any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in nodes) or function.decorator_list:
            self._found.add("<nested or decorated function>")
        self.visit_calls(nodes, _archive_functions(function, nodes))

    def visit_calls(self, nodes: list[ast.AST], archive_functions: set[str]) -> None:
        """Record the operators that the calls among the nodes name."""
        stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        for node in nodes:
            if isinstance(node, ast.Call):
                self._record_call(node.func, stored, archive_functions)

    def _record_chain(self, chain: list[str]) -> None:
        if chain[0] == "torch":
            self._found.add("aten::" + ".".join(chain[1:]))
        elif chain[0] == "ops":
            self._found.add("::".join([chain[1], ".".join(chain[2:])]))
        elif chain[:3] == ["__torch__", "torch", "classes"]:
            self._found.add("<custom class " + ".".join(chain[3:5]) + ">")

    def _record_call(self, function: ast.expr, stored: set[str], archive_functions: set[str]) -> None:
        chain = _chain(function)
        if isinstance(function, ast.Name):
            if function.id in archive_functions:
                return
            local = function.id in stored
            known = BUILTINS.get(function.id, f"prim::{function.id}")
            self._found.add(f"<value {function.id} called>" if local else known)
        elif isinstance(function, ast.Attribute):
            if chain and chain[0] in _ROOTS:
                return  # recorded as a chain, or defined in the archive
            operator = f"aten::{function.attr}"
            if function.attr not in self._methods or self._is_operator(operator):
                self._found.add(operator)
        else:
            self._found.add("<computed call>")


def _archive_functions(function: ast.FunctionDef, nodes: list[ast.AST]) -> set[str]:
    """Local names that can only stand for functions and classes in the archive (``_0 = __torch__.f``)."""
    stores = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    own = [
        node.targets[0].id
        for node in nodes
        if isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Attribute)
        and (_chain(node.value) or [""])[0] == "__torch__"
    ]
    arguments = {argument.arg for argument in ast.walk(function) if isinstance(argument, ast.arg)}
    return {name for name in own if stores.count(name) == own.count(name)} - arguments
