"""Channel Lipschitz outliers: a channel that a trigger can move far more than its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bcu_cli.scan.base import Detector, Scores, Subject

if TYPE_CHECKING:
    from bcu_cli.models import Classifier

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FEWEST_CHANNELS = 8


@dataclass(frozen=True, kw_only=True)
class LipschitzOutliers(Detector):
    """The largest channel of each convolution, in standard deviations above the mean of its layer.

    A channel's bound is the spectral norm of its kernel, as a matrix of input channels by taps, times what
    the BatchNorm behind it multiplies by (eq. 5 and 9 of the paper). Which BatchNorm that is, is seen from
    the data that flows; names play no part. It tells no classes apart.
    """

    name: ClassVar[str] = "lipschitz"
    paper: ClassVar[str] = "Zheng et al., CLP, ECCV 2022, arXiv:2208.03111"
    needs_images: ClassVar[bool] = False

    def scan(self, subject: Subject) -> Scores:
        """See :meth:`Detector.scan`."""
        model = subject.model
        example = torch.zeros(1, *model.preprocessing.input_size, device=subject.device.torch)
        followers = _followers(model, example)
        names = {module: name for name, module in model.network.named_modules()}
        best, evidence = 0.0, dict[str, Any]()
        for done, (convolution, norm) in enumerate(followers, start=1):
            bounds = _bounds(convolution, norm)
            if len(bounds) < _FEWEST_CHANNELS:
                continue
            distance = float((bounds.max() - bounds.mean()) / (bounds.std() + 1e-12))
            if distance > best:
                best = distance
                evidence = {"layer": names[convolution], "channel": int(bounds.argmax())}
                evidence["of_median"] = float(bounds.max() / (bounds.median() + 1e-12))
            subject.report(done, len(followers))
        return Scores(
            detector=self.name, score=best, target=None, per_class=torch.empty(0), evidence=evidence
        )


@torch.no_grad()
def _followers(model: Classifier, example: Tensor) -> list[tuple[nn.Module, nn.Module | None]]:
    """Each convolution with the BatchNorm that takes its output, or None."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # by the id of the output, which is kept alive
    pairs: dict[nn.Module, nn.Module | None] = {}

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(module, _CONVOLUTIONS):
            pairs.setdefault(module, None)
            made[id(output)] = (module, output)
        elif id(inputs[0]) in made:
            pairs[made[id(inputs[0])][0]] = module

    watched = [m for m in model.network.modules() if isinstance(m, _CONVOLUTIONS + _NORMS)]
    handles = [module.register_forward_hook(watch) for module in watched]
    try:
        model(example)
    finally:
        for handle in handles:
            handle.remove()
    return list(pairs.items())


@torch.no_grad()
def _bounds(convolution: nn.Module, norm: nn.Module | None) -> Tensor:
    """The bound of each output channel, ``[C]``."""
    weight: Any = convolution.weight
    kernels = weight.detach().float().flatten(2)  # [out, in, taps]
    bounds: Tensor = torch.linalg.matrix_norm(kernels, 2)
    if isinstance(norm, _NORMS) and norm.running_var is not None:
        scale = torch.ones_like(bounds) if norm.weight is None else norm.weight.detach().float().abs()
        bounds = bounds * scale / (norm.running_var.float() + norm.eps).sqrt()
    return bounds.cpu()
