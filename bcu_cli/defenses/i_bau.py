"""I-BAU: adversarial unlearning of the worst universal perturbation, with an implicit hypergradient.

Zeng, Chen, Park, Mao, Jin, Jia, Adversarial Unlearning of Backdoors via Implicit Hypergradient, ICLR 2022,
arXiv:2110.03735: minimise over the weights the maximum over one perturbation for all images (Eq. 1).
The weights follow the hypergradient. It adds to the gradient at the found perturbation how that perturbation
changes with the weights. By the implicit function theorem this is a linear system, which a fixed-point
iteration solves (Algorithm 1). There are 5 rounds over the images.

Deviations: each step searches a perturbation for its batch, from zero, not once a round for all images. The
perturbation stays within an L2 ball of ``radius`` on images in [0, 1]; the search takes normalised steps in
eval mode. The weights are trained by SGD with a cosine schedule, in train mode, on the clean images of the
batch as well as the perturbed ones. The iteration ends where its terms grow, since inside the ball a step is
not the contraction that the theorem assumes. The 5 rounds and the 5 fixed-point iterations are those of the
authors' code. That code names a ball of 10, but limits the perturbation by a penalty, uses Adam, and perturbs
one image in a hundred. ``radius`` (measured in ``examples/results.md``), ``inner_steps`` and the length of a
step are chosen here. The BCU paper lets it run for 100 rounds (``--epochs 100``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn import functional as F

from bcu_cli.defenses.base import DefenseOptions, TrainedDefense, TrainedOptions, require
from bcu_cli.training.loop import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    Loss = Callable[[Tensor], Tensor]
    """The loss as a function of a perturbation, ``[1, C, H, W]``."""


@dataclass(frozen=True, kw_only=True)
class IBauOptions(TrainedOptions):
    """Options of method ``i-bau``.

    Args:
        radius: Largest L2 norm of the perturbation, on images in [0, 1].
        inner_steps: Steps of the search for the perturbation.
        fixed_point_steps: Steps of the iteration that solves the linear system.
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
    """The method of Zeng et al. 2022."""

    name = "i-bau"
    paper = "Zeng et al., Adversarial Unlearning of Backdoors via Implicit Hypergradient, ICLR 2022"
    variant = "a perturbation for each batch, which is learnt with its clean images, by SGD"
    Options: ClassVar[type[DefenseOptions]] = IBauOptions

    def stages(self) -> Iterator[Stage]:
        """Train the student; each step first searches the perturbation."""
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

        yield Stage(title="unlearning", training=self.training(objective))


def universal_perturbation(loss: Loss, like: Tensor, options: IBauOptions) -> Tensor:
    """Search one perturbation for all images that raises the loss, from zero.

    Args:
        loss: The loss to raise.
        like: A tensor of the perturbation's shape, ``[1, C, H, W]``.
        options: Radius and steps.

    Returns:
        The perturbation, ``[1, C, H, W]``, with an L2 norm of at most the radius.
    """
    found = torch.zeros_like(like)
    for _ in range(options.inner_steps):
        found = found.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(found), found)
        found = _step(found, gradient, options.radius)
    return found.detach()


def _step(perturbation: Tensor, gradient: Tensor, radius: float) -> Tensor:
    """A gradient ascent step of a quarter of the radius, projected back into the ball."""
    moved = perturbation + radius / 4 * gradient / gradient.norm().clamp(min=1e-12)
    bounded: Tensor = moved * (radius / moved.norm().clamp(min=1e-12)).clamp(max=1.0)
    return bounded


def with_hypergradient(loss: Loss, found: Tensor, options: IBauOptions) -> Tensor:
    """The loss at the found perturbation; its gradient by the weights is the hypergradient.

    The perturbation δ is a fixed point of the step Φ(δ, θ) that found it. The hypergradient is
    ∇θ L + (∂Φ/∂θ)ᵀ v, where v = (∂Φ/∂δ)ᵀ v + ∇δ L is iterated from ∇δ L on, as long as that converges.

    Args:
        loss: The loss L, a function of the perturbation and, through the network, of the weights θ.
        found: The perturbation δ.
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
