"""The images of a cleansing's page: found triggers on held-out images, and images with another answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bcu_cli.evaluation.suitability import confidence_and_answer
from bcu_cli.report.trigger_sheet import data_uri
from bcu_cli.training.inference import in_batches, predict

if TYPE_CHECKING:
    from torch import Tensor

    from bcu_cli.defenses.adversarial.residual_search import FoundTrigger
    from bcu_cli.defenses.base import Defense
    from bcu_cli.images.folder import ImageSet
    from bcu_cli.training.devices import Device

MOST_CHANGED = 24
"""Most images with another answer that are shown."""
EXAMPLES = 3
"""Images that each trigger is drawn on."""


def evidence(defense: Defense[Any], held_out: ImageSet | None, device: Device) -> dict[str, Any]:
    """The images of the page, as ``report.cleanse_page`` takes them; the same on every rank.

    Args:
        defense: The defense, after its last stage.
        held_out: The held-out images; without them nothing is drawn.
        device: The device to run both networks on.
    """
    if held_out is None:
        return {"triggers": [], "changed": []}
    confidence, answers = in_batches(
        lambda images: confidence_and_answer(defense.teacher(images)),
        held_out.images,
        device,
        network=defense.teacher,
    ).T
    answers = answers.long()
    drawn = [_drawn(defense, each, held_out.images, answers, device) for each in defense.found_triggers()]
    return {
        "triggers": [each for each in drawn if each["images"]],
        "changed": _changed(defense, held_out.images, (confidence, answers), device),
    }


def _drawn(
    defense: Defense[Any], found: FoundTrigger, images: Tensor, answers: Tensor, device: Device
) -> dict[str, Any]:
    """A trigger on the first images that the original predicts as another class than the target."""
    clean = images[(answers != found.success.target).nonzero()[:EXAMPLES, 0]]
    entry = {**found.as_json(), "images": []}
    if not len(clean):
        return entry
    with torch.no_grad():
        triggered = found.success.change(clean.to(device.torch)).cpu()
    predicted = [
        predict(network, shown, device).tolist()
        for network, shown in (
            (defense.teacher, clean),
            (defense.teacher, triggered),
            (defense.student, triggered),
        )
    ]
    entry["images"] = [
        {"clean": data_uri(one / 255.0), "triggered": data_uri(other / 255.0), "answers": list(three)}
        for one, other, three in zip(clean, triggered, zip(*predicted, strict=True), strict=True)
    ]
    return entry


def _changed(
    defense: Defense[Any], images: Tensor, original: tuple[Tensor, Tensor], device: Device
) -> list[dict[str, Any]]:
    """The images with another answer, those first of which the original is most confident."""
    confidence, answers = original
    now = predict(defense.student, images, device)
    changed = (now != answers).nonzero()[:, 0]
    order = changed[confidence[changed].argsort(descending=True, stable=True)][:MOST_CHANGED]
    return [
        {"image": data_uri(images[i] / 255.0), "answers": [int(answers[i]), int(now[i])]}
        for i in order.tolist()
    ]
