from __future__ import annotations

import pytest
from defending import Setting, backdoored_setting


@pytest.fixture(scope="session")
def setting() -> Setting:
    return backdoored_setting()
