"""Fixtures that all tests share."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
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


@pytest.fixture(scope="session", autouse=True)
def _option_files_are_parsed_once() -> Iterator[None]:
    """Of the suite's time, a tenth is YAML: each of two thousand configurations is composed of some
    forty files of conf.
    """
    Plugins.instance()  # registers the sources
    source = SourcesRegistry.instance().resolve("file")
    parse = source.load_config
    parsed: dict[Path, bytes] = {}

    def load_config(self: Any, config_path: str) -> Any:
        file = Path(self.path, config_path)
        if not file.is_relative_to(ROOT / "conf"):
            return parse(self, config_path)
        if file not in parsed:
            parsed[file] = pickle.dumps(parse(self, config_path))
        return pickle.loads(parsed[file])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "load_config", load_config)
        yield
