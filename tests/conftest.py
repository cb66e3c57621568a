"""Fixtures that all tests share."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

# The suite draws the same examples in every run. `--hypothesis-profile=search` draws new ones; what
# it finds becomes an explicit `@example`.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The optional folder of reference data that may lie beside a checkout."""
    if not SHARED.is_dir():
        pytest.skip("no folder 'shared' beside the checkout: reference data is not there")
    return SHARED


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
