import argparse
import os
import pickle
import subprocess
from collections import OrderedDict, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from codetr.checkpoints import pickled
from codetr.checkpoints.pickled import Inert, read_pickled
from codetr.errors import UserError

LAYOUTS = [True, False]
"""The zip archive, and the layout before it."""


def tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(24, dtype=torch.float32)
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    return {
        "whole": base,
        "view": base.view(4, 6)[1:3, ::2],
        "transposed": base.view(4, 6).T,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "parameter": nn.Parameter(torch.randn(2, 3)).detach(),
        **{str(kind): torch.ones(3).to(kind) for kind in kinds},
    }


@pytest.mark.parametrize("archive", LAYOUTS)
def test_tensors_come_back_as_they_were(tmp_path: Path, archive: bool) -> None:
    state = OrderedDict(tensors())
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    path = tmp_path / "a.pth"
    torch.save(
        {"state_dict": state, "p": nn.Parameter(torch.ones(2)), "n": (1, 2.5, "x", None, [True])},
        path,
        _use_new_zipfile_serialization=archive,
    )
    content = read_pickled(path)
    assert content["n"] == (1, 2.5, "x", None, [True])
    assert torch.equal(content["p"], torch.ones(2))
    assert content["state_dict"].keys() == state.keys()
    for name, value in content["state_dict"].items():
        assert value.dtype == state[name].dtype, name
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


class ConfigDict(dict):
    """Stands for mmcv's: attributes beside items."""


class HistoryBuffer:
    """Stands for mmengine's: arrays and methods."""

    def __init__(self) -> None:
        self.values = np.arange(3)
        self.statistic = HistoryBuffer.mean

    def mean(self) -> None: ...


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Objects as they lie in official files, under the module names that they have there."""
    config = ConfigDict(a=1)
    config.b = np.float64(2)  # type: ignore[attr-defined]
    modules = {__name__, "numpy", "argparse"}
    monkeypatch.setattr(pickled, "BOOKKEEPING", pickled.BOOKKEEPING | modules)
    return {
        "config": config,
        "buffer": HistoryBuffer(),
        "arguments": argparse.Namespace(lr=1),
        "score": np.float64(0.5),
        "array": np.zeros((2, 2)),
        "counts": defaultdict(list, a=[1]),
        "recent": deque([1, 2]),
        "path": Path("x"),
        "set": {1, 2},
    }


@pytest.mark.parametrize("archive", LAYOUTS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_bookkeeping_is_passed_over(
    tmp_path: Path, foreign: dict, archive: bool, protocol: int
) -> None:
    path = tmp_path / "a.pth"
    content = {"meta": foreign | {"CLASSES": ("cat",)}, "state_dict": {"w": torch.ones(2)}}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=archive)
    found = read_pickled(path)
    assert torch.equal(found["state_dict"]["w"], torch.ones(2))
    assert found["meta"]["CLASSES"] == ("cat",)
    others = {k: v for k, v in found["meta"].items() if k not in ("CLASSES", "set")}
    assert {type(value) for value in others.values()} == {Inert}


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("archive", LAYOUTS)
@pytest.mark.parametrize("place", ["meta", "state_dict", "root"])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "system"), (exec, "exec"), (eval, "eval"), (subprocess.call, "call")],
)
def test_code_is_refused_and_does_not_run(
    tmp_path: Path, archive: bool, place: str, function: object, name: str
) -> None:
    trace = tmp_path / "trace"
    shell = function in (os.system, subprocess.call)
    command = f"touch {trace}" if shell else f"open({str(trace)!r}, 'w')"
    arguments = (["touch", str(trace)],) if function is subprocess.call else (command,)
    content = {"meta": {}, "state_dict": {"w": torch.ones(1)}}
    path = tmp_path / "evil.pth"
    evil = Call(function, *arguments)
    whole = evil if place == "root" else content | {place: {"w": evil}}
    torch.save(whole, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(UserError, match=rf"evil\.pth: refers to '.*{name}'") as caught:
        read_pickled(path)
    assert "\n" not in str(caught.value)
    assert not trace.exists()


def test_the_attack_of_these_tests_works_where_it_is_let(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Call(os.system, f"touch {trace}")))
    assert trace.exists()


def test_methods_found_by_getattr_are_not_called(tmp_path: Path) -> None:
    """``getattr`` is a name in honest files: what it gives must be inert."""
    trace = tmp_path / "trace"
    inner = Call(getattr, Path, "touch")
    torch.save({"meta": Call(_apply, inner, trace)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="_apply"):
        read_pickled(tmp_path / "a.pth")
    assert not trace.exists()


def _apply(function: object, *arguments: object) -> object:
    return function(*arguments)  # type: ignore[operator]


@pytest.mark.parametrize("case", ["missing", "junk", "cut", "cut legacy", "zip", "empty"])
def test_unusable_file_is_one_line(tmp_path: Path, case: str) -> None:
    path = tmp_path / "x.pth"
    if case == "junk":
        path.write_bytes(b"junk" * 100)
    elif case.startswith("cut"):
        torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=case == "cut")
        path.write_bytes(path.read_bytes()[:1500])
    elif case == "zip":
        np.savez(tmp_path / "x.npz", a=np.zeros(3))
        (tmp_path / "x.npz").rename(path)
    elif case == "empty":
        path.touch()
    with pytest.raises(UserError, match=r"x\.pth: (no such|not readable)") as caught:
        read_pickled(path)
    assert "\n" not in str(caught.value)


def test_a_tensor_outside_of_its_storage_is_refused(tmp_path: Path) -> None:
    storage = torch.ones(7)._typed_storage()
    rebuild = torch._utils._rebuild_tensor_v2
    for offset, size, stride in ((0, (99,), (1,)), (5, (3,), (1,)), (0, (2,), (10**9,))):
        wrong = Call(rebuild, storage, offset, size, stride, False, OrderedDict())
        torch.save({"a": wrong}, tmp_path / "x.pth")
        with pytest.raises(UserError, match=r"x\.pth: not readable"):
            read_pickled(tmp_path / "x.pth")
