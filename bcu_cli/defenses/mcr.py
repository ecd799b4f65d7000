"""Mode connectivity repair: a point on a curve of low loss between the network and a fine-tuned copy.

Zhao, Chen, Das, Ramamurthy, Lin, Bridging Mode Connectivity in Loss Landscapes and Adversarial Robustness,
ICLR 2020, arXiv:2005.00060. A quadratic Bezier curve (1-t)² w1 + 2t(1-t) θ + t² w2 connects two networks. Its
bend θ learns a low loss at random t (Eq. 2 and 3) while its ends are fixed. The BCU paper takes t = 0.3; its
other end is the network fine-tuned for 10 epochs (section 4.1, supplement B).

Deviations: θ starts halfway between the two ends and is trained with the BCU paper's settings. The running
statistics of BatchNorm, which points in between lack, are recomputed on the images.
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
from bcu_cli.defenses.parts.finetuning import EPOCHS, finetuning
from bcu_cli.errors import ArchitectureError
from bcu_cli.models.channels import BATCH_NORMS
from bcu_cli.models.embedded.script_module import ScriptModule
from bcu_cli.training.loop import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bcu_cli.images.stream import Images
    from bcu_cli.models import Classifier
    from bcu_cli.training.loop import Objective


@dataclass(frozen=True, kw_only=True)
class McrOptions(TrainedOptions):
    """Options of method ``mcr``.

    Args:
        t: The point of the curve that is taken, from 0 (the network) to 1 (the fine-tuned copy).
        end_epochs: Passes over the images in the fine-tuning of the copy.
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
        bend: The control point of the curve, by the weights' names.
        end: The weights at t = 1 by their names.
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
    """The method of Zhao et al. 2020."""

    name = "mcr"
    paper = "Zhao et al., Bridging Mode Connectivity in Loss Landscapes and Adversarial Robustness, ICLR 2020"
    Options: ClassVar[type[DefenseOptions]] = McrOptions

    curve: Curve

    def decide(self, options: McrOptions) -> McrOptions:
        """See :meth:`Defense.decide`.

        Raises:
            ArchitectureError: Code in the model file keeps the statistics of BatchNorm, and may not average
                them as this method needs.
        """
        if any(_keeps_statistics_itself(module) for module in self.teacher.modules()):
            raise ArchitectureError(
                "mcr recomputes the statistics of BatchNorm, which is not possible for a network that is "
                "known only as TorchScript code",
                "name its architecture with --arch, or use another --method",
            )
        return super().decide(options)

    def stages(self) -> Iterator[Stage]:
        """Fine-tune one end, train the control point of the curve, and take a point in between."""
        options = self.options
        end = copy.deepcopy(self.student)
        training = finetuning(self, end, epochs=options.end_epochs)
        yield Stage(title="fine-tuning the other end", training=training)
        bend = copy.deepcopy(end)
        self.student.to(self.device.torch)
        self.curve = Curve(
            start=_weights(self.student), bend=dict(bend.named_parameters()), end=_weights(end)
        )
        with torch.no_grad():
            for name, weight in self.curve.bend.items():
                weight.copy_((self.curve.start[name] + self.curve.end[name]) / 2)
        training = self.training(self._objective(bend), of=bend, reseeded=1)
        yield Stage(title="training the curve", training=training)
        with torch.no_grad():
            point = self.curve.at(options.t)
            for name, weight in self.student.named_parameters():
                weight.copy_(point[name])
        recompute_statistics(self.student, self.data.images, options.batch_size)

    def details(self) -> dict[str, Any]:
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
    """Set the running statistics of every BatchNorm to its statistics on these images.

    Args:
        model: The network; in eval mode afterwards.
        images: Images, uint8 ``[N, C, H, W]``.
        batch_size: Images in a batch; the statistics are averaged over batches.
    """
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None gives all batches equal weight
        norm.train()
    device = next(model.parameters()).device
    for index in torch.arange(len(images)).tensor_split(-(-len(images) // batch_size)):
        model(images[index].to(device).float() / 255.0)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
