"""TorchScript: rebuilt where its tensors are known, run by its own code only where they are not."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from scripted import loaded_by_torch, script_network
from torch import nn

from bcu_cli.checkpoints import Format, read
from bcu_cli.errors import ArchitectureError, OutputError
from bcu_cli.models import build, load
from bcu_cli.models.export import write_like

if TYPE_CHECKING:
    from pathlib import Path

HALF = (0.5,)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning"
)


def saved(network: nn.Module, path: Path) -> Path:
    torch.jit.trace(network.eval(), torch.zeros(1, 3, 16, 16)).save(str(path))
    return path


def test_known_tensors_are_rebuilt(tmp_path: Path) -> None:
    checkpoint = read(saved(build("resnet20", num_classes=4), tmp_path / "model.pt"))
    loaded = load(checkpoint, mean=HALF, std=HALF)
    assert loaded.architecture.name == "resnet20"
    assert not isinstance(loaded.classifier.network, torch.jit.ScriptModule)


def test_unknown_tensors_run_the_files_own_code(tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    checkpoint = read(saved(network, tmp_path / "model.pt"))
    with pytest.raises(ArchitectureError, match="input size") as caught:
        load(checkpoint, mean=HALF, std=HALF)
    assert "--input-size" in caught.value.hint
    loaded = load(checkpoint, input_size=16, mean=HALF, std=HALF)
    assert (loaded.architecture.name, loaded.architecture.num_classes) == ("torchscript", 3)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded.classifier(images), network((images - 0.5) / 0.5))
    assert any("own TorchScript code" in line for line in loaded.evidence)


def test_a_network_of_its_own_code_is_written_as_its_file_was(tmp_path: Path) -> None:
    torch.manual_seed(0)  # half of a subnormal number is not exact
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).half()
    with torch.no_grad():
        script = torch.jit.script(network)
    script.save(str(tmp_path / "model.pt"))
    loaded = load(read(tmp_path / "model.pt"), input_size=16, mean=HALF, std=HALF)
    with torch.no_grad():
        for weight in loaded.classifier.network.parameters():
            weight.mul_(0.5)
    write_like(loaded, loaded.classifier, tmp_path / "out.pt", Format.TORCHSCRIPT)
    written = torch.jit.load(str(tmp_path / "out.pt"))
    assert {weight.dtype for weight in written.parameters()} == {torch.float16}
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = loaded.classifier.network(images)
        torch.testing.assert_close(written.float()(images), expected, atol=1e-3, rtol=1e-3)
    (tmp_path / "model.pt").write_bytes(b"another")
    with pytest.raises(OutputError, match="has changed since it was read"):
        write_like(loaded, loaded.classifier, tmp_path / "out.pt", Format.TORCHSCRIPT)


def normalising(momentum: float | None, *, affine: bool) -> nn.Sequential:
    """A network with uneven BatchNorm statistics over images and over features, in evaluation mode."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4, momentum=momentum, affine=affine),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(4, momentum=momentum),
        nn.Linear(4, 3),
    )
    for norm in (network[1], network[5]):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    return network.eval()


@torch.no_grad()
def require_alike(found: nn.Module, network: nn.Module) -> None:
    """Two steps in training mode, with evaluations around them, must give what torch's layers give."""
    wanted, images = copy.deepcopy(network), torch.rand(8, 3, 16, 16)
    before = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    torch.testing.assert_close(found.eval()(images), wanted.eval()(images))
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, before[name])
    found.train(), wanted.train()
    for _ in range(2):
        torch.testing.assert_close(found(images), wanted(images))
    torch.testing.assert_close(found.eval()(images), wanted.eval()(images))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("traced", [True, False])
def test_batch_norm_follows_the_mode_of_the_network(
    momentum: float | None, affine: bool, traced: bool
) -> None:
    network = normalising(momentum, affine=affine)
    script = script_network(network, torch.rand(2, 3, 16, 16) if traced else None)
    require_alike(script, network)
    trained = copy.deepcopy(network).train()
    fresh = script_network(network, torch.rand(2, 3, 16, 16) if traced else None).train()
    images = torch.rand(8, 3, 16, 16)
    trained(images), fresh(images)
    torch.testing.assert_close(dict(fresh.state_dict()), dict(trained.state_dict()))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_of_an_exported_program_follows_the_mode(
    tmp_path: Path, momentum: float | None, affine: bool
) -> None:
    network = normalising(momentum, affine=affine)
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (torch.rand(2, 3, 16, 16),), dynamic_shapes=batch)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = load(read(tmp_path / "model.pt2"), input_size=16, mean=(0.0,), std=(1.0,))
    require_alike(loaded.classifier, network)


def test_dropout_that_was_traced_in_evaluation_mode_stays_out() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(768, 3)).eval()
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(script_network(network, images).train()(images), network(images))


def test_two_networks_of_one_file_keep_their_own_statistics() -> None:
    original = script_network(normalising(0.1, affine=True), torch.rand(2, 3, 16, 16))
    student = copy.deepcopy(original).train()
    kept = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    student(torch.rand(8, 3, 16, 16))
    assert not torch.equal(student.state_dict()["1.running_mean"], kept["1.running_mean"])
    torch.testing.assert_close(dict(original.state_dict()), kept)


def test_a_traced_file_is_trained_and_written_as_torch_answers(tmp_path: Path) -> None:
    path = saved(normalising(0.1, affine=True), tmp_path / "model.pt")
    loaded = load(read(path), input_size=16, mean=HALF, std=HALF)
    network = loaded.classifier.network
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loaded.classifier.train()(torch.rand(8, 3, 16, 16)).square().mean().backward()
        optimizer.step()
    loaded.classifier.eval()
    write_like(loaded, loaded.classifier, tmp_path / "out.pt", Format.TORCHSCRIPT)
    written = loaded_by_torch((tmp_path / "out.pt").read_bytes())
    assert written.state_dict()["1.num_batches_tracked"] == 3
    assert "False, 0.1" in getattr(written, "1").code  # the file's own
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(written(images), network(images))
