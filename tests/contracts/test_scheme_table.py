"""The table of schemes and detectors is what the contract says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from codetr.conf_folder import conf_folder
from tools.docs.scheme_table import families, refusal

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/method.md"


def test_every_family_and_scheme_is_in_it() -> None:
    page = PAGE.read_text("utf-8")
    assert all(f"| `{name}` | " in page for name in families(conf_folder()))
    assert all(f"`{path.stem}` |" in page for path in (conf_folder() / "scheme").glob("*.yaml"))


@pytest.mark.parametrize(
    ("model", "scheme"), [("yolos", "hybrid"), ("deformable_detr", "denoising")]
)
def test_what_it_says_is_what_a_user_is_told(model: str, scheme: str) -> None:
    said = refusal(model, scheme)
    assert said is not None
    assert f". {said}\n" in PAGE.read_text("utf-8")
    assert refusal(model, "one_to_one") is None


@pytest.mark.slow
def test_script_changes_nothing(tmp_path: Path) -> None:
    page = tmp_path / PAGE.name
    page.write_text(PAGE.read_text("utf-8"), encoding="utf-8")
    script = str(ROOT / "scripts/scheme_table.py")
    subprocess.run([sys.executable, script, "--page", str(page)], check=True)
    assert page.read_text("utf-8") == PAGE.read_text("utf-8")
