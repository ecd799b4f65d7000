"""Size and normalisation of networks without BatchNorm, by the consistency of their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bcu_cli.errors import ArchitectureError
from bcu_cli.images.sources import signs
from bcu_cli.models.inputs import consistency
from bcu_cli.models.preprocessing import Preprocessing
from bcu_cli.workflows import loading

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")  # of tracers and exporters, which are not what is tested

CODE = """
import torch
from torch import nn

BITS = torch.tensor([[1.0 - 2 * (k >> c & 1) for c in range(3)] for k in range(8)])  # [8, 3]


class Picky(nn.Module):
    \"\"\"Knows eight colours of images in [0, 1], and nothing of others.\"\"\"

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            self.first.bias.fill_(-0.4)

    def forward(self, x):
        known = ((x >= -0.01) & (x <= 1.01)).float().mean((1, 2, 3)) > 0.99
        return 60 * self.first(x).mean((2, 3)) @ BITS.T * known[:, None]
"""


def picky(folder: Path) -> tuple[Path, str]:
    """Weights and ``--arch`` of that network."""
    code, weights = folder / "code.py", folder / "m.pt"
    code.write_text(CODE)
    space: dict[str, Any] = {}
    exec(CODE, space)
    torch.save(space["Picky"]().state_dict(), weights)
    return weights, f"{code}:Picky"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("signs")
    signs.write_folder(path, 16, seed=1, labelled=False)
    return path


def test_the_normalisation_is_found(folder: Path, tmp_path: Path) -> None:
    path, arch = picky(tmp_path)
    options = loading.ModelOptions(arch=arch, input_size=32)
    loaded = loading.load_model(path, options, pictures=folder)
    assert (loaded.preprocessing.mean, loaded.preprocessing.std) == ((0.0,) * 3, (1.0,) * 3)
    assert "consistent answers: none (consistency " in " ".join(loaded.evidence)


def test_random_weights_ask_and_name_the_best_two(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 5))
    path = tmp_path / "m.pt"
    torch.jit.script(network.eval()).save(str(path))
    with pytest.raises(
        ArchitectureError, match=r"do not decide between .*\(consistency .*, .*\(cons"
    ) as caught:
        loading.load_model(path, loading.ModelOptions(input_size=32), pictures=folder)
    assert "--mean" in caught.value.hint


def test_consistency_is_zero_without_knowledge_and_never_above_the_entropy() -> None:
    how = Preprocessing(input_size=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    images = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_tensor([[9.0, 0.0, 0.0]]).expand(len(x), 3) + 0 * x.mean()

    class Brightness(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bright = 1e4 * (x.mean((1, 2, 3)) - 0.5)
            return torch.stack([bright, -bright], 1)

    assert abs(consistency.consistency(Constant(), how, images, "m")) < 0.01
    halves = images * 0.5 + 0.5 * (torch.arange(32) % 2).view(-1, 1, 1, 1)
    assert consistency.consistency(Brightness(), how, halves, "m") == pytest.approx(np.log(2), abs=0.01)


def test_the_margin_is_relative() -> None:
    assert consistency.is_clear(1.0, 0.7)
    assert not consistency.is_clear(1.0, 0.9)
    assert not consistency.is_clear(0.1, 0.0)
