from pathlib import Path

import pytest
from tiny_checkpoint import save_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that looks at images as they are."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model.safetensors", "augmentation=none")
