"""Tables as Markdown, CSV and a self-contained HTML page."""

from __future__ import annotations

import csv
import io
from collections import Counter
from typing import TYPE_CHECKING

from bcu_cli.benchmark import verdicts
from bcu_cli.benchmark.table import MEAN, MEASURES
from bcu_cli.checkpoints import atomic_write
from bcu_cli.report import page_parts, svg
from bcu_cli.report.text import escaped, printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bcu_cli.benchmark.table import Row, TableOf

_PERCENT = (
    "Percent; mean ± standard deviation over networks (n). "
    "difference: after cleansing, measured − the paper's."
)


_DIFFERENCES = "Differences of more than 2 points to the paper"
_VERDICTS = "Cleansings by the verdict of method auto, and by the ASR that was left"
_CHARTED = ("asr", "acc")


def write(tables: Sequence[TableOf], folder: Path) -> dict[str, Path]:
    """Write ``table.md``, ``table.csv`` and ``table.html``; returns their paths by kind.

    Raises:
        OutputError: A file cannot be written.
    """
    made = {"md": as_markdown(tables), "csv": as_csv(tables), "html": as_html(tables)}
    paths = {kind: folder / f"table.{kind}" for kind in made}
    for kind, path in paths.items():
        with atomic_write(path) as file:
            file.write(made[kind].encode())
    return paths


def as_markdown(tables: Sequence[TableOf]) -> str:
    """The tables as Markdown, one section for each plan."""
    parts = ["# Benchmark", _PERCENT]
    for table in tables:
        header, rows = table.as_text()
        parts += [
            f"## {_in_markdown(table.heading)}",
            "\n".join(f"- {name}: {_in_markdown(value)}" for name, value in table.facts),
            _table_in_markdown(header, rows),
            "\n".join(f"- failed: {_in_markdown(f'{name}: {why}')}" for name, why in table.errors),
            *_differences_in_markdown(table),
            *_verdicts_in_markdown(table),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_csv(tables: Sequence[TableOf]) -> str:
    """The tables as CSV, one line for each row; shares from 0 to 1 without rounding, empty where missing."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    sides = ("before", "after", "drop")
    header = ["plan", "size", "data", "arch", "attack", "defense", "images", "max-images"]
    header += ["networks", "failed"]
    for measure in MEASURES:
        header += [f"{measure}_{side}{what}" for side in sides for what in ("", "_deviation")]
        header += [f"{measure}_before_paper", f"{measure}_after_paper", f"{measure}_difference"]
    lines.writerow(header)
    for table in tables:
        for row in table.rows:
            line: list[object] = [table.plan["name"], table.plan["size"]]
            line += [row.place[key] for key in header[2:8]] + [row.count, row.failed]
            for measure in MEASURES:
                for side in (row.before, row.after, row.drop):
                    found = side.get(measure)
                    line += [found.mean, found.deviation] if found else [None, None]
                paper = [(side or {}).get(measure) for side in _of_paper(row)]
                line += [*paper, None if measure not in ("asr", "acc") else row.difference(measure)]
            lines.writerow(line)
    return text.getvalue()


def as_html(tables: Sequence[TableOf]) -> str:
    """The tables as a self-contained HTML page that is also well-formed XML."""
    parts = ["<h1>Benchmark</h1>", f"<p>{escaped(_PERCENT)}</p>"]
    if len(tables) > 1:
        links = "".join(f'<li><a href="#s{i}">{escaped(t.heading)}</a></li>' for i, t in enumerate(tables))
        parts.append(f"<nav><ul>{links}</ul></nav>")
    for i, table in enumerate(tables):
        header, rows = table.as_text()
        parts += [
            f'<section id="s{i}"><h2>{escaped(table.heading)}</h2>',
            page_parts.facts(table.facts),
            _table_in_html(header, rows),
            page_parts.verdict(f"failed: {name}: {why}" for name, why in table.errors),
            page_parts.listed(_DIFFERENCES, table.differences()),
            *_verdicts_in_html(table),
            *_by_attack(table),
            *_curves(table),
            "</section>",
        ]
    return page_parts.framed("Benchmark", parts)


def _table_in_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_in_markdown, line)) + " |" for line in lines)


def _table_in_html(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _verdicts_in_markdown(table: TableOf) -> list[str]:
    if not table.verdicts:
        return []
    said = " ".join(verdicts.shares(table.verdicts))
    return [f"{_VERDICTS}. {said}", _table_in_markdown(*verdicts.lines(table.verdicts))]


def _verdicts_in_html(table: TableOf) -> list[str]:
    if not table.verdicts:
        return []
    said = " ".join(verdicts.shares(table.verdicts))
    return [f"<p>{escaped(f'{_VERDICTS}. {said}')}</p>", _table_in_html(*verdicts.lines(table.verdicts))]


def _differences_in_markdown(table: TableOf) -> list[str]:
    lines = table.differences()
    return [f"{_DIFFERENCES}:", "\n".join(f"- {_in_markdown(line)}" for line in lines)] if lines else []


def _by_attack(table: TableOf) -> list[str]:
    """One picture of a table with several attacks: ASR and ACC after cleansing, beside the paper's."""
    rows = [row for row in table.rows if "asr" in row.after]
    varying = [key for key in ("data", "arch", "images", "max-images", "defense") if _several(rows, key)]
    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(", ".join(f"{key} {row.place[key]}" for key in varying), []).append(row)
    drawn = []
    for name, some in panels.items():
        if len({row.place["attack"] for row in some} - {MEAN}) < 2:
            continue  # a single point says no more than the table
        shown = [(str(row.place["attack"]), [_dot(row, measure) for measure in _CHARTED]) for row in some]
        drawing = svg.dots([measure.upper() for measure in _CHARTED], shown, f"After cleansing, {name}")
        drawn.append(f"<div><p>{escaped(name)}</p>{drawing}</div>" if name else drawing)
    if not drawn:
        return []
    paper = " Hollow: the paper." if any(row.paper for row in rows) else ""
    caption = f"After cleansing, percent, by attack. Filled: measured, with its standard deviation.{paper}"
    panelled = f'<div class="groups">{"".join(drawn)}</div>'
    return [page_parts.figure(caption, panelled)]


def _dot(row: Row, measure: str) -> svg.Dot:
    found = row.after[measure]
    paper = row.paper.after[measure] if row.paper else None
    return svg.Dot(share=found.mean, deviation=found.deviation, paper=paper)


def _several(rows: Sequence[Row], key: str) -> bool:
    return len({row.place[key] for row in rows}) > 1


def _curves(table: TableOf) -> list[str]:
    """Line charts over the number of images or classes, where a plan has several (figures 4 and 5)."""
    rows = [row for row in table.rows if "asr" in row.after]
    over, name = _numbers(rows)
    if over is None:
        return []
    charts: dict[str, list[Row]] = {}
    for row in rows:
        kept = {key: str(value) for key, value in row.place.items() if key not in {"attack", *over}}
        charts.setdefault(", ".join(kept.values()), []).append(row)
    drawings = []
    for what, some in charts.items():
        for measure in _CHARTED:
            xs, lines = _lines(some, measure, over)
            if lines:
                title = f"{measure.upper()} after cleansing over the {name}: {what}"
                drawings.append(page_parts.figure(title, svg.curves(xs, lines, title)))
    return drawings


def _lines(
    rows: Sequence[Row], measure: str, over: tuple[str, ...]
) -> tuple[list[int], list[tuple[str, list[float | None]]]]:
    """The numbers of an x axis, and a line for each attack that has been measured at two of them or more.

    Several rows of an attack at the same number, of different sources of images, are no line.
    """
    found = {
        str(attack): {_number(r, over): r.after[measure].mean for r in rows if r.place["attack"] == attack}
        for attack in dict.fromkeys(row.place["attack"] for row in rows)
    }
    count = Counter(str(row.place["attack"]) for row in rows)
    long = {attack: shares for attack, shares in found.items() if len(shares) == count[attack] > 1}
    xs = sorted({x for shares in long.values() for x in shares})
    return xs, [(attack, [shares.get(x) for x in xs]) for attack, shares in long.items()]


def _numbers(rows: Sequence[Row]) -> tuple[tuple[str, ...] | None, str]:
    """The coordinates that vary along the x axis, and its label."""
    if rows and all(row.classes for row in rows) and len({row.classes for row in rows}) > 1:
        return ("images",), "number of classes"
    if len({row.place["max-images"] for row in rows}) > 1:
        return ("max-images",), "number of images"
    return None, ""


def _number(row: Row, over: tuple[str, ...]) -> int:
    return row.classes or 0 if over == ("images",) else int(row.place["max-images"])


def _of_paper(row: Row) -> tuple[dict[str, float] | None, dict[str, float] | None]:
    return (row.paper.before, row.paper.after) if row.paper else (None, None)


def _in_markdown(text: str) -> str:
    return printable(text).replace("|", "\\|").replace("<", "&lt;")
