"""One cleansing, from the pictures to the report."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bcu_cli.cli import cleansing_output, output, running
from bcu_cli.cli.cleansing_pictures import load, warn_of
from bcu_cli.errors import UsageError
from bcu_cli.training import profile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from bcu_cli.checkpoints import Format, Omission
    from bcu_cli.checkpoints.resume import StateFile
    from bcu_cli.cli.cleansing_pictures import Pictures
    from bcu_cli.defenses.base import Defense, DefenseOptions
    from bcu_cli.evaluation.measures import Proportion
    from bcu_cli.images.folder import ImageSet
    from bcu_cli.images.stream import StreamedSet
    from bcu_cli.models import Loaded
    from bcu_cli.training.devices import Device
    from bcu_cli.training.loop import Epoch, Stage

_EPOCHS_WITH_AGREEMENT = 20
FORMATS = ("same", "safetensors", "pickle", "torchscript")


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
        from bcu_cli.models.metadata import class_names
        from bcu_cli.report import document

        self.loaded = loaded
        self.classes = class_names(loaded.checkpoint.metadata, loaded.classifier.num_classes)
        self.kind = kind
        self.options = options
        self.device = device
        self.out = out
        self.format = _format(loaded, format)
        self.force = force
        self.clock = document.Clock()

    def run(self, pictures: Pictures, *, resume: bool) -> dict[str, Any]:
        """Cleanse, write where the verdict allows it, and report."""
        from bcu_cli.images.stream import StreamedSet

        with profile.span(profile.DECODING):
            used, held_out = load(pictures, self.loaded, self.kind, self.options.seed, self.device)
        with closing(used.images) if isinstance(used, StreamedSet) else nullcontext():
            return self._cleanse(used, held_out, pictures, resume=resume)

    def _cleanse(
        self,
        used: ImageSet | StreamedSet | None,
        held_out: ImageSet | None,
        pictures: Pictures,
        *,
        resume: bool,
    ) -> dict[str, Any]:
        from bcu_cli.report import document
        from bcu_cli.training import ranks

        self.clock.lap("reading images")
        defense = self.kind(self.loaded.classifier, used, self.options, device=self.device, held_out=held_out)
        profile.watch(defense.teacher, profile.TEACHER)
        images = self._about(used, held_out, pictures)
        in_force = document.options(defense.options)
        keeper = self._keeper(in_force, images)
        watch = _Watch(defense, held_out, self.device)
        stages = running.train(watch.stages(), keeper, resume=resume, on_epoch=watch.on_epoch)
        self.clock.lap("cleansing")
        self._round(defense)
        after = watch.agreement()
        judged = defense.verdict()
        wanted = self.force or judged is None or judged.good
        self.clock.lap("evaluation")
        with profile.span(profile.WRITING):
            written = self._write(defense) if wanted and ranks.rank() == 0 else None
        if wanted:
            running.once_written("removing the state of the run", keeper.remove, None)
        self.clock.lap("writing")
        with profile.span(profile.MEASURING):
            speed = running.speed_of(stages, self.device)
        if used and images:
            images |= document.streaming(used, speed)
            warn_of(used, images)
        self.clock.lap("measuring speed")
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
            "classes": list(self.classes),
            "images": images,
            "did": defense.did(),
            "verdict": judged and asdict(judged),
            "agreement": agreement,
            "output": written,
            "left_out": list(self.loaded.checkpoint.left_out),
            "omitted": [{"name": each.name, "why": each.why} for each in self._omitted()],
            "training": speed,
            "seconds": self.clock.seconds(),
            "peak_memory": document.peak_memory(self.device),
        }

    def _about(
        self, used: ImageSet | StreamedSet | None, held_out: ImageSet | None, pictures: Pictures
    ) -> dict[str, Any] | None:
        """What the report says of the pictures; None where the method needs none."""
        from bcu_cli.report import document

        if used is None:
            return None
        return document.images(
            used,
            held_out=len(held_out) if held_out else 0,
            labels=self._labels_from(pictures),
            suitability=self._suitability(used),
        )

    def _keeper(self, in_force: dict[str, Any], images: dict[str, Any] | None) -> StateFile:
        """The file that an interrupted run goes on from, of these options, pictures and model alone."""
        from bcu_cli.checkpoints.resume import StateFile
        from bcu_cli.report import document
        from bcu_cli.training import ranks

        fingerprint = document.fingerprint(
            "cleanse",
            self.kind.name,
            in_force,
            self.loaded.checkpoint.sha256,
            *self.loaded.checkpoint.nesting,
            images and images["sha256"],
            self.device.precision,
        )
        ranks.require_same(fingerprint, "options, images or a model")
        return StateFile(self.out, fingerprint, writes=ranks.rank() == 0)

    def _omitted(self) -> tuple[Omission, ...]:
        """What the original holds beside its weights and the result does not."""
        from bcu_cli.checkpoints.writing import lost_in

        checkpoint = self.loaded.checkpoint
        return checkpoint.omitted + lost_in(checkpoint, self.format)

    def _labels_from(self, pictures: Pictures) -> str | None:
        if not self.kind.needs_labels:
            return None
        return "the model's own answers" if pictures.pseudo_labels else "class subfolders"

    def _suitability(self, used: ImageSet | StreamedSet) -> dict[str, Any]:
        """How the pictures suit the model, by some of them if they are streamed; warns of what is wanting."""
        from bcu_cli.evaluation.suitability import suitability
        from bcu_cli.images.folder import ImageSet
        from bcu_cli.images.stream import spread

        some = used.images if isinstance(used, ImageSet) else spread(used.images)
        found = suitability(self.loaded.classifier, some, self.device, classes=self.classes).as_json()
        for warning in found["warnings"]:
            output.warn(warning)
        return found

    def _round(self, defense: Defense[Any]) -> None:
        """Give the student the values that its file will hold: these are judged, on every rank.

        Raises:
            TrainingError: Its training has made NaN or infinite numbers of weights or statistics.
        """
        from bcu_cli.models.export import as_stored

        before = {name: tensor.clone() for name, tensor in defense.student.network.state_dict().items()}
        for name in as_stored(self.loaded, defense.student, self.format):
            kind = self.loaded.checkpoint.dtypes[name]
            output.warn(
                f"{name} has numbers beyond what {kind} holds; its largest stand for them, and are judged"
            )
        state = defense.student.network.state_dict()
        if any(not tensor.equal(before[name]) for name, tensor in state.items()):
            defense.measure_again()

    def _write(self, defense: Defense[Any]) -> dict[str, Any]:
        """Write the student in the place of the original; returns what the report says of the file."""
        from bcu_cli.models.export import write_like
        from bcu_cli.report import document

        sha256 = write_like(self.loaded, defense.student, self.out, self.format)
        cleansing_output.warn_of_omitted(self.out, self._omitted())
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
        UsageError: The file's own code or graph alone tells how to run the network, and the format has none.
    """
    from bcu_cli.checkpoints import Format

    original = loaded.checkpoint.format
    if loaded.architecture.name == original:
        if name not in {"same", Format.TORCHSCRIPT}:
            what = "code" if original is Format.TORCHSCRIPT else "graph"
            message = f"only its {what} tells how to run {loaded.checkpoint.path}, and {name} has none"
            raise UsageError(message, "--format torchscript")
        return Format.TORCHSCRIPT
    if name != "same":
        return Format(name)
    return Format.SAFETENSORS if original in {Format.EXPORTED, Format.ONNX} else original
