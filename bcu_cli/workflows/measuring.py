"""Measurement of one model for ``bcu evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bcu_cli import events
from bcu_cli.errors import UsageError
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from torch import Tensor

    from bcu_cli.evaluation.features import Features
    from bcu_cli.evaluation.measures import AttackMeasures
    from bcu_cli.evaluation.trigger_choice import Chosen
    from bcu_cli.images.folder import ImageSet
    from bcu_cli.models import Loaded
    from bcu_cli.training.devices import Device
    from bcu_cli.triggers.base import Target


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model's entry in the report, and the predictions behind it.

    Args:
        entry: The entry as plain values.
        classes: Class names in label order.
        labels: True classes, int64 ``[N]``.
        clean: Predictions on clean images, int64 ``[N]``.
        triggered: Predictions on triggered images for each trigger of the entry, int64 ``[N]`` each.
        features: Features of a sample, clean and with the first trigger; None unless requested.
    """

    entry: dict[str, Any]
    classes: tuple[str, ...]
    labels: Tensor
    clean: Tensor
    triggered: tuple[Tensor, ...]
    features: Features | None


def measure(
    loaded: Loaded,
    data: ImageSet,
    chosen: list[Chosen],
    reference: tuple[Loaded, Tensor] | None,
    device: Device,
    *,
    with_features: bool,
) -> Measured:
    """Measure a model on clean images and on images with each trigger.

    Args:
        loaded: The model.
        data: Labelled images.
        chosen: Triggers; an empty list measures clean images only.
        reference: A model to compare predictions with, and the images as it takes them, uint8
            ``[N, C, H, W]``; may be None.
        device: The device to run on.
        with_features: Whether to compute the penultimate features of a sample.

    Raises:
        ImagesError: All images are of the target class.
        ArchitectureError: The network has no penultimate features.
    """
    from bcu_cli.evaluation.class_order import doubt_of_order
    from bcu_cli.evaluation.features import of_sample
    from bcu_cli.evaluation.measures import labels_of, matching
    from bcu_cli.report import document
    from bcu_cli.training.inference import predict

    labels, model = labels_of(data), loaded.classifier
    features = None
    if with_features:
        trigger, what = chosen[0].trigger if chosen else None, str(loaded.checkpoint.path)
        features = of_sample(model, data, trigger, device, what=what)
    clean = predict(model, data.images, device)
    entry: dict[str, Any] = {"model": document.model(loaded), "images": document.images(data)}
    entry |= _clean(clean, labels, data.classes)
    if doubt := doubt_of_order(clean, labels, data.classes):
        events.warn(f"{loaded.checkpoint.path.name}: {doubt}")
        entry["warnings"] = [doubt]
    if reference:
        other, theirs = reference
        entry["agreement"] = matching(clean, predict(other.classifier, theirs, device)).as_json()
    triggered, entries = [], []
    for one in chosen:
        put_on = one.trigger.apply_to_bytes
        answers = predict(model, data.images, device, transform=put_on)
        measured = _triggered(answers, labels, data.classes, one)
        if reference:
            measured["agreement"] = matching(
                answers, predict(other.classifier, theirs, device, transform=put_on)
            ).as_json()
        triggered.append(answers)
        entries.append(measured)
    if entries:
        strongest = max(entries, key=lambda e: e["asr"]["value"])
        entry |= {key: strongest[key] for key in ("trigger", "asr", "ra")} | {"triggers": entries}
    return Measured(
        entry=entry,
        classes=data.classes,
        labels=labels,
        clean=clean,
        triggered=tuple(triggered),
        features=features,
    )


def refuse_incomparable(loaded: Loaded, reference: Loaded) -> None:
    """Refuse to compare two models with different classes or image sizes.

    Raises:
        UsageError: The models differ in their classes or in the size of their images.
    """
    one, other = loaded.classifier, reference.classifier
    if one.num_classes != other.num_classes:
        classes = number_of(other.num_classes, "class", "classes")
        difference = f"has {classes}, {loaded.checkpoint.path.name} has {one.num_classes}"
    elif loaded.classes and reference.classes and loaded.classes != reference.classes:
        difference = f"has other classes than {loaded.checkpoint.path.name}, or the same in another order"
    elif one.preprocessing.input_size != other.preprocessing.input_size:
        difference = f"takes images of another size than {loaded.checkpoint.path.name}"
    else:
        return
    raise UsageError(
        f"--against {reference.checkpoint.path} {difference}", "compare with the model that it was made from"
    )


def _clean(answers: Tensor, labels: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    from bcu_cli.evaluation.measures import by_class, matching

    shares = by_class(answers == labels, labels, len(names))
    classes: list[dict[str, Any]] = [
        {"class": i, "name": name, "acc": share.as_json() if share else None}
        for i, (name, share) in enumerate(zip(names, shares, strict=True))
    ]
    worst = min((one for one in classes if one["acc"]), key=lambda one: one["acc"]["value"])
    return {"acc": matching(answers, labels).as_json(), "worst_class": worst, "classes": classes}


def _triggered(answers: Tensor, labels: Tensor, names: tuple[str, ...], chosen: Chosen) -> dict[str, Any]:
    from bcu_cli.evaluation.measures import attack_measures, worst

    every = attack_measures(answers, labels, chosen.target_class, len(names))
    found = worst(every)
    trigger = {
        "name": chosen.trigger.name,
        "label": chosen.label,
        "file": str(chosen.file) if chosen.file else None,
        "settings": chosen.trigger.settings(),
        **_target(found, names),
        "target_class_given": chosen.target_class is not None,
    }
    entry: dict[str, Any] = {"trigger": trigger, "asr": found.asr.as_json(), "ra": found.ra.as_json()}
    if chosen.target_class is None:
        entry["targets"] = [
            {**_target(one, names), "asr": one.asr.as_json(), "ra": one.ra.as_json()} for one in every
        ]
    return entry


def _target(measured: AttackMeasures, names: tuple[str, ...]) -> dict[str, Any]:
    target: Target = measured.target_class
    name = "the class after the true one" if target == "next" else names[target]
    return {"target_class": target, "target_name": name}
