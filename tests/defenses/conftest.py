from __future__ import annotations

import pytest
from defending import Setting, backdoored_setting
from helpers import lessen_effort


@pytest.fixture(scope="session")
def setting() -> Setting:
    return backdoored_setting()


@pytest.fixture
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Method auto plants its canaries and looks for triggers in a few steps."""
    lessen_effort(monkeypatch, canary_steps=4, search_steps=4, spectral_steps=4)
