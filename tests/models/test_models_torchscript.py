"""TorchScript: rebuilt where its tensors are known, run by its own code only where they are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
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
