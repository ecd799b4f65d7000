"""The page of a cleansing: what it says of each verdict, and that its figures are those of the report."""

from __future__ import annotations

import copy
import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from cleanse_report import CLASSES, evidence, report, success

from bcu_cli.report import cleanse_page

EVIL = '<script>alert("1")</script>&\x1b'


def parsed(content: dict[str, Any], images: dict[str, Any] | None = None) -> ET.Element:
    text = cleanse_page.as_html(content, evidence() if images is None else images)
    return ET.fromstring(text.removeprefix("<!DOCTYPE html>\n"))


def words(content: dict[str, Any], images: dict[str, Any] | None = None) -> str:
    return " ".join("".join(parsed(content, images).find("body").itertext()).split())


@pytest.mark.parametrize(
    ("word", "said", "unsaid"),
    [
        ("cleansed", "No trigger that was found and counts works", "do not use it"),
        ("not cleansed", "do not use it", "No trigger that was found"),
        ("could not tell", "could not be decided", "No trigger that was found"),
        (None, "does not judge its result", "Reason:"),
    ],
)
def test_it_says_the_verdict_and_what_it_does_not_mean(word: str | None, said: str, unsaid: str) -> None:
    text = words(report(word))
    assert said in text
    assert unsaid not in text
    assert "What this does not mean" in text
    assert "accuracy on labelled images was not measured" in text
    assert ("distillation-conditional" in text) == (word == "cleansed")
    assert ("Reason: it was told so." in text) == (word is not None)


def test_it_says_what_was_written() -> None:
    assert "Written: clean.pt." in words(report())
    nothing = words(report("not cleansed", output=None))
    assert "No file was written." in nothing
    assert "written: " not in nothing.partition("No file was written")[2]


def test_each_trigger_has_a_bar_before_and_after_and_outliers_come_first() -> None:
    first, *_ = parsed(report()).iter("svg")
    names = [text.text for text in first.iter("text")][::3]
    assert names[0].startswith("warp to a sign with a very lo")
    assert names[0].endswith("(stands out)")
    assert len(names) == 4
    lengths = [float(rect.get("width")) for rect in first.iter("rect") if rect.get("class") != "grid"]
    assert lengths[:2] == [pytest.approx(180 * 0.99, abs=0.1), pytest.approx(180 * 0.02, abs=0.1)]
    assert "99.00 % (99 of 100)" in "".join(first.itertext())
    assert all(float(drawn.get("width")) <= 360 for drawn in parsed(report()).iter("svg"))


def test_what_is_not_drawn_is_counted() -> None:
    content = report()
    many = [success("patch", 0, 50, each, stands_out=False) for each in range(30)]
    content["details"]["found_triggers"] = many
    text = words(content)
    assert f"Not drawn: {30 - cleanse_page.MOST_ROWS} more, at most 17.00 % (17 of 100)" in text


def test_canaries_sinusoids_and_searches_on_the_result_have_charts() -> None:
    content = report()
    assert len(list(parsed(content).iter("svg"))) == 4
    for part in ("1 of the 48 that were tried", "cleansed at level 0. They", "searched on the result itself"):
        assert part in words(content)
    assert "from the start. Shown is the mildest mix that removed them" in words(content)
    content["details"]["sinusoids"]["working"] = []
    assert len(list(parsed(content).iter("svg"))) == 3
    assert "0 of the 48 that were tried" in words(content)


def test_triggers_and_changed_answers_are_shown_with_all_answers() -> None:
    images = list(parsed(report()).iter("img"))
    assert len(images) == 6 + 3
    text = words(report())
    assert "original: ahead-only · 0" in text
    assert f"original: {CLASSES[3][:21]}… · 3; result: ahead-only · 0" in text
    assert "original: danger · 1; result: no-entry · 2" in text
    assert "All held-out images with another answer" in text
    assert "The 2 of 3 held-out images" in words(
        report(), {"triggers": [], "changed": evidence()["changed"][:2]}
    )


def test_a_class_without_a_name_is_its_number() -> None:
    assert "original: class 1; result: class 2" in words(report(classes=[]))


def test_files_and_options_are_listed() -> None:
    root = parsed(report())
    pairs = {
        "".join(name.itertext()): "".join(value.itertext())
        for name, value in zip(root.iter("dt"), root.iter("dd"), strict=True)
    }
    assert pairs["read: m.pt"] == "a" * 64
    assert pairs["read: photos"] == f"1,000 files, names and sizes: {'b' * 64}"
    assert pairs["written: clean.pt"] == "c" * 64
    assert pairs["written: x.json"] == "d" * 64
    assert (pairs["flip"], pairs["learning rate"], pairs["crop padding"]) == ("no", "0.05", "none")
    assert pairs["input size"] == "3, 32, 32"


def test_without_held_out_images_it_says_so() -> None:
    text = words(report(None, agreement=None, images=None), {"triggers": [], "changed": []})
    assert "No images were held out" in text


def test_text_from_files_is_escaped_and_nothing_is_requested() -> None:
    content = copy.deepcopy(report())
    content["classes"] = [EVIL] * 4
    content["model"]["path"] = content["model"]["architecture"]["name"] = EVIL
    content["verdict"]["why"] = content["files_read"][0]["path"] = EVIL
    text = cleanse_page.as_html(content, evidence())
    assert "<script" not in text
    assert "\x1b" not in text
    assert not re.search(r"https?:|<link|@import|url\(", text)
    assert set(re.findall(r'src="([^,"]*)', text)) == {"data:image/png;base64"}
