"""The page of a scan: what it says, that it needs nothing else, and that it fits a telephone."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
import torch

from bcu_cli.errors import OutputError, UsageError
from bcu_cli.report import page_parts, scan_page
from bcu_cli.report.trigger_sheet import data_uri

if TYPE_CHECKING:
    from pathlib import Path

EVIL = '<script>alert("1")</script>&\x1b'


def share(hits: int, of: int) -> dict[str, Any]:
    return {"value": hits / of, "hits": hits, "of": of, "interval95": [0.0, 0.5]}


def document(verdict: str = "suspicious", classes: int = 9) -> dict[str, Any]:
    grey = data_uri(torch.full((3, 8, 8), 0.5))
    images = [{"before": grey, "after": grey, "answers": [5, 3]}] * 3
    scan = {
        "verdict": verdict,
        "class": 3,
        "classes": [],
        "suspicions": [2.5 if index == 3 else index / classes / 2 for index in range(classes)],
        "searched": list(range(classes)),
        "calibration": {"clean_below": 0.9, "false_alarms": share(0, 8), "misses": share(2, 15)},
        "detectors": [{"detector": "inversion"}, {"detector": "mmbd"}],
        "images": {"path": "photos", "used": 320},
        "examples": [{"detector": "inversion", "class": 3, "success": share(9, 10), "images": images}],
        "model": {
            "sha256": "0" * 64,
            "architecture": {"name": "resnet8"},
            "preprocessing": {"input_size": [3, 32, 32]},
        },
        "seed": 0,
        "versions": {"bcu": "1"},
    }
    return {"files": [{"path": "m.pt", "safe": True, "problem": None, "scan": scan}], "problems": []}


def parsed(content: dict[str, Any]) -> ET.Element:
    return ET.fromstring(scan_page.as_html(content).removeprefix("<!DOCTYPE html>\n"))


def words(content: dict[str, Any]) -> str:
    return " ".join("".join(parsed(content).find("body").itertext()).split())


def test_it_says_the_verdict_and_how_often_it_is_wrong() -> None:
    said = words(document())
    assert "This network looks backdoored." in said
    assert "class 3" in said
    assert "Clean networks called suspicious: 0.00 % (0 of 8), 95 % interval 0.00 to 50.00 %." in said
    assert "Backdoored networks called clean-looking: 13.33 % (2 of 15)" in said
    assert "That is no proof" in words(document("clean-looking"))
    assert "looks backdoored" not in words(document("clean-looking"))
    assert "What was not looked at" in said
    assert "Sinusoidal" in said


def test_it_says_whose_the_error_rates_are_where_images_are_larger() -> None:
    content = document()
    assert "These rates were measured before the detector of sinusoids was added." in words(content)
    content["files"][0]["scan"]["model"]["preprocessing"]["input_size"] = [3, 33, 32]
    said = words(content)
    assert "These rates are of small networks for 32x32 images; not known for one like this." in said


def test_the_chart_has_the_most_suspicious_classes_first_and_says_how_many_are_left_out() -> None:
    content = document(classes=30)
    (chart,) = parsed(content).iter("svg")
    bars = list(chart.iter("rect"))
    assert [rect.get("class") for rect in bars] == ["marked", *["bar"] * 19]
    lengths = [float(rect.get("width")) for rect in bars]
    assert lengths == sorted(lengths, reverse=True)
    assert "10 other classes have less" in words(content)
    assert float(chart.get("width")) <= 360  # 400 pixels without the margins
    assert len(list(chart.iter("line"))) == 2  # the thresholds


def test_classes_that_were_not_searched_have_no_bar_and_are_named() -> None:
    content = document("clean-looking", classes=1000)
    scan = content["files"][0]["scan"]
    assert "searched" not in words(content)
    scan["searched"] = [1, 3, 700]
    scan["suspicions"] = [0.1 if index in scan["searched"] else None for index in range(1000)]
    (chart,) = parsed(content).iter("svg")
    assert len(list(chart.iter("rect"))) == 3
    assert "Searched 3 of 1,000 classes: see below." in words(content)
    assert "it only searched 3 of 1,000 classes" in words(content)
    assert "These rates are of small networks for 32x32 images" in words(content)


def test_each_trigger_is_shown_on_three_images_before_and_after() -> None:
    images = list(parsed(document()).iter("img"))
    assert [image.get("alt") for image in images] == ["before: class 5", "after: class 3"] * 3
    assert "before: class 5" in words(document())
    assert "after: class 3" in words(document())


def test_what_was_not_scanned_is_named() -> None:
    content = document()
    unsafe = {"path": "bad.pt", "safe": False, "problem": None}
    unread = {"path": "x.h5", "safe": None, "problem": {"message": "x.h5 is of Keras", "hint": "-"}}
    content["files"] += [unsafe, unread]
    content["problems"] = [{"message": "none in folder"}]
    said = words(content)
    for part in ("Not scanned", "bad.pt: it is unsafe to open", "x.h5 is of Keras", "none in folder"):
        assert part in said
    content["files"][0]["scan"]["images"] = None
    assert "without --images, only these detectors ran: inversion, mmbd" in words(content)


def test_text_from_files_is_escaped_and_nothing_is_requested() -> None:
    content = copy.deepcopy(document())
    content["files"][0]["path"] = EVIL
    content["files"][0]["scan"]["model"]["architecture"]["name"] = EVIL
    content["files"][0]["problem"] = {"message": EVIL, "hint": EVIL}
    text = scan_page.as_html(content)
    assert "<script" not in text
    assert "\x1b" not in text
    assert not re.search(r"https?:|<link|@import|url\(", text)
    assert set(re.findall(r'src="([^,"]*)', text)) == {"data:image/png;base64"}


def test_other_endings_and_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no \.html file"):
        page_parts.check(tmp_path / "x.png", inputs=[])
    (tmp_path / "x.html").touch()
    with pytest.raises(OutputError, match="is the input"):
        page_parts.check(tmp_path / "x.html", inputs=[tmp_path])
