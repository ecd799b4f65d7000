"""A checkpoint to a classifier: architecture, weights, preprocessing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bcu_cli.errors import AnswersError, ArchitectureError
from bcu_cli.models import deciding, fingerprint
from bcu_cli.models.architecture import Architecture
from bcu_cli.models.claims import Claim, read_claims
from bcu_cli.models.classifier import Classifier, refuse_dependence
from bcu_cli.models.fitting import fill, refuse_broken
from bcu_cli.models.identification import Found, ambiguous, find
from bcu_cli.models.preprocessing import Preprocessing
from bcu_cli.models.registry import build, is_user_file, one_line

if TYPE_CHECKING:
    from bcu_cli.checkpoints import Checkpoint
    from bcu_cli.models.foreign import ForeignNetwork
    from bcu_cli.models.index import Candidate

TORCHSCRIPT, ONNX = "torchscript", "onnx"

#: Pictures for a preprocessing's size and cropping: ``float [N, C, H, W]`` in [0, 1], not normalised.
ImageSource = Callable[[Preprocessing], Tensor]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A classifier and how it was made.

    Args:
        classifier: In evaluation mode, float32, on the CPU.
        architecture: Which, and how it was found.
        checkpoint: The file that it came from.
        evidence: What decided and what was noticed, in sentences for people.
    """

    classifier: Classifier
    architecture: Architecture
    checkpoint: Checkpoint
    evidence: tuple[str, ...]


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
        images: Gives natural pictures, about 256 of them, where only BatchNorm statistics can decide.

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
        self.claims = read_claims(checkpoint.path, checkpoint.metadata, checkpoint.beside)

    def load(self, arch: str | None) -> Loaded:
        try:
            found = find(
                self.checkpoint.shapes,
                self.claims,
                arch=arch,
                input_size=self.options.input_size,
                what=self.what,
            )
        except ArchitectureError as error:
            if self.checkpoint.format not in {TORCHSCRIPT, ONNX} or arch is not None:
                raise
            return self._load_own(error)
        choices = self._choices(found)
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

    def _choices(self, found: Found) -> list[tuple[Architecture, nn.Module, deciding.Decision]]:
        """A network with its preprocessing per group of equal candidates."""
        networks = [
            self._network(group[0].name, group[0].num_classes, group[0].in_channels) for group in found.groups
        ]
        if len(networks) > 1 and not all(map(self._can_tell, networks)):
            raise ambiguous(found.groups, self.what)
        decisions: list[deciding.Decision | ArchitectureError] = []
        for group, network in zip(found.groups, networks, strict=True):
            try:
                decisions.append(self._decide(group, network, named=found.named))
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

    def _decide(self, group: tuple[Candidate, ...], network: nn.Module, *, named: bool) -> deciding.Decision:
        question = deciding.Question(
            what=self.what,
            options=self.options,
            claims=self.claims,
            candidates=group,
            named=named,
            channels=_channels(network, group[0].in_channels, group[0].name),
        )
        return deciding.decide(question, network, self.images)

    def _can_tell(self, network: nn.Module) -> bool:
        return self.images is not None and any(isinstance(m, nn.BatchNorm2d) for m in network.modules())

    def _best(self, found: Found, choices: list[tuple[Architecture, nn.Module, deciding.Decision]]) -> int:
        """The choice whose BatchNorm statistics the pictures reproduce clearly better than the others'."""
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

    def _load_own(self, reason: ArchitectureError) -> Loaded:
        """Run the file's own (allow-listed) code or graph, since its tensors fit no known architecture."""
        own = str(self.checkpoint.format)
        claims = tuple(claim for claim in self.claims if claim.arch in (None, own))
        network: ForeignNetwork
        if own == TORCHSCRIPT:
            network, what = _script(self.checkpoint), "TorchScript code"
        else:
            network, size = _graph(self.checkpoint)
            what = "ONNX graph"
            claims += (Claim(source="the graph's input", input_size=size),)
        network.file = self.what
        network = network.float().eval()
        channels = next((claim.input_size[0] for claim in claims if claim.input_size), 3)
        decision = deciding.decide(
            deciding.Question(
                what=self.what, options=self.options, claims=claims, candidates=(), channels=channels
            ),
            network,
            self.images,
        )
        classifier = as_classifier(network, decision.preprocessing, self.what)
        architecture = Architecture(
            name=own, source=f"the file's own {what}", num_classes=classifier.num_classes
        )
        return Loaded(
            classifier=classifier,
            architecture=architecture,
            checkpoint=self.checkpoint,
            evidence=(
                f"architecture: the file's own {what} runs, since {reason.message}",
                *decision.evidence,
            ),
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
    size = preprocessing.input_size
    noise = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            alone, both = classifier(noise[:1]), classifier(noise)
    except (AnswersError, ArchitectureError):  # a graph that fails says so itself
        raise
    except Exception as error:
        raise ArchitectureError(
            f"{name} cannot run on {'x'.join(map(str, size))} inputs: {one_line(error)}",
            "give the right --input-size or --arch",
        ) from error
    if both.shape[1] < 2:
        raise ArchitectureError(
            f"{name} has one output: there are no classes to tell apart",
            "bcu needs a classifier with two or more outputs",
        )
    refuse_dependence(alone, both, name)
    classifier.num_classes = both.shape[1]
    return classifier


def _script(checkpoint: Checkpoint) -> ForeignNetwork:
    from bcu_cli.checkpoints import open_script
    from bcu_cli.models.script import ScriptNetwork

    return ScriptNetwork(open_script(checkpoint))


def _graph(checkpoint: Checkpoint) -> tuple[ForeignNetwork, tuple[int, int, int] | None]:
    """The network of an ONNX graph, and the size of its input where it is fixed."""
    from bcu_cli.checkpoints import load_graph
    from bcu_cli.models.graph import GraphNetwork

    graph = load_graph(checkpoint)
    size = tuple(side for side in graph.input_shape[1:] if side)
    return GraphNetwork(graph, checkpoint.path.name), size if len(size) == 3 else None


def _channels(network: nn.Module, in_channels: int, name: str) -> int:
    """Channels of the input; for the user's own network, those of its first convolution."""
    if not is_user_file(name):
        return in_channels
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    return in_channels if first is None else first.in_channels
