"""The operators that the code of a TorchScript file may call, with checks of their arguments.

Tensor operators are torch's public ones, called through their overloads, which check their arguments. Before
an operator is computed, torch's shape functions predict the size of its result. Kernels that check nothing
are either left out or computed here from public operators.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bcu_cli.checkpoints.torchscript.operators import ALLOWED
from bcu_cli.models.embedded.script_limits import RefusedError
from bcu_cli.models.embedded.script_values import PLAIN, TAKES_TENSORS, Uninitialized, alone, integer

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcu_cli.models.embedded.script_limits import Run

_DTYPES: dict[int, torch.dtype] = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    15: torch.bfloat16,
}
_NUMBER_OF_DTYPE = {dtype: number for number, dtype in _DTYPES.items()}
_LAST_MEMORY_FORMAT = 3
_CACHED = 20_000
_MAX_DIMENSIONS = 16
_AUTOCAST_TYPES = {torch.float32, torch.bfloat16, torch.float16}
_TRACED_CONVOLUTION = "aten::_convolution"
"""How a traced file calls its convolutions; autocast on a CPU does not know this operator."""


def compute(run: Run, name: str, args: list[Any], named: dict[str, Any]) -> Any:
    """Compute an operator.

    Args:
        run: The account of the pass.
        name: Full name of the operator, such as ``aten::relu``.
        args: Positional arguments.
        named: Keyword arguments.

    Raises:
        RefusedError: The operator or its arguments are not allowed, or its result is too large.
        RuntimeError: torch refuses the arguments.
    """
    run.spend()
    if any(isinstance(value, Uninitialized) for value in (*args, *named.values())):
        raise RefusedError("it computes with a value that it never set")
    plain = PLAIN.get(name)
    if plain is not None and (name in TAKES_TENSORS or not any(isinstance(arg, Tensor) for arg in args)):
        return plain(run, *args, **named)
    special = SPECIAL.get(name)
    if special is not None:
        result = special(run, *args, **named)
    elif is_tensor_operator(name):
        result = _call(run, name, args, named)
    else:
        raise RefusedError(f"it calls {name}")
    run.hold(result if isinstance(result, list | tuple) else (result,))
    return result


@cache
def overloads(name: str) -> dict[str, torch._ops.OpOverload]:
    """The overloads of a tensor operator that return tensors and have no ``out`` argument, by name."""
    packet = getattr(torch.ops.aten, name.removeprefix("aten::"))
    found = {}
    for key in packet.overloads():
        overload = getattr(packet, key)
        arguments = overload._schema.arguments
        writes = any(each.kwarg_only and each.alias_info and each.alias_info.is_write for each in arguments)
        tensors = any("Tensor" in str(each.type) for each in (*arguments, *overload._schema.returns))
        if tensors and not writes and not any("Dimname" in str(each.real_type) for each in arguments):
            found[key] = overload
    return found


def _call(run: Run, name: str, args: list[Any], named: dict[str, Any]) -> Any:
    """Choose the overload as TorchScript does, check what torch does not, and compute."""
    key = torch._C._jit_resolve_packet(name, *args, **named)  # type: ignore[attr-defined, unused-ignore]
    overload = overloads(name).get(key)
    if overload is None:
        raise RefusedError(f"it calls {name} in a way that bcu does not compute")
    args, named = _normalised(run, overload, args, named)
    if name == _TRACED_CONVOLUTION and torch.is_autocast_enabled(run.device.type):
        lower = torch.get_autocast_dtype(run.device.type)
        args = [_as_type(value, lower) for value in args]
    run.take(_sizes(run, name, overload, args, named))
    return overload(*args, **named)


@cache
def _special_arguments(overload: torch._ops.OpOverload) -> tuple[tuple[int, str, str], ...]:
    """Position, name and kind of each argument that is a data type, layout, device and so on."""
    kinds = {"ScalarType": "dtype", "Layout": "layout", "MemoryFormat": "format", "Device": "device"}
    found = []
    for place, argument in enumerate(overload._schema.arguments):
        kind = kinds.get(str(argument.real_type).removeprefix("Optional[").removesuffix("]"), "")
        if argument.name in {"dtype", "pin_memory", "generator"}:
            kind = argument.name
        if kind:
            found.append((place, argument.name, kind))
    return tuple(found)


def _normalised(
    run: Run, overload: torch._ops.OpOverload, args: list[Any], named: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Replace every device in the arguments by the network's, and refuse unusual types and layouts."""
    args, named = list(args), dict(named)
    for place, name, kind in _special_arguments(overload):
        if place < len(args):
            args[place] = _normal(run, kind, args[place])
        elif name in named:
            named[name] = _normal(run, kind, named[name])
    names = {argument.name for argument in overload._schema.arguments}
    if "device" in names and "self" not in names:  # else the result would be on the default device
        named["device"] = run.device
    return args, named


def _normal(run: Run, kind: str, value: Any) -> Any:
    if kind == "device":
        return run.device
    if value is None:
        return None
    if isinstance(value, list | dict | Tensor):
        raise RefusedError(f"it names a {kind} that is none")
    sound = {
        "dtype": value in _DTYPES or value in _NUMBER_OF_DTYPE,
        "layout": value in {0, torch.strided},
        "format": value in range(_LAST_MEMORY_FORMAT + 1),
        "pin_memory": value is False,
        "generator": False,
    }
    if not sound[kind]:
        raise RefusedError(f"it names a {kind} that bcu does not compute with")
    return _DTYPES.get(value, value) if kind == "dtype" else value


_known: dict[Any, tuple[int, ...]] = {}


def _sizes(
    run: Run, name: str, overload: torch._ops.OpOverload, args: list[Any], named: dict[str, Any]
) -> tuple[int, ...]:
    """Predict the bytes of an operator's results; under autocast those of float32, which are the most."""
    autocast = torch.is_autocast_enabled(run.device.type)
    key = (overload, autocast, _key(args), _key(sorted(named.items())))
    if key not in _known:
        if len(_known) >= _CACHED:
            _known.clear()
        bound = _BOUNDS.get(name)
        data_dependent = bound is not None and bound(args)
        _known[key] = data_dependent or _predicted(overload, args, named, autocast=autocast)
        if data_dependent:
            return _known.pop(key)
    return _known[key]


def _predicted(
    overload: torch._ops.OpOverload, args: list[Any], named: dict[str, Any], *, autocast: bool
) -> tuple[int, ...]:
    names = {key: _on_meta(value, autocast=autocast) for key, value in named.items()}
    with torch.no_grad():
        result = overload(*(_on_meta(value, autocast=autocast) for value in args), **names)
    results = result if isinstance(result, list | tuple) else (result,)
    return tuple(_bytes(one) for one in results if isinstance(one, Tensor))


def _as_type(value: Any, dtype: torch.dtype) -> Any:
    """A value whose tensors of 16 or 32 bits a number have another type; all else stays as it is."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.dtype in _AUTOCAST_TYPES else value
    return [_as_type(each, dtype) for each in value] if isinstance(value, list) else value


def _bytes(tensor: Tensor) -> int:
    if tensor.dim() > _MAX_DIMENSIONS:
        raise RefusedError(f"it computes a tensor of {tensor.dim()} dimensions")
    return tensor.numel() * tensor.element_size()


def _on_meta(value: Any, *, autocast: bool) -> Any:
    """The value without data; under autocast in one type, since the meta device refuses to mix them."""
    if isinstance(value, Tensor):
        dtype = torch.float32 if autocast and value.dtype in _AUTOCAST_TYPES else value.dtype
        return torch.empty_strided(value.size(), value.stride(), dtype=dtype, device="meta")
    if isinstance(value, list | tuple):
        return [_on_meta(item, autocast=autocast) for item in value]
    return torch.device("meta") if isinstance(value, torch.device) else value


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    return (type(value), value)


def _bound_of_nonzero(args: list[Any]) -> tuple[int, ...]:
    return (args[0].numel() * max(args[0].dim(), 1) * 8,)


def _bound_of_index(args: list[Any]) -> tuple[int, ...] | None:
    """An upper bound for masks, which select at most all values; None for other indices."""
    masked = any(isinstance(each, Tensor) and each.dtype in {torch.bool, torch.uint8} for each in args[1])
    return (args[0].numel() * args[0].element_size(),) * masked if masked else None


def _bound_of_where(args: list[Any]) -> tuple[int, ...] | None:
    return _bound_of_nonzero(args) if len(args) == 1 else None


_BOUNDS: dict[str, Callable[[list[Any]], tuple[int, ...] | None]] = {
    "aten::nonzero": _bound_of_nonzero,
    "aten::index": _bound_of_index,
    "aten::index_put": lambda args: (args[0].numel() * args[0].element_size(),),
    "aten::index_put_": lambda args: (args[0].numel() * args[0].element_size(),),
    "aten::where": _bound_of_where,
}
"""Upper bounds for results whose size depends on values in a tensor and cannot be predicted by its shape."""


def _tensor_of(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise RefusedError(f"it takes a {type(value).__name__} for a tensor")
    return value


def _number_of_dtype(run: Run, value: Any) -> int:  # noqa: ARG001 - all operators take the run
    dtype = _tensor_of(value).dtype
    if dtype not in _NUMBER_OF_DTYPE:
        raise RefusedError(f"it computes with {dtype}")
    return _NUMBER_OF_DTYPE[dtype]


def _size(run: Run, value: Any, dim: Any = None) -> Any:  # noqa: ARG001
    shape = list(_tensor_of(value).shape)
    if dim is None:
        return shape
    if not -len(shape) <= integer(dim) < len(shape):
        raise RefusedError(f"it asks for dimension {dim} of {len(shape)}")
    return shape[dim]


def _make_tensor(run: Run, value: Any, *, dtype: Any = None, **named: Any) -> Tensor:
    """Compute ``torch.tensor`` of numbers or lists of numbers, on the network's device, without gradients."""
    if named.keys() - {"device", "requires_grad"}:
        raise RefusedError("it makes a tensor with arguments that torch.tensor does not take")
    if isinstance(value, Tensor):
        value = value.item()
    stack, count = [value], 0
    while stack:
        one = stack.pop()
        count += 1
        if isinstance(one, list):
            run.spend_on(len(one))
            stack.extend(one)
        elif not isinstance(one, bool | int | float):
            raise RefusedError(f"it makes a tensor of a {type(one).__name__}")
    run.take([count * 8])
    return torch.tensor(value, dtype=_normal(run, "dtype", dtype), device=run.device)


def _from_number(run: Run, value: Any) -> Tensor:  # noqa: ARG001
    """The tensor without dimensions that ``prim::NumToTensor`` makes of a number; on the CPU, as torch's."""
    if isinstance(value, Tensor):
        return value
    kinds = {bool: torch.bool, int: torch.int64, float: torch.float64}
    if type(value) not in kinds:
        raise RefusedError(f"it takes a {type(value).__name__} for a number")
    return torch.tensor(value, dtype=kinds[type(value)])


def _weight_norm(run: Run, v: Any, g: Any, dim: Any = 0) -> Tensor:
    """Scale ``v`` to norms ``g`` along all dimensions but ``dim``.

    torch's kernel is not used, because it does not check the shape of ``g``.
    """
    v, g = _tensor_of(v), _tensor_of(g)
    dims = [d for d in range(v.dim()) if d != integer(dim)]
    shape = [size if d == dim else 1 for d, size in enumerate(v.shape)]
    if list(g.shape) != shape or not v.is_floating_point() or not dims:
        raise RefusedError("it normalises a weight by norms of another shape")
    run.take([v.numel() * v.element_size()] * 2)
    result: Tensor = v * (g / torch.linalg.vector_norm(v, dim=dims, keepdim=True))
    return result


def _attention(
    run: Run,
    query: Any,
    key: Any,
    value: Any,
    embed_dim: Any,
    num_head: Any,
    qkv_weight: Any,
    qkv_bias: Any,
    proj_weight: Any,
    proj_bias: Any,
    mask: Any = None,
    need_weights: Any = True,
    average_attn_weights: Any = True,
    mask_type: Any = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute multi-head attention ``[N, L, E]`` by torch's public function instead of the kernel."""
    query, key, value = map(_tensor_of, (query, key, value))
    if query.dim() != 3 or key.shape != value.shape or key.dim() != 3 or integer(num_head) < 1:
        raise RefusedError("it attends to tensors of other shapes than [N, L, E]")
    batch, length, width = query.shape
    run.take([batch * num_head * length * key.shape[1] * query.element_size()] * 2)
    run.take([4 * query.numel() * query.element_size()])
    result, weights = F.multi_head_attention_forward(
        query.transpose(0, 1),
        key.transpose(0, 1),
        value.transpose(0, 1),
        embed_dim,
        num_head,
        _tensor_of(qkv_weight),
        _tensor_of(qkv_bias),
        None,
        None,
        False,
        0.0,
        _tensor_of(proj_weight),
        _tensor_of(proj_bias),
        training=False,
        key_padding_mask=mask if mask_type == 1 else None,
        attn_mask=mask if mask_type in {0, None} else None,
        need_weights=bool(need_weights),
        average_attn_weights=bool(average_attn_weights),
    )
    if (mask is not None and mask_type not in {0, 1, None}) or width != embed_dim:
        raise RefusedError("it attends with a mask of a kind that bcu does not compute")
    return result.transpose(0, 1), weights


def _encoder_layer(
    run: Run,
    src: Any,
    embed_dim: Any,
    num_heads: Any,
    qkv_weight: Any,
    qkv_bias: Any,
    proj_weight: Any,
    proj_bias: Any,
    use_gelu: Any,
    norm_first: Any,
    eps: Any,
    norm_weight_1: Any,
    norm_bias_1: Any,
    norm_weight_2: Any,
    norm_bias_2: Any,
    ffn_weight_1: Any,
    ffn_bias_1: Any,
    ffn_weight_2: Any,
    ffn_bias_2: Any,
    mask: Any = None,
    mask_type: Any = None,
) -> Tensor:
    """Compute a transformer encoder layer ``[N, L, E]`` by public functions instead of the kernel."""
    weights = (qkv_weight, qkv_bias, proj_weight, proj_bias)

    def attend(x: Tensor) -> Tensor:
        return _attention(run, x, x, x, embed_dim, num_heads, *weights, mask, False, True, mask_type)[0]

    def feed(x: Tensor) -> Tensor:
        hidden = F.linear(x, _tensor_of(ffn_weight_1), _tensor_of(ffn_bias_1))
        run.take([3 * hidden.numel() * hidden.element_size()])
        hidden = F.gelu(hidden) if use_gelu else F.relu(hidden)
        return F.linear(hidden, _tensor_of(ffn_weight_2), _tensor_of(ffn_bias_2))

    def norm(x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.layer_norm(x, [integer(embed_dim)], _tensor_of(weight), _tensor_of(bias), float(eps))

    x = _tensor_of(src)
    if norm_first:
        x = x + attend(norm(x, norm_weight_1, norm_bias_1))
        return x + feed(norm(x, norm_weight_2, norm_bias_2))
    x = norm(x + attend(x), norm_weight_1, norm_bias_1)
    return norm(x + feed(x), norm_weight_2, norm_bias_2)


def _one_hot(run: Run, value: Any, num_classes: Any = -1) -> Tensor:
    value = _tensor_of(value)
    classes = integer(num_classes)
    if classes < 0 and value.numel():
        classes = int(value.max()) + 1
    run.take([value.numel() * max(classes, 0) * 8])
    result: Tensor = F.one_hot(value, integer(num_classes))
    return result


def _repeat_interleave(
    run: Run, value: Any, repeats: Any = None, dim: Any = None, *, output_size: Any = None
) -> Tensor:
    value = _tensor_of(value)
    counts = value if repeats is None else repeats
    if isinstance(counts, Tensor):
        longest = int(counts.max()) if counts.numel() and not counts.is_floating_point() else 1
    else:
        longest = integer(counts)
    run.take([value.numel() * max(longest, 0) * 8])
    if output_size is not None:
        integer(output_size)  # checked and not used: a kernel would trust it
    if repeats is None:
        return torch.repeat_interleave(value)
    result: Tensor = torch.repeat_interleave(value, repeats, dim)
    return result


def _no_memory(name: str) -> Callable[..., Any]:
    """Replace ``empty`` and the like by zeros, so that results do not depend on uninitialised memory."""

    def make(run: Run, *args: Any, **named: Any) -> Any:
        return _call(run, name, list(args), named)

    return make


SPECIAL: dict[str, Callable[..., Any]] = {
    "aten::_native_multi_head_attention": _attention,
    "aten::_transformer_encoder_layer_fwd": _encoder_layer,
    "aten::_weight_norm": _weight_norm,
    "aten::device": lambda run, *_: run.device,
    "aten::dim": alone(lambda value: _tensor_of(value).dim()),
    "aten::empty": _no_memory("aten::zeros"),
    "aten::empty_like": _no_memory("aten::zeros_like"),
    "aten::is_floating_point": alone(lambda value: _tensor_of(value).is_floating_point()),
    "aten::new_empty": _no_memory("aten::new_zeros"),
    "aten::numel": alone(lambda value: _tensor_of(value).numel()),
    "aten::one_hot": _one_hot,
    "aten::repeat_interleave": _repeat_interleave,
    "aten::size": _size,
    "aten::stride": alone(lambda value: list(_tensor_of(value).stride())),
    "aten::tensor": _make_tensor,
    "prim::data": alone(lambda value: _tensor_of(value).detach()),
    "prim::device": alone(lambda value: _tensor_of(value).device),
    "prim::dtype": _number_of_dtype,
    "prim::is_cuda": alone(lambda value: _tensor_of(value).is_cuda),
    "prim::is_nested": alone(lambda value: _tensor_of(value).is_nested),
    "prim::layout": alone(lambda value: 0 * _tensor_of(value).dim()),
    "prim::NumToTensor": _from_number,
    "prim::requires_grad": alone(lambda value: _tensor_of(value).requires_grad),
    "prim::shape": _size,
    "prim::type": lambda run, _: run.device.type,
}
"""Operators that are computed here, or read a property of a tensor; the first argument is the run."""

LANGUAGE = frozenset(
    f"prim::{name}"
    for name in ["annotate", "getattr", "hasattr", "isinstance", "range", "unchecked_cast", "Uninitialized"]
)
"""Operators of the language itself, which :mod:`bcu_cli.models.embedded.script_evaluator` evaluates."""


@cache
def is_tensor_operator(name: str) -> bool:
    """Whether an operator is computed by torch's operator of that name."""
    if name not in ALLOWED or not name.startswith("aten::") or name in SPECIAL or name in TAKES_TENSORS:
        return False
    return hasattr(torch.ops.aten, name.removeprefix("aten::")) and bool(overloads(name))
