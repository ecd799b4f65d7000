"""BatchNorm in traced code: a trace holds the mode of its recording, where torch's layer follows its own."""

from __future__ import annotations

import ast
from typing import Any

from torch import nn

OPERATOR = "aten::batch_norm"
_WEIGHT, _BIAS, _RUNNING_MEAN, _RUNNING_VAR, _TRAINING, _MOMENTUM = 1, 2, 3, 4, 5, 6


def in_mode_of(module: Any, call: ast.Call, args: list[Any]) -> list[Any]:
    """The arguments of ``torch.batch_norm`` for the mode that a module is in.

    A trace in evaluation mode has ``training=False`` as a constant. In training mode that becomes True, or
    the network would train without normalisation by the batch, and diverge at the rates of its training.
    Scripted code reads ``self.training`` and is left alone. So are statistics that are no buffers of the file
    by torch's names, and weights that are no parameters: a norm with those always evaluates.

    Args:
        module: The module whose code makes the call; anything else outside of methods.
        call: The call in the code.
        args: Its positional arguments.
    """
    if not isinstance(module, nn.Module) or len(args) <= _MOMENTUM or not _is_constantly_false(call):
        return args
    owner = _owner(module, args[_RUNNING_MEAN], args[_RUNNING_VAR])
    trains = all(each is None or isinstance(each, nn.Parameter) for each in (args[_WEIGHT], args[_BIAS]))
    if owner is None or not owner.training or not trains:
        return args
    args = list(args)
    args[_TRAINING] = True
    count = owner._buffers.get("num_batches_tracked")
    if count is not None:
        count.add_(1)
        if args[_MOMENTUM] == 0.0:  # so a layer without momentum is traced, which averages over all batches
            args[_MOMENTUM] = 1.0 / max(float(count), 1.0)
    return args


def _is_constantly_false(call: ast.Call) -> bool:
    if len(call.args) <= _TRAINING:
        return False
    training = call.args[_TRAINING]
    return isinstance(training, ast.Constant) and training.value is False


def _owner(module: nn.Module, mean: Any, variance: Any) -> nn.Module | None:
    """The module within another one that has two tensors as its running statistics."""
    if mean is None or variance is None:
        return None
    for part in module.modules():
        if part._buffers.get("running_mean") is mean and part._buffers.get("running_var") is variance:
            return part
    return None
