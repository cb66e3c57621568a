"""Compiled parts keep their names and numbers; pictures change their order and nothing else."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Trainer
from torch import nn

from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.models.backbones import TimmBackbone
from codetr.models.transformers.encoder import DeformableEncoder, DeformableEncoderLayer
from codetr.structures import Pyramid
from codetr.training import evaluate, teacher_boxes, train
from codetr.training.acceleration import compile_parts, use_channels_last, wants_channels_last
from codetr.training.branches import MainBranch
from codetr.training.optim import adamw, can_fuse

CONF = conf_folder()
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


class Layer(nn.Linear):
    """With a forward method of its own: PyTorch 2.9 does not compile those of torch.nn alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def small_detector() -> nn.Module:
    detector = nn.Module()
    detector.backbone = Layer(2, 2)
    for name in ("encoder", "decoder"):
        part = nn.Module()
        part.layers = nn.ModuleList(Layer(2, 2) for _ in range(2))
        detector.add_module(name, part)
    return detector


def test_named_parts_are_compiled_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    detector = small_detector()
    keys = list(detector.state_dict())
    compile_parts(detector, [])
    assert compiled == []
    compile_parts(detector, ["backbone", "decoder"])
    assert compiled == [detector.backbone, *detector.decoder.layers]
    assert list(detector.state_dict()) == keys


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """What was compiled, by the tracer alone, which needs no C compiler."""
    seen: list[torch.fx.GraphModule] = []

    def traced(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        seen.append(graph)
        return graph.forward

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: original(self, backend=traced))
    torch.compiler.reset()
    return seen


def test_compiled_parts_have_the_same_weights_and_answers(
    graphs: list[torch.fx.GraphModule],
) -> None:
    detector = small_detector()
    x = torch.randn(3, 2)
    before, keys = detector.backbone(x), list(detector.state_dict())
    compile_parts(detector, ["backbone"])
    assert torch.equal(detector.backbone(x), before)
    assert len(graphs) == 1
    assert list(detector.state_dict()) == keys


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's tracer
def test_compiled_encoder_layers_take_images_of_any_size(
    graphs: list[torch.fx.GraphModule],
) -> None:
    """The first size is compiled as it is, the second for any size: the third takes no time."""
    torch.manual_seed(0)
    encoder = DeformableEncoder(
        partial(DeformableEncoderLayer, dim=16, heads=2, levels=2, points=2, hidden=16),
        num_layers=2,
        dim=16,
        levels=2,
    )
    detector = nn.ModuleDict({"encoder": encoder})
    given = [
        (
            Pyramid(
                maps=tuple(torch.randn(1, 16, n // s, n // s, requires_grad=True) for s in (8, 16)),
                strides=(8, 16),
            ),
            torch.zeros(1, n, n, dtype=torch.bool),
        )
        for n in (64, 96, 128)
    ]
    expected = [encoder(*one).tokens for one in given]
    compile_parts(detector, ["encoder"])
    counts = []
    for one, tokens in zip(given, expected, strict=True):
        torch.testing.assert_close(encoder(*one).tokens, tokens)
        counts.append(len(graphs))
    assert 0 < counts[0] < counts[1] == counts[2]


class Reached(Exception):
    """The model would now be run."""


RUNS = {
    "eval": (evaluate, evaluate.evaluate),
    "teacher_boxes": (teacher_boxes, teacher_boxes.write_teacher_boxes),
}


@pytest.mark.parametrize("command", RUNS)
def test_evaluation_runs_the_model_as_the_trainer_group_says(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["trainer=cpu", "trainer.compile=[decoder]", "trainer.channels_last=true"]
    given += ["checkpoint=x", "evaluation=coco", "ops.nms=image"]
    given += ["data.eval_batch_size=1", "panel=null", "paths.run_dir=x"]
    given += ["+schedule.epochs=1", "num_classes=1"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(command, overrides=given)
    detector, compiled = small_detector(), []
    opened = (cfg, MainBranch(detector, Mock()), SimpleNamespace(val_annotations="x"), ())
    module, run = RUNS[command]
    monkeypatch.setattr(module, "open_branch", lambda *_: opened)
    monkeypatch.setattr(train, "keep_freed_memory", freed := Mock())
    monkeypatch.setattr(train, "use_nms", chosen := Mock())
    monkeypatch.setattr(evaluate, "build_evaluator", Mock())
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    monkeypatch.setattr(Trainer, "test", Mock(side_effect=Reached))
    with pytest.raises(Reached):
        run(cfg)
    chosen.assert_called_once_with("image")
    freed.assert_called_once_with()
    assert compiled == list(detector.decoder.layers)
    assert detector.backbone._forward_pre_hooks, "pictures are not channels-last"


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(UserError, match=r"no part head: choose from backbone, encoder, decoder"):
        compile_parts(small_detector(), ["backbone", "head"])


def test_channels_last_is_automatic_for_convolutions_on_cuda() -> None:
    resnet = SimpleNamespace(backbone=TimmBackbone("resnet10t", out_indices=(4,)))
    other = SimpleNamespace(backbone=nn.Identity())
    assert wants_channels_last(resnet, "auto", CUDA)
    assert not wants_channels_last(resnet, "auto", CPU)
    assert not wants_channels_last(other, "auto", CUDA)
    assert wants_channels_last(other, True, CPU)
    assert not wants_channels_last(resnet, False, CUDA)
    with pytest.raises(UserError, match=r"trainer\.channels_last=always: choose true, false"):
        wants_channels_last(resnet, "always", CPU)


def test_channels_last_pictures_give_channels_last_maps_of_the_same_values() -> None:
    backbone = TimmBackbone("resnet10t", out_indices=(3, 4)).eval()
    detector = nn.ModuleDict({"backbone": backbone})
    keys, pixels = list(detector.state_dict()), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = backbone(pixels)
        use_channels_last(detector)
        turned = backbone(pixels)
    assert list(detector.state_dict()) == keys
    weights = [m.weight for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    for one, other in zip(plain.maps, turned.maps, strict=True):
        assert other.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_fused_kernels_wherever_gradients_can_still_be_clipped() -> None:
    assert [can_fuse(p) for p in ("32-true", "bf16-mixed", "16-mixed")] == [True, True, False]
    named = [("weight", nn.Parameter(torch.ones(2)))]
    for fused in (True, False):
        optimizer = adamw(named, 1, lr=0.1, weight_decay=0.0, rules={}, fused=fused)
        assert optimizer.defaults["fused"] is (fused or None)
