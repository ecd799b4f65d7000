"""Every operator that code of TorchScript may call, as subjects of the harness."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from hostile_calls import DTYPES, Subject, hostile_int, hostile_number, hostile_tensor

from bcu_cli.checkpoints.torchscript.operators import ALLOWED
from bcu_cli.models.embedded.script_limits import Limits, Run
from bcu_cli.models.embedded.script_operators import (
    LANGUAGE,
    SPECIAL,
    compute,
    is_tensor_operator,
    overloads,
)
from bcu_cli.models.embedded.script_values import PLAIN, UNINITIALIZED, Enumerated

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

_HOSTILE = 0.3  # of the arguments; the others are sound, so that kernels are reached
_ONES = """
    stride padding dilation groups dim dims dim0 start_dim index pad source shifts step correction
    reduction
"""
_TWOS = (
    "num_groups k chunks split_size upscale_factor downscale_factor end_dim length repeats num_head num_heads"
)
_THREES = "kernel_size output_size size end n m"
_SMALL = {
    **dict.fromkeys(_ONES.split(), 1),
    **dict.fromkeys(_TWOS.split(), 2),
    **dict.fromkeys(_THREES.split(), 3),
    **dict.fromkeys(("normalized_shape", "dtype", "embed_dim"), 6),
    **dict.fromkeys(("num_classes", "steps"), 4),
    **dict.fromkeys(("output_padding", "dim1", "start", "diagonal", "destination"), 0),
}
_ATTENTION = ("_native_multi_head_attention", "_transformer_encoder_layer_fwd")
_PER_CHANNEL = ("bias", "running_mean", "running_var", "scale")


def subjects() -> list[Subject]:
    """One for each operator of bcu's own, and for each overload of torch's."""
    made = []
    for name in sorted(ALLOWED - LANGUAGE):
        if name in PLAIN:
            made.append(Subject(f"{name} (plain)", _caller(name), _plain_maker))
        if name in SPECIAL:
            made.append(Subject(name, _caller(name), _special_maker(name)))
        elif is_tensor_operator(name):
            made += [
                Subject(f"{name}.{key}", _caller(name), _tensor_maker(name, overload))
                for key, overload in overloads(name).items()
            ]
    return made


def raw_kernels() -> list[Subject]:
    """The kernels that are not called because they do not check what they are given, as torch has them."""
    return [
        Subject(name, getattr(torch.ops.aten, name), _maker(name, _schema(f"aten::{name}")))
        for name in ("native_batch_norm", "native_layer_norm", "_weight_norm", *_ATTENTION)
    ]


def _schema(name: str) -> Any:
    return torch._C._jit_get_schemas_for_operator(name)[0].arguments


def _caller(name: str) -> Callable[..., Any]:
    def call(*args: Any, **named: Any) -> Any:
        run = Run(Limits(), 1, torch.device("cpu"))
        return compute(run, name, list(args), named)

    return call


def _value(rng: random.Random, depth: int = 0) -> Any:
    """Any value that code can have."""
    kind = rng.randrange(11 if depth < 2 else 8)
    if kind < 8:
        text = rng.choice(("", "a", "{}", "%s %d", "same", "9" * 30))
        others = (text, None, rng.random() < 0.5, torch.device("cpu"), Enumerated("E", 1))
        return (hostile_int(rng), hostile_number(rng), hostile_tensor(rng), *others)[kind]
    values = [_value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 3, 70)))]
    if kind == 8:
        return values
    return tuple(values) if kind == 9 else {str(i): value for i, value in enumerate(values)}


def _plain_maker(rng: random.Random) -> tuple[list[Any], dict[str, Any]]:
    count = rng.choice((0, 1, 1, 2, 2, 2, 3, 4))
    if rng.random() < 0.5:  # of one kind, so that something is computed
        make = rng.choice((hostile_int, hostile_number, _ints, _table, _text))
        return [make(rng) for _ in range(count)], {}
    return [UNINITIALIZED if rng.random() < 0.02 else _value(rng) for _ in range(count)], {}


def _ints(rng: random.Random) -> list[int]:
    return [hostile_int(rng) for _ in range(rng.choice((0, 1, 3, 100)))]


def _table(rng: random.Random) -> dict[Any, Any]:
    return {hostile_int(rng): 1 for _ in range(3)}


def _text(rng: random.Random) -> str:
    return rng.choice(("", "{}{}", "%d", "-5", "1e999", "abc" * 100))


def _special_maker(name: str) -> Callable[[random.Random], tuple[list[Any], dict[str, Any]]]:
    factory = {"aten::empty": "zeros", "aten::empty_like": "zeros_like", "aten::new_empty": "new_zeros"}
    if name in factory:
        return _tensor_maker(name, getattr(torch.ops.aten, factory[name]).default)
    try:
        return _maker(name, _schema(name))
    except (IndexError, RuntimeError):
        parameters = list(inspect.signature(SPECIAL[name]).parameters)[1:]
        return lambda rng: ([_value(rng) for _ in parameters], {})


def _tensor_maker(name: str, overload: Any) -> Callable[[random.Random], tuple[list[Any], dict[str, Any]]]:
    return _maker(name, overload._schema.arguments)


def _maker(name: str, arguments: Any) -> Callable[[random.Random], tuple[list[Any], dict[str, Any]]]:
    def make(rng: random.Random) -> tuple[list[Any], dict[str, Any]]:
        share = rng.choice((0.0, _HOSTILE, _HOSTILE, 0.7))
        args, named = [], {}
        for argument in arguments:
            if argument.has_default_value() and rng.random() < 0.3:
                if argument.kwarg_only:
                    continue
                args.append(argument.default_value)
                continue
            hostile = rng.random() < share
            value = _argument(rng, name, argument.name, str(argument.real_type), hostile)
            if argument.kwarg_only:
                named[argument.name] = value
            else:
                args.append(value)
        return args, named

    return make


def _argument(rng: random.Random, operator: str, name: str, kind: str, hostile: bool) -> Any:
    if hostile and rng.random() < 0.1:
        return _value(rng)
    if kind.startswith("Optional["):
        if rng.random() < (0.3 if hostile else 0.2):
            return None
        kind = kind.removeprefix("Optional[").removesuffix("]")
    if kind.startswith("List["):
        inner = kind.removeprefix("List[").removesuffix("]")
        if operator == "aten::permute" and not hostile:
            return rng.sample(range(4), 4)
        length = rng.choice((0, 1, 2, 3, 4, 5, 9)) if hostile else _length(operator, name)
        return [_argument(rng, operator, name, inner, hostile) for _ in range(length)]
    if kind == "Tensor":
        return hostile_tensor(rng) if hostile else _plausible_tensor(rng, operator, name)
    return _scalar(rng, name, kind, hostile)


def _scalar(rng: random.Random, name: str, kind: str, hostile: bool) -> Any:
    if kind in {"int", "SymInt"}:
        return hostile_int(rng) if hostile else _SMALL.get(name, rng.choice((0, 1, 2)))
    if kind in {"float", "number", "Scalar"}:
        return hostile_number(rng) if hostile else rng.choice((0.5, 1.0, 2))
    if kind == "ScalarType":
        return rng.choice((0, 1, 3, 4, 5, 6, 7, 8, 11, 12, 13, 15, 40)) if hostile else 6
    if kind in {"Layout", "MemoryFormat"}:
        return rng.choice((0, 1, 2, 3, 5, 99, -1)) if hostile else 0
    if kind == "bool":
        return rng.random() < 0.5
    if kind == "str":
        return rng.choice(
            ("same", "valid", "constant", "reflect", "none", "tanh", "ij", "ij,jk->ik", "floor", "sum")
        )
    return torch.device("cpu") if kind == "Device" else None


def _length(operator: str, name: str) -> int:
    if name in {"tensors", "dims", "dim", "indices"}:
        return 2
    if name == "normalized_shape":
        return 1
    sides = next((int(mark) for mark in "123" if f"{mark}d" in operator), 2)
    if name in {"size", "shape"} and "pool" not in operator and "upsample" not in operator:
        return 4
    return 4 if name == "pad" or (name == "padding" and "pad2d" in operator) else sides


_SHAPES = {
    **dict.fromkeys(("aten::mm", "aten::addmm", "aten::t", "aten::einsum"), (4, 4)),
    **dict.fromkeys(("aten::bmm", "aten::baddbmm"), (2, 4, 4)),
    "aten::meshgrid": (4,),
    "grid": (2, 5, 5, 2),
    "theta": (3, 2, 3),
}


def _plausible_shape(operator: str, name: str, images: list[int]) -> list[int]:
    if name == "weight" and "conv" in operator:
        return [4, 4, *([3] * (len(images) - 2))]
    if name == "weight" and "linear" in operator:
        return [5, 6]
    if name in {"weight", "bias"} and "layer_norm" in operator:
        return [6]
    if name in _PER_CHANNEL or (name == "weight" and "norm" in operator):
        return [5] if "linear" in operator else [4]
    if name == "values" and "index_put" in operator:
        return [3, 6, 6]
    return list(_SHAPES.get(operator) or _SHAPES.get(name) or images)


def _plausible_tensor(rng: random.Random, operator: str, name: str) -> torch.Tensor:
    if "native_multi_head" in operator or "encoder_layer" in operator:
        return _of_attention(name)
    sides = next((int(mark) for mark in "123" if f"{mark}d" in operator), 2)
    shape = _plausible_shape(operator, name, [2, 4, *([6] * sides)])
    if name in {"index", "indices"} or (name == "repeats" and "repeat" in operator):
        of_shape = any(word in operator for word in ("unpool", "gather", "scatter"))
        return torch.randint(0, 2, shape if of_shape else [3])
    if name in {"mask", "condition"} or operator == "aten::one_hot":
        return torch.randint(0, 2, shape).to(torch.bool if name != "self" else torch.int64)
    if any(word in operator for word in ("__", "bitwise", "logical")):
        return torch.randint(0, 5, shape).to(rng.choice((torch.int64, torch.bool, torch.uint8)))
    dtype = torch.float32 if rng.random() < 0.9 else rng.choice(DTYPES)
    return torch.randn(shape).to(dtype)


def _of_attention(name: str) -> torch.Tensor:
    shapes = {"qkv_weight": [18, 6], "qkv_bias": [18], "proj_weight": [6, 6], "mask": [3, 3]}
    shapes |= {"ffn_weight_1": [8, 6], "ffn_bias_1": [8], "ffn_weight_2": [6, 8]}
    per_width = "bias" in name or "norm" in name
    return torch.randn(shapes.get(name, [6] if per_width else [2, 3, 6]))
