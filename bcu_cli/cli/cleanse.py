"""``bcu cleanse``: remove a backdoor by distillation on unlabeled images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcu_cli.cli import output, running
from bcu_cli.cli.options import (
    Arch,
    DeviceName,
    InputSize,
    Json,
    Mean,
    Model,
    Precision,
    Resume,
    Seed,
    Std,
    numbers,
)
from bcu_cli.errors import UsageError

if TYPE_CHECKING:
    from bcu_cli.checkpoints import Format
    from bcu_cli.defenses.bcu import BcuOptions
    from bcu_cli.images.folder import ImageSet
    from bcu_cli.models import Classifier, Loaded
    from bcu_cli.training.devices import Device
    from bcu_cli.training.loop import Epoch

_METHOD = "The method; the defaults are the paper's"
_EPOCHS_WITH_AGREEMENT = 20
_FORMATS = ("same", "safetensors", "pickle", "torchscript")


def cleanse(
    model: Model,
    images: Annotated[
        Path, typer.Option(help="A folder of pictures, any depth, any sizes; no labels needed.")
    ],
    out: Annotated[Path, typer.Option(help="The cleansed model to write.")],
    format: Annotated[  # noqa: A002 - the name of the option
        str,
        typer.Option(
            help="same (as the original; of torch.export and ONNX: safetensors, or torchscript where a graph "
            "is all that is known), safetensors, pickle, torchscript."
        ),
    ] = "same",
    max_images: Annotated[
        int | None, typer.Option(min=1, help="Draw this many of the pictures at random.")
    ] = None,
    arch: Arch = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    strength: Annotated[
        float,
        typer.Option(
            help="Factor on the re-initialisation ratios: more removes more.", rich_help_panel=_METHOD
        ),
    ] = 1.0,
    ratios: Annotated[
        str | None,
        typer.Option(
            help="Shares of weights drawn anew: first layer, layers in between, classifier. "
            "(default: 0.01,0.01,0.01,0.03,0.03,0.09,0.09,0.27,0.27,0.1)",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    epochs: Annotated[
        str,
        typer.Option(
            help="A number, or auto: 100, fewer for very large folders, more for very small ones.",
            rich_help_panel=_METHOD,
        ),
    ] = "auto",
    batch_size: Annotated[int, typer.Option(min=2, rich_help_panel=_METHOD)] = 256,
    learning_rate: Annotated[float, typer.Option(min=0.0, rich_help_panel=_METHOD)] = 0.01,
    momentum: Annotated[float, typer.Option(min=0.0, max=1.0, rich_help_panel=_METHOD)] = 0.9,
    weight_decay: Annotated[float, typer.Option(min=0.0, rich_help_panel=_METHOD)] = 5e-4,
    temperature: Annotated[
        str, typer.Option(help="At the first and the last step.", rich_help_panel=_METHOD)
    ] = "1,4",
    crop_padding: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Pixels of the random crop. (default: an eighth of the image's side, the paper's 4 of 32)",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option(
            help="Use mirror images too. (default: if the model takes them for the same)",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    seed: Seed = 0,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Remove a backdoor: re-initialise part of each layer, and distil on unlabeled pictures.

    The result has the same tensor names, shapes and types as the original, and takes its place.
    Pang et al., Backdoor Cleansing with Unlabeled Data, CVPR 2023.
    """
    from bcu_cli.checkpoints import check_writable
    from bcu_cli.defenses.bcu import RATIOS, BcuOptions
    from bcu_cli.training import devices

    options = BcuOptions(
        strength=strength,
        ratios=numbers(ratios, "--ratios") or RATIOS,
        temperature=_pair(temperature),
        epochs=_epochs(epochs),
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        crop_padding=crop_padding,
        flip=flip,
        seed=seed,
    )
    if format not in _FORMATS:
        raise UsageError(f"there is no format {format}", f"--format takes {', '.join(_FORMATS)}")
    check_writable(out, inputs=[model])
    chosen = devices.choose(device, precision)
    said = running.ModelOptions(arch=arch, input_size=input_size, mean=mean, std=std)
    loaded = running.load_model(model, said, pictures=images)
    report = _Cleansing(loaded, options, chosen, out, format).run(images, max_images, resume=resume)
    if as_json:
        output.document(report)
    else:
        _show(report)


def _epochs(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"--epochs {text} is neither auto nor a number from 1", "--epochs auto")
    return int(text)


def _pair(text: str) -> tuple[float, float]:
    values = numbers(text, "--temperature")
    if values is None or len(values) != 2:
        raise UsageError(
            "--temperature takes two numbers, of the first and the last step", "--temperature 1,4"
        )
    return values[0], values[1]


def _format(loaded: Loaded, name: str) -> Format:
    """The format to write: what was asked for, else the original's where it can be written.

    Raises:
        UsageError: The network is one that its graph alone tells how to run, and the format has no graph.
    """
    from bcu_cli.checkpoints import Format

    original = loaded.checkpoint.format
    if loaded.architecture.name == Format.ONNX:
        if name not in {"same", Format.TORCHSCRIPT}:
            message = f"only its graph tells how to run {loaded.checkpoint.path}, and {name} has no graph"
            raise UsageError(message, "--format torchscript")
        return Format.TORCHSCRIPT
    if name != "same":
        return Format(name)
    return Format.SAFETENSORS if original in {Format.EXPORTED, Format.ONNX} else original


class _Cleansing:
    """One cleansing from the pictures to the report."""

    def __init__(self, loaded: Loaded, options: BcuOptions, device: Device, out: Path, format: str) -> None:  # noqa: A002
        from bcu_cli.report import document

        self.loaded = loaded
        self.options = options
        self.device = device
        self.out = out
        self.format = _format(loaded, format)
        self.clock = document.Clock()

    def run(self, folder: Path, max_images: int | None, *, resume: bool) -> dict[str, Any]:
        """Distil, write, and report."""
        from bcu_cli.checkpoints.resume import StateFile
        from bcu_cli.defenses import bcu
        from bcu_cli.evaluation.measures import agreement
        from bcu_cli.report import document
        from bcu_cli.training.inference import predict
        from bcu_cli.training.loop import Stage

        used, held_out = self._load(folder, max_images)
        self.clock.lap("reading images")
        teacher = self.loaded.classifier
        reference = predict(teacher, held_out.images, self.device)
        prepared = bcu.prepare(teacher, used.images, self.options, device=self.device)
        training, student = prepared.training, prepared.student
        before = agreement(student, reference, held_out.images, self.device)
        self.clock.lap("re-initialisation")

        def on_epoch(epoch: Epoch) -> str:
            if epoch.number % max(1, epoch.of // _EPOCHS_WITH_AGREEMENT):
                return ""
            share = agreement(student, reference, held_out.images, self.device).value
            return f"agreement {output.percent(share)}"

        images = document.images(used, held_out=len(held_out))
        in_force = document.options(prepared.options)
        decides = (
            "cleanse",
            in_force,
            self.loaded.checkpoint.sha256,
            images["sha256"],
            self.device.precision,
        )
        keeper = StateFile(self.out, document.fingerprint(*decides))
        stages = running.train(
            [Stage(title="cleansing", training=training)], keeper, resume=resume, on_epoch=on_epoch
        )
        self.clock.lap("distillation")
        speed = document.training(stages, self.device)
        after = agreement(student, reference, held_out.images, self.device)
        self.clock.lap("evaluation")
        sha256 = self._write(student)
        keeper.remove()
        self.clock.lap("writing")
        return {
            "command": "cleanse",
            **document.environment(self.device),
            "method": "bcu",
            "options": in_force,
            "model": document.model(self.loaded),
            "images": images,
            "reinitialised": [asdict(layer) for layer in prepared.reinitialised],
            "agreement": {"after_reinitialisation": before.as_json(), "after_distillation": after.as_json()},
            "output": document.written(self.out, sha256) | {"format": self.format.value},
            "left_out": list(self.loaded.checkpoint.left_out),
            "training": speed,
            "seconds": self.clock.seconds(),
            "peak_memory": document.peak_memory(self.device),
        }

    def _load(self, folder: Path, max_images: int | None) -> tuple[ImageSet, ImageSet]:
        """The pictures to distil on, and those held out to compare the two models on."""
        import torch

        from bcu_cli.images.folder import FEW_IMAGES, hold_out, load_unlabeled

        generator = torch.Generator().manual_seed(self.options.seed)
        geometry = running.geometry_of(self.loaded.classifier.preprocessing)
        data = running.with_bar(
            lambda bar: load_unlabeled(
                folder, geometry, at_most=max_images, generator=generator, on_progress=bar
            ),
            folder,
        )
        if len(data) < FEW_IMAGES:
            output.warn(
                f"{len(data)} images are few; the paper uses 2,500, below {FEW_IMAGES} accuracy suffers"
            )
        return hold_out(data, 0.1, most=1000, generator=generator)

    def _write(self, student: Classifier) -> str:
        """Write the student in the place of the original; returns the SHA-256."""
        from bcu_cli.models.export import write_like

        return write_like(self.loaded, student, self.out, self.format)


def _show(report: dict[str, Any]) -> None:
    model, images = report["model"], report["images"]
    agreement = report["agreement"]
    weights = sum(layer["weights"] for layer in report["reinitialised"])
    anew = sum(layer["drawn_anew"] for layer in report["reinitialised"])
    skipped = f", {len(images['skipped'])} skipped" if images["skipped"] else ""
    output.table(
        "Re-initialised weights, from shallow to deep",
        ("depth", "layer", "weights", "drawn anew", "share"),
        [
            (
                str(layer["depth"]),
                layer["name"],
                f"{layer['weights']:,}",
                f"{layer['drawn_anew']:,}",
                output.percent(layer["drawn_anew"] / layer["weights"]),
            )
            for layer in report["reinitialised"]
        ],
    )
    output.facts(
        [
            ("original", f"{model['path']} (SHA-256 {model['sha256'][:16]}…)"),
            ("architecture", f"{model['architecture']['name']}, by {model['architecture']['source']}"),
            ("preprocessing", output.preprocessing(model["preprocessing"])),
            ("images", f"{images['used']} used, {images['held_out']} held out{skipped}"),
            ("re-initialised", f"{anew:,} of {weights:,} weights ({output.percent(anew / weights)})"),
            ("agreement before", output.measure(agreement["after_reinitialisation"])),
            ("agreement after", output.measure(agreement["after_distillation"])),
            *output.speed(report),
            ("peak memory", output.size(report["peak_memory"]["process_bytes"])),
            ("cleansed", f"{report['output']['path']} (SHA-256 {report['output']['sha256'][:16]}…)"),
        ]
    )
