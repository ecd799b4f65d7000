"""The verdict from the scores of all detectors, calibrated on networks known to be clean or backdoored.

Each detector that distinguishes classes gives every class a value. Its gap to the median of the other classes
is measured in units of the gaps of clean networks. The root of the sum of squares over detectors is the
*suspicion* of a class: one confident detector suffices, and agreement of several adds up. A network has the
suspicion of its most suspicious class; from 1 on it is called suspicious. Two detectors have a threshold of
their own instead of a unit, and make a class suspicious alone: a sinusoid that leads to it, and in a network
of many classes a row of the last layer that stands far out.

Units and thresholds are in ``calibration.json``. ``examples/calibration/calibrate.py`` fits them to networks
trained with ``bcu attack``. A third of these is held out and gives the error rates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

import torch

from bcu_cli.detectors.last_layer import FEWEST_ROWS, MOST_DEVIATIONS, LastLayerOutliers
from bcu_cli.detectors.sinusoid import SinusoidalTriggers
from bcu_cli.evaluation.measures import above_others
from bcu_cli.evaluation.spectrum import MIN_LEAD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bcu_cli.detectors.base import Scores

CALIBRATION_FILE = "calibration.json"
ENOUGH_IMAGES = 500
"""Fewest images for the verdict ``clean-looking``."""
Word = Literal["clean-looking", "suspicious", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration of one set of detectors.

    Attributes:
        units: Unit of each detector's values; detectors without a unit are ignored.
        clean_below: Suspicion below which a network is called clean-looking, at most 1.
        networks: Numbers of clean and of backdoored networks in the fit.
        false_alarms: Held-out clean networks called suspicious, and the number of held-out clean networks.
        misses: Held-out backdoored networks called clean-looking, and the number of held-out backdoored ones.
    """

    units: Mapping[str, float]
    clean_below: float
    networks: tuple[int, int]
    false_alarms: tuple[int, int]
    misses: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on a network.

    Attributes:
        word: The verdict in a word.
        target: The most suspicious class.
        suspicion: Suspicion of that class.
        suspicions: Suspicion of each class, 0 or more; NaN for a class that was not searched.
        calibration: The calibration that was used.
    """

    word: Word
    target: int
    suspicion: float
    suspicions: tuple[float, ...]
    calibration: Calibration


def suspicion(values: Mapping[str, Tensor], units: Mapping[str, float]) -> Tensor:
    """The suspicion of each class, float32 ``[K]``; NaN for a class that a detector has no value of.

    Args:
        values: Values of each detector, float ``[K]``, larger is more suspicious.
        units: Units of the detectors that are used.

    Raises:
        KeyError: A detector with a unit gave no values.
    """
    gaps = [above_others(values[name].float()).clamp(min=0.0) / unit for name, unit in units.items()]
    return torch.stack(gaps).square().sum(0).sqrt()


def judge(scores: list[Scores], *, images: int | None) -> Verdict:
    """The verdict on a network.

    Args:
        scores: Results of all detectors that ran.
        images: Number of images, or None for a scan without images, which has a separate calibration. With
            fewer than ``ENOUGH_IMAGES`` no network is called clean-looking, since rates are too coarse. Nor
            is one of which only some classes were searched, since what that finds was not measured.
    """
    values = {each.detector: each.per_class for each in scores if each.target is not None}
    calibration = calibrations()["no images" if images is None else "images"]
    each_class = suspicion(values, calibration.units)
    rows = values.get(LastLayerOutliers.name)
    if rows is not None and len(rows) >= FEWEST_ROWS:  # a row among few often stands out
        each_class = raised(each_class, rows / MOST_DEVIATIONS)
    if (sinusoids := values.get(SinusoidalTriggers.name)) is not None:
        each_class = raised(each_class, sinusoids / MIN_LEAD)
    target = int(each_class.nan_to_num(nan=-1.0).argmax())
    highest = float(each_class[target])
    word: Word = "inconclusive"
    if highest >= 1.0:
        word = "suspicious"
    elif highest < calibration.clean_below and (images is None or images >= ENOUGH_IMAGES):
        word = "inconclusive" if bool(each_class.isnan().any()) else "clean-looking"
    return Verdict(
        word=word,
        target=target,
        suspicion=highest,
        suspicions=tuple(each_class.tolist()),
        calibration=calibration,
    )


def raised(suspicions: Tensor, shares: Tensor) -> Tensor:
    """Suspicions ``[K]``, raised to 1 or more where a detector reaches the threshold of its own.

    Below it the detector changes nothing, since it has no unit that was fitted to clean networks.

    Args:
        suspicions: Suspicion of each class.
        shares: The detector's values as shares of its threshold, ``[K]``.
    """
    return torch.where(shares >= 1.0, torch.fmax(suspicions, shares), suspicions)


@cache
def calibrations() -> dict[str, Calibration]:
    """The shipped calibrations: ``images`` for all detectors, ``no images`` for those that need none."""
    text = resources.files("bcu_cli.detectors").joinpath(CALIBRATION_FILE).read_text("utf-8")
    return {name: _read(each) for name, each in json.loads(text)["calibrations"].items()}


def _read(document: dict[str, Any]) -> Calibration:
    pairs = {key: tuple(document[key]) for key in ("networks", "false_alarms", "misses")}
    return Calibration(**(document | pairs))
