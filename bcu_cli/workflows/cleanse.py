"""Cleanse a model of a backdoor, and write and report the result."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli import events
from bcu_cli.errors import UsageError
from bcu_cli.report import files_read as files
from bcu_cli.report.text import percent
from bcu_cli.runs import resuming
from bcu_cli.training import profile
from bcu_cli.workflows import loading
from bcu_cli.workflows.cleanse_images import load, warn_of
from bcu_cli.workflows.result import Result

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from bcu_cli.checkpoints import Format, Omission
    from bcu_cli.checkpoints.resume import StateFile
    from bcu_cli.defenses.base import Defense, DefenseOptions
    from bcu_cli.evaluation.measures import Proportion
    from bcu_cli.images.folder import ImageSet
    from bcu_cli.images.sources.given import GivenImages
    from bcu_cli.images.stream import StreamedSet
    from bcu_cli.models import Loaded
    from bcu_cli.models.classifier import Classifier
    from bcu_cli.training.devices import Device
    from bcu_cli.training.loop import Epoch, Stage

_EPOCHS_WITH_AGREEMENT = 20
"""Most epochs after which agreement is measured."""
_MOST_OMITTED = 8
"""Most entries that one warning names."""
FORMATS = ("same", "safetensors", "pickle", "torchscript")
SEVERAL_DEVICES = ("auto", "bcu", "ft", "nad")
"""Methods that support several devices, since they only average losses over batches and use predictions."""
CACHE_BYTES = 4 * 10**9


@dataclass(frozen=True, kw_only=True)
class CleanseRequest:
    """Request to cleanse a model.

    Attributes:
        model: A file, or a loaded model.
        images: A folder or a tar archive, or images in memory; None for a method that needs none.
        out: The file to write; None leaves the result in memory.
        method: Name of the method.
        options: Options of the method; None takes its defaults.
        options_of_model: The user's options on reading the model.
        pseudo_labels: Whether the model's predictions serve as labels.
        max_images: Draw this many of the images; None takes all.
        cache: Most decoded images to keep in memory, in bytes.
        format: Format of the file, one of ``FORMATS``.
        force: Whether the result is written whatever the verdict.
        card: Whether a model card is written beside ``out``.
        page: An HTML page to write about the cleansing, whatever the verdict; None writes none.
        device: The device, as ``--device`` takes it.
        precision: The precision, as ``--precision`` takes it.
        resume: Whether to continue an interrupted run.
        with_profile: Whether the report holds a profile of the time.
    """

    model: Path | Loaded
    images: Path | GivenImages | None = None
    out: Path | None = None
    method: str = "auto"
    options: DefenseOptions | None = None
    options_of_model: loading.ModelOptions = field(default_factory=loading.ModelOptions)
    pseudo_labels: bool = False
    max_images: int | None = None
    cache: int = CACHE_BYTES
    format: str = "same"
    force: bool = False
    card: bool = False
    page: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    resume: bool = False
    with_profile: bool = False


@dataclass(frozen=True, kw_only=True)
class CleanseResult(Result):
    """The result of a cleansing.

    Attributes:
        loaded: The cleansed network, with what is known of the original file.

    Example:
        >>> result = bcu.cleanse("model.safetensors", images="photos/", method="bcu", epochs=1)
        >>> type(result.model).__name__, result.out, result.verdict
        ('Model', None, None)
    """

    loaded: Loaded = field(repr=False)

    @property
    def model(self) -> Any:
        """The resulting network, whatever the verdict, as :func:`bcu_cli.load` returns one."""
        from bcu_cli.workflows.model import Model

        return Model(self.loaded)

    @property
    def verdict(self) -> str | None:
        """``cleansed``, ``not cleansed`` or ``could not tell``; None for a method that does not judge."""
        judged = self.document["verdict"]
        return str(judged["word"]) if judged else None

    @property
    def agreement(self) -> float | None:
        """Share of the held-out images, in [0, 1], on which result and original agree."""
        found = self.document["agreement"]
        return float(found["after"]["value"]) if found else None

    @property
    def out(self) -> Path | None:
        """The written file; None without one."""
        written = self.document["output"]
        return Path(written["path"]) if written else None


def cleanse(request: CleanseRequest) -> CleanseResult:
    """Cleanse a model, write it if the verdict allows that, and report.

    With several processes, only the report of rank 0 is complete.

    Raises:
        BcuError: The request is invalid, or a file cannot be read or written.
        KeyboardInterrupt: The run was stopped, and its state saved.
    """
    from bcu_cli.defenses.base import find
    from bcu_cli.training import devices

    kind = find(request.method)
    check(request)
    _warn_of_unused_options(request, kind)
    device = devices.choose(request.device, request.precision)
    if request.page:
        _check_page(request.page, request)
    writing = _writing(request, request.out) if request.out else nullcontext()
    profiled = profile.profiling(device) if request.with_profile else nullcontext()
    with writing, profiled as timed:
        with profile.span(profile.READING):
            loaded = _loaded(request)
        result = _Cleansing(request, loaded, kind, device).run()
    if timed:
        result.document["profile"] = _profile(timed, result.document["training"], device)
    return result


@contextmanager
def _writing(request: CleanseRequest, out: Path) -> Iterator[None]:
    """Check before long work that ``out`` and what belongs beside it can be written, and lock it."""
    from bcu_cli.checkpoints import check_writable
    from bcu_cli.report import card, provenance

    inputs = _inputs(request)
    for path in (out, provenance.path_beside(out)):
        check_writable(path, inputs=inputs)
    if request.card:
        card.refuse_existing(out)
    with resuming.writing(out, inputs=inputs):
        yield


def _check_page(page: Path, request: CleanseRequest) -> None:
    """Refuse a page that cannot be written or is another file of the run, before long work."""
    from bcu_cli.report import page_parts

    page_parts.check(page, inputs=_inputs(request))
    if request.out and os.path.realpath(page) == os.path.realpath(request.out):
        raise UsageError(f"--page and --out are both {page}", "give them different names")


def _loaded(request: CleanseRequest) -> Loaded:
    if not isinstance(request.model, Path):
        return request.model
    return loading.load_model(request.model, request.options_of_model, pictures=request.images)


def _inputs(request: CleanseRequest) -> list[Path]:
    arch = request.options_of_model.arch
    model = files.files_of_model(request.model, arch) if isinstance(request.model, Path) else []
    return [*model, *([request.images] if isinstance(request.images, Path) else [])]


def _profile(timed: profile.Profile, training: list[dict[str, Any]], device: Device) -> dict[str, Any]:
    from bcu_cli.training.throughput import measure_convolution_peak

    peak = resuming.once_written("the peak of a convolution", lambda: measure_convolution_peak(device), 0.0)
    return timed.as_json(training if peak else [], peak)


class _Cleansing:
    """One cleansing of a loaded model."""

    def __init__(
        self, request: CleanseRequest, loaded: Loaded, kind: type[Defense[Any]], device: Device
    ) -> None:
        from bcu_cli.checkpoints import check_suffix
        from bcu_cli.models.configs.config_beside import configs_for, refuse_other_configs
        from bcu_cli.report import document

        self.request = request
        self.loaded = loaded
        self.classes = loaded.classes
        self.kind = kind
        self.options = kind.Options() if request.options is None else request.options
        self.device = device
        self.format = _format(loaded, request.format)
        if request.out:
            check_suffix(request.out, self.format, _formats(loaded))
        needed = configs_for(loaded.architecture, loaded.preprocessing, self.format) if request.out else {}
        self.configs = needed
        if request.out:
            refuse_other_configs(request.out, self.configs)
        self.clock = document.Clock()

    def run(self) -> CleanseResult:
        """Decode the images, and cleanse with them."""
        from bcu_cli.images.stream import StreamedSet

        with profile.span(profile.DECODING):
            used, held_out = load(self.request, self.loaded, self.kind, self.options.seed, self.device)
        with closing(used.images) if isinstance(used, StreamedSet) else nullcontext():
            return self._cleanse(used, held_out)

    def _cleanse(self, used: ImageSet | StreamedSet | None, held_out: ImageSet | None) -> CleanseResult:
        """Run the defense, judge what will be written, write it, and report."""
        from bcu_cli.report import document
        from bcu_cli.training import ranks

        self.clock.lap("reading images")
        defense = self.kind(self.loaded.classifier, used, self.options, device=self.device, held_out=held_out)
        for doubt in defense.doubts():
            events.warn(doubt)
        profile.watch(defense.teacher, profile.TEACHER)
        images = self._about(used, held_out)
        in_force = document.options(defense.options)
        keeper = self._keeper(in_force, images)
        monitor = _AgreementMonitor(defense, held_out, self.device)
        stages = resuming.train(
            monitor.stages(),
            keeper,
            resume=self.request.resume,
            on_epoch=monitor.on_epoch,
            outlook=defense.outlook(),
        )
        self.clock.lap("cleansing")
        self._round(defense)
        after = monitor.agreement()
        judged = defense.verdict()
        wanted = self.request.force or judged is None or judged.good
        self.clock.lap("evaluation")
        report: dict[str, Any] = {
            "command": "cleanse",
            **document.environment(self.device),
            "method": self.kind.name,
            "paper": self.kind.paper,
            "options": in_force,
            "model": document.model(self.loaded),
            "classes": list(self.classes),
            "images": images,
            "details": defense.details(),
            "verdict": judged and asdict(judged),
            "agreement": monitor.as_json(after),
            "output": None,
        }
        with profile.span(profile.WRITING):
            if wanted and ranks.rank() == 0 and self.request.out:
                self._write(defense, self.request.out, report)
        report["files_read"] = self._files_read(report) if ranks.rank() == 0 else []
        if self.request.page:
            report["page"] = self._write_page(self.request.page, defense, held_out, report)
        if wanted and (ranks.rank() > 0 or report.get("page", True)):  # else --resume tries the page again
            resuming.once_written("removing the state of the run", keeper.remove, None)
        self.clock.lap("writing")
        with profile.span(profile.MEASURING):
            speed = resuming.speed_of(stages, self.device)
        if used and images:
            images |= document.streaming(used, speed)
            warn_of(used, images)
        self.clock.lap("measuring speed")
        report |= {
            "left_out": list(self.loaded.checkpoint.left_out),
            "omitted": [{"name": each.name, "why": each.why} for each in self._omitted()],
            "training": speed,
            "seconds": self.clock.seconds(),
            "peak_memory": document.peak_memory(self.device),
        }
        return CleanseResult(document=report, loaded=self._result(defense.student))

    def _files_read(self, report: dict[str, Any]) -> list[dict[str, Any]]:
        images = [self.request.images] if isinstance(self.request.images, Path) else []
        return files.files_read(
            [*files.files_read_of(report["model"], self.request.options_of_model.arch), *images]
        )

    def _write_page(
        self, page: Path, defense: Defense[Any], held_out: ImageSet | None, report: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Write the page on rank 0, and return its entry of the report; all ranks predict its images."""
        from bcu_cli.report import cleanse_page, document
        from bcu_cli.training import ranks
        from bcu_cli.workflows.cleanse_evidence import evidence

        def write() -> dict[str, Any] | None:
            shown = evidence(defense, held_out, self.device)
            if ranks.rank() > 0:
                return None
            return document.written(page, cleanse_page.write(report, shown, page))

        return resuming.once_written("the page", write, None)

    def _result(self, student: Classifier) -> Loaded:
        """The student with what is known of the original file, on the CPU."""
        from dataclasses import replace

        return replace(self.loaded, classifier=student.cpu().eval())

    def _about(self, used: ImageSet | StreamedSet | None, held_out: ImageSet | None) -> dict[str, Any] | None:
        """The report's entry on the images; None where the method needs none."""
        from bcu_cli.report import document

        if used is None:
            return None
        return document.images(
            used,
            held_out=len(held_out) if held_out else 0,
            labels=self._labels_from(),
            suitability=self._suitability(used),
        )

    def _keeper(self, in_force: dict[str, Any], images: dict[str, Any] | None) -> StateFile:
        """The state file of the run, which fits only these options, images and model."""
        from bcu_cli.checkpoints.resume import StateFile
        from bcu_cli.report import document
        from bcu_cli.training import ranks

        fingerprint = document.fingerprint(
            "cleanse",
            self.kind.name,
            in_force,
            self.loaded.architecture.name,
            asdict(self.loaded.preprocessing) | {"source": None},
            self.loaded.checkpoint.sha256,
            *self.loaded.checkpoint.nesting,
            images and images["sha256"],
            self.device.precision,
        )
        ranks.require_same(fingerprint, "options, images or a model")
        kept = self.request.out is not None and ranks.rank() == 0
        return StateFile(self.request.out or Path(os.devnull), fingerprint, writes=kept)

    def _omitted(self) -> tuple[Omission, ...]:
        """Entries of the original file that the result does not hold."""
        from bcu_cli.checkpoints.writing import lost_in

        checkpoint = self.loaded.checkpoint
        return checkpoint.omitted + lost_in(checkpoint, self.format)

    def _labels_from(self) -> str | None:
        if not self.kind.needs_labels:
            return None
        return "the model's predictions" if self.request.pseudo_labels else "class subfolders"

    def _suitability(self, used: ImageSet | StreamedSet) -> dict[str, Any]:
        """How the images suit the model, measured on a sample if they are streamed; warns of shortcomings."""
        from bcu_cli.evaluation.suitability import suitability
        from bcu_cli.images.folder import ImageSet
        from bcu_cli.images.stream import spread

        sample = used.images if isinstance(used, ImageSet) else spread(used.images)
        found = suitability(self.loaded.classifier, sample, self.device, classes=self.classes).as_json()
        for warning in found["warnings"]:
            events.warn(warning)
        return found

    def _round(self, defense: Defense[Any]) -> None:
        """Round the student to the types of its file, on every rank, so that the written values are judged.

        Raises:
            TrainingError: Weights or statistics are NaN or infinite after the training.
        """
        from bcu_cli.models.export import as_stored

        before = {name: tensor.clone() for name, tensor in defense.student.network.state_dict().items()}
        for name in as_stored(self.loaded, defense.student, self.format):
            kind = self.loaded.checkpoint.dtypes[name]
            events.warn(
                f"{name} has values beyond the range of {kind}; they are clipped to it before the verdict"
            )
        state = defense.student.network.state_dict()
        if any(not tensor.equal(before[name]) for name, tensor in state.items()):
            defense.measure_again()

    def _write(self, defense: Defense[Any], out: Path, report: dict[str, Any]) -> None:
        """Write the student in the form of the original file, what belongs beside it, and ``output``."""
        from bcu_cli.models.configs.config_beside import write_configs
        from bcu_cli.models.export import write_like
        from bcu_cli.report import card, document, provenance

        sha256 = write_like(self.loaded, defense.student, out, self.format)
        beside = write_configs(out, self.configs)
        if beside:
            events.say(f"beside {out.name}, which needs them: {', '.join(file.name for file in beside)}")
        _warn_of_omitted(out, self._omitted())
        written = document.written(out, sha256) | {"format": self.format.value}
        written["beside"] = [document.written(file, digest) for file, digest in beside.items()]
        report["output"] = written
        about = report | {"files_read": self._files_read(report)}
        more = [provenance.write(about)]
        if self.request.card:
            more.append(card.write(about, self._base_model()))
        written["beside"] += [document.written(file, digest) for file, digest in more]

    def _base_model(self) -> str | None:
        """Name of the original on the hub; None for a file."""
        from bcu_cli.checkpoints.hub import is_reference

        named = self.request.model
        if not isinstance(named, Path) or not is_reference(named):
            return None
        return str(named).removeprefix("hf-hub:").partition("@")[0]


class _AgreementMonitor:
    """Measures the agreement of student and original on the held-out images during the training."""

    def __init__(self, defense: Defense[Any], held_out: ImageSet | None, device: Device) -> None:
        from bcu_cli.training.inference import predict

        self.before: Proportion | None = None
        self._defense = defense
        self._device = device
        self._images: Tensor | None = held_out.images if held_out else None
        self._reference = predict(defense.teacher, held_out.images, device) if held_out else None
        self._stage: Stage | None = None

    def stages(self) -> Iterator[Stage]:
        """The stages of the defense; agreement is measured before the student's training, or at the start."""
        waiting = True
        for stage in self._defense.stages():
            self._stage = stage
            profile.watch(stage.training.model, profile.STUDENT)
            if self.before is None or (waiting and self._trains_student()):
                self.before = self.agreement()
                waiting = not self._trains_student()
            yield stage

    def agreement(self) -> Proportion | None:
        """Agreement of the current student; None without held-out images."""
        from bcu_cli.evaluation.measures import agreement

        if self._images is None or self._reference is None:
            return None
        return agreement(self._defense.student, self._reference, self._images, self._device)

    def as_json(self, after: Proportion | None) -> dict[str, Any] | None:
        """Agreement before the training and after it, for the report."""
        before = self.before.as_json() if self.before else None
        return {"before_training": before, "after": after.as_json()} if after else None

    def on_epoch(self, epoch: Epoch) -> str:
        """The note behind the progress bar."""
        if not self._trains_student() or epoch.number % max(1, epoch.of // _EPOCHS_WITH_AGREEMENT):
            return ""
        share = self.agreement()
        return f"agreement {percent(share.value)}" if share else ""

    def _trains_student(self) -> bool:
        return self._stage is not None and self._stage.training.model is self._defense.student


def _format(loaded: Loaded, name: str) -> Format:
    """The format to write: the requested one, else that of the original if it can be written.

    Raises:
        UsageError: Only the code or graph in the file defines the network, and the format has none.
    """
    from bcu_cli.checkpoints import Format

    original = loaded.checkpoint.format
    if _only_its_graph_runs(loaded):
        if name not in {"same", Format.TORCHSCRIPT}:
            what = "code" if original is Format.TORCHSCRIPT else "graph"
            message = f"only its {what} tells how to run {loaded.checkpoint.path}, and {name} has none"
            raise UsageError(message, "--format torchscript")
        return Format.TORCHSCRIPT
    if name != "same":
        return Format(name)
    return Format.SAFETENSORS if original in {Format.EXPORTED, Format.ONNX} else original


def _formats(loaded: Loaded) -> tuple[Format, ...]:
    """The formats that can be written of a model."""
    from bcu_cli.checkpoints import Format

    graph_alone = _only_its_graph_runs(loaded)
    return (Format.TORCHSCRIPT,) if graph_alone else tuple(map(Format, FORMATS[1:]))


def _only_its_graph_runs(loaded: Loaded) -> bool:
    """Whether only the code or graph in the file defines the network."""
    return loaded.architecture.name == loaded.checkpoint.format


def check(request: CleanseRequest) -> None:
    """Refuse an invalid request before any work.

    Raises:
        UsageError: The request is invalid.
    """
    from bcu_cli.defenses.base import find
    from bcu_cli.images.folder import FEWEST_IMAGES

    kind = find(request.method)
    if kind.needs_images and request.images is None:
        raise UsageError(f"--method {kind.name} needs images", "name a folder of them with --images")
    most = request.max_images
    if request.images is not None and most is not None and most < FEWEST_IMAGES:
        raise UsageError(f"--max-images {most} are too few to learn from", f"give it {FEWEST_IMAGES} or more")
    if request.format not in FORMATS:
        raise UsageError(f"there is no format {request.format}", f"--format takes {', '.join(FORMATS)}")


def _warn_of_unused_options(request: CleanseRequest, kind: type[Defense[Any]]) -> None:
    """Warn of options that have no effect on a method."""
    from bcu_cli.defenses.base import Defense

    no_images = request.max_images is not None and request.images is None
    idle = {
        "--force": request.force and kind.verdict is Defense.verdict and "it writes its result anyway",
        "--pseudo-labels": request.pseudo_labels and not kind.needs_labels and "it needs no labels",
        "--max-images": no_images and "there are no images",
    }
    if found := [f"{option} ({why})" for option, why in idle.items() if why]:
        events.warn(f"without effect on --method {kind.name}: {', '.join(found)}")


def _warn_of_omitted(out: Path, omitted: Sequence[Omission]) -> None:
    """Warn of entries of the original that the written file lacks, with the reasons."""
    by_reason: dict[str, list[str]] = {}
    for each in omitted:
        by_reason.setdefault(each.why, []).append(each.name)
    for why, names in by_reason.items():
        more = f" and {len(names) - _MOST_OMITTED} more" if len(names) > _MOST_OMITTED else ""
        events.warn(f"left out of {out}: {', '.join(names[:_MOST_OMITTED])}{more} ({why})")
