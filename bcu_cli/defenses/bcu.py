"""Backdoor Cleansing with Unlabeled Data (Pang, Sun, Ling, Chen; CVPR 2023): the paper's method.

The student is the teacher with part of each layer's weights re-initialised, more of them in deeper layers
(section 3.3, Eq. 3). It is then trained by the teacher on unlabeled images (section 3.2, Eq. 2; Algorithm 1).
None of these images has the trigger, so the teacher's behaviour on triggered images is not transferred.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn import functional as F

from bcu_cli.defenses.base import DefenseOptions, TrainedDefense, TrainedOptions, require
from bcu_cli.defenses.parts import reinit_ratios
from bcu_cli.defenses.parts.depth import Layer, measure
from bcu_cli.models.classifier import place
from bcu_cli.training.loop import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from bcu_cli.models import Classifier
    from bcu_cli.training.loop import Objective

RATIOS = (0.01, 0.01, 0.01, 0.03, 0.03, 0.09, 0.09, 0.27, 0.27, 0.1)
"""Ratios of section 4.1: first convolution, the eight blocks of a ResNet-18, classifier."""
TARGETS = ("soft", "hard")


@dataclass(frozen=True, kw_only=True)
class BcuOptions(TrainedOptions):
    """The method's parameters, with the paper's values.

    Args:
        strength: Factor on all re-initialisation ratios; the results are capped at 1.
        ratios: Shares of weights to re-initialise, from shallow to deep, three values or more. The first
            value is for the first layer, the last for the classifier. Those in between cover equal parts of
            the depth, in a ResNet-18 one block each.
        init: How these shares are spread over the layers, one of ``reinit_ratios.INITS`` (Table 4).
        temperature: Temperature at the first and the last step, linear in between. The paper names none; 1 to
            4 are the settings that its authors published.
        targets: What the student learns: ``soft``, the teacher's probabilities, or ``hard``, the class that
            the teacher predicts, by cross-entropy (Table 5).
    """

    strength: float = 1.0
    ratios: tuple[float, ...] = RATIOS
    init: str = "adaptive"
    temperature: tuple[float, float] = (1.0, 4.0)
    targets: str = "soft"

    fewest_epochs: ClassVar[int] = 0
    """With 0 epochs the student is only re-initialised (Figure 3b)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.strength >= 0, f"a strength of {self.strength} makes no sense", "--strength takes 0 or more"
        )
        require(
            len(self.ratios) >= 3 and all(0 <= ratio <= 1 for ratio in self.ratios),
            "--ratios takes three or more shares from 0 to 1",
            "first layer, layers in between, classifier; the paper's are " + ",".join(map(str, RATIOS)),
        )
        require(
            all(0 < temperature < float("inf") for temperature in self.temperature),
            "a temperature must be above 0",
            "the paper's rise from 1 to 4",
        )
        reinit_ratios.refuse_unknown(self.init)
        require(
            self.targets in TARGETS, f"there are no {self.targets} targets", f"--targets {', '.join(TARGETS)}"
        )


@dataclass(frozen=True, kw_only=True)
class Reinitialised:
    """The re-initialisation of one layer: the requested ratio, and how many of its weights were replaced."""

    name: str
    depth: int
    ratio: float
    weights: int
    reinitialised_weights: int


class Bcu(TrainedDefense[BcuOptions]):
    """The method of Pang et al. 2023."""

    name = "bcu"
    paper = "Pang et al., Backdoor Cleansing with Unlabeled Data, CVPR 2023"
    Options: ClassVar[type[DefenseOptions]] = BcuOptions
    needs_labels = False

    reinitialised: list[Reinitialised]

    def stages(self) -> Iterator[Stage]:
        """Re-initialise part of the student, then train it unless the epochs are 0."""
        self.reinitialised = reinitialise(self.student.network, self.example(), self.options)
        if self.options.epochs == 0:
            return
        objective = distillation(self.student, self.teacher, self.options)
        place(self.teacher.eval(), self.device.torch)
        yield Stage(title="cleansing", training=self.training(objective))

    def details(self) -> dict[str, Any]:
        """The re-initialisation of each layer."""
        return {"reinitialised": [asdict(layer) for layer in self.reinitialised]}


def reinitialise(student: nn.Module, example: Tensor, options: BcuOptions) -> list[Reinitialised]:
    """Re-initialise part of each layer's weights and biases in place (Eq. 3, Algorithm 1 lines 1-5).

    Each entry is replaced with the probability given by its layer's ratio. New values are drawn as PyTorch
    initialises a layer: uniformly within 1/sqrt(fan_in). Normalisation layers are kept.

    Args:
        student: A copy of the teacher, on the CPU.
        example: A batch of inputs.
        options: Ratios, strength, ``init`` and seed.
    """
    generator = torch.Generator().manual_seed(options.seed)
    layers = measure(student, example)
    weights_of = _unshared_weights(layers)
    totals = [sum(weight.numel() for weight in weights) for weights in weights_of]
    ratios = reinit_ratios.ratios_of([layer.depth for layer in layers], totals, options)
    done = []
    for layer, weights, total, ratio in zip(layers, weights_of, totals, ratios, strict=True):
        count = sum(_replace(weight, layer, ratio, generator) for weight in weights)
        done.append(
            Reinitialised(
                name=layer.name, depth=layer.depth, ratio=ratio, weights=total, reinitialised_weights=count
            )
        )
    return done


def _unshared_weights(layers: list[Layer]) -> list[list[nn.Parameter]]:
    """The weights of each layer; weights that two layers share belong to the first one."""
    seen, result = set[int](), []
    for layer in layers:
        fresh = [weight for weight in layer.weights.values() if id(weight) not in seen]
        seen.update(map(id, fresh))
        result.append(fresh)
    return result


def _replace(weight: nn.Parameter, layer: Layer, ratio: float, generator: torch.Generator) -> int:
    mask = torch.rand(weight.shape, generator=generator) < ratio
    bound = layer.fan_in**-0.5
    fresh = torch.empty(weight.shape).uniform_(-bound, bound, generator=generator)
    with torch.no_grad():
        weight.copy_(torch.where(mask, fresh.to(weight.dtype), weight))
    return int(mask.sum())


def distillation(student: Classifier, teacher: Classifier, options: BcuOptions) -> Objective:
    """The distillation objective: the teacher's probabilities (Eq. 2), or its predicted class."""
    start, end = options.temperature

    def objective(views: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - needs no labels
        with torch.no_grad():
            targets = teacher(views)
        if options.targets == "hard":
            return F.cross_entropy(student(views).float(), targets.argmax(1))
        return distillation_loss(student(views), targets, start + (end - start) * progress)

    return objective


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, weights: Tensor | float = 1.0
) -> Tensor:
    """KL(teacher ‖ student) at a temperature, averaged over the batch (Eq. 2), without the factor T².

    Args:
        student_logits: Float ``[N, K]``.
        teacher_logits: Float ``[N, K]``.
        temperature: Temperature, above 0.
        weights: Weight of each image, from 0: one for all, or float ``[N]``.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    divergences = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    return (weights * divergences).mean()
