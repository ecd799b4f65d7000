"""A checkpoint to a classifier: architecture, weights, preprocessing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bcu_cli.errors import ArchitectureError, BcuError, CheckpointError
from bcu_cli.models import deciding, fingerprint
from bcu_cli.models.architecture import Architecture
from bcu_cli.models.claims import Claim, read_claims
from bcu_cli.models.classifier import Classifier, are_probabilities, refuse_dependence
from bcu_cli.models.fitting import fill, refuse_broken
from bcu_cli.models.identification import Found, ambiguous, find
from bcu_cli.models.names import OWN_ARCHITECTURES
from bcu_cli.models.own import KINDS, Own, answers, is_same, noise, open_own, plain, settle_batch
from bcu_cli.models.preprocessing import Preprocessing
from bcu_cli.models.registry import build, is_user_file

if TYPE_CHECKING:
    from bcu_cli.checkpoints import Checkpoint
    from bcu_cli.models.index import Candidate

#: Images for a preprocessing's size and cropping: ``float [N, C, H, W]`` in [0, 1], not normalised.
ImageSource = Callable[[Preprocessing], Tensor]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A classifier and how it was made.

    Args:
        classifier: In evaluation mode, float32, on the CPU.
        architecture: Which, and how it was found.
        checkpoint: The file that it came from.
        evidence: What decided and what was noticed, in sentences for people.
        input_dtype: Of the images that the file's own function takes; float32 where it carries none.
    """

    classifier: Classifier
    architecture: Architecture
    checkpoint: Checkpoint
    evidence: tuple[str, ...]
    input_dtype: torch.dtype = torch.float32


def load(
    checkpoint: Checkpoint,
    *,
    arch: str | None = None,
    input_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    images: ImageSource | None = None,
) -> Loaded:
    """Make a runnable classifier of a checkpoint.

    Args:
        checkpoint: The file as read.
        arch: ``--arch``: a name, or FILE.py:FUNCTION (the function runs).
        input_size: ``--input-size``: height and width of the input.
        mean: ``--mean``: one value, or one per channel.
        std: ``--std``: one value, or one per channel.
        images: Gives natural images, about 256 of them, where only BatchNorm statistics can decide.

    Raises:
        ArchitectureError: The weights are broken, are no image classifier's, fit no (or not the given)
            architecture, or what is needed to run them cannot be found out and must be given.
        AnswersError: It answers with no logits, with NaN or infinity, or not to each image by itself.
        UnsafeFileError: It is TorchScript or ONNX of which only its own code or graph is known, and that has
            something in it that is not allowed to run.
    """
    refuse_broken(checkpoint.tensors, checkpoint.path.name)
    loader = _Loader(checkpoint, deciding.Options(input_size=input_size, mean=mean, std=std), images)
    return loader.load(arch)


class _Loader:
    """One call of :func:`load`."""

    def __init__(self, checkpoint: Checkpoint, options: deciding.Options, images: ImageSource | None) -> None:
        self.checkpoint = checkpoint
        self.options = options
        self.images = images
        self.what = checkpoint.path.name
        self.claims = read_claims(checkpoint.path, checkpoint.metadata, checkpoint.extra_entries)

    def load(self, arch: str | None) -> Loaded:
        own = self._own()
        if isinstance(own, Own) and own.input_size:
            self.claims += (Claim(source=f"the {own.what.removeprefix('own ')}", input_size=own.input_size),)
        try:
            found = find(
                self.checkpoint.shapes,
                self.claims,
                arch=arch,
                input_size=self.options.input_size,
                what=self.what,
            )
        except ArchitectureError as error:
            if own is None or arch is not None:
                raise
            return self._load_own(own, f"since {error.message}")
        networks = self._networks(found)
        if own is not None:
            same = self._same(own, found, networks, arch)
            if not same:
                return self._load_own(own, _otherwise(found), like=_usual(found.groups[0][0]))
            found = replace(
                found,
                groups=tuple(found.groups[i] for i in same),
                evidence=(*found.evidence, _compared(own)),
            )
            networks = [networks[i] for i in same]
        loaded = self._load_rebuilt(found, networks)
        return replace(loaded, input_dtype=own.input_dtype) if isinstance(own, Own) else loaded

    def _own(self) -> Own | BcuError | None:
        """The function that the file carries, or why it cannot be evaluated; None where it carries none."""
        if self.checkpoint.format not in KINDS:
            return None
        try:
            return open_own(self.checkpoint)
        except (ArchitectureError, CheckpointError) as error:
            return error

    def _same(
        self, own: Own | BcuError, found: Found, networks: list[nn.Module], arch: str | None
    ) -> list[int]:
        """Which groups of candidates compute what the file's own function does.

        Raises:
            BcuError: That cannot be found out, and the user named none of them; or the one that the user
                named is another.
        """
        group = found.groups[0]
        try:
            if not isinstance(own, Own):
                raise own
            size = deciding.size_of(self._question(group, networks[0], named=found.named))[0]
            settle_batch(own, size, self.what)
            pictures = self.images(plain(size)) if self.images else None
            same = [i for i, network in enumerate(networks) if is_same(network, own, pictures, size)]
        except BcuError as error:
            if arch is not None:
                return list(range(len(networks)))
            if isinstance(error, CheckpointError):
                raise
            raise ArchitectureError(
                f"{error.message}; so it is not known whether it computes what {group[0].name} does, whose "
                "tensors it has",
                f"{error.hint}, or give --arch {group[0].name} if you know that it does",
            ) from error
        if arch is not None and not same:
            raise ArchitectureError(
                f"{self.what}: its {own.what} answers otherwise than {group[0].name}",
                "leave --arch out: then its own function is used",
            )
        return same

    def _load_rebuilt(self, found: Found, networks: list[nn.Module]) -> Loaded:
        choices = self._choices(found, networks)
        best = self._best(found, choices)
        architecture, network, decision = choices[best]
        if len(choices) > 1:
            architecture = replace(architecture, source=f"{architecture.source}, then BatchNorm statistics")
        classifier = as_classifier(network, decision.preprocessing, self.what)
        if architecture.num_classes != classifier.num_classes:
            architecture = replace(architecture, num_classes=classifier.num_classes)
        evidence = (
            f"architecture {architecture.name}: {architecture.source}",
            *found.evidence,
            *decision.evidence,
        )
        return Loaded(
            classifier=classifier, architecture=architecture, checkpoint=self.checkpoint, evidence=evidence
        )

    def _networks(self, found: Found) -> list[nn.Module]:
        """A network with the file's weights per group of equal candidates."""
        return [
            self._network(group[0].name, group[0].num_classes, group[0].in_channels) for group in found.groups
        ]

    def _choices(
        self, found: Found, networks: list[nn.Module]
    ) -> list[tuple[Architecture, nn.Module, deciding.Decision]]:
        """A network with its preprocessing per group of equal candidates."""
        if len(networks) > 1 and not all(map(self._can_tell, networks)):
            raise ambiguous(found.groups, self.what)
        decisions: list[deciding.Decision | ArchitectureError] = []
        for group, network in zip(found.groups, networks, strict=True):
            try:
                question = self._question(group, network, named=found.named)
                decisions.append(deciding.decide(question, network, self.images))
            except ArchitectureError as error:
                decisions.append(error)
        settled = [decision for decision in decisions if isinstance(decision, deciding.Decision)]
        if not settled:
            raise next(decision for decision in decisions if isinstance(decision, ArchitectureError))
        # Of a wrong architecture the preprocessing may not be told; it competes with that of another one.
        return [
            (
                found.architecture(i),
                network,
                decision if isinstance(decision, deciding.Decision) else settled[0],
            )
            for i, (network, decision) in enumerate(zip(networks, decisions, strict=True))
        ]

    def _question(
        self, group: tuple[Candidate, ...], network: nn.Module, *, named: bool
    ) -> deciding.Question:
        return deciding.Question(
            what=self.what,
            options=self.options,
            claims=self.claims,
            candidates=group,
            named=named,
            channels=_channels(network, group[0].in_channels, group[0].name),
        )

    def _can_tell(self, network: nn.Module) -> bool:
        return self.images is not None and any(isinstance(m, nn.BatchNorm2d) for m in network.modules())

    def _best(self, found: Found, choices: list[tuple[Architecture, nn.Module, deciding.Decision]]) -> int:
        """The choice whose BatchNorm statistics the images reproduce clearly better than the others'."""
        if len(choices) == 1:
            return 0
        assert self.images is not None  # else _choices has refused  # noqa: S101
        distances = []
        for _, network, decision in choices:
            pictures = fingerprint.sample(self.images(decision.preprocessing))
            classifier = Classifier(network, decision.preprocessing, 1)
            distance = fingerprint.batchnorm_distance(network, classifier.normalised(pictures), layers=None)
            distances.append(math.inf if distance is None else distance)
        smallest, runner_up = sorted(distances)[:2]
        if not fingerprint.is_clear(smallest, runner_up, fingerprint.CLEAR_RATIO_OF_ARCHITECTURES):
            raise ambiguous(found.groups, self.what)
        return distances.index(smallest)

    def _network(self, name: str, num_classes: int, in_channels: int) -> nn.Module:
        size = None
        if not is_user_file(name):
            side = self._claimed_side()
            if side is not None or in_channels != 3:
                default = deciding.default_size(name)
                side = side if side is not None else (default[1:] if default else (224, 224))
                size = (in_channels, *side)
        with torch.random.fork_rng(devices=[]):  # loading must not shift anybody's random numbers
            network = build(name, num_classes=num_classes or 2, input_size=size)
        network = network.float()
        fill(network, self.checkpoint.tensors, name, self.what)
        return network.eval()

    def _claimed_side(self) -> tuple[int, int] | None:
        if self.options.input_size is not None:
            return self.options.input_size, self.options.input_size
        return None

    def _load_own(self, own: Own | BcuError, why: str, *, like: str = "") -> Loaded:
        """Take the file's own code or graph for its network.

        Args:
            own: It; or why it cannot be evaluated, which is raised.
            why: The reason, for people.
            like: The architecture whose usual input size it has; empty where none is known.
        """
        if not isinstance(own, Own):
            raise own
        name = str(self.checkpoint.format)
        claims = tuple(claim for claim in self.claims if claim.arch in (None, name))
        first = next((m.in_channels for m in own.network.modules() if isinstance(m, nn.Conv2d)), 3)
        channels = next((claim.input_size[0] for claim in claims if claim.input_size), first)
        question = deciding.Question(
            what=self.what, options=self.options, claims=claims, candidates=(), channels=channels, like=like
        )
        try:
            size = deciding.size_of(question)[0]
            settle_batch(own, size, self.what)
            decision = deciding.decide(question, own.network, self.images)
        except ArchitectureError as error:
            raise ArchitectureError(
                f"{error.message}; its {own.what} is its network, {why}", error.hint
            ) from error
        classifier = as_classifier(own.network, decision.preprocessing, self.what)
        classifier.ends_in_softmax = are_probabilities(answers(classifier, noise(4, size), self.what))
        source = f"the file's {own.what}"
        architecture = Architecture(name=name, source=source, num_classes=classifier.num_classes)
        evidence = [f"architecture: {source} runs, {why}", *decision.evidence]
        if own.network.group is not None:
            evidence.append(f"it is given {_number(own.network.group)} at a time: others change its answers")
        if classifier.ends_in_softmax:
            evidence.append("it answers with probabilities, whose logarithms are taken for logits")
        return Loaded(
            classifier=classifier,
            architecture=architecture,
            checkpoint=self.checkpoint,
            evidence=tuple(evidence),
            input_dtype=own.input_dtype,
        )


def as_classifier(network: nn.Module, preprocessing: Preprocessing, name: str) -> Classifier:
    """A network with its preprocessing, tried once on noise.

    Args:
        network: Normalised images ``float [N, C, H, W]`` to logits ``[N, K]``.
        preprocessing: Its preprocessing.
        name: How errors call the network.

    Raises:
        ArchitectureError: It cannot run on images of that size, or has one output.
        AnswersError: It answers with no logits, or an image otherwise beside another one than by itself.
    """
    classifier = Classifier(network, preprocessing, 0, name=name).eval()
    inputs = noise(2, preprocessing.input_size)
    alone, both = answers(classifier, inputs[:1], name), answers(classifier, inputs, name)
    if both.shape[1] < 2:
        raise ArchitectureError(
            f"{name} has one output: there are no classes to tell apart",
            "bcu needs a classifier with two or more outputs",
        )
    refuse_dependence(alone, both, name)
    classifier.num_classes = both.shape[1]
    return classifier


def _usual(candidate: Candidate) -> str:
    """The name of an architecture that is hardly ever run at another input size than its usual one."""
    usual = candidate.name in OWN_ARCHITECTURES or candidate.num_classes == deciding.IMAGENET_CLASSES
    return candidate.name if usual else ""


def _otherwise(found: Found) -> str:
    names = " and ".join(group[0].name for group in found.groups[:3])
    return f"since it answers otherwise than {names}, whose tensors it has"


def _compared(own: Own | BcuError) -> str:
    if isinstance(own, Own):
        return f"its {own.what} gives the same logits"
    return f"its own function could not be compared: {own.message}"


def _number(images: int) -> str:
    return "one image" if images == 1 else f"{images} images"


def _channels(network: nn.Module, in_channels: int, name: str) -> int:
    """Channels of the input; for the user's own network, those of its first convolution."""
    if not is_user_file(name):
        return in_channels
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    return in_channels if first is None else first.in_channels
