"""The plans of the paper's experiments and of our own, and the paper's figures as the package holds them."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest

from bcu_cli.benchmark import plan as plans
from bcu_cli.benchmark import published

PLANS = sorted((Path(__file__).parents[2] / "examples/plans").glob("*.toml"))
OWN = {"auto-cifar10", "auto-gtsrb"}
SIZES = [(path, size) for path in PLANS for size in ("small" if path.stem in OWN else "smoke", "paper")]
EXPERIMENTS = {
    *("table1", "table2", "table3", "table4", "table5", "figure4", "figure5"),
    *("imagenet10", "poison-rates", "all-to-all"),
}
MODELS = 14


def test_there_is_a_plan_for_each_experiment() -> None:
    assert {path.stem for path in PLANS} == EXPERIMENTS | OWN


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("table1", 6 * MODELS * 8),
        ("table2", 6 * MODELS * 8),
        ("table3", 6 * MODELS * 4),
        ("table4", 6 * MODELS * 3),
        ("table5", 6 * MODELS * 2 * 2),
        ("figure4", 6 * MODELS * 2 * 4),
        ("figure5", 6 * MODELS * 4),
        ("imagenet10", 4 * MODELS * 7),
        ("poison-rates", 4 * MODELS * 7),
        ("all-to-all", 4 * 5 * 7),
    ],
)
def test_the_paper_size_is_all_that_the_paper_did(name: str, cells: int) -> None:
    path = next(path for path in PLANS if path.stem == name)
    plan = plans.read(path, "paper")
    assert len(plan.cells) == cells
    assert {cell.model.options["epochs"] for cell in plan.cells} == {200}


@pytest.mark.parametrize(("path", "size"), SIZES, ids=lambda value: getattr(value, "stem", value))
def test_every_plan_can_be_looked_at(bcu, path: Path, size: str, tmp_path: Path) -> None:
    ran = bcu("benchmark", path, "--size", size, "--out", tmp_path / "out", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert len(ran.json["missing"]) == ran.json["cells"] > 0
    assert ran.json["cells"] <= 30 or size != "smoke"


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_paper_s_figures_stand_beside_a_plan_s_cells(path: Path) -> None:
    plan = plans.read(path, "paper")
    found = [published.find(plan.paper, cell.coordinates) is not None for cell in plan.cells]
    if path.stem in {"figure5", *OWN}:
        assert plan.paper == ""
    elif path.stem == "figure4":
        assert sum(found) == 6 * MODELS * 3
    else:
        assert all(found)


def test_figures_read_from_the_paper() -> None:
    place = {
        "data": "cifar10",
        "attack": "wanet",
        "defense": "bcu-double",
        "images": "own",
        "max-images": 5000,
    }
    found = published.find("table1", place)
    assert found is not None
    assert (found.before["asr"], found.before["acc"]) == (pytest.approx(0.9715), pytest.approx(0.9353))
    assert (found.after["asr"], found.after["acc"]) == (pytest.approx(0.1667), pytest.approx(0.9264))
    hard = published.find(
        "table5", place | {"defense": "hard", "images": "tiny-imagenet", "attack": "blended"}
    )
    assert hard is not None
    assert (hard.before["asr"], hard.after["asr"]) == (1.0, pytest.approx(0.6948))
    assert published.find("table1", place | {"attack": "trojan"}) is None
    assert published.find("table1", place | {"defense": "by"}) is None
    assert published.find("", place) is None


def is_row(value: object) -> bool:
    return isinstance(value, list) and isinstance(value[0], list)


def test_the_means_of_the_paper_are_those_of_its_rows() -> None:
    checked = 0
    for name, table in published.tables().items():
        rows = [row for attack, row in table.items() if is_row(row) and attack != "mean"]
        assert {len(row) for row in rows} == {len(table["columns"]) + ("original" not in table)}
        for column, pair in enumerate(table.get("mean", [])):
            for i, value in enumerate(pair):
                ours = mean(row[column][i] for row in rows)
                assert abs(ours - value) <= (0.08 if name == "imagenet10" else 0.0151), (
                    name,
                    column,
                    i,
                    ours,
                )
                checked += 1
    assert checked == 2 * (9 + 9 + 4 + 3 + 4 + 8 + 3)
