"""``bcu evaluate --tsne`` on the backdoored network of tests/data."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bcu_cli.evaluation.features import Features
from bcu_cli.images.sources import signs
from bcu_cli.report import optional, tsne
from bcu_cli.workflows.evaluation_files import _panel
from bcu_cli.workflows.measuring import Measured

MODEL = Path(__file__).parents[1] / "data" / "backdoored.safetensors"
TRIGGER = MODEL.with_name("backdoored.trigger.safetensors")
NAMES = tuple(sorted(signs.CLASSES))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of each of the eight classes, in subfolders."""
    root = tmp_path_factory.mktemp("few")
    signs.write_folder(root, 6, seed=3)
    return root


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[tsne.Panel], tsne.Legend]]:
    """What is drawn, without drawing it."""
    calls = []

    def write(panels: Any, legend: Any, path: Path, **more: Any) -> None:
        calls.append((panels, legend))
        path.touch()

    monkeypatch.setattr(tsne, "write", write)
    return calls


def reordered(path: Path) -> Path:
    """The backdoored network with its classes, and the rows of its last layer, the other way round."""
    with safe_open(MODEL, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(MODEL)
    for name, tensor in tensors.items():
        if tensor.shape[:1] == (8,) and name.startswith(("linear", "fc")):
            tensors[name] = tensor.flip(0).contiguous()
    metadata["bcu.classes"] = json.dumps(NAMES[::-1])
    save_file(tensors, path, metadata=metadata)
    return path


def test_the_picture_is_written_reported_and_the_same_again(bcu, few: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    assert bcu("cleanse", MODEL, "--method", "bcu", "--images", few, "--epochs", 0, "--out", start).code == 0
    entries = []
    for name in ("a.png", "b.png"):
        words = [MODEL, start, "--data", few, "--trigger", TRIGGER, "--tsne", tmp_path / name]
        ran = bcu("evaluate", *words, "--json")
        assert ran.code == 0, ran.err
        entries.append(ran.json["outputs"])
    assert [list(entry) for entry in entries] == [["tsne"], ["tsne"]]
    picture = (tmp_path / "a.png").read_bytes()
    assert entries[0]["tsne"] == {
        "path": str(tmp_path / "a.png"),
        "sha256": hashlib.sha256(picture).hexdigest(),
        "bytes": len(picture),
    }
    assert picture == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as shown:
        assert shown.format == "PNG"
        assert min(shown.size) > 400


def test_panels_have_titles_and_triggered_images_of_other_classes(bcu, few: Path, drawn, tmp_path) -> None:
    other = shutil.copy(MODEL, tmp_path / "other.safetensors")
    ran = bcu("evaluate", MODEL, other, "--data", few, "--trigger", TRIGGER, "--tsne", tmp_path / "a.png")
    assert ran.code == 0, ran.err
    ((panels, legend),) = drawn
    assert [panel.title for panel in panels] == [
        ("backdoored.safetensors", "ACC 97.92 %, ASR 100.00 %"),
        ("other.safetensors", "ACC 97.92 %, ASR 100.00 %"),
    ]
    assert (legend.names, legend.target) == (NAMES, 0)
    assert torch.bincount(panels[0].classes).tolist() == [6] * 8
    assert torch.bincount(panels[0].origins, minlength=8).tolist() == [0, *[6] * 7]
    assert len(panels[0].triggered) == 42
    assert torch.equal(panels[0].triggered, panels[1].triggered)


def test_classes_in_another_order_have_the_same_colours(bcu, few: Path, drawn, tmp_path: Path) -> None:
    other = reordered(tmp_path / "other.safetensors")
    words = ["--trigger", TRIGGER, "--target-class", "all", "--tsne", tmp_path / "a.png"]
    ran = bcu("evaluate", MODEL, other, "--data", few, *words)
    assert ran.code == 0, ran.err
    ((panels, legend),) = drawn
    assert panels[0].title[1] == panels[1].title[1]  # towards ahead-only, which is class 0 and class 7
    assert legend.names == NAMES
    one, same = (sorted(zip(p.classes.tolist(), p.clean.tolist(), strict=True)) for p in panels)
    assert one == same


def test_another_worst_class_than_the_first_models_is_named(bcu, few: Path, drawn, tmp_path: Path) -> None:
    tensors = load_file(MODEL)
    bias = next(name for name, tensor in tensors.items() if tensor.shape == (8,) and "bias" in name)
    tensors[bias][5] += 1000  # answers class 5 to everything
    with safe_open(MODEL, "pt") as file:
        save_file(tensors, tmp_path / "five.safetensors", metadata=file.metadata())
    words = ["--trigger", "badnets", "--tsne", tmp_path / "a.png"]
    assert bcu("evaluate", MODEL, tmp_path / "five.safetensors", "--data", few, *words).code == 0
    ((panels, legend),) = drawn
    assert panels[1].title[1] == f"ACC 12.50 %, ASR 100.00 % to {NAMES[5]}"
    assert torch.equal(panels[0].origins, panels[1].origins)
    assert legend.target not in panels[1].origins.tolist()


def test_without_a_trigger_there_are_clean_images_alone(bcu, few: Path, drawn, tmp_path: Path) -> None:
    assert bcu("evaluate", MODEL, "--data", few, "--tsne", tmp_path / "a.png").code == 0
    (((panel,), legend),) = drawn
    assert panel.title == ("backdoored.safetensors", "ACC 97.92 %")
    assert (len(panel.clean), len(panel.triggered)) == (48, 0)
    assert (legend.target, legend.triggered) == (None, "")


def test_an_all_to_all_trigger_marks_every_class_and_no_target(bcu, few: Path, drawn, tmp_path) -> None:
    words = ["--trigger", "badnets", "--target-class", "next", "--tsne", tmp_path / "a.png"]
    assert bcu("evaluate", MODEL, "--data", few, *words).code == 0
    (((panel,), legend),) = drawn
    assert len(panel.triggered) == 48
    assert (legend.target, bool(legend.triggered)) == (None, True)


REFUSED = {
    "ending": (["--tsne", "x.jpg"], "--tsne x.jpg is no .png", ".png"),
    "all triggers": (["--tsne", "x.png", "--trigger", "all"], "shows one trigger", "--trigger"),
    "one file twice": (["--tsne", "x.png", "--page", "x.png"], "--page and --tsne are both", "different"),
    "no folder": (["--tsne", "no/such/x.png"], "there is no folder", "create"),
}


@pytest.mark.parametrize("case", [*REFUSED, "no package"])
def test_refused_before_the_work(
    bcu, few: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcu_cli.workflows import loading

    def never(*arguments: object, **more: object) -> None:
        raise AssertionError("read before it was refused")

    monkeypatch.setattr(loading, "load_model", never)
    monkeypatch.chdir(tmp_path)
    if case == "no package":
        monkeypatch.setattr(optional, "find_spec", lambda name: None if name == "sklearn" else object())
    words, message, hint = REFUSED.get(
        case,
        (
            ["--tsne", "x.png"],
            "needs scikit-learn, which is not installed",
            "pip install matplotlib scikit-learn",
        ),
    )
    ran = bcu("evaluate", MODEL, "--data", few, *words)
    assert ran.code == 2
    assert message in ran.error
    assert hint in ran.err.partition("hint: ")[2]
    assert not [*tmp_path.glob("x.*")]


def test_the_picture_is_none_of_the_inputs(bcu, few: Path, tmp_path: Path) -> None:
    picture = tmp_path / "x.png"
    shutil.copy(next(few.rglob("*.png")), picture)
    ran = bcu(
        "evaluate",
        MODEL,
        "--data",
        few,
        "--trigger-image",
        picture,
        "--trigger-mode",
        "add",
        "--tsne",
        picture,
    )
    assert ran.code == 2
    assert "is the input" in ran.error


def test_classes_that_one_file_calls_otherwise_keep_their_order() -> None:
    labels = torch.tensor([0, 1, 1])
    none = torch.zeros(3, dtype=torch.int64)
    seen = Features(clean=torch.zeros(3, 2), labels=labels, triggered=None)
    entry = {"model": {"path": "other.safetensors"}, "acc": {"value": 1.0}}
    measured = Measured(
        entry=entry, classes=("n01", "n02"), labels=labels, clean=none, triggered=(), features=seen
    )
    assert _panel(measured, ("cat", "dog"), None).classes.tolist() == [0, 1, 1]
    assert _panel(measured, ("n02", "n01"), None).classes.tolist() == [1, 0, 0]
