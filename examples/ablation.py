"""What each part of ``--method auto`` is good for: a network cleansed with all, and without each in turn.

    python examples/ablation.py bad.safetensors --images photos --data labelled/test --out ablation.json

Each row is ``bcu cleanse --quick --force`` in a separate process, in which a part was taken out, then ``bcu
evaluate``. The network's trigger lies beside it, as ``bcu attack`` leaves it. ``--arch`` and its like are
handed on to both. Rows that ``--out`` holds already are not computed again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bcu_cli.defenses import auto
from bcu_cli.defenses.adversarial import effort, mixing, objective, sinusoids
from bcu_cli.defenses.bcu import distillation_loss
from bcu_cli.evaluation.adversary import KINDS, Adversary

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator


AS_IT_IS = "as it is"
NEVER = 1_000_000


def _nothing(*_given: object) -> list[Any]:
    return []


def _no_adversary() -> None:
    """Its images stay as they are; on the original it searches all the same, to judge by."""
    search = Adversary.attack

    def attack(
        self: Adversary, network: Any, images: Tensor, kinds: int = len(KINDS)
    ) -> tuple[Tensor, Tensor]:
        if kinds < len(KINDS):
            return search(self, network, images, kinds)
        return images, torch.stack([0.0 * each.sum() for each in self.parameters()]).sum()

    Adversary.attack = attack  # type: ignore[method-assign]


def _no_weaknesses() -> None:
    """The adversary starts at random, and samples all classes equally often."""
    Adversary.set_sampling_weights = Adversary.load_state_dict = _nothing  # type: ignore[assignment,method-assign]


def _no_corruptions() -> None:
    objective.corrupt = lambda images: images  # type: ignore[attr-defined]


def _no_sinusoids() -> None:
    objective.SINUSOID_DIVISOR = NEVER


def _neither() -> None:
    _no_corruptions()
    _no_sinusoids()


def _no_new_weights() -> None:
    auto.reinitialise = _nothing  # type: ignore[attr-defined, assignment]


def _all_alike() -> None:
    """Every image counts 1, whatever the networks answer."""

    def alike(answers: Tensor, taught: Tensor, *_: object) -> Tensor:
        return distillation_loss(answers, taught, objective.TEMPERATURE)

    objective.distillation_loss = alike  # type: ignore[assignment,attr-defined]


def _no_average() -> None:
    auto.EMA_DECAY = None  # type: ignore[assignment]


def _half() -> None:
    auto.LEVELS = tuple(  # type: ignore[assignment]
        replace(level, **{name: limit / 2 for name, limit in asdict(level).items()}) for level in auto.LEVELS
    )


def _no_gentle_level() -> None:
    """The gentle level does what the next one does: it re-initialises, and mixes nothing."""
    _no_mixes()
    cleansing = auto.Auto._cleansing

    def strong(self: auto.Auto, student: Any, teacher: Any, weaknesses: Any, level: int, title: str) -> Any:
        return cleansing(self, student, teacher, weaknesses, max(level, auto.GENTLE + 1), title)

    auto.Auto._cleansing = strong  # type: ignore[method-assign]


def _gentle_alone() -> None:
    """The gentle level whatever stands out, without mixes: what ``frontier.py`` mixes afterwards."""
    effort.USUAL = replace(effort.USUAL, reinitialise=False)
    _no_mixes()


def _no_mixes() -> None:
    """The gentle level keeps the student as it was trained."""
    mixing.MIN_UNMIXED_AGREEMENT = 0.0


def _objective(
    *,
    both_attacked: bool = False,
    own_statistics: bool = False,
    radius: float = 0.0,
    all_logits: bool = False,
) -> None:
    """The method's objective, with changes.

    Args:
        both_attacked: The adversary learns from the mean logits of original and student.
        own_statistics: BatchNorm normalises clean and changed images by statistics of their own, and keeps
            those of the clean ones (Xie et al., AdvProp, CVPR 2020).
        radius: Above 0, the loss is that of the worst weights within this radius, in which each weight moves
            in proportion to its size (Kwon et al., ASAM, ICML 2021; Zhu et al., FT-SAM, ICCV 2023).
        all_logits: On clean images the logits of clear classes are compared, too.
    """

    def training_objective(
        student: Any,
        teacher: Any,
        adversary: Adversary,
        weights: Tensor,
        how: effort.Effort,
        clear_classes: Collection[int] = (),
    ) -> Any:
        attacked = _Mean(student, teacher) if both_attacked else student
        weight = how.error_factor * objective.DISAGREEMENT_WEIGHT
        enough = teacher.num_classes - len(clear_classes) >= objective.FEWEST_COMPARED
        left_out = sorted(clear_classes) if how.mixed_images and enough and not all_logits else []

        def loss_of(views: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - always the same
            half = len(views) // 2
            quota = half // objective.SINUSOID_DIVISOR
            adversarial, surrogate = adversary.attack(attacked, views[half:])
            with_sinusoids = sinusoids.add_sinusoids(views[:quota], weights)
            corrupted = objective.corrupt(views[quota:half])  # type: ignore[attr-defined]  # or its replacement
            changed = torch.cat([with_sinusoids, corrupted, adversarial])
            clean = torch.cat([views, objective.mixup(views)]) if how.mixed_images else views
            both = torch.cat([clean, changed]).contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                taught, on_changed_before = teacher(both).split([len(clean), len(views)])
            expected, on_pairs = taught[: len(views)], taught[len(views) :]
            right = expected.argmax(1)

            def loss(network: Callable[[Tensor], Tensor]) -> Tensor:
                if own_statistics:
                    on_images = network(clean)
                    with _no_new_statistics(student):
                        on_changed = network(changed)
                else:
                    on_images, on_changed = network(both).split([len(clean), len(views)])
                on_clean = on_images[: len(views)]
                counts = on_changed.argmax(1) != right
                if not how.all_errors:
                    counts = counts & (on_changed.argmax(1) == on_changed_before.argmax(1))
                disagree = on_clean.argmax(1) != right
                of_clean = 1.0 + weight * disagree
                of_changed = weight * objective.emphasis(disagree) * counts
                compared = objective.without(on_clean, left_out), objective.without(expected, left_out)
                parts = [
                    distillation_loss(*compared, objective.TEMPERATURE, of_clean),
                    distillation_loss(on_changed, expected, objective.TEMPERATURE, of_changed),
                ]
                if how.mixed_images:
                    parts.append(distillation_loss(on_images[len(views) :], on_pairs, objective.TEMPERATURE))
                return torch.stack(parts).sum()

            return (loss(_at_the_worst(student, loss, radius)) if radius else loss(student)) + surrogate

        return loss_of

    auto.training_objective = training_objective  # type: ignore[assignment,attr-defined]


_switches: dict[str, Any] = {}


def _switch(**more: Any) -> None:
    """Change the objective, beside the changes that were made before."""
    _switches.update(more)
    _objective(**_switches)


def _at_the_worst(
    student: torch.nn.Module, loss: Callable[[Callable[[Tensor], Tensor]], Tensor], radius: float
) -> Callable[[Tensor], Tensor]:
    """The network with its weights moved up the loss by a radius, of each in proportion to its size."""
    weights = dict(student.named_parameters())
    gradients = torch.autograd.grad(loss(student), list(weights.values()))
    with torch.no_grad():
        sizes = [value.abs() + 0.01 for value in weights.values()]
        pairs = list(zip(sizes, gradients, strict=True))
        norm = torch.stack([(size * gradient).norm() for size, gradient in pairs]).norm() + 1e-12
        steps = [radius / norm * size.square() * gradient for size, gradient in pairs]
    moved = {name: value + step for (name, value), step in zip(weights.items(), steps, strict=True)}
    return lambda images: torch.func.functional_call(student, moved, (images,))


def _all_errors() -> None:
    """A changed image counts wherever the student is misled, as the original is or not."""
    effort.USUAL = replace(effort.USUAL, all_errors=True)


def _no_mixed_images() -> None:
    """The student learns nothing from mixes of two images."""
    effort.USUAL = replace(effort.USUAL, mixed_images=False)


def _cutmix(images: Tensor) -> Tensor:
    """Each image with a box of the one before it, the same box for all (Yun et al., CutMix, ICCV 2019)."""
    height, width = images.shape[2:]
    share = float(torch.rand(())) ** 0.5
    tall, wide = round(share * height), round(share * width)
    top, left = int(torch.randint(height - tall + 1, ())), int(torch.randint(width - wide + 1, ()))
    mixed, place = images.clone(), (..., slice(top, top + tall), slice(left, left + wide))
    mixed[place] = images.roll(1, 0)[place]
    return mixed


def _norms_alone() -> None:
    """At the gentle level scales and shifts of BatchNorm alone are trained (Karim et al., NFT, ECCV 2024)."""
    cleansing = auto.Auto._cleansing

    def of_norms(self: auto.Auto, student: Any, teacher: Any, weaknesses: Any, level: int, title: str) -> Any:
        for module in student.modules():
            if level == auto.GENTLE and not isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
        return cleansing(self, student, teacher, weaknesses, level, title)

    auto.Auto._cleansing = of_norms  # type: ignore[method-assign]


def _weight(of: float) -> None:
    objective.DISAGREEMENT_WEIGHT = of


def _optimizer(*, adamw: bool) -> None:
    """One optimiser for every network; the method takes AdamW for those with LayerNorm alone."""
    auto.normalised_by = lambda *_: "layer" if adamw else "batch"  # type: ignore[attr-defined]


@contextmanager
def _no_new_statistics(network: torch.nn.Module) -> Iterator[None]:
    """Let BatchNorm normalise by the batch without keeping its statistics."""
    norms = [each for each in network.modules() if isinstance(each, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class _Mean(torch.nn.Module):
    """The mean logits of two networks."""

    def __init__(self, *networks: torch.nn.Module) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([network(images) for network in self.networks]).mean(0)


WITHOUT: dict[str, Callable[[], None]] = {
    AS_IT_IS: lambda: None,
    "without the adversary": _no_adversary,
    "without its start from the original's weaknesses": _no_weaknesses,
    "without random changes": _no_corruptions,
    "without sinusoidal patterns": _no_sinusoids,
    "without random changes and sinusoidal patterns": _neither,
    "without re-initialised weights": _no_new_weights,
    "with all images counting alike": _all_alike,
    "without the moving average": _no_average,
    "with half of the adversary's limits": _half,
    "without the gentle level": _no_gentle_level,
    "without mixes with the original": _no_mixes,
    "with the gentle level alone": _gentle_alone,
    "with all errors": _all_errors,
    "with both networks attacked": lambda: _switch(both_attacked=True),
    "with statistics of their own": lambda: _switch(own_statistics=True),
    "with sharpness-aware minimisation": lambda: _switch(radius=2.0),
    "with the logits of clear classes": lambda: _switch(all_logits=True),
    "without mixed images": _no_mixed_images,
    "with boxes of images in place of mixed ones": lambda: setattr(objective, "mixup", _cutmix),
    "with BatchNorm alone trained": _norms_alone,
    "without emphasis": lambda: setattr(objective, "MOST_EMPHASIS", 1.0),
    "trained by SGD": lambda: _optimizer(adamw=False),
    "trained by AdamW": lambda: _optimizer(adamw=True),
    "with errors weighing 2": lambda: _weight(2.0),
    "with errors weighing 6": lambda: _weight(6.0),
    "with errors weighing 8": lambda: _weight(8.0),
}


def main() -> None:
    """Read the command line; the process of a row has its name before bcu's own words."""
    if sys.argv[1:2] == ["--without"]:
        from bcu_cli.cli.app import run  # in this process: bcu's own child would have all parts

        for name in sys.argv[2].split(" + "):
            WITHOUT[name]()
        sys.exit(run(sys.argv[3:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="to cleanse with")
    parser.add_argument("--data", type=Path, required=True, help="labelled, to measure on")
    parser.add_argument("--out", type=Path, required=True, help="JSON; rows that it holds are kept")
    parser.add_argument("--rows", nargs="+", choices=list(WITHOUT), default=list(WITHOUT))
    given, handed_on = parser.parse_known_args()
    rows = json.loads(given.out.read_text()) if given.out.exists() else {}
    key = "/".join(given.model.with_suffix("").parts[-2:])
    of_model = rows.setdefault(key, {})
    for name in given.rows:
        if name not in of_model:
            of_model[name] = _row(name, given.model, given.images, given.data, handed_on)
            given.out.write_text(json.dumps(rows, indent=1) + "\n")
        sys.stdout.write(_line(name, of_model[name]) + "\n")
        sys.stdout.flush()


def _row(name: str, model: Path, images: Path, data: Path, handed_on: list[str]) -> dict[str, Any]:
    """What one variant leaves, and what it says of itself."""
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder) / "clean.safetensors"
        how = [
            "cleanse",
            model,
            "--images",
            images,
            "--quick",
            "--force",
            "--out",
            clean,
            *handed_on,
            "--json",
        ]
        cleansed = _bcu("--without", name, *how)
        trigger = ["--trigger", model.with_suffix(".trigger.safetensors")]
        measured = _bcu(
            "--without", AS_IT_IS, "evaluate", model, clean, "--data", data, *trigger, *handed_on, "--json"
        )
    before, after = measured["models"]
    return {
        "versions": cleansed["versions"],
        "device": cleansed["device"],
        "seconds": cleansed["seconds"]["total"],
        "verdict": cleansed["verdict"]["word"],
        "level": cleansed["details"]["level"],
        "mix": cleansed["details"]["mix"],
        **{
            f"{what}_{when}": of[what]
            for when, of in (("before", before), ("after", after))
            for what in ("acc", "asr")
        },
    }


def _bcu(*words: object) -> dict[str, Any]:
    """The report of a command; 1 and 2 are verdicts."""
    command = [sys.executable, __file__, *map(str, words)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - our own program
    if ran.returncode not in {0, 1, 2} or not ran.stdout:
        raise SystemExit(ran.returncode or 1)
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


def _line(name: str, row: dict[str, Any]) -> str:
    """A row of a table in Markdown."""
    low, high = row["asr_after"]["interval95"]
    acc, asr = (row[f"{what}_after"]["value"] for what in ("acc", "asr"))
    asr_said = f"{asr:.2%} ({low:.1%} to {high:.1%})"
    return f"| {name} | {acc:.2%} | {asr_said} | {row['verdict']} | {row['seconds']:.0f} |"


if __name__ == "__main__":
    main()
