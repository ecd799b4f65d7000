"""``bcu cleanse --page``: the page of a real run has what the report has, whatever the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from helpers import lessen_effort

from bcu_cli.defenses import auto
from bcu_cli.defenses.base import Verdict
from bcu_cli.errors import OutputError
from bcu_cli.images.sources import signs
from bcu_cli.workflows import cleanse_evidence

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Ran

    Cleanse = Callable[..., Ran]

MODEL = Path(__file__).parents[1] / "data" / "backdoored.safetensors"


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight unlabeled images of each of the eight classes."""
    root = tmp_path_factory.mktemp("few")
    signs.write_folder(root, 8, seed=3, labelled=False)
    return root


@pytest.fixture
def cleanse(bcu, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cleanse:
    """Cleanses into out.safetensors in a few steps, with a page."""
    lessen_effort(monkeypatch, canary_steps=2, search_steps=2, verification_steps=2)
    judged = Verdict(word="not cleansed", why="it was told so")
    monkeypatch.setattr(auto.Auto, "verdict", lambda self: judged)

    def call(*words: object) -> Ran:
        own = ["--images", few, "--epochs", 1, "--batch-size", 32, "--out", tmp_path / "out.safetensors"]
        return bcu("cleanse", MODEL, *own, "--page", tmp_path / "page.html", *words)

    return call


def parsed(page: Path) -> ET.Element:
    return ET.fromstring(page.read_text().removeprefix("<!DOCTYPE html>\n"))


def test_the_page_of_a_bad_verdict_shows_triggers_and_changed_answers(
    cleanse: Cleanse, tmp_path: Path
) -> None:
    ran = cleanse("--quick", "--json")
    report: dict[str, Any] = ran.json
    assert (ran.code, report["output"]) == (1, None)
    page = tmp_path / "page.html"
    assert report["page"]["path"] == str(page)
    assert report["page"]["bytes"] == page.stat().st_size
    root = parsed(page)
    text = " ".join("".join(root.find("body").itertext()).split())
    assert "do not use it" in text
    assert "No file was written." in text
    assert report["model"]["sha256"] in text
    after = report["agreement"]["after"]
    changed = min(after["of"] - after["hits"], cleanse_evidence.MOST_CHANGED)
    found = report["details"]["found_triggers"]
    outstanding = [each for each in found if each["stands_out"]]
    searched = min(len(outstanding), auto.MOST_DRAWN) or len({each["trigger"] for each in found})
    sinusoids = min(len(report["details"]["sinusoids"]["working"]), auto.MOST_DRAWN)
    drawn = searched + sinusoids + len(report["details"]["residual_searches"])
    assert drawn >= 1
    images = [image.get("src") for image in root.iter("img")]
    assert len(images) == drawn * 2 * cleanse_evidence.EXAMPLES + changed
    assert "ahead-only · 0" in text  # the classes have their names


def test_another_method_has_a_page_too_and_people_see_where(cleanse: Cleanse, tmp_path: Path) -> None:
    ran = cleanse("--method", "bcu")
    assert ran.code == 0, ran.err
    assert str(tmp_path / "page.html") in "".join(ran.out.split())
    text = "".join(parsed(tmp_path / "page.html").find("body").itertext())
    assert "does not judge its result" in text
    assert "Same answer as the original" in text
    assert "temperature" in text


def test_a_page_that_fails_hides_no_result_and_can_be_written_by_resume(
    cleanse: Cleanse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise OutputError("the disk is full", "make room")

    with monkeypatch.context() as failing:
        failing.setattr("bcu_cli.report.cleanse_page.write", fail)
        ran = cleanse("--method", "bcu", "--json")
    assert (ran.code, ran.json["page"]) == (0, None)
    assert "warning: the page failed, after the result was written: the disk is full" in ran.err
    assert ran.json["output"] is not None
    again = cleanse("--method", "bcu", "--resume", "--json").json
    assert again["page"]["path"] == str(tmp_path / "page.html")
    assert again["output"]["sha256"] == ran.json["output"]["sha256"]
    assert not list(tmp_path.glob("*.resume"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--page", "x.png"], "no .html file"),
        (["--page", "no/such/x.html"], "there is no folder"),
        (["--out", "same.html", "--page", "same.html"], "--page and --out are both"),
    ],
)
def test_a_page_that_cannot_be_is_refused_before_any_work(
    bcu, few: Path, words: list[str], message: str
) -> None:
    own = [] if "--out" in words else ["--out", "out.safetensors"]
    ran = bcu("cleanse", MODEL, "--images", few, *own, *words)
    assert ran.code == 2
    assert message in ran.error
    assert not ran.out
