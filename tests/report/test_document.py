"""What a run is known by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcu_cli.report import document

if TYPE_CHECKING:
    import pytest


def test_a_run_is_known_by_its_values_and_the_version_of_bcu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one version left, another does not go on with: its method may be another."""
    known = document.fingerprint("cleanse", {"seed": 0})
    assert document.fingerprint("cleanse", {"seed": 0}) == known
    assert document.fingerprint("cleanse", {"seed": 1}) != known
    monkeypatch.setattr(document, "__version__", "0.2.0")
    assert document.fingerprint("cleanse", {"seed": 0}) != known
