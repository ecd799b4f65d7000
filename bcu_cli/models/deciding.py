"""Which preprocessing a network needs: options, claims, BatchNorm statistics, a library's default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from bcu_cli.errors import ArchitectureError, UsageError
from bcu_cli.models import fingerprint
from bcu_cli.models.identification import claim_fits
from bcu_cli.models.index import Candidate, entry_of
from bcu_cli.models.names import OWN_ARCHITECTURES
from bcu_cli.models.preprocessing import (
    GREY_NORMALISATIONS,
    NORMALISATIONS,
    Normalisation,
    Preprocessing,
    check_normalisation,
    check_size,
    format_values,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from bcu_cli.models.claims import Claim

#: With this many classes, a network of timm or torchvision is taken for one trained as theirs are.
_IMAGENET_CLASSES = 1000

T = TypeVar("T")
Values = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user gave; None where nothing.

    Args:
        input_size: Height and width.
        mean: One value, or one per channel.
        std: One value, or one per channel.
    """

    input_size: int | None = None
    mean: Values | None = None
    std: Values | None = None


@dataclass(frozen=True, kw_only=True)
class Question:
    """Everything that is known before the network is looked at.

    Args:
        what: How errors call the file.
        options: Of the user.
        claims: What the file says of itself.
        candidates: The architecture and its equals, best first; none for a network of unknown architecture.
        channels: Of the input.
    """

    what: str
    options: Options
    claims: Sequence[Claim]
    candidates: Sequence[Candidate]
    channels: int

    @property
    def name(self) -> str:
        """The architecture's full name, or nothing."""
        return self.candidates[0].name if self.candidates else ""

    @property
    def default(self) -> Preprocessing | None:
        """The library's own preprocessing for the architecture."""
        return next((c.preprocessing for c in self.candidates if c.preprocessing is not None), None)

    def claimed(self, get: Callable[[Claim], T | None]) -> tuple[T, str] | None:
        """The first claim about the right architecture that says something, and its source."""
        for claim in self.claims:
            value = get(claim)
            if value is not None and (not self.candidates or claim_fits(claim, self.candidates)):
                return value, claim.source
        return None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The preprocessing, and sentences on how it was found."""

    preprocessing: Preprocessing
    evidence: tuple[str, ...]


def default_size(name: str) -> tuple[int, int, int] | None:
    """The input size that an architecture is made for, where it is known."""
    if name in OWN_ARCHITECTURES:
        return OWN_ARCHITECTURES[name]
    entry = entry_of(name)
    return entry.preprocessing.input_size if entry is not None and entry.preprocessing is not None else None


def decide(
    question: Question, network: nn.Module, images: Callable[[Preprocessing], Tensor] | None
) -> Decision:
    """Settle input size, cropping and normalisation, each by the first evidence that has something to say.

    Args:
        question: What is known.
        network: With its weights, without normalisation.
        images: Gives pictures for :mod:`~bcu_cli.models.fingerprint`; None if there are none.

    Raises:
        ArchitectureError: Something cannot be told and must be given as an option.
        UsageError: An option makes no sense.
    """
    size, size_source = _size(question)
    crop = question.claimed(lambda claim: claim.crop_pct)
    interpolation = question.claimed(lambda claim: claim.interpolation)
    default = question.default
    provisional = Preprocessing(
        input_size=size,
        mean=(0.0,) * size[0],
        std=(1.0,) * size[0],
        crop_pct=crop[0] if crop else default.crop_pct if default else 1.0,
        interpolation=interpolation[0] if interpolation else default.interpolation if default else "bilinear",
    )
    normalisation, source = _normalisation(question, network, provisional, images)
    preprocessing = Preprocessing(
        input_size=size,
        mean=normalisation.mean,
        std=normalisation.std,
        crop_pct=provisional.crop_pct,
        interpolation=provisional.interpolation,
        source=source,
    )
    evidence = (
        f"input size {size[1]}x{size[2]}: {size_source}",
        f"mean {format_values(normalisation.mean)} and std {format_values(normalisation.std)}: {source}",
    )
    return Decision(preprocessing=preprocessing, evidence=evidence)


def _size(question: Question) -> tuple[tuple[int, int, int], str]:
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


def _normalisation(
    question: Question,
    network: nn.Module,
    provisional: Preprocessing,
    images: Callable[[Preprocessing], Tensor] | None,
) -> tuple[Normalisation, str]:
    mean = _given(question, "mean", question.options.mean, lambda claim: claim.mean)
    std = _given(question, "std", question.options.std, lambda claim: claim.std)
    if mean is not None and std is not None:
        sources = dict.fromkeys((mean[1], std[1]))
        return Normalisation(name="given", mean=mean[0], std=std[0]), " and ".join(sources)
    candidates = _candidates(question, mean and mean[0], std and std[0])
    half = f"{(mean or std or ('', ''))[1]} and " if mean or std else ""
    verdict = None
    if images is not None:
        verdict = fingerprint.compare(network, fingerprint.sample(images(provisional)), candidates)
    if verdict is not None and verdict.best is not None:
        return verdict.best, f"{half}BatchNorm statistics: {verdict.describe()}"
    default = question.default
    if default is not None and question.candidates[0].num_classes == _IMAGENET_CLASSES:
        chosen = Normalisation(
            name="default", mean=mean[0] if mean else default.mean, std=std[0] if std else default.std
        )
        return chosen, f"{half}default of {question.name}"
    raise _ask(question, candidates, verdict, images is not None)


def _given(
    question: Question, name: str, option: Values | None, get: Callable[[Claim], Values | None]
) -> tuple[Values, str] | None:
    """Mean or std as given by the user or claimed by the file, with its source."""
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
                f"--{name} has {len(values)} values for {question.channels} channels",
                f"give one value, or one per channel: --{name} {format_values((0.5,) * question.channels)}",
            )
        return values, "option"
    claimed = question.claimed(get)
    return claimed if claimed is not None and len(claimed[0]) == question.channels else None


def _candidates(question: Question, mean: Values | None, std: Values | None) -> list[Normalisation]:
    """The normalisations that are possible once mean or std is settled, each once."""
    known = list({1: GREY_NORMALISATIONS, 3: NORMALISATIONS}.get(question.channels, ()))
    default = question.default
    if default is not None and len(default.mean) == question.channels:
        known.append(Normalisation(name=f"{question.name}'s", mean=default.mean, std=default.std))
    if not known:
        ones = (1.0,) * question.channels
        known = [Normalisation(name="none", mean=(0.0,) * question.channels, std=ones)]
    distinct: dict[tuple[Values, Values], Normalisation] = {}
    for candidate in known:
        fixed = Normalisation(name=candidate.name, mean=mean or candidate.mean, std=std or candidate.std)
        distinct.setdefault((fixed.mean, fixed.std), fixed)
    return list(distinct.values())


def _ask(
    question: Question,
    candidates: Sequence[Normalisation],
    verdict: fingerprint.Verdict | None,
    had_images: bool,
) -> ArchitectureError:
    if verdict is not None:
        listed = f"BatchNorm statistics do not decide between {verdict.describe()}"
        first = verdict.table[0][0]
    else:
        reason = "it has no BatchNorm statistics to tell" if had_images else "no images were given to tell"
        listed = f"{reason}; usual are {', '.join(n.name for n in candidates)}"
        first = candidates[min(1, len(candidates) - 1)]
    return ArchitectureError(
        f"how the input of {question.what} is normalised is not known: {listed}",
        f"give --mean and --std, for {first.name}: "
        f"--mean {format_values(first.mean)} --std {format_values(first.std)}",
    )
