"""Tables and drawings of cells that are made up, worked out by hand."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bcu_cli.benchmark import results, writing
from bcu_cli.benchmark import table as tables
from bcu_cli.workflows.benchmark import _line as progress_line

MADE = {"versions": {"bcu": "1", "torch": "2"}, "device": {"name": "a <CPU>", "precision": "bf16"}}


def cell(
    number: int, asr: float, *, acc: float = 0.5, attack: str = "sig", seed: int = 0, **more: Any
) -> dict[str, Any]:
    """A cell with so many images that leaves so much ASR of 1.0, and so much ACC of 0.75."""
    place = {"data": "cifar10", "arch": "a", "attack": attack, "target": 0, "seed": seed, "defense": "bcu"}
    return {
        "plan": {"name": "figure4", "size": "", "title": "A | <title>", "note": "", "paper": "figure4"},
        "position": number + seed,
        "cell": place | {"images": "own", "max-images": number},
        "decides": {"images": {"classes": None}, "cleanse": {}},
        "before": {"acc": {"value": 0.75}, "asr": {"value": 1.0}, "ra": {"value": 0.0}},
        "after": {"acc": {"value": acc}, "asr": {"value": asr}, "ra": {"value": 0.5}},
        "made": MADE,
        "error": None,
    } | more


def test_mean_deviation_and_drop() -> None:
    (made,) = tables.of([cell(500, 0.1), cell(500, 0.2, seed=1), cell(500, 0.6, seed=2)])
    (row,) = made.rows
    # mean 0.9 / 3; squares 0.04 + 0.01 + 0.09 over n - 1 = 2
    assert row.after["asr"] == tables.Spread(
        mean=pytest.approx(0.3), deviation=pytest.approx(0.07**0.5), count=3
    )
    assert row.drop["asr"].mean == pytest.approx(0.7)
    assert row.drop["acc"].mean == pytest.approx(0.25)
    assert row.before["asr"].deviation == 0.0
    assert row.paper is None
    assert tables.spread(row.after["asr"]) == "30.00 ± 26.46"


def test_one_network_has_no_deviation() -> None:
    (made,) = tables.of([cell(500, 0.1)])
    assert tables.spread(made.rows[0].after["asr"]) == "10.00"
    assert made.rows[0].after["asr"].deviation is None


def test_the_paper_stands_beside_and_means_are_over_the_same_attacks() -> None:
    (made,) = tables.of([cell(2500, 0.02), cell(2500, 0.10, attack="wanet"), cell(500, 0.5)])
    rows = {(row.place["attack"], row.place["max-images"]): row for row in made.rows}
    assert rows["wanet", 2500].difference("asr") == pytest.approx(0.10 - 0.0986)
    assert rows["mean", 2500].after["asr"].mean == pytest.approx(0.06)
    paper = rows["mean", 2500].paper
    assert paper is not None
    assert paper.after["asr"] == pytest.approx((0.0091 + 0.0986) / 2)
    assert ("mean", 500) not in rows


def test_a_failed_attack_leaves_no_mean() -> None:
    error = {"step": "attack", "message": "no", "hint": ""}
    failed = cell(500, 0.5, attack="iab", error=error, before=None, after=None, made=None)
    (made,) = tables.of([cell(500, 0.1), failed])
    assert [(row.place["attack"], row.count, row.failed) for row in made.rows] == [
        ("sig", 1, 0),
        ("iab", 0, 1),
    ]
    assert made.errors[0][1] == "attack: no"
    header, lines = made.as_text()
    assert len({len(line) for line in [header, *lines]}) == 1


def clean(**more: Any) -> dict[str, Any]:
    """A cell of a network without a backdoor, which has no ASR."""
    one = cell(500, 0.0, attack="none")
    sides = {side: one[side] | {"asr": None, "ra": None} for side in ("before", "after")}
    return one | sides | more


def test_the_line_of_a_cell_that_is_done() -> None:
    assert progress_line(cell(500, 0.1)) == "ACC 75.00 % -> 50.00 %, ASR 100.00 % -> 10.00 %"
    assert progress_line(clean()) == "ACC 75.00 % -> 50.00 %"
    failed = {"step": "cleansing", "message": "no images"}
    assert progress_line(cell(500, 0.1, error=failed)) == "cleansing failed: no images"


def test_a_network_without_a_backdoor_has_acc_alone_and_is_no_part_of_the_mean() -> None:
    some = [cell(500, 0.1), cell(500, 0.3, attack="wanet"), clean()]
    (made,) = tables.of(some)
    rows = {row.place["attack"]: row for row in made.rows}
    assert (rows["none"].after["acc"].mean, "asr" in rows["none"].after) == (0.5, False)
    assert (rows["mean"].count, rows["mean"].after["asr"].mean) == (2, pytest.approx(0.2))
    _, lines = made.as_text()
    assert lines[2] == ["none", "bcu", "1", "–", "–", "–", "75.00", "50.00", "25.00"]
    root = ET.fromstring(writing.as_html([made]).removeprefix("<!DOCTYPE html>"))
    named = {title.text for title in root.iter("title")}
    assert named >= {"sig", "wanet"}
    assert "none" not in named
    assert writing.as_csv([made]).count(",none,") == 1


def judged(word: str) -> dict[str, Any]:
    return {"made": MADE | {"verdict": {"word": word, "why": ""}}}


def test_verdicts_are_counted_by_what_was_left() -> None:
    failed = {"error": {"step": "attack", "message": "no", "hint": ""}, "before": None, "after": None}
    some = [
        cell(500, 0.0, **judged("cleansed")),
        cell(500, 0.05, seed=1, **judged("cleansed")),
        cell(500, 0.04, seed=2, **judged("could not tell")),
        cell(500, 0.0501, seed=3, **judged("cleansed")),
        cell(500, 0.11, seed=4, **judged("not cleansed")),
        clean(**judged("could not tell")),
        cell(500, 0.9, seed=5),  # of a method without a verdict
        cell(500, 0.9, seed=6, made=None, **failed),
    ]
    (made,) = tables.of(some)
    assert {word: list(row.values()) for word, row in made.verdicts.items()} == {
        "cleansed": [2, 1, 0, 0],
        "not cleansed": [0, 0, 1, 0],
        "could not tell": [1, 0, 0, 1],
    }
    markdown, page = writing.as_markdown([made]), writing.as_html([made])
    assert "| could not tell | 1 | 0 | 0 | 1 |" in markdown
    for said in (
        "Of 3 whose backdoor was removed, 2 are called cleansed.",
        "Of 1 whose backdoor was left, 0 are",
    ):
        assert said in markdown
        assert said in page
    assert "could not tell" not in writing.as_markdown(tables.of([cell(500, 0.1)]))


def test_curves_over_the_number_of_images() -> None:
    made = tables.of([cell(1000, 0.25, acc=0.5), cell(500, 1.0, acc=0.0), cell(5000, 0.0, acc=1.0)])
    root = ET.fromstring(writing.as_html(made).removeprefix("<!DOCTYPE html>"))
    asr, acc = root.iter("svg")
    # from top (14) to bottom (234), 110 pixels between numbers, which ascend
    assert [path.get("d") for path in asr.iter("path")] == ["M50.0 14.0 L160.0 179.0 L270.0 234.0"]
    assert [path.get("d") for path in acc.iter("path")] == ["M50.0 234.0 L160.0 124.0 L270.0 14.0"]
    assert [text.text for text in asr.iter("text")][3:6] == ["500", "1,000", "5,000"]


def test_curves_over_the_number_of_classes() -> None:
    some = []
    for classes, asr in ((200, 0.0), (20, 0.5)):
        one = cell(2000, asr, decides={"images": {"classes": classes}, "cleanse": {}})
        some.append(one | {"cell": one["cell"] | {"images": f"{classes}x{2000 // classes}"}})
    asr, _ = ET.fromstring(writing.as_html(tables.of(some)).removeprefix("<!DOCTYPE html>")).iter("svg")
    assert [path.get("d") for path in asr.iter("path")] == ["M50.0 124.0 L160.0 234.0"]


def test_one_number_is_no_curve() -> None:
    assert "over the number" not in writing.as_html(tables.of([cell(500, 0.1), cell(500, 0.2, attack="iab")]))
    assert "<svg" not in writing.as_html(tables.of([cell(500, 0.1), cell(2500, 0.2, attack="iab")]))


def test_markdown_and_csv_are_well_formed() -> None:
    made = tables.of([cell(500, 0.125), cell(2500, 0.5)])
    markdown = writing.as_markdown(made)
    assert "## A \\| &lt;title>" in markdown
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + 2
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    rows = list(csv.DictReader(io.StringIO(writing.as_csv(made))))
    assert [(row["max-images"], row["asr_after"], row["asr_drop"], row["networks"]) for row in rows] == [
        ("500", "0.125", "0.875", "1"),
        ("2500", "0.5", "0.5", "1"),
    ]
    assert (rows[0]["asr_after_paper"], rows[0]["ra_after"]) == ("", "0.5")
    assert float(rows[1]["asr_difference"]) == pytest.approx(0.5 - 0.0091)


def test_plans_and_sizes_are_tables_of_their_own() -> None:
    other = cell(500, 0.2)
    made = tables.of([cell(500, 0.1), other | {"plan": other["plan"] | {"size": "smoke"}}])
    assert [one.heading for one in made] == ["A | <title>", "A | <title> (smoke)"]


def of_table1(
    attack: str, *, before: float, after: float, acc: tuple[float, float], seed: int = 0
) -> dict[str, Any]:
    """A cell of the paper's table 1, method bcu."""
    one = cell(2500, after, acc=acc[1], attack=attack, seed=seed)
    plan = one["plan"] | {"name": "table1", "paper": "table1"}
    sides = {"acc": {"value": acc[0]}, "asr": {"value": before}, "ra": {"value": 0.0}}
    model = {"options": {"epochs": 8}, "data": {"train_images": None}}
    decides = {"images": {"classes": None}, "model": model, "cleanse": {}}
    return one | {"plan": plan, "before": sides, "decides": decides}


def test_differences_over_two_points_are_explained_by_the_cells_or_said_to_be_unexplained() -> None:
    (made,) = tables.of(
        [
            # paper: 99.93, 92.76 -> 3.00, 92.15
            of_table1("badnets", before=1.0, after=0.97, acc=(0.8576, 0.8515)),
            # paper: 100.00, 94.48 -> 4.90, 93.16
            *(
                of_table1("blended", before=1.0, after=asr, acc=(0.9448, 0.90), seed=seed)
                for seed, asr in enumerate((0.0, 0.10, 0.17))
            ),
            # paper: 95.09, 93.71 -> 0.91, 92.58
            of_table1("sig", before=0.95, after=0.01, acc=(0.9371, 0.92)),
        ]
    )
    lines = {line.partition(": ")[0] + line.partition(": ")[2][:4]: line for line in made.differences()}
    unlike = "unlike the paper: arch a, not resnet18_cifar, epochs 8, not 200"
    assert lines["badnets, bcuASR "] == f"badnets, bcu: ASR +94.00: unexplained; {unlike}"
    assert lines["badnets, bcuACC "].endswith("the networks differ as much before the cleansing (−7.00)")
    assert lines["blended, bcuASR "].endswith("within two standard deviations of 3 networks")
    assert lines["blended, bcuACC "] == f"blended, bcu: ACC −3.16: unexplained; {unlike}"
    assert not any(key.startswith("sig") for key in lines)
    for text in (writing.as_markdown([made]), writing.as_html([made])):
        assert "ASR +94.00: unexplained" in text
    found = {row["place"]["attack"]: row["explanation"] for row in made.as_json()["rows"]}
    assert found["sig"] == {"asr": None, "acc": None}


def test_a_method_that_departs_from_its_paper_is_called_a_variant() -> None:
    alike = of_table1("badnets", before=1.0, after=0.97, acc=(0.8576, 0.8515))
    other = alike | {
        "cell": alike["cell"] | {"defense": "unlearning"},
        "decides": alike["decides"] | {"cleanse": {"method": "i-bau"}},
    }
    (made,) = tables.of([alike, other])
    assert [line[1] for line in made.as_text()[1]] == ["bcu", "unlearning (variant)"]
    assert dict(made.facts)["variants"].startswith("unlearning: a perturbation for each batch")
    assert [row["variant"] == "" for row in made.as_json()["rows"]] == [True, False]


def test_one_picture_by_attack_with_the_paper_beside_it() -> None:
    cells = [
        of_table1("badnets", before=1.0, after=0.5, acc=(0.9, 0.9)),
        of_table1("sig", before=1.0, after=1.0, acc=(0.9, 0.9)),
    ]
    (drawn,) = ET.fromstring(writing.as_html(tables.of(cells)).removeprefix("<!DOCTYPE html>")).iter("svg")
    dots = [(dot.get("class"), float(dot.get("cx"))) for dot in drawn.iter("circle")]
    # an axis of 100 pixels from 84 on; first the paper's ASR of BadNets, 3.00 %
    assert dots[:2] == [("paper", pytest.approx(84 + 100 * 0.03, abs=0.1)), ("bar", 84 + 100 / 2)]
    assert len(dots) == 2 * 2 * 3  # hollow and filled, two measures, two attacks and their mean
    assert "measured 50.00 %, the paper 3.00 %" in "".join(drawn.itertext())
    assert "<svg" not in writing.as_html(tables.of(cells[:1]))


def test_the_committed_tables_are_those_of_the_committed_cells() -> None:
    folder = Path(__file__).parents[2] / "examples" / "results"
    made = tables.of(results.read_cells(folder).values())
    again = "made again by: bcu benchmark table examples/results"
    assert writing.as_html(made) == (folder / "table.html").read_text(), again
    assert writing.as_markdown(made) == (folder / "table.md").read_text(), again
    assert writing.as_csv(made) == (folder / "table.csv").read_text(), again


def test_a_mean_is_over_the_attacks_of_all_rows_and_counts_what_failed() -> None:
    error = {"error": {"step": "attack", "message": "no", "hint": ""}, "before": None, "after": None}
    other = {"cell": cell(500, 0.4)["cell"] | {"defense": "ft"}}
    some = [
        cell(500, 0.1),
        cell(500, 0.3, attack="wanet"),
        cell(500, 0.3, attack="wanet", seed=1, made=None, **error),
        cell(500, 0.1, attack="iab"),
        cell(500, 0.4, **other),
        cell(500, 0.4, attack="iab", cell=other["cell"] | {"attack": "iab"}),
    ]
    (made,) = tables.of(some)
    means = [row for row in made.rows if row.place["attack"] == tables.MEAN]
    assert [(row.place["defense"], row.count, row.failed) for row in means] == [("bcu", 3, 1)]


def test_the_paper_stands_beside_its_own_data_and_method_alone() -> None:
    alike = of_table1("badnets", before=1.0, after=0.97, acc=(0.9, 0.9))
    few = alike | {"cell": alike["cell"] | {"max-images": 500}}
    signs = alike | {"cell": alike["cell"] | {"data": "gtsrb"}}
    (made,) = tables.of([few, signs])
    assert [row.paper is None for row in made.rows] == [False, True]
    assert "max-images 500, not 2500 or 5000" in made.differences()[0]
    third = {"plan": alike["plan"] | {"paper": "table3"}}
    (made,) = tables.of([alike | third, alike | third | {"cell": alike["cell"] | {"defense": "auto"}}])
    assert [(row.place["defense"], row.paper is None) for row in made.rows] == [
        ("bcu", False),
        ("auto", True),
    ]


def test_a_backdoor_that_was_not_learnt_counts_as_none() -> None:
    weak = cell(500, 0.005, **judged("cleansed"))
    weak["before"] = weak["before"] | {"asr": {"value": 0.1}}
    (made,) = tables.of([weak])
    assert list(made.verdicts["cleansed"].values()) == [0, 0, 0, 1]


def test_pictures_tell_data_sets_apart_and_sources_of_one_size_are_no_curve() -> None:
    signs = {"data": "gtsrb"}
    some = [
        one | {"cell": one["cell"] | more}
        for more in ({}, signs)
        for one in (cell(500, 0.1), cell(500, 0.2, attack="wanet"))
    ]
    page = writing.as_html(tables.of(some))
    assert "data cifar10" in page
    assert page.count("<svg") == 2
    drawn = []
    for source, classes, asr in (("a", 20, 0.1), ("b", 20, 0.2), ("c", 40, 0.3)):
        one = cell(2000, asr, decides={"images": {"classes": classes}, "cleanse": {}})
        drawn.append(one | {"cell": one["cell"] | {"images": source}})
    assert "<svg" not in writing.as_html(tables.of(drawn))
