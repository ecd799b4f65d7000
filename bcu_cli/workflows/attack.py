"""Train a backdoored network on labelled images, and measure its clean accuracy and the attack's success."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli import attacks
from bcu_cli.errors import UsageError
from bcu_cli.evaluation.trigger_choice import trigger_beside
from bcu_cli.report import files_read as files
from bcu_cli.runs import resuming
from bcu_cli.workflows import attack_start, loading
from bcu_cli.workflows.result import Result
from bcu_cli.workflows.settings import settings_of

if TYPE_CHECKING:
    from bcu_cli.attacks.base import Attack, AttackOptions
    from bcu_cli.images.folder import ImageSet
    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device
    from bcu_cli.triggers.base import Target, Trigger
    from bcu_cli.workflows.attack_start import Start

_DEFAULT_ARCH = "resnet18_cifar"
_OPTIMIZERS = ("sgd", "adamw")
_SCHEDULES = ("one-cycle", "cosine", "steps")
_LEAST = {"epochs": 1, "batch_size": 2, "learning_rate": 0, "crop_padding": 0, "cutout": 0, "seed": 0}
"""Least allowed values by field."""
_RATES = {("sgd", False): 0.1, ("sgd", True): 0.01, ("adamw", False): 1e-3, ("adamw", True): 1e-4}
"""Default learning rates by optimizer, and by whether the training starts from given weights."""
_ADAMW_DECAY = 0.05
"""Weight decay of AdamW, usual for ViTs and ConvNeXts (Liu et al., CVPR 2022)."""


@dataclass(frozen=True, kw_only=True)
class AttackRequest:
    """Request to train a backdoored network.

    Attributes:
        attack: The name of an attack, ``none`` for a clean network, or a subclass of ``Attack``.
        data: Labelled images, as ``--data`` takes them.
        out: The safetensors file to write; the trigger is written beside it.
        arch: The architecture's name, or ``FILE.py:FUNCTION``; None is that of ``weights``, or
            ``resnet18_cifar``.
        weights: A model file to start from, whose last layer is replaced where the number of classes differs;
            None starts from random weights.
        target_class: Index of the target class; ``next`` maps each class to the one after it.
        poison_rate: Share of the training images that are triggered; None is the attack's default.
        settings: Settings of the trigger, like ``cell=2``; ``sig.delta=60`` is for that attack alone.
        surrogate: A model to craft perturbations with, for attacks that need one; None trains one.
        preview: A PNG to write, of images with and without the trigger; None for none.
        epochs: Passes over the training images.
        batch_size: Most images in a step.
        optimizer: ``sgd``, or ``adamw``, which ViTs and ConvNeXts need.
        learning_rate: Peak learning rate; None is 0.1 for SGD, 0.001 for AdamW, and a tenth with ``weights``.
        schedule: Schedule of the learning rate: ``one-cycle``, ``cosine`` or ``steps``.
        ema: Decay of a moving average of the weights that replaces them; None for no average.
        flip: Whether images are mirrored at random.
        crop_padding: Padding of the random crop in pixels; None is the attack's default.
        rotation: Largest rotation in degrees, for half of the images; None is the attack's default.
        cutout: Side in pixels of a random square that is blanked.
        input_size: Height and width of the images in pixels; None is the architecture's usual size.
        seed: Seed of the run.
        device: The device, as ``--device`` takes it.
        precision: The precision, as ``--precision`` takes it.
        resume: Whether to continue an interrupted run.
        download: Whether a published data set that is missing is fetched.
    """

    attack: str | type[Attack]
    data: str
    out: Path
    arch: str | None = None
    weights: Path | None = None
    target_class: Target = 0
    poison_rate: float | None = None
    settings: tuple[str, ...] = ()
    surrogate: Path | None = None
    preview: Path | None = None
    epochs: int = 30
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float | None = None
    schedule: str = "one-cycle"
    ema: float | None = None
    flip: bool = False
    crop_padding: int | None = None
    rotation: float | None = None
    cutout: int = 0
    input_size: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    resume: bool = False
    download: bool = False

    @property
    def trigger(self) -> Path:
        """The file of the trigger, beside the model."""
        return trigger_beside(self.out)

    @property
    def architecture(self) -> str:
        """The name of the architecture, where ``weights`` do not give it."""
        return self.arch or _DEFAULT_ARCH

    @property
    def peak_learning_rate(self) -> float:
        """The peak learning rate."""
        given = self.learning_rate
        return _RATES[self.optimizer, self.weights is not None] if given is None else given

    @property
    def model_files(self) -> list[Path]:
        """Files that may be read besides images: weights, a surrogate, and the file of an architecture."""
        architecture = [Path(self.arch.rpartition(":")[0])] if self.arch and ":" in self.arch else []
        models = [path for path in (self.weights, self.surrogate) if path]
        return [*(file for path in models for file in files.files_of_model(path)), *architecture]

    @property
    def inputs(self) -> list[Path]:
        """Paths that may be read: images, weights, a surrogate, and the file of an architecture."""
        return [*files.places_of_data(self.data), *self.model_files]


@dataclass(frozen=True, kw_only=True)
class AttackResult(Result):
    """The result of training a backdoored network.

    Example:
        >>> result = bcu.attack("none", data="labelled/", arch="resnet8", out="clean.safetensors", epochs=1)
        >>> result.out, result.trigger
        (PosixPath('clean.safetensors'), None)
    """

    @property
    def out(self) -> Path:
        """The file of the network."""
        return Path(self.document["outputs"]["model"]["path"])

    @property
    def trigger(self) -> Path | None:
        """The file of the trigger; None for a clean network."""
        written = self.document["outputs"].get("trigger")
        return Path(written["path"]) if written else None

    @property
    def accuracy(self) -> float:
        """Clean accuracy on the images held out, in [0, 1]."""
        return float(self.document["acc"]["value"])

    @property
    def attack_success_rate(self) -> float | None:
        """Attack success rate on the images held out, in [0, 1]; None for a clean network."""
        found = self.document.get("asr")
        return float(found["value"]) if found else None


def attack(request: AttackRequest) -> AttackResult:
    """Train a network, measure it, write it with its trigger, and report.

    Raises:
        BcuError: The request makes no sense, or a file cannot be read or written.
        KeyboardInterrupt: The run was stopped, and its state saved.
    """
    from bcu_cli.attacks.base import find
    from bcu_cli.training import devices

    kind = find(request.attack) if isinstance(request.attack, str) else request.attack
    _refuse_contradictions(request, kind)
    options = _options(request, kind)
    run = _Attacking(request, kind, options, devices.choose(request.device, request.precision))
    return AttackResult(document=run.run())


def _refuse_contradictions(request: AttackRequest, kind: type[Attack]) -> None:
    if request.surrogate and not kind.needs_surrogate:
        raise UsageError(f"{kind.name} needs no surrogate", "--surrogate is for lc")
    of_trigger = request.preview or request.settings or request.poison_rate is not None
    if kind.trigger_name is None and of_trigger:
        raise UsageError("a clean network has no trigger", "leave --preview, --setting and --poison-rate out")
    preview = request.preview
    if preview and (preview.suffix != ".png" or preview.resolve() == request.out.resolve()):
        raise UsageError(
            f"--preview {preview} is not a separate .png file", "name another file, ending in .png"
        )
    for name, least in _LEAST.items():
        value = getattr(request, name)
        if value is not None and not value >= least:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} {value} is less than {least}", f"like {option} {least}, or more")


def _options(request: AttackRequest, kind: type[Attack]) -> AttackOptions:
    """The options of the training; open values take the attack's defaults."""
    from bcu_cli.attacks.base import AttackOptions

    views, padding, rotation = kind.augmentation, request.crop_padding, request.rotation
    usual = AttackOptions().training
    training = replace(
        usual,
        epochs=request.epochs,
        batch_size=request.batch_size,
        optimizer=_one_of(_OPTIMIZERS, request.optimizer, "optimizer"),
        learning_rate=request.peak_learning_rate,
        weight_decay=_ADAMW_DECAY if request.optimizer == "adamw" else usual.weight_decay,
        schedule=_one_of(_SCHEDULES, request.schedule, "schedule"),
        ema=request.ema,
        augmentation=replace(
            views,
            flip=request.flip,
            cutout=request.cutout,
            crop_padding=views.crop_padding if padding is None else padding,
            rotation=views.rotation if rotation is None else rotation,
        ),
    )
    return AttackOptions(
        target_class=request.target_class,
        poison_rate=kind.poison_rate if request.poison_rate is None else request.poison_rate,
        training=training,
        seed=request.seed,
        pretrained=request.weights is not None,
    )


def _one_of(known: tuple[str, ...], name: str, what: str) -> Any:
    if name not in known:
        raise UsageError(f"there is no {what} {name}", f"--{what} takes {', '.join(known)}")
    return name


class _Attacking:
    """One attack, from reading images to the report."""

    def __init__(
        self, request: AttackRequest, kind: type[Attack], options: AttackOptions, device: Device
    ) -> None:
        from bcu_cli.report import document

        self.request = request
        self.kind = kind
        self.options = options
        self.device = device
        self.clock = document.Clock()

    def run(self) -> dict[str, Any]:
        """Train, measure, write, and report."""
        from bcu_cli.checkpoints import Format, check_suffix, check_writable

        request = self.request
        settings = settings_of(
            self.kind.name, request.settings, kind="attack", owners=attacks.names(), like="sig.delta=60"
        )
        start = self._start()
        trigger = self._trigger(start.shape, settings)
        for path in (request.out, request.trigger, request.preview):
            if path:
                check_writable(path, inputs=request.inputs)
        check_suffix(request.out, Format.SAFETENSORS)
        with resuming.writing(request.out, inputs=request.inputs):
            return self._run(start, trigger)

    def _start(self) -> Start:
        """The network to start from."""
        request = self.request
        if request.weights is None:
            return attack_start.from_nothing(request.architecture, request.input_size)
        how = loading.ModelOptions(arch=request.arch, input_size=request.input_size)
        return attack_start.from_file(request.weights, how, request.data, download=request.download)

    def _run(self, start: Start, trigger: Trigger | None) -> dict[str, Any]:
        from bcu_cli.checkpoints import sha256_of
        from bcu_cli.checkpoints.resume import StateFile
        from bcu_cli.report import document

        request, options = self.request, self.options
        train_set, test_set = loading.load_to_train(
            request.data, start.geometry, seed=options.seed, download=request.download
        )
        model = start.network(train_set, seed=options.seed)
        surrogate = self._surrogate(model)
        attacking = self.kind(model, train_set, trigger, options, device=self.device, surrogate=surrogate)
        self.clock.lap("reading images")

        images = document.images(train_set, poisoned=attacking.poisoned, measured_on=len(test_set))
        described = {"name": trigger.name, "settings": trigger.settings()} if trigger else None
        in_force = {"attack": self.kind.name, "arch": start.arch, **document.options(options)}
        surrogate_file = request.surrogate and {
            "path": str(request.surrogate),
            "sha256": sha256_of(request.surrogate),
        }
        weights_file = start.loaded and {
            "path": str(request.weights),
            "sha256": start.loaded.checkpoint.sha256,
        }
        prepared = asdict(model.preprocessing) | {"source": None}
        decides = (in_force, images, described, surrogate_file, self.device.precision, weights_file, prepared)
        keeper = StateFile(request.out, document.fingerprint("attack", *decides))
        stages = resuming.train(attacking.stages(), keeper, resume=request.resume)
        self.clock.lap("training")
        measures = self._measure(model, test_set, trigger)
        self.clock.lap("evaluation")
        outputs = self._write(model, start.arch, train_set, trigger, test_set)
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
            "weights": weights_file,
            "images": images,
            "files_read": files.files_read([*files.of_data(request.data), *request.model_files]),
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

    def _surrogate(self, model: Classifier) -> Classifier | None:
        """The surrogate that the user named; None without one."""
        path, request = self.request.surrogate, self.request
        if path is None:
            return None
        found = loading.load_model(
            path, loading.ModelOptions(), pictures=request.data, download=request.download
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
        self, model: Classifier, arch: str, train_set: ImageSet, trigger: Trigger | None, test_set: ImageSet
    ) -> dict[str, Any]:
        """Write the model and, for a backdoored one, its trigger and preview."""
        from bcu_cli.checkpoints import Format, write
        from bcu_cli.models import Architecture, metadata_for
        from bcu_cli.report import document, trigger_sheet
        from bcu_cli.triggers.base import Implanted, save

        request, shape = self.request, model.preprocessing.input_size
        architecture = Architecture(name=arch, source="--arch", num_classes=model.num_classes)
        metadata = metadata_for(architecture, model.preprocessing, train_set.classes)
        weights = {key: value.cpu() for key, value in model.network.state_dict().items()}
        sha256 = write(request.out, weights, format=Format.SAFETENSORS, metadata=metadata)
        outputs = {"model": document.written(request.out, sha256)}
        if trigger:
            target, classes = self.options.target_class, model.num_classes
            implanted = Implanted(trigger=trigger, target_class=target, num_classes=classes)
            outputs["trigger"] = document.written(request.trigger, save(implanted, request.trigger, shape))
            if request.preview:
                sha256 = trigger_sheet.write_sheet(trigger, test_set.images, request.preview)
                outputs["preview"] = document.written(request.preview, sha256)
        return outputs
