"""Every analysis works on the detectors that have what it needs, and names the others."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import NUM_CLASSES, batch, build

from codetr.analysis.attention import Attention
from codetr.analysis.command import Analysis, checkpoints_of
from codetr.analysis.conflict import Conflict
from codetr.analysis.discriminability import Discriminability
from codetr.analysis.instability import Instability
from codetr.analysis.queries import QueryDistance
from codetr.analysis.subject import Subject
from codetr.classes import ClassList
from codetr.errors import UserError

CLASSES = ClassList(names=tuple("abc"), category_ids=tuple(range(NUM_CLASSES)))
FAMILIES = {
    "co_dino": (["one_to_one", "collaborative"], ["atss", "rcnn"], ("model.dim=64",)),
    "deformable": (
        ["one_to_one"],
        [],
        ("model=deformable_detr", "model/backbone=resnet10_thin", "model.levels=3"),
    ),
    "vidt": (
        ["one_to_one"],
        [],
        (
            *(
                "model.dim=64",
                "model=vidt",
                "model.backbone.pretrained=false",
                "model.heads=2",
                "model.points=2",
            ),
            *("model.backbone.embed_dim=8", "model.backbone.depths=[1,1,2,1]"),
            *("model.backbone.heads=[1,1,2,2]", "model.backbone.window=3"),
            *("model.backbone.last_width=16", "model.query_init.width=64"),
        ),
    ),
    "yolos": (
        ["one_to_one"],
        [],
        (
            *("model=yolos", "model.backbone.pretrained=false", "model.heads=2"),
            *("model.backbone.depth=2", "model.backbone.table=[64,64]"),
        ),
    ),
}
MADE = {
    "encoder": Discriminability(),
    "decoder": Discriminability(of="decoder"),
    "instability": Instability(),
    "attention": Attention(),
    "queries": QueryDistance(),
    "conflict": Conflict(),
}
LACKS = {
    ("yolos", "decoder"): "no deformable attention",
    ("yolos", "attention"): "no deformable attention",
    **{
        (family, name): "no scheme collaborative"
        for family in ("deformable", "vidt", "yolos")
        for name in ("queries", "conflict")
    },
}


def opened(family: str, **changed: Any) -> Subject:
    """With random weights and no data."""
    schemes, heads, overrides = FAMILIES[family]
    torch.manual_seed(0)
    layers = ("model.decoder_layers=1",) if family == "yolos" else ()
    detector, parts = build(schemes, heads, *overrides, *layers)
    values = {
        "name": "a",
        "source": "a.ckpt",
        "detector": detector.eval(),
        "schemes": parts.eval(),
        "stored": tuple(parts.state_dict()),
        "classes": CLASSES,
        "data": None,
        "device": torch.device("cpu"),
        "config": None,
    }
    return Subject(**(values | changed))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("name", MADE)
@torch.no_grad()
def test_analysis(name: str, family: str) -> None:
    subject, analysis = opened(family), MADE[name]
    images = [batch([count]) for count in (2, 0, 3)]
    lacking = LACKS.get((family, name))
    if lacking is not None:
        with pytest.raises(UserError, match=rf"^a\.ckpt: .*{lacking}"):
            analysis.analyse_image(subject, images[0], False)
        return
    found = _report(analysis, subject, images)
    assert found.rows
    again = _report(analysis, subject, images)
    assert again.rows == found.rows


def _report(analysis: Analysis, subject: Subject, images: list) -> Any:
    seen: dict[str, list] = {"a": [], "b": []}
    for name in seen:
        for i, image in enumerate(images):
            torch.manual_seed(i)
            seen[name].append(analysis.analyse_image(subject, image, False))
    return analysis.report(seen)


@pytest.mark.parametrize("heads", [["rcnn_mask"], ["paa", "retinanet", "fcos", "gfl"]])
@torch.no_grad()
def test_heads_of_every_kind(heads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluated images come without masks."""
    chosen = (["one_to_one", "collaborative"], heads, ("model.dim=64",))
    monkeypatch.setitem(FAMILIES, "co_dino", chosen)
    subject, image = opened("co_dino"), batch([2])
    image = replace(image, targets=tuple(replace(t, masks=None) for t in image.targets))
    for name in ("queries", "conflict"):
        rows = _report(MADE[name], subject, [image]).rows
        named = {row[1] for row in rows} - {"main", "all"}
        assert len(named) == len(heads)


def test_checkpoints_are_one_several_or_a_pattern(tmp_path: Any) -> None:
    for number in (1, 0):
        (tmp_path / f"e{number}.ckpt").touch()
    pattern = str(tmp_path / "*.ckpt")
    assert checkpoints_of("zoo:a") == ["zoo:a"]
    assert checkpoints_of(["x", pattern]) == ["x", *(f"{tmp_path}/e{n}.ckpt" for n in (0, 1))]
    for wrong, said in ((f"{tmp_path}/*.pt", "no file matches"), ([], "give a FILE")):
        with pytest.raises(UserError, match=said):
            checkpoints_of(wrong)


def test_heads_without_weights_are_an_error() -> None:
    subject = opened("co_dino", stored=())
    with pytest.raises(UserError, match=r"^a\.ckpt: holds no weights of the scheme collaborative"):
        QueryDistance().analyse_image(subject, batch([1]), False)
