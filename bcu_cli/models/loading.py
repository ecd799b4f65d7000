"""Loading of a checkpoint as a classifier: its architecture, weights and preprocessing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bcu_cli.errors import ArchitectureError, BcuError, CheckpointError
from bcu_cli.models.architecture import Architecture
from bcu_cli.models.architectures.fitting import fill, refuse_broken
from bcu_cli.models.architectures.identification import Found, ambiguous, claim_fits, find, unconfirmed
from bcu_cli.models.classifier import Classifier, refuse_dependence, try_channels_last
from bcu_cli.models.configs.claims import BCU_SOURCE, Claim, read_claims
from bcu_cli.models.configs.timm_tags import claim_of_tag
from bcu_cli.models.embedded.opening import (
    KINDS,
    EmbeddedFunction,
    answers,
    identity_preprocessing,
    is_same,
    noise,
    open_embedded,
    settle_batch,
)
from bcu_cli.models.inputs import consistency, fingerprint, mirrored, preprocessing_choice, size_choice
from bcu_cli.models.metadata import class_names
from bcu_cli.models.networks.builtin import is_builtin
from bcu_cli.models.outputs import find_ending
from bcu_cli.models.preprocessing import Preprocessing
from bcu_cli.models.registry import build, is_user_file

if TYPE_CHECKING:
    from bcu_cli.checkpoints import Checkpoint
    from bcu_cli.models.architectures.index import Candidate

#: Gives images in the size and cropping of a preprocessing: ``float [N, C, H, W]`` in [0, 1], not normalised.
ImageSource = Callable[[Preprocessing], Tensor]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A loaded classifier with its origin.

    Args:
        classifier: The classifier, in evaluation mode, float32, on the CPU.
        architecture: The architecture, and how it was found.
        checkpoint: The checkpoint of the weights.
        evidence: Sentences on how architecture and preprocessing were found.
        input_dtype: Data type of the images that the file's code or graph takes; float32 where it has none.
        labels: Names of the classes in other entries of the file, or in the ``config.json`` beside it; empty
            where these give none.
        renamed: The network's name of each tensor, by its name in the file; empty where they are the same.
    """

    classifier: Classifier
    architecture: Architecture
    checkpoint: Checkpoint
    evidence: tuple[str, ...]
    input_dtype: torch.dtype = torch.float32
    labels: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)

    def as_named_in_file(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A network's state under the names of the file; counters that are no part of it stay as they are."""
        if not self.renamed:
            return dict(state)
        held = self.checkpoint.tensors
        return {
            name: state[self.renamed[name]] if name in self.renamed else tensor
            for name, tensor in held.items()
        }

    @property
    def preprocessing(self) -> Preprocessing:
        """Size, cropping and normalisation of the network's input."""
        return self.classifier.preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the outputs; empty where file and config do not give them."""
        count = self.classifier.num_classes
        in_file = class_names(self.checkpoint.metadata, count)
        return in_file or (self.labels if len(self.labels) == count else ())

    @property
    def names_are_certain(self) -> bool:
        """Whether bcu wrote the names of the classes into the file, from the folders of its training."""
        return bool(class_names(self.checkpoint.metadata, self.classifier.num_classes))


def load(
    checkpoint: Checkpoint,
    *,
    arch: str | None = None,
    input_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    images: ImageSource | None = None,
    side_of_images: Callable[[], int | None] | None = None,
) -> Loaded:
    """Construct a runnable classifier from a checkpoint.

    Args:
        checkpoint: The checkpoint.
        arch: ``--arch``: a name, or FILE.py:FUNCTION (the function runs).
        input_size: ``--input-size``: height and width of the input in pixels.
        mean: ``--mean``: one value, or one per channel.
        std: ``--std``: one value, or one per channel.
        images: Gives about 256 natural images, which are used if only BatchNorm statistics can decide.
        side_of_images: Gives height and width in pixels of the images as they are; None where these differ.

    Raises:
        ArchitectureError: The weights are broken or no image classifier's, the architecture is unknown or
            does not fit, or an option is needed.
        AnswersError: The output is no logits, is not finite, or depends on the batch.
        UnsafeFileError: The network is known only from TorchScript code or an ONNX graph, which contains
            something that is not allowed to run.
    """
    refuse_broken(checkpoint.tensors, checkpoint.path.name)
    loader = _Loader(
        checkpoint,
        preprocessing_choice.Options(input_size=input_size, mean=mean, std=std),
        images,
        side_of_images,
    )
    return loader.load(arch)


class _Loader:
    """The state of one call of :func:`load`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: preprocessing_choice.Options,
        images: ImageSource | None,
        side_of_images: Callable[[], int | None] | None,
    ) -> None:
        self.checkpoint = checkpoint
        self.options = options
        self.images = images
        self.side_of_images = side_of_images
        self.what = checkpoint.path.name
        self.claims = read_claims(checkpoint.path, checkpoint.metadata, checkpoint.extra_entries)

    def load(self, arch: str | None) -> Loaded:
        embedded = self._embedded_function()
        if isinstance(embedded, EmbeddedFunction) and embedded.input_size:
            self.claims += (
                Claim(source=f"the {embedded.what.removeprefix('own ')}", input_size=embedded.input_size),
            )
        try:
            found = find(
                self.checkpoint.shapes,
                self.claims,
                arch=arch,
                input_size=self.options.input_size,
                what=self.what,
                by_shapes=embedded is None,
            )
        except ArchitectureError as error:
            if embedded is None or arch is not None:
                raise
            return self._load_embedded(embedded, f"since {error.message}")
        self._add_claims_of_tags(arch, found)
        networks = self._networks(found)
        if embedded is not None:
            same = self._same(embedded, found, networks, arch)
            if not same:
                return self._load_embedded(
                    embedded, _mismatch_reason(found), like=_architecture_of_usual_size(found.groups[0][0])
                )
            found = replace(
                found,
                groups=tuple(found.groups[i] for i in same),
                evidence=(*found.evidence, _comparison_note(embedded)),
            )
            networks = [networks[i] for i in same]
        loaded = self._load_rebuilt(found, networks)
        return (
            replace(loaded, input_dtype=embedded.input_dtype)
            if isinstance(embedded, EmbeddedFunction)
            else loaded
        )

    def _add_claims_of_tags(self, arch: str | None, found: Found) -> None:
        """Add what timm says of the weights that the architecture's name is of, if it has a tag.

        A name that the user gives goes before what others say, but not before what bcu wrote into this file.
        """
        number = found.groups[0][0].num_classes
        if arch is not None and (claim := claim_of_tag(arch, number)):
            ours = sum(each.source == BCU_SOURCE for each in self.claims)
            self.claims = (*self.claims[:ours], claim, *self.claims[ours:])
        names = [each.arch for each in self.claims if each.arch and claim_fits(each, found.groups[0])]
        told = [claim_of_tag(name, number, strict=False) for name in names]
        self.claims = (*self.claims, *(claim for claim in told if claim))

    def _embedded_function(self) -> EmbeddedFunction | BcuError | None:
        """The function that the file embeds, or the error of opening it; None where there is none."""
        if self.checkpoint.format not in KINDS:
            return None
        try:
            return open_embedded(self.checkpoint)
        except (ArchitectureError, CheckpointError) as error:
            return error

    def _same(
        self, embedded: EmbeddedFunction | BcuError, found: Found, networks: list[nn.Module], arch: str | None
    ) -> list[int]:
        """Indices of the groups of candidates that compute the same as the embedded function."""
        group = found.groups[0]
        try:
            if not isinstance(embedded, EmbeddedFunction):
                raise embedded
            size = preprocessing_choice.size_of(self._question(group, networks[0], named=found.named))[0]
            settle_batch(embedded, size, self.what)
            natural = self.images(identity_preprocessing(size)) if self.images else None
            same = [i for i, network in enumerate(networks) if is_same(network, embedded, natural, size)]
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
                f"{self.what}: its {embedded.what} gives other logits than {group[0].name}",
                "leave --arch out: then its own function is used",
            )
        return same

    def _load_rebuilt(self, found: Found, networks: list[nn.Module]) -> Loaded:
        choices = self._choices(found, networks)
        best, distance, decided = self._best(found, choices)
        architecture, network, decision = choices[best]
        if distance is not None:
            architecture = replace(
                architecture, source=f"{architecture.source}; BatchNorm statistics agree ({distance:.2f})"
            )
        if decided:
            architecture = replace(architecture, source=f"{architecture.source}, then {decided}")
        candidates = found.groups[best]
        classifier, remarks = as_classifier(network, decision.preprocessing, self.what)
        if architecture.num_classes != classifier.num_classes:
            architecture = replace(architecture, num_classes=classifier.num_classes)
        evidence = (
            f"architecture {architecture.name}: {architecture.source}",
            *found.evidence,
            *decision.evidence,
            *remarks,
        )
        return Loaded(
            classifier=classifier,
            architecture=architecture,
            checkpoint=self.checkpoint,
            evidence=evidence,
            labels=_labels([claim for claim in self.claims if _names_classes(claim, candidates)], classifier),
            renamed=candidates[0].renamed,
        )

    def _networks(self, found: Found) -> list[nn.Module]:
        """A network with the file's weights for each group of equal candidates."""
        return [self._network(group[0]) for group in found.groups]

    def _choices(
        self, found: Found, networks: list[nn.Module]
    ) -> list[tuple[Architecture, nn.Module, preprocessing_choice.Decision]]:
        """A network with its preprocessing for each group of equal candidates."""
        if len(networks) > 1 and not all(map(self._has_statistics, networks)):
            raise ambiguous(found.groups, self.what)
        decisions: list[preprocessing_choice.Decision | ArchitectureError] = []
        for group, network in zip(found.groups, networks, strict=True):
            try:
                question = self._question(group, network, named=found.named)
                decisions.append(preprocessing_choice.decide(question, network, self.images))
            except ArchitectureError as error:
                decisions.append(error)
        settled = [decision for decision in decisions if isinstance(decision, preprocessing_choice.Decision)]
        if not settled:
            raise next(decision for decision in decisions if isinstance(decision, ArchitectureError))
        # The preprocessing of a wrong architecture may be undecidable; it then takes that of another one.
        return [
            (
                found.architecture(i),
                network,
                decision if isinstance(decision, preprocessing_choice.Decision) else settled[0],
            )
            for i, (network, decision) in enumerate(zip(networks, decisions, strict=True))
        ]

    def _question(
        self, group: tuple[Candidate, ...], network: nn.Module, *, named: bool
    ) -> preprocessing_choice.Question:
        question = preprocessing_choice.Question(
            what=self.what,
            options=self.options,
            claims=self.claims,
            candidates=group,
            named=named,
            channels=_channels(network, group[0].in_channels, group[0].name),
        )
        if is_user_file(group[0].name):
            return self._with_size(question, network)
        self._check_usual_size(question, network)
        return question

    def _check_usual_size(self, question: preprocessing_choice.Question, network: nn.Module) -> None:
        """Compare an architecture's usual input size, if nothing else gives one, with that of the images."""
        usual = preprocessing_choice.default_size(question.name)
        pretrained = question.candidates[0].num_classes == preprocessing_choice.IMAGENET_CLASSES
        if usual is None or pretrained or preprocessing_choice.is_size_given(question):
            return
        if self.images is None or self.side_of_images is None or not self._has_statistics(network):
            return
        side = self.side_of_images()
        if side is not None:
            size_choice.refuse_other_side(
                network,
                (question.channels, *usual[1:]),
                images=self.images,
                side_of_images=side,
                name=question.name,
                what=self.what,
            )

    def _has_statistics(self, network: nn.Module) -> bool:
        return self.images is not None and any(map(fingerprint.has_statistics, network.modules()))

    def _best(
        self, found: Found, choices: list[tuple[Architecture, nn.Module, preprocessing_choice.Decision]]
    ) -> tuple[int, float | None, str]:
        """Index of the choice that the images fit best, its BatchNorm distance, and what decided.

        Its BatchNorm statistics must be the nearest. If they are not clearly so, its answers to mirrored
        images must also be clearly the most alike. The distance is None where there was nothing to decide or
        to confirm, and the reason is empty for an only choice.

        Raises:
            ArchitectureError: The images do not decide, or contradict an only choice.
        """
        if len(choices) == 1:
            return 0, self._confirm(found, *choices[0][1:]) if found.unconfirmed else None, ""
        distances = []
        for _, network, decision in choices:
            distance = self._distance(network, decision)
            distances.append(math.inf if distance is None else distance)
        smallest, runner_up = sorted(distances)[:2]
        best = distances.index(smallest)
        if fingerprint.is_clear(smallest, runner_up, fingerprint.CLEAR_RATIO_OF_ARCHITECTURES):
            return best, smallest, "BatchNorm statistics"
        if smallest <= fingerprint.LARGEST_DISTANCE and self._is_most_alike(best, choices):
            return best, smallest, "BatchNorm statistics and the answers to mirrored images"
        raise ambiguous(found.groups, self.what)

    def _is_most_alike(
        self, best: int, choices: list[tuple[Architecture, nn.Module, preprocessing_choice.Decision]]
    ) -> bool:
        """Whether one choice answers mirrored images clearly the most like the images themselves."""
        if self.images is None:
            return False
        values = []
        for _, network, decision in choices:
            some = consistency.evenly(self.images(decision.preprocessing), mirrored.IMAGES)
            values.append(mirrored.disagreement(network, decision.preprocessing, some, self.what))
        others = [value for i, value in enumerate(values) if i != best]
        return len({len(value) for value in values}) == 1 and mirrored.is_clearly_least(values[best], others)

    def _confirm(
        self, found: Found, network: nn.Module, decision: preprocessing_choice.Decision
    ) -> float | None:
        """Distance of the BatchNorm statistics of a network that was found by the shapes of its tensors.

        It is None where a claim of the file names the network, and no statistics tell.

        Raises:
            ArchitectureError: The statistics contradict, or nothing but the shapes speaks for the network.
        """
        name = found.groups[0][0].name
        distance = self._distance(network, decision)
        if distance is not None and distance > fingerprint.LARGEST_DISTANCE:
            raise unconfirmed(name, self.what, f"its BatchNorm statistics disagree ({distance:.2f})")
        if distance is None and not found.named:
            lacking = "no images test that" if self.images is None else "it has no BatchNorm to tell"
            raise unconfirmed(name, self.what, lacking)
        return distance

    def _distance(self, network: nn.Module, decision: preprocessing_choice.Decision) -> float | None:
        """How far the images are from a network's BatchNorm statistics; None without images or BatchNorm."""
        if self.images is None:
            return None
        sampled = fingerprint.sample(self.images(decision.preprocessing))
        classifier = Classifier(network, decision.preprocessing, 1)
        return fingerprint.batchnorm_distance(network, classifier.normalised(sampled), layers=None)

    def _network(self, candidate: Candidate) -> nn.Module:
        name, in_channels = candidate.name, candidate.in_channels
        size = None
        if not is_user_file(name):
            side = self._claimed_side()
            if side is not None or in_channels != 3:
                default = preprocessing_choice.default_size(name)
                side = side if side is not None else (default[1:] if default else (224, 224))
                size = (in_channels, *side)
        with torch.random.fork_rng(devices=[]):  # loading must not change the caller's random numbers
            network = build(name, num_classes=candidate.num_classes or 2, input_size=size)
        network = network.float()
        held = self.checkpoint.tensors
        renamed = {own: held[given] for given, own in candidate.renamed.items()}
        fill(network, renamed or held, name, self.what)
        return network.eval()

    def _claimed_side(self) -> tuple[int, int] | None:
        if self.options.input_size is not None:
            return self.options.input_size, self.options.input_size
        return None

    def _load_embedded(self, embedded: EmbeddedFunction | BcuError, why: str, *, like: str = "") -> Loaded:
        """Use the file's code or graph as the network.

        A claim that names an architecture may be about another file. It is used if it names as many classes
        as the network has outputs.

        Args:
            embedded: The function that the file embeds, or the error of opening it, which is raised.
            why: The reason, in words.
            like: An architecture whose usual input size the network has; empty where none is known.
        """
        if not isinstance(embedded, EmbeddedFunction):
            raise embedded
        own = (None, str(self.checkpoint.format))
        claims = tuple(claim for claim in self.claims if claim.arch in own)
        foreign = [claim for claim in self.claims if claim.arch not in own and claim.classes]
        if not foreign:
            return self._with_claims(embedded, claims, why, like)
        every = tuple(claim for claim in self.claims if claim.arch in own or claim in foreign)
        refusal: BcuError | None = None
        try:
            loaded = self._with_claims(embedded, every, why, like)
        except BcuError as error:  # what cannot be done counts only if it is about this network
            refusal, loaded = error, self._with_claims(embedded, claims, why, like)
        if all(len(claim.classes) == loaded.classifier.num_classes for claim in foreign):
            if refusal is not None:
                raise refusal
            return loaded
        return loaded if refusal is not None else self._with_claims(embedded, claims, why, like)

    def _with_claims(
        self, embedded: EmbeddedFunction, claims: tuple[Claim, ...], why: str, like: str
    ) -> Loaded:
        """Use the file's code or graph as the network, and believe some claims about its images."""
        name = str(self.checkpoint.format)
        first = next((m.in_channels for m in embedded.network.modules() if isinstance(m, nn.Conv2d)), 3)
        channels = next((claim.input_size[0] for claim in claims if claim.input_size), first)
        question = preprocessing_choice.Question(
            what=self.what, options=self.options, claims=claims, candidates=(), channels=channels, like=like
        )
        try:
            question = self._with_size(question, embedded.network)
            size = preprocessing_choice.size_of(question)[0]
            settle_batch(embedded, size, self.what)
            decision = preprocessing_choice.decide(question, embedded.network, self.images)
        except ArchitectureError as error:
            raise ArchitectureError(
                f"{error.message}; its {embedded.what} is its network, {why}", error.hint
            ) from error
        classifier, remarks = as_classifier(embedded.network, decision.preprocessing, self.what)
        source = f"the file's {embedded.what}"
        architecture = Architecture(name=name, source=source, num_classes=classifier.num_classes)
        evidence = [f"architecture: {source} runs, {why}", *decision.evidence, *remarks]
        if embedded.network.group is not None:
            group = embedded.network.group
            given = "one image" if group == 1 else f"{group} images"
            evidence.append(f"it is given {given} at a time: others change its answers")
        return Loaded(
            classifier=classifier,
            architecture=architecture,
            checkpoint=self.checkpoint,
            evidence=tuple(evidence),
            input_dtype=embedded.input_dtype,
            labels=_labels(claims, classifier),
        )

    def _with_size(
        self, question: preprocessing_choice.Question, network: nn.Module
    ) -> preprocessing_choice.Question:
        """Add the input size that layers and images tell, where nothing states it."""
        if preprocessing_choice.states_size(question):
            return question
        side, source = size_choice.infer_side(
            network,
            question.channels,
            images=self.images,
            side_of_images=self.side_of_images() if self.side_of_images else None,
            what=self.what,
        )
        inferred = Claim(source=source, input_size=(question.channels, side, side))
        return replace(question, claims=(*question.claims, inferred))


def as_classifier(
    network: nn.Module, preprocessing: Preprocessing, name: str
) -> tuple[Classifier, tuple[str, ...]]:
    """Join a network and its preprocessing to a classifier, and try it on noise.

    Args:
        network: Maps normalised images ``float [N, C, H, W]`` to logits ``[N, K]``, or to what
            :mod:`~bcu_cli.models.outputs` makes logits of.
        preprocessing: Preprocessing of its images.
        name: Name of the network in errors.

    Returns:
        The classifier, and sentences on how the outputs of the network become logits.

    Raises:
        ArchitectureError: The network cannot run on images of that size, or has one output.
        AnswersError: The output is no logits, or depends on the batch.
    """
    classifier = Classifier(network, preprocessing, 0, name=name).eval()
    inputs = noise(4, preprocessing.input_size)
    answers(classifier, inputs, name)
    classifier.ending, choice = find_ending(network, classifier.normalised(inputs), name)
    alone, both = answers(classifier, inputs[:1], name), answers(classifier, inputs[:2], name)
    refuse_dependence(alone, both, name)
    classifier.num_classes = both.shape[1]
    try_channels_last(classifier, inputs)
    return classifier, tuple(note for note in (choice, classifier.ending.note) if note)


def _names_classes(claim: Claim, candidates: Sequence[Candidate]) -> bool:
    """Whether the classes of a claim may be those of one of these; the user's own network has any name."""
    return claim_fits(claim, candidates) or is_user_file(candidates[0].name)


def _labels(claims: Iterable[Claim], classifier: Classifier) -> tuple[str, ...]:
    """The first names of classes that are claimed, one for each output; empty where there are none."""
    return next((each.classes for each in claims if len(each.classes) == classifier.num_classes), ())


def _architecture_of_usual_size(candidate: Candidate) -> str:
    """The name of an architecture that is nearly always run at its usual input size; else empty."""
    usual = is_builtin(candidate.name) or candidate.num_classes == preprocessing_choice.IMAGENET_CLASSES
    return candidate.name if usual else ""


def _mismatch_reason(found: Found) -> str:
    names = " and ".join(group[0].name for group in found.groups[:3])
    return f"since it gives other logits than {names}, whose tensors it has"


def _comparison_note(embedded: EmbeddedFunction | BcuError) -> str:
    if isinstance(embedded, EmbeddedFunction):
        return f"its {embedded.what} gives the same logits"
    return f"its own function could not be compared: {embedded.message}"


def _channels(network: nn.Module, in_channels: int, name: str) -> int:
    """Channels of the input; for a network from the user's file, those of its first convolution."""
    if not is_user_file(name):
        return in_channels
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    return in_channels if first is None else first.in_channels
