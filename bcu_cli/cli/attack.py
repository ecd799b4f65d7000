"""``bcu attack``: train a backdoored network, to test defenses on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcu_cli import attacks
from bcu_cli.cli import output
from bcu_cli.cli.options import (
    Data,
    DeviceName,
    Download,
    InputSize,
    Json,
    Precision,
    Resume,
    Seed,
    settings_of,
)
from bcu_cli.errors import UsageError
from bcu_cli.evaluation.trigger_choice import trigger_beside
from bcu_cli.report import files_read as files
from bcu_cli.runs import resuming
from bcu_cli.workflows import loading

if TYPE_CHECKING:
    from bcu_cli.attacks.base import Attack, AttackOptions
    from bcu_cli.images.folder import ImageSet
    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device
    from bcu_cli.triggers.base import Target, Trigger

_TRAINING = "How it is trained"
_ZOO = "A zoo (attack all)"
_SCHEDULES = ("one-cycle", "cosine", "steps")


def attack(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help=f"One of {', '.join(attacks.names())}; none, for a clean network; or all, for a zoo.",
            metavar="ATTACK",
        ),
    ],
    data: Data,
    out: Annotated[
        Path,
        typer.Option(
            help="The safetensors file to write; the trigger is written beside it. Of a zoo, the folder."
        ),
    ],
    arch: Annotated[
        str, typer.Option(help="A name of bcu, timm or torchvision, or FILE.py:FUNCTION for your own.")
    ] = "resnet18_cifar",
    download: Download = False,
    input_size: InputSize = None,
    target_class: Annotated[
        str,
        typer.Option(
            help="Index of the class that triggers lead to; or next: each class to the one after it."
        ),
    ] = "0",
    poison_rate: Annotated[
        float | None,
        typer.Option(
            help="Share of the training images that are triggered; sig and lc: of the target class's. "
            "(default: 0.1; sig, lc: 0.8)"
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            help="A setting of the trigger, NAME=NUMBER, or of one attack's, ATTACK.NAME=NUMBER; repeatable."
        ),
    ] = None,
    surrogate: Annotated[
        Path | None,
        typer.Option(help="lc: a model of these classes to perturb images with. (default: one is trained)"),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(help="A PNG to write: pictures clean, triggered, and their difference times 10."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, rich_help_panel=_TRAINING)] = 30,
    batch_size: Annotated[int, typer.Option(min=2, rich_help_panel=_TRAINING)] = 128,
    learning_rate: Annotated[float, typer.Option(min=0.0, rich_help_panel=_TRAINING)] = 0.1,
    schedule: Annotated[
        str,
        typer.Option(
            help="one-cycle, cosine, or steps: a tenth after 1/2 and 3/4, as the paper.",
            rich_help_panel=_TRAINING,
        ),
    ] = "one-cycle",
    ema: Annotated[
        float | None,
        typer.Option(
            help="Keep a moving average of the weights, of this decay, in their place.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    flip: Annotated[
        bool,
        typer.Option(
            help="Train on mirror images too: photos yes, traffic signs no.", rich_help_panel=_TRAINING
        ),
    ] = False,
    crop_padding: Annotated[
        int | None,
        typer.Option(
            min=0, help="Pixels of the random crop. (default: 4; wanet: 5)", rich_help_panel=_TRAINING
        ),
    ] = None,
    rotation: Annotated[
        float | None,
        typer.Option(
            help="Most degrees that half of the pictures are turned. (default: 0; wanet: 10)",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    cutout: Annotated[
        int,
        typer.Option(min=0, help="Side of a square that is blanked, in pixels.", rich_help_panel=_TRAINING),
    ] = 0,
    seed: Seed = 0,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    resume: Resume = False,
    as_json: Json = False,
    seeds: Annotated[
        str | None, typer.Option(help="Like 0-4 or 0,3,7; 0 if not given.", rich_help_panel=_ZOO)
    ] = None,
    targets: Annotated[
        str | None, typer.Option(help="Target classes, like 0-9; 0 if not given.", rich_help_panel=_ZOO)
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="These attacks, like badnets,sig.", rich_help_panel=_ZOO)
    ] = None,
    jobs: Annotated[
        str | None,
        typer.Option(
            help="Models at a time; auto is one a core, and on a GPU one (more are not measured).",
            rich_help_panel=_ZOO,
        ),
    ] = None,
) -> None:
    """Train a backdoored network on labelled pictures, and measure its ACC and ASR.

    They are measured on the test folder, or on a tenth of the pictures that is held out. A zoo (all) is every
    attack on every target class with every seed, beside a clean model of each seed; the same command again
    trains what is missing or damaged.
    """
    from bcu_cli.cli import zoo

    of_zoo = zoo.ZooOptions(seeds=seeds, targets=targets, only=only, jobs=jobs)
    if name == "all":
        zoo.train_all(context, of_zoo, data=data, out=out)
    of_zoo.refuse()

    from bcu_cli.attacks.base import AttackOptions, find
    from bcu_cli.training import devices

    kind = find(name)
    if surrogate and not kind.needs_surrogate:
        raise UsageError(f"{name} needs no surrogate", "--surrogate is for lc")
    if kind.trigger_name is None and (preview or setting or poison_rate is not None):
        raise UsageError("a clean network has no trigger", "leave --preview, --setting and --poison-rate out")
    if preview and (preview.suffix != ".png" or preview.resolve() == out.resolve()):
        raise UsageError(f"--preview {preview} is no .png of its own", "name another file, ending in .png")
    views = kind.augmentation
    training = replace(
        AttackOptions().training,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=_schedule(schedule),
        ema=ema,
        augmentation=replace(
            views,
            flip=flip,
            cutout=cutout,
            crop_padding=views.crop_padding if crop_padding is None else crop_padding,
            rotation=views.rotation if rotation is None else rotation,
        ),
    )
    options = AttackOptions(
        target_class=_target(target_class),
        poison_rate=kind.poison_rate if poison_rate is None else poison_rate,
        training=training,
        seed=seed,
    )
    where = Where(data=data, download=download, arch=arch, out=out, surrogate=surrogate, preview=preview)
    run = Attacking(kind, options, where, devices.choose(device, precision))
    settings = settings_of(name, setting, kind="attack", owners=attacks.names(), like="sig.delta=60")
    report = run.run(input_size, settings, resume=resume)
    if as_json:
        output.document(report)
    else:
        _show(report)


def _target(text: str) -> Target:
    if text == "next":
        return "next"
    if not text.isdecimal():
        raise UsageError(f"--target-class {text} is neither a class index nor next", "--target-class 0")
    return int(text)


def _schedule(text: str) -> Any:
    if text not in _SCHEDULES:
        raise UsageError(f"there is no schedule {text}", f"--schedule takes {', '.join(_SCHEDULES)}")
    return text


@dataclass(frozen=True, kw_only=True)
class Where:
    """What is read and written."""

    data: str
    download: bool
    arch: str
    out: Path
    surrogate: Path | None
    preview: Path | None

    @property
    def trigger(self) -> Path:
        """The file of the trigger, beside the model's."""
        return trigger_beside(self.out)

    @property
    def inputs(self) -> list[Path]:
        """What may be read: pictures, a surrogate, and the file of an architecture."""
        return [*files.places_of_data(self.data), *self.own_files]

    @property
    def own_files(self) -> list[Path]:
        """What may be read besides pictures: a surrogate, and the file of an architecture."""
        own = [Path(self.arch.rpartition(":")[0])] if ":" in self.arch else []
        surrogate = files.files_of_model(self.surrogate) if self.surrogate else []
        return [*surrogate, *own]


class Attacking:
    """One attack from the pictures to the report."""

    def __init__(self, kind: type[Attack], options: AttackOptions, where: Where, device: Device) -> None:
        from bcu_cli.report import document

        self.kind = kind
        self.options = options
        self.where = where
        self.device = device
        self.clock = document.Clock()

    def run(self, input_size: int | None, settings: dict[str, float], *, resume: bool) -> dict[str, Any]:
        """Train, measure, write, and report."""
        from bcu_cli.models.fresh import usual_size

        shape = usual_size(self.where.arch, input_size)
        trigger = self._trigger(shape, settings)
        self._check_outputs()
        with resuming.writing(self.where.out, inputs=self.where.inputs):
            return self._run(shape, trigger, resume=resume)

    def _run(self, shape: tuple[int, int, int], trigger: Trigger | None, *, resume: bool) -> dict[str, Any]:
        from bcu_cli.checkpoints import sha256_of
        from bcu_cli.checkpoints.resume import StateFile
        from bcu_cli.models.fresh import fresh
        from bcu_cli.report import document
        from bcu_cli.report.files_read import files_read, of_data

        where, options = self.where, self.options
        train_set, test_set = loading.load_to_train(
            where.data, shape, seed=options.seed, download=where.download
        )
        model = fresh(where.arch, len(train_set.classes), train_set.images, seed=options.seed)
        surrogate = self._surrogate(model)
        attacking = self.kind(model, train_set, trigger, options, device=self.device, surrogate=surrogate)
        self.clock.lap("reading images")

        images = document.images(train_set, poisoned=attacking.poisoned, measured_on=len(test_set))
        described = {"name": trigger.name, "settings": trigger.settings()} if trigger else None
        in_force = {"attack": self.kind.name, "arch": where.arch, **document.options(options)}
        surrogate_file = where.surrogate and {
            "path": str(where.surrogate),
            "sha256": sha256_of(where.surrogate),
        }
        decides = (
            in_force,
            images,
            described,
            surrogate_file,
            self.device.precision,
        )
        keeper = StateFile(where.out, document.fingerprint("attack", *decides))
        stages = resuming.train(attacking.stages(), keeper, resume=resume)
        self.clock.lap("training")
        measures = self._measure(model, test_set, trigger)
        self.clock.lap("evaluation")
        outputs = self._write(model, train_set, trigger, test_set)
        resuming.once_written("removing the state of the run", keeper.remove, None)
        self.clock.lap("writing")
        speed = resuming.speed_of(stages, self.device)
        self.clock.lap("measuring speed")
        return {
            "command": "attack",
            **document.environment(self.device),
            "options": in_force,
            "trigger": described,
            "surrogate": surrogate_file,
            "images": images,
            "files_read": files_read([*of_data(where.data), *where.own_files]),
            "classes": list(train_set.classes),
            **measures,
            "outputs": outputs,
            "training": speed,
            "seconds": self.clock.seconds(),
            "peak_memory": document.peak_memory(self.device),
        }

    def _trigger(self, shape: tuple[int, int, int], settings: dict[str, float]) -> Trigger | None:
        from bcu_cli.triggers import base

        if self.kind.trigger_name is None:
            return None
        return base.make(self.kind.trigger_name, shape, seed=self.options.seed, settings=settings)

    def _check_outputs(self) -> None:
        from bcu_cli.checkpoints import check_writable

        for path in (self.where.trigger, self.where.preview):
            if path:
                check_writable(path, inputs=self.where.inputs)

    def _surrogate(self, model: Classifier) -> Classifier | None:
        """The user's own, brought to the model's images."""
        path = self.where.surrogate
        if path is None:
            return None
        said = loading.ModelOptions()
        found = loading.load_model(
            path, said, pictures=self.where.data, download=self.where.download
        ).classifier
        if (found.num_classes, found.preprocessing.input_size) != (
            model.num_classes,
            model.preprocessing.input_size,
        ):
            raise UsageError(
                f"the surrogate {path} is not made for these classes and this size of images",
                f"it needs {model.num_classes} classes and images of {model.preprocessing.input_size}",
            )
        return found

    def _measure(self, model: Classifier, test_set: ImageSet, trigger: Trigger | None) -> dict[str, Any]:
        from bcu_cli.evaluation.measures import accuracy, attack_success

        measures = {"acc": accuracy(model, test_set, self.device).as_json()}
        if trigger:
            success = attack_success(model, test_set, trigger, self.options.target_class, self.device)
            measures |= {"asr": success.asr.as_json(), "ra": success.ra.as_json()}
        return measures

    def _write(
        self, model: Classifier, train_set: ImageSet, trigger: Trigger | None, test_set: ImageSet
    ) -> dict[str, Any]:
        """Write the model and, where there is one, its trigger and the pictures of it."""
        from bcu_cli.checkpoints import Format, write
        from bcu_cli.models import Architecture, metadata_for
        from bcu_cli.report import document, pictures
        from bcu_cli.triggers.base import Implanted, save

        where, shape = self.where, model.preprocessing.input_size
        architecture = Architecture(name=where.arch, source="--arch", num_classes=model.num_classes)
        metadata = metadata_for(architecture, model.preprocessing, train_set.classes)
        weights = {key: value.cpu() for key, value in model.network.state_dict().items()}
        sha256 = write(where.out, weights, format=Format.SAFETENSORS, metadata=metadata)
        outputs = {"model": document.written(where.out, sha256)}
        if trigger:
            target, classes = self.options.target_class, model.num_classes
            implanted = Implanted(trigger=trigger, target_class=target, num_classes=classes)
            outputs["trigger"] = document.written(where.trigger, save(implanted, where.trigger, shape))
            if where.preview:
                sha256 = pictures.write_sheet(trigger, test_set.images, where.preview)
                outputs["preview"] = document.written(where.preview, sha256)
        return outputs


def _show(report: dict[str, Any]) -> None:
    images, outputs = report["images"], report["outputs"]
    facts = [("model", outputs["model"]["path"]), ("ACC", output.measure(report["acc"]))]
    if report["trigger"]:
        facts[1:1] = [
            ("trigger", outputs["trigger"]["path"]),
            ("poisoned", f"{images['poisoned']} of {images['used']} training images"),
        ]
        facts.append(("ASR", output.measure(report["asr"])))
    output.facts([*facts, *output.speed(report)])
