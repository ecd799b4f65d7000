"""The training loop: batches, precision, schedule, memory and interruption, for any objective.

Attacks pass a labelled objective, defenses a distillation. Where several processes train together
(``ranks``), each takes its part of every batch, with the same order, augmentation and mean loss.

Every step seeds its random numbers from its number. So the state between two steps is the weights, the
optimiser and the number of the step. On the CPU a resumed run writes the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from bcu_cli.errors import TrainingError, UsageError
from bcu_cli.images.augmentation import augment
from bcu_cli.images.stream import Stream
from bcu_cli.models import Classifier
from bcu_cli.models.classifier import place
from bcu_cli.training import ranks
from bcu_cli.training.devices import is_out_of_memory
from bcu_cli.training.distributed import DistributedObjective, Statistics
from bcu_cli.training.inference import scaled
from bcu_cli.training.optimizers import SGD, AdamW
from bcu_cli.training.profile import BACKWARD, BATCH, DECODING, LOSS, OPTIMIZER, span
from bcu_cli.training.state_checks import require_fits, require_like
from bcu_cli.training.throughput import FlopCounter, Throughput
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from bcu_cli.images.stream import Images
    from bcu_cli.training.devices import Device
    from bcu_cli.training.options import TrainingOptions

FEWEST_IMAGES = 2
"""Fewest images of a step for each of several ranks; BatchNorm needs two."""
Objective = Callable[[Tensor, Tensor, float], Tensor]
"""(images float32 [N, C, H, W] in [0, 1], their indices int64 [N], progress in [0, 1)) -> mean loss."""


class Interrupted(Exception):  # noqa: N818 - requested by the user, not an error
    """Training was asked to stop and did, between two steps."""


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A module that is trained on the same loss as the model by a separate optimiser (IAB's generator).

    Args:
        module: The module; it is moved to the device of the training.
        optimizer: Optimiser of its parameters; the learning rates follow the schedule.
        kept: Whether the module is used after the training. If not, a saved state of the finished training
            leaves it out.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    kept: bool = True


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Argument of ``on_epoch``: the epoch that ended (from 1), the number of epochs, and the mean loss."""

    number: int
    of: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One of the trainings of a run, with a title."""

    title: str
    training: Training


class Training:
    """A training in progress, always between two steps.

    Args:
        model: Maps images in [0, 1] to logits; trained in place, on ``device``.
        images: Images, uint8 ``[N, C, H, W]``; a tensor is moved to the device once, a stream batch by batch.
        objective: The loss of a batch.
        options: Options of the training.
        device: Device and precision.
        seed: Seed of the order and augmentation of the images.
        optimizer: Optimiser of the model's parameters; None is that of ``options``.
        companions: Modules that are trained with the model.

    Raises:
        UsageError: A step has fewer than ``FEWEST_IMAGES`` images for each rank.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        objective: Objective,
        options: TrainingOptions,
        *,
        device: Device,
        seed: int,
        optimizer: torch.optim.Optimizer | None = None,
        companions: Sequence[Companion] = (),
    ) -> None:
        self.device = device
        self.model = model
        place(model, device.torch)
        if isinstance(model, Classifier):
            model.trained = True
        self.images = images if isinstance(images, Stream) else images.to(device.torch)
        self.objective = objective
        self.options = options
        self.seed = seed
        self.done = 0
        self._batches = ceil(len(images) / options.batch_size)
        self.steps_per_epoch = min(self._batches, options.epoch_steps or self._batches)
        self.steps = self.steps_per_epoch * options.epochs
        self.micro_batch = options.batch_size
        main = Companion(module=self.model, optimizer=optimizer or _optimizer(self.model, options))
        self._learners = [main, *companions]
        for learner in self._learners:
            learner.module.to(device.torch)
            for group in learner.optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        if ranks.count() > 1 and (fewest := len(images) // self._batches) < FEWEST_IMAGES * ranks.count():
            raise UsageError(
                f"a step of {number_of(fewest, 'image')} is too small for {ranks.count()} devices",
                f"each needs {FEWEST_IMAGES}; use a larger --batch-size, or fewer devices",
            )
        self._distributed: DistributedObjective | None = None
        self._average = _MovingAverage(self.model, options.ema) if options.ema else None
        self._scaler = torch.amp.GradScaler(device.torch.type, enabled=device.precision == "fp16")
        self._generator = torch.Generator()
        self._order = lru_cache(maxsize=2)(self._order_of)  # a stream prefetches from the next epoch
        self._loss = torch.zeros((), device=device.torch)
        self._trained, self._seconds = 0, 0.0

    def run(
        self,
        *,
        on_step: Callable[[], None] | None = None,
        on_epoch: Callable[[Epoch], None] | None = None,
    ) -> None:
        """Train to the end.

        Args:
            on_step: Called between steps, for example to save the state; an exception ends the run.
            on_epoch: Called after each epoch; the model is in eval mode then.

        Raises:
            TrainingError: A single image does not fit into memory, or the loss is not finite.
            RankLostError: Another rank has ended; the state is that after the last complete step.
            Interrupted: Raised by ``on_step``.
        """
        cuda = [self.device.torch] if self.device.torch.type == "cuda" else []
        if isinstance(self.images, Stream):
            steps = range(self.done, self.steps)
            batches = (self._batch(*divmod(step, self.steps_per_epoch)) for step in steps)
            coming = (index[ranks.part(len(index))] for index in batches)
            self.images.follow(coming, self.device.wait)
        with torch.random.fork_rng(devices=cuda), self._distributing():
            while self.done < self.steps:
                epoch, batch = divmod(self.done, self.steps_per_epoch)
                if batch == 0 or self.done == 0:
                    self._loss.zero_()
                self._timed_step(self._batch(epoch, batch))
                self.done += 1
                if batch == self.steps_per_epoch - 1:
                    self._end_epoch(epoch + 1, on_epoch)
                if on_step:
                    on_step()
        if self._average:
            self.model.load_state_dict(self._average.module.state_dict())
        self._free_memory()
        self.model.eval()

    def throughput(self) -> Throughput:
        """The throughput since this object was created; steps before a resumption do not count."""
        return Throughput(images=self._trained, seconds=self._seconds, flops_per_image=self._count_flops())

    def state(self) -> dict[str, Any]:
        """The state that the rest of the run depends on."""
        return {
            "step": self.done,
            "loss": self._loss,
            "learners": [self._state_of(each) for each in self._learners],
            "average": self._average.state_dict() if self._average else {},
            "scaler": self._scaler.state_dict(),
        }

    def _state_of(self, learner: Companion) -> tuple[dict[str, Any], dict[str, Any]]:
        if learner.kept or self.done < self.steps:
            return learner.module.state_dict(), learner.optimizer.state_dict()
        return {}, {}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a ``state`` that a training with the same arguments returned.

        Raises:
            ValueError: The state is of another training; nothing is restored.
        """
        self._require_matching(state)
        for learner, (module, optimizer) in zip(self._learners, state["learners"], strict=True):
            if not module and not learner.kept:
                continue
            learner.module.load_state_dict(module)
            learner.optimizer.load_state_dict(optimizer)
        if not state["average"]:
            self._average = None  # the weights already are the average, or there is none
        if self._average:
            self._average.load_state_dict(state["average"])
        self._scaler.load_state_dict(state["scaler"])
        self._loss.copy_(state["loss"])
        self.done = state["step"]

    def _require_matching(self, state: Any) -> None:
        """Refuse a state that this training cannot have returned."""
        current = self.state()
        if not isinstance(state, dict) or state.keys() != current.keys():
            raise ValueError("it has other entries than the state of a training")
        step, learners, average = state["step"], state["learners"], state["average"]
        if type(step) is not int or not 0 <= step <= self.steps:
            raise ValueError(f"it is at no step of {self.steps}")
        for name in ("loss", "scaler", *(["average"] if average else [])):
            require_like(state[name], current[name], f"its {name}")
        if not isinstance(average, dict):
            raise ValueError("its average is no table")
        if not isinstance(learners, list) or len(learners) != len(self._learners):
            raise ValueError(f"it has not {len(self._learners)} networks")
        for learner, found in zip(self._learners, learners, strict=True):
            if not isinstance(found, tuple) or len(found) != 2:
                raise ValueError("it has a network without an optimizer")
            if found == ({}, {}) and not learner.kept and step == self.steps:
                continue
            require_like(found[0], learner.module.state_dict(), "its network")
            require_fits(found[1], learner.optimizer)

    def _free_memory(self) -> None:
        """Free the memory that only further steps need, since other trainings of the run may follow."""
        self._average = None
        self._drop_gradients()
        for learner in self._learners:
            learner.optimizer.state.clear()

    def _batch(self, epoch: int, batch: int) -> Tensor:
        return self._order(epoch)[batch]

    def _order_of(self, epoch: int) -> tuple[Tensor, ...]:
        """The batches of an epoch, each as an index of images."""
        generator = torch.Generator().manual_seed(_seed(self.seed, -1 - epoch))
        return torch.randperm(len(self.images), generator=generator).tensor_split(self._batches)

    def _take(self, index: Tensor, on_device: Tensor) -> Tensor:
        """The images at an index, uint8 on the device."""
        if isinstance(self.images, Stream):
            with span(DECODING):
                taken = self.images.take(index)
            return taken.to(self.device.torch, non_blocking=True)
        return self.images[on_device]

    def _timed_step(self, index: Tensor) -> None:
        started = time.perf_counter()
        with self._distributed.all_or_nothing() if self._distributed else nullcontext():
            self._step(index)
        self._seconds += time.perf_counter() - started
        self._trained += len(index)

    def _count_flops(self) -> float:
        """Floating-point operations for each image of a step, counted on a few images; no weights change."""
        for learner in self._learners:
            learner.module.eval()  # keeps the BatchNorm statistics as they are
        sample = torch.arange(min(32, self.micro_batch, len(self.images)))
        on_device = sample.to(self.device.torch)
        images = self._take(sample, on_device).float() / 255.0
        with FlopCounter() as counter:
            with self.device.autocast():
                loss = self.objective(images, on_device, 0.0)
            loss.backward()  # type: ignore[no-untyped-call]
        self._drop_gradients()
        return float(counter.total / len(images))

    @contextmanager
    def _distributing(self) -> Iterator[None]:
        """Train together with the other ranks, if there are any, while the context lasts.

        Before that, a trial step on this rank finds out how many images fit into memory; its gradients are
        dropped. A step cannot be repeated once gradients are partly exchanged.
        """
        if ranks.count() == 1:
            yield
            return
        modules = [learner.module for learner in self._learners]
        # an adversary uses some parameters in some steps only; a network uses the same ones in every step
        unused = not all(isinstance(module, Classifier) for module in modules)
        if self.done < self.steps:
            statistics = Statistics(modules)
            self._step(self._batch(*divmod(self.done, self.steps_per_epoch)), alone=True)
            statistics.undo()
            learning = [each for module in modules for each in module.parameters() if each.requires_grad]
            unused = unused or any(each.grad is None for each in learning)
            self._drop_gradients()
        self._distributed = DistributedObjective(self.objective, modules, unused=ranks.same(unused))
        try:
            yield
        finally:
            self._distributed = None

    def _step(self, index: Tensor, *, alone: bool = False) -> None:
        """Do one update; where memory runs out, micro-batches are halved and their gradients accumulated.

        Args:
            index: Index of the batch's images.
            alone: Whether this is a trial step without an update and without the other ranks.
        """
        while True:
            try:
                self._accumulate(index, alone=alone)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._distributed:
                    raise TrainingError(
                        f"process {ranks.rank()} ran out of memory in a step, on {self.device.name}",
                        "repeat the command with --resume; it continues with fewer images at a time",
                    ) from error
                if self.micro_batch == 1:
                    raise TrainingError(
                        f"one image does not fit into the memory of {self.device.name}",
                        "use another --device or a smaller --input-size",
                    ) from error
            self.micro_batch = ceil(min(self.micro_batch, len(index[ranks.part(len(index))])) / 2)
            self._drop_gradients()
            if self.device.torch.type == "cuda":
                torch.cuda.empty_cache()
        if alone:
            return
        with span(OPTIMIZER):
            self._update()

    def _update(self) -> None:
        share = self.options.share_of_rate(self.done / self.steps)
        for learner in self._learners:
            for group in learner.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share
            if _has_gradients(learner.optimizer):  # else a scaler refuses, and an optimizer has nothing to do
                self._scaler.step(learner.optimizer)
        self._scaler.update()
        if self._average:
            self._average.update_parameters(self.model)

    def _accumulate(self, index: Tensor, *, alone: bool) -> None:
        for learner in self._learners:
            learner.module.train()
        self._drop_gradients()
        seed = _seed(self.seed, self.done)
        torch.manual_seed(seed + ranks.rank())  # for dropout and the like inside the network
        generator = self._generator.manual_seed(seed)
        total = torch.zeros_like(self._loss)
        whole, rows = len(index), ranks.part(len(index))
        index = index[rows]
        with span(BATCH):
            on_device = index.to(self.device.torch, non_blocking=True)
            images = self._take(index, on_device)
            views = augment(images, self.options.augmentation, generator, part=rows, of=whole)
        distributed = self._distributed
        objective = distributed.objective if distributed else self.objective
        for start in range(0, len(index), self.micro_batch):
            part = slice(start, start + self.micro_batch)
            with span(BATCH):
                images = scaled(views[part])
            more = part.stop < len(index)
            with distributed.without_exchange(more) if distributed else nullcontext():
                with span(LOSS), self.device.autocast():
                    loss = objective(images, on_device[part], self.done / self.steps)
                share = loss.float() * (len(images) / whole)
                with span(BACKWARD):
                    # gradients are averaged over ranks, while shares of a mean must be added up
                    self._scaler.scale(share * ranks.count()).backward()  # type: ignore[no-untyped-call]
            total += share.detach()
        if distributed:
            distributed.combine(total, len(index) / whole)
        if not alone:
            self._loss += total / self.steps_per_epoch

    def _drop_gradients(self) -> None:
        for learner in self._learners:
            learner.optimizer.zero_grad(set_to_none=True)

    def _end_epoch(self, number: int, on_epoch: Callable[[Epoch], None] | None) -> None:
        started = time.perf_counter()
        loss = float(self._loss)  # waits for the device
        self._seconds += time.perf_counter() - started
        if not isfinite(loss):
            raise TrainingError(
                f"the training diverged: the loss is {loss} in epoch {number}",
                "use a lower --learning-rate, or --precision fp32",
            )
        if on_epoch:
            for learner in self._learners:
                learner.module.eval()
            on_epoch(Epoch(number=number, of=self.options.epochs, loss=loss))


def _optimizer(model: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    if options.optimizer == "adamw":
        decayed: dict[str, Any] = {"params": [p for p in trained if p.dim() > 1]}
        others: dict[str, Any] = {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0}
        return AdamW([decayed, others], lr=options.learning_rate, weight_decay=options.weight_decay)
    return SGD(
        trained,
        lr=options.learning_rate,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
    )


def _has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    return any(each.grad is not None for group in optimizer.param_groups for each in group["params"])


class _MovingAverage(AveragedModel):
    """A moving average of the model's weights and BatchNorm statistics.

    torch's own update copies a counter to the device in each step, which waits for a GPU.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take over the first weights, and a share of ``1 - decay`` of later ones."""
        first = bool(self.n_averaged == 0)
        pairs = [*zip(_tensors(self.module), _tensors(model), strict=True)]
        for own, given in pairs:
            if first:
                own.copy_(given)
            elif not own.is_floating_point():
                own.copy_(own * self.decay + given * (1 - self.decay))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        if floats and not first:
            torch._foreach_lerp_([own for own, _ in floats], [given for _, given in floats], 1 - self.decay)
        self.n_averaged += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _seed(seed: int, position: int) -> int:
    """The seed of a step (``position`` from 0) or of an epoch's order (``position`` below 0)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + (position * 2 + 1) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ (mixed >> 31)) >> 1
