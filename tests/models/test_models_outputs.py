"""Networks that return something else than logits: how they end, auxiliary outputs, and channels."""

from __future__ import annotations

import copy
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from scripted import torchscript_of
from torch import Tensor

from bcu_cli.checkpoints import Format, read
from bcu_cli.errors import AnswersError, ArchitectureError
from bcu_cli.models import load
from bcu_cli.models.export import write_like
from bcu_cli.models.loading import as_classifier
from bcu_cli.models.outputs import Ending
from bcu_cli.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bcu_cli.models import Loaded

pytestmark = pytest.mark.filterwarnings("ignore")  # of tracers and exporters, which are not what is tested

SIZE = 16
CODE = """
from dataclasses import dataclass
from typing import Dict, NamedTuple, Tuple

import torch
from torch import Tensor, nn


class Logits(nn.Module):
    classes, channels = 4, 3

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Conv2d(self.channels, 12, 5, 2), nn.Linear(12, self.classes)
        with torch.no_grad():
            self.head.weight.mul_(20)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x)).mean((2, 3))

    def raw(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.raw(x)


class Softmax(Logits):
    def forward(self, x: Tensor) -> Tensor:
        return self.raw(x).softmax(1)


class LogSoftmax(Logits):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log_softmax(self.raw(x), 1)


class MultiLabel(Logits):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.raw(x))


class Sigmoid(MultiLabel):
    classes = 1


class FlatSigmoid(Logits):
    classes = 1

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.raw(x)).squeeze(1)


class OneOutput(Logits):
    classes = 1


class OneClass(Softmax):
    classes = 1


class Grey(Logits):
    channels = 1


class Six(Logits):
    channels = 6


class Pair(Logits):
    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        return self.raw(x), self.raw(x) * 2


class Features(Logits):
    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        return self.features(x), self.raw(x)


class Places(Logits):
    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        return self.body(x), self.raw(x)


class Table(Logits):
    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        return {"features": self.features(x), "logits": self.raw(x)}


class Out(Logits):
    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        return {"aux": self.raw(x) * 2, "out": self.raw(x)}


class Named(NamedTuple):
    features: Tensor
    logits: Tensor


class NamedPair(Logits):
    def forward(self, x: Tensor) -> Named:
        return Named(self.features(x), self.raw(x))


class Listed(Logits):
    def forward(self, x: Tensor):
        return [self.raw(x), self.raw(x) * 2]


@dataclass
class Answer:
    loss: object
    logits: Tensor


class Data(Logits):
    def forward(self, x: Tensor):
        return Answer(None, self.raw(x))


class AnyObject:
    pass


class Attribute(Logits):
    def forward(self, x: Tensor):
        answer = AnyObject()
        answer.logits = self.raw(x)
        return answer
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "nets.py"
    path.write_text(CODE)
    return path


def made(code: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location("nets_of_the_tests", code)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)().eval()


def example(network: Any, number: int = 2) -> Tensor:
    return torch.rand(number, network.channels, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def own(network: Any, path: Path) -> None:
    torch.save(network.state_dict(), path)


def scripted(network: Any, path: Path) -> None:
    path.write_bytes(torchscript_of(network))


def onnx(network: Any, path: Path) -> None:
    pytest.importorskip("onnx")
    torch.onnx.export(network, (example(network),), path, dynamo=False)


def exported(network: Any, path: Path) -> None:
    torch.export.save(torch.export.export(network, (example(network),)), path)


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "m.pth": own,
    "m.pt": scripted,
    "m.onnx": onnx,
    "m.pt2": exported,
}


def loaded_of(code: Path, folder: Path, name: str, file: str) -> tuple[Loaded, Any]:
    """The network as bcu loads it from a file of one kind, and as it was."""
    network = made(code, name)
    WRITERS[file](network, folder / file)
    arch = f"{code}:{name}" if file == "m.pth" else None
    return load(read(folder / file), arch=arch, input_size=SIZE, mean=(0.0,), std=(1.0,)), network


@pytest.mark.parametrize("file", WRITERS)
@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Sigmoid", "FlatSigmoid"])
def test_the_end_is_unwrapped_and_the_written_file_keeps_it(
    code: Path, tmp_path: Path, file: str, name: str
) -> None:
    loaded, network = loaded_of(code, tmp_path, name, file)
    ending = (
        Ending.SIGMOID if "Sigmoid" in name else Ending[{"LogSoftmax": "LOG_SOFTMAX"}.get(name, "SOFTMAX")]
    )
    assert loaded.classifier.ending is ending
    assert ending.note in loaded.evidence
    images = example(network, 5)
    with torch.no_grad():
        raw = network.raw(images)
        expected = torch.cat([torch.zeros(5, 1), raw], 1) if raw.shape[1] == 1 else raw
        answered = loaded.classifier(images)
    torch.testing.assert_close(answered.softmax(1), expected.softmax(1), atol=1e-4, rtol=1e-3)
    assert loaded.classifier.num_classes == loaded.architecture.num_classes == expected.shape[1]
    torch.testing.assert_close(
        answered[:, -1] - answered[:, 0], expected[:, -1] - expected[:, 0], atol=1e-3, rtol=1e-3
    )
    loaded.classifier(images).sum().backward()  # what is distilled has gradients
    assert all(
        bool(weight.grad.isfinite().all())
        for weight in loaded.classifier.parameters()
        if weight.grad is not None
    )
    if file != "m.pth":
        out = tmp_path / "out.pt"
        write_like(loaded, copy.deepcopy(loaded.classifier), out, Format.TORCHSCRIPT)
        with torch.no_grad():
            torch.testing.assert_close(
                torch.jit.load(str(out))(images[:2]), network(images[:2]), atol=1e-4, rtol=1e-3
            )
        again = load(read(out), input_size=SIZE, mean=(0.0,), std=(1.0,))
        assert again.classifier.ending is ending


@pytest.mark.parametrize("file", WRITERS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MultiLabel", "ends in a sigmoid for each of 4 classes: an image may be of several"),
        ("OneOutput", "has one output that is no sigmoid: it is a regression"),
        ("OneClass", "has one class, whose softmax is always 1"),
        (
            "Features",
            r"returns 2 outputs for an image, of which number 1 \(12 values\) and number 2 \(4 values\)",
        ),
    ],
)
def test_what_is_no_classifier_is_refused_with_the_reason(
    code: Path, tmp_path: Path, file: str, name: str, message: str
) -> None:
    with pytest.raises((AnswersError, ArchitectureError), match=message):
        loaded_of(code, tmp_path, name, file)


KINDS_OF_OUTPUTS = [
    *((name, file) for name in ("Pair", "Places") for file in WRITERS),
    *((name, file) for name in ("Table", "Out") for file in ("m.pth", "m.pt")),  # the others keep no names
    *((name, "m.pth") for name in ("NamedPair", "Listed", "Data", "Attribute")),
]
TAKEN = {"Pair": "number 1", "Places": "number 2", "Out": "out", "Listed": "number 1", "Attribute": ""}


@pytest.mark.parametrize(("name", "file"), KINDS_OF_OUTPUTS)
def test_of_several_outputs_the_logits_are_taken_and_that_is_said(
    code: Path, tmp_path: Path, name: str, file: str
) -> None:
    loaded, network = loaded_of(code, tmp_path, name, file)
    images = example(network, 5)
    with torch.no_grad():
        torch.testing.assert_close(loaded.classifier(images), network.raw(images), atol=1e-4, rtol=1e-3)
    if taken := TAKEN.get(name, "logits"):
        assert f"of its 2 outputs, {taken} is taken" in loaded.evidence
    if file != "m.pth":
        out = tmp_path / "out.pt"
        write_like(loaded, copy.deepcopy(loaded.classifier), out, Format.TORCHSCRIPT)
        again = load(read(out), input_size=SIZE, mean=(0.0,), std=(1.0,))
        with torch.no_grad():
            torch.testing.assert_close(again.classifier(images), network.raw(images), atol=1e-4, rtol=1e-3)


def test_names_of_a_scripted_tuple_are_not_kept(code: Path, tmp_path: Path) -> None:
    with pytest.raises(AnswersError, match=r"number 1 \(12 values\) and number 2 \(4 values\)"):
        loaded_of(code, tmp_path, "NamedPair", "m.pt")


@pytest.mark.parametrize("file", WRITERS)
@pytest.mark.parametrize(("name", "channels"), [("Grey", 1), ("Six", 6)])
def test_the_channels_of_the_input_are_found(
    code: Path, tmp_path: Path, name: str, channels: int, file: str
) -> None:
    loaded, network = loaded_of(code, tmp_path, name, file)
    assert loaded.preprocessing.input_size == (channels, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.classifier(example(network)), network(example(network)), atol=1e-4, rtol=1e-3
        )


class Ungraded(torch.nn.Module):
    """It runs without gradients only."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(images.numpy()).flatten(1)[:, :5].softmax(1)


class InPlace(torch.nn.Module):
    """It writes to its input, as exported normalisations do."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(images.sub_(0.5).mean((1, 2, 3), keepdim=True).flatten(1))


def test_networks_that_are_hard_to_try() -> None:
    plain = Preprocessing(input_size=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    assert as_classifier(Ungraded(), plain, "x")[0].ending is Ending.SOFTMAX
    assert as_classifier(InPlace(), plain, "x")[0].ending is Ending.SIGMOID


def test_small_logits_are_no_probabilities() -> None:
    """Logits from 0 to 1 are logits unless a sigmoid is known to be their end."""
    plain = Preprocessing(input_size=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    torch.nn.init.constant_(network[1].weight, 0.001)
    torch.nn.init.constant_(network[1].bias, 0.3)
    classifier, notes = as_classifier(network, plain, "x")
    assert (classifier.ending, notes) == (Ending.LOGITS, ())
