"""One cleansing, from the pictures to the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli.cli import output, running
from bcu_cli.errors import ImagesError, UsageError
from bcu_cli.training import profile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from bcu_cli.checkpoints import Format
    from bcu_cli.defenses.base import Defense, DefenseOptions
    from bcu_cli.evaluation.measures import Proportion
    from bcu_cli.images.folder import ImageSet
    from bcu_cli.models import Loaded
    from bcu_cli.training.devices import Device
    from bcu_cli.training.loop import Epoch, Stage

_EPOCHS_WITH_AGREEMENT = 20
FORMATS = ("same", "safetensors", "pickle", "torchscript")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Where the pictures come from, and their labels.

    Args:
        folder: None where the method needs no pictures and there are none.
        at_most: Draw this many of them; None takes all.
        pseudo_labels: Whether the model's own answers stand in for labels.
    """

    folder: Path | None
    at_most: int | None
    pseudo_labels: bool


class Cleansing:
    """A method on a model.

    Args:
        loaded: The model.
        kind: The method.
        options: The method's.
        device: Where.
        out: The file to write.
        format: Its format, one of ``FORMATS``.
        force: Whether to write it also where the method's verdict is not that it is cleansed.
    """

    def __init__(
        self,
        loaded: Loaded,
        kind: type[Defense[Any]],
        options: DefenseOptions,
        *,
        device: Device,
        out: Path,
        format: str,  # noqa: A002 - the name of the option
        force: bool,
    ) -> None:
        from bcu_cli.report import document

        self.loaded = loaded
        self.kind = kind
        self.options = options
        self.device = device
        self.out = out
        self.format = _format(loaded, format)
        self.force = force
        self.clock = document.Clock()

    def run(self, pictures: Pictures, *, resume: bool) -> dict[str, Any]:
        """Cleanse, write where the verdict allows it, and report."""
        from bcu_cli.checkpoints.resume import StateFile
        from bcu_cli.report import document

        used, held_out = self._load(pictures)
        self.clock.lap("reading images")
        defense = self.kind(self.loaded.classifier, used, self.options, device=self.device, held_out=held_out)
        profile.watch(defense.teacher, profile.TEACHER)
        images = used and document.images(
            used,
            held_out=len(held_out) if held_out else 0,
            labels=self._labels_from(pictures),
            suitability=self._suitability(used),
        )
        in_force = document.options(defense.options)
        keeper = StateFile(
            self.out,
            document.fingerprint(
                "cleanse",
                self.kind.name,
                in_force,
                self.loaded.checkpoint.sha256,
                images and images["sha256"],
                self.device.precision,
            ),
        )
        watch = _Watch(defense, held_out, self.device)
        stages = running.train(watch.stages(), keeper, resume=resume, on_epoch=watch.on_epoch)
        self.clock.lap("cleansing")
        with profile.span(profile.MEASURING):
            speed = document.training(stages, self.device) if stages else []
        after = watch.agreement()
        self.clock.lap("evaluation")
        judged = defense.verdict()
        with profile.span(profile.WRITING):
            written = self._write(defense) if self.force or judged is None or judged.good else None
        keeper.remove()
        self.clock.lap("writing")
        agreement = after and {
            "before_training": watch.before.as_json() if watch.before else None,
            "after": after.as_json(),
        }
        return {
            "command": "cleanse",
            **document.environment(self.device),
            "method": self.kind.name,
            "paper": self.kind.paper,
            "options": in_force,
            "model": document.model(self.loaded),
            "images": images,
            "did": defense.did(),
            "verdict": judged and asdict(judged),
            "agreement": agreement,
            "output": written,
            "left_out": list(self.loaded.checkpoint.left_out),
            "training": speed,
            "seconds": self.clock.seconds(),
            "peak_memory": document.peak_memory(self.device),
        }

    def _labels_from(self, pictures: Pictures) -> str | None:
        if not self.kind.needs_labels:
            return None
        return "the model's own answers" if pictures.pseudo_labels else "class subfolders"

    def _load(self, pictures: Pictures) -> tuple[ImageSet | None, ImageSet | None]:
        """The pictures to cleanse with, and those held out to compare the two models on."""
        import torch

        from bcu_cli.images.folder import hold_out
        from bcu_cli.training.inference import predict

        if pictures.folder is None:
            return None, None
        generator = torch.Generator().manual_seed(self.options.seed)
        if self.kind.needs_labels and not pictures.pseudo_labels:
            data = self._load_labelled(pictures.folder, pictures.at_most, generator)
        else:
            data = self._load_unlabeled(pictures.folder, pictures.at_most, generator)
        used, held_out = hold_out(data, 0.1, most=1000, generator=generator)
        if self.kind.needs_labels and pictures.pseudo_labels:
            answers = predict(self.loaded.classifier, used.images, self.device)
            used = replace(used, labels=answers)
        return used, held_out

    def _suitability(self, used: ImageSet) -> dict[str, Any]:
        """How the pictures suit the model; warns of what is wanting."""
        from bcu_cli.evaluation.suitability import suitability
        from bcu_cli.models.metadata import class_names

        classifier = self.loaded.classifier
        classes = class_names(self.loaded.checkpoint.metadata, classifier.num_classes)
        found = suitability(classifier, used.images, self.device, classes=classes).as_json()
        for warning in found["warnings"]:
            output.warn(warning)
        return found

    @profile.span(profile.DECODING)
    def _load_unlabeled(self, folder: Path, at_most: int | None, generator: Any) -> ImageSet:
        from bcu_cli.images.folder import load_unlabeled

        geometry = running.geometry_of(self.loaded.classifier.preprocessing)
        return running.with_bar(
            lambda bar: load_unlabeled(
                folder, geometry, at_most=at_most, generator=generator, on_progress=bar
            ),
            folder,
        )

    @profile.span(profile.DECODING)
    def _load_labelled(self, folder: Path, at_most: int | None, generator: Any) -> ImageSet:
        from bcu_cli.images.folder import FEWEST_IMAGES, list_files, list_labelled, subfolders

        list_files(folder)  # says what is wrong with a folder that is none
        if not subfolders(folder):
            raise ImagesError(
                f"--method {self.kind.name} learns from labels, and {folder} has no class subfolders",
                "put the pictures of each class into a subfolder of its name, or let the model answer for "
                "them: --pseudo-labels",
            )
        part = list_labelled(folder)
        data = running.load_labels_of(
            part if at_most is None else part.drawn(at_most, generator), self.loaded
        )
        if len(data) < FEWEST_IMAGES:
            raise ImagesError(
                f"{folder} holds {len(data)} readable pictures; at least {FEWEST_IMAGES} are needed",
                "add some to each class",
            )
        return data

    def _write(self, defense: Defense[Any]) -> dict[str, Any]:
        """Write the student in the place of the original; returns what the report says of the file."""
        from bcu_cli.models.export import write_like
        from bcu_cli.report import document

        sha256 = write_like(self.loaded, defense.student, self.out, self.format)
        return document.written(self.out, sha256) | {"format": self.format.value}


class _Watch:
    """How far the student agrees with the original on the pictures held out, as its training goes on."""

    def __init__(self, defense: Defense[Any], held_out: ImageSet | None, device: Device) -> None:
        from bcu_cli.training.inference import predict

        self.before: Proportion | None = None
        self._defense = defense
        self._device = device
        self._images: Tensor | None = held_out.images if held_out else None
        self._reference = predict(defense.teacher, held_out.images, device) if held_out else None
        self._stage: Stage | None = None

    def stages(self) -> Iterator[Stage]:
        """The defense's; the student is compared before its own training, or at the start if it has none."""
        waiting = True
        for stage in self._defense.stages():
            self._stage = stage
            profile.watch(stage.training.model, profile.STUDENT)
            if self.before is None or (waiting and self._trains_student()):
                self.before = self.agreement()
                waiting = not self._trains_student()
            yield stage

    def agreement(self) -> Proportion | None:
        """Of the student as it is now; None where nothing was held out."""
        from bcu_cli.evaluation.measures import agreement

        if self._images is None or self._reference is None:
            return None
        return agreement(self._defense.student, self._reference, self._images, self._device)

    def on_epoch(self, epoch: Epoch) -> str:
        """What stands behind the bar."""
        if not self._trains_student() or epoch.number % max(1, epoch.of // _EPOCHS_WITH_AGREEMENT):
            return ""
        share = self.agreement()
        return f"agreement {output.percent(share.value)}" if share else ""

    def _trains_student(self) -> bool:
        return self._stage is not None and self._stage.training.model is self._defense.student


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
