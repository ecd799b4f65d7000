from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from bcu_cli.errors import OutputError, UsageError
from bcu_cli.report import optional
from bcu_cli.report import page as pages
from bcu_cli.report.page import Bar, Page, Section, as_html
from bcu_cli.report.svg import BAR_WIDTH, NAME_WIDTH
from bcu_cli.report.text import numbered, printable

if TYPE_CHECKING:
    from pathlib import Path

SVG = "svg"
EVIL = '<script>alert("1")</script>&\'\x1b[31m\udcff'


def share(hits: int, of: int) -> dict:
    return {
        "value": hits / of,
        "hits": hits,
        "of": of,
        "interval95": [hits / of * 0.9, min(1, hits / of * 1.1)],
    }


def section(classes: tuple[str, ...], counts: dict[tuple[int, int], int], **changed: object) -> Section:
    of_class = [sum(n for (true, _), n in counts.items() if true == i) for i in range(len(classes))]
    bars = [
        Bar(name=name, share=share(counts.get((i, i), 0), of) if of else None)
        for i, (name, of) in enumerate(zip(classes, of_class, strict=True))
    ]
    fields = {
        "title": "model.safetensors, clean images",
        "facts": (("file", "model.safetensors"),),
        "measures": (("ACC", share(3, 4)),),
        "classes": classes,
        "counts": counts,
        "bars_title": "ACC by class",
        "bars": tuple(bars),
    }
    return Section(**{**fields, **changed})


def page(*sections: Section, verdict: tuple[str, ...] = ()) -> Page:
    return Page(title="bcu evaluate", facts=(("pictures", "signs"),), verdict=verdict, sections=sections)


def parsed(shown: Page) -> ET.Element:
    return ET.fromstring(as_html(shown).removeprefix("<!DOCTYPE html>\n"))


def test_the_matrix_shows_each_pair_at_its_place() -> None:
    matrix, _ = parsed(page(section(("a", "b"), {(0, 0): 3, (0, 1): 1, (1, 1): 2}))).iter(SVG)
    cells = {
        rect.find("title").text: (
            rect.get("class"),
            float(rect.get("x")) - NAME_WIDTH,
            rect.get("fill-opacity"),
        )
        for rect in matrix.iter("rect")
        if rect.find("title") is not None
    }
    assert cells == {
        "a predicted as a: 3 of 4": ("right", 0, "0.88"),  # 0.1 + 0.9 · √0.75
        "a predicted as b: 1 of 4": ("wrong", 36, "0.55"),
        "b predicted as b: 2 of 2": ("right", 36, "1.00"),
    }
    texts = ["".join(text.itertext()) for text in matrix.iter("text")]
    assert sum(text.endswith("25") for text in texts) == 1


def test_bars_are_as_long_as_their_share_and_a_class_without_images_has_none() -> None:
    counts = {(0, 0): 1, (0, 2): 3, (2, 2): 2}
    _, drawn = parsed(page(section(("a", "b", "c"), counts))).iter(SVG)
    assert [float(rect.get("width")) for rect in drawn.iter("rect")] == [BAR_WIDTH / 4, BAR_WIDTH]
    text = " ".join(drawn.itertext())
    assert "25.00 % (1 of 4)" in text
    assert "no images" in text


def test_a_target_stands_out() -> None:
    bars = (Bar(name="a", share=share(1, 2)), Bar(name="b", share=share(2, 2), marked=True))
    _, drawn = parsed(page(section(("a", "b"), {(0, 0): 1}, bars=bars))).iter(SVG)
    assert [rect.get("class") for rect in drawn.iter("rect")] == ["bar", "marked"]


def test_the_measures_are_in_a_table() -> None:
    cells = [cell.text for cell in parsed(page(section(("a",), {(0, 0): 4}))).iter("td")]
    assert cells == ["75.00 %", "3 of 4", "67.50 to 82.50 %"]


def test_text_from_files_is_escaped() -> None:
    shown = page(
        section((EVIL, "b"), {(0, 1): 1}, title=EVIL, facts=((EVIL, EVIL),), bars_title=EVIL), verdict=(EVIL,)
    )
    text = as_html(shown)
    assert "<script" not in text
    assert "\x1b" not in text
    text.encode("utf-8")
    root = parsed(shown)
    assert root.find("body/main/section/h2").text == printable(EVIL)
    assert printable(EVIL) == '<script>alert("1")</script>&\'\\x1b[31m\\udcff'


def test_the_page_needs_nothing_else() -> None:
    text = as_html(page(section(("a", "b"), {(0, 0): 1, (1, 0): 1})))
    assert not re.search(r"https?:|src=|<link|<script|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text


def test_each_section_is_linked() -> None:
    one = section(("a",), {(0, 0): 1})
    root = parsed(page(one, one, one))
    links = [link.get("href") for link in root.iter("a")]
    assert links == [f"#{part.get('id')}" for part in root.iter("section")] == ["#s0", "#s1", "#s2"]


def test_forty_three_classes_are_all_named_and_keep_apart() -> None:
    names = tuple(f"a sign with a very long name, number {i}" for i in range(43))
    matrix, drawn = parsed(page(section(names, {(i, i): 1 for i in range(43)}))).iter(SVG)
    for image in (matrix, drawn):
        labels = [text for text in image.iter("text") if text.get("text-anchor") == "end"]
        assert [label.find("title").text for label in labels] == list(names)
        heights = sorted(float(label.get("y")) for label in labels)
        assert min(b - a for a, b in itertools.pairwise(heights)) >= 18
        assert heights[-1] < float(image.get("height"))


@pytest.mark.parametrize(
    ("name", "number", "shown"),
    [("07", 7, "07"), ("08", 7, "08 · 7"), ("stop", 7, "stop · 7"), ("x" * 30, 1, "x" * 21 + "… · 1")],
)
def test_names_beside_a_drawing(name: str, number: int, shown: str) -> None:
    assert numbered(name, number) == shown


@pytest.mark.parametrize("suffix", [".html", ".png"])
def test_written_whole_or_not_at_all(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"page{suffix}"
    assert len(pages.write(page(section(("a", "b"), {(0, 0): 1, (1, 0): 2})), path)) == 64
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(OutputError):
        pages.write(page(section(("a",), {(0, 0): 1})), tmp_path / "no" / path.name)


def test_a_picture_of_two_sections_with_names_that_are_no_formulas(tmp_path: Path) -> None:
    names = ("$x^{", "漢", EVIL, *map(str, range(40)))
    one = section(names, {(i, i): 2 for i in range(40)} | {(0, 5): 1}, title="$x^{")
    pages.write(page(one), tmp_path / "one.png")
    pages.write(page(one, one), tmp_path / "two.png")
    with Image.open(tmp_path / "one.png") as single, Image.open(tmp_path / "two.png") as double:
        assert single.format == "PNG"
        assert double.size == pytest.approx((single.width, 2 * single.height), rel=0.05)
        assert len(double.convert("RGB").getcolors(1 << 20)) > 10


def test_the_same_page_is_the_same_bytes(tmp_path: Path) -> None:
    shown = page(section(("a", "b"), {(0, 0): 1}))
    for suffix in (".html", ".png"):
        hashes = {pages.write(shown, tmp_path / f"{i}{suffix}") for i in "ab"}
        assert len(hashes) == 1


def test_other_endings_and_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither \.html nor \.png"):
        pages.check(tmp_path / "x.gif", inputs=[])
    (tmp_path / "x.html").touch()
    with pytest.raises(OutputError, match="is the input"):
        pages.check(tmp_path / "x.html", inputs=[tmp_path / "x.html"])


def test_without_matplotlib_there_is_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    pages.check(tmp_path / "x.html", inputs=[])
    with pytest.raises(UsageError, match="needs matplotlib") as caught:
        pages.check(tmp_path / "x.png", inputs=[])
    assert caught.value.hint == "pip install matplotlib"
