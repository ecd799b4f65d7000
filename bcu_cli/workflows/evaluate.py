"""Measure models on labelled images: clean accuracy (ACC), and with a trigger ASR and RA."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli.errors import BcuError, UsageError
from bcu_cli.report import files_read as files
from bcu_cli.report.text import text_table
from bcu_cli.workflows import evaluation_page, loading
from bcu_cli.workflows.evaluation_files import Files
from bcu_cli.workflows.evaluation_table import table
from bcu_cli.workflows.result import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from bcu_cli.evaluation.conditions import Condition
    from bcu_cli.evaluation.trigger_choice import TriggerChoice
    from bcu_cli.images.decoding.image import Geometry
    from bcu_cli.images.folder import ImageSet
    from bcu_cli.images.sources.given import GivenImages
    from bcu_cli.models import Loaded
    from bcu_cli.training.devices import Device
    from bcu_cli.workflows.measuring import Measured


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Request to measure models on labelled images.

    Attributes:
        models: Files, or models that are loaded.
        data: Labelled images: a value of ``--data``, or images in memory.
        triggers: The triggers to measure with; may be none.
        fail_if: Conditions under which the evaluation fails, like ``asr>0.05``.
        against: A model to compare predictions with; may be None.
        model: Options on reading the model files.
        outputs: The files to write besides the report.
        download: Whether to download a missing published data set.
        device: The device, as ``--device`` takes it.
    """

    models: tuple[Path | Loaded, ...]
    data: str | GivenImages
    triggers: TriggerChoice
    fail_if: tuple[str, ...] = ()
    against: Path | Loaded | None = None
    model: loading.ModelOptions = field(default_factory=loading.ModelOptions)
    outputs: Files = field(default_factory=Files)
    download: bool = False
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class EvaluateResult(Result):
    """Result of measuring models.

    Attributes:
        passed: Whether no condition of ``fail_if`` holds.
        failures: A line for each condition that holds.
        error: Why the models after the last one were not measured; None where all were.

    Example:
        >>> result = bcu.evaluate("model.safetensors", data="labelled/", fail_if=["acc<0.01"])
        >>> result.models[0]["acc"]["of"]
        40
        >>> result.to_json()["command"]
        'evaluate'
    """

    passed: bool
    failures: tuple[str, ...]
    error: BcuError | None

    @property
    def models(self) -> list[dict[str, Any]]:
        """The measures of each model: ``acc``, and with a trigger ``asr`` and ``ra``."""
        return list(self.document["models"])

    def table(self) -> str:
        """The measures as a table of text, one row for each model and trigger."""
        title, header, rows = table(self.models)
        return text_table(title, header, rows)


def evaluate(request: EvaluateRequest) -> EvaluateResult:
    """Measure models, write the requested files, and report.

    Raises:
        BcuError: The request makes no sense, a file cannot be read or written, or the first model cannot be
            measured.
    """
    from bcu_cli.evaluation import conditions as gating
    from bcu_cli.report import document
    from bcu_cli.training import devices

    _refuse_contradictions(request.triggers)
    conditions = _conditions(request)
    request.outputs.check(request.triggers, inputs=_inputs(request))
    clock = document.Clock()
    device = devices.choose(request.device, "fp32")
    reference = _loaded(request.against, request) if request.against else None
    measured, stopped = _measure_all(_Evaluation(request, reference, device), request.models, conditions)
    clock.lap("evaluation")
    entries = [one.entry for one in measured]
    gate = gating.judge(conditions, entries)
    report = {"command": "evaluate", **document.environment(device), "models": entries}
    if reference:
        report["against"] = document.model(reference)
    report["files_read"] = files.files_read(_files_read(request, report))
    if conditions:
        report["gate"] = gate
    if stopped:
        report["error"] = {"message": stopped.message, "hint": stopped.hint}
    report["outputs"] = request.outputs.write(report, measured)
    report |= {"seconds": clock.seconds(), "peak_memory": document.peak_memory(device)}
    return EvaluateResult(
        document=report,
        passed=gate["passed"],
        failures=tuple(evaluation_page.verdict(gate)),
        error=stopped,
    )


class _Evaluation:
    """The request, and the images as the last model takes them."""

    def __init__(self, request: EvaluateRequest, reference: Loaded | None, device: Device) -> None:
        self._request = request
        self._reference = reference
        self._device = device
        self._preview = request.outputs.preview
        self._images: ImageSet | None = None
        self._taken_as: Any = None

    def measure(self, model: Path | Loaded) -> Measured:
        """Measure one model."""
        from bcu_cli.report import trigger_sheet
        from bcu_cli.workflows import measuring

        loaded = _loaded(model, self._request)
        classifier = loaded.classifier
        shape, number = classifier.preprocessing.input_size, classifier.num_classes
        chosen = self._request.triggers.find(loaded.checkpoint.path, shape, number)
        if self._reference:
            measuring.refuse_incomparable(loaded, self._reference)
        data = self._images_for(loaded)
        if self._preview:
            trigger_sheet.write_sheet(chosen[0].trigger, data.images, self._preview)
            self._preview = None  # the other models are shown the same trigger
        features = self._request.outputs.tsne is not None
        compared = self._compared(loaded, data)
        return measuring.measure(loaded, data, chosen, compared, self._device, with_features=features)

    def _images_for(self, loaded: Loaded) -> ImageSet:
        """The images for a model; decoded again only if size or classes differ from those of the last."""
        taken_as = (loaded.preprocessing.geometry, loaded.classes, loaded.classifier.num_classes)
        if self._images is None or self._taken_as != taken_as:
            self._images, self._taken_as = self._decoded(loaded, loaded.preprocessing.geometry), taken_as
        return self._images

    def _compared(self, loaded: Loaded, data: ImageSet) -> tuple[Loaded, Tensor] | None:
        """The reference and the images as it takes them; they may be cropped or resized otherwise."""
        if self._reference is None:
            return None
        geometry = self._reference.preprocessing.geometry
        alike = geometry == loaded.preprocessing.geometry
        return self._reference, (data if alike else self._decoded(loaded, geometry)).images

    def _decoded(self, loaded: Loaded, geometry: Geometry) -> ImageSet:
        """The labelled images for the classes of a model."""
        data = loading.load_to_measure(
            self._request.data,
            geometry,
            loaded.classes,
            certain=loaded.names_are_certain,
            download=self._request.download,
        )
        loading.refuse_other_classes(data, loaded.classifier.num_classes)
        return data


def _loaded(model: Path | Loaded, request: EvaluateRequest) -> Loaded:
    if not isinstance(model, Path):
        return model
    return loading.load_model(model, request.model, pictures=request.data, download=request.download)


def _refuse_contradictions(wanted: TriggerChoice) -> None:
    if wanted.name and wanted.own.picture:
        raise UsageError("--trigger and --trigger-image are two triggers", "give one of them")
    own = wanted.own
    if (own.mask or own.mode != "replace" or own.alpha is not None) and not own.picture:
        raise UsageError(
            "--trigger-mask, --trigger-mode and --alpha need --trigger-image", "give the image too"
        )
    if own.picture and own.mode == "replace" and own.alpha is not None:
        raise UsageError("--alpha is the strength of add and blend", "give --trigger-mode blend, or add")
    if own.picture and own.mode == "replace" and not own.mask:
        raise UsageError(
            f"{own.picture} would replace the whole of each image",
            "say with --trigger-mask where the trigger is (white), or give --trigger-mode blend, or add",
        )
    if wanted.target_said and not wanted:
        raise UsageError("--target-class is the target of a trigger", "give --trigger or --trigger-image too")


def _conditions(request: EvaluateRequest) -> list[Condition]:
    """The conditions of ``fail_if``, each on a measure that the report will have."""
    from bcu_cli.evaluation import conditions as gating

    there = {"acc", "worst_class_acc"}
    there |= {"asr", "ra"} if request.triggers else set()
    there |= {"agreement"} if request.against else set()
    conditions = [gating.parse(text) for text in request.fail_if]
    gating.refuse_unmeasured(conditions, there)
    return conditions


def _inputs(request: EvaluateRequest) -> list[Path]:
    """All files that may be read, existing or not; none of them may be written."""
    wanted, arch = request.triggers, request.model.arch
    named = [*request.models, request.against, wanted.own.picture, wanted.own.mask]
    named.append(Path(wanted.name) if wanted.name else None)
    paths = [path for path in named if isinstance(path, Path)]
    data = files.places_of_data(request.data) if isinstance(request.data, str) else []
    return [*(file for path in paths for file in files.files_of_model(path, arch)), *data]


def _files_read(request: EvaluateRequest, report: dict[str, Any]) -> list[Path]:
    """The files that were read for the models of a report, their triggers, and the data."""
    models = [entry["model"] for entry in report["models"]]
    models += [report["against"]] if "against" in report else []
    of_models = [file for model in models for file in files.files_read_of(model, request.model.arch)]
    paths = [model for model in request.models if isinstance(model, Path)]
    beside = [file for path in paths for file in request.triggers.files(path)]
    return [*of_models, *beside, *(files.of_data(request.data) if isinstance(request.data, str) else [])]


def _measure_all(
    run: _Evaluation, models: Sequence[Path | Loaded], conditions: Sequence[Condition]
) -> tuple[list[Measured], BcuError | None]:
    """Measure the models in order; an error is raised unless a condition holds for an earlier model."""
    from bcu_cli.evaluation import conditions as gating

    measured: list[Measured] = []
    for model in models:
        try:
            measured.append(run.measure(model))
        except BcuError as error:
            if gating.judge(conditions, [one.entry for one in measured])["passed"]:
                raise
            return measured, error
    return measured, None
