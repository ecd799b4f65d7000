"""Adversarial distillation that chooses its own strength and judges its own success.

The re-initialised student that learns from the teacher on unlabeled images is the paper's (CVPR 2023). Alone
it leaves backdoors in networks that its ratios were not tuned for (``docs/auto.md``). This method adds:

0. Where there are many classes, universal changes choose those to search (``class_screening.py``).
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
   succeed far more often than those for other classes. Where most classes are reached, no class can be far
   ahead; so the limits are halved, and the search is repeated (Neural Cleanse compares the smallest triggers
   for the same reason; Wang et al., S&P 2019). Where no trigger stands out, a sinusoid may
   (``evaluation/spectrum.py``). Sinusoidal patterns that succeed on the original are added.
3. A search for the strength, where no trigger stands out on images that are not large. A copy of the network
   is taught known backdoors (``canary.py``), searched as the original was, and cleansed. The first of
   ``LEVELS`` that removes them is taken. Where none does, or a trigger stands out, it is the first of all.
4. That first level is gentle. The student starts at the original's weights, since re-initialisation costs
   accuracy. Its weights are then mixed with the original's (``mixing.py``), unless it answers as the original
   does anyway: with little more of the student's than removes what stands out, or with a fixed share where
   nothing does. A user may prefer more or less of the original's.
5. Verification. All triggers of step 2 come from the original, and the student was trained against similar
   ones. So before the verdict is ``cleansed``, triggers are searched on the cleansed network itself
   (``residual_search.py``), for the suspected classes and for control classes.

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
from torch import Tensor

from bcu_cli.defenses.adversarial import canary, effort, outlook, patches, sinusoids
from bcu_cli.defenses.adversarial.evidence import (
    MIN_HELD_OUT,
    MIN_TRIGGER_SUCCESS,
    Evidence,
    canaries_removed,
    clear_classes,
    learned_canaries,
    saturated,
    standing_out,
)
from bcu_cli.defenses.adversarial.mixing import MARGIN, Mixture, onward, unguided
from bcu_cli.defenses.adversarial.objective import training_objective
from bcu_cli.defenses.adversarial.residual_search import (
    FoundTrigger,
    ModelPair,
    TriggerSuccess,
    compare_changes,
    spread,
)
from bcu_cli.defenses.base import (
    DefenseOptions,
    TrainedDefense,
    TrainedOptions,
    Verdict,
    copy_of,
    require,
)
from bcu_cli.defenses.bcu import BcuOptions, reinitialise
from bcu_cli.evaluation import class_screening
from bcu_cli.evaluation.adversary import (
    KINDS,
    UNIVERSAL,
    WEIGHT_FLOOR,
    Adversary,
    Limits,
    odds,
)
from bcu_cli.evaluation.class_screening import FEWEST_CLASSES, LARGEST_SHARE
from bcu_cli.evaluation.measures import Proportion, agreement, log_odds
from bcu_cli.evaluation.spectrum import DOMINANT, MIN_LEAD, SpectralAdversary, leads
from bcu_cli.evaluation.suitability import confidence_and_answer
from bcu_cli.images.augmentation import NO_AUGMENTATION
from bcu_cli.models.classifier import place
from bcu_cli.models.normalisation import is_layer_normalised
from bcu_cli.training.inference import in_batches, predict
from bcu_cli.training.loop import Companion, Stage, Training
from bcu_cli.triggers.base import to_bytes
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from torch import nn

    from bcu_cli.defenses.adversarial.effort import Effort
    from bcu_cli.defenses.adversarial.residual_search import Change
    from bcu_cli.models import Classifier
    from bcu_cli.training.forecast import Outlook
    from bcu_cli.training.loop import Objective
    from bcu_cli.triggers.base import Trigger

MOST_STEPS = 3000
"""Most steps of a cleansing."""
MOST_HALVINGS = 2
"""Most halvings of the limits while triggers are searched that tell the classes apart."""
STARTS_PER_CLASS = 3
"""Changes of each kind that this search starts from for each class, where there are suspected classes."""
MOST_SUSPECTS, MOST_CONTROLS = 3, 6
"""Most suspected classes to search, and most control classes to compare them with."""
MOST_OF_USUAL_RATE = 4.0
"""Factor of the method's own learning rate above which a rate that the user gives is remarked on."""
EMA_DECAY = 0.98
"""Decay of the moving average of the weights that a cleansing ends with."""
TAKEN_PENALTY = 0.5
"""Penalty on a class that is another canary's target, as a share of images predicted as that class."""
MIN_START_SUCCESS = 0.5
"""Least success of a listed patch that a search starts at."""
MOST_DRAWN = 4
"""Most triggers of the original, and most sinusoidal patterns, that a page draws."""
FEWEST_ANSWERS, MOST_ANSWERS = 50, 100_000
"""Predictions while triggers are tried on a network: fewest for each trigger, and most for all together."""

ACCURACY, REMOVAL = "accuracy", "removal"
"""What a user may prefer."""
LIMITS = Limits(patch=0.03, perturbation=0.06, warp=0.125)
"""Limits of the searches, and of the adversary at the first levels."""
LEVELS = (LIMITS, LIMITS, LIMITS.scaled(2.0))
"""Limits of the adversary by level; the first is the ``GENTLE`` one."""
GENTLE = 0
"""The level that stays as close to the original as it can; it re-initialises nothing."""
VERIFICATION_LIMITS = replace(LIMITS, patch=LIMITS.patch / 2)
"""Limits of the search on the cleansed network: larger patches fool many networks for any class."""


@dataclass(frozen=True, kw_only=True)
class AutoOptions(TrainedOptions):
    """Options of method ``auto``.

    Args:
        epochs: Passes over the images in each cleansing. None is 20 of them, or 3 of images of more than
            64x64 pixels, but at least 400 steps (100) and at most ``MOST_STEPS``.
        batch_size: Most images in a step; as many changed ones are added, and as many mixed ones. None is
            128, or 12 for images of more than 64x64 pixels, of which none are mixed.
        learning_rate: Peak learning rate; it rises for a quarter of the steps, then falls. None is 0.05, or
            0.01 for images of more than 64x64 pixels. A network with LayerNorm and no BatchNorm is trained by
            AdamW; there None is 0.001, or 0.0003.
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


@dataclass(frozen=True)
class _Weaknesses:
    """What misleads a network before it is cleansed.

    Args:
        adversary: Universal changes, and how often each is to be sampled.
        sinusoids: Weight of each kind of sinusoidal pattern, float ``[NUM_KINDS]``.
    """

    adversary: Adversary
    sinusoids: Tensor


class Auto(TrainedDefense[AutoOptions]):
    """Adversarial distillation, with a search for its strength and a verdict."""

    name = "auto"
    paper = "own; after Pang et al., CVPR 2023 and Zeng et al., I-BAU, ICLR 2022"
    Options: ClassVar[type[DefenseOptions]] = AutoOptions
    needs_labels = False

    level: int
    mix: float = 1.0
    _least_share: float = 0.0
    _largest_share: float = 0.0
    evidence: Evidence
    trials: list[list[TriggerSuccess]]
    _teacher_answers: Tensor
    _confident: Tensor
    _classes: list[int]
    _judging_adversaries: dict[str, Adversary]
    _success_before: dict[tuple[str, int], Proportion]
    _spectral: dict[int, tuple[Change, Proportion]]
    _sinusoids_before: list[tuple[Change, int, Proportion]]

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
        by_layer = is_layer_normalised(self.teacher.eval(), example)
        return effort.suited(self.teacher.preprocessing.input_size, layer_normalised=by_layer)

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
        place(self.teacher.eval(), self.device.torch)
        self.trials = []
        self._teacher_answers, self._confident = self._answers_and_confident()
        counts = torch.bincount(self._teacher_answers)
        self._largest_share = int(counts.max()) / len(self._teacher_answers)
        yield from self._choose_classes()
        weaknesses = yield from self._weaknesses(self.teacher, "looking for weaknesses")
        yield from self._search_for_triggers()
        yield from self._search_for_a_sinusoid()
        self._sinusoids_before = self._try_sinusoids(self.teacher, self.options.seed + 1)
        self.level = GENTLE
        if not self._standing_out() and not self.options.quick and self.effort.reinitialise:
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
        selection = self.data.images[spread(torch.arange(len(self.data)), self.effort.mixing_images)]
        pair = ModelPair(self.teacher, self.student, selection, self.held_out.images, self.device)
        targets = pair.targets()
        stands_out = [each for each in self._standing_out() if each[1] in targets]
        patches_alone = [each for each in stands_out if each[0] == "patch"]
        found = [(self._judging_change(*each), each[1]) for each in patches_alone or stands_out]
        clear = self._spectral or clear_classes(_triples(self._success_before))
        least = max(self._least_share, min(1.0, round(self.effort.least_share + self._margin, 2)))
        if not clear:
            least = max(least, unguided(self._margin))
        return max(mixture.mildest(pair, found, margin=self._margin), least)

    @property
    def _margin(self) -> float:
        """Added to the least share of the student in a mix, by what the user prefers."""
        return {ACCURACY: 0.0, None: MARGIN, REMOVAL: 1.0}[self.options.prefer]

    def _standing_out(self) -> list[tuple[str, int]]:
        """Kind and target class of each trigger that stands out on the original."""
        spectral = [(DOMINANT, target) for target in self._spectral]
        return [*standing_out(_triples(self._success_before)), *spectral]

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
            self._compare_changes(self._model_pair, self._suspect_classes)
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
        if self._largest_share > LARGEST_SHARE:
            return f"by images of which {self._largest_share:.0%} are of one class to the original"
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
            "classes_searched": len(self._classes),
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
        after: dict[tuple[str, int], Proportion] = {}
        for kind, adversary in self._judging_adversaries.items():
            after |= self._successes(adversary, self.student, [kind])
        found = [
            TriggerSuccess(
                trigger=kind,
                target=target,
                before=share,
                after=after[kind, target],
                change=self._judging_change(kind, target),
            )
            for (kind, target), share in self._success_before.items()
        ]
        spectral = [
            TriggerSuccess(
                trigger=DOMINANT,
                target=target,
                before=share,
                after=self._success(self.student, change, target),
                change=change,
            )
            for target, (change, share) in self._spectral.items()
        ]
        patterns = [
            TriggerSuccess(
                trigger="sinusoid",
                target=target,
                before=share,
                after=self._success_by_class(self.student, pattern)[target],
                change=pattern,
            )
            for pattern, target, share in self._working_sinusoids()
        ]
        return Evidence(
            found=found,
            spectral=spectral,
            sinusoids=patterns,
            trials=self.trials[: self.level + 1],
            residual_searches=[],
            confident_agreement=self._confident_agreement(),
            held_out=len(self.held_out),
        )

    def _working_sinusoids(self) -> list[tuple[Change, int, Proportion]]:
        """The sinusoidal patterns that succeed on the original."""
        return [each for each in self._sinusoids_before if each[2].value >= MIN_TRIGGER_SUCCESS]

    def _answers_and_confident(self) -> tuple[Tensor, Tensor]:
        """The original's predictions on the held-out images, and the half with its highest confidence."""
        confidence, answers = in_batches(
            lambda images: confidence_and_answer(self.teacher(images)),
            self.held_out.images,
            self.device,
            network=self.teacher,
        ).T
        return answers.long(), confidence.topk(ceil(len(confidence) / 2)).indices

    def _confident_agreement(self) -> Proportion:
        """Agreement of student and original on the images on which the original is most confident."""
        images, expected = self.held_out.images[self._confident], self._teacher_answers[self._confident]
        return agreement(self.student, expected, images, self.device)

    def _judging_change(self, kind: str, target: int) -> Change:
        """A trigger that was found on the original."""
        if kind == DOMINANT:
            return self._spectral[target][0]
        adversary = self._judging_adversaries[kind]
        return _on_bytes(adversary, adversary.targets.tolist().index(target), UNIVERSAL.index(kind))

    def _choose_classes(self) -> Iterator[Stage]:
        """Choose the classes to search triggers for: all, or those that universal changes lead to."""
        count = self.teacher.num_classes
        self._classes = list(range(count))
        if count <= class_screening.MOST_CLASSES:
            return
        shape, seed = self.teacher.preprocessing.input_size, self.options.seed
        adversary = class_screening.UntargetedAdversary(shape, LEVELS[0], seed=seed).to(self.device.torch)
        yield self._search(adversary, self.teacher, "screening classes")
        reached = [
            [share.value for share in self._success_by_class(self.teacher, _on_bytes(adversary, slot, kind))]
            for slot in range(class_screening.STARTS)
            for kind in range(len(UNIVERSAL))
        ]
        success = torch.tensor(reached).view(class_screening.STARTS, len(UNIVERSAL), count)
        self._classes = class_screening.candidates(
            success.amax(0),
            seed,
            most=class_screening.MOST_CLASSES,
            controls=class_screening.RANDOM_CLASSES,
        )

    def _search_for_triggers(self) -> Iterator[Stage]:
        """Search the original for the triggers to judge by, within limits that tell the classes apart.

        Where a kind of trigger reaches most classes and none stands out, its limit is halved.
        """
        self._judging_adversaries, self._success_before, self._spectral = {}, {}, {}
        limits = LEVELS[0]
        for halving in range(MOST_HALVINGS + 1):
            adversary = self._starting_adversary(self.teacher, limits, self.options.seed + 1)
            title = "looking for smaller triggers" if halving else "looking for triggers"
            yield self._search(adversary, self.teacher, title)
            missing = [kind for kind in UNIVERSAL if kind not in self._judging_adversaries]
            for kind in missing:
                successes = self._successes(adversary, self.teacher, [kind])
                if halving == MOST_HALVINGS or not saturated(_triples(successes)):
                    self._judging_adversaries[kind] = adversary
                    self._success_before |= successes
            if len(self._judging_adversaries) == len(UNIVERSAL):
                return
            limits = limits.scaled(0.5)

    def _search_for_a_sinusoid(self) -> Iterator[Stage]:
        """Search the original for a sinusoidal trigger, where no other trigger stands out.

        Of each class the strongest sinusoid in a perturbation is tried alone, at its weakest amplitude first.
        """
        classes = [each for each in self._classes if bool((self._teacher_answers != each).any())]
        if self._standing_out() or not self.effort.spectral_steps:
            return
        size = self.teacher.preprocessing.input_size[1:]
        adversary = SpectralAdversary(classes, size, seed=self.options.seed).to(self.device.torch)

        def objective(views: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - needs no labels
            first = torch.randint(len(adversary.targets), (1,), device=views.device)
            return adversary.loss(self.teacher, views, first)

        how: dict[str, Any] = {"schedule": "cosine", "augmentation": NO_AUGMENTATION}
        how |= self._length(self.effort.spectral_steps)
        training = self._training(adversary, objective, optimizer=adversary.optimizer(), **how)
        yield Stage(title="looking for a sinusoidal trigger", training=training)
        for alike in adversary.candidates():
            changes = [sinusoids.add_pattern(each.sinusoid, each.amplitude) for each in alike]
            tried = list(zip(alike, changes, strict=True))
            successes = [self._success(self.teacher, change, each.target) for each, change in tried]
            for (each, change), success, lead in zip(tried, successes, leads(successes), strict=True):
                if lead >= MIN_LEAD:
                    self._spectral.setdefault(each.target, (change, success))

    def _weaknesses(self, network: Classifier, title: str) -> Generator[Stage, None, _Weaknesses]:
        """Search a network for what misleads it before it is cleansed."""
        adversary = self._starting_adversary(network, LIMITS, self.options.seed)
        yield self._search(adversary, network, title)
        adversary.set_sampling_weights(self._successes(adversary, network))
        successes = [share for _, _, share in self._try_sinusoids(network, self.options.seed)]
        weights = [WEIGHT_FLOOR + odds(success) for success in successes]
        return _Weaknesses(adversary, torch.tensor(weights, device=self.device.torch))

    def _starting_adversary(self, network: Classifier, limits: Limits, seed: int) -> Adversary:
        """An adversary whose patches start at those listed ones that succeed most often on a network.

        Gradients alone miss small sharp patches on large images. A class that no listed patch reaches on
        ``MIN_START_SUCCESS`` of a few images starts at random.
        """
        adversary, shape = self._adversary(limits, seed), self.teacher.preprocessing.input_size
        listed = patches.draw(shape, seed, largest=limits.patch)[:: self.effort.patch_interval]
        images = self.data.images[spread(torch.arange(len(self.data)), patches.SCREENING_IMAGES)]
        if not listed:
            return adversary
        without = predict(network, images, self.device)
        answers = patches.answers(listed, images, [network], without, self.device)
        for slot, target in enumerate(adversary.targets.tolist()):
            hits, of = (answers == target).sum(1), int((without != target).sum())
            best = listed[int(hits.argmax())]
            if of and int(hits.max()) >= MIN_START_SUCCESS * of:
                adversary.start_patch(slot, best.pixels / 255.0, best.top, best.left)
        return adversary

    def _tune_on_canaries(self) -> Iterator[Stage]:
        """Plant canaries in a copy of the network, and find the first level that removes them."""
        taught = copy_of(self.teacher)
        triggers = canary.draw(self.teacher.preprocessing.input_size, self.options.seed)
        targets = self._targets(triggers)
        objective = canary.teaching(taught, self.teacher, triggers, targets)
        planting = self._training(taught, objective, **self._length(self.effort.canary_steps))
        yield Stage(title="planting canaries", training=planting)
        changes = [trigger.apply_to_bytes for trigger in triggers]
        self.level, self._least_share = GENTLE, 0.0

        def successes(network: Classifier) -> list[Proportion]:
            return [self._success(network, *each) for each in zip(changes, targets, strict=True)]

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
        weaknesses = yield from self._weaknesses(taught, "looking for weaknesses of the copy")
        mildest: list[TriggerSuccess] = []
        for level in range(GENTLE, len(LEVELS)):
            cleansed = copy_of(taught)
            yield self._cleansing(cleansed, taught, weaknesses, level, f"cleansing canaries, level {level}")
            # A copy is mixed, as in ``_judge``: the state of ``--resume`` holds it as it was trained.
            cleansed = copy_of(cleansed)
            place(cleansed, self.device.torch)
            mixture = Mixture(taught, cleansed)
            for share in onward(unguided(self._margin)) if level == GENTLE else [1.0]:
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
        predicted = torch.bincount(self._teacher_answers, minlength=len(taken))
        taken[predicted == len(self._teacher_answers)] = torch.inf  # no image has another class
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
        self, student: Classifier, teacher: Classifier, weaknesses: _Weaknesses, level: int, title: str
    ) -> Stage:
        """Distil into a copy of a network against an adversary, re-initialised in part but at level 0."""
        adversary = self._adversary(LEVELS[level], self.options.seed)
        adversary.load_state_dict(weaknesses.adversary.state_dict())
        if level != GENTLE and self.effort.reinitialise:
            student.cpu()  # weights are re-initialised on the CPU; the training moves them to the device
            reinitialise(student.network, self.example(), BcuOptions(seed=self.options.seed))
        companion = Companion(module=adversary, optimizer=adversary.optimizer(), kept=False)
        objective = training_objective(student, teacher, adversary, weaknesses.sinusoids, self.effort)
        how: dict[str, Any] = {"epochs": self.options.epochs, "epoch_steps": MOST_STEPS, "ema": EMA_DECAY}
        training = self._training(student, objective, companion, **how)
        return Stage(title=title, training=training)

    def _verify(self) -> Iterator[Stage]:
        """Search the cleansed network for triggers to the suspected classes and to control classes."""
        selection = self.data.images[spread(torch.arange(len(self.data)), self.effort.selection_images)]
        pair = ModelPair(self.teacher, self.student, selection, self.held_out.images, self.device)
        shape, seed = self.teacher.preprocessing.input_size, self.options.seed + 2
        listed = pair.promising(patches.draw(shape, seed)[:: self.effort.patch_interval])
        suspects = self._suspects()
        if suspects:
            listed = {target: listed[target] for target in self._add_controls(suspects, list(listed))}
        compared = list(listed) if suspects else pair.most_affected(listed, MOST_SUSPECTS + MOST_CONTROLS)
        climbed = {target: pair.climb(listed[target], target) for target in compared}
        targets = (
            [target for target in listed for _ in range(STARTS_PER_CLASS)] if suspects else self._classes
        )
        adversary = Adversary(targets, shape, VERIFICATION_LIMITS, seed=seed)
        adversary.to(self.device.torch)
        steps, batch = self.effort.verification_steps, self.effort.batch_size
        how = {"batch_size": batch, **self._length(steps, batch)}
        yield self._search(adversary, self.student, "looking for remaining triggers", **how)
        self._candidates: list[tuple[str, str, Mapping[int, Sequence[Change]]]] = [
            ("enumeration", "patch", climbed)
        ]
        for position, kind in enumerate(UNIVERSAL):
            searched: dict[int, list[Change]] = {}
            for slot, target in enumerate(adversary.targets.tolist()):
                if target in listed:
                    searched.setdefault(target, []).append(_on_bytes(adversary, slot, position))
            self._candidates.append(("gradient", kind, searched))
        self._compare_changes(pair, suspects)

    def _compare_changes(self, pair: ModelPair, suspects: list[int]) -> None:
        """Compare on the current student the changes for suspected classes with those for other classes."""
        self._model_pair, self._suspect_classes = pair, suspects
        most = MOST_SUSPECTS + MOST_CONTROLS
        searches = [
            compare_changes(pair, search, kind, candidates, suspects, most)
            for search, kind, candidates in self._candidates
        ]
        self.evidence = replace(self.evidence, residual_searches=searches)

    def _suspects(self) -> list[int]:
        """The target classes of the outstanding triggers, up to ``MOST_SUSPECTS`` of them.

        Those that are clear come first, since other triggers may be natural; then those of the most
        successful triggers.
        """
        clear = self.evidence.clear

        def rank(each: TriggerSuccess) -> tuple[bool, float]:
            return each.target not in clear, -log_odds(each.before)

        ranked = sorted(self.evidence.outstanding, key=rank)
        return list(dict.fromkeys(each.target for each in ranked))[:MOST_SUSPECTS]

    def _add_controls(self, suspects: list[int], classes: list[int]) -> list[int]:
        """The suspected classes, and control classes drawn at random, for which nothing stands out."""
        generator = torch.Generator().manual_seed(self.options.seed)
        order = torch.randperm(len(classes), generator=generator).tolist()
        known = {each.target for each in self.evidence.outstanding}
        others = [classes[i] for i in order if classes[i] not in known]
        return [each for each in suspects if each in classes] + others[:MOST_CONTROLS]

    def _search(
        self,
        adversary: Adversary,
        network: Classifier,
        title: str,
        **how: Any,
    ) -> Stage:
        """A stage that trains an adversary's universal changes against a network."""

        def objective(views: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - needs no labels
            return adversary.attack(network, views, len(UNIVERSAL))[1]

        how = {
            "schedule": "constant",
            "augmentation": NO_AUGMENTATION,
            **self._length(self.effort.search_steps),
            **how,
        }
        training = self._training(adversary, objective, optimizer=adversary.optimizer(), **how)
        return Stage(title=title, training=training)

    def _successes(
        self, adversary: Adversary, network: Classifier, kinds: Sequence[str] = UNIVERSAL
    ) -> dict[tuple[str, int], Proportion]:
        """Success of an adversary's changes on a network, by kind and target class."""
        targets = [each for each in adversary.targets.tolist() if bool((self._teacher_answers != each).any())]
        most = max(FEWEST_ANSWERS, MOST_ANSWERS // (len(UNIVERSAL) * max(1, len(targets))))
        slots = {target: slot for slot, target in enumerate(adversary.targets.tolist())}
        return {
            (kind, target): self._success(
                network, _on_bytes(adversary, slots[target], UNIVERSAL.index(kind)), target, most
            )
            for kind in kinds
            for target in targets
        }

    def _try_sinusoids(self, network: Classifier, seed: int) -> list[tuple[Change, int, Proportion]]:
        """One sinusoidal pattern of each kind, its most frequent class on a network, and its success."""
        tried = []
        for pattern in sinusoids.one_per_kind(seed):
            successes = self._success_by_class(network, pattern)
            target = max(range(len(successes)), key=lambda each: successes[each].value)
            tried.append((pattern, target, successes[target]))
        return tried

    def _success_by_class(self, network: Classifier, change: Change) -> list[Proportion]:
        """Success of a change for each class, on held-out images that the original predicts as another."""
        shown = spread(torch.arange(len(self._teacher_answers)), self.effort.sinusoid_images)
        images, expected = self.held_out.images[shown], self._teacher_answers[shown]
        answers = predict(network, images, self.device, transform=change)
        classes = network.num_classes
        hits = torch.bincount(answers[answers != expected], minlength=classes)
        of = (len(expected) - torch.bincount(expected, minlength=classes)).clamp(min=1)
        return [Proportion(hits=hit, of=count) for hit, count in zip(hits.tolist(), of.tolist(), strict=True)]

    def _length(self, steps: int, batch_size: int | None = None) -> dict[str, Any]:
        """The training options that make a training last about ``steps`` steps."""
        per_epoch = min(ceil(len(self.data) / (batch_size or self.batch_size)), steps)
        return {"epochs": ceil(steps / per_epoch), "epoch_steps": steps}

    def _adversary(self, limits: Limits, seed: int) -> Adversary:
        shape = self.teacher.preprocessing.input_size
        return Adversary(self._classes, shape, limits, seed=seed).to(self.device.torch)

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
            self.images,
            objective,
            self.options.training(**{"schedule": "one-cycle", "optimizer": self.effort.optimizer, **how}),
            device=self.device,
            seed=self.options.seed,
            optimizer=optimizer,
            companions=[companion] if companion else [],
        )

    def _success(
        self, network: Classifier, change: Change, target: int, most: int | None = None
    ) -> Proportion:
        """Success of a change: the held-out images of other classes that are predicted as the target."""
        index = (self._teacher_answers != target).nonzero()[:, 0]
        others = self.held_out.images[spread(index, most or len(index))]
        answers = predict(network, others, self.device, transform=change)
        return Proportion(hits=int((answers == target).sum()), of=len(others))


def _on_bytes(adversary: Adversary, slot: int, kind: int) -> Change:
    """One of the adversary's changes as a function of uint8 images."""

    def change(images: Tensor) -> Tensor:
        slots = torch.full((len(images),), slot, device=images.device)
        counts = [len(images) if each == kind else 0 for each in range(len(KINDS))]
        return to_bytes(adversary(images.float() / 255.0, slots, counts))

    return change


def _triples(successes: Mapping[tuple[str, int], Proportion]) -> list[tuple[str, int, Proportion]]:
    """Kind, target class and success of each trigger."""
    return [(kind, target, success) for (kind, target), success in successes.items()]


def _worst(triggers: Sequence[TriggerSuccess]) -> list[TriggerSuccess]:
    """The ``MOST_DRAWN`` triggers that succeed most often after the cleansing."""
    return sorted(triggers, key=lambda each: -each.after.value)[:MOST_DRAWN]
