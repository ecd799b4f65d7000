"""``bcu inspect --scan``: the detectors of backdoors on the networks of files that are safe to open.

Each network runs in a child of its own, so that one which crashes, hangs or takes all memory costs no other
file its report.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli import events, limits
from bcu_cli.errors import BcuError, OutputError
from bcu_cli.report import files_read as files
from bcu_cli.runs import messages, signals, supervisor
from bcu_cli.workflows import loading
from bcu_cli.workflows.result import Result

if TYPE_CHECKING:
    from torch import Tensor

    from bcu_cli.detectors.base import OnStep, Subject
    from bcu_cli.detectors.running import DetectorRun
    from bcu_cli.detectors.verdict import Calibration
    from bcu_cli.images.given import GivenImages
    from bcu_cli.models import Loaded
    from bcu_cli.training.devices import Device

_PROGRAM = "from bcu_cli.workflows import scan; scan.serve()"
_REPORT = "report it with the name of the architecture"
_MOST_IMAGES = 2_000
"""More images than any detector looks at need not be decoded."""


@dataclass(frozen=True, kw_only=True)
class ScanRequest:
    """How networks are looked at.

    Args:
        images: Folder of unlabeled images; without, only the detectors that need none look.
        evidence: Folder for the images that detectors make, None for none.
        model: What the user says of the models.
        device: Where they run, as the user says.
        precision: In which precision, as the user says.
        seed: Decides everything that is drawn.
    """

    images: Path | None
    evidence: Path | None
    model: loading.ModelOptions
    device: str
    precision: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class ScanResult(Result):
    """What the detectors say of one network.

    Attributes:
        triggers: The triggers that detectors found, by name: float ``[C, H, W]`` in [0, 1].
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
    def scores(self) -> dict[str, float]:
        """How far the most suspicious class stands out, by detector."""
        return {each["detector"]: each["score"] for each in self.document["detectors"]}


def prepare(options: ScanRequest) -> None:
    """Refuse, before any file is looked at, what would be refused for each.

    Raises:
        UsageError: There is no such device.
        ImagesError: There is no such folder of images.
        OutputError: The folder for the evidence cannot be made.
    """
    from bcu_cli.images.listing import list_pictures
    from bcu_cli.training import devices

    if options.images is not None:
        list_pictures(options.images)
    if options.evidence is not None:
        try:
            options.evidence.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"--evidence {options.evidence} cannot be used: {error.strerror}"
            raise OutputError(message, "name a folder that is there or can be made") from error
    devices.choose(options.device, options.precision)


def scan_all(files: list[dict[str, Any]], options: ScanRequest) -> None:
    """Add to the document of each file whose network can run what the detectors say of it, and a verdict.

    One whose architecture is not known can run where the file holds its graph (TorchScript, ONNX).
    """
    from bcu_cli.workflows.inspection import ARCHITECTURE

    for file in files:
        unknown = file["problem"] and file["problem"]["rule"] == ARCHITECTURE
        if file["safe"] is True and (unknown or not file["problem"]):
            scan_in_child(file, options)


def scan_in_child(file: dict[str, Any], options: ScanRequest) -> None:
    """Scan one network in a process of its own, whatever becomes of that.

    Args:
        file: Its document, to which is added what :func:`scan_one` adds.
        options: How to look.

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
    """Be that process: scan the network of the request on stdin, and answer with its document on stdout."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    signals.handle(signal.SIG_DFL)  # it has nothing to tidy up, and its parent does the talking
    limits.join_supervisor()
    messages.neutralise(events.warn)
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
    """Add to a file's document what the detectors say, or why they could not look.

    Args:
        file: The document, which is changed.
        options: How to look.
        device: Where.
    """
    from bcu_cli.detectors.running import FAILED

    earlier, file["problem"] = file["problem"], None
    path = Path(file["path"])
    try:
        file["scan"], looked = _scan(path, options, device)
        _conclude(file, file["scan"])
        if options.evidence is not None:
            read = [path, *([options.images] if options.images else [])]
            file["scan"]["pictures"] = _write(looked, options.evidence, path, file["sha256"], read)
    except BcuError as error:
        known = earlier is not None and earlier["message"] == error.message
        file["problem"] = earlier if known else {"rule": FAILED, "message": error.message, "hint": error.hint}
    except Exception as error:  # of one network: it must not hide what was found in the other files
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        message = f"{file['path']} could not be scanned: {type(error).__name__}: {reason}"
        hint = "where memory ran out: another --device; else report it with the name of the architecture"
        file["problem"] = {"rule": FAILED, "message": message, "hint": hint}


def _conclude(file: dict[str, Any], scan: dict[str, Any]) -> None:
    """What the verdict makes of the file: a finding, a problem, or neither."""
    from bcu_cli.checkpoints import Finding
    from bcu_cli.detectors.running import SUSPICIOUS, UNDECIDED

    if scan["verdict"] == "suspicious":
        message = f"it behaves as if it had a backdoor to class {scan['class']}"
        file["findings"].append(asdict(Finding(rule=SUSPICIOUS, message=message, severity="suspicious")))
    elif scan["verdict"] == "inconclusive":
        message = f"whether {file['path']} has a backdoor was not decided: {_undecided(scan)}"
        more = "scan it with more --images, or with another --seed"
        hint = more if scan["images"] else "scan it with --images, a folder of unlabeled images"
        file["problem"] = {"rule": UNDECIDED, "message": message, "hint": hint}


def _undecided(scan: dict[str, Any]) -> str:
    below = scan["calibration"]["clean_below"]
    if scan["suspicion"] < below:
        return f"{scan['images']['used']} images are too few to call it clean-looking"
    return f"its suspicion of {scan['suspicion']:.2f} lies between {below:.2f} and 1"


def _scan(path: Path, options: ScanRequest, device: Device) -> tuple[dict[str, Any], list[DetectorRun]]:
    """Load one network and ask the detectors: the document, and what it does not hold, their images."""
    loaded = loading.load_model(path, options.model, pictures=options.images)
    scan, looked = scan_loaded(loaded, options.images, device, seed=options.seed)
    read = files.files_read_of(scan["model"], options.model.arch)
    scan["files_read"] = files.files_read([*read, *([options.images] if options.images else [])])
    return scan, looked


def scan_loaded(
    loaded: Loaded, given: Path | GivenImages | None, device: Device, *, seed: int
) -> tuple[dict[str, Any], list[DetectorRun]]:
    """Ask the detectors about a network that is loaded.

    Args:
        loaded: The network.
        given: Unlabeled images like those that it was made for; without, only the detectors that need none
            are asked.
        device: The device that it runs on.
        seed: Seed of everything that is drawn.

    Returns:
        The document, and what the detectors say, with their images.

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
        geometry = loading.geometry_of(model.preprocessing)
        data = loading.load_unlabeled(given, geometry, at_most=_MOST_IMAGES, generator=generator)
        images, place = data.images, str(given if isinstance(given, Path) else given.root)
    model.to(device.torch).eval()
    subject = Subject(model=model, images=images, device=device, seed=seed)
    looked = _look(subject, loaded.checkpoint.path)
    used = None if images is None else len(images)
    verdict = judge([each.scores for each in looked], images=used)
    scan = {
        "verdict": verdict.word,
        "class": verdict.target,
        "suspicion": verdict.suspicion,
        "calibration": _rates(verdict.calibration),
        **document.environment(device),
        "seed": seed,
        "model": document.model(loaded),
        "images": None if used is None else {"path": place, "used": used},
        "detectors": [each.document() for each in looked],
        "pictures": [],
    }
    return scan, looked


def _rates(calibration: Calibration) -> dict[str, Any]:
    """What a verdict is worth: how often it was wrong, of networks that the thresholds were not made of."""
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


def _look(subject: Subject, path: Path) -> list[DetectorRun]:
    """Ask the detectors, with a bar that says which is at work."""
    from bcu_cli.detectors.running import run_all

    with events.progress(f"scanning {path.name}") as bar:

        def start(name: str) -> OnStep:
            done = 0

            def advance(now: int, of: int) -> None:
                nonlocal done
                bar.advance(now - done, of, name)
                done = now

            bar.restart(name)
            return advance

        return run_all(subject, start)


def _write(
    looked: list[DetectorRun], folder: Path, path: Path, sha256: str | None, read: list[Path]
) -> list[dict[str, Any]]:
    """Write the images of all detectors; their names say of which model and detector they are.

    Raises:
        OutputError: One cannot be written, or is one of the files that were read.
    """
    from bcu_cli.checkpoints import check_writable
    from bcu_cli.report import document, pictures

    written = []
    for each in looked:
        for name, pixels in each.scores.pictures.items():
            stem = "-".join([path.stem, *([sha256[:8]] if sha256 else []), each.scores.detector, name])
            target = folder / f"{stem}.png"
            check_writable(target, inputs=read)
            written.append(document.written(target, pictures.write_picture(pixels, target)))
    return written
