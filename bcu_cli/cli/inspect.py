"""``bcu inspect``: what model files are, and whether they are safe to open; nothing in them is run.

With ``--scan`` the networks that are known are also looked at by the detectors of backdoors.
"""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcu_cli import triggers
from bcu_cli.cli import output, running, scanning
from bcu_cli.cli.exit_codes import BAD, DONE, FAILED
from bcu_cli.cli.options import Arch, DeviceName, InputSize, Json, Mean, Precision, Seed, Std
from bcu_cli.errors import BcuError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bcu_cli.scan.reader import Reader

_MOST_SHOWN = 20
_OUTPUT = "What it says"
_SCAN = "Looking for a backdoor (--scan)"
_FAIL_ON = ("unsafe", "suspicious", "inconclusive")


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
    typer.Option(
        help="What makes the exit code 1: unsafe, suspicious, inconclusive, or several with a comma. "
        "Whatever was not decided and is not named here makes it 2.",
        rich_help_panel=_OUTPUT,
    ),
]
Output = Annotated[
    _Format | None,
    typer.Option(
        "--format", help="table, json (as --json), or sarif for code scanning.", rich_help_panel=_OUTPUT
    ),
]


Scan = Annotated[
    bool,
    typer.Option(
        "--scan",
        help="Let detectors of backdoors look at the networks: clean-looking, suspicious (exit code 1) or "
        "inconclusive (exit code 2), and how often that is wrong.",
        rich_help_panel=_SCAN,
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(
        help="Folder of unlabeled pictures like those that the network is for: six detectors in place of "
        "two.",
        rich_help_panel=_SCAN,
    ),
]
Evidence = Annotated[
    Path | None,
    typer.Option(
        help="Folder to write the detectors' pictures to: the triggers that they found.",
        rich_help_panel=_SCAN,
    ),
]


def inspect(
    paths: Paths,
    arch: Arch = None,
    scan: Scan = False,
    images: Images = None,
    evidence: Evidence = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    seed: Seed = 0,
    fail_on: FailOn = "unsafe,suspicious",
    output_format: Output = None,
    as_json: Json = False,
) -> None:
    """Say what files are, by their content, and whether they are safe to open.

    An unsafe file exits 1; what cannot be read or is not recognised exits 2, and so does a folder without
    models. Whether a model behaves as if it had a backdoor is looked at with --scan only: a file without
    findings can still hold one.
    """
    if as_json and output_format not in {None, _Format.JSON}:
        raise UsageError(f"--json and --format {output_format} cannot both be", "leave one of them out")
    failing = _failing(fail_on)
    if not scan:
        of_scan = {"--images": images, "--evidence": evidence, "--input-size": input_size}
        scanning.refuse_without_scan({**of_scan, "--mean": mean, "--std": std})
    said = running.ModelOptions(arch=arch, input_size=input_size, mean=mean, std=std)
    options = scanning.ScanOptions(
        images=images, evidence=evidence, model=said, device=device, precision=precision, seed=seed
    )
    if scan:
        scanning.prepare(options)
    inspected = _inspect(paths, arch)
    if scan:
        scanning.scan_all(inspected["files"], options)
    inspected["verdict"] = _verdict(inspected["files"], inspected["problems"])
    code = _exit_code(inspected, failing)
    problems = [file["problem"] for file in inspected["files"] if file["problem"]]
    for problem in [*inspected["problems"], *problems]:
        output.fail(problem["message"], problem["hint"])
    if as_json or output_format is _Format.JSON:
        output.document(inspected)
    elif output_format is _Format.SARIF:
        from bcu_cli.report.sarif import sarif

        output.plain_document(sarif(inspected, code))
    else:
        _show(inspected)
    if code != DONE:
        raise typer.Exit(code)


def _failing(fail_on: str) -> frozenset[str]:
    failing = frozenset(fail_on.split(","))
    if wrong := sorted(failing - set(_FAIL_ON)):
        raise UsageError(f"--fail-on {wrong[0]} is none of {', '.join(_FAIL_ON)}", "like --fail-on unsafe")
    return failing


def _inspect(paths: Sequence[Path], arch: str | None) -> dict[str, Any]:
    from bcu_cli.limits import SYSTEM_HAS_LIMITS
    from bcu_cli.scan.reader import Reader

    if not SYSTEM_HAS_LIMITS:
        output.say("this system sets no limits to memory: only the time that each file takes is limited")
    with Reader() as reader:  # which starts while the files are looked for
        from bcu_cli.scan.inspection import find_files, no_model_in

        found = find_files(paths)
        documents = {}
        with output.bar("Inspecting") as bar:
            for path in found.files:
                documents[path] = _inspect_one(reader, path, arch)
                bar.advance(1, of=len(found.files), note=path.name)
    passed_over = {path for path in found.beside & documents.keys() if _is_no_model(documents[path])}
    for folder, inside in found.folders:
        if passed_over.issuperset(inside):
            found.problems.append((folder, no_model_in(folder)))
    return {
        "command": "inspect",
        "files": [document for path, document in documents.items() if path not in passed_over],
        "problems": [{"path": str(path), **asdict(problem)} for path, problem in found.problems],
        "passed_over": [str(path) for path in documents if path in passed_over],
        "files_read": _files_read(documents.values(), arch),
    }


def _files_read(documents: Iterable[dict[str, Any]], arch: str | None) -> list[dict[str, Any]]:
    """The files and what was read beside them; those that are large have no SHA-256 here either."""
    from bcu_cli.report.files_read import files_read

    read: list[dict[str, Any]] = []
    beside: list[Path] = []
    for document in documents:
        if "sha256" not in document:  # it could not be read
            continue
        path, parts = Path(document["path"]), [Path(part) for part in document["parts"]]
        beside += running.files_of_config(path, arch)
        if parts and document["sha256"]:
            read += files_read([path, *parts])
        else:
            read.append({key: document[key] for key in ("path", "sha256", "bytes")})
            read += [{"path": str(part), "sha256": None, "bytes": part.stat().st_size} for part in parts]
    return read + files_read(beside)


def _inspect_one(reader: Reader, path: Path, arch: str | None) -> dict[str, Any]:
    """The document of a file; what nobody foresaw is that file's problem, and the others are inspected."""
    try:
        return reader.inspect(path, arch)
    except BcuError:
        raise
    except Exception as error:
        from bcu_cli.scan.inspection import Inspection, Problem

        message = f"{path} could not be looked at: {type(error).__name__}: {error}"
        hint = "nothing is known of it: do not open it with anything else"
        problem = Problem(rule="reader-crashed", message=message, hint=hint)
        return Inspection(path=path, problem=problem).document()


def _is_no_model(document: dict[str, Any]) -> bool:
    """Whether a file is of a kind that lies beside models: a picture, a text, nothing at all."""
    return bool(document["problem"]) and document["problem"]["rule"] == "not-a-model"


def _verdict(files: list[dict[str, Any]], problems: list[dict[str, Any]]) -> str:
    scans = [file["scan"]["verdict"] for file in files if "scan" in file]
    if any(file["safe"] is False for file in files):
        return "unsafe"
    if "suspicious" in scans:
        return "suspicious"
    if problems or any(file["problem"] for file in files):
        return "inconclusive"
    return "clean-looking" if scans else "safe-to-open"


def _exit_code(inspected: dict[str, Any], failing: frozenset[str]) -> int:
    """1 for what was asked to fail; else 2 where anything is left undecided: an unsafe file is not opened.

    Whoever leaves ``suspicious`` out of what fails has it reported only.
    """
    verdicts = {_verdict([file], []) for file in inspected["files"]}
    if inspected["problems"]:
        verdicts.add("inconclusive")
    if verdicts & failing:
        return BAD
    return FAILED if verdicts & {"unsafe", "inconclusive"} else DONE


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
            scanning.show(file["scan"])
    if inspected["passed_over"]:
        output.say(f"{len(inspected['passed_over'])} pictures, texts and empty files were passed over")


def _row(file: dict[str, Any]) -> tuple[str, str, str, str]:
    architecture = file.get("architecture")
    rules = sorted({finding["rule"] for finding in file["findings"] if finding["severity"] == "unsafe"})
    safe = {True: "yes", None: "not read", False: f"NO: {', '.join(rules)}"}[file["safe"]]
    holds = _name(architecture) if architecture else _trigger(file) or "-"
    return file["path"], file.get("kind", "-"), safe, holds


def _trigger(file: dict[str, Any]) -> str | None:
    """What the file says of itself where it is no network, but a trigger."""
    name = file.get("metadata", {}).get(triggers.KEY)
    return f"the trigger {name}, by its metadata" if name else None


def _name(architecture: dict[str, Any]) -> str:
    """The architecture, or those that it may be."""
    return " or ".join([architecture["name"], *architecture["rivals"]])


def _facts(file: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("file", file["path"])]
    if "kind" in file:
        rows[0] = ("file", f"{file['path']}, {output.size(file['bytes'])}")
        rows += [("kind", file["kind"]), ("SHA-256", file["sha256"] or "not made: the file is large")]
    safe = {True: "yes", None: "not known: it was not read", False: "NO: it was not opened"}
    rows.append(("safe to open", safe[file["safe"]]))
    rows += [(finding["severity"], finding["message"]) for finding in file["findings"][:_MOST_SHOWN]]
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
        ("tensors", f"{file['tensors']} ({dtypes}), {file['parameters']:,} values"),
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
