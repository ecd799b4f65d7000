"""Mode connectivity repair: a point on a curve of low loss between the network and a fine-tuned copy.

Zhao, Chen, Das, Ramamurthy, Lin, Bridging Mode Connectivity in Loss Landscapes and Adversarial Robustness,
ICLR 2020, arXiv:2005.00060: a quadratic Bezier curve (1-t)² w1 + 2t(1-t) θ + t² w2, whose bend θ learns a
low loss at random t (Eq. 2 and 3) while its ends stay. The BCU paper takes t = 0.3 and, for the other end,
the network fine-tuned for 10 epochs (section 4.1, supplement B).

Deviations: θ starts in the middle of the two ends and is trained with the BCU paper's settings. Statistics
of BatchNorm, which no point in between has, are those of the images at the chosen point.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bcu_cli.defenses.base import DefenseOptions, TrainedDefense, TrainedOptions, require
from bcu_cli.defenses.finetuning import EPOCHS, finetuning
from bcu_cli.errors import ArchitectureError
from bcu_cli.models.channels import BATCH_NORMS
from bcu_cli.models.script_module import ScriptModule
from bcu_cli.training.loop import Stage, Training

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bcu_cli.images.stream import Images
    from bcu_cli.models import Classifier
    from bcu_cli.training.loop import Objective


@dataclass(frozen=True, kw_only=True)
class McrOptions(TrainedOptions):
    """The curve, and the trainings.

    Args:
        t: The point of the curve that is taken, from 0, the network, to 1, the fine-tuned copy.
        end_epochs: Passes over the images that the copy is fine-tuned for.
    """

    t: float = 0.3
    end_epochs: int = EPOCHS

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.t <= 1, f"t = {self.t:g} is not on the curve", "--setting t=0.3, from 0 to 1")
        require(self.end_epochs >= 1, "the fine-tuned end needs an epoch or more", "--setting end_epochs=10")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A quadratic Bezier curve through the weights of a network.

    Attributes:
        start: The weights at t = 0 by their names.
        end: Those at t = 1.
        bend: Those that the curve is drawn to in between.
    """

    start: dict[str, Tensor]
    bend: dict[str, Tensor]
    end: dict[str, Tensor]

    def at(self, t: float) -> dict[str, Tensor]:
        """The weights at t in [0, 1]."""
        return {
            name: (1 - t) ** 2 * start + 2 * t * (1 - t) * self.bend[name] + t**2 * self.end[name]
            for name, start in self.start.items()
        }


class ModeConnectivityRepair(TrainedDefense[McrOptions]):
    """Zhao et al. 2020."""

    name = "mcr"
    paper = "Zhao et al., Bridging Mode Connectivity in Loss Landscapes and Adversarial Robustness, ICLR 2020"
    Options: ClassVar[type[DefenseOptions]] = McrOptions

    curve: Curve

    def decide(self, options: McrOptions) -> McrOptions:
        """See :meth:`Defense.decide`.

        Raises:
            ArchitectureError: The statistics of BatchNorm are kept by code of the file's own, which may not
                average them as this method needs.
        """
        if any(_keeps_statistics_itself(module) for module in self.teacher.modules()):
            raise ArchitectureError(
                "mcr computes the statistics of BatchNorm anew, which a network that is only known as "
                "TorchScript code does in its own way",
                "name its architecture with --arch, or use another --method",
            )
        return super().decide(options)

    def stages(self) -> Iterator[Stage]:
        """The fine-tuning of one end, then the training of the bend; a point in between is taken."""
        options = self.options
        end = copy.deepcopy(self.student)
        training = finetuning(self, end, options, epochs=options.end_epochs)
        yield Stage(title="fine-tuning the other end", training=training)
        bend = copy.deepcopy(end)
        self.student.to(self.device.torch)
        self.curve = Curve(
            start=_weights(self.student), bend=dict(bend.named_parameters()), end=_weights(end)
        )
        with torch.no_grad():
            for name, weight in self.curve.bend.items():
                weight.copy_((self.curve.start[name] + self.curve.end[name]) / 2)
        training = Training(
            bend,
            self.data.images,
            self._objective(bend),
            options.training(),
            device=self.device,
            seed=options.seed + 1,
        )
        yield Stage(title="training the curve", training=training)
        with torch.no_grad():
            point = self.curve.at(options.t)
            for name, weight in self.student.named_parameters():
                weight.copy_(point[name])
        recompute_statistics(self.student, self.data.images, options.batch_size)

    def did(self) -> dict[str, Any]:
        """The point of the curve that was taken."""
        return {"t": self.options.t}

    def _objective(self, bend: Classifier) -> Objective:
        labels = self.labels

        def objective(images: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - always the same
            point = self.curve.at(float(torch.rand(())))
            logits: Tensor = functional_call(bend, point, (images,))
            return F.cross_entropy(logits.float(), labels[index])

        return objective


def _keeps_statistics_itself(module: nn.Module) -> bool:
    batch_norm = isinstance(module, BATCH_NORMS) and module.running_mean is not None
    return batch_norm and isinstance(module, ScriptModule)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@torch.no_grad()
def recompute_statistics(model: nn.Module, images: Images, batch_size: int) -> None:
    """Give every BatchNorm the mean and variance of what it sees of these images.

    Args:
        model: Left in eval mode.
        images: uint8 ``[N, C, H, W]``.
        batch_size: Images at a time; the statistics are the averages of the batches' own.
    """
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # averages all batches alike
        norm.train()
    device = next(model.parameters()).device
    for index in torch.arange(len(images)).tensor_split(-(-len(images) // batch_size)):
        model(images[index].to(device).float() / 255.0)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
