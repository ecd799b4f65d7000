"""Adversarial distillation that finds its strength by itself, and says what it can prove. bcu's own.

From the paper (CVPR 2023) come the re-initialised student and its teaching on unlabeled images. What is
added, since that alone leaves the backdoors of networks its ratios were not tuned for (``docs/auto.md``):

1. While the student learns, an :class:`Adversary` learns how all images can be led to a class, and the
   student is taught to give the teacher's answers to the *unchanged* images on the changed ones too: what
   I-BAU does with labels (Zeng et al., ICLR 2022). It begins with what it has found on the original network,
   and mostly leads where that one could be led. As many images are changed otherwise, for what no adversary
   finds: a third of them by a wave, most often of a kind that leads the original (``waves.py``), the others
   at random (``disturbance.py``). What the student answers otherwise than the teacher counts most; changed
   images that it answers alike count nothing. The student is the moving average of its weights.
2. How strong the adversary must be is tried on a copy of the network that was taught backdoors of our own
   (``canary.py``): the first of ``LEVELS`` that removes these is taken.
3. Another adversary, turned against the original network from another start, finds triggers to judge by:
   those that stand out from what it finds for other classes; beside them stand waves that lead the original.
   Where one still works on the cleansed network, the next level is taken. What they and the canaries still do
   in the end is the evidence for the verdict; no label and no trigger of the attacker's is used.
4. All of these were found on the original, and the student learnt against their like. So before the verdict
   is ``cleansed``, patches are searched anew on the cleansed network (``residues.py``): for the classes that
   stood out and for others as controls. A class that is led clearly more often than the others speaks against
   it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import ceil, log
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bcu_cli.defenses import canary, patches, waves
from bcu_cli.defenses.adversary import KINDS, SELDOM, UNIVERSAL, Adversary, Limits, odds
from bcu_cli.defenses.base import DefenseOptions, TrainedDefense, TrainedOptions, Verdict, copy_of
from bcu_cli.defenses.bcu import BcuOptions, distillation_loss, reinitialise
from bcu_cli.defenses.disturbance import disturb
from bcu_cli.defenses.residues import STEERED, Contest, Pair, Residue, contest, spread
from bcu_cli.evaluation.measures import Proportion, above_others, agreement
from bcu_cli.evaluation.suitability import confidence_and_answer
from bcu_cli.images.augmentation import NO_AUGMENTATION
from bcu_cli.models.classifier import name_of
from bcu_cli.training.inference import in_batches, predict
from bcu_cli.training.loop import Companion, Stage, Training
from bcu_cli.triggers.base import to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from bcu_cli.defenses.residues import Change
    from bcu_cli.models import Classifier
    from bcu_cli.training.loop import Objective
    from bcu_cli.triggers.base import Trigger

FEWEST_STEPS, EPOCHS, MOST_STEPS = 400, 20, 3000
"""A training has ``EPOCHS`` passes over the images, within these steps."""
CANARY_STEPS, SEARCH_STEPS = 200, 120
AVERAGE = 0.98
"""Decay of the moving average of the weights that a cleansing ends with."""
TEMPERATURE = 2.0
PLANTED = 0.8
"""What a canary must reach in the copy to prove anything."""
TAKEN = 0.5
"""What a class that another canary leads to counts for, as the share of images led there by nature."""
DEAD = 0.2
"""What it may still reach once it counts as removed."""
WORKS = 0.9
"""What a trigger that was found reaches on the original."""
STANDS_OUT = 3.5
"""How far, in log-odds, above the median of the other classes: from 75 % to 99 %, or from 21 % to 90 %."""
HARMLESS = 0.4
"""What it may still reach on the cleansed network: a clean one is led astray by some, too."""
KEPT = 0.7
"""Least agreement with the original on the half of the images held out that it is surer of.

Of images unlike those that it was made for, a good copy gives many another answer (``docs/auto.md``).
"""
ASTRAY = 2.0
"""What an image counts, changed or not, that the student answers otherwise than the teacher did.

Unchanged images count 1 beside that, changed ones nothing: so those that lead nowhere any more do not crowd
out the others. The focal loss (Lin et al., ICCV 2017) in its hardest form; figures in ``docs/auto.md``.
"""
WAVED = 3
"""One in so many of the images that the adversary does not have gets a wave, the others are disturbed."""
FEWEST_JUDGED = 50
"""Images held out, a tenth of all: of ten, one led astray by chance is 10 %."""
MOST_SHOWN_WAVES = 200
"""Of the images held out."""
FEWEST_ANSWERS, MOST_ANSWERS = 50, 100_000
"""Of a network while triggers are tried on it: for each of them, and for all together."""

LEVELS = (
    Limits(patch=0.03, shift=0.06, warp=0.125),
    Limits(patch=0.06, shift=0.12, warp=0.25),
)
"""How far the adversary may go, from weak to strong."""
ANEW_STEPS, ANEW_BATCH = 160, 64
"""Steps of the search on the cleansed network, for patches alone, and most images in one of them."""
ANEW_LIMITS = replace(LEVELS[0], patch=LEVELS[0].patch / 2)
"""How far it may go: the student's own limits lead many a network to any class, so that none stands out."""
STARTS = 3
"""Patches that this search begins with for each class, where classes stood out."""
SUSPECTS, CONTROLS = 3, 6
"""Most classes that stood out and are searched anew, and classes that they are compared with."""


@dataclass(frozen=True, kw_only=True)
class AutoOptions(TrainedOptions):
    """What there is to say.

    Args:
        epochs: Of each cleansing. None is ``EPOCHS`` within ``FEWEST_STEPS`` and ``MOST_STEPS``.
        batch_size: Most images in a step; as many changed ones are added.
        learning_rate: The highest; it rises for a quarter of the steps, then falls.
        quick: Only the first level, without canaries.
    """

    batch_size: int = 128
    learning_rate: float = 0.05
    quick: bool = False


class Auto(TrainedDefense[AutoOptions]):
    """Adversarial distillation, with a search for its strength and a verdict."""

    name = "auto"
    paper = "own; after Pang et al., CVPR 2023 and Zeng et al., I-BAU, ICLR 2022"
    Options: ClassVar[type[DefenseOptions]] = AutoOptions
    needs_labels = False

    level: int
    trials: list[list[Residue]]
    found: list[Residue]
    waves: list[Residue]
    kept: Proportion
    anew: list[Contest]
    _usual: Tensor
    _surer: Tensor
    _weakness: Adversary
    _judge: Adversary
    _before: dict[tuple[str, int], Proportion]
    _tried: list[tuple[Change, int, Proportion]]
    _leading: Tensor

    def decide(self, options: AutoOptions) -> AutoOptions:
        """See :meth:`Defense.decide`."""
        if options.epochs is None:
            per_epoch = min(ceil(len(self.data) / options.batch_size), MOST_STEPS)
            steps = min(max(EPOCHS * per_epoch, FEWEST_STEPS), MOST_STEPS)
            options = replace(options, epochs=ceil(steps / per_epoch))
        return super().decide(options)

    def stages(self) -> Iterator[Stage]:
        """What the original is weak against; canaries; triggers to judge by; and then the cleansing."""
        self.teacher.to(self.device.torch, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.level, self.trials, self.anew = 0, [], []
        self._usual, self._surer = self._usual_answers()
        self._weakness = self._adversary(LEVELS[0], self.options.seed)
        yield self._search(self._weakness, self.teacher, "looking for weaknesses")
        self._weakness.prefer(self._successes(self._weakness, self.teacher))
        led = [self._led(self.teacher, wave)[1] for wave in waves.one_of_each(self.options.seed)]
        self._leading = torch.tensor([SELDOM + odds(each) for each in led], device=self.device.torch)
        if not self.options.quick:
            yield from self._try_on_canaries()
        self._judge = self._adversary(LEVELS[0], self.options.seed + 1)
        yield self._search(self._judge, self.teacher, "looking for triggers")
        self._before = self._successes(self._judge, self.teacher)
        self._tried = [
            (wave, *self._led(self.teacher, wave)) for wave in waves.one_of_each(self.options.seed + 1)
        ]
        while True:
            yield self._cleansing(self.student, LEVELS[self.level], f"cleansing, level {self.level + 1}")
            self._measure_residues()
            harm = _most(self._working() + self.waves)
            if self.options.quick or self.level + 1 == len(LEVELS) or harm <= HARMLESS:
                break
            self.level += 1
            self.student = copy_of(self.teacher)
        self.kept = self._keeps()
        if self._by_what_was_known().good:
            yield from self._look_anew()

    def measure_again(self) -> None:
        """See :meth:`Defense.measure_again`."""
        self._measure_residues()
        self.kept = self._keeps()
        if self.anew:
            self._contest(self._pair, self._suspected)

    def did(self) -> dict[str, Any]:
        """The level, and the evidence."""
        working = self._working()
        return {
            "level": self.level + 1,
            "levels": len(LEVELS),
            "limits": asdict(LEVELS[self.level]),
            "trials": [[each.as_json() for each in trial] for trial in self.trials],
            "waves": {"tried": waves.CELLS, "working": [each.as_json() for each in self.waves]},
            "found_triggers": [{**each.as_json(), "stands_out": each in working} for each in self.found],
            "found_anew": [each.as_json() for each in self.anew],
        }

    def verdict(self) -> Verdict:
        """By what canaries and triggers known before still do, and what was found on the cleansed network."""
        verdict = self._by_what_was_known()
        left = [residue for each in self.anew for residue in each.left]
        if not verdict.good or not left:
            return verdict
        worst = max(left, key=lambda each: each.after.value)
        why = (
            f"a {worst.trigger} found on the cleansed network leads {worst.after.hits} of {worst.after.of} "
            f"images to class {worst.target}, clearly more than such lead to other classes"
        )
        return Verdict(word="not cleansed", why=why)

    def _by_what_was_known(self) -> Verdict:
        """By what the canaries and the triggers that were found on the original still do."""
        planted, working = self._planted(), self._working()
        for what, residues, most in (
            ("a backdoor to test with", planted, DEAD),
            ("a trigger found on the original", working, HARMLESS),
            ("a wave that worked on the original", self.waves, HARMLESS),
        ):
            if _most(residues) > most:
                why = f"{what} still works on {_most(residues):.0%} of the images"
                return Verdict(word="not cleansed", why=why)
        if self.trials and not planted:
            return _unknown("the backdoors to test with could not be taught to a copy of the network")
        if not planted and not working:
            return _unknown("no trigger stands out on the original, and none was planted to test with")
        if len(self.held_out) < FEWEST_JUDGED:
            return _unknown(
                f"{len(self.held_out)} images held out are too few to judge by; 500 in all would do"
            )
        if self.kept.value < KEPT:
            return _unknown(
                f"the cleansed network answers like the original on {self.kept.value:.0%} alone of the "
                "images that the original is surer of"
            )
        what = "the backdoors to test with and the triggers found" if planted else "the triggers found"
        return Verdict(word="cleansed", why=f"{what} do not work any more")

    def _measure_residues(self) -> None:
        """What the triggers found and the waves that led the original do to the student."""
        after = self._successes(self._judge, self.student)
        self.found = [
            Residue(trigger=kind, target=target, before=share, after=after[kind, target])
            for (kind, target), share in self._before.items()
        ]
        self.waves = [
            Residue(trigger="wave", target=to, before=share, after=self._led(self.student, wave, to)[1])
            for wave, to, share in self._tried
            if share.value >= WORKS
        ]

    def _usual_answers(self) -> tuple[Tensor, Tensor]:
        """What the original answers to the images held out, and which half of them it is surer of."""
        confidence, answers = in_batches(
            lambda images: confidence_and_answer(self.teacher(images)),
            self.held_out.images,
            self.device,
            name=name_of(self.teacher),
        ).T
        return answers.long(), confidence.topk(ceil(len(confidence) / 2)).indices

    def _keeps(self) -> Proportion:
        """On how many of those that the original is surer of the student answers like it."""
        images, usual = self.held_out.images[self._surer], self._usual[self._surer]
        return agreement(self.student, usual, images, self.device)

    def _planted(self) -> list[Residue]:
        """The canaries of the level taken, those that could be taught."""
        last = self.trials[-1] if self.trials else []
        return [each for each in last if each.before.value >= PLANTED]

    def _working(self) -> list[Residue]:
        """The triggers found that work on the original, far better than those of their kind for others.

        A clean network is led to some classes, too, and then to most.
        """
        working = []
        for kind in UNIVERSAL:
            alike = [each for each in self.found if each.trigger == kind]
            if len(alike) > 1:
                odds = torch.tensor([_log_odds(each.before) for each in alike])
                ahead = zip(alike, above_others(odds).tolist(), strict=True)
                working += [each for each, by in ahead if each.before.value >= WORKS and by >= STANDS_OUT]
        return working

    def _try_on_canaries(self) -> Iterator[Stage]:
        """Plant them in a copy, and find the level that removes them."""
        taught = copy_of(self.teacher)
        triggers = canary.draw(self.teacher.preprocessing.input_size, self.options.seed)
        targets = self._targets(triggers)
        objective = canary.teaching(taught, self.teacher, triggers, targets)
        planting = self._training(taught, objective, **self._length(CANARY_STEPS))
        yield Stage(title="planting canaries", training=planting)
        for level in range(len(LEVELS)):
            trial = copy_of(taught)
            yield self._cleansing(trial, LEVELS[level], f"cleansing canaries, level {level + 1}")
            self.level = level
            residues = [
                Residue(
                    trigger=name,
                    target=target,
                    before=self._success(taught, trigger.apply_to_bytes, target),
                    after=self._success(trial, trigger.apply_to_bytes, target),
                )
                for name, trigger, target in zip(canary.NAMES, triggers, targets, strict=True)
            ]
            self.trials.append(residues)
            planted = self._planted()
            if planted and all(each.after.value <= DEAD for each in planted):
                return

    def _targets(self, triggers: Sequence[Trigger]) -> list[int]:
        """For each canary a class that its trigger leads to hardly by nature, and no other canary does."""
        taken = torch.zeros(self.teacher.num_classes)
        usual = torch.bincount(self._usual, minlength=len(taken))
        taken[usual == len(self._usual)] = torch.inf  # nothing would be left to lead there
        targets: list[int] = []
        for trigger in triggers:
            answers = predict(
                self.teacher, self.held_out.images, self.device, transform=trigger.apply_to_bytes
            )
            counts = torch.bincount(answers, minlength=len(taken))
            targets.append(int((counts / len(answers) + TAKEN * taken).argmin()))
            taken[targets[-1]] += 1
        return targets

    def _cleansing(self, student: Classifier, limits: Limits, title: str) -> Stage:
        """Draw part of a copy anew, then teach it against an adversary."""
        student.cpu()  # where what is drawn anew is drawn; the training takes it to the device
        reinitialise(student.network, self.example(), BcuOptions(seed=self.options.seed))
        adversary = self._adversary(limits, self.options.seed)
        adversary.load_state_dict(self._weakness.state_dict())
        companion = Companion(module=adversary, optimizer=adversary.optimizer())
        objective = self._teaching(student, adversary)
        how: dict[str, Any] = {"epochs": self.options.epochs, "epoch_steps": MOST_STEPS, "ema": AVERAGE}
        training = self._training(student, objective, companion, **how)
        return Stage(title=title, training=training)

    def _teaching(self, student: nn.Module, adversary: Adversary) -> Objective:
        def objective(views: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - always the same
            with torch.no_grad():
                taught = self.teacher(views)
            half = len(views) // 2
            waved, disturbed = views[: half // WAVED], views[half // WAVED : half]
            astray, lever = adversary.against(student, views[half:])
            changed = [waves.across(waved, self._leading), disturb(disturbed), astray]
            both = torch.cat([views, *changed]).contiguous(memory_format=torch.channels_last)
            clean, misled = student(both).split(len(views))
            return _loss(clean, taught, always=1.0) + _loss(misled, taught, always=0.0) + lever

        return objective

    def _look_anew(self) -> Iterator[Stage]:
        """Search the cleansed network for patches: for what stood out on the original, and for controls."""
        steering = self.data.images[spread(torch.arange(len(self.data)), STEERED)]
        pair = Pair(self.teacher, self.student, steering, self.held_out.images, self.device)
        shape, seed = self.teacher.preprocessing.input_size, self.options.seed + 2
        tried = pair.promising(patches.draw(shape, seed))
        suspects = self._suspects()
        if suspects:
            tried = {target: tried[target] for target in self._with_controls(suspects, list(tried))}
        targets = [target for target in tried for _ in range(STARTS)] if suspects else None
        adversary = Adversary(self.teacher.num_classes, shape, ANEW_LIMITS, seed=seed, targets=targets)
        adversary.to(self.device.torch)
        how = {"batch_size": ANEW_BATCH, **self._length(ANEW_STEPS, ANEW_BATCH)}
        yield self._search(adversary, self.student, "looking for what is left", kinds=1, **how)
        searched: dict[int, list[Change]] = {}
        for slot, target in enumerate(adversary.wanted.tolist()):
            if target in tried:
                searched.setdefault(target, []).append(_on_bytes(adversary, slot, 0))
        self._anew_by: dict[str, Mapping[int, Sequence[Change]]] = {
            "tried outright": tried,
            "searched by gradient": searched,
        }
        self._contest(pair, suspects)

    def _contest(self, pair: Pair, suspects: list[int]) -> None:
        """Compare what leads the student, as it is now, to suspected classes with what leads it to others."""
        self._pair, self._suspected = pair, suspects
        most = SUSPECTS + CONTROLS
        self.anew = [contest(pair, how, changes, suspects, most) for how, changes in self._anew_by.items()]

    def _suspects(self) -> list[int]:
        """The classes that stood out on the original, those that were led most often first."""
        ranked = sorted(self._working(), key=lambda each: -_log_odds(each.before))
        return list(dict.fromkeys(each.target for each in ranked))[:SUSPECTS]

    def _with_controls(self, suspects: list[int], classes: list[int]) -> list[int]:
        """Some classes, and others drawn at random to compare them with."""
        generator = torch.Generator().manual_seed(self.options.seed)
        order = torch.randperm(len(classes), generator=generator).tolist()
        others = [classes[i] for i in order if classes[i] not in suspects]
        return [each for each in suspects if each in classes] + others[:CONTROLS]

    def _search(
        self,
        adversary: Adversary,
        network: Classifier,
        title: str,
        kinds: int = len(UNIVERSAL),
        **how: Any,
    ) -> Stage:
        """Turn an adversary against a network, by the first so many kinds of changes."""

        def objective(views: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - needs no labels
            return adversary.against(network, views, kinds)[1]

        how = {
            "schedule": "constant",
            "augmentation": NO_AUGMENTATION,
            **self._length(SEARCH_STEPS),
            **how,
        }
        training = self._training(adversary, objective, optimizer=adversary.optimizer(), **how)
        return Stage(title=title, training=training)

    def _successes(self, adversary: Adversary, network: Classifier) -> dict[tuple[str, int], Proportion]:
        """How an adversary's changes lead a network's answers to their classes, by kind and class."""
        wanted = [each for each in adversary.wanted.tolist() if bool((self._usual != each).any())]
        most = max(FEWEST_ANSWERS, MOST_ANSWERS // (len(UNIVERSAL) * max(1, len(wanted))))
        slots = {target: slot for slot, target in enumerate(adversary.wanted.tolist())}
        return {
            (kind, target): self._success(network, _on_bytes(adversary, slots[target], way), target, most)
            for way, kind in enumerate(UNIVERSAL)
            for target in wanted
        }

    def _led(self, network: Classifier, change: Change, target: int | None = None) -> tuple[int, Proportion]:
        """The class that a change leads to, the one it leads to most if none is named, and how often.

        Of some held-out images that the original answers otherwise.
        """
        shown = spread(torch.arange(len(self._usual)), MOST_SHOWN_WAVES)
        images, usual = self.held_out.images[shown], self._usual[shown]
        answers = predict(network, images, self.device, transform=change)
        classes = network.num_classes
        hits = torch.bincount(answers[answers != usual], minlength=classes)
        of = (len(usual) - torch.bincount(usual, minlength=classes)).clamp(min=1)
        target = int((hits / of).argmax()) if target is None else target
        return target, Proportion(hits=int(hits[target]), of=int(of[target]))

    def _length(self, steps: int, batch_size: int | None = None) -> dict[str, Any]:
        """As many epochs as hold so many steps, of no more than these."""
        per_epoch = min(ceil(len(self.data) / (batch_size or self.options.batch_size)), steps)
        return {"epochs": ceil(steps / per_epoch), "epoch_steps": steps}

    def _adversary(self, limits: Limits, seed: int) -> Adversary:
        shape = self.teacher.preprocessing.input_size
        return Adversary(self.teacher.num_classes, shape, limits, seed=seed).to(self.device.torch)

    def _training(
        self,
        network: nn.Module,
        objective: Objective,
        companion: Companion | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **how: Any,
    ) -> Training:
        return Training(
            network,
            self.data.images,
            objective,
            self.options.training(**{"schedule": "one-cycle", **how}),
            device=self.device,
            seed=self.options.seed,
            optimizer=optimizer,
            companions=[companion] if companion else [],
        )

    def _success(
        self, network: Classifier, change: Change, target: int, most: int | None = None
    ) -> Proportion:
        """Of the held-out images that the original answers otherwise: how many are led to the target."""
        index = (self._usual != target).nonzero()[:, 0]
        others = self.held_out.images[spread(index, most or len(index))]
        answers = predict(network, others, self.device, transform=change)
        return Proportion(hits=int((answers == target).sum()), of=len(others))


def _loss(answers: Tensor, taught: Tensor, *, always: float) -> Tensor:
    """Of a student's answers: each counts ``always``, and ``ASTRAY`` more if it is not what was taught."""
    weights = always + ASTRAY * (answers.argmax(1) != taught.argmax(1))
    return distillation_loss(answers, taught, TEMPERATURE, weights)


def _on_bytes(adversary: Adversary, slot: int, kind: int) -> Change:
    """One of the adversary's changes, of images as a file would hold them."""

    def change(images: Tensor) -> Tensor:
        slots = torch.full((len(images),), slot, device=images.device)
        counts = [len(images) if way == kind else 0 for way in range(len(KINDS))]
        return to_bytes(adversary(images.float() / 255.0, slots, counts))

    return change


def _log_odds(success: Proportion) -> float:
    """Of a success that may be none or all."""
    return log((success.hits + 0.5) / (success.of - success.hits + 0.5))


def _most(residues: Sequence[Residue]) -> float:
    """What the one that does most still does."""
    return max((each.after.value for each in residues), default=0.0)


def _unknown(why: str) -> Verdict:
    return Verdict(word="could not tell", why=why)
