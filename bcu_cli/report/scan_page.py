"""The page of a scan: verdict, error rates, suspicion by class, found triggers, and its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints import check_writable, write_bytes
from bcu_cli.errors import UsageError
from bcu_cli.report import page, svg
from bcu_cli.report.text import counted, escaped, interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
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
    "warping": "a smooth warp",
}
"""What the detectors search that show a trigger, by their names."""
_NOT_LOOKED_AT = (
    "Triggers of other kinds than patches, small changes of all pixels and smooth warps.",
    "Sinusoidal patterns (SIG), which looked clean to all detectors when the rates were measured.",
    "Networks unlike the small ones for 32×32 images that were measured: their rates are not known.",
    "Backdoors that appear only after further training.",
)


def check(path: Path, *, inputs: Iterable[Path]) -> None:
    """Check before long work that the page can be written.

    Raises:
        UsageError: The suffix is not ``.html``.
        OutputError: The path is an input, or cannot be written.
    """
    if path.suffix != ".html":
        raise UsageError(f"--page {path} is no .html file", "name a file with this ending")
    check_writable(path, inputs=inputs)


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
        document: ``files`` and ``problems``. The ``scan`` of a file may have ``examples``: for each found
            trigger its ``detector``, ``class``, and ``images`` with ``before``, ``after`` (data URIs of
            images) and ``answers`` (the predicted classes of both).
    """
    scanned = [file for file in document["files"] if "scan" in file]
    left = [file for file in document["files"] if "scan" not in file]
    parts = [f"<h1>{_TITLE}</h1>", *map(_section, scanned)]
    problems = [each["message"] for each in document["problems"]]
    if left or problems:
        parts.append(_list("Not scanned", [*map(_why_not, left), *problems]))
    return page.framed(_TITLE, parts)


def _section(file: Mapping[str, Any]) -> str:
    scan = file["scan"]
    lines = [_WORDS[scan["verdict"]]]
    if scan["verdict"] == "suspicious":
        lines.append(f"The class that a trigger seems to lead to is class {scan['class']}.")
    if file["problem"]:
        lines.append(f"{file['problem']['message']}; {file['problem']['hint']}")
    shown = "".join(f"<li>{escaped(line)}</li>" for line in [*lines, *_rates(scan["calibration"])])
    return f"""<section>
<h2>{escaped(scan["verdict"])}: {escaped(file["path"])}</h2>
<ul class="verdict">{shown}</ul>
{_chart(scan)}
{_triggers(scan)}
{_list("What was not looked at", _not_looked_at(scan))}
{page.facts(_facts(file))}
</section>"""


def _rates(calibration: Mapping[str, Any]) -> list[str]:
    """How often the verdict was wrong on held-out networks, in words."""
    alarms, misses = calibration["false_alarms"], calibration["misses"]
    return [
        f"Clean networks called suspicious: {counted(alarms)}, 95 % interval {interval(alarms)}.",
        f"Backdoored networks called clean-looking: {counted(misses)}, 95 % interval {interval(misses)}.",
    ]


def _chart(scan: Mapping[str, Any]) -> str:
    """The suspicion of the most suspicious classes."""
    order = sorted(enumerate(scan["suspicions"]), key=lambda each: -each[1])
    rows = [(f"class {index}", value, value >= 1.0) for index, value in order[:_MOST_CLASSES]]
    more = len(order) - len(rows)
    left_out = f" {more} other classes have less than those shown." if more else ""
    below = scan["calibration"]["clean_below"]
    caption = f"Suspicion by class: suspicious from 1, clean-looking below {below:.2f}.{left_out}"
    drawn = svg.values(rows, (below, 1.0), "Suspicion by class")
    return f'<figure><figcaption>{escaped(caption)}</figcaption><div class="wide">{drawn}</div></figure>'


def _triggers(scan: Mapping[str, Any]) -> str:
    """The found triggers, each on images of the user."""
    figures = []
    for each in scan.get("examples", []):
        what = _FINDERS.get(each["detector"], "a change")
        caption = (
            f"{each['detector']}: {what} that leads images to class {each['class']}, "
            f"found on {counted(each['success'])} of other images. Before and after:"
        )
        pairs = "".join(f'<div class="pair">{_shown(one)}</div>' for one in each["images"])
        caption = f"<figcaption>{escaped(caption)}</figcaption>"
        figures.append(f'<figure>{caption}<div class="pairs">{pairs}</div></figure>')
    if not figures:
        return ""
    note = "A search finds some change for clean networks, too; what counts is how far a class stands out."
    return f"<h3>Found triggers</h3><p>{note}</p>{''.join(figures)}"


def _shown(image: Mapping[str, Any]) -> str:
    """An image before and after a change, with the predicted classes."""
    return "".join(
        f'<div><img src="{escaped(image[when])}" alt="{when}"/><br/>{when}: class {answer}</div>'
        for when, answer in zip(("before", "after"), image["answers"], strict=True)
    )


def _not_looked_at(scan: Mapping[str, Any]) -> list[str]:
    ran = ", ".join(each["detector"] for each in scan["detectors"])
    if scan["images"]:
        return [f"Other images than the {scan['images']['used']} that were used.", *_NOT_LOOKED_AT]
    missing = f"Whatever shows on images only: without --images, only these detectors ran: {ran}."
    return [missing, *_NOT_LOOKED_AT]


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


def _list(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escaped(line)}</li>" for line in lines)
    return f"<h3>{escaped(title)}</h3><ul>{items}</ul>"
