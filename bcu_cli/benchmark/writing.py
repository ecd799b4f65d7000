"""Tables as Markdown, CSV and a self-contained HTML page."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from bcu_cli.benchmark.table import MEASURES
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
        lines = [header, ["---"] * len(header), *rows]
        parts += [
            f"## {_in_markdown(table.heading)}",
            "\n".join(f"- {name}: {_in_markdown(value)}" for name, value in table.facts),
            "\n".join("| " + " | ".join(map(_in_markdown, line)) + " |" for line in lines),
            "\n".join(f"- failed: {_in_markdown(f'{name}: {why}')}" for name, why in table.errors),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_csv(tables: Sequence[TableOf]) -> str:
    """The tables as CSV, one line for each row; shares from 0 to 1 without rounding, empty where missing."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    sides = ("before", "after", "drop")
    header = [
        "plan",
        "size",
        "data",
        "arch",
        "attack",
        "defense",
        "images",
        "max-images",
        "networks",
        "failed",
    ]
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
        head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        parts += [
            f'<section id="s{i}"><h2>{escaped(table.heading)}</h2>',
            page_parts.facts(table.facts),
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>',
            page_parts.verdict(f"failed: {name}: {why}" for name, why in table.errors),
            *_drawings(table),
            "</section>",
        ]
    return page_parts.framed("Benchmark", parts)


def _drawings(table: TableOf) -> list[str]:
    """Line charts over the number of images or classes, where a plan has several (figures 4 and 5)."""
    rows = [row for row in table.rows if row.after]
    over, name = _numbers(rows)
    if over is None:
        return []
    charts: dict[str, list[Row]] = {}
    for row in rows:
        kept = {key: str(value) for key, value in row.place.items() if key not in {"attack", *over}}
        charts.setdefault(", ".join(kept.values()), []).append(row)
    drawings = []
    for what, some in charts.items():
        xs = sorted({_number(row, over) for row in some})
        for measure in ("asr", "acc"):
            lines = []
            for attack in dict.fromkeys(row.place["attack"] for row in some):
                shares = {
                    _number(r, over): r.after[measure].mean for r in some if r.place["attack"] == attack
                }
                lines.append((str(attack), [shares.get(x) for x in xs]))
            title = f"{measure.upper()} after cleansing over the {name}: {what}"
            drawn = svg.curves(xs, lines, title)
            drawings.append(page_parts.figure(title, drawn))
    return drawings


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
