"""Layers of TorchScript files as subclasses of torch's layers, so that methods recognise them.

Their ``forward`` is still the file's code. The attributes of torch's layers (strides, groups, epsilon) are
read from the constants of the class or, in a traced file, from the call in its code.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from bcu_cli.checkpoints.torchscript.script_code import literal
from bcu_cli.models.embedded.script_module import ScriptModule

if TYPE_CHECKING:
    from bcu_cli.checkpoints import ScriptObject
    from bcu_cli.checkpoints.torchscript.script_code import ScriptClass

_MODULES = "__torch__.torch.nn.modules."
_WINDOW = {"stride": 3, "padding": 4, "dilation": 5}


class ScriptLayer(ScriptModule):
    """A layer of a kind that torch has.

    Attributes:
        weight_dims: Number of dimensions of the weight.
        optional: Names of the tensors that may be None.
        operators: The operators that a traced layer calls, with the argument positions of their settings.
    """

    weight_dims: ClassVar[int]
    optional: ClassVar[tuple[str, ...]] = ("weight", "bias")
    operators: ClassVar[dict[str, dict[str, int]]] = {}

    def describe(self, part: ScriptObject) -> None:
        """Set the attributes that torch's layer of this kind has."""
        vars(self).update(declared_settings(type(self), part.of))


class _Convolution(ScriptLayer):
    operators: ClassVar[dict[str, dict[str, int]]] = {
        "_convolution": {**_WINDOW, "transposed": 6, "output_padding": 7, "groups": 8},
        **{name: {**_WINDOW, "groups": 6} for name in ("conv1d", "conv2d", "conv3d")},
    }

    def describe(self, part: ScriptObject) -> None:
        weight = part.attributes["weight"]
        transposed = isinstance(self, nn.modules.conv._ConvTransposeNd)
        sides = weight.dim() - 2
        vars(self).update(
            stride=(1,) * sides,
            padding=(0,) * sides,
            dilation=(1,) * sides,
            output_padding=(0,) * sides,
            groups=1,
            padding_mode="zeros",
            _reversed_padding_repeated_twice=[],
        )
        super().describe(part)
        first, second = weight.shape[0], weight.shape[1] * self.groups
        vars(self).update(
            transposed=transposed,
            kernel_size=tuple(weight.shape[2:]),
            in_channels=first if transposed else second,
            out_channels=second if transposed else first,
        )


class ScriptLinear(ScriptLayer, nn.Linear):
    """A ``Linear`` of a TorchScript file."""

    weight_dims = 2

    def describe(self, part: ScriptObject) -> None:
        """Set the numbers of inputs and outputs."""
        self.out_features, self.in_features = part.attributes["weight"].shape


class _BatchNorm(ScriptLayer):
    weight_dims = 1
    optional: ClassVar[tuple[str, ...]] = (
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    )
    operators: ClassVar[dict[str, dict[str, int]]] = {"batch_norm": {"momentum": 6, "eps": 7}}

    def describe(self, part: ScriptObject) -> None:
        vars(self).update(eps=1e-5, momentum=0.1)
        super().describe(part)
        weight, statistics = (part.attributes.get(name) for name in ("weight", "running_mean"))
        sized = statistics if weight is None else weight
        vars(self).update(
            affine=weight is not None,
            track_running_stats=statistics is not None,
            num_features=0 if sized is None else len(sized),
        )


class ScriptGroupNorm(ScriptLayer, nn.GroupNorm):
    """A ``GroupNorm`` of a TorchScript file."""

    weight_dims = 1
    operators: ClassVar[dict[str, dict[str, int]]] = {"group_norm": {"num_groups": 1, "eps": 4}}

    def describe(self, part: ScriptObject) -> None:
        """Set the number of groups, epsilon and the number of channels."""
        self.eps, self.num_groups = 1e-5, 1
        super().describe(part)
        self.affine = part.attributes.get("weight") is not None
        self.num_channels = len(part.attributes["weight"]) if self.affine else 0


def _kind(base: type[ScriptLayer], layer: type[nn.Module], dims: int) -> type[ScriptLayer]:
    """A layer of a TorchScript file as a subclass of torch's layer, with a weight of ``dims`` dimensions."""
    return type(f"Script{layer.__name__}", (base, layer), {"weight_dims": dims, "__module__": __name__})


_KINDS: dict[str, type[ScriptLayer]] = {
    "conv.Conv1d": _kind(_Convolution, nn.Conv1d, 3),
    "conv.Conv2d": _kind(_Convolution, nn.Conv2d, 4),
    "conv.Conv3d": _kind(_Convolution, nn.Conv3d, 5),
    "conv.ConvTranspose2d": _kind(_Convolution, nn.ConvTranspose2d, 4),
    "linear.Linear": ScriptLinear,
    "linear.NonDynamicallyQuantizableLinear": ScriptLinear,
    "batchnorm.BatchNorm1d": _kind(_BatchNorm, nn.BatchNorm1d, 1),
    "batchnorm.BatchNorm2d": _kind(_BatchNorm, nn.BatchNorm2d, 1),
    "batchnorm.BatchNorm3d": _kind(_BatchNorm, nn.BatchNorm3d, 1),
    "normalization.GroupNorm": ScriptGroupNorm,
}
globals().update({kind.__name__: kind for kind in _KINDS.values()})  # pickle looks a class up by its name
_TENSORS = ("weight", "bias", "running_mean", "running_var")
_TYPES: dict[str, tuple[type, ...]] = {
    "eps": (float,),
    "momentum": (float, type(None)),
    "groups": (int,),
    "num_groups": (int,),
    "transposed": (bool,),
    "padding": (str, list, tuple),
    "stride": (list, tuple),
    "dilation": (list, tuple),
    "output_padding": (list, tuple),
}


def layer_class(part: ScriptObject) -> type[ScriptModule]:
    """The class for a module of a file: that of a layer if name and tensors match, else ``ScriptModule``."""
    names = part.of.qualname.removeprefix(_MODULES).split(".")
    kind = ".".join(name for name in names if not name.startswith("___torch_mangle_"))
    found = _KINDS.get(kind) if part.of.qualname.startswith(_MODULES) else None
    return found if found is not None and _is_standard(found, part) else ScriptModule


def _is_standard(kind: type[ScriptLayer], part: ScriptObject) -> bool:
    forward = part.of.methods.get("forward")
    weight = part.attributes.get("weight")
    declared = {*part.of.parameters, *part.of.buffers}
    if forward is None or len(forward.args.args) != 2:
        return False
    if weight is None:
        if kind.weight_dims != 1:
            return False
    elif not isinstance(weight, Tensor) or weight.dim() != kind.weight_dims:
        return False
    for name in _TENSORS[1:]:
        tensor = part.attributes.get(name)
        if tensor is not None and (not isinstance(tensor, Tensor) or tensor.dim() != 1):
            return False
    held = {name for name in _TENSORS if part.attributes.get(name) is not None}
    return held <= declared


def declared_settings(kind: type[ScriptLayer], of: ScriptClass) -> dict[str, Any]:
    """The settings (strides, epsilon, …) in a layer's class or code that are of the right type."""
    found: dict[str, Any] = {}
    for node in ast.walk(of.methods["forward"]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            for name, place in kind.operators.get(node.func.attr, {}).items():
                if place < len(node.args):
                    found.setdefault(name, literal(node.args[place]))
    found |= {name: of.constants[name] for name in _TYPES if name in of.constants}
    named = {name for places in kind.operators.values() for name in places}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in found.items()
        if name in named and isinstance(value, _TYPES[name]) and (name == "transposed" or value is not True)
    }
