"""Tables of the cells of a plan: mean and deviation over targets and seeds, with the paper's results."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from bcu_cli.benchmark import published, verdicts
from bcu_cli.benchmark.cell import PAPERS_METHOD
from bcu_cli.defenses.base import find

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bcu_cli.benchmark.published import Published

MEASURES = ("asr", "acc", "ra")
_SHOWN = ("asr", "acc")
"""Measures that the paper reports; RA is in the CSV file only."""
_PLACE = ("data", "arch", "images", "max-images", "attack", "defense")
_ALWAYS = {"attack", "defense"}
FEWEST_NETWORKS = 3
"""Fewest networks whose standard deviation explains a difference."""
LARGE = 0.02
"""Differences to the paper above this share are explained, or said to be unexplained."""
MEAN = "mean"
"""Name of the row with the mean over all attacks, in place of an attack."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and deviation of shares of several networks.

    Args:
        mean: Mean of the shares.
        deviation: Sample standard deviation (n − 1); None for a single network.
        count: Number of networks.
    """

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row for cells that differ only in target and seed.

    Args:
        place: The other coordinates of the cells.
        classes: Number of classes that their images were drawn of; None for all.
        failed: Number of failed cells.
        before: Measures of the networks by name; empty where all cells have failed. Those without a backdoor
            have ACC alone.
        after: Measures of the cleansed networks by name.
        drop: ``before`` − ``after`` by name, averaged over networks.
        paper: Results of the paper; None where there are none.
        unlike: How the cells differ from the paper's setup, in words.
        variant: How the defense departs from the paper of its own; empty if it does not.
    """

    place: dict[str, Any]
    classes: int | None
    failed: int
    before: dict[str, Spread]
    after: dict[str, Spread]
    drop: dict[str, Spread]
    paper: Published | None
    unlike: tuple[str, ...] = ()
    variant: str = ""

    @property
    def count(self) -> int:
        """Number of measured networks."""
        return self.after["acc"].count if self.after else 0

    def difference(self, measure: str) -> float | None:
        """The measure after cleansing minus the paper's."""
        if self.paper is None or measure not in self.after:
            return None
        return self.after[measure].mean - self.paper.after[measure]

    def explanation(self, measure: str) -> str | None:
        """What the cells say of a difference above ``LARGE``; None where there is no such difference.

        ACC may differ before the cleansing already, and few networks spread. Nothing else explains: the
        setup that differs is named, but that it is the reason was not measured.
        """
        difference = self.difference(measure)
        if self.paper is None or difference is None or abs(difference) <= LARGE:
            return None
        before = self.before[measure].mean - self.paper.before[measure]
        if measure == "acc" and abs(difference - before) <= LARGE:
            return f"the networks differ as much before the cleansing ({points(before, sign=True)})"
        spread = self.after[measure]
        if spread.deviation and spread.count >= FEWEST_NETWORKS and abs(difference) <= 2 * spread.deviation:
            return f"within two standard deviations of {spread.count} networks"
        unlike = f"; unlike the paper: {', '.join(self.unlike)}" if self.unlike else ""
        return f"unexplained{unlike}"


@dataclass(frozen=True, kw_only=True)
class TableOf:
    """The table of one plan in one size.

    Args:
        plan: Name, size, title, note and paper of the plan.
        rows: Rows in the order of the plan, and the mean over several attacks after them.
        errors: Failed cells and their errors.
        facts: Names and values that all cells share.
        verdicts: Networks by verdict and true ASR; empty without verdicts.
    """

    plan: dict[str, str]
    rows: tuple[Row, ...]
    errors: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    verdicts: dict[str, dict[str, int]]

    @property
    def heading(self) -> str:
        """Title and size of the plan."""
        return f"{self.plan['title']} ({self.plan['size']})" if self.plan["size"] else self.plan["title"]

    def as_text(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for people; values that all rows share are among the facts."""
        keys = [key for key in _PLACE if key in _ALWAYS or _differs(self.rows, key)]
        compared = any(row.paper for row in self.rows)
        header = [*keys, "n"]
        for measure in _SHOWN:
            header += [
                f"{measure.upper()} before",
                "after",
                "drop",
                *(["paper", "difference"] if compared else []),
            ]
        return header, [_line(row, keys, compared=compared) for row in self.rows]

    def differences(self) -> list[str]:
        """A line for each difference to the paper above ``LARGE``, with its explanation."""
        keys = [key for key in _PLACE if key in _ALWAYS or _differs(self.rows, key)]
        lines = []
        for row in self.rows:
            where = ", ".join(str(row.place[key]) for key in keys)
            for measure in _SHOWN:
                if why := row.explanation(measure):
                    size = points(row.difference(measure), sign=True)
                    lines.append(f"{where}: {measure.upper()} {size}: {why}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """The table as plain values."""
        rows = [
            asdict(row)
            | {"difference": {measure: row.difference(measure) for measure in _SHOWN}}
            | {"explanation": {measure: row.explanation(measure) for measure in _SHOWN}}
            for row in self.rows
        ]
        errors = [{"cell": name, "error": error} for name, error in self.errors]
        facts = dict(self.facts)
        return {
            "plan": self.plan,
            "rows": rows,
            "errors": errors,
            "facts": facts,
            "verdicts": self.verdicts,
        }


def of(cells: Iterable[dict[str, Any]]) -> list[TableOf]:
    """A table for each plan and size.

    Args:
        cells: Contents of the cells' files.
    """
    by_plan: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        by_plan[cell["plan"]["name"], cell["plan"]["size"]].append(cell)
    return [_table(sorted(some, key=lambda cell: cell["position"])) for _, some in sorted(by_plan.items())]


def points(share: float | None, *, sign: bool = False) -> str:
    """A share in percent, without the percent sign."""
    return "–" if share is None else f"{100 * share:{'+' if sign else ''}.2f}".replace("-", "−")


def spread(value: Spread | None) -> str:
    """Mean and deviation in percent."""
    if value is None:
        return "–"
    return points(value.mean) + (f" ± {points(value.deviation)}" if value.deviation is not None else "")


def _line(row: Row, keys: Sequence[str], *, compared: bool) -> list[str]:
    count = f"{row.count}, {row.failed} failed" if row.failed else str(row.count)
    line = [*(_said(row, key) for key in keys), count]
    for measure in _SHOWN:
        line += [spread(side.get(measure)) for side in (row.before, row.after, row.drop)]
        if compared:
            paper = points(row.paper.after[measure]) if row.paper else "–"
            line += [paper, points(row.difference(measure), sign=True)]
    return line


def _said(row: Row, key: str) -> str:
    """A coordinate in a table for people."""
    return f"{row.place[key]}{' (variant)' if key == 'defense' and row.variant else ''}"


def _table(cells: list[dict[str, Any]]) -> TableOf:
    plan = cells[0]["plan"]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        groups[tuple(cell["cell"][key] for key in _PLACE)].append(cell)
    rows = [_row(dict(zip(_PLACE, key, strict=True)), some, plan["paper"]) for key, some in groups.items()]
    made = [cell["made"] for cell in cells if cell["made"]]
    one = {key: str(rows[0].place[key]) for key in _PLACE if not (key in _ALWAYS or _differs(rows, key))}
    facts = {
        "note": {plan["note"]} - {""},
        "paper": {published.title(plan["paper"])} - {""},
        **{key: {value} for key, value in one.items()},
        "variants": {f"{row.place['defense']}: {row.variant}" for row in rows if row.variant},
        "made with": {f"bcu {m['versions'].get('bcu')}, torch {m['versions'].get('torch')}" for m in made},
        "on": {f"{m['device'].get('name')}, {m['device'].get('precision')}" for m in made},
    }
    return TableOf(
        plan=plan,
        rows=(*rows, *_means(rows)),
        errors=tuple(
            (_name(cell), f"{cell['error']['step']}: {cell['error']['message']}")
            for cell in cells
            if cell["error"]
        ),
        facts=tuple((name, "; ".join(sorted(values))) for name, values in facts.items() if values),
        verdicts=verdicts.counts(cells),
    )


def _name(cell: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in cell["cell"].items())


def _differs(rows: Sequence[Row], key: str) -> bool:
    return len({row.place[key] for row in rows}) > 1


def _row(place: dict[str, Any], cells: list[dict[str, Any]], paper: str) -> Row:
    good = [cell for cell in cells if not cell["error"]]
    sides: dict[str, dict[str, Spread]] = {"before": {}, "after": {}, "drop": {}}
    for measure in MEASURES if good else ():
        if any(cell[side][measure] is None for cell in good for side in ("before", "after")):
            continue
        before, after = ([cell[side][measure]["value"] for cell in good] for side in ("before", "after"))
        drop = [one - other for one, other in zip(before, after, strict=True)]
        for side, values in zip(sides, (before, after, drop), strict=True):
            sides[side][measure] = _spread(values)
    classes = cells[0]["decides"]["images"]["classes"]
    found = published.find(paper, place)
    unlike = tuple(dict.fromkeys(each for cell in good for each in published.unlike(paper, cell)))
    failed = len(cells) - len(good)
    method = cells[0]["decides"]["cleanse"].get("method", PAPERS_METHOD)
    variant = find(method).variant
    return Row(
        place=place, classes=classes, failed=failed, paper=found, unlike=unlike, variant=variant, **sides
    )


def _spread(values: Sequence[float]) -> Spread:
    deviation = stdev(values) if len(values) > 1 else None
    return Spread(mean=mean(values), deviation=deviation, count=len(values))


def _means(rows: Sequence[Row]) -> list[Row]:
    """Rows with the mean over several attacks, for the measured and the paper's results.

    Only means over the same attacks are comparable. So there is no mean where another row of the same data
    and architecture has an attack that these lack, or where all networks of an attack have failed.
    """
    attacks: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    alike: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if not row.after or "asr" in row.after:  # a network without a backdoor is no attack
            alike[tuple(value for key, value in row.place.items() if key != "attack")].append(row)
            attacks[row.place["data"], row.place["arch"]].add(row.place["attack"])
    means = []
    for some in alike.values():
        good = [row for row in some if row.after]
        of_all = attacks[some[0].place["data"], some[0].place["arch"]]
        if len(some) < 2 or {row.place["attack"] for row in good} < of_all:
            continue
        sides = {
            side: {m: _mean([getattr(row, side)[m] for row in good]) for m in MEASURES}
            for side in ("before", "after", "drop")
        }
        place = some[0].place | {"attack": MEAN}
        paper = _mean_of_paper([row.paper for row in good])
        unlike = tuple(dict.fromkeys(each for row in good for each in row.unlike))
        means.append(
            Row(
                place=place,
                classes=some[0].classes,
                failed=sum(row.failed for row in good),
                paper=paper,
                unlike=unlike,
                variant=some[0].variant,
                **sides,
            )
        )
    return means


def _mean(spreads: Sequence[Spread]) -> Spread:
    return Spread(mean=mean(s.mean for s in spreads), deviation=None, count=sum(s.count for s in spreads))


def _mean_of_paper(papers: Sequence[Published | None]) -> Published | None:
    known = [paper for paper in papers if paper]
    if len(known) < len(papers):
        return None
    before, after = (
        {m: mean(getattr(paper, side)[m] for paper in known) for m in _SHOWN} for side in ("before", "after")
    )
    return published.Published(before=before, after=after)
