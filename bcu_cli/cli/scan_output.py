"""The output of ``bcu inspect --scan`` for one network."""

from __future__ import annotations

from typing import Any

from bcu_cli.cli import output
from bcu_cli.report.text import rates_of_others, searched_of_all, suspected_class


def show(scan: dict[str, Any]) -> None:
    """Print the results of the detectors for one network."""
    output.table(
        f"Scan of {scan['model']['path']}",
        ("detector", "score", "most suspicious", "evidence", "seconds"),
        [
            (
                each["detector"],
                f"{each['score']:.2f}",
                "-" if each["class"] is None else f"class {each['class']}",
                ", ".join(f"{name} {_plain(value)}" for name, value in each["evidence"].items()),
                f"{each['seconds']:.0f}",
            )
            for each in scan["detectors"]
        ],
    )
    rates = scan["calibration"]
    suspect = f", {suspected_class(scan)}" if scan["verdict"] == "suspicious" else ""
    some = searched_of_all(scan)
    thresholds = f"clean-looking below {rates['clean_below']:.2f}, suspicious from 1"
    output.facts(
        [
            ("verdict", f"{scan['verdict']}{suspect}{some and f' ({some})'}"),
            ("suspicion", f"{scan['suspicion']:.2f} ({thresholds})"),
            ("clean ones called suspicious", output.measure(rates["false_alarms"])),
            ("backdoored ones called clean-looking", output.measure(rates["misses"])),
            *([("these rates", others)] if (others := rates_of_others(scan)) else []),
        ]
    )


def _plain(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
