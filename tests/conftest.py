"""Fixtures that all tests share."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The optional folder of reference data that may lie beside a checkout."""
    if not SHARED.is_dir():
        pytest.skip("no folder 'shared' beside the checkout: reference data is not there")
    return SHARED


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
