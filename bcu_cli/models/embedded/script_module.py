"""The modules of a TorchScript network: their methods are evaluated, and their tensors are torch's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bcu_cli.errors import ArchitectureError
from bcu_cli.limits import is_lack_of_memory
from bcu_cli.models.embedded.script_evaluator import Program
from bcu_cli.models.embedded.script_limits import Limits, RefusedError, Run, Usage
from bcu_cli.models.registry import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcu_cli.checkpoints import Script, ScriptObject
    from bcu_cli.checkpoints.torchscript.script_code import ScriptClass

_MOST_SIZES = 64
_CODE_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Context:
    """State shared by all modules of a network: the code, the limits, and the account of the current pass."""

    def __init__(self, script: Script, limits: Limits) -> None:
        self.what = script.path.name
        self.limits = limits
        self.program = Program(script.code, list(script.constants), attribute_of, call_method)
        self.usages: dict[tuple[int, ...], Usage] = {}
        self.active: Run | None = None

    def enter(self, module: ScriptModule, method: str, inputs: Any, named: dict[str, Any]) -> Any:
        """Call a method of a module, within the current pass or as a new pass."""
        if self.active is not None:
            return self._call(self.active, module, method, inputs, named)
        images = next((value for value in inputs if isinstance(value, Tensor)), None)
        if images is None or not images.dim():
            raise self.failed("it is given no images")
        size = tuple(images.shape[1:])  # evaluation and training share an account
        run = Run(self.limits, max(len(images), 1), images.device, self.usages.get(size))
        self.active = run
        try:
            result = self._call(run, module, method, inputs, named)
        except RefusedError as error:
            raise self.failed(str(error)) from error
        except _CODE_ERRORS as error:
            if is_lack_of_memory(error):
                raise
            raise self.failed(f"it fails: {one_line(error)}") from error
        finally:
            self.active = None
        if len(self.usages) < _MOST_SIZES:
            self.usages.setdefault(size, run.usage)
        return result

    def _call(self, run: Run, module: ScriptModule, method: str, inputs: Any, named: dict[str, Any]) -> Any:
        function = module.script_class.methods.get(method)
        if function is None:
            raise RefusedError(
                f"it calls the method {method}, which {module.script_class.qualname} does not have"
            )
        return self.program.run(run, function, [module, *inputs], named)

    def failed(self, why: str) -> ArchitectureError:
        """The error for code that bcu does not evaluate."""
        return ArchitectureError(
            f"the TorchScript code of {self.what} cannot be run: {why}",
            "if bcu knows the architecture, name it with --arch: then no code is run",
        )


class ScriptModule(nn.Module):
    """A module of a TorchScript file, whose methods are evaluated.

    Args:
        context: What all modules of the network share.
        made_from: The module's object in the file.
    """

    script_class: ScriptClass
    script_attributes: dict[str, Any]

    def __init__(self, context: Context, made_from: ScriptObject) -> None:
        nn.Module.__init__(self)  # not that of a layer, which would allocate weights
        self._context = context
        self.script_class = made_from.of
        self.script_attributes = {}

    def forward(self, *inputs: Any, script_method: str = "forward", **named: Any) -> Any:
        """Evaluate a method of the file's code; a traced module has ``forward1`` for its second call.

        Raises:
            ArchitectureError: The code is not supported, fails, or exceeds a limit.
        """
        return self._context.enter(self, script_method, inputs, named)

    def _load_from_state_dict(self, *args: Any) -> None:
        nn.Module._load_from_state_dict(self, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Convert all tensors, also those that are neither parameters nor buffers."""
        self.script_attributes = {
            name: map_tensors(fn, value) for name, value in self.script_attributes.items()
        }
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


def map_tensors(fn: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to every tensor in a value, without gradients."""
    if isinstance(value, Tensor):
        with torch.no_grad():
            return fn(value)
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(fn, item) for item in value)
    return {key: map_tensors(fn, item) for key, item in value.items()} if isinstance(value, dict) else value


def attribute_of(module: nn.Module, name: str) -> Any:
    """An attribute of a module, for the code.

    Raises:
        RefusedError: The module has no such attribute.
    """
    for table in (module._parameters, module._buffers, module._modules):
        if name in table:
            return table[name]
    if name == "training":
        return module.training
    if isinstance(module, ScriptModule) and name in module.script_attributes:
        return module.script_attributes[name]
    raise RefusedError(f"it asks a module for its attribute {name}, which it does not have")


def call_method(module: nn.Module, name: str, args: list[Any], named: dict[str, Any]) -> Any:
    """Call a method of a module; ``forward`` is called through the module, so that its hooks run."""
    if not isinstance(module, ScriptModule):
        raise RefusedError("it calls a module that is none of the file's")
    if name == "forward":
        return module(*args, **named)
    if name.startswith("forward") and name.removeprefix("forward").isdigit():
        return module(*args, script_method=name, **named)
    return module._context.enter(module, name, args, named)
