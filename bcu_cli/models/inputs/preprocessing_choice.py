"""Chooses the preprocessing of a network by options, claims, BatchNorm statistics or a library's default."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from bcu_cli.errors import ArchitectureError, UsageError
from bcu_cli.models.architectures.identification import claim_fits
from bcu_cli.models.architectures.index import Candidate, entry_of
from bcu_cli.models.classifier import in_order
from bcu_cli.models.configs import timm_config
from bcu_cli.models.inputs import consistency, fingerprint
from bcu_cli.models.networks.builtin import BUILTIN_ARCHITECTURES, is_builtin, split_width
from bcu_cli.models.preprocessing import (
    BGR,
    GREY_NORMALISATIONS,
    NORMALISATIONS,
    OF_PIXELS,
    RGB,
    SQUASH,
    Normalisation,
    Preprocessing,
    check_normalisation,
    check_size,
    format_values,
)
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from bcu_cli.models.configs.claims import Claim

#: A timm or torchvision network with this many classes is assumed to be trained like the library's weights.
IMAGENET_CLASSES = 1000

T = TypeVar("T")
Values = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the user; None where an option was not given.

    Args:
        input_size: Height and width of the input in pixels.
        mean: Mean, one value or one per channel.
        std: Standard deviation, one value or one per channel.
    """

    input_size: int | None = None
    mean: Values | None = None
    std: Values | None = None


@dataclass(frozen=True, kw_only=True)
class Question:
    """Everything that is known before the network runs.

    Args:
        what: Name of the file in errors.
        options: Options of the user.
        claims: Claims of the file.
        candidates: The architecture and its equals, best first; empty for an unknown architecture.
        channels: Channels of the input.
        named: Whether the user or the file names the first candidate. The tensors fit all candidates.
        like: Without candidates, an architecture whose usual input size the network is assumed to have.
    """

    what: str
    options: Options
    claims: Sequence[Claim]
    candidates: Sequence[Candidate]
    channels: int
    named: bool = True
    like: str = ""

    @property
    def name(self) -> str:
        """The full name of the first candidate; empty where there is none."""
        return self.candidates[0].name if self.candidates else self.like

    @property
    def default(self) -> Preprocessing | None:
        """The library's preprocessing for the architecture."""
        return next((c.preprocessing for c in self.candidates if c.preprocessing is not None), None)

    @property
    def defaults(self) -> list[Normalisation]:
        """The distinct normalisations of the libraries, which may differ between equal networks."""
        meant = self.candidates[:1] if self.named else self.candidates
        distinct: dict[tuple[Values, Values], Normalisation] = {}
        for candidate in meant:
            default = candidate.preprocessing
            if default is not None and len(default.mean) == self.channels:
                one = Normalisation(name=f"{candidate.name}'s", mean=default.mean, std=default.std)
                distinct.setdefault((one.mean, one.std), one)
        return list(distinct.values())

    def claimed(self, get: Callable[[Claim], T | None]) -> tuple[T, str] | None:
        """The first claimed value about the right architecture, with its source."""
        for claim in self.claims:
            value = get(claim)
            if value is not None and (not self.candidates or claim_fits(claim, self.candidates)):
                return value, claim.source
        return None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The chosen preprocessing, and sentences on how it was found."""

    preprocessing: Preprocessing
    evidence: tuple[str, ...]


def default_size(name: str) -> tuple[int, int, int] | None:
    """The input size (C, H, W) that an architecture is made for; None where it is not known."""
    if is_builtin(name):
        return BUILTIN_ARCHITECTURES[split_width(name)[0]]
    base, options = timm_config.split(name)
    size = options.get(timm_config.IMG_SIZE)
    if size is not None:
        return (3, size, size) if isinstance(size, int) else (3, size[0], size[1])
    entry = entry_of(base)
    return entry.preprocessing.input_size if entry is not None and entry.preprocessing is not None else None


def decide(
    question: Question, network: nn.Module, images: Callable[[Preprocessing], Tensor] | None
) -> Decision:
    """Choose input size, cropping and normalisation, each by the most trusted evidence.

    Args:
        question: The evidence.
        network: The network with its weights, without normalisation.
        images: Gives images for :mod:`~bcu_cli.models.inputs.fingerprint`; None if there are none.

    Raises:
        ArchitectureError: A value cannot be determined and must be given as an option.
        UsageError: An option makes no sense.
    """
    _refuse_claims(question)
    size, size_source = size_of(question)
    provisional = _provisional(question, size)
    normalisation, source, order = _normalisation(question, network, provisional, images)
    preprocessing = replace(
        provisional, mean=normalisation.mean, std=normalisation.std, channel_order=order, source=source
    )
    evidence = (
        f"input size {size[1]}x{size[2]}: {size_source}",
        f"mean {format_values(normalisation.mean)} and std {format_values(normalisation.std)}: {source}",
        *_remarks(preprocessing),
    )
    return Decision(preprocessing=preprocessing, evidence=evidence)


def _remarks(preprocessing: Preprocessing) -> list[str]:
    """Sentences on unusual cropping or channel order."""
    remarks = []
    if preprocessing.crop_mode == SQUASH:
        remarks.append("images are squashed into the input's shape, not cut")
    if preprocessing.channel_order == BGR:
        remarks.append("the network takes the channels in the order blue, green, red")
    return remarks


def _refuse_claims(question: Question) -> None:
    """Raise ``ArchitectureError`` if the file asks for preprocessing that bcu cannot do."""
    for claim in question.claims:
        if question.candidates and not claim_fits(claim, question.candidates):
            continue
        if claim.refusals:
            raise ArchitectureError(
                f"{question.what}: the configuration beside it says {'; '.join(claim.refusals)}",
                "take that configuration away and give --arch, --input-size, --mean and --std",
            )
        if claim.input_size and claim.mean and claim.std:
            return  # less trusted claims are not used


def _provisional(question: Question, size: tuple[int, int, int]) -> Preprocessing:
    """The preprocessing without normalisation."""
    default = question.default or Preprocessing(input_size=size, mean=(0.0,) * size[0], std=(1.0,) * size[0])
    crop = question.claimed(lambda claim: claim.crop_pct)
    mode = question.claimed(lambda claim: claim.crop_mode)
    interpolation = question.claimed(lambda claim: claim.interpolation)
    order = question.claimed(lambda claim: claim.channel_order)
    return Preprocessing(
        input_size=size,
        mean=(0.0,) * size[0],
        std=(1.0,) * size[0],
        crop_pct=crop[0] if crop else default.crop_pct,
        crop_mode=mode[0] if mode else default.crop_mode,
        interpolation=interpolation[0] if interpolation else default.interpolation,
        channel_order=order[0] if order and size[0] == 3 else default.channel_order,
    )


def size_of(question: Question) -> tuple[tuple[int, int, int], str]:
    """Channels, height and width of the input, and the source of these values.

    Args:
        question: The evidence.

    Raises:
        ArchitectureError: The size is not known.
        UsageError: The option makes no sense.
    """
    side = question.options.input_size
    if side is not None:
        size = (question.channels, side, side)
        try:
            check_size(size)
        except ValueError as error:
            raise UsageError(
                f"--input-size {side}: {error}", "give the side of the input in pixels"
            ) from None
        return size, "option"
    claimed = question.claimed(lambda claim: claim.input_size)
    if claimed is not None and claimed[0][0] == question.channels:
        return claimed
    default = default_size(question.name)
    if default is None:
        raise ArchitectureError(
            f"the input size of {question.what} is not known",
            "give --input-size, for example --input-size 224",
        )
    return (question.channels, *default[1:]), f"default of {question.name}"


def states_size(question: Question) -> bool:
    """Whether an option, a claim or the architecture states the input size."""
    return is_size_given(question) or default_size(question.name) is not None


def is_size_given(question: Question) -> bool:
    """Whether an option or a claim states the input size."""
    claimed = question.claimed(lambda claim: claim.input_size)
    return question.options.input_size is not None or (
        claimed is not None and claimed[0][0] == question.channels
    )


def _normalisation(
    question: Question,
    network: nn.Module,
    provisional: Preprocessing,
    images: Callable[[Preprocessing], Tensor] | None,
) -> tuple[Normalisation, str, str]:
    """Mean and std in the order of the channels, their source, and that order."""
    order = provisional.channel_order
    mean = _given(question, "mean", question.options.mean, lambda claim: claim.mean)
    std = _given(question, "std", question.options.std, lambda claim: claim.std)
    if mean is not None and std is not None:
        sources = dict.fromkeys((mean[1], std[1]))
        return Normalisation(name="given", mean=mean[0], std=std[0]), " and ".join(sources), order
    candidates = _candidates(question, mean and mean[0], std and std[0])
    half = f"{(mean or std or ('', ''))[1]} and " if mean or std else ""
    pretrained = question.candidates[0].num_classes == IMAGENET_CLASSES if question.candidates else False
    defaults = _distinct(question.defaults, mean and mean[0], std and std[0]) if pretrained else []
    verdict = None
    if images is not None:
        sampled = images(provisional)
        ordered = in_order(fingerprint.sample(sampled), order)
        more = _distinct(OF_PIXELS if question.channels == 3 else (), mean and mean[0], std and std[0])
        verdict = fingerprint.compare(network, ordered, [*candidates, *more])
        is_open = verdict is not None and order == RGB and _may_be_other_order(question)
        other = fingerprint.blue_first(network, ordered, verdict) if verdict is not None and is_open else None
        if other is not None:
            order, verdict = BGR, other
        if verdict is None and len(defaults) != 1:
            possible = defaults or candidates
            verdict = consistency.compare(network, provisional, sampled, possible, question.what)
    if verdict is not None and verdict.best is not None:
        return verdict.best, f"{half}{verdict.evidence}: {verdict.describe()}", order
    if len(defaults) > 1:
        raise _ask_which(question, defaults)
    if defaults:
        return defaults[0], f"{half}default of {question.name}", order
    raise _ask(question, candidates, verdict)


def _may_be_other_order(question: Question) -> bool:
    """Whether the order of the channels is open: three of them, of which nothing says anything."""
    known = question.options.mean or question.options.std
    claimed = question.claimed(lambda claim: claim.mean or claim.std or claim.channel_order)
    return question.channels == 3 and not known and claimed is None


def _given(
    question: Question, name: str, option: Values | None, get: Callable[[Claim], Values | None]
) -> tuple[Values, str] | None:
    """Mean or std that the user gave or the file claims, with its source."""
    if option is not None:
        values = option * question.channels if len(option) == 1 else option
        hint = f"give --{name} on the scale from 0 to 1"
        try:
            check_normalisation(*((values, ()) if name == "mean" else ((), values)))
        except ValueError as error:
            raise UsageError(f"--{name}: {error}", hint) from None
        if max(values) > 1.0:
            raise UsageError(f"--{name} {format_values(values)} is of pixels up to 255", hint)
        if len(values) != question.channels:
            raise UsageError(
                f"--{name} has {number_of(len(values), 'value')} "
                f"for {number_of(question.channels, 'channel')}",
                f"give one value, or one per channel: --{name} {format_values((0.5,) * question.channels)}",
            )
        return values, "option"
    claimed = question.claimed(get)
    return claimed if claimed is not None and len(claimed[0]) == question.channels else None


def _candidates(question: Question, mean: Values | None, std: Values | None) -> list[Normalisation]:
    """The distinct normalisations that are possible with a known mean or std."""
    known = list({1: GREY_NORMALISATIONS, 3: NORMALISATIONS}.get(question.channels, ()))
    known += question.defaults
    if not known:
        ones = (1.0,) * question.channels
        known = [Normalisation(name="none", mean=(0.0,) * question.channels, std=ones)]
    return _distinct(known, mean, std)


def _distinct(known: Sequence[Normalisation], mean: Values | None, std: Values | None) -> list[Normalisation]:
    """The distinct normalisations, with a known mean or std in place of theirs."""
    distinct: dict[tuple[Values, Values], Normalisation] = {}
    for candidate in known:
        fixed = Normalisation(name=candidate.name, mean=mean or candidate.mean, std=std or candidate.std)
        distinct.setdefault((fixed.mean, fixed.std), fixed)
    return list(distinct.values())


def _ask_which(question: Question, defaults: Sequence[Normalisation]) -> ArchitectureError:
    """The error for equal networks whose libraries normalise differently."""
    named = [
        f"{one.name} is mean {format_values(one.mean)} and std {format_values(one.std)}" for one in defaults
    ]
    first = defaults[0]
    return ArchitectureError(
        f"how the input of {question.what} is normalised is not known: {', '.join(named)}, "
        "and their tensors are the same",
        f"give --arch {first.name.removesuffix(chr(39) + 's')} or its like, or --mean and --std: "
        f"--mean {format_values(first.mean)} --std {format_values(first.std)}",
    )


def _ask(
    question: Question, candidates: Sequence[Normalisation], verdict: fingerprint.Verdict | None
) -> ArchitectureError:
    if verdict is not None:
        listed = f"{verdict.evidence} do not decide between {verdict.describe()}"
        first = verdict.table[0][0]
    else:
        listed = f"no images were given; usual are {', '.join(n.name for n in candidates)}"
        first = candidates[min(1, len(candidates) - 1)]
    instead = "" if verdict else "--images like its training data, or "
    return ArchitectureError(
        f"how the input of {question.what} is normalised is not known: {listed}",
        f"give {instead}--mean and --std, for {first.name}: "
        f"--mean {format_values(first.mean)} --std {format_values(first.std)}",
    )
