"""What goes out is fed exactly like what came in: unchanged weights give unchanged answers, without bcu."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bcu_cli.checkpoints import Format, read
from bcu_cli.models import build, load
from bcu_cli.models.export import write_like
from bcu_cli.workflows.cleanse import _format

pytestmark = pytest.mark.filterwarnings("ignore")  # of tracers and exporters, which are not what is tested

SIZE = 16
KINDS = {"torch.export", "torchscript traced", "torchscript scripted", "safetensors", "pickle", "onnx"}


class Small(nn.Module):
    """A network that no list knows: some layers, drawn at random.

    Args:
        width: Of its layers.
        activation: Behind each.
        pools: Whether it takes means over the places at its end, or the places one by one.
        scales: Whether it normalises its input itself.
        softmax: Whether it ends in one.
    """

    def __init__(
        self, width: int, activation: type[nn.Module], pools: bool, scales: bool, softmax: bool
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1),
            nn.BatchNorm2d(width),
            activation(),
            nn.Conv2d(width, width, 3, 2, 1, groups=width),
            activation(),
            nn.AdaptiveAvgPool2d(1) if pools else nn.MaxPool2d(2),
        )
        self.head = nn.Linear(width if pools else 4 * width, 3)
        self.scales, self.softmax = scales, softmax

    def forward(self, x: Tensor) -> Tensor:
        if self.scales:
            x = (x - 0.4) / 0.25
        x = self.body(x)
        x = self.head(x.view(x.shape[0], -1))
        return x.softmax(1) if self.softmax else x


def small(draw: Any) -> nn.Module:
    activation = draw(st.sampled_from([nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish]))
    options = [draw(st.booleans()) for _ in range(3)]
    return Small(draw(st.sampled_from([4, 16, 64])), activation, *options)


def uneven(network: nn.Module, seed: int) -> nn.Module:
    """Statistics that are those of no fresh network."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def blank(network: nn.Module) -> nn.Module:
    """The same network with other weights."""
    made = copy.deepcopy(network)
    for tensor in made.state_dict().values():
        tensor.fill_(1)
    return made


def saved(network: nn.Module, kind: str, path: Path, images: Tensor) -> None:
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(network.state_dict(), path)
    elif kind == "pickle":
        torch.save({"state_dict": network.state_dict(), "epoch": 3}, path)
    elif kind == "torchscript traced":
        torch.jit.trace(network, images, check_trace=False).save(str(path))
    elif kind == "torchscript scripted":
        torch.jit.script(network).save(str(path))
    elif kind == "torch.export":
        torch.export.save(torch.export.export(network, (images,)), path)
    else:
        torch.onnx.export(network, (images,), path, dynamo=False)


def opened(path: Path, written: Format, network: nn.Module) -> Any:
    """What its user makes of the written file, without bcu."""
    if written is Format.TORCHSCRIPT:
        return torch.jit.load(str(path))
    if written is Format.SAFETENSORS:
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, weights_only=True)["state_dict"]
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=[Phase.generate],
)
@given(data=st.data())
def test_unchanged_weights_give_unchanged_answers(kind: str, data: st.DataObject) -> None:
    """As ``cleanse --method bcu --epochs 0`` writes them where nothing is re-initialised."""
    is_half = data.draw(st.booleans(), label="half precision")
    has_function = kind.startswith("torch") or kind == "onnx"
    known = not has_function or (
        kind != "torchscript scripted" and data.draw(st.booleans(), label="known architecture")
    )  # torch cannot script bcu's own networks
    network = uneven(
        build("resnet8", num_classes=3) if known else small(data.draw), data.draw(st.integers(0, 99))
    )
    dtype = torch.float16 if is_half else torch.float32
    network = network.to(dtype)
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(dtype)
    number = data.draw(st.sampled_from([1, 2]), label="batch of the export")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file, out = Path(folder, "in"), Path(folder, "out")
        saved(network, kind, file, images[:number])
        loaded = load(read(file), input_size=SIZE, mean=(0.0,), std=(1.0,))
        if has_function and not known:
            assert loaded.architecture.name == loaded.checkpoint.format
        written = Format.TORCHSCRIPT if kind == "onnx" else _format(loaded, "same")
        fixed = (
            kind == "torch.export" and not known
        )  # such an archive takes one number of images, here and there
        answers = [network(images[:count]) for count in ([number] if fixed else [1, 3])]
        write_like(loaded, loaded.classifier, out, written)
        again = opened(out, written, blank(network))
        tolerance = {"atol": 2e-3, "rtol": 2e-2} if is_half else {"atol": 1e-5, "rtol": 1e-4}
        for expected in answers:
            answered = again(images[: len(expected)])
            assert answered.dtype == expected.dtype
            torch.testing.assert_close(answered, expected, **tolerance)
