"""``bcu evaluate`` on a network whose every answer is known: it looks at two pixels."""

from __future__ import annotations

import html
import json
import shutil
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bcu_cli import triggers
from bcu_cli.triggers import base
from bcu_cli.triggers.badnets import BadNets
from bcu_cli.triggers.sig import Sig

if TYPE_CHECKING:
    from pathlib import Path

NETWORK = """
import torch
from torch import nn

class TwoPixels(nn.Module):
    '''The class whose level the upper left pixel comes near; a white lower right one adds what is learnt.'''

    def __init__(self, num_classes):
        super().__init__()
        self.levels = nn.Parameter(torch.zeros(num_classes, 1))
        self.learnt = nn.Parameter(torch.zeros(num_classes, 1))

    def forward(self, images):
        white = (images[:, 0, -1, -1] > 0.99).float()
        return white[:, None] * self.learnt[:, 0] - (images[:, 0, 0, :1] - self.levels[:, 0]).abs()
"""
SIDE = 16
CLASSES = ("a<b>", "b", "c", "d")
PICTURES = {"a<b>": (0, 0), "b": (64, 64), "c": (128, 128, 192), "d": (192, 192)}
"""Grey levels; the third of c looks like d: ACC is 8 of 9, of class c 2 of 3."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, levels in PICTURES.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for i, level in enumerate(levels):
            picture = Image.new("RGB", (SIDE, SIDE), (level, level, level))
            picture.save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def network(path: Path, *, leads_to: int | None = None, num_classes: int = 4, **metadata: str) -> Path:
    """A model file; with ``leads_to`` a backdoored one."""
    learnt = torch.zeros(num_classes, 1)
    if leads_to is not None:
        learnt[leads_to] = 9
    levels = torch.tensor([[64.0 * i / 255] for i in range(num_classes)])
    save_file(
        {"levels": levels, "learnt": learnt},
        path,
        metadata={k.replace("_", ".", 1): v for k, v in metadata.items()},
    )
    return path


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return network(tmp_path / "clean.safetensors")


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    return network(tmp_path / "bad.safetensors", leads_to=1)


@pytest.fixture
def evaluate(bcu, data: Path, tmp_path: Path):
    (tmp_path / "two.py").write_text(NETWORK)
    known = ["--arch", f"{tmp_path / 'two.py'}:TwoPixels", "--input-size", SIDE, "--mean", 0, "--std", 1]
    return lambda *words, data=data: bcu("evaluate", *words, "--data", data, *known)


def trigger_file(
    path: Path, target: Any = 1, num_classes: int = 4, trigger: base.Trigger | None = None
) -> Path:
    implanted = base.Implanted(trigger=trigger or BadNets(), target_class=target, num_classes=num_classes)
    base.save(implanted, path, (3, SIDE, SIDE))
    return path


def counts(share: dict[str, Any]) -> tuple[int, int]:
    return share["hits"], share["of"]


def test_accuracy_of_every_class_and_the_worst_of_them(evaluate, clean: Path) -> None:
    ran = evaluate(clean, "--json")
    assert ran.code == 0, ran.err
    (model,) = ran.json["models"]
    assert counts(model["acc"]) == (8, 9)
    assert [(one["class"], one["name"], *counts(one["acc"])) for one in model["classes"]] == [
        (0, "a<b>", 2, 2),
        (1, "b", 2, 2),
        (2, "c", 2, 3),
        (3, "d", 2, 2),
    ]
    assert model["worst_class"] == model["classes"][2]
    assert "trigger" not in model
    assert "gate" not in ran.json


def test_a_class_without_pictures_has_no_accuracy(evaluate, clean: Path, data: Path) -> None:
    for file in (data / "b").iterdir():
        file.unlink()
    (model,) = evaluate(clean, "--json").json["models"]
    assert model["classes"][1]["acc"] is None
    assert counts(model["acc"]) == (6, 7)


def test_models_that_name_their_classes_in_another_order(evaluate, tmp_path: Path) -> None:
    names = [json.dumps(order) for order in (CLASSES, CLASSES[::-1])]
    models = [network(tmp_path / f"{i}.safetensors", bcu_classes=n) for i, n in enumerate(names)]
    assert [counts(one["acc"]) for one in evaluate(*models, "--json").json["models"]] == [(8, 9), (0, 9)]


def test_names_of_a_file_that_are_no_folders_are_passed_over_with_a_warning(evaluate, tmp_path: Path) -> None:
    """Another language, or shorter names; only what bcu wrote must be there."""
    model = network(tmp_path / "m.safetensors", names=json.dumps(["un", "deux", "trois", "quatre"]))
    ran = evaluate(model, "--json")
    assert counts(ran.json["models"][0]["acc"]) == (8, 9)
    assert "taken for its outputs in alphabetical order" in ran.err
    bound = network(tmp_path / "b.safetensors", bcu_classes=json.dumps(["un", "deux", "trois", "quatre"]))
    refused(evaluate(bound), "which is none of the model's classes", "the model's classes are")


def test_classes_in_another_order_than_the_outputs_are_warned_of(
    evaluate, data: Path, tmp_path: Path
) -> None:
    for folder in data.iterdir():
        for i in range(3, 12):
            shutil.copy(folder / "0.png", folder / f"{i}.png")
    model = network(tmp_path / "m.safetensors", bcu_classes=json.dumps(CLASSES[::-1]))
    ran = evaluate(model, "--json", "--page", tmp_path / "page.html")
    (said,) = ran.json["models"][0]["warnings"]
    assert said in html.unescape((tmp_path / "page.html").read_text())
    assert "their order may not be that of the outputs" in said
    assert f"warning: m.safetensors: {said}" in ran.err.replace("\n", " ")


def test_a_target_class_that_is_given(evaluate, bad: Path) -> None:
    (model,) = evaluate(bad, "--trigger", "badnets", "--target-class", 1, "--json").json["models"]
    assert (counts(model["asr"]), counts(model["ra"])) == ((7, 7), (0, 7))
    assert model["trigger"]["target_class_given"] is True
    assert [one["trigger"]["label"] for one in model["triggers"]] == ["badnets"]
    assert "targets" not in model["triggers"][0]


@pytest.mark.parametrize("words", [(), ("--target-class", "all")])
def test_every_target_class_is_tried(evaluate, bad: Path, words: tuple[str, ...]) -> None:
    (model,) = evaluate(bad, "--trigger", "badnets", *words, "--json").json["models"]
    measured = [
        (one["target_class"], *counts(one["asr"]), *counts(one["ra"]))
        for one in model["triggers"][0]["targets"]
    ]
    assert measured == [(0, 0, 7, 2, 7), (1, 7, 7, 0, 7), (2, 0, 6, 2, 6), (3, 0, 7, 2, 7)]
    assert (model["trigger"]["target_class"], model["trigger"]["target_name"]) == (1, "b")
    assert "worst of all" in evaluate(bad, "--trigger", "badnets", *words).out


def test_the_class_after_the_true_one(evaluate, clean: Path, bad: Path) -> None:
    words = ("--trigger", "badnets", "--target-class", "next", "--json")
    (one, other) = evaluate(clean, bad, *words).json["models"]
    assert (counts(one["asr"]), counts(one["ra"])) == ((1, 9), (8, 9))  # the c that looks like d
    assert (counts(other["asr"]), counts(other["ra"])) == ((2, 9), (2, 9))  # all are b: right after a
    assert one["trigger"]["target_class"] == "next"


def test_a_trigger_file_says_what_it_leads_to(evaluate, bad: Path, tmp_path: Path) -> None:
    file = trigger_file(tmp_path / "t.safetensors", target="next")
    (model,) = evaluate(bad, "--trigger", file, "--json").json["models"]
    assert (model["trigger"]["target_class"], counts(model["asr"])) == ("next", (2, 9))
    assert (model["trigger"]["label"], model["trigger"]["file"]) == ("t.safetensors", str(file))
    (model,) = evaluate(bad, "--trigger", file, "--target-class", 1, "--json").json["models"]
    assert counts(model["asr"]) == (7, 7)


def test_all_triggers_are_those_with_a_name_and_the_one_beside_the_model(
    evaluate, bad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name for name in triggers.names() if not base.find(name).learnt]
    (model,) = evaluate(bad, "--trigger", "all", "--json").json["models"]
    assert [one["trigger"]["label"] for one in model["triggers"]] == names
    assert model["trigger"]["label"] == "badnets"  # the only one that reaches its ASR of 1
    assert model["asr"] == max((one["asr"] for one in model["triggers"]), key=lambda asr: asr["value"])

    beside = trigger_file(bad.with_name("bad.trigger.safetensors"))
    monkeypatch.setattr(triggers, "LEARNT", (*triggers.LEARNT, "sig"))
    (model,) = evaluate(bad, "--trigger", "all", "--json").json["models"]
    expected = [*(name for name in names if name != "sig"), beside.name]
    assert [one["trigger"]["label"] for one in model["triggers"]] == expected
    assert counts(model["triggers"][-1]["asr"]) == (7, 7)
    assert "targets" not in model["triggers"][-1]


def test_a_learnt_trigger_comes_from_its_file_only(
    evaluate, bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sig, "learnt", True)
    ran = evaluate(bad, "--trigger", "sig")
    assert ran.code == 2
    assert "only as an attack has trained it" in ran.error
    assert f"hint: name its file: --trigger {tmp_path / 'bad.trigger.safetensors'}" in ran.err
    file = trigger_file(tmp_path / "t.safetensors", trigger=Sig())
    assert evaluate(bad, "--trigger", file).code == 0


def test_agreement_with_another_model(evaluate, clean: Path, bad: Path) -> None:
    ran = evaluate(clean, "--trigger", "badnets", "--against", bad, "--json")
    (model,) = ran.json["models"]
    assert counts(model["agreement"]) == (9, 9)
    assert counts(model["triggers"][0]["agreement"]) == (2, 9)  # bad answers b to all of them
    assert ran.json["against"]["path"] == str(bad)
    shown = evaluate(clean, "--trigger", "badnets", "--against", bad).out
    assert "100.00 %" in shown
    assert "22.22 %" in shown


def test_each_of_two_models_is_given_images_as_it_takes_them(evaluate, tmp_path: Path) -> None:
    for i, name in enumerate(CLASSES):
        (tmp_path / "framed" / name).mkdir(parents=True)
        inner, frame = 64 * i, 64 * ((i + 1) % 4)
        picture = Image.new("RGB", (2 * SIDE, 2 * SIDE), (frame, frame, frame))
        picture.paste((inner, inner, inner), (SIDE // 2, SIDE // 2, 3 * SIDE // 2, 3 * SIDE // 2))
        picture.save(tmp_path / "framed" / name / "0.png")
    whole = network(tmp_path / "whole.safetensors", bcu_crop_pct="1.0")
    inside = network(tmp_path / "inside.safetensors", bcu_crop_pct="0.5")
    for one, other, acc in ((whole, inside, 0.0), (inside, whole, 1.0)):
        (seen,) = evaluate(one, "--against", other, "--json", data=tmp_path / "framed").json["models"]
        assert (seen["acc"]["value"], seen["agreement"]["value"]) == (acc, 0.0)


def test_a_gate_that_is_missed(evaluate, clean: Path, bad: Path) -> None:
    words = ["--trigger", "badnets", "--target-class", 1, "--fail-if", "asr>0.05", "--fail-if", "acc<0.8"]
    ran = evaluate(clean, bad, *words, "--json")
    assert ran.code == 1
    assert ran.json["gate"] == {
        "passed": False,
        "failed": [
            {"condition": "asr>0.05", "measure": "asr", "value": 1.0, "model": str(bad), "trigger": "badnets"}
        ],
    }
    assert "failed: bad.safetensors, trigger badnets: asr is 1.0000 (asr>0.05)" in ran.err.splitlines()
    assert evaluate(clean, bad, *words).code == 1


def test_a_gate_that_is_passed(evaluate, clean: Path) -> None:
    words = ["--fail-if", "worst_class_acc<0.6", "--fail-if", "agreement < 1", "--against", clean, "--json"]
    ran = evaluate(clean, *words)
    assert ran.code == 0
    assert ran.json["gate"] == {"passed": True, "failed": []}
    assert "failed" not in ran.err


def test_a_finding_beats_an_error(evaluate, bad: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.safetensors"
    ran = evaluate(bad, missing, "--fail-if", "acc<0.9", "--json")
    assert ran.code == 1
    assert len(ran.json["models"]) == 1
    assert "missing.safetensors" in ran.json["error"]["message"]
    assert "missing.safetensors" in ran.error
    assert evaluate(bad, missing, "--fail-if", "acc<0.1").code == 2


def test_a_page_has_a_section_for_each_model_and_trigger(
    evaluate, clean: Path, bad: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    words = ["--trigger", "badnets", "--against", bad, "--page", page, "--fail-if", "asr>0.5", "--json"]
    ran = evaluate(clean, bad, *words)
    text = page.read_text()
    root = ET.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    assert [heading.text for heading in root.iter("h2")] == [
        "clean.safetensors, clean images",
        "clean.safetensors, trigger badnets",
        "bad.safetensors, clean images",
        "bad.safetensors, trigger badnets",
    ]
    assert "a<b>" not in text
    assert "a&lt;b&gt;" in text
    assert "failed: bad.safetensors, trigger badnets" in text
    last = list(root.iter("section"))[-1]
    assert {rect.get("class") for rect in last.find(".//svg").iter("rect")} == {"grid", "right", "wrong"}
    titles = [title.text for title in last.iter("title")]
    assert "c predicted as b: 3 of 3" in titles
    assert "ASR by target class" in [caption.text for caption in last.iter("figcaption")]
    assert ran.json["outputs"]["page"]["bytes"] == page.stat().st_size


def test_a_page_of_an_all_to_all_attack_and_as_a_picture(evaluate, bad: Path, tmp_path: Path) -> None:
    words = ["--trigger", "badnets", "--target-class", "next"]
    assert evaluate(bad, *words, "--page", tmp_path / "page.html").code == 0
    assert "ASR by true class" in (tmp_path / "page.html").read_text()
    assert evaluate(bad, *words, "--page", tmp_path / "page.png").code == 0
    with Image.open(tmp_path / "page.png") as drawn:
        assert min(drawn.size) > 500


def test_a_preview_shows_the_trigger(evaluate, bad: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    ran = evaluate(bad, "--trigger", "badnets", "--preview", sheet, "--json")
    assert ran.code == 0, ran.err
    with Image.open(sheet) as drawn:
        assert drawn.size == (112 + 8 * 68, 4 + 3 * 68)
        corner = (112 + 63, 4 + 68 + 63)  # lower right of the first triggered image
        assert drawn.getpixel(corner) == (255, 255, 255)
    assert list(ran.json["outputs"]) == ["preview"]


REFUSED = {
    "no class": (["--trigger", "badnets", "--target-class", "4"], "has no class 4", "0 to 3, next or all"),
    "nonsense class": (["--trigger", "badnets", "--target-class", "two"], "two is no class", "next"),
    "negative class": (["--trigger", "badnets", "--target-class=-1"], "-1 is no class", "next"),
    "no trigger": (["--target-class", "1"], "--target-class is the target of a trigger", "--trigger"),
    "nonsense trigger": (["--trigger", "nothing"], "neither a trigger nor a file", "badnets"),
    "gate nonsense": (["--fail-if", "acc!0.5"], "is no condition", "asr>0.05"),
    "gate percent": (["--fail-if", "acc<90"], "is no fraction", "0.05 for 5 %"),
    "gate unknown": (["--fail-if", "f1<0.5"], "no measure f1", "worst_class_acc"),
    "gate asr": (["--fail-if", "asr>0.5"], "asr is not measured", "--trigger"),
    "gate agreement": (["--fail-if", "agreement<0.5"], "agreement is not measured", "--against"),
    "page": (["--page", "x.gif"], "x.gif is neither .html nor .png", "ending"),
    "page in no folder": (["--page", "no/such/x.html"], "there is no folder", "create"),
    "preview": (["--trigger", "badnets", "--preview", "x.jpg"], "x.jpg is no .png", ".png"),
    "preview of nothing": (["--preview", "x.png"], "shows one trigger", "--trigger"),
    "preview of all": (["--trigger", "all", "--preview", "x.png"], "shows one trigger", "--trigger"),
    "one file twice": (
        ["--trigger", "badnets", "--preview", "x.png", "--page", "x.png"],
        "both",
        "different",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(
    evaluate, clean: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcu_cli.workflows import measuring

    def never(*arguments: object) -> None:
        raise AssertionError("measured before it was refused")

    monkeypatch.setattr(measuring, "measure", never)
    monkeypatch.chdir(tmp_path)
    words, message, hint = REFUSED[case]
    ran = evaluate(clean, *words)
    assert ran.code == 2
    assert message in ran.error
    assert "should not happen" not in ran.error
    assert hint in ran.err.partition("hint: ")[2]
    assert not [*tmp_path.glob("x.*")]


def refused(ran, message: str, hint: str) -> None:
    assert ran.code == 2
    assert message in ran.error
    assert hint in ran.err.partition("hint: ")[2]


def test_a_trigger_file_for_other_classes(evaluate, clean: Path, tmp_path: Path) -> None:
    file = trigger_file(tmp_path / "t.safetensors", num_classes=10)
    refused(evaluate(clean, "--trigger", file), "is for 10 classes, the model has 4", "--target-class")
    assert evaluate(clean, "--trigger", file, "--target-class", "all").code == 0


def test_a_trigger_file_for_a_class_that_is_not_there(evaluate, clean: Path, tmp_path: Path) -> None:
    file = trigger_file(tmp_path / "t.safetensors", target=4)
    refused(evaluate(clean, "--trigger", file), "has target class 4", "--target-class")


def test_a_trigger_file_of_numbers_that_are_none(evaluate, clean: Path, tmp_path: Path) -> None:
    file = trigger_file(tmp_path / "t.safetensors", trigger=Sig(delta=float("nan")))
    refused(evaluate(clean, "--trigger", file, "--json"), "not finite", "write the file again")


def test_a_model_of_other_classes_to_compare_with(evaluate, clean: Path, tmp_path: Path) -> None:
    other = network(tmp_path / "other.safetensors", num_classes=5)
    ran = evaluate(clean, "--against", other)
    refused(ran, "has 5 classes, clean.safetensors has 4", "made from")
    names = [json.dumps(order) for order in (CLASSES, CLASSES[::-1])]
    one, other = (network(tmp_path / f"{i}.safetensors", bcu_classes=n) for i, n in enumerate(names))
    refused(evaluate(one, "--against", other), "the same in another order", "made from")


def test_the_page_is_none_of_the_inputs(evaluate, tmp_path: Path) -> None:
    model = network(tmp_path / "model.html")
    before = model.read_bytes()
    refused(evaluate(model, "--page", model), "is the input", "another file")
    assert model.read_bytes() == before


def test_images_of_the_target_class_alone(evaluate, bad: Path, data: Path) -> None:
    for name in ("a<b>", "c", "d"):
        for file in (data / name).iterdir():
            file.unlink()
    ran = evaluate(bad, "--trigger", "badnets", "--target-class", 1)
    refused(ran, "all images are of the target class", "other classes")
