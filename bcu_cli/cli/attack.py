"""``bcu attack``: train a backdoored network, to test defenses on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcu_cli import attacks
from bcu_cli.cli import output
from bcu_cli.cli.options import Data, DeviceName, Download, InputSize, Json, Precision, Resume, Seed, panel
from bcu_cli.errors import UsageError

if TYPE_CHECKING:
    from bcu_cli.triggers.base import Target


_training = panel("Training")
_zoo = panel("A zoo (attack all)")
_option = panel()


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
        _option("The safetensors file to write; the trigger is written beside it. For a zoo, the folder."),
    ],
    arch: Annotated[
        str | None,
        _option(
            "A name of bcu, timm or torchvision, or FILE.py:FUNCTION for your own. "
            "(default: resnet18_cifar; with --weights, that of the file)"
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        _option(
            "A model file to start from, with its preprocessing; a last layer of another number of "
            "classes is replaced. (default: random weights)"
        ),
    ] = None,
    download: Download = False,
    input_size: InputSize = None,
    target_class: Annotated[
        str, _option("Index of the target class; or next: each class to the one after it.")
    ] = "0",
    poison_rate: Annotated[
        float | None,
        _option(
            "Share of the training images that are triggered; sig and lc: of the target class. "
            "(default: 0.1; sig, lc: 0.8)"
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        _option("A setting of the trigger, NAME=NUMBER, or of one attack's, ATTACK.NAME=NUMBER; repeatable."),
    ] = None,
    surrogate: Annotated[
        Path | None,
        _option("lc: a model of the same classes to perturb images with. (default: one is trained)"),
    ] = None,
    preview: Annotated[
        Path | None, _option("A PNG to write: images clean, triggered, and their difference times 10.")
    ] = None,
    epochs: Annotated[int, _training(min=1)] = 30,
    batch_size: Annotated[int, _training(min=2)] = 128,
    optimizer: Annotated[
        str, _training("sgd, or adamw (weight decay 0.05), for ViTs and ConvNeXts.")
    ] = "sgd",
    learning_rate: Annotated[
        float | None, _training("(default: 0.1; adamw: 0.001; with --weights, a tenth of it)", min=0.0)
    ] = None,
    schedule: Annotated[
        str, _training("one-cycle, cosine, or steps: divided by 10 after 1/2 and 3/4, as in the paper.")
    ] = "one-cycle",
    ema: Annotated[float | None, _training("Decay of a moving average that replaces the weights.")] = None,
    flip: Annotated[bool, _training("Mirror images at random: suits photos, not traffic signs.")] = False,
    crop_padding: Annotated[
        int | None, _training("Padding of the random crop, in pixels. (default: 4; wanet: 5)", min=0)
    ] = None,
    rotation: Annotated[
        float | None,
        _training("Largest rotation in degrees, for half of the images. (default: 0; wanet: 10)"),
    ] = None,
    cutout: Annotated[int, _training("Side of a random square that is blanked, in pixels.", min=0)] = 0,
    seed: Seed = 0,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    resume: Resume = False,
    as_json: Json = False,
    seeds: Annotated[str | None, _zoo("Like 0-4 or 0,3,7; 0 if not given.")] = None,
    targets: Annotated[str | None, _zoo("Target classes, like 0-9; 0 if not given.")] = None,
    only: Annotated[str | None, _zoo("Only these attacks, like badnets,sig.")] = None,
    jobs: Annotated[
        str | None, _zoo("Models at a time; auto is one for each core, and one on a GPU.")
    ] = None,
    engine: Annotated[
        str | None, _zoo("local, or ray: the machines of a Ray cluster. (default: local)")
    ] = None,
    gpus_per_cell: Annotated[
        float | None, _zoo("ray: share of a GPU, 0.25 for four models on one. (default: 1 if any)", min=0.0)
    ] = None,
) -> None:
    """Train a backdoored network on labelled images, and measure its ACC and ASR.

    Both are measured on the test folder, or on a held-out tenth of the images. A zoo (all) is every
    attack on every target class with every seed, and a clean model for each seed. The same command again
    trains only what is missing or damaged.
    """
    from bcu_cli.cli import zoo
    from bcu_cli.workflows.attack import AttackRequest
    from bcu_cli.workflows.attack import attack as train

    of_zoo = zoo.ZooOptions(
        seeds=seeds, targets=targets, only=only, jobs=jobs, engine=engine, gpus_per_cell=gpus_per_cell
    )
    if name == "all":
        zoo.refuse_given(context)
    else:
        of_zoo.refuse()
    request = AttackRequest(
        attack=name,
        data=data,
        out=out,
        arch=arch,
        weights=weights,
        target_class=_target(target_class),
        poison_rate=poison_rate,
        settings=tuple(setting or ()),
        surrogate=surrogate,
        preview=preview,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        schedule=schedule,
        ema=ema,
        flip=flip,
        crop_padding=crop_padding,
        rotation=rotation,
        cutout=cutout,
        input_size=input_size,
        seed=seed,
        device=device,
        precision=precision,
        resume=resume,
        download=download,
    )
    if name == "all":
        zoo.train_all(of_zoo.request(request), as_json=as_json)
    report = train(request).document
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
