"""Every page in a real browser: no complaint, no request, nothing wider than a telephone, dark and light."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import browser
import pytest
from cleanse_report import evidence, report
from pages import ROOT
from PIL import Image
from test_page import page as evaluation
from test_page import section
from test_scan_page import document as scan

from bcu_cli.report import cleanse_page, scan_page
from bcu_cli.report import page as evaluation_page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

needs_browser = pytest.mark.skipif(browser.PROGRAM is None, reason="there is no Chromium")
TELEPHONE, DESK = 400, 1200


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.running(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages that commands write, and the committed one."""
    folder = tmp_path_factory.mktemp("written")
    made = {name: folder / f"{name}.html" for name in ("scan", "cleanse", "evaluation")}
    scan_page.write(scan(classes=30), made["scan"])
    cleanse_page.write(report(), evidence(), made["cleanse"])
    names = tuple(f"a sign with a very long name, number {each}" for each in range(43))
    shown = section(names, {(each, each): 1 for each in range(43)})
    evaluation_page.write(evaluation(shown, shown), made["evaluation"])
    return made | {"table": ROOT / "examples/results/table.html"}


@needs_browser
@pytest.mark.parametrize("name", ["scan", "cleanse", "evaluation", "table"])
def test_a_page_asks_for_nothing_complains_of_nothing_and_fits(
    chromium: browser.Browser, written: dict[str, Path], name: str
) -> None:
    for width in (TELEPHONE, DESK):
        shown = chromium.show(written[name], width=width)
        assert shown.requests == []
        assert shown.complaints == []
        assert shown.width <= width
        assert shown.height > 300
    corners = []
    for dark in (False, True):
        shown = chromium.show(written[name], width=TELEPHONE, dark=dark)
        with Image.open(io.BytesIO(shown.image)) as drawn:
            assert len(drawn.convert("RGB").getcolors(1 << 20)) > 10
            corners.append(sum(drawn.convert("RGB").getpixel((1, 1))))
    light, night = corners
    assert light > 600 > 300 > night


@needs_browser
def test_the_browser_notices_what_the_tests_look_for(chromium: browser.Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        '<!DOCTYPE html><html><body><script>console.error("no"); throw new Error("x")</script>'
        '<img src="missing.png"/><div style="width: 900px">wide</div></body></html>'
    )
    shown = chromium.show(page, width=TELEPHONE)
    assert [url.rpartition("/")[2] for url in shown.requests] == ["missing.png"]
    assert len(shown.complaints) >= 2
    assert shown.width >= 900
