"""Runs that nobody interrupts, for comparison."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import TINY, Place, outcome


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Of a tiny run on the built-in data, which is rendered once."""
    return (*TINY, f"data.root={tmp_path_factory.mktemp('data')}")


@pytest.fixture(scope="session")
def whole(
    options: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Any]]:
    """What an uninterrupted run with more options leaves."""
    known: dict[tuple[str, ...], dict[str, Any]] = {}

    def get(*more: str) -> dict[str, Any]:
        if more not in known:
            place = Place(tmp_path_factory.mktemp("whole"), (*options, *more))
            done = place.train()
            assert done.returncode == 0, done.stderr[-3000:]
            known[more] = outcome(place.run)
        return known[more]

    return get


@pytest.fixture
def place(tmp_path: Path, options: tuple[str, ...]) -> Place:
    """Of a run that keeps every step."""
    return Place(tmp_path, (*options, "checkpointing.last.every_n_steps=1"))
