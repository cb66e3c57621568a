"""Without a network whatever takes files of a hub says so at once, in one line with the remedy."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

import codetr
from codetr.errors import UserError
from codetr.inference.predictor import Predictor
from codetr.models.backbones.hub_access import hub_access, hub_weights
from codetr.models.backbones.timm import TimmBackbone

PACKAGE = Path(codetr.__file__).parent
NAME = "resnet18.a1_in1k"

TAKERS: dict[str, tuple[Callable[[], object], str]] = {
    "weights of a backbone": (lambda: hub_weights(NAME), "model.backbone.weights=FILE"),
    "a backbone of timm": (
        lambda: TimmBackbone(NAME, out_indices=(4,), pretrained=True),
        "model.backbone.weights=FILE",
    ),
    "a published model": (lambda: Predictor.from_pretrained("a/b"), "folder of save_pretrained"),
}


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """The connections that are tried, all in vain; the hub's cache is empty."""
    found: list[object] = []

    def refuse(address: object, *_: object, **__: object) -> None:
        found.append(address)
        raise OSError("Network is unreachable")

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: refuse(address))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return found


@pytest.mark.parametrize("taker", TAKERS)
def test_no_network_is_one_line_after_one_try(taker: str, tried: list[object]) -> None:
    take, remedy = TAKERS[taker]
    with pytest.raises(UserError) as caught:
        take()
    message = str(caught.value)
    assert "\n" not in message
    assert "no network" in message
    assert remedy in message
    assert len(tried) == 1
    assert not constants.HF_HUB_OFFLINE, "only while it lasts"


def test_what_the_hub_answers_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codetr.models.backbones.hub_access.is_reachable", lambda: True)
    with pytest.raises(UserError, match=r"\(404, no such file\)"), hub_access("a"):
        raise OSError("404, no such file\nand a page of HTML")


def test_nothing_else_fetches_weights() -> None:
    """Files that reach a hub are those with a limit of time and an error of one line."""
    fetches = re.compile(r"timm\.create_model\(|hf_hub_download\(|snapshot_download\(|HfApi\(")
    found = {p.name: p.read_text("utf-8") for p in PACKAGE.rglob("*.py")}
    assert {name for name, text in found.items() if fetches.search(text)} == {
        "hub_access.py",
        "timm.py",
        "hub.py",
        "zoo_files.py",
    }
