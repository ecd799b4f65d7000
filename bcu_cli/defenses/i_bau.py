"""I-BAU: the network unlearns the universal perturbation that harms it most, and minds how that one evades.

Zeng, Chen, Park, Mao, Jin, Jia, Adversarial Unlearning of Backdoors via Implicit Hypergradient, ICLR 2022,
arXiv:2110.03735: min over the weights of the max over one perturbation for all images (Eq. 1). The step of
the weights follows the hypergradient: beside the gradient at the found perturbation, how that perturbation
moves with the weights, by the implicit function theorem, its linear system solved by a fixed-point
iteration (Algorithm 1). 5 rounds over the images.

Deviations: each step looks for the perturbation of its own batch, from zero, not of all images once a
round; it is kept within an L2 ball of ``radius`` on images in [0, 1], and moved by normalised steps, in
eval mode. The weights are moved by SGD with a cosine, in train mode, and learn the clean images of the
batch beside the perturbed ones. The iteration ends where its terms grow: inside the ball a step up is no
contraction, as the theorem wants it. The 5 rounds and the 5 fixed-point iterations are the authors' code's;
it names a ball of 10, but keeps the perturbation small by a penalty instead, moves the weights by Adam, and
perturbs one image in a hundred. ``radius`` (measured in ``examples/results.md``), ``inner_steps`` and the
length of a step are chosen here. The BCU paper lets it run for 100 rounds (``--epochs 100``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn import functional as F

from bcu_cli.defenses.base import DefenseOptions, TrainedDefense, TrainedOptions, require
from bcu_cli.training.loop import Stage, Training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    Loss = Callable[[Tensor], Tensor]
    """Of a perturbation, ``[1, C, H, W]``."""


@dataclass(frozen=True, kw_only=True)
class IBauOptions(TrainedOptions):
    """The two problems and the system between them.

    Args:
        radius: Largest L2 norm of the perturbation, of images in [0, 1].
        inner_steps: Of the search for the perturbation.
        fixed_point_steps: Of the iteration that solves the linear system.
    """

    epochs: int | None = 5
    radius: float = 1.0
    inner_steps: int = 10
    fixed_point_steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.radius > 0, f"a radius of {self.radius:g} perturbs nothing", "--setting radius=1")
        require(self.inner_steps >= 1, "the search needs a step or more", "--setting inner_steps=10")
        require(
            self.fixed_point_steps >= 0,
            "the fixed-point iteration needs 0 or more steps",
            "--setting fixed_point_steps=5",
        )


class ImplicitUnlearning(TrainedDefense[IBauOptions]):
    """Zeng et al. 2022."""

    name = "i-bau"
    paper = "Zeng et al., Adversarial Unlearning of Backdoors via Implicit Hypergradient, ICLR 2022"
    Options: ClassVar[type[DefenseOptions]] = IBauOptions

    def stages(self) -> Iterator[Stage]:
        """One training; each step of it solves the inner problem first."""
        self.student.to(self.device.torch)
        labels = self.labels

        def objective(images: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - always the same
            def loss(perturbation: Tensor) -> Tensor:
                return F.cross_entropy(self.student(images + perturbation).float(), labels[index])

            mode = self.student.training
            self.student.eval()
            found = universal_perturbation(loss, images[:1], self.options)
            self.student.train(mode)
            return loss(torch.zeros_like(found)) + with_hypergradient(loss, found, self.options)

        training = Training(
            self.student,
            self.data.images,
            objective,
            self.options.training(),
            device=self.device,
            seed=self.options.seed,
        )
        yield Stage(title="unlearning", training=training)

    def did(self) -> dict[str, Any]:
        """Nothing but that training."""
        return {}


def universal_perturbation(loss: Loss, like: Tensor, options: IBauOptions) -> Tensor:
    """One perturbation for all images that makes the loss large: as many steps from zero as the options say.

    Args:
        loss: To be raised.
        like: The shape, ``[1, C, H, W]``.
        options: Radius and steps.

    Returns:
        ``[1, C, H, W]``, of an L2 norm of at most the radius.
    """
    found = torch.zeros_like(like)
    for _ in range(options.inner_steps):
        found = found.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(found), found)
        found = _step(found, gradient, options.radius)
    return found.detach()


def _step(perturbation: Tensor, gradient: Tensor, radius: float) -> Tensor:
    """A step up of a quarter of the radius, brought back into the ball."""
    moved = perturbation + radius / 4 * gradient / gradient.norm().clamp(min=1e-12)
    bounded: Tensor = moved * (radius / moved.norm().clamp(min=1e-12)).clamp(max=1.0)
    return bounded


def with_hypergradient(loss: Loss, found: Tensor, options: IBauOptions) -> Tensor:
    """The loss at the found perturbation, with the hypergradient as its gradient by the weights.

    The perturbation δ is a fixed point of the step Φ(δ, θ) that found it. The hypergradient is
    ∇θ L + (∂Φ/∂θ)ᵀ v, where v = (∂Φ/∂δ)ᵀ v + ∇δ L is iterated from ∇δ L on, as long as that converges.

    Args:
        loss: L, of the perturbation and, through the network, of the weights θ.
        found: δ.
        options: Radius, and number of iterations.
    """
    perturbation = found.requires_grad_()
    value = loss(perturbation)
    (gradient,) = torch.autograd.grad(value, perturbation, create_graph=True)
    reached = _step(perturbation, gradient, options.radius)
    term = solved = gradient.detach()
    for _ in range(options.fixed_point_steps):
        (turned,) = torch.autograd.grad(reached, perturbation, term, retain_graph=True)
        term = turned * (turned.norm() < term.norm())  # a series whose terms grow has no sum
        solved = solved + term
    response = (solved * reached).sum()
    return value + response - response.detach()
