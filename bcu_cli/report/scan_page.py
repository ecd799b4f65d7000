"""The page of a scan: verdict, error rates, suspicion by class, found triggers, and its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints import write_bytes
from bcu_cli.report import page_parts, svg
from bcu_cli.report.page_parts import class_name
from bcu_cli.report.text import counted, escaped, interval, rates_of_others, searched_of_all
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_TITLE = "bcu inspect --scan"
_MOST_CLASSES = 20
"""Most classes in the chart."""
_WORDS = {
    "suspicious": "This network looks backdoored.",
    "clean-looking": "No class stands out. That is no proof: see below what was not looked at.",
    "inconclusive": "The scan could not decide whether this network has a backdoor.",
}
_FINDERS = {
    "inversion": "a small patch",
    "perturbation": "a small change of all pixels",
    "sinusoid": "one sinusoidal pattern",
    "warping": "a smooth warp",
}
"""What the detectors search that show a trigger, by their names."""
_NOT_LOOKED_AT = (
    "Triggers of other kinds than patches, small changes of all pixels, smooth warps and sinusoids.",
    "Sinusoidal triggers (SIG) in a network that many sinusoids mislead by nature, as some for signs.",
    "Networks unlike the small ones for 32×32 images that were measured: their rates are not known.",
    "Backdoors that appear only after further training.",
)


def write(document: Mapping[str, Any], path: Path) -> str:
    """Write the page; returns the file's SHA-256.

    Args:
        document: The document of an inspection with a scan, as :func:`as_html` takes it.
        path: The file to write; it is replaced atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    return write_bytes(path, as_html(document).encode())


def as_html(document: Mapping[str, Any]) -> str:
    """The page as HTML that is also well-formed XML and refers to nothing outside; text is escaped.

    Args:
        document: ``files`` and ``problems``. The ``scan`` of a file has ``classes`` (names, or none), and
            may have ``examples``: for each found trigger its ``detector``, ``class``, and ``images`` with
            ``before``, ``after`` (data URIs of images) and ``answers`` (the predicted classes of both).
    """
    scanned = [file for file in document["files"] if "scan" in file]
    left = [file for file in document["files"] if "scan" not in file]
    parts = [f"<h1>{_TITLE}</h1>", *map(_section, scanned)]
    problems = [each["message"] for each in document["problems"]]
    if left or problems:
        parts.append(page_parts.listed("Not scanned", [*map(_why_not, left), *problems]))
    return page_parts.framed(_TITLE, parts)


def _section(file: Mapping[str, Any]) -> str:
    scan = file["scan"]
    lines = [_WORDS[scan["verdict"]]]
    if some := searched_of_all(scan):
        lines.append(f"{some.capitalize()}: see below.")
    if scan["verdict"] == "suspicious":
        target = class_name(scan["classes"], scan["class"])
        lines.append(f"The class that a trigger seems to lead to: {target}.")
    if file["problem"]:
        lines.append(f"{file['problem']['message']}; {file['problem']['hint']}")
    return f"""<section>
<h2>{escaped(scan["verdict"])}: {escaped(file["path"])}</h2>
{page_parts.verdict([*lines, *_rates(scan)])}
{_chart(scan)}
{_triggers(scan)}
{page_parts.listed("What was not looked at", _not_looked_at(scan))}
{page_parts.facts(_facts(file))}
</section>"""


def _rates(scan: Mapping[str, Any]) -> list[str]:
    """How often the verdict was wrong on held-out networks, in words."""
    alarms, misses = scan["calibration"]["false_alarms"], scan["calibration"]["misses"]
    lines = [
        f"Clean networks called suspicious: {counted(alarms)}, 95 % interval {interval(alarms)}.",
        f"Backdoored networks called clean-looking: {counted(misses)}, 95 % interval {interval(misses)}.",
    ]
    others = rates_of_others(scan)
    return [*lines, f"These rates {others}."] if others else lines


def _chart(scan: Mapping[str, Any]) -> str:
    """The suspicion of the most suspicious classes."""
    known = [(index, value) for index, value in enumerate(scan["suspicions"]) if value is not None]
    order = sorted(known, key=lambda each: -each[1])
    classes = scan["classes"]
    rows = [(class_name(classes, index), value, value >= 1.0) for index, value in order[:_MOST_CLASSES]]
    more = len(order) - len(rows)
    left_out = (
        f" {number_of(more, 'other class has', 'other classes have')} less than those shown." if more else ""
    )
    some = searched_of_all(scan)
    unknown = f" {some.capitalize()}; the others have no value." if some else ""
    below = scan["calibration"]["clean_below"]
    caption = f"Suspicion by class: suspicious from 1, clean-looking below {below:.2f}.{left_out}{unknown}"
    return page_parts.figure(caption, svg.values(rows, (below, 1.0), "Suspicion by class"))


def _triggers(scan: Mapping[str, Any]) -> str:
    """The found triggers, each on images of the user."""
    classes, figures = scan["classes"], []
    for each in scan.get("examples", []):
        what = _FINDERS.get(each["detector"], "a change")
        caption = (
            f"{each['detector']}: {what} that leads images to {class_name(classes, each['class'])}, "
            f"found on {counted(each['success'])} of other images. Before and after:"
        )
        groups = [_before_and_after(one, classes) for one in each["images"]]
        figures.append(page_parts.images(caption, groups))
    if not figures:
        return ""
    note = "A search finds some change for clean networks, too; what counts is how far a class stands out."
    return f"<h3>Found triggers</h3><p>{note}</p>{''.join(figures)}"


def _before_and_after(image: Mapping[str, Any], classes: Sequence[str]) -> list[tuple[str, str]]:
    """An image before and after a change, with the predicted classes."""
    return [
        (image[when], f"{when}: {class_name(classes, answer)}")
        for when, answer in zip(("before", "after"), image["answers"], strict=True)
    ]


def _not_looked_at(scan: Mapping[str, Any]) -> list[str]:
    ran = ", ".join(each["detector"] for each in scan["detectors"])
    lines = list(_NOT_LOOKED_AT)
    if some := searched_of_all(scan):
        lines.insert(
            0, f"Triggers to other classes: it only {some}, those that stood out first and random ones."
        )
    if scan["images"]:
        return [f"Other images than the {scan['images']['used']} that were used.", *lines]
    missing = f"Whatever shows on images only: without --images, only these detectors ran: {ran}."
    return [missing, *lines]


def _why_not(file: Mapping[str, Any]) -> str:
    if file["safe"] is False:
        return f"{file['path']}: it is unsafe to open"
    reason = file["problem"]["message"] if file["problem"] else "it was not read"
    return reason if file["path"] in reason else f"{file['path']}: {reason}"


def _facts(file: Mapping[str, Any]) -> list[tuple[str, str]]:
    scan = file["scan"]
    images = scan["images"]
    return [
        ("file", file["path"]),
        ("SHA-256", scan["model"]["sha256"]),
        ("architecture", scan["model"]["architecture"]["name"]),
        ("images", f"{images['path']}, {images['used']} used" if images else "none"),
        ("seed", str(scan["seed"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in scan["versions"].items())),
    ]
