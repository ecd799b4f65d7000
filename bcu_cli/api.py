"""The public functions, as ``import bcu_cli as bcu`` gives them: thin over the workflows."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from bcu_cli import events
from bcu_cli.errors import UsageError
from bcu_cli.images.sources.given import GivenImages, given
from bcu_cli.workflows import loading
from bcu_cli.workflows.bars import Bars
from bcu_cli.workflows.model import Model, of_module

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bcu_cli.models import Loaded, Preprocessing
    from bcu_cli.workflows.attack import AttackResult
    from bcu_cli.workflows.cleanse import CleanseResult
    from bcu_cli.workflows.evaluate import EvaluateResult
    from bcu_cli.workflows.inspect import InspectResult
    from bcu_cli.workflows.scan import ScanResult


def load(
    model: str | Path | nn.Module,
    *,
    arch: str | None = None,
    input_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    images: Any = None,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[str] = (),
    on_progress: events.Listener | None = None,
) -> Model:
    """Load a model file safely, or take a network that is loaded already.

    Args:
        model: A file, a folder as hubs have them, ``hf-hub:OWNER/NAME``, or a ``torch.nn.Module`` that takes
            normalised images.
        arch: Architecture: a name of bcu, timm or torchvision, or ``FILE.py:FUNCTION``, which runs. None is
            found out.
        input_size: Height and width that the model takes, in pixels; None is found out.
        mean: Mean of the normalisation a channel, on a scale of 0 to 1; None is found out.
        std: Standard deviation a channel, on the same scale; None is found out.
        images: A folder, or images in memory, of which some may decide what the file does not say.
        preprocessing: Preprocessing of a ``torch.nn.Module``.
        classes: Class names of a ``torch.nn.Module``; may be empty.
        on_progress: Called with each event; by default bars are drawn where somebody sees them.

    Returns:
        The model, in evaluation mode on the CPU.

    Raises:
        BcuError: The file cannot be read, is not safe, or is no classifier that can be rebuilt.

    Example:
        >>> model = bcu.load("model.safetensors")
        >>> model.architecture, model.num_classes
        ('resnet8', 8)
        >>> model(torch.rand(2, *model.preprocessing.input_size)).shape
        torch.Size([2, 8])
    """
    with _listening(on_progress):
        if isinstance(model, nn.Module):
            if preprocessing is None:
                raise UsageError(
                    "a module does not say how its input is normalised",
                    "give it preprocessing=bcu.Preprocessing(input_size=(C, H, W), mean=…, std=…)",
                )
            return Model(of_module(model, preprocessing, classes))
        options = loading.ModelOptions(
            arch=arch,
            input_size=input_size,
            mean=None if mean is None else tuple(mean),
            std=None if std is None else tuple(std),
        )
        return Model(loading.load_model(Path(model), options, pictures=_unlabeled(images)))


def inspect(
    *paths: str | Path,
    arch: str | None = None,
    baseline: str | Path | None = None,
    on_progress: events.Listener | None = None,
) -> InspectResult:
    """Say what files are and whether they are safe to open; nothing in them is run.

    Args:
        paths: Files, folders of them at any depth, or ``hf-hub:OWNER/NAME``.
        arch: The architecture, as of :func:`load`.
        baseline: An earlier JSON or SARIF document of ``bcu inspect``: what it knows of a file with the same
            content is not among the findings again.
        on_progress: As of :func:`load`.

    Raises:
        BcuError: A path makes no sense. What is wrong with a file is part of the result.

    Example:
        >>> report = bcu.inspect("model.safetensors")
        >>> report.safe, report.architecture
        (True, 'resnet8')
    """
    from bcu_cli.workflows import inspect as workflow

    with _listening(on_progress):
        known = None if baseline is None else Path(baseline)
        return workflow.inspect(
            workflow.InspectRequest(paths=tuple(map(Path, paths)), arch=arch, baseline=known)
        )


def scan(
    model: str | Path | Model | nn.Module,
    *,
    images: Any = None,
    page: str | Path | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    on_progress: events.Listener | None = None,
) -> ScanResult:
    """Let detectors look for a backdoor in a network.

    Args:
        model: A model, or anything that :func:`load` takes.
        images: Unlabeled images like those that the network is for: a folder, a list of paths, a
            ``torch.utils.data.Dataset``, or uint8 ``[N, C, H, W]``. Without, fewer detectors look.
        page: An ``.html`` file to write, which shows the verdict, the scores and the found triggers.
        preprocessing: As of :func:`load`.
        seed: Seed of everything that is drawn.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        precision: ``auto``, ``bf16``, ``fp16`` or ``fp32``.
        on_progress: As of :func:`load`.

    Raises:
        BcuError: The model or the images cannot be used.

    Example:
        >>> seen = bcu.scan("model.safetensors")
        >>> seen.verdict in {"clean-looking", "suspicious", "inconclusive"}
        True
    """
    from bcu_cli.report import page_parts
    from bcu_cli.training import devices
    from bcu_cli.workflows.scan import ScanResult, scan_loaded, write_page

    with _listening(on_progress):
        pictures = _unlabeled(images)
        if page is not None:
            given_paths = [each for each in (model, pictures) if isinstance(each, str | Path)]
            page_parts.check(Path(page), inputs=map(Path, given_paths))
        loaded = _loaded(model, pictures, preprocessing)
        chosen = devices.choose(device, precision)
        document, looked = scan_loaded(loaded, pictures, chosen, seed=seed)
        if page is not None:
            document["page"] = write_page(document, loaded.classifier, looked, Path(page))
        loaded.classifier.cpu()
        found = {
            f"{each.scores.detector}-{name}": image
            for each in looked
            for name, image in each.scores.pictures.items()
        }
        return ScanResult(document=document, triggers=found)


def evaluate(
    models: str | Path | Model | nn.Module | Sequence[str | Path | Model | nn.Module],
    *,
    data: Any,
    trigger: str | Path | None = None,
    target_class: int | str | None = None,
    against: str | Path | Model | nn.Module | None = None,
    fail_if: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
    device: str = "auto",
    on_progress: events.Listener | None = None,
) -> EvaluateResult:
    """Measure models on labelled images: accuracy, and with a trigger attack success and robust accuracy.

    Args:
        models: One model or several, each anything that :func:`load` takes.
        data: A folder with one subfolder a class, one with ``train`` and ``test`` folders of such, a zip file
            of either, ``cifar10:PATH``, or a ``torch.utils.data.Dataset`` of pairs of an image and its class.
        trigger: Name of a trigger, a file that :func:`attack` wrote, or ``all``; None measures clean images.
        target_class: Index of the attack's target, or ``next``; None takes the file's, else the worst.
        against: A model whose answers those of the others are compared with.
        fail_if: Conditions like ``asr>0.05``, under which ``passed`` is False.
        preprocessing: As of :func:`load`, for all modules among the models.
        device: As of :func:`scan`.
        on_progress: As of :func:`load`.

    Raises:
        BcuError: A model, the images or the trigger cannot be used.

    Example:
        >>> result = bcu.evaluate("model.safetensors", data="labelled/", trigger="model.trigger.safetensors")
        >>> print(result.table().splitlines()[0])
        labelled/test, 40 images, trigger model.trigger.safetensors
    """
    from bcu_cli.evaluation.trigger_choice import Own, TriggerChoice, parse_target
    from bcu_cli.workflows import evaluate as workflow

    several: Sequence[Any] = models if isinstance(models, list | tuple) else [models]
    choice = TriggerChoice(
        name=None if trigger is None else str(trigger),
        target_class=parse_target(None if target_class is None else str(target_class)),
        target_said=target_class is not None,
        own=Own(picture=None, mask=None, mode="replace", alpha=None),
    )
    with _listening(on_progress):
        pictures = str(data) if isinstance(data, str | Path) else given(data, labelled=True)
        request = workflow.EvaluateRequest(
            models=tuple(_model(model, preprocessing) for model in several),
            data=pictures,
            triggers=choice,
            fail_if=tuple(fail_if),
            against=None if against is None else _model(against, preprocessing),
            device=device,
        )
        return workflow.evaluate(request)


def cleanse(
    model: str | Path | Model | nn.Module,
    *,
    images: Any = None,
    out: str | Path | None = None,
    method: str = "auto",
    preprocessing: Preprocessing | None = None,
    pseudo_labels: bool = False,
    max_images: int | None = None,
    page: str | Path | None = None,
    card: bool = False,
    force: bool = False,
    resume: bool = False,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    on_progress: events.Listener | None = None,
    **options: Any,
) -> CleanseResult:
    """Remove a backdoor, and judge the result.

    Args:
        model: A model, or anything that :func:`load` takes. It stays as it is.
        images: Unlabeled images: a folder, a list of paths, a ``torch.utils.data.Dataset``, or uint8
            ``[N, C, H, W]``. A method that needs labels takes class subfolders or a Dataset of pairs.
        out: The file to write; None keeps the result in memory. Nothing is written where the verdict is bad.
        method: Name of a method: ``auto``, ``bcu`` (the paper's recipe), ``ft``, ``nad``, …
        preprocessing: As of :func:`load`.
        pseudo_labels: Whether the model's own answers stand in for labels.
        max_images: Draw this many of the images; None takes all.
        page: An ``.html`` file to write whatever the verdict, which shows what worked before and after.
        card: Whether a model card, ``README.md``, is written beside ``out``.
        force: Whether the result is written whatever the verdict.
        resume: Whether to go on from where an interrupted run with ``out`` stopped.
        seed: Seed of everything that is drawn.
        device: As of :func:`scan`.
        precision: As of :func:`scan`.
        on_progress: As of :func:`load`.
        options: Options of the method, such as ``epochs=20`` or ``quick=True``.

    Raises:
        BcuError: Something that is named cannot be used, or the method has no such option.

    Example:
        >>> result = bcu.cleanse(
        ...     "model.safetensors", images="photos/", out="clean.safetensors", method="bcu", epochs=2
        ... )
        >>> result.out, 0 <= result.agreement <= 1
        (PosixPath('clean.safetensors'), True)
    """
    from bcu_cli.defenses.base import find
    from bcu_cli.workflows import cleanse as workflow

    kind = find(method)
    labelled = kind.needs_labels and not pseudo_labels
    with _listening(on_progress):
        pictures = _unlabeled(images, labelled=labelled)
        request = workflow.CleanseRequest(
            model=_copied(model, preprocessing),
            images=pictures,
            out=None if out is None else Path(out),
            method=method,
            options=_options(kind.Options, seed, options, f"method {method}"),
            pseudo_labels=pseudo_labels,
            max_images=max_images,
            page=None if page is None else Path(page),
            card=card,
            force=force,
            device=device,
            precision=precision,
            resume=resume,
        )
        return workflow.cleanse(request)


def attack(
    name: str,
    *,
    data: str | Path,
    out: str | Path,
    arch: str | None = None,
    settings: Mapping[str, float] | None = None,
    on_progress: events.Listener | None = None,
    **options: Any,
) -> AttackResult:
    """Train a backdoored network on labelled images, to test defenses on.

    Args:
        name: Name of an attack, or ``none`` for a clean network.
        data: Labelled images, as of :func:`evaluate`, but for a Dataset.
        out: The safetensors file to write; the trigger is written beside it.
        arch: Architecture: a name of bcu, timm or torchvision, or ``FILE.py:FUNCTION``. None is that of
            ``weights``, or ``resnet18_cifar``.
        settings: Settings of the trigger, such as ``{"cell": 2}``.
        on_progress: As of :func:`load`.
        options: Fields of :class:`bcu_cli.workflows.attack.AttackRequest`, such as ``epochs=10``,
            ``target_class=0``, or ``weights=Path("pretrained.safetensors")`` to start from.

    Raises:
        BcuError: Something that is named cannot be used, or there is no such option.

    Example:
        >>> result = bcu.attack("badnets", data="labelled/", arch="resnet8", out="bad.safetensors", epochs=1)
        >>> result.trigger, 0 <= result.attack_success_rate <= 1
        (PosixPath('bad.trigger.safetensors'), True)
    """
    from bcu_cli.workflows import attack as workflow

    fields = {
        "attack": name,
        "data": str(data),
        "out": Path(out),
        "arch": arch,
        "settings": tuple(f"{key}={value}" for key, value in (settings or {}).items()),
    }
    with _listening(on_progress):
        return workflow.attack(_options(workflow.AttackRequest, None, fields | options, "attack"))


def _options(kind: Any, seed: int | None, values: dict[str, Any], what: str) -> Any:
    """A dataclass of options made of keyword arguments.

    Raises:
        UsageError: It has no such option.
    """
    names = {each.name for each in dataclasses.fields(kind)}
    if strangers := sorted(set(values) - names):
        raise UsageError(f"{what} has no option {strangers[0]}", f"it takes {', '.join(sorted(names))}")
    return kind(**values) if seed is None else kind(seed=seed, **values)


def _copied(model: str | Path | Model | nn.Module, preprocessing: Preprocessing | None) -> Path | Loaded:
    """A file's path as it is; of anything else a copy, which a defense may work on."""
    if isinstance(model, str | Path):
        return Path(model)
    loaded = _loaded(model, None, preprocessing)
    return dataclasses.replace(loaded, classifier=deepcopy(loaded.classifier))


def _model(model: str | Path | Model | nn.Module, preprocessing: Preprocessing | None) -> Path | Loaded:
    """A file's path as it is, anything else loaded."""
    if isinstance(model, str | Path):
        return Path(model)
    return _loaded(model, None, preprocessing)


def _loaded(
    model: str | Path | Model | nn.Module,
    images: Path | GivenImages | None,
    preprocessing: Preprocessing | None,
) -> Loaded:
    if isinstance(model, Model):
        return model.loaded
    if isinstance(model, nn.Module):
        return load(model, preprocessing=preprocessing, on_progress=events.current()).loaded
    return loading.load_model(Path(model), loading.ModelOptions(), pictures=images)


def _unlabeled(images: Any, *, labelled: bool = False) -> Path | GivenImages | None:
    """Images to learn from: a folder or a tar archive as its path, anything else in memory."""
    if images is None:
        return None
    return Path(images) if isinstance(images, str | Path) else given(images, labelled=labelled)


@contextmanager
def _listening(on_progress: events.Listener | None) -> Iterator[None]:
    with events.listening(on_progress or Bars()):
        yield
