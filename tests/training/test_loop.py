from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bcu_cli.errors import AnswersError, TrainingError, UsageError
from bcu_cli.images.augmentation import Augmentation
from bcu_cli.models.classifier import Classifier
from bcu_cli.models.embedded.opening import identity_preprocessing
from bcu_cli.training import devices
from bcu_cli.training.devices import Device
from bcu_cli.training.inference import predict
from bcu_cli.training.loop import Companion, Interrupted, Training
from bcu_cli.training.options import Schedule, TrainingOptions
from bcu_cli.training.throughput import Throughput, measure_peak

CPU = Device(torch=torch.device("cpu"), precision="fp32")
IMAGES = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(50) % 4


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(288, 4),
    ]
    return nn.Sequential(*layers)


def training(
    model: nn.Module, *, epochs: int = 3, batch_size: int = 16, seed: int = 1, device: Device = CPU
) -> Training:
    def objective(images: torch.Tensor, index: torch.Tensor, progress: float) -> torch.Tensor:
        return F.cross_entropy(model(images).float(), LABELS[index])

    options = TrainingOptions(
        epochs=epochs, batch_size=batch_size, learning_rate=0.05, augmentation=Augmentation(crop_padding=0)
    )
    return Training(model, IMAGES, objective, options, device=device, seed=seed)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


def trained(**options: int) -> torch.Tensor:
    model = network()
    training(model, **options).run()
    return weights(model)


def test_the_same_seed_gives_the_same_weights() -> None:
    assert torch.equal(trained(seed=1), trained(seed=1))
    assert not torch.equal(trained(seed=1), trained(seed=2))


def test_an_epoch_of_so_many_steps_sees_other_images_each_time() -> None:
    seen: list[list[int]] = []
    model = network()

    def objective(images: torch.Tensor, index: torch.Tensor, progress: float) -> torch.Tensor:
        seen.append(index.tolist())
        return F.cross_entropy(model(images).float(), LABELS[index])

    numbers: list[int] = []
    options = TrainingOptions(epochs=4, epoch_steps=2, batch_size=10)
    whole = Training(model, IMAGES, objective, options, device=CPU, seed=1)
    assert (whole.steps_per_epoch, whole.steps) == (2, 8)
    whole.run(on_epoch=lambda epoch: numbers.append(epoch.number))
    assert numbers == [1, 2, 3, 4]
    epochs = [{*seen[i], *seen[i + 1]} for i in range(0, 8, 2)]
    assert [len(images) for images in epochs] == [20] * 4  # none of them twice in an epoch
    assert len(set.union(*epochs)) > 20


def test_it_learns() -> None:
    model, losses = network(), []
    training(model, epochs=20).run(on_epoch=lambda epoch: losses.append(epoch.loss))
    assert len(losses) == 20
    assert losses[-1] < losses[0] / 2


def test_every_image_is_seen_once_an_epoch_in_batches_of_equal_size() -> None:
    seen: list[torch.Tensor] = []
    model = network()

    def objective(images: torch.Tensor, index: torch.Tensor, progress: float) -> torch.Tensor:
        seen.append(index)
        return model(images).sum() * 0

    Training(model, IMAGES, objective, TrainingOptions(epochs=2, batch_size=16), device=CPU, seed=0).run()
    assert [len(index) for index in seen] == [13, 13, 12, 12] * 2
    orders = [torch.cat(seen[:4]), torch.cat(seen[4:])]
    assert all(order.sort().values.tolist() == list(range(50)) for order in orders)
    assert not torch.equal(*orders)


@pytest.mark.parametrize("stop_after", [1, 4, 7, 11])
def test_interrupted_and_resumed_it_ends_with_the_same_weights(stop_after: int) -> None:
    model = network()
    run = training(model)

    def stop() -> None:
        if run.done == stop_after:
            raise Interrupted

    with pytest.raises(Interrupted):
        run.run(on_step=stop)
    kept = run.state()
    other = network()
    resumed = training(other)
    resumed.restore(kept)
    resumed.run()
    assert torch.equal(weights(other), trained())


def test_a_batch_that_does_not_fit_is_halved_and_the_step_stays_the_same() -> None:
    def after_one_epoch(largest: int) -> tuple[torch.Tensor, int]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))  # without BatchNorm the halves add up exactly

        def objective(images: torch.Tensor, index: torch.Tensor, progress: float) -> torch.Tensor:
            if len(images) > largest:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return F.cross_entropy(model(images), LABELS[index])

        run = Training(model, IMAGES, objective, TrainingOptions(epochs=1, batch_size=50), device=CPU, seed=0)
        run.run()
        return weights(model), run.micro_batch

    whole, _ = after_one_epoch(50)
    parts, micro_batch = after_one_epoch(8)
    assert micro_batch == 7
    assert torch.allclose(whole, parts, atol=1e-6)


def test_a_single_image_that_does_not_fit_is_an_error() -> None:
    model = network()

    def objective(images: torch.Tensor, index: torch.Tensor, progress: float) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    run = Training(model, IMAGES, objective, TrainingOptions(epochs=1), device=CPU, seed=0)
    with pytest.raises(TrainingError, match="one image does not fit into the memory of cpu"):
        run.run()


def test_other_errors_are_not_taken_for_want_of_memory() -> None:
    def objective(images: torch.Tensor, index: torch.Tensor, progress: float) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    run = Training(network(), IMAGES, objective, TrainingOptions(epochs=1), device=CPU, seed=0)
    with pytest.raises(RuntimeError, match="shapes"):
        run.run()


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    model = network()

    def objective(images: torch.Tensor, index: torch.Tensor, progress: float) -> torch.Tensor:
        return model(images).sum() * float("nan")

    run = Training(model, IMAGES, objective, TrainingOptions(epochs=2), device=CPU, seed=0)
    with pytest.raises(TrainingError, match="training diverged: the loss is nan in epoch 1"):
        run.run()


def test_a_network_that_diverged_is_no_fault_of_its_file() -> None:
    original = Classifier(network(), identity_preprocessing((3, 8, 8)), 4, name="a.pt")
    model = copy.deepcopy(original)
    seen = []

    def objective(images: torch.Tensor, index: torch.Tensor, progress: float) -> torch.Tensor:
        return F.cross_entropy(model(images), LABELS[index])

    options = TrainingOptions(epochs=1, batch_size=50, learning_rate=1e38)
    run = Training(model, IMAGES, objective, options, device=CPU, seed=0)
    run.run(on_epoch=lambda epoch: seen.append(epoch.loss))
    assert seen[0] < 100  # the loss of the only step is that before it
    with pytest.raises(TrainingError, match="the training diverged") as caught:
        predict(model, IMAGES, CPU)
    assert "--learning-rate" in caught.value.hint
    with torch.no_grad():
        next(original.parameters()).fill_(float("inf"))
    with pytest.raises(AnswersError, match=r"a\.pt answers with NaN"):
        predict(original, IMAGES, CPU)


def test_the_global_random_state_is_left_alone() -> None:
    model = network()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    training(model).run()
    assert torch.equal(torch.rand(1), expected)


def test_bf16_learns_too() -> None:
    model, losses = network(), []
    device = Device(torch=torch.device("cpu"), precision="bf16")
    training(model, epochs=20, device=device).run(on_epoch=lambda epoch: losses.append(epoch.loss))
    assert losses[-1] < losses[0] / 2


def test_fp16_scales_its_gradients_and_learns() -> None:
    model, losses = network(), []
    run = training(model, epochs=20, device=Device(torch=torch.device("cpu"), precision="fp16"))
    run.run(on_epoch=lambda epoch: losses.append(epoch.loss))
    assert run.state()["scaler"]["scale"] > 1
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("steps", [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("one-cycle", [0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    ],
)
def test_schedules(schedule: Schedule, expected: list[float]) -> None:
    model, rates = network(), []
    options = TrainingOptions(epochs=8, batch_size=50, learning_rate=0.5, schedule=schedule)

    def objective(images: torch.Tensor, index: torch.Tensor, progress: float) -> torch.Tensor:
        return model(images).sum() * 0

    run = Training(model, IMAGES, objective, options, device=CPU, seed=0)
    (sgd,) = (learner.optimizer for learner in run._learners)
    run.run(on_step=lambda: rates.append(sgd.param_groups[0]["lr"]))
    assert rates == pytest.approx([0.5 * share for share in expected])


def test_the_moving_average_takes_the_place_of_the_weights() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    seen: list[torch.Tensor] = []

    def objective(images: torch.Tensor, index: torch.Tensor, progress: float) -> torch.Tensor:
        return F.cross_entropy(model(images), LABELS[index])

    options = TrainingOptions(epochs=3, batch_size=50, learning_rate=0.5, ema=0.75)
    run = Training(model, IMAGES, objective, options, device=CPU, seed=0)
    run.run(on_step=lambda: seen.append(weights(model).clone()))
    expected = seen[0]  # the average starts with the first weights
    for later in seen[1:]:
        expected = 0.75 * expected + 0.25 * later
    assert torch.allclose(weights(model), expected, atol=1e-6)
    with pytest.raises(UsageError, match=r"decay of 1\.0"):
        TrainingOptions(epochs=1, ema=1.0)


def with_companion(seed: int = 1, *, kept: bool = True) -> tuple[Training, nn.Module]:
    torch.manual_seed(seed)
    model, companion = network(), nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    adam = torch.optim.Adam(companion.parameters(), lr=0.01)

    def objective(images: torch.Tensor, index: torch.Tensor, progress: float) -> torch.Tensor:
        return F.cross_entropy(model(companion(images)), LABELS[index])

    options = TrainingOptions(epochs=3, batch_size=16, ema=0.9)
    together = [Companion(module=companion, optimizer=adam, kept=kept)]
    return Training(model, IMAGES, objective, options, device=CPU, seed=0, companions=together), companion


def test_with_fp16_a_companion_may_have_no_gradient() -> None:
    """As an adversary has in a step whose perturbed images all are of the kind without parameters."""
    model, companion = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), nn.Linear(2, 2)
    before = [parameter.detach().clone() for parameter in companion.parameters()]

    def objective(images: torch.Tensor, index: torch.Tensor, progress: float) -> torch.Tensor:
        return F.cross_entropy(model(images).float(), LABELS[index])

    together = [Companion(module=companion, optimizer=torch.optim.Adam(companion.parameters()), kept=False)]
    fp16 = Device(torch=torch.device("cpu"), precision="fp16")
    options = TrainingOptions(epochs=1, batch_size=16)
    Training(model, IMAGES, objective, options, device=fp16, seed=0, companions=together).run()
    assert all(torch.equal(a, b) for a, b in zip(companion.parameters(), before, strict=True))


def test_a_companion_learns_too_and_is_resumed() -> None:
    whole, companion = with_companion()
    before = weights(companion)
    whole.run()
    assert not torch.equal(weights(companion), before)

    run, _ = with_companion()

    def stop() -> None:
        if run.done == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        run.run(on_step=stop)
    kept = run.state()
    resumed, other = with_companion(seed=2)
    resumed.restore(kept)
    resumed.run()
    assert torch.equal(weights(other), weights(companion))
    assert torch.equal(weights(resumed.model), weights(whole.model))


def test_a_companion_that_is_not_kept_is_left_out_of_the_state_once_it_is_over() -> None:
    run, companion = with_companion(kept=False)
    halfway: list[dict[str, Any]] = []
    run.run(on_step=lambda: halfway.append(copy.deepcopy(run.state())) if run.done == 5 else None)
    assert halfway[0]["learners"][1][0]
    kept = run.state()
    assert kept["learners"][1] == ({}, {})
    resumed, _ = with_companion(seed=2, kept=False)
    resumed.restore(kept)
    resumed.run()
    assert torch.equal(weights(resumed.model), weights(run.model))
    again, other = with_companion(seed=2, kept=False)
    again.restore(halfway[0])
    again.run()
    assert torch.equal(weights(other), weights(companion))
    always, _ = with_companion()
    with pytest.raises(ValueError, match="its network"):
        always.restore(kept)


def test_adamw_learns_and_decays_matrices_and_kernels_alone() -> None:
    model = network()
    options = TrainingOptions(
        epochs=15, batch_size=16, optimizer="adamw", learning_rate=0.01, weight_decay=0.05
    )
    losses: list[float] = []

    def objective(images: torch.Tensor, index: torch.Tensor, progress: float) -> torch.Tensor:
        return F.cross_entropy(model(images).float(), LABELS[index])

    run = Training(model, IMAGES, objective, options, device=CPU, seed=0)
    (learner,) = run._learners
    decays = {
        p.dim(): group["weight_decay"] for group in learner.optimizer.param_groups for p in group["params"]
    }
    assert decays == {4: 0.05, 2: 0.05, 1: 0.0}
    run.run(on_epoch=lambda epoch: losses.append(epoch.loss))
    assert losses[-1] < losses[0]


def test_when_it_is_over_it_holds_nothing_but_the_weights() -> None:
    run, companion = with_companion()
    run.run()
    ended = {name: value.clone() for name, value in run.model.state_dict().items()}
    kept = run.state()
    assert not kept["average"]
    assert not any(optimizer["state"] for _, optimizer in kept["learners"])
    assert all(each.grad is None for module in (run.model, companion) for each in module.parameters())
    resumed, _ = with_companion(seed=2)
    resumed.restore(kept)
    resumed.run()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, ended[name])


def test_throughput_counts_images_and_the_operations_of_a_step() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4, bias=False))
    run = training(model, epochs=2)
    run.run()
    before = weights(model)
    measured = run.throughput()
    assert measured.images == 100
    assert measured.seconds > 0
    # forward and the weights' gradient: 2 · 192 · 4 each; images need no gradient
    assert measured.flops_per_image == 2 * (2 * 192 * 4)
    assert torch.equal(weights(model), before)


def test_share_of_peak() -> None:
    report = Throughput(images=1000, seconds=2.0, flops_per_image=1e6).as_json(peak=2e9)
    assert report["images_per_second"] == 500
    assert report["share_of_peak"] == 0.25
    assert measure_peak(CPU) > 1e8


def test_devices_that_are_not_there() -> None:
    for name, said in (("cuda:77", "device cuda:77 cannot be used"), ("nonsense", "no device nonsense")):
        with pytest.raises(UsageError, match=said):
            devices.choose(name)
    with pytest.raises(UsageError, match="no precision int4"):
        devices.choose("cpu", "int4")


def test_an_eager_request_for_too_much_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert devices.is_out_of_memory(caught.value)
    assert not devices.is_out_of_memory(RuntimeError("shapes"))
