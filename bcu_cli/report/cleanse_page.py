"""The page of a cleansing: verdict, evidence before and after, found triggers, changed answers, files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints import write_bytes
from bcu_cli.report import page_parts, svg
from bcu_cli.report.card import LIMITS
from bcu_cli.report.page_parts import class_name
from bcu_cli.report.text import architecture_name, counted, escaped, interval
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

_TITLE = "bcu cleanse"
MOST_ROWS = 12
"""Most triggers in one chart."""
_WORDS = {
    "cleansed": "No trigger that was found and counts works on the result any more.",
    "not cleansed": "A trigger still works on the result: do not use it.",
    "could not tell": "Whether a backdoor is left could not be decided.",
    None: "This method does not judge its result.",
}
_ACCURACY = "The accuracy on labelled images was not measured."
_MEANS_NOT = {
    "cleansed": (f"It is no proof: {LIMITS}.", _ACCURACY),
    "not cleansed": (
        "It does not say who put a backdoor there, if anybody: some triggers work on clean networks, too.",
        _ACCURACY,
    ),
    "could not tell": ("It says neither that a backdoor is left nor that none is.", _ACCURACY),
    None: ("No trigger was searched, so nothing here says whether a backdoor is left.", _ACCURACY),
}
_BARS = "Orange: before the cleansing. Blue: after it. Lines: 95 % intervals."


def write(report: Mapping[str, Any], evidence: Mapping[str, Any], path: Path) -> str:
    """Write the page; returns the file's SHA-256.

    Args:
        report: The report of the command.
        evidence: The images of the page, as :func:`as_html` takes them.
        path: The file to write; it is replaced atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    return write_bytes(path, as_html(report, evidence).encode())


def as_html(report: Mapping[str, Any], evidence: Mapping[str, Any]) -> str:
    """The page as HTML that is also well-formed XML and refers to nothing outside; text is escaped.

    Args:
        report: The report of the command, with ``files_read``.
        evidence: ``triggers``: for each drawn trigger its ``found_on`` (which network), ``trigger`` (kind),
            ``target_class``, ``before`` and ``after`` (measures), and ``images`` with ``clean``,
            ``triggered`` (data URIs) and ``answers`` (of the original without and with the trigger, and of
            the result with it). ``changed``: images with another answer, each with ``image`` (a data URI)
            and ``answers`` (of the original and of the result).
    """
    details, classes = report["details"], report["classes"]
    parts = [
        f"<h1>{_TITLE}</h1>",
        _verdict(report),
        *(_charts(details, classes) if "trials" in details else []),
        _drawn(evidence["triggers"], classes),
        _agreement(report, evidence["changed"]),
        _files(report),
        "<h2>Options in force</h2>",
        page_parts.facts(_options(report)),
    ]
    return page_parts.framed(_TITLE, parts)


def _verdict(report: Mapping[str, Any]) -> str:
    judged, output = report["verdict"], report["output"]
    word = judged["word"] if judged else None
    lines = [_WORDS[word]]
    if judged:
        lines.append(f"Reason: {judged['why']}.")
    lines.append(f"Written: {output['path']}." if output else "No file was written.")
    heading = f"{word or 'not judged'}: {report['model']['path']}"
    listed = page_parts.listed("What this does not mean", _MEANS_NOT[word])
    return f"<h2>{escaped(heading)}</h2>{page_parts.verdict(lines, good=word == 'cleansed')}{listed}"


def _charts(details: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """Success before and after of all that method ``auto`` tried."""
    sinusoids = details["sinusoids"]
    found = sorted(details["found_triggers"], key=_worst_first)
    classes_searched = number_of(details["classes_searched"], "class", "classes")
    searched = (
        f"Triggers that were searched on the original, for {classes_searched}. "
        "On clean networks some work, too; one that stands out works far more often than those of its kind "
        "for the other classes."
    )
    patterns = (
        f"Sinusoidal patterns that work on the original: {len(sinusoids['working'])} of the "
        f"{sinusoids['tried']} that were tried. Such patterns mislead many clean networks, too."
    )
    parts = [
        "<h2>Before and after</h2>",
        f"<p>{_BARS} {_strength(details)}</p>",
        _chart(searched, found, classes),
        _chart(patterns, sorted(sinusoids["working"], key=_worst_first), classes, always=True),
    ]
    for level, trial in enumerate(details["trials"]):
        mixed = "" if level else " Shown is the mildest mix that removed them, or the mildest of all."
        planted = (
            "Canaries: backdoors that were planted in a copy of the network, cleansed at level "
            f"{level}. They are easier to remove than a backdoor that was there from the start.{mixed}"
        )
        parts.append(_chart(planted, trial, classes))
    for search in details["residual_searches"]:
        again = (
            f"Triggers that were searched on the result itself ({search['search']}), and how often they work "
            "on the original and on the result. What counts is whether one stands out from the others."
        )
        parts.append(_chart(again, sorted(search["found"], key=_worst_first), classes))
    return parts


def _strength(details: Mapping[str, Any]) -> str:
    """The level taken, and the mix with the original's weights where there is one."""
    level = f"Level {details['level']} of {details['levels']} was taken."
    if details["mix"] == 1.0:
        return level
    return f"{level} The weights are mixed with the original's: {details['mix']:.0%} are cleansed ones."


def _chart(
    caption: str, triggers: Sequence[Mapping[str, Any]], classes: Sequence[str], *, always: bool = False
) -> str:
    """A chart of the first triggers; only its caption where there are none and it is needed anyway."""
    if not triggers:
        return f"<p>{escaped(caption)}</p>" if always else ""
    rows = [(_name(each, classes), each["before"], each["after"]) for each in triggers[:MOST_ROWS]]
    rest = triggers[MOST_ROWS:]
    if rest:
        most = max(rest, key=lambda each: float(each["after"]["value"]))
        caption += f" Not drawn: {len(rest)} more, at most {counted(most['after'])} after the cleansing."
    return page_parts.figure(caption, svg.before_and_after(rows, "Success before and after"))


def _worst_first(trigger: Mapping[str, Any]) -> tuple[bool, float, float]:
    """Sort key: triggers that stand out first, then by success after and before."""
    return (
        not trigger.get("stands_out", False),
        -float(trigger["after"]["value"]),
        -float(trigger["before"]["value"]),
    )


def _name(trigger: Mapping[str, Any], classes: Sequence[str]) -> str:
    stands_out = " (stands out)" if trigger.get("stands_out") else ""
    return f"{trigger['trigger']} to {class_name(classes, trigger['target_class'])}{stands_out}"


def _drawn(triggers: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> str:
    """Triggers on held-out images of the user."""
    if not triggers:
        return ""
    figures = []
    for each in triggers:
        caption = (
            f"{_name(each, classes)}, found on the {each['found_on']}: works on {counted(each['before'])} of "
            f"the images before and {counted(each['after'])} after the cleansing."
        )
        figures.append(page_parts.images(caption, [_example(one, classes) for one in each["images"]]))
    return f"<h2>Triggers on your images</h2>{''.join(figures)}"


def _example(image: Mapping[str, Any], classes: Sequence[str]) -> list[tuple[str, str]]:
    clean, triggered, cleansed = (class_name(classes, answer) for answer in image["answers"])
    return [
        (image["clean"], f"original: {clean}"),
        (image["triggered"], f"original: {triggered}; result: {cleansed}"),
    ]


def _agreement(report: Mapping[str, Any], changed: Sequence[Mapping[str, Any]]) -> str:
    agreement, classes = report["agreement"], report["classes"]
    if not agreement:
        return "<h2>Agreement</h2><p>No images were held out, so it was not measured.</p>"
    after = agreement["after"]
    lines = [f"Same answer as the original: {counted(after)} of the held-out images, 95 % {interval(after)}."]
    if agreement["before_training"]:
        lines.append(f"Before the training: {counted(agreement['before_training'])}.")
    shown = "".join(f"<p>{escaped(line)}</p>" for line in lines)
    if changed:
        count = after["of"] - after["hits"]
        which = "All" if len(changed) == count else f"The {len(changed)} of {count}"
        caption = f"{which} held-out images with another answer, those first of which the original is surest."
        groups = [[(one["image"], _change(one["answers"], classes))] for one in changed]
        shown += page_parts.images(caption, groups)
    return f"<h2>Agreement</h2>{shown}"


def _change(answers: Iterable[int], classes: Sequence[str]) -> str:
    before, after = (class_name(classes, answer) for answer in answers)
    return f"original: {before}; result: {after}"


def _files(report: Mapping[str, Any]) -> str:
    """All files that were read and written, with their SHA-256."""
    output = report["output"]
    written = [output, *output["beside"]] if output else []
    rows = [(f"read: {each['path']}", _digest(each)) for each in report["files_read"]]
    rows += [(f"written: {each['path']}", _digest(each)) for each in written]
    return f"<h2>Files and their SHA-256</h2>{page_parts.facts(rows)}"


def _digest(file: Mapping[str, Any]) -> str:
    if "files" in file:
        return f"{number_of(file['files'], 'file')}, names and sizes: {file['names_and_sizes_sha256']}"
    return file["sha256"] or "not made"


def _options(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, images = report["model"], report["images"]
    preprocessing = model["preprocessing"]
    rows = [("method", f"{report['method']}: {report['paper']}")]
    options, optimizer = dict(report["options"]), (report["details"] or {}).get("optimizer")
    if optimizer == "adamw":
        options.pop("momentum", None)  # which it has none of
    rows += [(name.replace("_", " "), _plain(value)) for name, value in options.items()]
    rows += [("optimizer", optimizer)] if optimizer else []
    rows.append(("architecture", architecture_name(model["architecture"]["name"])))
    rows += [(name.replace("_", " "), _plain(value)) for name, value in preprocessing.items()]
    if images:
        labels = f", labels from {images['labels']}" if images["labels"] else ""
        rows.append(("images", f"{images['used']} used, {images['held_out']} held out{labels}"))
    device = report["device"]
    rows.append(("device", f"{device['name']}, {device['precision']}"))
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items())))
    return rows


def _plain(value: object) -> str:
    """A value of an option, in words."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool) or value is None:
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
