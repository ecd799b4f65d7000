"""Adversarial distillation that chooses its own strength and judges its own success.

The re-initialised student that learns from the teacher on unlabeled images is the paper's (CVPR 2023). Alone
it leaves backdoors in networks that its ratios were not tuned for (``docs/auto.md``). This method adds:

0. Where there are many classes, universal changes choose those to search (``class_screening.py``). All
   searches are those of ``searching.py``.
1. Robust distillation. An :class:`Adversary` learns universal changes that make images be predicted as a
   class. The student must give the teacher's answers to the *clean* images on the changed ones as well; I-BAU
   does this with labels (Zeng et al., ICLR 2022). The adversary starts from what it found on the original
   network and samples most often the changes that succeeded there. An equal number of images is changed
   without gradients. One third of these get sinusoidal patterns (``sinusoids.py``), most often of kinds that
   succeed on the original; the others get random corruptions (``corruptions.py``). A changed image counts
   only where the change misleads student and teacher alike, so that the student unlearns the teacher's faults
   alone (SAU; Wei et al., NeurIPS 2023). The loss is ``objective.py``. The student is the moving average of
   its weights.
2. Evidence for the verdict. A second adversary with another seed searches the original for triggers that
   succeed far more often than those for other classes (``original_triggers.py``). Where none stands out, a
   sinusoid may (``evaluation/spectrum.py``). Sinusoidal patterns that succeed on the original are added.
3. A search for the strength, where no trigger stands out on images that are not large. A copy of the network
   is taught known backdoors (``canary.py``), searched as the original was, and cleansed. The first of
   ``LEVELS`` that removes them is taken. Where none does, or a trigger stands out, it is the first of all.
4. That first level is gentle. The student starts at the original's weights, since re-initialisation costs
   accuracy. Its weights are then mixed with the original's (``mixing.py``), unless it answers as the original
   does anyway: with little more of the student's than removes what stands out, or with a fixed share where
   nothing does. A user may prefer more or less of the original's.
5. Verification. All triggers of step 2 come from the original, and the student was trained against similar
   ones. So before the verdict is ``cleansed``, triggers are searched on the cleansed network itself
   (``verification.py``), for the suspected classes and for control classes.

If a trigger of step 2 still works, or a class is reached clearly more often than the others in step 5, the
next level is taken; on small images after the gentle one whenever the verdict is not good but can be. The
verdict uses no labels and no trigger of the attacker (``evidence.py``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from bcu_cli.defenses.adversarial import canary, effort, outlook, sinusoids
from bcu_cli.defenses.adversarial.evidence import (
    MIN_HELD_OUT,
    Evidence,
    canaries_removed,
    learned_canaries,
)
from bcu_cli.defenses.adversarial.mixing import MARGIN, Mixture, onward, unguided
from bcu_cli.defenses.adversarial.objective import training_objective
from bcu_cli.defenses.adversarial.original_triggers import OriginalTriggers
from bcu_cli.defenses.adversarial.residual_search import FoundTrigger, ModelPair, TriggerSuccess
from bcu_cli.defenses.adversarial.searching import LIMITS, Searcher
from bcu_cli.defenses.adversarial.verification import Verification
from bcu_cli.defenses.base import (
    DefenseOptions,
    TrainedDefense,
    TrainedOptions,
    Verdict,
    copy_of,
    require,
)
from bcu_cli.defenses.bcu import BcuOptions, reinitialise
from bcu_cli.evaluation.class_screening import FEWEST_CLASSES, LARGEST_SHARE
from bcu_cli.evaluation.measures import Proportion, agreement
from bcu_cli.models.classifier import place
from bcu_cli.models.normalisation import normalised_by
from bcu_cli.training.inference import predict
from bcu_cli.training.loop import Companion, Stage, Training
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from bcu_cli.defenses.adversarial.effort import Effort
    from bcu_cli.defenses.adversarial.searching import Weaknesses
    from bcu_cli.models import Classifier
    from bcu_cli.training.forecast import Outlook
    from bcu_cli.training.loop import Objective
    from bcu_cli.triggers.base import Trigger

MOST_STEPS = 3000
"""Most steps of a cleansing."""
MOST_OF_USUAL_RATE = 4.0
"""Factor of the method's own learning rate above which a rate that the user gives is remarked on."""
EMA_DECAY = 0.98
"""Decay of the moving average of the weights that a cleansing ends with."""
TAKEN_PENALTY = 0.5
"""Penalty on a class that is another canary's target, as a share of images predicted as that class."""
MOST_DRAWN = 4
"""Most triggers of the original, and most sinusoidal patterns, that a page draws."""
ACCURACY, REMOVAL = "accuracy", "removal"
"""What a user may prefer."""
LEVELS = (LIMITS, LIMITS, LIMITS.scaled(2.0))
"""Limits of the adversary by level; the first is the ``GENTLE`` one."""
GENTLE = 0
"""The level that stays as close to the original as it can; it re-initialises nothing."""


@dataclass(frozen=True, kw_only=True)
class AutoOptions(TrainedOptions):
    """Options of method ``auto``.

    Args:
        epochs: Passes over the images in each cleansing. None is 20 of them, or 3 of images of more than
            64x64 pixels, but at least 400 steps (100) and at most ``MOST_STEPS``.
        batch_size: Most images in a step; as many changed ones are added, and as many mixed ones. None is
            128, or 12 for images of more than 64x64 pixels, of which none are mixed.
        learning_rate: Peak learning rate; it rises for a quarter of the steps, then falls. None is 0.05, or
            0.01 for images of more than 64x64 pixels and for a network without BatchNorm and LayerNorm. One
            with LayerNorm and no BatchNorm is trained by AdamW; there None is 0.001, or 0.0003.
        quick: Whether to plant no canaries and try no level above 1, on images of more than 64x64 pixels none
            above 0.
        prefer: What counts more at the gentle level: ``accuracy`` goes further back towards the original,
            ``removal`` not at all. None is between them.

    Raises:
        UsageError: There is no such preference.
    """

    batch_size: int | None = None  # type: ignore[assignment]  # known from ``decide`` on
    learning_rate: float | None = None  # type: ignore[assignment]  # likewise
    quick: bool = False
    prefer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.prefer in {None, ACCURACY, REMOVAL}
        require(known, f"--prefer {self.prefer} makes no sense", f"--prefer {ACCURACY}, or {REMOVAL}")


class Auto(TrainedDefense[AutoOptions]):
    """Adversarial distillation, with a search for its strength and a verdict."""

    name = "auto"
    paper = "own; after Pang et al., CVPR 2023 and Zeng et al., I-BAU, ICLR 2022"
    Options: ClassVar[type[DefenseOptions]] = AutoOptions
    needs_labels = False

    level: int
    mix: float = 1.0
    _least_share: float = 0.0
    evidence: Evidence
    trials: list[list[TriggerSuccess]]
    _verification: Verification

    def decide(self, options: AutoOptions) -> AutoOptions:
        """See :meth:`Defense.decide`."""
        batch_size = options.batch_size or self.effort.batch_size
        rate = self.effort.learning_rate if options.learning_rate is None else options.learning_rate
        options = replace(options, batch_size=batch_size, learning_rate=rate)
        if options.epochs is None:
            per_epoch = min(ceil(len(self.data) / batch_size), MOST_STEPS)
            steps = min(max(self.effort.epochs * per_epoch, self.effort.fewest_steps), MOST_STEPS)
            options = replace(options, epochs=ceil(steps / per_epoch))
        return super().decide(options)

    @cached_property
    def effort(self) -> Effort:
        """Numbers of steps and images, and the optimiser, that suit the network and its images."""
        example = self.example().to(self.teacher.mean.device)
        by = normalised_by(self.teacher.eval(), example)
        return effort.suited(self.teacher.preprocessing.input_size, normalised_by=by)

    @cached_property
    def searcher(self) -> Searcher:
        """Searches the networks of this cleansing; the original is taken to the device for it."""
        place(self.teacher.eval(), self.device.torch)
        return Searcher(
            self.teacher,
            self.data.images,
            self.held_out.images,
            self.effort,
            training=self.training_of,
            device=self.device,
            seed=self.options.seed,
        )

    @cached_property
    def triggers(self) -> OriginalTriggers:
        """What is searched on the original to judge the cleansing by."""
        return OriginalTriggers(self.searcher)

    @property
    def batch_size(self) -> int:
        """Most images in a step, as decided."""
        return self.options.batch_size or self.effort.batch_size

    def outlook(self) -> Outlook:
        """See :meth:`Defense.outlook`."""
        return outlook.outlook(self)

    def doubts(self) -> list[str]:
        """See :meth:`Defense.doubts`."""
        doubts = []
        if len(self.held_out) < MIN_HELD_OUT:
            count = len(self.data) + len(self.held_out)
            doubts.append(
                f"{count} images are too few for a verdict: only with 500 or more is a result called cleansed"
            )
        if where := self._unproven():
            doubts.append(f"{where} no result is called cleansed: a search may miss what remains")
        rate, usual = self.options.learning_rate, self.effort.learning_rate
        if rate is not None and rate > MOST_OF_USUAL_RATE * usual:
            doubts.append(
                f"a learning rate of {rate:g} may take away accuracy: for this network, which "
                f"{self.effort.optimizer} trains, {usual:g} is usual"
            )
        return doubts

    def stages(self) -> Iterator[Stage]:
        """Search the original, tune the strength on canaries where needed, cleanse, and verify."""
        self.trials = []
        yield from self.searcher.choose_classes()
        weaknesses = yield from self.searcher.weaknesses(self.teacher, "looking for weaknesses")
        yield from self.triggers.search()
        self.level = GENTLE
        if not self.triggers.outstanding and not self.options.quick and self.effort.reinitialise:
            yield from self._tune_on_canaries()
        while True:
            title = f"cleansing, level {self.level}"
            yield self._cleansing(self.student, self.teacher, weaknesses, self.level, title)
            yield from self._judge()
            if self._is_last_level():
                break
            self.level, self.mix = (self.level + 1 if self.effort.reinitialise else len(LEVELS) - 1), 1.0
            self.student = copy_of(self.teacher)

    def _judge(self) -> Iterator[Stage]:
        """Judge the student; at the gentle level its mixes with the original, the mildest one first."""
        if self.level != GENTLE:
            yield from self._judge_as_it_is()
            return
        # A copy is mixed: the state that ``--resume`` starts from holds the student as it was trained.
        self.student = copy_of(self.student)
        place(self.student, self.device.torch)
        mixture = Mixture(self.teacher, self.student)
        for share in onward(self._mildest(mixture)):
            self.mix = share
            mixture.take(share)
            yield from self._judge_as_it_is()
            if self.verdict().good or not self._more_may_help:
                return

    def _judge_as_it_is(self) -> Iterator[Stage]:
        """Measure the known triggers on the student, and search it unless these have decided already."""
        self.evidence = self._known_triggers()
        if self.evidence.verdict_on_known_triggers().good:
            yield from self._verify()

    def _mildest(self, mixture: Mixture) -> float:
        """The least share of the student in a mix that removes what stands out, on images learnt from.

        Perturbations and warps stand out on clean networks, too. So where no patch does and the class of none
        of them is clear, the mix holds as much of the student as where nothing stands out. It never holds
        less than the mix in which the canaries died.
        """
        selection = self.searcher.selected(self.effort.mixing_images)
        pair = ModelPair(self.teacher, self.student, selection, self.held_out.images, self.device)
        targets = pair.targets()
        stands_out = [each for each in self.triggers.outstanding if each[1] in targets]
        patches_alone = [each for each in stands_out if each[0] == "patch"]
        found = [(self.triggers.change(*each), each[1]) for each in patches_alone or stands_out]
        least = max(self._least_share, self._least_mix if self.triggers.clear else self._unguided)
        return max(mixture.mildest(pair, found, margin=self._margin), least)

    @property
    def _least_mix(self) -> float:
        """Least share of the student in a mix; 1 where a mix is worse than both networks."""
        return min(1.0, round(self.effort.least_share + self._margin, 2))

    @property
    def _unguided(self) -> float:
        """Share of the student in a mix where nothing tells how much is enough."""
        return max(self._least_mix, unguided(self._margin))

    @property
    def _margin(self) -> float:
        """Added to the least share of the student in a mix, by what the user prefers."""
        return {ACCURACY: 0.0, None: MARGIN, REMOVAL: 1.0}[self.options.prefer]

    @property
    def _more_may_help(self) -> bool:
        """Whether a stronger cleansing could lead to a better verdict.

        A good one rests on a trigger that stands out, or on canaries that were removed, on enough images, and
        on settings that have been measured.
        """
        if not self.evidence.outstanding and not canaries_removed(self.evidence.trials):
            return False
        if self._unproven():
            return self.evidence.triggers_remain
        return self.evidence.triggers_remain or self.evidence.enough_images

    def _is_last_level(self) -> bool:
        """Whether no further level is tried."""
        if self.verdict().good or not self._more_may_help:
            return True
        if self.level == GENTLE and self.effort.reinitialise:
            return False
        return self.options.quick or self.level + 1 == len(LEVELS) or not self.evidence.triggers_remain

    def measure_again(self) -> None:
        """See :meth:`Defense.measure_again`.

        A student that the known triggers spoke against was not searched: it does not become good by rounding.
        """
        before, self.evidence = self.evidence, self._known_triggers()
        if before.residual_searches:
            self.evidence = replace(self.evidence, residual_searches=self._verification.judged())
        elif self.verdict().good and not before.verdict().good:
            self.evidence = before

    def verdict(self) -> Verdict:
        """See :meth:`Defense.verdict`.

        Nothing is called cleansed where the search on the result says too little (:meth:`_unproven`).
        """
        verdict = self.evidence.verdict()
        if verdict.good and (where := self._unproven()):
            why = f"{where} more may remain than a search finds"
            return Verdict(word="could not tell", why=why)
        return verdict

    def _unproven(self) -> str:
        """Where the search on a result says too little for a good verdict; empty if it says enough.

        It missed backdoors after a weaker cleansing than the method's own, and by AdamW on large images.
        Where few classes can be compared, hardly anything can stand out.
        """
        rate, usual = self.options.learning_rate, self.effort.learning_rate
        if rate is not None and rate < usual:
            return f"at a learning rate of {rate:g} for {usual:g}"
        if self.effort.optimizer == "sgd" and self.options.momentum < AutoOptions.momentum:
            return f"at a momentum of {self.options.momentum:g} for {AutoOptions.momentum:g}"
        if not self.effort.proven:
            return "in a network with LayerNorm and for such large images"
        if self.teacher.num_classes < FEWEST_CLASSES:
            return f"in a network of {number_of(self.teacher.num_classes, 'class', 'classes')}"
        counts = torch.bincount(self.searcher.answers)
        if (share := int(counts.max()) / int(counts.sum())) > LARGEST_SHARE:
            return f"by images of which {share:.0%} are of one class to the original"
        return ""

    def details(self) -> dict[str, Any]:
        """The level taken, and the evidence for the verdict."""
        evidence = self.evidence
        outstanding, counting = evidence.outstanding, evidence.sinusoids_that_count
        canaries = self.effort.reinitialise and not outstanding
        more = self.options.quick and (canaries or (self._more_may_help and evidence.triggers_remain))
        return {
            "level": self.level,
            "mix": self.mix,
            "levels": len(LEVELS) - 1,
            "limits": asdict(LEVELS[self.level]),
            "optimizer": self.effort.optimizer,
            "unproven": self._unproven(),
            "more_without_quick": more,
            "classes_searched": len(self.searcher.classes),
            "trials": [[each.as_json() for each in trial] for trial in self.trials],
            "sinusoids": {
                "tried": sinusoids.NUM_KINDS,
                "working": [{**each.as_json(), "counts": each in counting} for each in evidence.sinusoids],
            },
            "found_triggers": [
                {**each.as_json(), "stands_out": each in outstanding}
                for each in [*evidence.found, *evidence.spectral]
            ],
            "residual_searches": [each.as_json() for each in evidence.residual_searches],
        }

    def found_triggers(self) -> list[FoundTrigger]:
        """Triggers that stand out, else the strongest of each kind; sinusoids; the worst of each search."""
        outstanding, outliers = self.evidence.outstanding, self.evidence.outliers
        strongest = sorted(self.evidence.found, key=lambda each: -each.before.value)
        by_kind = {each.trigger: each for each in reversed(strongest)}
        original = _worst(outstanding) or list(by_kind.values())
        residual = [
            max(search.found, key=lambda each: (each in outliers, each.after.value))
            for search in self.evidence.residual_searches
        ]
        return [
            *(
                FoundTrigger(found_on="original", success=each, stands_out=each in outstanding)
                for each in [*original, *_worst(self.evidence.sinusoids)]
            ),
            *(
                FoundTrigger(found_on="result", success=each, stands_out=each in outliers)
                for each in residual
            ),
        ]

    def _known_triggers(self) -> Evidence:
        """The evidence on the student before it is searched: what succeeded on the original, and canaries."""
        return Evidence(
            found=self.triggers.found_on(self.student),
            spectral=self.triggers.spectral_on(self.student),
            sinusoids=self.triggers.sinusoids_on(self.student),
            trials=self.trials[: self.level + 1],
            residual_searches=[],
            confident_agreement=self._confident_agreement(),
            held_out=len(self.held_out),
        )

    def _confident_agreement(self) -> Proportion:
        """Agreement of student and original on the images on which the original is most confident."""
        index = self.searcher.confident
        images, expected = self.held_out.images[index], self.searcher.answers[index]
        return agreement(self.student, expected, images, self.device)

    def _tune_on_canaries(self) -> Iterator[Stage]:
        """Plant canaries in a copy of the network, and find the first level that removes them."""
        taught = copy_of(self.teacher)
        triggers = canary.draw(self.teacher.preprocessing.input_size, self.options.seed)
        targets = self._targets(triggers)
        objective = canary.teaching(taught, self.teacher, triggers, targets)
        planting = self.training_of(taught, objective, steps=self.effort.canary_steps)
        yield Stage(title="planting canaries", training=planting)
        changes = [trigger.apply_to_bytes for trigger in triggers]
        self.level, self._least_share = GENTLE, 0.0

        def successes(network: Classifier) -> list[Proportion]:
            return [self.searcher.success(network, *each) for each in zip(changes, targets, strict=True)]

        before = successes(taught)

        def trial(after: list[Proportion]) -> list[TriggerSuccess]:
            each = zip(canary.NAMES, targets, before, after, changes, strict=True)
            return [
                TriggerSuccess(trigger=name, target=target, before=at_first, after=left, change=change)
                for name, target, at_first, left, change in each
            ]

        planted = trial(before)
        if not learned_canaries([planted]):
            self.trials.append(planted)
            return
        weaknesses = yield from self.searcher.weaknesses(taught, "looking for weaknesses of the copy")
        mildest: list[TriggerSuccess] = []
        for level in range(GENTLE, len(LEVELS)):
            cleansed = copy_of(taught)
            yield self._cleansing(cleansed, taught, weaknesses, level, f"cleansing canaries, level {level}")
            # A copy is mixed, as in ``_judge``: the state of ``--resume`` holds it as it was trained.
            cleansed = copy_of(cleansed)
            place(cleansed, self.device.torch)
            mixture = Mixture(taught, cleansed)
            for share in onward(self._unguided) if level == GENTLE else [1.0]:
                mixture.take(share)
                left = trial(successes(cleansed))
                mildest = mildest or left
                if canaries_removed([left]):
                    self.trials.append(left)
                    self.level, self._least_share = level, share
                    return
            self.trials.append(left)
        self.trials[GENTLE] = mildest  # no level is strong enough: so that is taken which costs the least

    def _targets(self, triggers: Sequence[Trigger]) -> list[int]:
        """A target class for each canary: rarely caused by its trigger already, and no other's target."""
        taken = torch.zeros(self.teacher.num_classes)
        predicted = torch.bincount(self.searcher.answers, minlength=len(taken))
        taken[predicted == len(self.searcher.answers)] = torch.inf  # no image has another class
        targets: list[int] = []
        for trigger in triggers:
            answers = predict(
                self.teacher, self.held_out.images, self.device, transform=trigger.apply_to_bytes
            )
            counts = torch.bincount(answers, minlength=len(taken))
            targets.append(int((counts / len(answers) + TAKEN_PENALTY * taken).argmin()))
            taken[targets[-1]] += 1
        return targets

    def _cleansing(
        self, student: Classifier, teacher: Classifier, weaknesses: Weaknesses, level: int, title: str
    ) -> Stage:
        """Distil into a copy of a network against an adversary, re-initialised in part but at level 0."""
        adversary = self.searcher.adversary(LEVELS[level], self.options.seed)
        adversary.load_state_dict(weaknesses.adversary.state_dict())
        if level != GENTLE and self.effort.reinitialise:
            student.cpu()  # weights are re-initialised on the CPU; the training moves them to the device
            reinitialise(student.network, self.example(), BcuOptions(seed=self.options.seed))
        companion = Companion(module=adversary, optimizer=adversary.optimizer(), kept=False)
        objective = training_objective(
            student, teacher, adversary, weaknesses.sinusoids, self.effort, self.triggers.clear
        )
        how: dict[str, Any] = {"epochs": self.options.epochs, "epoch_steps": MOST_STEPS, "ema": EMA_DECAY}
        training = self.training_of(student, objective, companion=companion, **how)
        return Stage(title=title, training=training)

    def _verify(self) -> Iterator[Stage]:
        """Search the cleansed network for triggers, and add what is found to the evidence."""
        self._verification = Verification(self.searcher, self.student, self.evidence)
        yield from self._verification.search()
        self.evidence = replace(self.evidence, residual_searches=self._verification.judged())

    def training_of(
        self,
        network: nn.Module,
        objective: Objective,
        *,
        steps: int | None = None,
        companion: Companion | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **how: Any,
    ) -> Training:
        """A training of a module on the images.

        Args:
            network: The module.
            objective: The loss.
            steps: Number of steps, about; None where ``how`` gives ``epochs``.
            companion: A module that is trained along.
            optimizer: Optimiser; None is that of a cleansing.
            how: Training options that replace those of the defense.
        """
        if steps is not None:
            per_epoch = min(ceil(len(self.data) / how.get("batch_size", self.batch_size)), steps)
            how |= {"epochs": ceil(steps / per_epoch), "epoch_steps": steps}
        return Training(
            network,
            self.images,
            objective,
            self.options.training(**{"schedule": "one-cycle", "optimizer": self.effort.optimizer, **how}),
            device=self.device,
            seed=self.options.seed,
            optimizer=optimizer,
            companions=[companion] if companion else [],
        )


def _worst(triggers: Sequence[TriggerSuccess]) -> list[TriggerSuccess]:
    """The ``MOST_DRAWN`` triggers that succeed most often after the cleansing."""
    return sorted(triggers, key=lambda each: -each.after.value)[:MOST_DRAWN]
