"""``bcu evaluate``: what models answer to labelled pictures, clean and triggered, and if that will do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcu_cli import triggers
from bcu_cli.cli import evaluation_output, output, running
from bcu_cli.cli.evaluation_files import Files
from bcu_cli.cli.exit_codes import BAD
from bcu_cli.cli.options import Arch, Data, DeviceName, Download, InputSize, Json, Mean, Std, WeightsKey
from bcu_cli.cli.trigger_choice import Own, TriggerChoice, parse_target
from bcu_cli.errors import BcuError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bcu_cli.cli.measuring import Measured
    from bcu_cli.evaluation.conditions import Condition
    from bcu_cli.images.folder import ImageSet
    from bcu_cli.models import Loaded
    from bcu_cli.training.devices import Device

_OWN = "A trigger of your own"
_OUT = "What becomes of it"


def evaluate(
    models: Annotated[list[Path], typer.Argument(help="One model or several to compare.")],
    data: Data,
    trigger: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(triggers.names())}; a .trigger.safetensors that bcu attack wrote; "
            "or all: every one that has a name (but iab, which is learnt), and the file beside the model."
        ),
    ] = None,
    target_class: Annotated[
        str | None,
        typer.Option(
            help="Index of the attack's target; next: the class after the true one; all: every class, "
            "and the worst of them is shown. (default: the trigger file's, else all)"
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="A model to compare the answers with: the original of a cleansed one, say."),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            help="Exit 1 where this holds for any model and trigger, like asr>0.05 or acc<0.9; also ra, "
            "agreement, worst_class_acc. Can be repeated.",
            rich_help_panel=_OUT,
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(help="Write a page of it: .html, or .png (needs matplotlib).", rich_help_panel=_OUT),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(help="Write a PNG of some pictures with and without the trigger.", rich_help_panel=_OUT),
    ] = None,
    tsne: Annotated[
        Path | None,
        typer.Option(
            help="Write a PNG of the features in front of the last layer, a panel for each model, in two "
            "dimensions by t-SNE (needs scikit-learn and matplotlib).",
            rich_help_panel=_OUT,
        ),
    ] = None,
    trigger_image: Annotated[
        Path | None, typer.Option(help="A picture that is laid over each image.", rich_help_panel=_OWN)
    ] = None,
    trigger_mask: Annotated[
        Path | None, typer.Option(help="Where it acts: white yes, black no.", rich_help_panel=_OWN)
    ] = None,
    trigger_mode: Annotated[
        str, typer.Option(help="replace, add or blend.", rich_help_panel=_OWN)
    ] = "replace",
    alpha: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Strength of add and blend. (default: 0.2)", rich_help_panel=_OWN
        ),
    ] = None,
    download: Download = False,
    arch: Arch = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    weights_key: WeightsKey = None,
    device: DeviceName = "auto",
    as_json: Json = False,
) -> None:
    """Measure models on labelled pictures: clean accuracy (ACC), and with a trigger ASR and RA.

    ASR, the attack success rate, and RA, the robust accuracy, leave out the images of the target class.
    """
    from bcu_cli.evaluation import conditions as gating
    from bcu_cli.report import document
    from bcu_cli.report.files_read import files_read, of_data
    from bcu_cli.training import devices

    own = Own(picture=trigger_image, mask=trigger_mask, mode=trigger_mode, alpha=alpha)
    wanted = TriggerChoice(
        name=trigger, target_class=parse_target(target_class), target_said=target_class is not None, own=own
    )
    _refuse_contradictions(wanted)
    conditions = _conditions(fail_if or [], wanted, against)
    files = (*models, against, trigger_image, trigger_mask, Path(trigger) if trigger else None)
    outputs = Files(page=page, preview=preview, tsne=tsne)
    read = [file for path in files if path for file in running.files_of_model(path, arch)]
    outputs.check(wanted, inputs=[*read, *running.places_of_data(data)])

    clock = document.Clock()
    said = running.ModelOptions(arch=arch, input_size=input_size, mean=mean, std=std, weights_key=weights_key)
    chosen = devices.choose(device, "fp32")
    reference = running.load_model(against, said, pictures=data, download=download) if against else None
    run = _Evaluation(
        data=data,
        download=download,
        said=said,
        wanted=wanted,
        reference=reference,
        device=chosen,
        outputs=outputs,
    )
    measured, stopped = _measure_all(run, models, conditions)
    clock.lap("evaluation")
    entries = [one.entry for one in measured]
    gate = gating.judge(conditions, entries)
    report = {"command": "evaluate", **document.environment(chosen), "models": entries}
    used = [entry["model"] for entry in entries]
    if reference:
        report["against"] = document.model(reference)
        used.append(report["against"])
    of_models = [file for model in used for file in running.files_read_of(model, arch)]
    beside = [file for model in models for file in wanted.files(model)]
    report["files_read"] = files_read([*of_models, *beside, *of_data(data)])
    if conditions:
        report["gate"] = gate
    if stopped:
        report["error"] = {"message": stopped.message, "hint": stopped.hint}
    report["outputs"] = outputs.write(report, measured)
    report |= {"seconds": clock.seconds(), "peak_memory": document.peak_memory(chosen)}
    if as_json:
        output.document(report)
    else:
        evaluation_output.show(entries)
    for line in evaluation_output.verdict(gate):
        output.say(line)
    if stopped:
        output.fail(stopped.message, stopped.hint)
    if not gate["passed"]:
        raise typer.Exit(BAD)


class _Evaluation:
    """What is the same for all models, and the pictures as the last one takes them."""

    def __init__(
        self,
        *,
        data: str,
        download: bool,
        said: running.ModelOptions,
        wanted: TriggerChoice,
        reference: Loaded | None,
        device: Device,
        outputs: Files,
    ) -> None:
        self.data = data
        self.download = download
        self.said = said
        self.wanted = wanted
        self.reference = reference
        self.device = device
        self._preview = outputs.preview
        self._with_features = outputs.tsne is not None
        self._pictures_taken: ImageSet | None = None
        self._taken_as: Any = None

    def measure(self, path: Path) -> Measured:
        """Everything about one model."""
        from bcu_cli.cli import measuring
        from bcu_cli.report import pictures

        loaded = running.load_model(path, self.said, pictures=self.data, download=self.download)
        model = loaded.classifier
        chosen = self.wanted.find(path, model.preprocessing.input_size, model.num_classes)
        if self.reference:
            measuring.refuse_incomparable(loaded, self.reference)
        data = self._pictures(loaded)
        if self._preview:
            pictures.write_sheet(chosen[0].trigger, data.images, self._preview)
            self._preview = None  # the other models are shown the same trigger
        return measuring.measure(
            loaded, data, chosen, self.reference, self.device, with_features=self._with_features
        )

    def _pictures(self, loaded: Loaded) -> ImageSet:
        """The pictures for a model; decoded again only where it takes them otherwise than the last one."""
        from bcu_cli.models.metadata import class_names

        names = class_names(loaded.checkpoint.metadata, loaded.classifier.num_classes)
        taken_as = (
            running.geometry_of(loaded.classifier.preprocessing),
            names,
            loaded.classifier.num_classes,
        )
        if self._pictures_taken is None or taken_as != self._taken_as:
            self._pictures_taken, self._taken_as = self._load(loaded, names), taken_as
        return self._pictures_taken

    def _load(self, loaded: Loaded, names: tuple[str, ...]) -> ImageSet:
        """The labelled pictures, of as many classes as the model has or of classes that it names."""
        geometry = running.geometry_of(loaded.classifier.preprocessing)
        data = running.load_to_measure(self.data, geometry, names, download=self.download)
        running.refuse_other_classes(data, loaded.classifier.num_classes)
        return data


def _refuse_contradictions(wanted: TriggerChoice) -> None:
    if wanted.name and wanted.own.picture:
        raise UsageError("--trigger and --trigger-image are two triggers", "give one of them")
    own = wanted.own
    if (own.mask or own.mode != "replace" or own.alpha is not None) and not own.picture:
        raise UsageError(
            "--trigger-mask, --trigger-mode and --alpha need --trigger-image", "give the picture too"
        )
    if wanted.target_said and not wanted:
        raise UsageError("--target-class is the target of a trigger", "give --trigger or --trigger-image too")


def _conditions(texts: Sequence[str], wanted: TriggerChoice, against: Path | None) -> list[Condition]:
    """What ``--fail-if`` says, of measures that will be there."""
    from bcu_cli.evaluation import conditions as gating

    there = {"acc", "worst_class_acc"}
    there |= {"asr", "ra"} if wanted else set()
    there |= {"agreement"} if against else set()
    conditions = [gating.parse(text) for text in texts]
    gating.refuse_unmeasured(conditions, there)
    return conditions


def _measure_all(
    run: _Evaluation, models: Sequence[Path], conditions: Sequence[Condition]
) -> tuple[list[Measured], BcuError | None]:
    """Measure model after model; an error ends it, unless the verdict on those before it is bad already."""
    from bcu_cli.evaluation import conditions as gating

    measured: list[Measured] = []
    for path in models:
        try:
            measured.append(run.measure(path))
        except BcuError as error:
            if gating.judge(conditions, [one.entry for one in measured])["passed"]:
                raise
            return measured, error
    return measured, None
