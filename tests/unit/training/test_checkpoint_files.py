"""Which checkpoint a run is resumed from."""

import logging
import os
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from codetr.errors import UserError
from codetr.run_folder import RunFolder
from codetr.torch_files import materialised
from codetr.training.checkpoint_files import NEEDED, AtomicCheckpointIO, require_fit, resume_path


def save(path: Path, age_s: int = 0) -> bytes:
    torch.save({key: {"a": torch.arange(1000)} for key in NEEDED}, path)
    time = path.stat().st_mtime - age_s
    os.utime(path, (time, time))
    return path.read_bytes()


def test_last_is_optional_and_a_named_file_is_not(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert resume_path(None, folder) is None
    assert resume_path("last", folder) is None
    save(folder.last)
    assert resume_path("last", folder) == str(folder.last)
    assert resume_path(str(folder.last), folder) == str(folder.last)
    with pytest.raises(UserError, match=r"other\.ckpt: no such"):
        resume_path(str(tmp_path / "other.ckpt"), folder)


def test_weights_of_another_model_are_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "last.ckpt")
    torch.save({"state_dict": nn.Linear(4, 3).state_dict()}, path)
    require_fit(path, nn.Linear(4, 3))
    with pytest.raises(UserError, match=r"last\.ckpt: .* model \(weights .*: bias, weight\)"):
        require_fit(path, nn.Linear(4, 6))
    with pytest.raises(UserError, match=r"another model \(weights .*: bias\)"):
        require_fit(path, nn.Linear(4, 3, bias=False))


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_damaged_file_is_replaced_by_the_newest_good_one(
    tmp_path: Path, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path)
    whole = save(folder.last)
    folder.last.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"last\.ckpt: cannot be resumed from .* move it away"):
        resume_path("last", folder)
    save(tmp_path / "older.ckpt", 20)
    save(folder.best, 10)
    (tmp_path / "newest.ckpt").write_bytes(whole[:100])
    with caplog.at_level(logging.WARNING):
        assert resume_path("last", folder) == str(folder.best)
    assert len(caplog.records) == 1
    assert "it is cut off, damaged, or no checkpoint" in caplog.text
    with pytest.raises(UserError, match=r"last\.ckpt: cannot be resumed from \(it is cut off"):
        resume_path(str(folder.last), folder)


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    whole = bytearray(save(folder.last))
    whole[len(whole) // 2] ^= 0xFF  # in the numbers
    folder.last.write_bytes(bytes(whole))
    with pytest.raises(UserError, match="cannot be resumed from"):
        resume_path("last", folder)


def test_the_best_is_used_where_last_is_missing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "weights.ckpt")
    assert resume_path("last", folder) is None
    save(folder.best)
    assert resume_path("last", folder) == str(folder.best)


@pytest.mark.parametrize("inflate", ["member", "tensor"])
def test_a_small_file_that_unfolds_is_not_resumed_from(tmp_path: Path, inflate: str) -> None:
    path = tmp_path / "a.ckpt"
    content = {key: {"a": torch.zeros(2**20)} for key in NEEDED}
    if inflate == "tensor":
        content["optimizer_states"] = {"a": torch.zeros(1).expand(2**40)}
    torch.save(content, path)
    if inflate == "member":
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    said = "compressed" if inflate == "member" else r"'optimizer_states\.a' has \d+ numbers"
    with pytest.raises(UserError, match=rf"a\.ckpt: cannot be resumed from \(.*{said}"):
        resume_path(str(path), RunFolder(tmp_path))


def test_a_buffer_that_repeats_its_numbers_is_kept(tmp_path: Path) -> None:
    """As ``register_buffer`` of a module of the user's own with an expanded tensor."""
    model = nn.BatchNorm1d(2)
    model.register_buffer("grid", torch.arange(3.0).expand(4, 3))
    state = model.state_dict()
    content = {**dict.fromkeys(NEEDED), "state_dict": state, "callbacks": {"a": [state["grid"]]}}
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content, path)
    assert resume_path("last", RunFolder(tmp_path)) == str(path)
    assert model.grid.stride() == state["grid"].stride() == (0, 1)
    kept = torch.load(path, weights_only=True)
    assert kept["state_dict"]._metadata == state._metadata
    assert list(kept["state_dict"]) == list(state)
    for name, value in state.items():
        assert torch.equal(kept["state_dict"][name], value)
    assert torch.equal(kept["callbacks"]["a"][0], state["grid"])


def test_what_repeats_nothing_is_kept_as_it_is() -> None:
    plain = {"a": [torch.eye(3).T, (torch.zeros(0), torch.eye(3).to_sparse())], "b": None}
    assert materialised(plain) is plain


def test_weights_alone_cannot_be_resumed_from(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="it has no state of training"):
        resume_path(str(tmp_path / "a.ckpt"), RunFolder(tmp_path))


def test_a_whole_file_that_cannot_be_loaded_is_not_called_damaged(tmp_path: Path) -> None:
    """As with a callback of the user's own that keeps more than plain types."""
    torch.save({**dict.fromkeys(NEEDED), "callbacks": {"mine": tmp_path}}, tmp_path / "last.ckpt")
    with pytest.raises(
        UserError, match="it is whole, but what it holds cannot be loaded"
    ) as caught:
        resume_path("last", RunFolder(tmp_path))
    assert "\n" not in str(caught.value)
