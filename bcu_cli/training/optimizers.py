"""torch's SGD, Adam and AdamW without torch.compile, which is not used here and takes two seconds to import.

torch wraps some methods of optimizers so that their first call imports the compiler, only to exclude them
from compilation. These classes use the unwrapped methods.
"""

from __future__ import annotations

from inspect import unwrap
from typing import Any

import torch

_Optimizer: Any = torch.optim.Optimizer


class _Eager(torch.optim.Optimizer):
    add_param_group = unwrap(_Optimizer.add_param_group)
    zero_grad = unwrap(_Optimizer.zero_grad)
    state_dict = unwrap(_Optimizer.state_dict)
    load_state_dict = unwrap(_Optimizer.load_state_dict)


class SGD(_Eager, torch.optim.SGD):
    """``torch.optim.SGD``."""

    step: Any = torch.no_grad()(unwrap(torch.optim.SGD.step))


class Adam(_Eager, torch.optim.Adam):
    """``torch.optim.Adam``."""

    step: Any = torch.no_grad()(unwrap(torch.optim.Adam.step))


class AdamW(_Eager, torch.optim.AdamW):
    """``torch.optim.AdamW``."""

    step: Any = torch.no_grad()(unwrap(torch.optim.AdamW.step))
