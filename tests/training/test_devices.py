"""Trainings on two processes, which exchange gradients by gloo, beside the same on one."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcu_cli.errors import UsageError
from bcu_cli.images.augmentation import Augmentation, augment
from bcu_cli.training import ranks
from bcu_cli.training.devices import Device
from bcu_cli.training.inference import predict
from bcu_cli.training.loop import Companion, Training
from bcu_cli.training.options import TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Callable

CPU = Device(torch=torch.device("cpu"), precision="fp32")
IMAGES = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(50) % 4
VIEWS = Augmentation(crop_padding=1, flip=True, rotation=10.0, cutout=2)
OPTIONS = TrainingOptions(epochs=3, batch_size=17, learning_rate=0.05, augmentation=VIEWS)


class Noise(nn.Module):
    """A companion, of which a loss uses one part or the other."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterList(torch.zeros(3, 8, 8) for _ in range(2))


def network(*norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


def weights(*modules: nn.Module) -> Tensor:
    return torch.cat([value.flatten().float() for m in modules for value in m.state_dict().values()])


def trained(*norm: nn.Module, fits: int | None = None, **options: float) -> tuple[Tensor, Tensor]:
    """The weights and the mean loss of each epoch; on rank 1 only so many images fit into memory at once."""
    model, losses = network(*norm), list[float]()

    def objective(images: Tensor, index: Tensor, progress: float) -> Tensor:
        if fits and ranks.rank() == 1 and len(images) > fits:
            raise MemoryError
        return F.cross_entropy(model(images), LABELS[index])

    run = Training(model, IMAGES, objective, TrainingOptions(**(vars(OPTIONS) | options)), device=CPU, seed=1)
    run.run(on_epoch=lambda epoch: losses.append(epoch.loss))
    assert run.throughput().images == 3 * 50
    return weights(model), torch.tensor(losses)


def with_a_companion() -> tuple[Tensor, Tensor]:
    """Of a loss that uses half of the companion for four images alone, the other half until half-way."""
    model, noise = network(), Noise()

    def objective(images: Tensor, index: Tensor, progress: float) -> Tensor:
        which = (index % 13 == 0).nonzero()[:, 0]
        if len(which):
            images = images.index_add(0, which, noise.parts[0].expand(len(which), -1, -1, -1))
        if progress < 0.5:
            images = images + noise.parts[1]
        return F.cross_entropy(model(images), LABELS[index])

    companion = Companion(module=noise, optimizer=torch.optim.Adam(noise.parameters(), lr=0.01))
    Training(model, IMAGES, objective, OPTIONS, device=CPU, seed=1, companions=[companion]).run()
    return weights(model, noise), torch.zeros(())


def stopped_and_resumed() -> tuple[Tensor, Tensor]:
    """Of a training whose state rank 0 alone has kept."""
    model = network(nn.BatchNorm2d(8))

    def made(network: nn.Module) -> Training:
        def objective(images: Tensor, index: Tensor, progress: float) -> Tensor:
            return F.cross_entropy(network(images), LABELS[index])

        return Training(network, IMAGES, objective, OPTIONS, device=CPU, seed=1)

    class Stop(Exception):  # noqa: N818
        pass

    def stop() -> None:
        if first.done == 4:
            raise Stop

    first = made(model)
    with pytest.raises(Stop):
        first.run(on_step=stop)
    kept = ranks.same(first.state() if ranks.rank() == 0 else None)
    other = network(nn.BatchNorm2d(8))
    again, losses = made(other), list[float]()
    assert kept
    again.restore(kept)
    again.run(on_epoch=lambda epoch: losses.append(epoch.loss))
    return weights(other), torch.tensor(losses)


def answers() -> tuple[Tensor, Tensor]:
    """Of images that are divided unevenly, and of one that cannot be divided."""
    model = network()
    return predict(model, IMAGES[:33], CPU), predict(model, IMAGES[:1], CPU)


def a_lost_step() -> tuple[Tensor, Tensor]:
    """A step that fails after the forward pass leaves the statistics as they were."""
    model = network(nn.BatchNorm2d(8))
    before: list[Tensor] = []

    def objective(images: Tensor, index: Tensor, progress: float) -> Tensor:
        loss = F.cross_entropy(model(images), LABELS[index])
        if run.done == 2:
            raise RuntimeError("gloo: Connection closed by peer")
        return loss

    run = Training(model, IMAGES, objective, OPTIONS, device=CPU, seed=1)
    with pytest.raises(ranks.RankLostError):
        run.run(on_step=lambda: before.append(weights(model)))
    assert len(before) == run.done == 2
    return weights(model), before[-1]


def gradients() -> tuple[Tensor, Tensor]:
    """In how many pieces of memory those of a step lie."""
    model, found = network(), list[set[int]]()

    def objective(images: Tensor, index: Tensor, progress: float) -> Tensor:
        return F.cross_entropy(model(images), LABELS[index])

    def look() -> None:
        found.append(
            {each.grad.untyped_storage().data_ptr() for each in model.parameters() if each.grad is not None}
        )

    Training(model, IMAGES, objective, OPTIONS, device=CPU, seed=1).run(on_step=look)
    return torch.tensor([len(each) for each in found]), torch.zeros(())


CASES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "plain": trained,
    "averaged": partial(trained, ema=0.9),
    "memory": partial(trained, fits=3),
    "companion": with_a_companion,
    "normalised": lambda: trained(nn.BatchNorm2d(8)),
    "resumed": stopped_and_resumed,
    "answers": answers,
    "gradients": gradients,
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, Tensor]]:
    """What comes out on two processes, which run this file as a script."""
    out = tmp_path_factory.mktemp("two") / "out.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--local-addr=localhost", __file__]
    path = os.pathsep.join(sys.path)
    ran = subprocess.run(
        [*command, str(out)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
    )
    assert ran.returncode == 0, ran.stderr
    assert "Warning" not in ran.stderr
    found: dict[str, tuple[Tensor, Tensor]] = torch.load(out, weights_only=True)
    return found


@pytest.mark.parametrize("case", ["plain", "averaged", "memory", "companion"])
def test_two_processes_learn_what_one_learns(case: str, two: dict[str, tuple[Tensor, Tensor]]) -> None:
    for one, other in zip(CASES[case](), two[case], strict=True):
        torch.testing.assert_close(other, one, rtol=0.0, atol=1e-6)


def test_what_fits_into_memory_changes_nothing(two: dict[str, tuple[Tensor, Tensor]]) -> None:
    torch.testing.assert_close(two["memory"][0], two["plain"][0], rtol=0.0, atol=1e-6)


def test_batchnorm_takes_the_statistics_of_a_part_and_keeps_those_of_all(
    two: dict[str, tuple[Tensor, Tensor]],
) -> None:
    one, other = CASES["normalised"]()[0], two["normalised"][0]
    assert not torch.allclose(one, other, atol=1e-6)
    assert float((one - other).norm() / one.norm()) < 0.02
    model = network(nn.BatchNorm2d(8))
    names = [name for name, value in model.state_dict().items() for _ in range(value.numel())]
    steps = [i for i, name in enumerate(names) if name.endswith("num_batches_tracked")]
    assert other[steps].tolist() == one[steps].tolist() == [9.0]


def test_a_resumed_run_ends_with_the_same_bytes(two: dict[str, tuple[Tensor, Tensor]]) -> None:
    assert torch.equal(two["resumed"][0], two["normalised"][0])
    assert torch.equal(two["resumed"][1], two["normalised"][1][-2:])


def test_each_process_answers_for_its_part(two: dict[str, tuple[Tensor, Tensor]]) -> None:
    for one, other in zip(answers(), two["answers"], strict=True):
        assert torch.equal(one, other)


def test_gradients_are_held_once_where_they_are_exchanged(two: dict[str, tuple[Tensor, Tensor]]) -> None:
    assert two["gradients"][0].tolist() == [1] * 9


def test_a_step_that_another_process_ends_leaves_the_last_whole_one(
    two: dict[str, tuple[Tensor, Tensor]],
) -> None:
    assert torch.equal(*two["lost"])


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_parts_are_equal_within_one_and_together_all(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "count", lambda: number)
    parts = []
    for rank in range(number):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        parts.append(range(50)[ranks.part(50)])
    assert [i for part in parts for i in part] == list(range(50))
    assert {len(part) for part in parts} <= {50 // number, 50 // number + 1}


@pytest.mark.parametrize("views", [VIEWS, Augmentation(crop_padding=0, flip=False), Augmentation()])
def test_a_part_has_the_views_that_it_has_in_the_whole_batch(views: Augmentation) -> None:
    whole = augment(IMAGES, views, torch.Generator().manual_seed(3))
    part = slice(20, 37)
    own = augment(IMAGES[part], views, torch.Generator().manual_seed(3), part=part, of=50)
    assert torch.equal(own, whole[part])


def test_steps_too_small_to_be_divided_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 9)  # 50 images in 3 steps: 16 in the smallest
    with pytest.raises(UsageError, match="a step of 16 images is too small for 9 devices"):
        Training(network(), IMAGES, lambda *_: torch.zeros(()), OPTIONS, device=CPU, seed=0)
    monkeypatch.setattr(ranks, "count", lambda: 8)
    Training(network(), IMAGES, lambda *_: torch.zeros(()), OPTIONS, device=CPU, seed=0)


def main(out: Path) -> None:
    with ranks.joined():
        found = {name: case() for name, case in CASES.items()} | {"lost": a_lost_step()}
        for values in found.values():
            for value in values:
                assert torch.equal(ranks.same(value), value)  # all processes hold the same
        if ranks.rank() == 0:
            torch.save(found, out)
    os._exit(0)  # the step that was lost leaves torch's threads with work that they would abort over


if __name__ == "__main__":
    main(Path(sys.argv[1]))
