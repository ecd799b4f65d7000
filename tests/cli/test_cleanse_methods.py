"""``bcu cleanse --method``: what is asked for, refused and reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bcu_cli.images.sources import signs

MODEL = Path(__file__).parents[1] / "data" / "backdoored.safetensors"


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of each of the eight classes, in subfolders."""
    root = tmp_path_factory.mktemp("few")
    signs.write_folder(root, 8, seed=3)
    return root


def test_a_labelled_method_takes_labels_from_subfolders(bcu, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    words = ["--method", "ft", "--images", few, "--epochs", 1, "--batch-size", 32, "--out", out]
    report = bcu("cleanse", MODEL, *words, "--json").json
    assert report["method"] == "ft"
    assert "fine-tuning" in report["paper"]
    assert report["images"]["labels"] == "class subfolders"
    assert (report["images"]["used"], report["images"]["held_out"]) == (56, 8)
    assert report["options"]["learning_rate"] == 0.01
    assert report["agreement"]["before_training"]["value"] == 1.0  # it starts as the original
    assert [stage["stage"] for stage in report["training"]] == ["fine-tuning"]
    before, after = load_file(MODEL), load_file(out)
    assert {k: (v.shape, v.dtype) for k, v in before.items()} == {
        k: (v.shape, v.dtype) for k, v in after.items()
    }


def test_the_models_own_answers_stand_in_for_labels(bcu, few: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for picture in few.rglob("*.png"):
        (flat / picture.name).write_bytes(picture.read_bytes())
    words = ["--method", "ft", "--images", flat, "--epochs", 1, "--out", tmp_path / "out.safetensors"]
    refused = bcu("cleanse", MODEL, *words)
    assert refused.code == 2
    assert "--method ft learns from labels" in refused.error
    assert "--pseudo-labels" in refused.err
    report = bcu("cleanse", MODEL, *words, "--pseudo-labels", "--json").json
    assert report["images"]["labels"] == "the model's predictions"


def test_clp_needs_no_pictures(bcu, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    words = ["--method", "clp", "--setting", "u=2.5", "--out", out]
    report = bcu("cleanse", MODEL, *words, "--json").json
    assert (report["images"], report["agreement"], report["training"]) == (None, None, [])
    assert report["options"] == {"seed": 0, "u": 2.5}
    assert sum(len(layer["pruned"]) for layer in report["details"]["pruned"]) > 0
    shown = bcu("cleanse", MODEL, *words)
    assert shown.code == 0
    assert "channels" in shown.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "nothing"], "no method called nothing"),
        (["--method", "ft", "--strength", "3"], "--method ft has no --strength"),
        (["--method", "anp", "--epochs", "3"], "--method anp has no --epochs"),
        (["--method", "ft", "--epochs", "0"], "--epochs 0 trains nothing"),
        (["--method", "i-bau", "--epochs", "0"], "--epochs 0 trains nothing"),
        (["--method", "clp", "--flip"], "--method clp has no --flip"),
        (["--setting", "u=3"], "--method auto has no setting u"),
        (["--method", "ft", "--setting", "epochs=3"], "--method ft has no setting epochs"),
        (["--method", "clp", "--setting", "u=nan"], "a u of nan"),
        (["--method", "clp", "--setting", "u"], "--setting u is not NAME=NUMBER"),
        (["--method", "fp", "--setting", "layers=1.5"], "layers=1.5 is no whole number"),
        (["--method", "clp", "--setting", "pcl.u=3"], "no method is called pcl"),
        (["--method", "nad"], "--method nad needs images"),
        (
            ["--method", "bcu", "--targets", "hard", "--temperature", "1,4"],
            "hard targets have no temperature",
        ),
        (["--method", "bcu", "--init", "increasing"], "no initialisation increasing"),
        (["--method", "bcu", "--targets", "warm"], "no warm targets"),
    ],
)
def test_what_a_method_does_not_have_is_refused(bcu, tmp_path: Path, words: list[str], message: str) -> None:
    images = [] if "nad" in words else ["--images", tmp_path]
    ran = bcu("cleanse", MODEL, *images, "--out", tmp_path / "out.safetensors", *words)
    assert ran.code == 2
    assert message in ran.error
    assert "hint: " in ran.err


def test_another_owners_setting_is_left_to_it(bcu, tmp_path: Path) -> None:
    words = ["--method", "clp", "--setting", "nad.beta=5", "--setting", "clp.u=4"]
    report = bcu("cleanse", MODEL, *words, "--out", tmp_path / "out.safetensors", "--json").json
    assert report["options"]["u"] == 4.0


def test_folders_that_are_not_the_models_classes(bcu, few: Path, tmp_path: Path) -> None:
    other = tmp_path / "signs" / "elephant"
    other.mkdir(parents=True)
    for number, picture in enumerate(list(few.rglob("*.png"))[:40]):
        (other / f"{number}.png").write_bytes(picture.read_bytes())
    words = ["--method", "ft", "--images", tmp_path / "signs", "--out", tmp_path / "out.safetensors"]
    ran = bcu("cleanse", MODEL, *words)
    assert ran.code == 2
    assert "elephant" in ran.error


def test_hard_targets_and_other_initialisations_run(bcu, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    words = ["--method", "bcu", "--init", "uniform", "--targets", "hard"]
    words += ["--images", few, "--epochs", 1, "--out", out]
    report = bcu("cleanse", MODEL, *words, "--json").json
    assert (report["options"]["init"], report["options"]["targets"]) == ("uniform", "hard")
    assert len({layer["ratio"] for layer in report["details"]["reinitialised"]}) == 1


def test_no_epochs_write_the_student_as_it_is_initialised(bcu, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    words = ["--method", "bcu", "--images", few, "--epochs", 0, "--out", out]
    report = bcu("cleanse", MODEL, *words, "--json").json
    before, after = load_file(MODEL), load_file(out)
    reinitialised = report["details"]["reinitialised"]
    drawn = {f"{layer['name']}.{kind}" for layer in reinitialised for kind in ("weight", "bias")}
    assert all(torch.equal(before[name], after[name]) for name in set(before) - drawn)  # the normalisations
    changed = sum(int((before[name] != after[name]).sum()) for name in drawn & set(before))
    assert changed == sum(layer["reinitialised_weights"] for layer in reinitialised) > 0
    assert (report["options"]["epochs"], report["training"]) == (0, [])
    assert report["agreement"]["before_training"] is None
    assert report["agreement"]["after"]["value"] < 1
    shown = bcu("cleanse", MODEL, *words)
    assert shown.code == 0
    assert "re-initialised" in shown.out


def test_what_the_pictures_lack_is_said(bcu, few: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for folder in sorted(few.iterdir())[:4]:
        for picture in folder.glob("*.png"):
            (flat / f"{folder.name}-{picture.name}").write_bytes(picture.read_bytes())
    words = ["--method", "bcu", "--images", flat, "--epochs", 0, "--out", tmp_path / "o"]
    ran = bcu("cleanse", MODEL, *words, "--json")
    found = ran.json["images"]["suitability"]
    assert (found["of_classes"], found["answered_classes"]) == (8, 4)
    assert set(found["rarest_classes"]) == {folder.name for folder in sorted(few.iterdir())[:4]}
    assert "warning: 24 training images are few: about 900 more" in ran.err
    assert "predicts only 4 of 8 classes" in ran.err
    assert all(folder.name in ran.err for folder in sorted(few.iterdir())[4:])
    assert all(f"warning: {warning}" in ran.err for warning in found["warnings"])


def test_options_without_an_effect_are_named_once_and_harm_nothing(bcu, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    words = ["--method", "clp", "--force", "--pseudo-labels", "--max-images", 5, "--out", out]
    ran = bcu("cleanse", MODEL, *words, "--json")
    assert ran.code == 0
    assert ran.json["output"]
    (warning,) = (line for line in ran.err.splitlines() if "without effect" in line)
    assert "on --method clp: --force (it writes its result anyway)" in warning
    assert "--pseudo-labels (it needs no labels), --max-images (there are no images)" in warning


def test_what_is_left_out_and_which_weights_were_taken_is_said(bcu, tmp_path: Path) -> None:
    state = load_file(MODEL)
    value = {
        "state_dict": state,
        "state_dict_ema": dict(state),
        "metric": 0.9,
        "optimizer": {"a": torch.ones(9)},
    }
    torch.save(value | {"arch": "resnet8", "names": {0: "a"}}, tmp_path / "in.pth")
    how = ["--method", "clp", "--arch", "resnet8", "--input-size", 32, "--mean", 0.5, "--std", 0.25]
    ran = bcu("cleanse", tmp_path / "in.pth", *how, "--out", tmp_path / "out.pth")
    assert ran.code == 0, ran.err
    assert "state_dict_ema is taken (the average, which timm validates" in ran.err
    assert "--weights-key state_dict takes others" in ran.err
    assert ": optimizer (the state of an optimizer, which may hold the backdoor)" in ran.err
    assert ": state_dict (other weights, which may hold the backdoor)" in ran.err
    words = ["--weights-key", "state_dict", "--format", "safetensors", "--out", tmp_path / "out", "--json"]
    ran = bcu("cleanse", tmp_path / "in.pth", *how, *words)
    assert "several weights" not in ran.err
    omitted = {each["name"]: each["why"] for each in ran.json["omitted"]}
    assert omitted["names"] == "safetensors has no place for it"
    assert "an average of the weights" in omitted["state_dict_ema"]
    assert {"state_dict_ema", "optimizer"} <= set(ran.json["left_out"])
