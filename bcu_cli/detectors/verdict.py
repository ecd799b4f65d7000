"""From the detectors' scores to a verdict, by what they say of networks whose truth is known.

Every detector that tells classes apart gives each class a value; how far it lies above the median of the
others' is measured in units of what clean networks reach with this detector. The root of the sum of the
squares is the class's *suspicion*: one detector that is sure is enough, and several that agree count more.
The network's is that of its most suspicious class; from 1 on it is called suspicious.

Units and thresholds are in ``calibration.json``: ``examples/calibration/calibrate.py`` fits them to
networks trained with ``bcu attack``. A third of these is left out of the fit and gives the rates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

import torch

from bcu_cli.evaluation.measures import above_others

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bcu_cli.detectors.base import Scores

CALIBRATION_FILE = "calibration.json"
ENOUGH_IMAGES = 500
Word = Literal["clean-looking", "suspicious", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What is known of one set of detectors.

    Attributes:
        units: Of each detector's values; detectors without one do not count.
        clean_below: The suspicion below which a network is called clean-looking, at most 1.
        networks: How many clean and how many backdoored ones units and thresholds are fitted to.
        false_alarms: Clean networks called suspicious, and how many there were, among those left out.
        misses: Backdoored networks called clean-looking, and how many there were, among those left out.
    """

    units: Mapping[str, float]
    clean_below: float
    networks: tuple[int, int]
    false_alarms: tuple[int, int]
    misses: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What all detectors together say of a network.

    Attributes:
        word: The verdict.
        target: The most suspicious class.
        suspicion: Of that class.
        calibration: By which it is judged.
    """

    word: Word
    target: int
    suspicion: float
    calibration: Calibration


def suspicion(values: Mapping[str, Tensor], units: Mapping[str, float]) -> Tensor:
    """The suspicion of each class, float32 ``[K]``.

    Args:
        values: Of each detector, float ``[K]``, larger is more suspicious.
        units: Of the detectors that count.

    Raises:
        KeyError: A detector that counts gave no values.
    """
    gaps = [above_others(values[name].float()).clamp(min=0.0) / unit for name, unit in units.items()]
    return torch.stack(gaps).square().sum(0).sqrt()


def judge(scores: list[Scores], *, images: int | None) -> Verdict:
    """The verdict on a network.

    Args:
        scores: Of all detectors that could look at it; with images and without there is a calibration each.
        images: How many the detectors had; with fewer than ``ENOUGH_IMAGES`` nothing is called clean-looking,
            since their rates are too coarse to reach what the thresholds were made of.
    """
    values = {each.detector: each.per_class for each in scores if each.target is not None}
    calibration = calibrations()["no images" if images is None else "images"]
    each_class = suspicion(values, calibration.units)
    target = int(each_class.argmax())
    highest = float(each_class[target])
    word: Word = "inconclusive"
    if highest >= 1.0:
        word = "suspicious"
    elif highest < calibration.clean_below and (images is None or images >= ENOUGH_IMAGES):
        word = "clean-looking"
    return Verdict(word=word, target=target, suspicion=highest, calibration=calibration)


@cache
def calibrations() -> dict[str, Calibration]:
    """The shipped calibrations: ``images`` of all detectors, ``no images`` of those that need none."""
    text = resources.files("bcu_cli.detectors").joinpath(CALIBRATION_FILE).read_text("utf-8")
    return {name: _read(each) for name, each in json.loads(text)["calibrations"].items()}


def _read(document: dict[str, Any]) -> Calibration:
    pairs = {key: tuple(document[key]) for key in ("networks", "false_alarms", "misses")}
    return Calibration(**(document | pairs))
