"""What ``bcu evaluate`` shows: a table on the screen, lines of a verdict, the sections of a page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli.cli import output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from bcu_cli.cli.measuring import Measured
    from bcu_cli.report.page import Bar, Page, Section


def verdict(gate: dict[str, Any]) -> list[str]:
    """A line for each condition that holds."""
    lines = []
    for one in gate["failed"]:
        trigger = f", trigger {one['trigger']}" if one["trigger"] else ""
        value = f"{one['measure']} is {one['value']:.4f}"
        lines.append(f"failed: {Path(one['model']).name}{trigger}: {value} ({one['condition']})")
    return lines


def show(models: list[dict[str, Any]]) -> None:
    """A table with a row for each model, or for each model and trigger; a trigger of all stands above it."""
    compared, attacked = "agreement" in models[0], "triggers" in models[0]
    labels = {entry["trigger"]["label"] for model in models for entry in model.get("triggers", ())}
    header = ["model", "ACC (95 % interval)", *([] if attacked else ["worst class"])]
    header += ["agreement"] if compared else []
    if attacked:
        header += [*(["trigger"] if len(labels) > 1 else []), "ASR (95 % interval)", "RA", "target"]
        header += ["agreement, triggered"] if compared else []
    lines = []
    for model in models:
        clean = [Path(model["model"]["path"]).name, _with_interval(model["acc"])]
        clean += [*([] if attacked else [_worst_class(model)]), *_agreement_cell(model)]
        attacks = (
            [_attacked(entry, named=len(labels) > 1) for entry in model["triggers"]] if attacked else [[]]
        )
        lines += [([""] * len(clean) if i else clean) + cells for i, cells in enumerate(attacks)]
    images = models[0]["images"]
    trigger = f", trigger {labels.pop()}" if len(labels) == 1 else ""
    output.table(f"{images['path']}, {images['used']} images{trigger}", header, lines)


def _worst_class(model: dict[str, Any]) -> str:
    worst = model["worst_class"]
    return f"{worst['name']}: {output.percent(worst['acc']['value'])}"


def _attacked(entry: dict[str, Any], *, named: bool) -> list[str]:
    return [
        *([entry["trigger"]["label"]] if named else []),
        _with_interval(entry["asr"]),
        output.percent(entry["ra"]["value"]),
        _in_words(entry["trigger"]),
        *_agreement_cell(entry),
    ]


def _agreement_cell(entry: dict[str, Any]) -> list[str]:
    return [output.percent(entry["agreement"]["value"])] if "agreement" in entry else []


def page(report: dict[str, Any], measured: Sequence[Measured]) -> Page:
    """The page of an evaluation, from its report and what that was counted from, model by model."""
    from bcu_cli.report.page import Page

    images = measured[0].entry["images"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    facts = [("pictures", f"{images['path']}, {images['used']} used"), ("versions", versions)]
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
                facts=(("target", _in_words(one["trigger"])),),
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
    """ASR towards every class; of an all-to-all attack, by true class."""
    from bcu_cli.evaluation.measures import attack_measures, by_class
    from bcu_cli.report.page import Bar
    from bcu_cli.triggers.base import answers_wanted

    labels, names = measured.labels, measured.classes
    if target_class == "next":
        hits = answers == answers_wanted("next", labels, len(names))
        shares = by_class(hits, labels, len(names))
        bars = [Bar(name=n, share=s.as_json() if s else None) for n, s in zip(names, shares, strict=True)]
        return "ASR by true class", tuple(bars)
    towards = {m.target_class: m.asr.as_json() for m in attack_measures(answers, labels, None, len(names))}
    bars = [Bar(name=n, share=towards.get(i), marked=i == target_class) for i, n in enumerate(names)]
    return "ASR by target class", tuple(bars)


def _pairs(labels: Tensor, answers: Tensor) -> Counter[tuple[int, int]]:
    return Counter(zip(labels.tolist(), answers.tolist(), strict=True))


def _in_words(trigger: dict[str, Any]) -> str:
    """The target of a report's trigger, in words."""
    number, name = trigger["target_class"], trigger["target_name"]
    known = f"{number} ({name})" if number != name else name
    return known if trigger["target_class_given"] else f"{known}, worst of all"


def _with_interval(share: dict[str, Any]) -> str:
    low, high = share["interval95"]
    return f"{output.percent(share['value'])} ({100 * low:.2f} to {100 * high:.2f})"
