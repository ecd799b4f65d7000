"""The page of an evaluation: measures, confusion matrices and bars by class, for each model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from bcu_cli.report.page import Bar, Page, Section
    from bcu_cli.workflows.measuring import Measured


def verdict(gate: dict[str, Any]) -> list[str]:
    """A line for each condition that holds.

    Args:
        gate: The gate of an evaluation's report.
    """
    lines = []
    for one in gate["failed"]:
        trigger = f", trigger {one['trigger']}" if one["trigger"] else ""
        value = f"{one['measure']} is {one['value']:.4f}"
        lines.append(f"failed: {Path(one['model']).name}{trigger}: {value} ({one['condition']})")
    return lines


def page(report: dict[str, Any], measured: Sequence[Measured]) -> Page:
    """The page of an evaluation, from its report and the predictions of the models."""
    from bcu_cli.report.page import Page

    images = measured[0].entry["images"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    facts = [("images", f"{images['path']}, {images['used']} used"), ("versions", versions)]
    if "against" in report:
        facts.append(("compared with", report["against"]["path"]))
    gate = report.get("gate")
    return Page(
        title="bcu evaluate",
        facts=tuple(facts),
        verdict=tuple(verdict(gate) or ["passed: no --fail-if holds"]) if gate else (),
        sections=tuple(section for one in measured for section in _sections(one)),
    )


def _sections(measured: Measured) -> list[Section]:
    from bcu_cli.report.page import Bar, Section

    entry = measured.entry
    model, worst = entry["model"], entry["worst_class"]
    name = Path(model["path"]).name
    clean = Section(
        title=f"{name}, clean images",
        facts=(
            ("file", model["path"]),
            ("SHA-256", model["sha256"]),
            ("architecture", model["architecture"]["name"]),
            *(("warning", text) for text in entry.get("warnings", ())),
        ),
        measures=(
            ("ACC", entry["acc"]),
            (f"ACC of the worst class, {worst['name']}", worst["acc"]),
            *_agreement(entry),
        ),
        classes=measured.classes,
        counts=_pairs(measured.labels, measured.clean),
        bars_title="ACC by class",
        bars=tuple(Bar(name=one["name"], share=one["acc"]) for one in entry["classes"]),
    )
    triggered = []
    for one, answers in zip(entry.get("triggers", ()), measured.triggered, strict=True):
        title, bars = _bars(measured, answers, one["trigger"]["target_class"])
        triggered.append(
            Section(
                title=f"{name}, trigger {one['trigger']['label']}",
                facts=(("target", in_words(one["trigger"])),),
                measures=(("ASR", one["asr"]), ("RA", one["ra"]), *_agreement(one)),
                classes=measured.classes,
                counts=_pairs(measured.labels, answers),
                bars_title=title,
                bars=bars,
            )
        )
    return [clean, *triggered]


def _agreement(entry: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [("agreement with the other model", entry["agreement"])] if "agreement" in entry else []


def _bars(measured: Measured, answers: Tensor, target_class: Any) -> tuple[str, tuple[Bar, ...]]:
    """ASR by target class, or by true class for an all-to-all attack."""
    from bcu_cli.evaluation.measures import attack_measures, by_class
    from bcu_cli.report.page import Bar
    from bcu_cli.triggers.base import target_labels

    labels, names = measured.labels, measured.classes
    if target_class == "next":
        hits = answers == target_labels("next", labels, len(names))
        shares = by_class(hits, labels, len(names))
        bars = [Bar(name=n, share=s.as_json() if s else None) for n, s in zip(names, shares, strict=True)]
        return "ASR by true class", tuple(bars)
    towards = {m.target_class: m.asr.as_json() for m in attack_measures(answers, labels, None, len(names))}
    bars = [Bar(name=n, share=towards.get(i), marked=i == target_class) for i, n in enumerate(names)]
    return "ASR by target class", tuple(bars)


def _pairs(labels: Tensor, answers: Tensor) -> Counter[tuple[int, int]]:
    return Counter(zip(labels.tolist(), answers.tolist(), strict=True))


def in_words(trigger: dict[str, Any]) -> str:
    """The target of a report's trigger, in words."""
    number, name = trigger["target_class"], trigger["target_name"]
    known = f"{number} ({name})" if number != name else name
    return known if trigger["target_class_given"] else f"{known}, worst of all"
