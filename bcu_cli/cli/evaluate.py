"""``bcu evaluate``: clean accuracy, attack success rate and robust accuracy on labelled pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcu_cli import triggers
from bcu_cli.cli import output, running
from bcu_cli.cli.options import Arch, Data, DeviceName, Download, InputSize, Json, Mean, Std
from bcu_cli.errors import ImagesError, TriggerError, UsageError

if TYPE_CHECKING:
    from bcu_cli.images.folder import ImageSet
    from bcu_cli.models import Loaded
    from bcu_cli.training.devices import Device
    from bcu_cli.triggers.base import Target, Trigger

_OWN = "A trigger of your own"


def evaluate(
    models: Annotated[list[Path], typer.Argument(help="One model or several to compare.")],
    data: Data,
    trigger: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(triggers.names())}, or a .trigger.safetensors that bcu attack wrote."),
    ] = None,
    target_class: Annotated[
        int | None,
        typer.Option(
            min=0, help="Index of the attack's target. [default: the trigger file's, else the worst of all]"
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
        float, typer.Option(min=0.0, max=1.0, help="Strength of add and blend.", rich_help_panel=_OWN)
    ] = 0.2,
    download: Download = False,
    arch: Arch = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    device: DeviceName = "auto",
    as_json: Json = False,
) -> None:
    """Measure models on labelled pictures: clean accuracy (ACC), and with a trigger ASR and RA.

    ASR, the attack success rate, and RA, the robust accuracy, leave out the images of the target class.
    """
    from bcu_cli.report import document
    from bcu_cli.training import devices

    if trigger and trigger_image:
        raise UsageError("--trigger and --trigger-image are two triggers", "give one of them")
    if (trigger_mask or trigger_mode != "replace") and not trigger_image:
        raise UsageError("--trigger-mask and --trigger-mode need --trigger-image", "give the picture too")
    chosen = devices.choose(device, "fp32")
    clock = document.Clock()
    said = running.ModelOptions(arch=arch, input_size=input_size, mean=mean, std=std)
    own = _Own(picture=trigger_image, mask=trigger_mask, mode=trigger_mode, alpha=alpha)
    wanted = _Wanted(name=trigger, target_class=target_class, own=own)
    rows = [_measure(path, data, said, wanted, chosen, download=download) for path in models]
    clock.lap("evaluation")
    if as_json:
        output.document(
            {
                "command": "evaluate",
                **document.environment(chosen),
                "models": rows,
                "seconds": clock.seconds(),
                "peak_memory": document.peak_memory(chosen),
            }
        )
    else:
        _show(rows)


@dataclass(frozen=True, kw_only=True)
class _Own:
    """A trigger of the user's own, from pictures."""

    picture: Path | None
    mask: Path | None
    mode: str
    alpha: float


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """The trigger that the user asks for, if any, and its target."""

    name: str | None
    target_class: int | None
    own: _Own

    def find(self, shape: tuple[int, int, int]) -> tuple[Trigger, Target | None] | None:
        """The trigger for images of ``shape``, and its target class; None where none was asked for."""
        from bcu_cli.triggers import base
        from bcu_cli.triggers.custom import Custom

        if self.own.picture:
            mode, alpha = self.own.mode, self.own.alpha
            trigger = Custom.from_files(self.own.picture, shape, mask=self.own.mask, mode=mode, alpha=alpha)
            return trigger, self.target_class
        if self.name is None:
            return None
        if self.name in triggers.names():
            return base.make(self.name, shape), self.target_class
        if not Path(self.name).is_file():
            raise TriggerError(
                f"{self.name} is neither a trigger nor a file",
                f"--trigger takes {', '.join(triggers.names())}, or a file that bcu attack wrote",
            )
        implanted = base.load(Path(self.name), shape)
        return implanted.trigger, implanted.target_class if self.target_class is None else self.target_class


def _measure(
    path: Path,
    spec: str,
    said: running.ModelOptions,
    wanted: _Wanted,
    device: Device,
    *,
    download: bool,
) -> dict[str, Any]:
    """Everything about one model."""
    from bcu_cli.evaluation.measures import accuracy, attack_success
    from bcu_cli.models.metadata import class_names
    from bcu_cli.report import document

    loaded = running.load_model(path, said, pictures=spec, download=download)
    model = loaded.classifier
    if wanted.target_class is not None and wanted.target_class >= model.num_classes:
        raise UsageError(
            f"{path.name} has no class {wanted.target_class}",
            f"--target-class takes 0 to {model.num_classes - 1}",
        )
    trigger = wanted.find(model.preprocessing.input_size)
    names = class_names(loaded.checkpoint.metadata, model.num_classes)
    data = _load(spec, loaded, names, download=download)
    row: dict[str, Any] = {
        "model": document.model(loaded),
        "images": document.images(data),
        "acc": accuracy(model, data, device).as_json(),
    }
    if trigger:
        success = attack_success(model, data, *trigger, device)
        row["trigger"] = {
            "name": trigger[0].name,
            "settings": trigger[0].settings(),
            "target_class": success.target_class,
            "target_class_given": trigger[1] is not None,
            "target_name": _name(success.target_class, data.classes),
        }
        row |= {"asr": success.asr.as_json(), "ra": success.ra.as_json()}
    return row


def _name(target: Target, classes: tuple[str, ...]) -> str:
    return "the class after the true one" if target == "next" else classes[target]


def _load(spec: str, loaded: Loaded, names: tuple[str, ...], *, download: bool) -> ImageSet:
    """The labelled pictures, of as many classes as the model has or of classes that it names."""
    count = loaded.classifier.num_classes
    geometry = running.geometry_of(loaded.classifier.preprocessing)
    data = running.load_to_measure(spec, geometry, names, download=download)
    if len(data.classes) != count:
        raise ImagesError(
            f"{data.root} has {len(data.classes)} classes, the model has {count} classes",
            "which is which cannot be told; keep a subfolder for every class, empty ones too",
        )
    return data


def _show(rows: list[dict[str, Any]]) -> None:
    with_trigger = "asr" in rows[0]
    header = ["model", "ACC (95 % interval)"]
    header += ["ASR (95 % interval)", "RA", "target", "images"] if with_trigger else ["images"]
    lines = []
    for row in rows:
        line = [Path(row["model"]["path"]).name, _with_interval(row["acc"])]
        if with_trigger:
            trigger = row["trigger"]
            worst = "" if trigger["target_class_given"] else ", worst of all"
            line += [
                _with_interval(row["asr"]),
                output.percent(row["ra"]["value"]),
                f"{trigger['target_class']} ({trigger['target_name']}){worst}",
                f"{row['acc']['of']}, {row['asr']['of']} of them triggered",
            ]
        else:
            line.append(str(row["acc"]["of"]))
        lines.append(line)
    trigger_name = f", trigger {rows[0]['trigger']['name']}" if with_trigger else ""
    output.table(f"{rows[0]['images']['path']}{trigger_name}", header, lines)


def _with_interval(share: dict[str, Any]) -> str:
    low, high = share["interval95"]
    return f"{output.percent(share['value'])} ({100 * low:.2f} to {100 * high:.2f})"
