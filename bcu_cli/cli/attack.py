"""``bcu attack``: train a backdoored network, to test defenses on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcu_cli import attacks
from bcu_cli.cli import output, running
from bcu_cli.cli.options import (
    Data,
    DeviceName,
    Download,
    InputSize,
    Json,
    Precision,
    Resume,
    Seed,
    assignments,
)

if TYPE_CHECKING:
    from bcu_cli.attacks.poisoning import AttackOptions
    from bcu_cli.training.devices import Device
    from bcu_cli.triggers.base import Trigger

_TRAINING = "How it is trained"


def attack(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(attacks.names())}.", metavar="ATTACK")],
    data: Data,
    out: Annotated[
        Path, typer.Option(help="The safetensors file to write; the trigger is written beside it.")
    ],
    arch: Annotated[
        str, typer.Option(help="A name of bcu, timm or torchvision, or FILE.py:FUNCTION for your own.")
    ] = "resnet18_cifar",
    download: Download = False,
    input_size: InputSize = None,
    target_class: Annotated[int, typer.Option(help="Index of the class that triggers lead to.")] = 0,
    poison_rate: Annotated[
        float | None,
        typer.Option(help="Share of training images that are triggered (sig: of the target class's)."),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option(help="A setting of the trigger, NAME=NUMBER; can be repeated.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, rich_help_panel=_TRAINING)] = 30,
    batch_size: Annotated[int, typer.Option(min=2, rich_help_panel=_TRAINING)] = 128,
    learning_rate: Annotated[float, typer.Option(min=0.0, rich_help_panel=_TRAINING)] = 0.1,
    flip: Annotated[
        bool,
        typer.Option(
            help="Train on mirror images too: photos yes, traffic signs no.", rich_help_panel=_TRAINING
        ),
    ] = False,
    crop_padding: Annotated[
        int, typer.Option(min=0, help="Pixels of the random crop.", rich_help_panel=_TRAINING)
    ] = 4,
    seed: Seed = 0,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train a backdoored network on labelled pictures, and measure its ACC and ASR.

    They are measured on the test folder, or on a tenth of the pictures that is held out.
    """
    from bcu_cli.attacks.poisoning import AttackOptions, find
    from bcu_cli.images.augmentation import Augmentation
    from bcu_cli.models.fresh import usual_size
    from bcu_cli.training import devices
    from bcu_cli.triggers import base as triggers

    recipe = find(name)
    usual = AttackOptions()
    augmentation = Augmentation(crop_padding=crop_padding, flip=flip)
    training = replace(
        usual.training,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        augmentation=augmentation,
    )
    options = AttackOptions(
        target_class=target_class,
        poison_rate=recipe.poison_rate if poison_rate is None else poison_rate,
        clean_label=recipe.clean_label,
        training=training,
        seed=seed,
    )
    shape = usual_size(arch, input_size)
    trigger = triggers.make(recipe.trigger, shape, seed=seed, settings=assignments(setting, "--setting"))
    report = _run(
        trigger,
        shape,
        options,
        data=data,
        download=download,
        out=out,
        arch=arch,
        device=devices.choose(device, precision),
        resume=resume,
    )
    if as_json:
        output.document(report)
    else:
        _show(report)


def _run(
    trigger: Trigger,
    shape: tuple[int, int, int],
    options: AttackOptions,
    *,
    data: str,
    download: bool,
    out: Path,
    arch: str,
    device: Device,
    resume: bool,
) -> dict[str, Any]:
    """Train, measure, write; returns the report."""
    from bcu_cli.attacks.poisoning import poison, prepare
    from bcu_cli.checkpoints import Format, check_writable, write
    from bcu_cli.checkpoints.resume import StateFile
    from bcu_cli.evaluation.measures import accuracy, attack_success
    from bcu_cli.models import Architecture, metadata_for
    from bcu_cli.models.fresh import fresh
    from bcu_cli.report import document
    from bcu_cli.triggers.base import Implanted, save

    clock = document.Clock()
    trigger_out = out.with_name(out.name.removesuffix(".safetensors") + ".trigger.safetensors")
    check_writable(out, inputs=[])
    check_writable(trigger_out, inputs=[])
    train_set, test_set = running.load_to_train(data, shape, seed=options.seed, download=download)
    poisoned = poison(train_set, trigger, options)
    clock.lap("reading images")

    model = fresh(arch, len(train_set.classes), train_set.images, seed=options.seed)
    training = prepare(model, poisoned.data, options, device=device)
    images = document.images(train_set, poisoned=len(poisoned.index), measured_on=len(test_set))
    described = {"name": trigger.name, "settings": trigger.settings()}
    in_force = document.options(options)
    keeper = StateFile(
        out, document.fingerprint("attack", in_force, arch, images, described, device.precision)
    )
    running.train(training, keeper, resume=resume, title=f"training {arch}")
    clock.lap("training")

    acc = accuracy(model, test_set, device)
    success = attack_success(model, test_set, trigger, options.target_class, device)
    clock.lap("evaluation")

    architecture = Architecture(name=arch, source="--arch", num_classes=model.num_classes)
    weights = {key: value.cpu() for key, value in model.network.state_dict().items()}
    metadata = metadata_for(architecture, model.preprocessing, train_set.classes)
    model_sha256 = write(out, weights, format=Format.SAFETENSORS, metadata=metadata)
    implanted = Implanted(trigger=trigger, target_class=options.target_class, num_classes=model.num_classes)
    trigger_sha256 = save(implanted, trigger_out, shape)
    keeper.remove()
    clock.lap("writing")
    return {
        "command": "attack",
        **document.environment(device),
        "options": in_force | {"arch": arch},
        "trigger": described,
        "images": images,
        "classes": list(train_set.classes),
        "acc": acc.as_json(),
        "asr": success.asr.as_json(),
        "ra": success.ra.as_json(),
        "outputs": {
            "model": document.written(out, model_sha256),
            "trigger": document.written(trigger_out, trigger_sha256),
        },
        "seconds": clock.seconds(),
        "peak_memory": document.peak_memory(device),
    }


def _show(report: dict[str, Any]) -> None:
    images, outputs = report["images"], report["outputs"]
    output.facts(
        [
            ("model", outputs["model"]["path"]),
            ("trigger", outputs["trigger"]["path"]),
            ("poisoned", f"{images['poisoned']} of {images['used']} training images"),
            ("ACC", output.measure(report["acc"])),
            ("ASR", output.measure(report["asr"])),
            ("time", f"{report['seconds']['total']:.0f} s on {report['device']['name']}"),
        ]
    )
