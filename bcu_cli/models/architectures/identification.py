"""Finds the architecture of a checkpoint by the user's option, the file's claims, and its tensors.

Torch is imported only if the index of architectures does not suffice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NoReturn

from bcu_cli.checkpoints import Checkpoint, Format
from bcu_cli.errors import ArchitectureError
from bcu_cli.models.architecture import Architecture
from bcu_cli.models.architectures.index import (
    Candidate,
    Shapes,
    entry_of,
    known_tensor_names,
    load_index,
    match,
    match_entry,
    nearest,
)
from bcu_cli.models.architectures.pairing import AVERAGED
from bcu_cli.models.configs import timm_config
from bcu_cli.models.configs.claims import BCU_SOURCE, Claim, read_claims
from bcu_cli.models.configs.transformers_config import is_config
from bcu_cli.models.registry import is_user_file, is_usual_pooling, possible_names, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bcu_cli.checkpoints import Outline

#: Parts of tensor names that only language models have.
_LANGUAGE_PARTS = frozenset(
    {"embed_tokens", "lm_head", "wte", "word_embeddings", "tok_embeddings", "embed_out", "wpe"}
)
#: Parts of tensor names by which networks for other tasks are told, where no known architecture fits.
_OTHER_TASKS = {
    "an object detector": frozenset(
        {"rpn", "rpn_head", "roi_head", "roi_heads", "bbox_embed", "bbox_head", "bbox_pred", "bbox_predictor"}
        | {"box_predictor", "regression_head", "anchors", "anchor_grid", "detect", "dfl"}
    ),
    "a segmentation network": frozenset({"decode_head", "sem_seg_head", "mask_head", "mask_predictor"}),
    "a diffusion model": frozenset({"down_blocks", "up_blocks", "time_embedding"}),
}
_HINT = "give --arch NAME (timm, torchvision or one of bcu's own) or --arch FILE.py:FUNCTION"


@dataclass(frozen=True, kw_only=True)
class Found:
    """The architectures that fit the evidence.

    Args:
        groups: Candidates in groups that compute the same function, the best of each group first. There is
            one group if the function is certain.
        source: The decisive evidence, in words.
        claims: The claims of the file, most trusted first.
        evidence: Further observations, in words.
        named: Whether the user or the file names the architecture, which excludes its equals.
        unconfirmed: Whether nothing but the shapes of the tensors speaks for the pairing of their names.
    """

    groups: tuple[tuple[Candidate, ...], ...]
    source: str
    named: bool = True
    claims: tuple[Claim, ...] = ()
    evidence: tuple[str, ...] = field(default=())
    unconfirmed: bool = False

    def architecture(self, group: int = 0) -> Architecture:
        """The architecture of one group of candidates."""
        first, *others = self.groups[group]
        return Architecture(
            name=first.name,
            source=self.source + _renaming_note(first),
            num_classes=first.num_classes,
            alternatives=tuple(other.name for other in others),
        )


def _renaming_note(candidate: Candidate) -> str:
    """How the tensors were paired by their shapes, in words; empty where names decided."""
    if not candidate.pairing:
        return ""
    renamed = sum(own != given for given, own in candidate.renamed.items())
    return f", paired {candidate.pairing}; {renamed} of {len(candidate.renamed)} have other names"


def label(candidate: Candidate) -> str:
    """The name of an architecture, with the way in which the tensors were paired."""
    return f"{candidate.name} (tensors paired {candidate.pairing})" if candidate.pairing else candidate.name


def identify(checkpoint: Checkpoint | Outline, arch: str | None = None) -> Architecture:
    """Find the architecture without building it.

    Args:
        checkpoint: The checkpoint, or its outline.
        arch: The user's ``--arch``; None if it was not given.

    Returns:
        The architecture. It has rivals if the tensors fit networks with different functions;
        :func:`bcu_cli.models.load` decides between them.

    Raises:
        ArchitectureError: The architecture is unknown or does not fit, or this is no image classifier.
    """
    what = checkpoint.path.name
    beside = checkpoint.extra_entries if isinstance(checkpoint, Checkpoint) else {}
    claims = read_claims(checkpoint.path, checkpoint.metadata, beside)
    embeds = checkpoint.format not in (Format.SAFETENSORS, Format.PICKLE)
    found = find(checkpoint.shapes, claims, arch=arch, what=what, by_shapes=not embeds)
    rivals = dict.fromkeys(group[0].name for group in found.groups[1:])
    return replace(found.architecture(), rivals=tuple(rivals))


def class_count(name: str, shapes: Shapes) -> int:
    """Number of classes of these tensors as weights of the architecture ``name``.

    Raises:
        ArchitectureError: The tensors do not fit the architecture.
    """
    full = resolve(name)
    candidate = _fit(full, shapes, None)
    if candidate is None:
        from bcu_cli.models.architectures.fitting import mismatch

        raise mismatch(full, shapes, None, "the file")
    return candidate.num_classes


def find(
    shapes: Shapes,
    claims: Sequence[Claim],
    *,
    arch: str | None = None,
    input_size: int | None = None,
    what: str = "the file",
    by_shapes: bool = True,
) -> Found:
    """Find the architectures that fit the tensors: by the option, else the claims, else the index.

    Where no names fit, the shapes alone are looked up.

    Args:
        shapes: Shape of each tensor by its name.
        claims: Claims of the file, from :func:`~bcu_cli.models.configs.claims.read_claims`.
        arch: The user's ``--arch``.
        input_size: The user's ``--input-size``, for networks whose tensors depend on it.
        what: Name of the file in errors.
        by_shapes: Whether tensors may have other names than the architecture's.

    Raises:
        ArchitectureError: No architecture fits, or the file holds no image classifier.
    """
    _refuse_foreign(shapes, what)
    own_code = arch is not None and is_user_file(arch)  # its names are those of the file
    if by_shapes and not own_code and (names := _without_wrapper(shapes)):
        bare = {names[name]: shape for name, shape in shapes.items() if name in names}
        found = find(bare, claims, arch=arch, input_size=input_size, what=what, by_shapes=False)
        return _with_names(found, names)
    size = None if input_size is None else (3, input_size, input_size)
    if arch is not None:
        groups = _from_option(arch, shapes, size, what, by_shapes=by_shapes)
        found = Found(
            groups=groups,
            source="--arch",
            claims=tuple(claims),
            evidence=tuple(_overridden_claims(claims, groups[0][0].name)),
        )
    else:
        found = (
            _from_claims(shapes, claims)
            or _from_tensors(shapes, claims)
            or (_from_shapes(shapes, claims) if by_shapes else None)
            or _raise_nothing_fits(shapes, claims, what)
        )
    if not own_code and any(group[0].num_classes == 1 for group in found.groups):
        raise ArchitectureError(
            f"{what} has one output: it is a regression, or does not say that it tells two classes apart",
            "bcu needs two or more outputs, or a network of your own that ends in a sigmoid: "
            "--arch FILE.py:FUNCTION",
        )
    return found


def _refuse_foreign(shapes: Shapes, what: str) -> None:
    if not any(len(shape) >= 2 for shape in shapes.values()):
        raise ArchitectureError(
            f"{what} holds no layers: none of its {len(shapes)} tensors has two or more dimensions",
            "give the file with the model's weights",
        )
    if any(_LANGUAGE_PARTS & set(name.split(".")) for name in shapes):
        raise ArchitectureError(
            f"{what} holds a language model, not an image classifier", "bcu works on image classifiers only"
        )


def _without_wrapper(shapes: Shapes) -> dict[str, str]:
    """The tensors' names without a prefix that they share, if the index knows them then; else empty."""
    parts = [name.split(".") for name in shapes if name.rpartition(".")[2] != AVERAGED]
    names = {".".join(each): ".".join(each) for each in parts}
    if len(names) == len(shapes) and known_tensor_names(shapes):
        return {}
    for depth in range(min(map(len, parts), default=1)):
        if len({tuple(each[:depth]) for each in parts}) > 1:
            return {}
        names = {".".join(each): ".".join(each[depth:]) for each in parts}
        if known_tensor_names(names.values()):
            return names
    return {}


def _with_names(found: Found, names: Mapping[str, str]) -> Found:
    """The result for tensors whose names in the file have a prefix that the candidates' names lack."""
    first = next(iter(names))
    prefix = first.removesuffix(names[first])
    groups = tuple(tuple(replace(one, renamed=names) for one in group) for group in found.groups)
    note = f"the names stand behind {prefix!r}" if prefix else f"{AVERAGED} is no part of the network"
    return replace(found, groups=groups, evidence=(*found.evidence, note))


def _from_option(
    arch: str, shapes: Shapes, input_size: tuple[int, int, int] | None, what: str, *, by_shapes: bool
) -> tuple[tuple[Candidate, ...], ...]:
    """The candidates for the user's ``--arch``; a name without library means the first library that fits."""
    first = resolve(arch)
    names = (first,) if is_user_file(arch) else possible_names(arch)
    for name in names:
        candidate = _fit(name, shapes, input_size)
        if candidate is not None:
            return (_with_equals(candidate, shapes),)
    if by_shapes and not is_user_file(arch):
        from bcu_cli.models.architectures.renamed import find_renamed

        for name in names:
            if groups := find_renamed(shapes, name.__eq__):
                return groups
    from bcu_cli.models.architectures.fitting import mismatch

    raise mismatch(first, shapes, input_size, what)


def _overridden_claims(claims: Sequence[Claim], name: str) -> list[str]:
    """A sentence for each claim of the same architecture with other options than the user's."""
    plain = name.rpartition(":")[2] if timm_config.base_of(name) == name else name
    return [
        f"{claim.source} names {claim.arch}, and --arch goes before it"
        for claim in claims
        if claim.arch is not None and timm_config.base_of(claim.arch) != claim.arch and claim.arch != plain
    ]


def _fit(name: str, shapes: Shapes, input_size: tuple[int, int, int] | None) -> Candidate | None:
    """Match an architecture with tensors, by the index or by building it; None if they do not fit."""
    entry = entry_of(name)
    if entry is not None:
        candidate = match_entry(entry, shapes)
        if candidate is not None or input_size is None:
            return candidate
    from bcu_cli.models.architectures.fitting import fit_template

    candidate = fit_template(name, shapes, input_size)
    base = entry_of(timm_config.base_of(name))
    return candidate and replace(candidate, preprocessing=base.preprocessing if base else None)


def _with_equals(candidate: Candidate, shapes: Shapes) -> tuple[Candidate, ...]:
    """The candidate, followed by the others that compute the same function."""
    return (
        candidate,
        *(c for c in match(shapes) if candidate.structure == c.structure != "" and c.name != candidate.name),
    )


def _from_claims(shapes: Shapes, claims: Sequence[Claim]) -> Found | None:
    """The first claimed architecture that the tensors fit; other claims are only reported."""
    evidence = complaints(claims)
    for claim in claims:
        if claim.arch is None:
            continue
        if is_user_file(claim.arch):
            evidence.append(f"{claim.source} names {claim.arch}, which only --arch would run")
            continue
        names = [
            _without_default_options(name) for name in possible_names(_with_claimed_options(claim, claims))
        ]
        if not names:
            evidence.append(f"{claim.source} names {claim.arch[:60]!r}, which is no known architecture")
        for name in names:
            candidate = _fit(name, shapes, claim.input_size)
            if candidate is not None:
                return Found(
                    groups=(_with_equals(candidate, shapes),),
                    source=f"{claim.source}, and the tensors fit",
                    claims=tuple(claims),
                    evidence=tuple(evidence),
                )
        if names:
            evidence.append(f"{claim.source} names {claim.arch[:60]}, but the tensors do not fit it")
    return None


def _with_claimed_options(claim: Claim, claims: Sequence[Claim]) -> str:
    """A claimed architecture, with the options that another claim gives for it.

    A training script stores the name beside the weights, and timm the options in ``config.json``. A claim
    that bcu wrote is complete.
    """
    arch = claim.arch or ""
    if claim.source == BCU_SOURCE or timm_config.base_of(arch) != arch:
        return arch
    full = (other.arch for other in claims if other.arch and timm_config.base_of(other.arch) != other.arch)
    return next((other for other in full if timm_config.plain_of(other) == timm_config.plain_of(arch)), arch)


def _without_default_options(name: str) -> str:
    """An architecture's name without options that equal its defaults, which some writers list."""
    try:
        base, options = timm_config.split(name)
    except (ValueError, RecursionError):
        return name
    entry = entry_of(base)
    if entry is None:
        return name
    size = options.get(timm_config.IMG_SIZE)
    if size is not None and entry.preprocessing is not None:
        usual = list(entry.preprocessing.input_size[1:])
        if size in (usual, usual[0]) and usual[0] == usual[1]:
            del options[timm_config.IMG_SIZE]
    if timm_config.GLOBAL_POOL in options and is_usual_pooling(base, options[timm_config.GLOBAL_POOL]):
        del options[timm_config.GLOBAL_POOL]
    return timm_config.join(base, options)


def complaints(claims: Sequence[Claim]) -> list[str]:
    """The unusable fields of the claims, in words."""
    return [f"{claim.source}: {complaint}" for claim in claims for complaint in claim.complaints]


def _from_tensors(shapes: Shapes, claims: Sequence[Claim]) -> Found | None:
    groups: dict[str, list[Candidate]] = {}
    for candidate in match(shapes):
        groups.setdefault(candidate.structure or candidate.name, []).append(candidate)
    if not groups:
        return None
    return Found(
        groups=tuple(tuple(group) for group in groups.values()),
        source="names and shapes of the tensors",
        named=False,
        claims=tuple(claims),
        evidence=tuple(complaints(claims) + _rejected(claims, shapes)),
    )


def _from_shapes(shapes: Shapes, claims: Sequence[Claim]) -> Found | None:
    """The architectures that fit the shapes of the tensors; of these the claimed one, if there is one."""
    from bcu_cli.models.architectures.renamed import find_renamed

    groups = find_renamed(shapes)
    if not groups:
        return None
    for claim in claims:
        names = () if claim.arch is None or is_user_file(claim.arch) else possible_names(claim.arch)
        for name in names:
            claimed = tuple(
                (one, *(other for other in group if other is not one))
                for group in groups
                for one in group
                if one.name == name
            )
            if claimed:
                source = f"{claim.source}, and shapes of the tensors"
                return Found(
                    groups=claimed,
                    source=source,
                    claims=tuple(claims),
                    evidence=tuple(complaints(claims)),
                    unconfirmed=claim.source != BCU_SOURCE,
                )
    return Found(
        groups=groups,
        source="shapes of the tensors",
        named=False,
        claims=tuple(claims),
        evidence=tuple(complaints(claims) + _rejected(claims, shapes)),
        unconfirmed=True,
    )


def _rejected(claims: Sequence[Claim], shapes: Shapes) -> list[str]:
    """A sentence for each claimed architecture; for one of transformers, it names tensors that do not fit."""
    described = [claim for claim in claims if claim.arch is not None and is_config(claim.arch)]
    sentences = rejected_claims([claim for claim in claims if claim not in described])
    for claim in described:
        from bcu_cli.models.architectures.fitting import mismatch

        sentences.append(mismatch(str(claim.arch), shapes, claim.input_size, "the file").message)
    return sentences


def rejected_claims(claims: Sequence[Claim]) -> list[str]:
    """A sentence for each claimed architecture, none of which the tensors fit."""
    return [
        f"{claim.source} names {claim.arch[:60]}, which is unknown or does not fit the tensors"
        if not is_user_file(claim.arch)
        else f"{claim.source} names {claim.arch}, which only --arch would run"
        for claim in claims
        if claim.arch is not None
    ]


def _other_task(shapes: Shapes) -> tuple[str, str] | None:
    """The kind of a network for another task, in words, with a tensor that tells it; None where none does."""
    for kind, parts in _OTHER_TASKS.items():
        for name in shapes:
            if parts & set(name.split(".")):
                return kind, name
    return None


def _raise_nothing_fits(shapes: Shapes, claims: Sequence[Claim], what: str) -> NoReturn:
    if task := _other_task(shapes):
        raise ArchitectureError(
            f"{what} holds {task[0]}, by its tensor {task[1]}, not an image classifier",
            "bcu works on image classifiers only; if it is one, name its network: --arch FILE.py:FUNCTION",
        )
    evidence = complaints(claims) + _rejected(claims, shapes)
    names, same_names = nearest(shapes)
    text = f"the architecture of {what} is none of the {len(load_index().entries)} known ones"
    if names and same_names:
        text += f"; the same tensor names in other shapes: {', '.join(names)}"
    elif names:
        text += f"; similar tensor names: {', '.join(names)}"
    raise ArchitectureError("; ".join([text, *evidence]), _HINT)


def ambiguous(groups: Sequence[Sequence[Candidate]], what: str) -> ArchitectureError:
    """The error for tensors that fit architectures with different functions."""
    names = list(dict.fromkeys(group[0].name for group in groups))
    labels = [label(group[0]) for group in groups] if len(names) < len(groups) else names
    listed = ", ".join(labels[:-1]) + f" and {labels[-1]}"
    hint = f"pass --arch, for example --arch {names[0]}"
    if len(names) == 1:
        hint = "give --images like its training images, or its own network: --arch FILE.py:FUNCTION"
    return ArchitectureError(f"{what} matches {listed}, which differ in what tensor shapes can't show", hint)


def unconfirmed(name: str, what: str, why: str) -> ArchitectureError:
    """The error for a file whose tensors fit an architecture by shape alone, which nothing confirms."""
    return ArchitectureError(
        f"the shapes of the tensors in {what} are those of {name}, but their names are others, and {why}",
        f"give --arch {name} if it is that network, or --arch FILE.py:FUNCTION",
    )


def claim_fits(claim: Claim, candidates: Sequence[Candidate]) -> bool:
    """Whether a claim of preprocessing is about one of these architectures.

    What bcu wrote into a file is about its weights. So it holds where a Python file of the user's builds the
    network, too, whatever built it before.
    """
    if claim.arch is None:
        return True
    if claim.source == BCU_SOURCE and any(is_user_file(candidate.name) for candidate in candidates):
        return True
    names = {timm_config.base_of(candidate.name) for candidate in candidates}
    base = timm_config.base_of(claim.arch)
    return base in names or any(name in names for name in possible_names(base))
