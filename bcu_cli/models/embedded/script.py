"""A network that evaluates the code of a TorchScript file, without torch's interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bcu_cli.checkpoints import ScriptObject
from bcu_cli.models.embedded.embedded_network import EmbeddedNetwork
from bcu_cli.models.embedded.script_layers import ScriptLayer, layer_class
from bcu_cli.models.embedded.script_limits import Limits
from bcu_cli.models.embedded.script_module import Context, ScriptModule, map_tensors
from bcu_cli.models.embedded.script_values import Enumerated

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcu_cli.checkpoints import Script


class ScriptNetwork(EmbeddedNetwork, ScriptModule):
    """A network whose ``forward`` evaluates the code of a TorchScript file, operator by operator.

    Modules, parameters and buffers have the names in the file. Convolutions, linear and normalisation layers
    are subclasses of torch's layers.

    Args:
        script: The code and objects of the file.
        limits: Limits of one forward pass.

    Raises:
        ArchitectureError: The file's modules cannot be evaluated.
    """

    def __init__(self, script: Script, limits: Limits | None = None) -> None:
        context = Context(script, limits or Limits())
        super().__init__(context, script.root)
        made: dict[int, ScriptModule] = {id(script.root): self}
        for part in _parts(script.root):
            if id(part) not in made:
                made[id(part)] = layer_class(part)(context, part)
        tied: dict[int, nn.Parameter] = {}
        for part in _parts(script.root):
            _fill(made[id(part)], part, made, tied)
        if "forward" not in script.root.of.methods:
            raise context.failed("it has no forward")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Convert the constants of the code along with the tensors of the modules."""
        constants = self._context.program.constants
        constants[:] = [map_tensors(fn, value) for value in constants]
        return super()._apply(fn, recurse)


def _parts(root: ScriptObject) -> list[ScriptObject]:
    """All modules, each once."""
    found: dict[int, ScriptObject] = {}
    stack = [root]
    while stack:
        part = stack.pop()
        if id(part) not in found:
            found[id(part)] = part
            stack += [value for value in part.attributes.values() if _is_module(value)]
    return list(found.values())


def _is_module(value: Any) -> bool:
    return isinstance(value, ScriptObject) and value.of.kind == "Module"


def _fill(
    module: ScriptModule, part: ScriptObject, made: dict[int, ScriptModule], tied: dict[int, nn.Parameter]
) -> None:
    """Set the tensors, submodules and other attributes of a module, under any names."""
    attributes = part.attributes
    for name in part.of.parameters:
        value = attributes.get(name)
        if value is not None:
            value = tied.setdefault(id(value), nn.Parameter(value, requires_grad=value.is_floating_point()))
        module._parameters[name] = value
    for name in part.of.buffers:
        module._buffers[name] = attributes.get(name)
    if isinstance(module, ScriptLayer):
        for name in {*module.optional} - module._parameters.keys() - module._buffers.keys():
            module._buffers[name] = None  # as in torch's layers without that buffer
    known = {*part.of.parameters, *part.of.buffers}
    for name, value in attributes.items():
        if _is_module(value):
            module._modules[name] = made[id(value)]
        elif name == "training":
            module.training = value is True
        elif name not in known:
            module.script_attributes[name] = _plain(value)
    if isinstance(module, ScriptLayer):
        module.describe(part)


def _plain(value: Any) -> Any:
    if isinstance(value, ScriptObject):
        return Enumerated(value.of.qualname, value.attributes.get("value"))
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value
