"""The workflow ``inspect``: identify model files, check whether they are safe to open, and scan them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli import events
from bcu_cli.errors import BcuError
from bcu_cli.report import baseline as baselines
from bcu_cli.report import files_read as files
from bcu_cli.workflows import scan as scanning
from bcu_cli.workflows.result import Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bcu_cli.workflows.reader import Reader


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    """Request to inspect files.

    Attributes:
        paths: Files, folders of them at any depth, or ``hf-hub:OWNER/NAME``.
        arch: The architecture, as ``--arch`` takes it; None identifies it.
        scan: Request to scan the networks for backdoors; None skips the scan.
        page: HTML file to write about the scan; None writes none.
        baseline: An earlier JSON or SARIF document of the command, whose findings are not reported again.
    """

    paths: tuple[Path, ...]
    arch: str | None = None
    scan: scanning.ScanRequest | None = None
    page: Path | None = None
    baseline: Path | None = None


@dataclass(frozen=True, kw_only=True)
class InspectResult(Result):
    """Result of inspecting files.

    Example:
        >>> bcu.inspect("model.safetensors").verdict
        'safe-to-open'
    """

    @property
    def verdict(self) -> str:
        """``unsafe``, ``suspicious``, ``inconclusive``, ``clean-looking`` or ``safe-to-open``."""
        return str(self.document["verdict"])

    @property
    def problems(self) -> list[dict[str, Any]]:
        """Everything that could not be done, each with a rule, a message and a hint."""
        own = [file["problem"] for file in self.document["files"] if file["problem"]]
        return [*self.document["problems"], *own]

    @property
    def files(self) -> list[dict[str, Any]]:
        """The document of each file."""
        return list(self.document["files"])

    @property
    def safe(self) -> bool | None:
        """Whether all files are safe to open; None if a file was not read."""
        found = [file["safe"] for file in self.files]
        if False in found:
            return False
        return None if None in found or self.document["problems"] or not found else True

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The findings of all files, each with a rule, a message and a severity."""
        return [finding for file in self.files for finding in file["findings"]]

    @property
    def architecture(self) -> str | None:
        """Name of the architecture; None if it is unknown or if there are several files."""
        found = [file["architecture"]["name"] for file in self.files if file.get("architecture")]
        return found[0] if len(found) == len(self.files) == 1 else None


def inspect(request: InspectRequest) -> InspectResult:
    """Inspect files, and scan their networks if the request has a scan.

    Raises:
        BcuError: A path or an option of the scan is invalid.
    """
    if request.scan:
        scanning.prepare(request.scan)
    if request.page:
        from bcu_cli.report import page_parts

        images = request.scan.images if request.scan else None
        page_parts.check(request.page, inputs=[*request.paths, *([images] if images else [])])
    known = baselines.read(request.baseline) if request.baseline else None
    document = _inspect(request.paths, request.arch)
    if request.scan:
        scanning.scan_all(document["files"], request.scan)
    document["verdict"] = verdict(document["files"], document["problems"])
    if request.page:
        _write_page(document, request.page)
    if known:
        document["files_read"] += files.files_read([known.path])
        document["baseline"] = known.apply(document["files"])
        document["baseline"]["new"] += len(document["problems"])
    return InspectResult(document=document)


def _write_page(document: dict[str, Any], path: Path) -> None:
    """Write the page of the scans, and leave its images out of the document."""
    from bcu_cli.report import document as entries
    from bcu_cli.report import scan_page

    document["page"] = entries.written(path, scan_page.write(document, path))
    for file in document["files"]:
        file.get("scan", {}).pop("examples", None)


def _inspect(paths: Sequence[Path], arch: str | None) -> dict[str, Any]:
    from bcu_cli.limits import SYSTEM_HAS_LIMITS
    from bcu_cli.workflows.reader import Reader

    if not SYSTEM_HAS_LIMITS:
        events.say("this system sets no limits to memory: only the time that each file takes is limited")
    with Reader() as reader:  # its process starts during the search for files
        from bcu_cli.workflows.inspection import find_files, no_model_in

        found = find_files(paths)
        documents = {}
        with events.progress("Inspecting") as part:
            for path in found.files:
                documents[path] = _inspect_one(reader, path, arch)
                part.advance(1, of=len(found.files), note=path.name)
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
    """List the inspected files and the files read beside them; large files have no SHA-256."""
    read: list[dict[str, Any]] = []
    beside: list[Path] = []
    for document in documents:
        if "sha256" not in document:  # it could not be read
            continue
        path, parts = Path(document["path"]), [Path(part) for part in document["parts"]]
        beside += files.files_of_config(path, arch)
        if parts and document["sha256"]:
            read += files.files_read([path, *parts])
        else:
            read.append({key: document[key] for key in ("path", "sha256", "bytes")})
            read += [{"path": str(part), "sha256": None, "bytes": part.stat().st_size} for part in parts]
    return read + files.files_read(beside)


def _inspect_one(reader: Reader, path: Path, arch: str | None) -> dict[str, Any]:
    """Inspect one file; an unexpected error becomes that file's problem, so that the others are inspected."""
    try:
        return reader.inspect(path, arch)
    except BcuError:
        raise
    except Exception as error:
        from bcu_cli.workflows.inspection import Inspection, Problem

        message = f"{path} could not be looked at: {type(error).__name__}: {error}"
        hint = "nothing is known of it: do not open it with anything else"
        problem = Problem(rule="reader-crashed", message=message, hint=hint)
        return Inspection(path=path, problem=problem).document()


def _is_no_model(document: dict[str, Any]) -> bool:
    """Whether a file is no model: an image, a text or an empty file."""
    return bool(document["problem"]) and document["problem"]["rule"] == "not-a-model"


def new_in(file: dict[str, Any]) -> dict[str, Any]:
    """The document of a file without what its baseline knows, for the exit code; never for a report.

    A file all of whose unsafe findings are known counts as one that was not opened.
    """
    if "known" not in file:
        return file
    severities = {finding["severity"] for finding in file["findings"]}
    rest = {key: value for key, value in file.items() if key != "scan" or "suspicious" in severities}
    return rest | {"safe": "unsafe" not in severities and (file["safe"] or None)}


def verdict(files: list[dict[str, Any]], problems: list[dict[str, Any]]) -> str:
    """Derive the verdict from the documents of the files.

    Args:
        files: The documents of the files.
        problems: Problems that belong to no inspected file.
    """
    scans = [file["scan"]["verdict"] for file in files if "scan" in file]
    if any(file["safe"] is False for file in files):
        return "unsafe"
    if "suspicious" in scans:
        return "suspicious"
    if problems or any(file["problem"] for file in files):
        return "inconclusive"
    return "clean-looking" if scans else "safe-to-open"
