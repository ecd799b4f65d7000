"""The report of a cleansing that is made up, and the images of its page."""

from __future__ import annotations

from typing import Any

import torch

from bcu_cli.evaluation.measures import Proportion
from bcu_cli.report.trigger_sheet import data_uri

CLASSES = ["ahead-only", "danger", "no-entry", "a sign with a very long name indeed"]


def share(hits: int, of: int = 100) -> dict[str, Any]:
    return Proportion(hits=hits, of=of).as_json()


def success(trigger: str, target: int, before: int, after: int, **more: Any) -> dict[str, Any]:
    measured = {"before": share(before), "after": share(after)}
    return {"trigger": trigger, "target_class": target, **measured, **more}


def report(word: str | None = "cleansed", **changed: Any) -> dict[str, Any]:
    """A report of method auto, or of a method that does not judge itself."""
    found = [success("patch", target, 20 + target, 30, stands_out=False) for target in range(3)]
    found.append(success("warp", 3, 99, 2, stands_out=True))
    details = {
        "level": 1,
        "mix": 1.0,
        "levels": 2,
        "classes_searched": 4,
        "trials": [[success("blend", 1, 97, 5)]],
        "sinusoids": {"tried": 48, "working": [success("sinusoid", 2, 91, 7)]},
        "found_triggers": found,
        "residual_searches": [
            {"search": "gradient", "found": [success("patch", 0, 99, 3, suspected=True, stands_out=False)]}
        ],
    }
    whole = {
        "method": "auto",
        "paper": "own",
        "verdict": word and {"word": word, "why": "it was told so"},
        "classes": CLASSES,
        "details": details if word else {},
        "agreement": {"before_training": share(41), "after": share(97)},
        "model": {
            "path": "m.pt",
            "architecture": {"name": "resnet8"},
            "preprocessing": {"input_size": [3, 32, 32], "mean": [0.5], "std": [0.25]},
        },
        "images": {"used": 900, "held_out": 100, "labels": None},
        "options": {"seed": 0, "epochs": 20, "flip": False, "learning_rate": 0.05, "crop_padding": None},
        "files_read": [
            {"path": "m.pt", "sha256": "a" * 64, "bytes": 10},
            {"path": "photos", "files": 1000, "names_and_sizes_sha256": "b" * 64},
        ],
        "output": {
            "path": "clean.pt",
            "sha256": "c" * 64,
            "beside": [{"path": "x.json", "sha256": "d" * 64}],
        },
        "device": {"name": "cpu", "precision": "fp32"},
        "versions": {"bcu": "1"},
    }
    return whole | changed


def evidence() -> dict[str, Any]:
    """One drawn trigger, and three images with another answer."""
    grey = data_uri(torch.full((3, 8, 8), 0.5))
    image = {"clean": grey, "triggered": grey, "answers": [0, 3, 0]}
    drawn = success("warp", 3, 99, 2, found_on="original", stands_out=True, images=[image] * 3)
    return {"triggers": [drawn], "changed": [{"image": grey, "answers": [1, 2]}] * 3}
