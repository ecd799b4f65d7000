"""Plans: what they come to, counted by hand, and how bad ones are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bcu_cli import defenses
from bcu_cli.benchmark import plan as plans
from bcu_cli.benchmark.cell import JUDGING, fingerprint
from bcu_cli.defenses.base import Defense, find
from bcu_cli.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from bcu_cli.benchmark.cell import Plan

PLAN = """
title = "A plan"
architectures = ["resnet8", "resnet14"]
max-images = [500, 1000]

[data.cifar10]
[data.gtsrb]
attack = {flip = false}

[attack]
epochs = 30
flip = true

[attacks.badnets]
[attacks.strong]
attack = "wanet"
setting = ["strength=1"]

[defense]
learning-rate = 0.01

[defenses.bcu]
method = "bcu"
[defenses.ft]
method = "ft"
learning-rate = 0.05

[images.own]
[images.tiny]
folder = "tiny-imagenet"
max-images = [2000]

[[models]]
targets = [0]
seeds = [0, 1, 2]
[[models]]
targets = [1, "next"]

[size.small]
architectures = ["resnet8"]
only = ["attack=badnets", "images=own"]
attack = {epochs = 1}
data.cifar10 = {test-images = 100}

[size.large]
"""


def read(tmp_path: Path, text: str, size: str | None = None) -> Plan:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return plans.read(path, size)


def test_a_plan_is_every_combination(tmp_path: Path) -> None:
    plan = read(tmp_path, PLAN, "large")
    # 2 data sets, 2 architectures, 2 attacks, 3 + 2 targets with seeds, 2 defenses, 2 + 1 numbers of images
    assert len(plan.cells) == 2 * 2 * 2 * 5 * 2 * 3
    assert len({cell.name for cell in plan.cells}) == len(plan.cells)
    assert len({cell.model.name for cell in plan.cells}) == 2 * 2 * 2 * 5
    assert plan.folder == "mine.large"
    assert plan.cells[0].coordinates == {
        "data": "cifar10",
        "arch": "resnet8",
        "attack": "badnets",
        "target": 0,
        "seed": 0,
        "defense": "bcu",
        "images": "own",
        "max-images": 500,
    }


def test_nearer_options_win_and_bcu_needs_no_method(tmp_path: Path) -> None:
    cells = {cell.name: cell for cell in read(tmp_path, PLAN, "large").cells}
    one = cells["cifar10-resnet8-badnets-t0-s0-bcu-own-500"]
    assert one.model.options == {"epochs": 30, "flip": True}
    assert one.options == {"learning-rate": 0.01}
    assert one.command == {"method": "bcu", "learning-rate": 0.01}
    other = cells["gtsrb-resnet14-strong-tnext-s0-ft-tiny-2000"]
    assert (other.model.attack, other.model.target) == ("wanet", "next")
    assert other.model.options == {"epochs": 30, "flip": False, "setting": ["strength=1"]}
    assert other.options == other.command == {"learning-rate": 0.05, "method": "ft"}


def test_a_size_is_laid_over_the_plan(tmp_path: Path) -> None:
    plan = read(tmp_path, PLAN, "small")
    assert len(plan.cells) == 2 * 1 * 1 * 5 * 2 * 2
    assert plan.cells[0].model.options == {"epochs": 1, "flip": True}
    assert plan.cells[0].model.data.test_images == 100
    assert plan.cells[0].model.data.defense_images == 5000


def test_only_some_cells(tmp_path: Path) -> None:
    cells = read(tmp_path, PLAN, "large").cells
    assert len(plans.only(cells, [])) == len(cells)
    assert len(plans.only(cells, ["attack=strong"])) == len(cells) // 2
    assert len(plans.only(cells, ["attack=badnets,strong", "seed=1,2"])) == 2 * 2 * 2 * 2 * 2 * 3
    assert {cell.model.target for cell in plans.only(cells, ["target=next"])} == {"next"}


@pytest.mark.parametrize(
    "condition", ["attack", "attack=", "attack=iab", "arch=resnet20", "colour=red", "seed=0,7", "=", ""]
)
def test_conditions_that_make_no_sense(tmp_path: Path, condition: str) -> None:
    cells = read(tmp_path, PLAN, "large").cells
    with pytest.raises(UsageError, match=f"--only {condition}") as caught:
        plans.only(cells, [condition])
    assert caught.value.hint


def test_conditions_that_no_cell_meets(tmp_path: Path) -> None:
    cells = read(tmp_path, PLAN, "large").cells
    with pytest.raises(UsageError, match="no cell"):
        plans.only(cells, ["target=1", "seed=2"])


def test_a_network_is_one_thing_under_any_label_and_another_with_other_options(tmp_path: Path) -> None:
    first = read(tmp_path, PLAN, "large").cells[0]
    renamed = read(
        tmp_path, PLAN.replace("[attacks.badnets]", '[attacks.sticker]\nattack = "badnets"'), "large"
    )
    assert fingerprint(renamed.cells[0].decides) == fingerprint(first.decides)
    for change in (("epochs = 30", "epochs = 31"), ("[data.cifar10]", "[data.cifar10]\ntrain-images = 9")):
        other = read(tmp_path, PLAN.replace(*change), "large").cells[0]
        assert other.model.name != first.model.name
    other = read(tmp_path, PLAN.replace("learning-rate = 0.01", "learning-rate = 0.02"), "large").cells[0]
    assert other.model.name == first.model.name
    assert fingerprint(other.decides) != fingerprint(first.decides)


def test_a_defense_may_have_numbers_of_its_own(tmp_path: Path) -> None:
    text = PLAN.replace("[defenses.ft]", "[defenses.ft]\nmax-images = [7]")
    cells = read(tmp_path, text, "large").cells
    assert {(c.defense, c.images.name, c.max_images) for c in cells} == {
        ("bcu", "own", 500),
        ("bcu", "own", 1000),
        ("bcu", "tiny", 2000),
        ("ft", "own", 7),
        ("ft", "tiny", 7),
    }


LEAST = "[data.cifar10]\n[attacks.badnets]\n[defenses.bcu]\n"


def test_the_least_plan(tmp_path: Path) -> None:
    plan = read(tmp_path, LEAST)
    assert [cell.name for cell in plan.cells] == ["cifar10-resnet18_cifar-badnets-t0-s0-bcu-own-2500"]
    assert (plan.title, plan.size, plan.folder) == ("mine", "", "mine")


@pytest.mark.parametrize(
    ("text", "size", "said", "hint"),
    [
        ("title = ", None, "no TOML", "examples/plans"),
        ("", None, "no [data.NAME]", "[data.cifar10]"),
        ("[data.a]\n[attacks.badnets]", None, "no [defenses.NAME]", "bcu"),
        (LEAST + "[size.big]", None, "several sizes", "--size big"),
        (LEAST + "[size.big]", "small", "no size small", "big"),
        (LEAST, "small", "no size small", "leave --size out"),
        ("architecture = ['a']\n" + LEAST, None, "no key architecture", "did you mean architectures?"),
        ("[data.a]\nzip = 1\n[attacks.sig]\n[defenses.bcu]", None, "no key zip in [data.a]", "folder"),
        (LEAST + "[attacks.trojan]", None, "no attack is called trojan", "wanet"),
        (LEAST + "[attacks.'a b']", None, "[attacks.a b]", "letters"),
        (LEAST + "[attacks.x]\nattack = 3", None, "attack in [attacks.x] is no text", "like"),
        (LEAST + "[attacks.sig]\nseed = 3", None, "gives seed", "leave it out"),
        (LEAST + "[defenses.auto]\nforce = true", None, "gives force", "leave it out"),
        (LEAST + "[attacks.sig]\nEpochs = 3", None, "Epochs = 3 is no option", "like"),
        (LEAST + "[attacks.sig]\na = {b = 1}", None, "is no option", "like"),
        (LEAST + "[defenses.ft]\nout = 'x'", None, "gives out", "leave it out"),
        ("max-images = 5\n" + LEAST, None, "max-images is not what it takes", "[500"),
        ("max-images = [0]\n" + LEAST, None, "max-images is not what it takes", "[500"),
        ("max-images = [5, 5]\n" + LEAST, None, "names something twice", "[500"),
        ("max-images = [5001]\n" + LEAST, None, "gives a defense 5000 images, not 5001", "defense-images"),
        (
            LEAST + "[defenses.bcu-own]\n[images.own]\n[images.own-own]\nfolder = 'x'",
            None,
            "two cells have the same name",
            "without hyphens",
        ),
        ("data = 3", None, "[data] is no table", "begin"),
        (LEAST + "[images.x]", None, '[images.x] has folder = ""', "own"),
        (LEAST + "[images.own]\nfolder = 'x'", None, "[images.own]", "own"),
        (LEAST + "[images.x]\nfolder = 'x'\nclasses = 3", None, "one of classes and per-class", "both"),
        (LEAST + "[[models]]\ntargets = [-1]", None, "targets in [models]", '["next"]'),
        (LEAST + "[[models]]\nseeds = [0]\n[[models]]\nseeds = [0, 1]", None, "twice", "leave"),
        (LEAST + "[[models]]\nseed = [0]", None, "no key seed in [models]", "seeds"),
        ("only = ['attack=sig']\n" + LEAST, None, "no attack is sig", "badnets"),
        (LEAST + "[size]\nsmoke = 3", "smoke", "[size.smoke] is no table", "begin"),
    ],
)
def test_bad_plans_are_refused_in_one_line(
    tmp_path: Path, text: str, size: str | None, said: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text, size)
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert hint in caught.value.hint


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        plans.read(tmp_path / "none.toml", None)


def test_methods_with_a_verdict_are_known() -> None:
    """Without importing torch, which the defenses do."""
    judging = [name for name in defenses.names() if find(name).verdict is not Defense.verdict]
    assert judging == list(JUDGING)


def test_clean_networks_differ_by_their_seeds_alone(tmp_path: Path) -> None:
    plan = read(tmp_path, PLAN.replace("[attacks.strong]", "[attacks.none]\n[attacks.strong]"), "large")
    clean = {cell.model.name: cell.model for cell in plan.cells if cell.model.attack == "none"}
    assert sorted({(model.target, model.seed) for model in clean.values()}) == [(0, 0), (0, 1), (0, 2)]
    assert len(clean) == 2 * 2 * 3  # data sets, architectures, seeds


def test_more_images_than_are_drawn(tmp_path: Path) -> None:
    text = PLAN.replace('folder = "tiny-imagenet"', 'folder = "tiny-imagenet"\nclasses = 20\nper-class = 50')
    with pytest.raises(UsageError, match=r"\[images.tiny\] draws 1000 images, not 2000"):
        read(tmp_path, text, "large")
