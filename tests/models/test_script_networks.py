"""Networks of TorchScript as bcu evaluates them: the answers are those of torch's own interpreter."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import TYPE_CHECKING, NamedTuple

import pytest
import timm
import torch
import torchvision.models as tv
from scripted import evaluated, loaded_by_torch, script_network, torchscript_of
from torch import Tensor, nn
from torch.nn import functional as F

from bcu_cli.checkpoints import read, write_torchscript
from bcu_cli.errors import ArchitectureError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SMALL = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Heads(NamedTuple):
    logits: Tensor
    other: Tensor


class Odd(nn.Module):
    """Loops, conditions, dictionaries, formats, lists, named tuples, and tensors that are no buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same")
        self.parts = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.fc = nn.Linear(4, 3)
        self.scales = {"x": 1.5}
        self.names = ["a", "bc"]
        self.plain = torch.tensor([0.5, 1.0, 1.5, 2.0])
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor, times: int = 3) -> Heads:
        y = self.conv(x)
        table: dict[str, Tensor] = {}
        table["a"] = y
        i = 0
        while i < times:
            if i == 1:
                i += 2
                continue
            y = y + self.scales["x"] * float(i)
            i += 1
        for name in self.names:
            if name in table:
                y = y + len(name) - 7 // 2 + (-7) % 3 + 2**3
        z = y.mean((2, 3)) * self.plain
        for part in self.parts:
            z = part(z)
        if y.dim() != 4:
            raise ValueError("bad {} {}".format("size", i))
        z[:, 0] = 1.0
        largest, _ = y[:, 1:3, ..., None].flatten(1).max(dim=1)
        sizes = [size * 2 for size in y.shape]
        z = z + largest[:, None] / sizes[0] + torch.tensor([1.0, 2.0, 3.0, 4.0])
        return Heads(self.fc(self.drop(z)).softmax(-1), z)


class Norms(nn.Module):
    """Normalisations, a residual, windows and an attention, all small."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3, groups=1))
        self.group, self.layer = nn.GroupNorm(2, 8), nn.LayerNorm(8)
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.group(self.conv(x)))
        y = F.interpolate(F.max_pool2d(y, 3, 2), scale_factor=0.5, mode="bilinear")
        tokens = self.layer(y.flatten(2).transpose(1, 2))
        logits: Tensor = self.fc(self.attention(tokens).mean(1))
        return logits


def _vit() -> nn.Module:
    return tv.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "resnet18 scripted": (lambda: tv.resnet18(num_classes=4), False),
    "resnet18 traced": (lambda: tv.resnet18(num_classes=4), True),
    "mobilenet": (lambda: tv.mobilenet_v3_small(num_classes=4), False),
    "efficientnet": (lambda: tv.efficientnet_b0(num_classes=4), True),
    "densenet": (lambda: tv.DenseNet(4, (2, 2), 8, num_classes=4), False),
    "vit scripted": (_vit, False),
    "vit traced": (_vit, True),
    "shufflenet": (lambda: tv.shufflenet_v2_x0_5(num_classes=4), False),
    "convnext": (lambda: timm.create_model("convnext_atto", num_classes=4), True),
    "timm vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=4),
        True,
    ),
    "googlenet": (lambda: tv.googlenet(num_classes=4, init_weights=False), False),
    "odd": (Odd, False),
    "softmax head": (lambda: nn.Sequential(tv.squeezenet1_1(num_classes=4), nn.Softmax(1)), True),
}


def leaves(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, tuple | list) else []


def with_training_norms(network: nn.Module) -> nn.Module:
    """A network in evaluation mode, but for its BatchNorm, which is in training mode."""
    for module in network.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    return network


QUICK = ("resnet18 traced", "densenet", "vit scripted", "timm vit", "odd")


@pytest.mark.filterwarnings("ignore:Scripted GoogleNet")  # what torch's interpreter says; bcu drops it
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_answers_and_statistics_are_those_of_torchs_interpreter(name: str) -> None:
    torch.manual_seed(0)
    make, traced = NETWORKS[name]
    images = torch.rand(2, 3, 64, 64) if name in {"googlenet", "densenet", "softmax head"} else SMALL
    original = make().eval()
    data = torchscript_of(original, images if traced else None)
    ours, theirs = evaluated(data), loaded_by_torch(data)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for training in (False, True):
        ours.train(training)
        if training and traced:  # the interpreter keeps the mode of the trace; bcu does so but for BatchNorm
            theirs = with_training_norms(original)
        else:
            theirs.train(training)
        answers = []
        for network in (ours, theirs):
            torch.manual_seed(1)  # of dropout
            with torch.jit.optimized_execution(False):
                answers.append(leaves(network(images)))
        assert len(answers[0]) == len(answers[1]) > 0
        for one, other in zip(*answers, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_the_network_itself() -> None:
    network = Norms().eval()
    ours = script_network(network, SMALL)
    for each in (network, ours):
        F.cross_entropy(each(SMALL), torch.tensor([1, 2])).backward()
    theirs = dict(network.named_parameters())
    assert len(theirs) > 15
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, theirs[name].grad, atol=1e-4, rtol=1e-3)


def test_layers_are_torchs_own() -> None:
    for example in (None, SMALL):
        original = tv.resnet18(num_classes=4).eval()
        network = script_network(original, example)
        for name, module in original.named_modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                own = network.get_submodule(name)
                assert isinstance(own, type(module))
                for attribute in ("in_channels", "out_channels", "stride", "padding", "groups", "eps"):
                    assert getattr(own, attribute, None) == getattr(module, attribute, None)
        assert "Conv2d(3, 64, kernel_size=(7, 7), stride=(2, 2)" in str(network)
        called: list[nn.Module] = []
        network.conv1.register_forward_hook(lambda module, *_, called=called: called.append(module))
        network(SMALL)
        assert called == [network.conv1]


def test_copies_and_conversions_keep_what_the_network_computes() -> None:
    network = evaluated(torchscript_of(Odd().eval()))
    with torch.no_grad():
        expected = network(SMALL)[0]
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(other(SMALL)[0], expected)
            next(other.parameters()).zero_()
            assert torch.equal(network(SMALL)[0], expected)
        double = copy.deepcopy(network).double()
        assert double.script_attributes["plain"].dtype == torch.float64
        torch.testing.assert_close(double(SMALL.double())[0].float(), expected)


class Tied(nn.Module):
    """Two layers of one weight, a view of a larger tensor, and a half-precision buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.whole = nn.Parameter(torch.rand(4, 6))
        self.register_buffer("row", torch.rand(2, 6, dtype=torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        return (self.two(self.one(x)) @ self.whole.t()) + self.row.float().sum()


def test_what_is_written_has_the_originals_layout(tmp_path: Path) -> None:
    network, images = Tied(), torch.rand(2, 6)
    path = tmp_path / "tied.pt"
    path.write_bytes(torchscript_of(network))
    ours = evaluated(path.read_bytes()).float()
    assert ours.two.weight is ours.one.weight
    with torch.no_grad():
        for weight in ours.parameters():
            weight.mul_(0.5)
        ours.row.fill_(0.25)
    write_torchscript(tmp_path / "out.pt", ours.state_dict(), like=read(path))
    written = loaded_by_torch((tmp_path / "out.pt").read_bytes())
    assert {n: (v.dtype, v.shape, v.stride()) for n, v in written.state_dict().items()} == {
        n: (v.dtype, v.shape, v.stride()) for n, v in loaded_by_torch(path.read_bytes()).state_dict().items()
    }
    torch.testing.assert_close(written(images), ours(images))
    torch.testing.assert_close(evaluated((tmp_path / "out.pt").read_bytes())(images), ours(images))
    assert written.two.weight.data_ptr() == written.one.weight.data_ptr()


def test_an_archive_for_the_lite_interpreter_is_written_without_its_bytecode(tmp_path: Path) -> None:
    path = tmp_path / "lite.pt"
    made = loaded_by_torch(torchscript_of(Tied()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made._save_for_lite_interpreter(str(path))
    checkpoint = read(path)
    assert checkpoint.left_out == ("bytecode.pkl",)
    write_torchscript(tmp_path / "out.pt", checkpoint.tensors, like=checkpoint)
    assert b"bytecode.pkl" not in (tmp_path / "out.pt").read_bytes()
    loaded_by_torch((tmp_path / "out.pt").read_bytes())


def test_a_network_of_code_that_fails_says_why() -> None:
    network = evaluated(torchscript_of(Odd()))
    with pytest.raises(ArchitectureError, match=r"network\.pt cannot be run: it fails") as caught:
        network(torch.rand(2, 5, 8, 8))
    assert "\n" not in caught.value.message
    with pytest.raises(ArchitectureError, match="given no images"):
        network()
    assert network(SMALL)[0].shape == (2, 3)


class Mixed(nn.Module):
    """Convolutions with a bias behind each other, and one behind a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.between, self.last = nn.Linear(4, 4), nn.Conv2d(4, 4, 1, bias=False)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.second(torch.relu(self.first(x)))).permute(0, 2, 3, 1)
        y = self.last(torch.relu(self.between(y)).permute(0, 3, 1, 2))
        logits: Tensor = self.fc(y.mean((2, 3)))
        return logits


@pytest.mark.parametrize("example", [None, SMALL], ids=["scripted", "traced"])
def test_it_trains_in_bf16_as_every_network_does(example: Tensor | None) -> None:
    """As on a processor that multiplies bf16 fast, where bcu chooses it."""
    torch.manual_seed(0)
    made = Mixed()
    network = script_network(made, example)
    with torch.autocast("cpu", torch.bfloat16):
        answers, expected = network(SMALL), made(SMALL)
    torch.testing.assert_close(answers, expected, atol=0.02, rtol=0.05)
    answers.float().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    torch.testing.assert_close(network(SMALL), made(SMALL))  # and still in fp32
