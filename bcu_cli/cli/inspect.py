"""``bcu inspect``: identify model files and check whether they are safe to open, without running them.

With ``--scan`` detectors also scan the networks for backdoors.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bcu_cli import triggers
from bcu_cli.checkpoints.rules import RESAVE
from bcu_cli.cli import output, scan_output
from bcu_cli.cli.exit_codes import BAD, DONE, FAILED
from bcu_cli.cli.options import Arch, DeviceName, InputSize, Json, Mean, Precision, Seed, Std, panel
from bcu_cli.errors import UsageError
from bcu_cli.words import number_of
from bcu_cli.workflows.texts import model_options

_MOST_SHOWN = 20
_output = panel("Output")
_scan = panel("Scan for backdoors (--scan)")
_UNKNOWN = "unknown-architecture"
_AUTO = "auto"
_FAIL_ON = ("unsafe", "suspicious", "inconclusive", _UNKNOWN)


class _Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    SARIF = "sarif"


Paths = Annotated[
    list[Path],
    typer.Argument(
        help="Model files (safetensors, pickled .pt/.pth, TorchScript, ONNX), folders of them at any depth, "
        "or hf-hub:OWNER/NAME\\[@REVISION]."
    ),
]
FailOn = Annotated[
    str,
    _output(
        "Verdicts with exit code 1: unsafe, suspicious, inconclusive, or several with a comma. An unsafe or "
        "undecided file that is not listed gives 2. With unknown-architecture such a network gives 2, too."
    ),
]
Output = Annotated[
    _Format | None, _output("table, json (as --json), or sarif for code scanning.", "--format")
]


Baseline = Annotated[
    Path | None,
    _output(
        "Output of an earlier bcu inspect, JSON or SARIF: only what is new since then is reported and "
        "counts for the exit code."
    ),
]
Scan = Annotated[
    bool,
    _scan(
        "Scan the networks for backdoors: clean-looking, suspicious (exit code 1) or inconclusive "
        "(exit code 2), with the error rates of this verdict.",
        "--scan",
    ),
]
Images = Annotated[
    Path | None, _scan("Folder of unlabeled images like the training data: eight detectors instead of three.")
]
Evidence = Annotated[Path | None, _scan("Folder for images of the triggers that detectors found.")]
Page = Annotated[
    Path | None,
    _scan(
        "An .html file that shows the verdict, its error rates, the found triggers on three images, and "
        "what was not looked at."
    ),
]


def inspect(
    paths: Paths,
    arch: Arch = None,
    scan: Scan = False,
    images: Images = None,
    evidence: Evidence = None,
    page: Page = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    device: DeviceName = _AUTO,
    precision: Precision = _AUTO,
    seed: Seed = 0,
    fail_on: FailOn = "unsafe,suspicious",
    baseline: Baseline = None,
    output_format: Output = None,
    as_json: Json = False,
) -> None:
    """Identify files by their content, and check whether they are safe to open.

    Exit code 1 means an unsafe file, 2 a file that cannot be read, or a folder without models. An unknown
    architecture is a note.
    Only --scan looks for backdoors: a file without findings can still hold one.
    """
    from bcu_cli.workflows.inspect import InspectRequest
    from bcu_cli.workflows.inspect import inspect as look_at
    from bcu_cli.workflows.scan import ScanRequest

    if as_json and output_format not in {None, _Format.JSON}:
        raise UsageError(f"--json and --format {output_format} cannot both be", "leave one of them out")
    failing = _failing(fail_on)
    if not scan:
        files = {"--images": images, "--evidence": evidence, "--page": page}
        of_model = {"--input-size": input_size, "--mean": mean, "--std": std}
        running = {"--device": device != _AUTO, "--precision": precision != _AUTO, "--seed": seed}
        _refuse_without_scan({**files, **of_model, **running})
    looking = ScanRequest(
        images=images,
        evidence=evidence,
        model=model_options(arch, input_size, mean, std),
        device=device,
        precision=precision,
        seed=seed,
        examples=page is not None,
    )
    asked = looking if scan else None
    request = InspectRequest(paths=tuple(paths), arch=arch, scan=asked, page=page, baseline=baseline)
    result = look_at(request)
    code = _exit_code(result.document, failing)
    for problem in result.problems:
        output.fail(problem["message"], problem["hint"])
    if as_json or output_format is _Format.JSON:
        output.document(result.document)
    elif output_format is _Format.SARIF:
        from bcu_cli.report.sarif import sarif

        output.plain_document(sarif(result.document, code))
    else:
        _show(result.document)
    if code != DONE:
        raise typer.Exit(code)


def _failing(fail_on: str) -> frozenset[str]:
    failing = frozenset(fail_on.split(","))
    if wrong := sorted(failing - set(_FAIL_ON)):
        raise UsageError(f"--fail-on {wrong[0]} is none of {', '.join(_FAIL_ON)}", "like --fail-on unsafe")
    return failing


def _refuse_without_scan(given: dict[str, object]) -> None:
    """Refuse options of a scan without ``--scan``; those that were left out are None, False or 0."""
    if names := [name for name, value in given.items() if value not in (None, False)]:
        raise UsageError(f"{names[0]} is for a scan", "add --scan")


def _exit_code(inspected: dict[str, Any], failing: frozenset[str]) -> int:
    """The exit code: 1 for verdicts in ``failing``, else 2 for unsafe or undecided files, else 0.

    Suspicious files that are not in ``failing`` are only reported.
    """
    from bcu_cli.workflows.inspect import new_in, verdict

    verdicts = {verdict([new_in(file)], []) for file in inspected["files"]}
    if inspected["problems"]:
        verdicts.add("inconclusive")
    if verdicts & failing:
        return BAD
    if _UNKNOWN in failing and any(map(_is_unknown, inspected["files"])):
        return FAILED
    return FAILED if verdicts & {"unsafe", "inconclusive"} else DONE


def _is_unknown(file: dict[str, Any]) -> bool:
    from bcu_cli.workflows.inspection import UNKNOWN

    return any(finding["rule"] == UNKNOWN for finding in file["findings"])


def _show(inspected: dict[str, Any]) -> None:
    files = inspected["files"]
    if len(files) == 1:
        output.facts(_facts(files[0]))
    elif files:
        output.table(
            f"{len(files)} files", ("file", "kind", "safe to open", "architecture"), map(_row, files)
        )
    for file in files:
        if "scan" in file:
            scan_output.show(file["scan"])
    if since := inspected.get("baseline"):
        output.say(f"{since['new']} new, {since['known']} known by the baseline {since['path']}")
    if inspected["passed_over"]:
        skipped = number_of(
            len(inspected["passed_over"]),
            "image, text or empty file was skipped",
            "images, texts and empty files were skipped",
        )
        output.say(skipped)


def _row(file: dict[str, Any]) -> tuple[str, str, str, str]:
    architecture = file.get("architecture")
    rules = sorted({finding["rule"] for finding in file["findings"] if finding["severity"] == "unsafe"})
    safe = {True: "yes", None: "not read", False: f"NO: {', '.join(rules) or 'known'}"}[file["safe"]]
    holds = _name(architecture) if architecture else _trigger(file) or "-"
    return file["path"], file.get("kind", "-"), safe, holds


def _trigger(file: dict[str, Any]) -> str | None:
    """The trigger that a file holds by its metadata; None for other files."""
    name = file.get("metadata", {}).get(triggers.KEY)
    return f"the trigger {name}, by its metadata" if name else None


def _name(architecture: dict[str, Any]) -> str:
    """The name of the architecture, or of all candidates."""
    return " or ".join([architecture["name"], *architecture["rivals"]])


def _facts(file: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("file", file["path"])]
    if "kind" in file:
        rows[0] = ("file", f"{file['path']}, {output.size(file['bytes'])}")
        rows += [("kind", file["kind"]), ("SHA-256", file["sha256"] or "not made: the file is large")]
    safe = {True: "yes", None: "not known: it was not read", False: "NO: it was not opened"}
    rows.append(("safe to open", safe[file["safe"]]))
    rows += [(finding["severity"], finding["message"]) for finding in file["findings"][:_MOST_SHOWN]]
    if {finding["rule"] for finding in file["findings"] if finding["severity"] == "unsafe"} == {
        "pickle-object"
    }:
        rows.append(("what to do", RESAVE))
    if architecture := file.get("architecture"):
        rows.append(("architecture", f"{_name(architecture)}, by {architecture['source']}"))
        if architecture["rivals"]:
            rows.append(("", "names and shapes cannot show which; --arch says it to bcu cleanse"))
        if architecture["alternatives"]:
            rows.append(("the same as", ", ".join(architecture["alternatives"][:_MOST_SHOWN])))
        rows.append(("classes", str(architecture["num_classes"])))
    elif trigger := _trigger(file):
        rows.append(("holds", trigger))
    if "tensors" in file:
        rows += _tensor_facts(file)
    return rows


def _tensor_facts(file: dict[str, Any]) -> list[tuple[str, str]]:
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in file["dtypes"].items())
    broken = (
        "not looked for: the file is large" if file["not_finite"] is None else ", ".join(file["not_finite"])
    )
    rows = [
        ("tensors", f"{file['tensors']} ({dtypes}), {number_of(file['parameters'], 'value')}"),
        ("NaN or Inf", broken or "none"),
    ]
    rows += list(file["metadata"].items())[:_MOST_SHOWN]
    rows += [(key, str(value)) for key, value in list(file.get("beside", {}).items())[:_MOST_SHOWN]]
    if others := file.get("others"):
        taken = "/".join(file["nesting"]) or "the outermost table"
        rows.append(("weights", f"{taken}; there are others under {', '.join(others[:_MOST_SHOWN])}"))
    if left_out := file.get("left_out"):
        rows.append(("not written back", ", ".join(left_out[:_MOST_SHOWN])))
    return rows
