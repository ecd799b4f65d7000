"""``bcu inspect --scan``: the detectors of backdoors on the networks of files that are safe to open.

Each network runs in a separate process, so that a crash, a hang or a lack of memory does not affect the
reports of other files.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli import events, limits
from bcu_cli.errors import BcuError, OutputError
from bcu_cli.report import files_read as files
from bcu_cli.report.text import searched_of_all
from bcu_cli.runs import allocation, library_warnings, signals, supervisor
from bcu_cli.words import number_of
from bcu_cli.workflows import loading
from bcu_cli.workflows.result import Result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bcu_cli.detectors.base import OnStep, Subject
    from bcu_cli.detectors.running import DetectorRun
    from bcu_cli.detectors.verdict import Calibration
    from bcu_cli.images.sources.given import GivenImages
    from bcu_cli.models import Classifier, Loaded
    from bcu_cli.training.devices import Device

_PROGRAM = "from bcu_cli.workflows import scan; scan.serve()"
_REPORT = "report it with the name of the architecture"
_MOST_IMAGES = 2_000
"""Most images to decode; no detector uses more."""


@dataclass(frozen=True, kw_only=True)
class ScanRequest:
    """Request to scan networks.

    Args:
        images: Folder of unlabeled images; None runs only the detectors that need no images.
        evidence: Folder for the detectors' images; None for none.
        model: The user's options on reading models.
        device: The device, as ``--device`` takes it.
        precision: The precision, as ``--precision`` takes it.
        seed: Seed of all random draws.
        examples: Whether the document shows the found triggers on images, for a page.
    """

    images: Path | None
    evidence: Path | None
    model: loading.ModelOptions
    device: str
    precision: str
    seed: int
    examples: bool = False


@dataclass(frozen=True, kw_only=True)
class ScanResult(Result):
    """Result of a scan of one network.

    Attributes:
        triggers: The triggers that detectors found, by name: float ``[C, H, W]`` in [0, 1].

    Example:
        >>> sorted(bcu.scan("model.safetensors").scores)
        ['last_layer', 'lipschitz', 'mmbd']
    """

    triggers: dict[str, Tensor] = field(repr=False)

    @property
    def verdict(self) -> str:
        """``clean-looking``, ``suspicious`` or ``inconclusive``."""
        return str(self.document["verdict"])

    @property
    def target_class(self) -> int:
        """The most suspicious class."""
        return int(self.document["class"])

    @property
    def searched(self) -> tuple[int, ...]:
        """The classes that all detectors looked at: all, or those that a screening of many classes chose."""
        return tuple(self.document["searched"])

    @property
    def scores(self) -> dict[str, float]:
        """Score of each detector: how far its most suspicious class stands out."""
        return {each["detector"]: each["score"] for each in self.document["detectors"]}


def prepare(options: ScanRequest) -> None:
    """Refuse invalid options before any file is scanned.

    Raises:
        UsageError: There is no such device.
        ImagesError: The folder of images does not exist.
        OutputError: The folder for the evidence cannot be created.
    """
    from bcu_cli.images.sources.listing import list_images
    from bcu_cli.training import devices

    if options.images is not None:
        list_images(options.images)
    if options.evidence is not None:
        try:
            options.evidence.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"--evidence {options.evidence} cannot be used: {error.strerror}"
            raise OutputError(message, "name a folder that exists or can be created") from error
    devices.check(options.device, options.precision)


def scan_all(files: list[dict[str, Any]], options: ScanRequest) -> None:
    """Scan the network of each file, and add the results and a verdict to the file's document.

    A network of unknown architecture can be scanned where the file holds its graph (TorchScript, ONNX).
    """
    from bcu_cli.workflows.inspection import MISMATCH

    for file in files:
        own = (
            file["problem"] and file["problem"]["rule"] == MISMATCH
        )  # a file of --arch may fit once it has run
        if file["safe"] is True and (own or not file["problem"]):
            scan_in_child(file, options)


def scan_in_child(file: dict[str, Any], options: ScanRequest) -> None:
    """Scan one network in a child process; a crash of the child becomes a problem of the file.

    Args:
        file: The file's document, to which the results of :func:`scan_one` are added.
        options: Options of the scan.

    Raises:
        KeyboardInterrupt: The user asked for a stop.
    """
    from bcu_cli.detectors.running import FAILED

    request = {"file": file, "options": _as_json(options)}
    ended = supervisor.run(
        supervisor.program(_PROGRAM),
        request=json.dumps(request).encode(),
        on_event=lambda values: events.emit(events.from_json(values)),
    )
    if ended.interrupted:
        raise KeyboardInterrupt
    fault = ended.fault
    try:
        answer = json.loads(ended.output) if fault is None else None
    except ValueError:
        answer, fault = None, (f"it ended with code {ended.code} and no answer", _REPORT)
    if answer is not None:
        file |= answer
    elif fault is not None:
        message = f"{file['path']} could not be scanned: {fault[0]}"
        file["problem"] = {"rule": FAILED, "message": message, "hint": fault[1]}


def serve() -> None:
    """Main function of the child: read a request from stdin, scan, and write the document to stdout."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keeps output of libraries out of the answer
    signals.handle(signal.SIG_DFL)  # there is nothing to clean up, and the parent reports
    limits.join_supervisor()
    allocation.keep_freed_memory()
    library_warnings.neutralise(events.warn)
    from bcu_cli.training import devices

    request = json.load(sys.stdin)
    file, options = request["file"], _from_json(request["options"])
    with events.listening(lambda event: limits.report(events.to_json(event))):
        scan_one(file, options, devices.choose(options.device, options.precision))
    answer.write(json.dumps(file).encode())
    answer.close()


def _as_json(options: ScanRequest) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(options), default=str))  # type: ignore[no-any-return]


def _from_json(values: dict[str, Any]) -> ScanRequest:
    folders = {name: values[name] and Path(values[name]) for name in ("images", "evidence")}
    model: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values["model"].items()
    }
    whole: dict[str, Any] = {**values, **folders, "model": loading.ModelOptions(**model)}
    return ScanRequest(**whole)


def scan_one(file: dict[str, Any], options: ScanRequest, device: Device) -> None:
    """Add the detectors' results, or the problem that prevented them, to a file's document.

    Args:
        file: The document, changed in place.
        options: Options of the scan.
        device: The device to run on.
    """
    from bcu_cli.detectors.running import FAILED

    earlier, file["problem"] = file["problem"], None
    path = Path(file["path"])
    try:
        file["scan"], runs = _scan(path, options, device)
        _conclude(file, file["scan"])
        if options.evidence is not None:
            read = [path, *([options.images] if options.images else [])]
            file["scan"]["pictures"] = _write(runs, options.evidence, path, file["sha256"], read)
    except BcuError as error:
        known = earlier is not None and earlier["message"] == error.message
        file["problem"] = earlier if known else {"rule": FAILED, "message": error.message, "hint": error.hint}
    except Exception as error:  # must not hide the results of other files
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        message = f"{file['path']} could not be scanned: {type(error).__name__}: {reason}"
        hint = "where memory ran out: another --device; else report it with the name of the architecture"
        file["problem"] = {"rule": FAILED, "message": message, "hint": hint}


def _conclude(file: dict[str, Any], scan: Mapping[str, Any]) -> None:
    """Add the finding or problem that follows from the verdict."""
    from bcu_cli.checkpoints import Finding
    from bcu_cli.detectors.running import SUSPICIOUS, UNDECIDED
    from bcu_cli.report.text import suspected_class

    if scan["verdict"] == "suspicious":
        message = f"it behaves as if it had a backdoor to {suspected_class(scan)}"
        file["findings"].append(asdict(Finding(rule=SUSPICIOUS, message=message, severity="suspicious")))
    elif scan["verdict"] == "inconclusive":
        message = f"whether {file['path']} has a backdoor was not decided: {_undecided(scan)}"
        file["problem"] = {"rule": UNDECIDED, "message": message, "hint": _advice(scan)}


def _advice(scan: Mapping[str, Any]) -> str:
    """What to do where the scan could not decide."""
    if not scan["images"]:
        return "scan it with --images, a folder of unlabeled images"
    if searched_of_all(scan) and scan["suspicion"] < scan["calibration"]["clean_below"]:
        return "no option searches the other classes; bcu cleanse works whatever a scan says"
    return "scan it with more --images, or with another --seed"


def _undecided(scan: Mapping[str, Any]) -> str:
    below = scan["calibration"]["clean_below"]
    if scan["suspicion"] < below:
        if some := searched_of_all(scan):
            return f"nothing stands out, but the scan {some}"
        few = number_of(scan["images"]["used"], "image is", "images are")
        return f"{few} too few to call it clean-looking"
    return f"its suspicion of {scan['suspicion']:.2f} lies between {below:.2f} and 1"


def _scan(path: Path, options: ScanRequest, device: Device) -> tuple[dict[str, Any], list[DetectorRun]]:
    """Load and scan one network; returns the document, and the runs with their images."""
    loaded = loading.load_model(path, options.model, pictures=options.images)
    scan, runs = scan_loaded(loaded, options.images, device, seed=options.seed)
    read = files.files_read_of(scan["model"], options.model.arch)
    if options.examples:
        scan["examples"] = _examples(loaded.classifier, runs)
    scan["files_read"] = files.files_read([*read, *([options.images] if options.images else [])])
    return scan, runs


def scan_loaded(
    loaded: Loaded, given: Path | GivenImages | None, device: Device, *, seed: int
) -> tuple[dict[str, Any], list[DetectorRun]]:
    """Scan a loaded network.

    Args:
        loaded: The network.
        given: Unlabeled images like its training data; None runs only the detectors that need no images.
        device: The device to run on.
        seed: Seed of all random draws.

    Returns:
        The document, and the results of the detectors with their images.

    Raises:
        BcuError: The images cannot be used, or the detectors cannot judge the network.
    """
    import torch

    from bcu_cli.detectors.base import Subject
    from bcu_cli.detectors.verdict import judge
    from bcu_cli.report import document

    model = loaded.classifier
    images, place = None, None
    if given is not None:
        generator = torch.Generator().manual_seed(seed)
        geometry = loaded.preprocessing.geometry
        data = loading.load_unlabeled(given, geometry, at_most=_MOST_IMAGES, generator=generator)
        images, place = data.images, str(given if isinstance(given, Path) else given.root)
    if device.precision == "fp16":  # without a scaled loss, gradients towards images vanish in it
        device = replace(device, precision="fp32")
    model.to(device.torch).eval()
    subject = Subject(model=model, images=images, device=device, seed=seed)
    runs = _run_detectors(subject, loaded.checkpoint.path)
    used = None if images is None else len(images)
    verdict = judge([each.scores for each in runs], images=used)
    scan = {
        "verdict": verdict.word,
        "class": verdict.target,
        "classes": list(loaded.classes),
        "suspicion": verdict.suspicion,
        "suspicions": [None if math.isnan(value) else value for value in verdict.suspicions],
        "searched": [index for index, value in enumerate(verdict.suspicions) if not math.isnan(value)],
        "calibration": _rates(verdict.calibration),
        **document.environment(device),
        "seed": seed,
        "model": document.model(loaded),
        "images": None if used is None else {"path": place, "used": used},
        "detectors": [each.document() for each in runs],
        "pictures": [],
    }
    return scan, runs


def write_page(
    scan: Mapping[str, Any], model: Classifier, runs: list[DetectorRun], page: Path
) -> dict[str, Any]:
    """Write the page of one scan that belongs to no inspection; returns its entry of the report.

    Args:
        scan: The document of the scan.
        model: The network, on the device of the scan.
        runs: The results of the detectors.
        page: The file to write.

    Raises:
        OutputError: The file cannot be written.
    """
    from bcu_cli.report import document, scan_page

    file: dict[str, Any] = {"path": scan["model"]["path"], "safe": True, "problem": None, "findings": []}
    _conclude(file, scan)
    shown = {**scan, "examples": _examples(model, runs)}
    whole = {"files": [file | {"scan": shown}], "problems": []}
    return document.written(page, scan_page.write(whole, page))


def _examples(model: Classifier, runs: list[DetectorRun]) -> list[dict[str, Any]]:
    """The found triggers on given images, with the predictions before and after, for a page."""
    import torch

    from bcu_cli.evaluation.measures import Proportion
    from bcu_cli.report.trigger_sheet import data_uri

    found = []
    for scores in (each.scores for each in runs):
        if scores.examples is None:
            continue
        with torch.no_grad():
            answers = [model(images).argmax(1).tolist() for images in scores.examples]
        of = scores.evidence["images"]
        found.append(
            {
                "detector": scores.detector,
                "class": scores.target,
                "success": Proportion(hits=round(scores.evidence["success"] * of), of=of).as_json(),
                "images": [
                    {"before": data_uri(before), "after": data_uri(after), "answers": [was, now]}
                    for before, after, was, now in zip(*scores.examples, *answers, strict=True)
                ],
            }
        )
    return found


def _rates(calibration: Calibration) -> dict[str, Any]:
    """Error rates of the verdict on held-out networks."""
    from bcu_cli.evaluation.measures import Proportion

    def share(counts: tuple[int, int]) -> dict[str, Any]:
        return Proportion(hits=counts[0], of=counts[1]).as_json()

    return {
        "clean_below": calibration.clean_below,
        "suspicious_from": 1.0,
        "networks": sum(calibration.networks),
        "false_alarms": share(calibration.false_alarms),
        "misses": share(calibration.misses),
    }


def _run_detectors(subject: Subject, path: Path) -> list[DetectorRun]:
    """Run the detectors, with a progress bar that names the current one."""
    from bcu_cli.detectors.running import outlook, run_all
    from bcu_cli.training.forecast import Forecast, place

    forecast = Forecast(outlook(subject), place(subject.device), wait=subject.device.wait)
    with events.progress(f"scanning {path.name}", forecast.overall) as bar:

        def start(name: str) -> OnStep:
            done = 0
            forecast.begin(name)

            def advance(now: int, of: int) -> None:
                nonlocal done
                forecast.advance(now / of)
                bar.advance(now - done, of, name)
                done = now

            bar.restart(name)
            return advance

        return run_all(subject, start)


def _write(
    runs: list[DetectorRun], folder: Path, path: Path, sha256: str | None, read: list[Path]
) -> list[dict[str, Any]]:
    """Write the images of all detectors; file names contain the model and the detector."""
    from bcu_cli.checkpoints import check_writable
    from bcu_cli.report import document, trigger_sheet

    written = []
    for each in runs:
        for name, pixels in each.scores.pictures.items():
            stem = "-".join([path.stem, *([sha256[:8]] if sha256 else []), each.scores.detector, name])
            target = folder / f"{stem}.png"
            check_writable(target, inputs=read)
            written.append(document.written(target, trigger_sheet.write_image(pixels, target)))
    return written
