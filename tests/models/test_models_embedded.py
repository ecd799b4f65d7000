"""A file's own function is the truth: what is rebuilt takes its place only where both answer alike."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from bcu_cli.checkpoints import Format, read
from bcu_cli.errors import AnswersError, ArchitectureError, UsageError
from bcu_cli.models import build, load
from bcu_cli.models.export import write_like
from bcu_cli.models.outputs import Ending
from bcu_cli.workflows.cleanse import _format

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")  # of tracers and exporters, which are not what is tested

SIZE = 16
NONE: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}


def network(name: str = "resnet8", classes: int = 4) -> nn.Module:
    """A network whose BatchNorm statistics are uneven, so that everything in it shows."""
    torch.manual_seed(0)
    made = build(name, num_classes=classes).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return made


class Changed(nn.Module):
    """A network with its names as they were, whose forward does something before or behind it."""

    def __init__(self, inner: nn.Module, before: Callable[..., Any], behind: Callable[..., Any]) -> None:
        super().__init__()
        for name, child in inner.named_children():
            self.add_module(name, child)
        self.inner = [inner]  # in a list, so that it gives no names
        self.before, self.behind = before, behind

    def forward(self, images: Tensor) -> Any:
        return self.behind(self.inner[0](self.before(images)))


def same(x: Any) -> Any:
    return x


def normalised(x: Tensor) -> Tensor:
    return (x / 255.0 - torch.tensor([0.48, 0.45, 0.4]).view(1, 3, 1, 1)) / 0.25


def with_stride(made: nn.Module) -> nn.Module:
    made.conv1.stride = (2, 2)
    return made


def with_pooling(made: nn.Module) -> nn.Module:
    """Maxima in place of means, before the classifier."""
    made.layer3.register_forward_hook(lambda _, inputs, x: x.amax((2, 3), keepdim=True).expand_as(x))
    return made


def without_activation(made: nn.Module) -> nn.Module:
    made.layer1.register_forward_hook(lambda _, inputs, x: x - 0.1)
    return made


DIFFERENT: dict[str, Callable[[], nn.Module]] = {
    "normalises itself": lambda: Changed(network(), normalised, same),
    "ends in softmax": lambda: Changed(network(), same, lambda x: x.softmax(1)),
    "both": lambda: Changed(network(), normalised, lambda x: x.softmax(1)),
    "another stem": lambda: with_stride(network()),
    "another pooling": lambda: with_pooling(network()),
    "another function inside": lambda: without_activation(network()),
    "channels in another order": lambda: Changed(network(), lambda x: x[:, [2, 1, 0]], same),
    "clamps its input": lambda: Changed(network(), lambda x: x.clamp(0, 1), same),
    "a temperature": lambda: Changed(network(), same, lambda x: x / 2),
}


def trace(made: nn.Module, path: Path, number: int = 1) -> None:
    torch.jit.trace(made, torch.rand(number, 3, SIZE, SIZE), check_trace=False).save(str(path))


def export(made: nn.Module, path: Path, number: int = 1) -> None:
    pytest.importorskip("onnx")
    mode = torch.onnx.TrainingMode.PRESERVE  # which keeps BatchNorm and its names
    images = (torch.rand(number, 3, SIZE, SIZE),)
    torch.onnx.export(made, images, path, dynamo=False, training=mode, do_constant_folding=False)


def archive(made: nn.Module, path: Path, number: int = 1) -> None:
    torch.export.save(torch.export.export(made, (torch.rand(number, 3, SIZE, SIZE),)), path)


WRITERS = {"m.pt": trace, "m.onnx": export, "m.pt2": archive}
FORMATS = {"m.pt": "torchscript", "m.onnx": "onnx", "m.pt2": "torch.export"}


@pytest.mark.parametrize("file", WRITERS)
@pytest.mark.parametrize("case", DIFFERENT)
def test_a_function_that_answers_otherwise_is_taken_itself(tmp_path: Path, file: str, case: str) -> None:
    made = DIFFERENT[case]().eval()
    path = tmp_path / file
    WRITERS[file](made, path)
    loaded = load(read(path), input_size=SIZE, **NONE)
    assert loaded.architecture.name == FORMATS[file]
    has_more = file == "m.onnx" and case in {"normalises itself", "both"}  # means and deviations are tensors
    reason = "none of the" if has_more else "gives other logits than resnet8, whose tensors it has"
    assert any(reason in line for line in loaded.evidence)
    images = torch.rand(5, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = made(images)
        answered = loaded.classifier(images)
        is_softmax = case in {"ends in softmax", "both"}
        torch.testing.assert_close(
            answered.softmax(1) if is_softmax else answered, expected, atol=1e-4, rtol=1e-4
        )
        assert (loaded.classifier.ending is Ending.SOFTMAX) == is_softmax
    out = tmp_path / "out.pt"
    write_like(loaded, copy.deepcopy(loaded.classifier), out, Format.TORCHSCRIPT)
    written = torch.jit.load(str(out))
    for number in (1, 2, 5):
        torch.testing.assert_close(written(images[:number]), made(images[:number]), atol=1e-4, rtol=1e-4)
    with pytest.raises(UsageError, match="has none"):
        _format(loaded, "safetensors")
    if not has_more:
        with pytest.raises(ArchitectureError, match="gives other logits than resnet8") as error:
            load(read(path), arch="resnet8", input_size=SIZE, **NONE)
        assert "leave --arch out" in error.value.hint


@pytest.mark.parametrize("file", WRITERS)
def test_a_function_that_answers_alike_is_rebuilt(tmp_path: Path, file: str) -> None:
    WRITERS[file](network(), tmp_path / file)
    loaded = load(read(tmp_path / file), input_size=SIZE, **NONE)
    assert loaded.architecture.name == "resnet8"
    assert any("gives the same logits" in line for line in loaded.evidence)


def test_the_function_decides_between_networks_of_the_same_tensors(tmp_path: Path) -> None:
    made = build("timm:resnet18", num_classes=5).eval()  # with the tensors of timm:resnetblur18
    torch.jit.trace(made, torch.rand(1, 3, 64, 64)).save(str(tmp_path / "m.pt"))
    loaded = load(read(tmp_path / "m.pt"), input_size=64, **NONE)
    assert "timm:resnet18" in (loaded.architecture.name, *loaded.architecture.alternatives)


def test_pictures_of_the_user_are_compared_too(tmp_path: Path) -> None:
    """What differs only on images that are all bright is not seen by noise."""
    bright = Changed(network(), same, lambda x: x).eval()

    def before(x: Tensor) -> Tensor:
        return x * (
            1 + (x.mean((1, 2, 3), keepdim=True) > 0.9).float() * (x.amax((1, 2, 3), keepdim=True) <= 1)
        )

    bright.before = before
    trace(bright, tmp_path / "m.pt")
    assert load(read(tmp_path / "m.pt"), input_size=SIZE, **NONE).architecture.name == "resnet8"
    shown = load(
        read(tmp_path / "m.pt"),
        input_size=SIZE,
        images=lambda p: torch.full((8, *p.input_size), 0.95),
        **NONE,
    )
    assert shown.architecture.name == "torchscript"


class Baked(nn.Module):
    """Its trace holds the number of images that it was traced with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.head(x.reshape(len(x), 8, -1).mean(2))


class Mixing(nn.Module):
    """It answers an image by what stands beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 3)
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("kind", [Baked, Mixing])
def test_images_are_given_one_by_one_where_their_number_matters(
    tmp_path: Path, kind: type[nn.Module]
) -> None:
    torch.manual_seed(0)
    made = kind().eval()
    trace(made, tmp_path / "m.pt")
    loaded = load(read(tmp_path / "m.pt"), input_size=SIZE, **NONE)
    assert any("one image at a time" in line for line in loaded.evidence)
    images = torch.rand(4, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = torch.cat([made(image[None]) for image in images])
        torch.testing.assert_close(loaded.classifier(images), expected, atol=1e-5, rtol=1e-4)
    assert loaded.classifier(images.requires_grad_()).sum().backward() is None
    assert images.grad is not None


def test_images_are_given_in_the_number_that_a_graph_was_exported_for(tmp_path: Path) -> None:
    made = Baked().eval()
    made.forward = lambda x: made.head(made.conv(x).relu().mean((2, 3))[torch.tensor([0, 1])])
    export(made, tmp_path / "m.onnx", 2)
    loaded = load(read(tmp_path / "m.onnx"), **NONE)
    assert any("2 images at a time" in line for line in loaded.evidence)
    images = torch.rand(5, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = torch.cat([made(torch.stack([image, image]))[:1] for image in images])
        torch.testing.assert_close(loaded.classifier(images), expected, atol=1e-5, rtol=1e-4)
    write_like(loaded, loaded.classifier, tmp_path / "out.pt", Format.TORCHSCRIPT)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(str(tmp_path / "out.pt"))(images[:2]), made(images[:2]))


def test_a_function_that_answers_by_chance_is_refused(tmp_path: Path) -> None:
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 3)
    )
    trace(made.train(), tmp_path / "m.pt")
    with pytest.raises((AnswersError, ArchitectureError)):
        load(read(tmp_path / "m.pt"), input_size=SIZE, **NONE)


def test_a_function_that_cannot_be_evaluated_needs_a_name(tmp_path: Path) -> None:
    def before(x: Tensor) -> Tensor:
        return x + torch.linalg.inv(torch.eye(3))[0, 1]  # an operator that bcu does not evaluate

    trace(Changed(network(), before, same).eval(), tmp_path / "m.pt")
    with pytest.raises((ArchitectureError, Exception)) as error:
        load(read(tmp_path / "m.pt"), input_size=SIZE, **NONE)
    assert "--arch" in error.value.hint
    loaded = load(read(tmp_path / "m.pt"), arch="resnet8", input_size=SIZE, **NONE)
    assert loaded.architecture.name == "resnet8"
    assert any("could not be compared" in line for line in loaded.evidence)


def test_batchnorm_decides_how_a_function_that_normalises_itself_is_fed(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    images = nn.functional.interpolate(
        torch.rand(64, 3, 4, 4, generator=generator), size=SIZE, mode="bicubic"
    )
    images = (0.2 + 0.6 * images).clamp(0, 1)
    made = Changed(network(), normalised, lambda x: x.softmax(1))
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        made.inner[0].train()
        made(images * 255)
        made.inner[0].eval()
    trace(made.eval(), tmp_path / "m.pt")
    loaded = load(read(tmp_path / "m.pt"), input_size=SIZE, images=lambda _: images)
    assert loaded.classifier.preprocessing.mean == (0.0,) * 3
    assert loaded.classifier.preprocessing.std == (1 / 255,) * 3
    with torch.no_grad():
        answers = loaded.classifier(images).softmax(1)
        torch.testing.assert_close(answers, made(images * 255), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("number", [4, 5])
def test_a_config_beside_a_graph_is_believed_if_it_names_as_many_classes(number: int, tmp_path: Path) -> None:
    """An exporter leaves the ``config.json`` of the model that it traced; the graph has other names."""
    trace(DIFFERENT["another stem"](), tmp_path / "m.pt")
    fields = {"mean": [0.4] * 3, "std": [0.3] * 3, "input_size": [3, SIZE, SIZE]}
    config = {"architecture": "resnet50", "label_names": list("zyxwv"[:number]), "pretrained_cfg": fields}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = read(tmp_path / "m.pt")
    if number == 4:
        loaded = load(checkpoint)
        assert loaded.classes == ("z", "y", "x", "w")
        assert loaded.preprocessing.mean == (0.4, 0.4, 0.4)
    else:
        with pytest.raises(ArchitectureError, match="is not known"):
            load(checkpoint)
        assert load(checkpoint, input_size=SIZE, **NONE).classes == ()


@pytest.mark.parametrize("number", [4, 5])
def test_a_config_that_asks_for_the_impossible_counts_for_its_own_graph_alone(
    number: int, tmp_path: Path
) -> None:
    trace(DIFFERENT["another stem"](), tmp_path / "m.pt")
    config = {"architecture": "resnet50", "label_names": list("zyxwv"[:number])}
    config |= {"pretrained_cfg": {"crop_mode": "border"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = read(tmp_path / "m.pt")
    if number == 4:
        with pytest.raises(ArchitectureError, match="crop_mode 'border' is not supported"):
            load(checkpoint, input_size=SIZE, **NONE)
    else:
        assert load(checkpoint, input_size=SIZE, **NONE).classes == ()
