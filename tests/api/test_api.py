"""The public API: ``import bcu_cli as bcu``, without the command line."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import Dataset, TensorDataset

import bcu_cli as bcu
from bcu_cli import events

if TYPE_CHECKING:
    from pathlib import Path


def test_every_name_that_is_promised_is_there() -> None:
    for name in bcu.__all__:
        assert getattr(bcu, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        bcu.nothing  # noqa: B018 - what is not there


def test_load_inspect_and_evaluate(untrained: Path, labelled: Path) -> None:
    model = bcu.load(str(untrained))
    assert (model.architecture, model.num_classes, len(model.classes)) == ("resnet8", 8, 8)
    assert not model.training
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 8)
    report = bcu.inspect(untrained)
    assert report.safe
    assert report.architecture == "resnet8"
    assert report.findings == []
    assert report.to_json()["schema_version"] == 2
    result = bcu.evaluate([model, untrained], data=labelled, trigger="badnets", target_class=0, device="cpu")
    one, other = result.models
    assert one["acc"] == other["acc"]
    assert result.table().splitlines()[1].startswith("model")
    assert json.loads(json.dumps(result.to_json()))["command"] == "evaluate"


@pytest.mark.slow
def test_scan(untrained: Path, tmp_path: Path) -> None:
    page = tmp_path / "scan.html"
    seen = bcu.scan(untrained, page=page, device="cpu")
    assert seen.document["page"]["bytes"] == page.stat().st_size
    assert seen.verdict in page.read_text()
    assert seen.verdict in {"clean-looking", "suspicious", "inconclusive"}
    assert 0 <= seen.target_class < 8
    assert set(seen.scores) == {each["detector"] for each in seen.document["detectors"]}


def test_a_module_answers_as_it_does_by_itself(untrained: Path, labelled: Path) -> None:
    loaded = bcu.load(untrained)
    with pytest.raises(bcu.BcuError, match="how its input is normalised"):
        bcu.load(loaded.classifier.network)
    model = bcu.load(loaded.classifier.network, preprocessing=loaded.preprocessing, classes=loaded.classes)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(images), loaded(images))
    measured = bcu.evaluate([loaded, model], data=labelled, device="cpu").models
    assert measured[0]["acc"] == measured[1]["acc"]


def test_a_dataset_is_measured_as_the_folder_it_holds(untrained: Path) -> None:
    model = bcu.load(untrained)
    images = torch.randint(0, 256, (24, 3, 16, 16), dtype=torch.uint8)
    labels = torch.arange(24) % 8
    (entry,) = bcu.evaluate(model, data=TensorDataset(images, labels), device="cpu").models
    with torch.no_grad():
        hits = int((model(images.float() / 255).argmax(1) == labels).sum())
    assert entry["acc"]["hits"] == hits


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(40, 2, 8, 8, dtype=torch.uint8), "is no set of images"),
        (torch.zeros(40, 3, 8, 8), "of float32 is no set of images"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), "holds 4 images; at least 32"),
        (TensorDataset(torch.full((40, 3, 8, 8), 7.0)), "and not in"),
        ([Image.new("I;16", (8, 8))] * 40, "mode I;16 has more than 8 bits"),
        (7, "a int is no set of images"),
    ],
)
def test_what_is_no_set_of_images_is_refused(untrained: Path, images: object, message: str) -> None:
    with pytest.raises(bcu.BcuError, match=message):
        bcu.scan(untrained, images=_Listed(images) if isinstance(images, list) else images)


class _Listed(Dataset[object]):
    """A Dataset of what a list holds."""

    def __init__(self, items: list[object]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


def test_progress_is_told_to_the_callback(untrained: Path, labelled: Path) -> None:
    heard: list[events.Event] = []
    bcu.evaluate(untrained, data=labelled, device="cpu", on_progress=heard.append)
    assert any(isinstance(each, events.Notice) and "resnet8" in each.text for each in heard)
    last = [each for each in heard if isinstance(each, events.Progress)][-1]
    assert last.ended
    assert last.done == last.total


PROGRAM = """
import sys, threading
import bcu_cli as bcu
assert "torch" not in sys.modules
model = bcu.load(sys.argv[1])
results = []
thread = threading.Thread(target=lambda: results.append(bcu.evaluate(model, data=sys.argv[2], device="cpu")))
thread.start(); thread.join()
print(results[0].table())
bcu.inspect(sys.argv[1])
assert not {"typer", "rich", "click"} & set(sys.modules), sorted({"typer", "rich"} & set(sys.modules))
"""


def test_no_command_line_is_imported_and_a_thread_will_do(untrained: Path, labelled: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(untrained), str(labelled)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "ACC (95 % interval)" in ran.stdout
    assert ran.stderr == ""


def test_the_tensors_of_a_module_are_hashed(untrained: Path) -> None:
    loaded = bcu.load(untrained)
    model = bcu.load(loaded.classifier.network, preprocessing=loaded.preprocessing)
    names = set(model.loaded.checkpoint.tensors)
    assert names == set(load_file(untrained))
    assert len(model.loaded.checkpoint.sha256) == 64


def test_cleanse_and_attack(tmp_path: Path, labelled: Path) -> None:
    training = {"epochs": 1, "batch_size": 64, "device": "cpu", "precision": "fp32"}
    out = tmp_path / "bad.safetensors"
    made = bcu.attack("badnets", data=labelled, out=out, arch="resnet8", settings={"cell": 2}, **training)
    assert (made.out, made.trigger) == (out, tmp_path / "bad.trigger.safetensors")
    assert 0 <= made.attack_success_rate <= 1
    assert made.accuracy == made.to_json()["acc"]["value"]
    model = bcu.load(out)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    clean = tmp_path / "clean.safetensors"
    result = bcu.cleanse(model, images=images, out=clean, method="bcu", epochs=1, device="cpu")
    assert (result.verdict, result.out) == (None, clean)
    assert 0 <= result.agreement <= 1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    written = bcu.load(clean)
    views = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(result.model(views), written(views))
    kept = bcu.cleanse(model, images=TensorDataset(images), method="bcu", epochs=1, device="cpu")
    assert kept.out is None
    torch.testing.assert_close(kept.model(views), written(views))
    assert kept.document["images"]["path"] == "<TensorDataset>"
    paired = TensorDataset(images, torch.arange(64) % 8)
    tuned = bcu.cleanse(out, images=paired, method="ft", epochs=1, device="cpu")
    assert tuned.document["images"]["labels"] == "class subfolders"
    with pytest.raises(bcu.BcuError, match="method bcu has no option quick"):
        bcu.cleanse(model, images=images, method="bcu", quick=True)


def test_a_module_is_cleansed_and_written(tmp_path: Path, untrained: Path) -> None:
    loaded = bcu.load(untrained)
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    out = tmp_path / "clean.safetensors"
    result = bcu.cleanse(
        loaded.classifier.network,
        preprocessing=loaded.preprocessing,
        images=images,
        out=out,
        method="bcu",
        epochs=0,
        device="cpu",
    )
    assert result.out == out
    assert set(load_file(out)) == set(loaded.classifier.network.state_dict())


def test_the_pages_of_the_command_line_are_written_from_python_too(
    untrained: Path, photos: Path, tmp_path: Path
) -> None:
    page, out = tmp_path / "cleanse.html", tmp_path / "new" / "clean.safetensors"
    out.parent.mkdir()
    options = {"method": "bcu", "epochs": 1, "max_images": 40, "device": "cpu"}
    result = bcu.cleanse(untrained, images=photos, out=out, page=page, card=True, **options)
    assert result.document["page"]["path"] == str(page)
    assert "does not judge its result" in page.read_text()
    assert (out.parent / "README.md").is_file()
    with pytest.raises(bcu.BcuError, match=r"no \.html file"):
        bcu.scan(untrained, page=tmp_path / "scan.pdf")


def test_a_baseline_in_python_leaves_out_what_is_known(tmp_path: Path) -> None:
    unsafe = tmp_path / "m.pt"
    unsafe.write_bytes(pickle.dumps({"a": print}))
    first = bcu.inspect(unsafe)
    assert first.findings
    known = tmp_path / "known.json"
    known.write_text(json.dumps(first.to_json()))
    again = bcu.inspect(unsafe, baseline=known)
    assert again.findings == []
    assert again.document["baseline"]["known"] == len(first.findings)
