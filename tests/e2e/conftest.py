"""Fixtures that run the true commands, at a size that takes seconds."""

import subprocess
from pathlib import Path

import pytest
from commands import SMALL, Command, arguments, environment
from warm import run_warm


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the built-in data is rendered, once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run ``script overrides...`` in an empty folder; the output is text."""

    def run(script: str, *overrides: str) -> "subprocess.CompletedProcess[str]":
        return run_warm(arguments(script, *overrides), tmp_path, environment())

    return run


@pytest.fixture
def small(data_root: Path) -> tuple[str, ...]:
    """Overrides of a small run on the built-in data."""
    return (*SMALL, f"data.root={data_root}")
