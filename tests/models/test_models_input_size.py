"""The input size of embedded code that does not state it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bcu_cli.checkpoints import read
from bcu_cli.errors import ArchitectureError
from bcu_cli.images.augmentation import Augmentation, augment
from bcu_cli.images.sources import signs
from bcu_cli.images.sources.common_side import common_side
from bcu_cli.models import build, load
from bcu_cli.models.preprocessing import NORMALISATIONS
from bcu_cli.workflows import loading

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")  # of tracers, which are not what is tested

NOTHING_SAID = loading.ModelOptions()


class OwnNorm(nn.Module):
    """A batch normalisation that is none of torch's classes."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, training=self.training, momentum=0.9
        )


class Pooled(nn.Module):
    """Accepts any size."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 12, 3, padding=1), norm(12)
        self.second, self.norm2 = nn.Conv2d(12, 24, 3, stride=2, padding=1), norm(24)
        self.last = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.norm2(self.second(x))).mean((2, 3)))


class Flattened(nn.Module):
    """Accepts 64x64 only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 4, 8, stride=8), nn.Linear(4 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)).flatten(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("signs")
    signs.write_folder(path, 24, seed=0, labelled=False)
    return path


def adapted(
    network: nn.Module,
    folder: Path,
    *,
    side: int = 32,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = ((0.5,), (0.5,)),
    border: int = 0,
) -> nn.Module:
    """The network with BatchNorm statistics of random crops of the folder's images with a black border."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in normalisation)
    views, drawn = Augmentation(crop_padding=border, flip=False), torch.Generator().manual_seed(1)
    images = torch.stack(
        [
            torch.from_numpy(np.array(Image.open(file).convert("RGB").resize((side, side)))).permute(2, 0, 1)
            for file in sorted(folder.iterdir())
        ]
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.9
    network.train()
    with torch.no_grad():
        for _ in range(8):
            network((augment(images, views, drawn).float() / 255 - mean) / std)
    return network.eval()


def scripted(network: nn.Module, path: Path) -> Path:
    torch.jit.script(network).save(str(path))
    return path


def traced(network: nn.Module, path: Path) -> Path:
    torch.jit.trace(network, torch.rand(2, 3, 32, 32)).save(str(path))
    return path


@pytest.mark.parametrize(
    ("write", "norm"), [(scripted, nn.BatchNorm2d), (traced, nn.BatchNorm2d), (traced, OwnNorm)]
)
def test_size_and_normalisation_come_from_the_images(
    write: Any, norm: Any, folder: Path, tmp_path: Path
) -> None:
    path = write(adapted(Pooled(norm), folder), tmp_path / "m.pt")
    loaded = loading.load_model(path, NOTHING_SAID, pictures=folder)
    assert loaded.preprocessing.input_size == (3, 32, 32)
    assert (loaded.preprocessing.mean, loaded.preprocessing.std) == ((0.5,) * 3, (0.5,) * 3)
    said = " ".join(loaded.evidence)
    assert "input size 32x32: size of the images" in said
    assert "BatchNorm statistics: 0.5/0.5" in said


@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize("name", ["CIFAR-10", "CIFAR-10 (per image)", "GTSRB", "0.5/0.5"])
def test_images_tell_the_normalisation_of_a_training_on_crops_with_a_black_border(
    name: str, border: int, folder: Path, tmp_path: Path
) -> None:
    """As they are, such images fit a normalisation of higher contrast than the network's own."""
    path, own = tmp_path / "m.pth", {one.name: one for one in NORMALISATIONS}[name]
    network = adapted(
        build("resnet8_w4", num_classes=5), folder, normalisation=(own.mean, own.std), border=border
    )
    torch.save(network.state_dict(), path)
    found = loading.load_model(path, NOTHING_SAID, pictures=folder).preprocessing
    assert (found.mean, found.std) == (own.mean, own.std)


def test_images_tell_the_size_of_a_training_on_crops_with_a_black_border(
    folder: Path, tmp_path: Path
) -> None:
    path = scripted(adapted(Pooled(), folder, border=4), tmp_path / "m.pt")
    found = loading.load_model(path, NOTHING_SAID, pictures=folder).preprocessing
    assert found.input_size == (3, 32, 32)


def test_an_option_overrides_the_size_of_the_images(folder: Path, tmp_path: Path) -> None:
    path = scripted(adapted(Pooled(), folder), tmp_path / "m.pt")
    options = loading.ModelOptions(input_size=48, mean=(0.5,), std=(0.5,))
    assert loading.load_model(path, options, pictures=folder).preprocessing.input_size == (3, 48, 48)


def test_layers_that_accept_one_size_decide(tmp_path: Path) -> None:
    loaded = load(read(scripted(Flattened().eval(), tmp_path / "m.pt")), mean=(0.5,), std=(0.5,))
    assert loaded.preprocessing.input_size == (3, 64, 64)
    assert "the only usual size that its layers accept" in " ".join(loaded.evidence)


def test_layers_win_over_images_of_another_size(folder: Path, tmp_path: Path) -> None:
    options = loading.ModelOptions(mean=(0.5,), std=(0.5,))
    loaded = loading.load_model(scripted(Flattened().eval(), tmp_path / "m.pt"), options, pictures=folder)
    assert loaded.preprocessing.input_size == (3, 64, 64)


def test_images_of_several_sizes_ask(folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())[:20]):
        Image.open(file).resize((32 + number, 32)).save(images / file.name)
    path = scripted(adapted(Pooled(), folder), tmp_path / "m.pt")
    with pytest.raises(ArchitectureError, match="the images differ in size") as caught:
        loading.load_model(path, NOTHING_SAID, pictures=images)
    assert "--input-size" in caught.value.hint


def test_statistics_that_contradict_the_size_of_the_images_ask(folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for file in folder.iterdir():
        Image.open(file).resize((224, 224)).save(images / file.name)
    path = scripted(adapted(Pooled(), folder), tmp_path / "m.pt")
    with pytest.raises(ArchitectureError, match="fit better at"):
        loading.load_model(path, NOTHING_SAID, pictures=images)


def test_images_unlike_those_of_the_training_do_not_tell_the_size(folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for file in folder.iterdir():
        Image.open(file).point(lambda value: 60 + 0.4 * value).save(images / file.name)
    path = scripted(adapted(Pooled(), folder), tmp_path / "m.pt")
    with pytest.raises(
        ArchitectureError, match=r"are unlike those of its training .*, and it runs at"
    ) as caught:
        loading.load_model(path, NOTHING_SAID, pictures=images)
    assert "--input-size 32 or --input-size" in caught.value.hint


def test_without_statistics_the_images_do_not_tell_the_size(folder: Path, tmp_path: Path) -> None:
    path = scripted(Pooled(nn.Identity).eval(), tmp_path / "m.pt")
    options = loading.ModelOptions(mean=(0.5,), std=(0.5,))
    with pytest.raises(ArchitectureError, match="no BatchNorm statistics to confirm that") as caught:
        loading.load_model(path, options, pictures=folder)
    assert re.search(r"32 wide \(consistency .* runs at \d+ \(consistency", caught.value.message)
    assert len(re.findall(r"--input-size \d+", caught.value.hint)) == 2
    assert "--input-size 32" in caught.value.hint


@pytest.mark.parametrize("trained_at", [32, 96])
def test_the_usual_size_is_not_taken_if_the_statistics_speak_for_the_images(
    trained_at: int, folder: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for file in folder.iterdir():
        Image.open(file).resize((96, 96)).save(images / file.name)
    path = tmp_path / "m.pth"
    torch.save(adapted(build("resnet8_w4", num_classes=5), images, side=trained_at).state_dict(), path)
    if trained_at == 32:
        loaded = loading.load_model(path, NOTHING_SAID, pictures=images)
        assert loaded.preprocessing.input_size == (3, 32, 32)
        return
    with pytest.raises(ArchitectureError, match="usually trained at 32") as caught:
        loading.load_model(path, NOTHING_SAID, pictures=images)
    assert "--input-size 96" in caught.value.hint
    options = loading.ModelOptions(input_size=96)
    assert loading.load_model(path, options, pictures=images).preprocessing.input_size == (3, 96, 96)


def test_common_side_of_images() -> None:
    square, other = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)
    assert common_side([square, square]) == 8
    assert common_side([square, other]) is None
    assert common_side([other]) is None
    assert common_side([]) is None
