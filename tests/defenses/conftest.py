from __future__ import annotations

import pytest
from defending import Setting, backdoored_setting

from bcu_cli.defenses import auto


@pytest.fixture(scope="session")
def setting() -> Setting:
    return backdoored_setting()


@pytest.fixture
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Method auto plants its canaries and looks for triggers in a few steps."""
    monkeypatch.setattr(auto, "CANARY_STEPS", 4)
    monkeypatch.setattr(auto, "SEARCH_STEPS", 4)
