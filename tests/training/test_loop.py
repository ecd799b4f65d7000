from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bcu_cli.errors import TrainingError, UsageError
from bcu_cli.images.augmentation import Augmentation
from bcu_cli.training import devices
from bcu_cli.training.devices import Device
from bcu_cli.training.loop import Interrupted, Training, TrainingOptions

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
    with pytest.raises(TrainingError, match="the loss is nan in epoch 1"):
        run.run()


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


def test_devices_that_are_not_there() -> None:
    for name in ("cuda:77", "nonsense"):
        with pytest.raises(UsageError, match=f"device {name} cannot be used"):
            devices.choose(name)
    with pytest.raises(UsageError, match="no precision int4"):
        devices.choose("cpu", "int4")


def test_an_eager_request_for_too_much_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert devices.is_out_of_memory(caught.value)
    assert not devices.is_out_of_memory(RuntimeError("shapes"))
