"""Names of H-DETR's checkpoints: every key has its place, and functions stay the same."""

from pathlib import Path

import pytest
import torch
from tiny_official import convert_file

from codetr.checkpoints.coco import COCO
from codetr.checkpoints.dialects import dialect_of
from codetr.checkpoints.experiment import build_empty, compose_experiment
from codetr.checkpoints.h_detr import convert_h_detr, only_coco_rows
from codetr.errors import UserError

NAME = "h_deformable_detr_r50_1x_coco"
SMALL = ("model.num_queries=4", "supervision.hybrid_queries=6", "model.dim=32", "model.hidden=8")
ENCODER = {
    "attention": "self_attn",
    "attention_norm": "norm1",
    "feed_forward.expand": "linear1",
    "feed_forward.contract": "linear2",
    "feed_forward_norm": "norm2",
}
DECODER = {
    "self_attention.in_proj": "self_attn.in_proj_",
    "self_attention.out_proj": "self_attn.out_proj",
    "self_attention_norm": "norm2",
    "cross_attention_norm": "norm1",
    "cross_attention": "cross_attn",
    "feed_forward.expand": "linear1",
    "feed_forward.contract": "linear2",
    "feed_forward_norm": "norm3",
}
TOP = {
    "backbone.body": "backbone.0.body",
    "neck.maps.0": "input_proj.0",
    "neck.maps.1": "input_proj.1",
    "neck.maps.2": "input_proj.2",
    "neck.extra.0": "input_proj.3",
    "encoder.level_embed": "transformer.level_embed",
    "query_init.stage.project": "transformer.enc_output",
    "query_init.stage.norm": "transformer.enc_output_norm",
    "query_init.position": "transformer.pos_trans",
    "query_init.position_norm": "transformer.pos_trans_norm",
    "head.classify": "class_embed",
}


def official_name(ours: str) -> str:
    """The inverse of the rules, written from the fact that both are trees of modules."""
    for kind, table in (("encoder", ENCODER), ("decoder", DECODER)):
        if ours.startswith(f"{kind}.layers."):
            _, _, number, rest = ours.split(".", 3)
            part = max((p for p in table if rest.startswith(f"{p}.")), key=len)
            tail = rest.removeprefix(f"{part}.")
            joint = "" if table[part].endswith("_") else "."
            return f"transformer.{kind}.layers.{number}.{table[part]}{joint}{tail}"
    if ours.startswith("head.regress."):
        _, _, number, place, kind = ours.split(".")
        return f"bbox_embed.{number}.layers.{int(place) // 2}.{kind}"
    part = max((p for p in TOP if ours == p or ours.startswith(f"{p}.")), key=len)
    return TOP[part] + ours.removeprefix(part)


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    """Random weights under official names, 91 rows for classes, heads twice as officially."""
    cfg = compose_experiment(NAME, 91, SMALL)
    torch.manual_seed(0)
    made = {
        official_name(name): torch.randn(value.shape)
        for name, value in build_empty(cfg)["detector"].state_dict().items()
        if name != "query_init.content" and not name.endswith("num_batches_tracked")
    }
    made["query_embed.weight"] = torch.randn(10, 32)
    heads = {k: v for k, v in made.items() if k.startswith(("class_embed.", "bbox_embed."))}
    twice = {f"transformer.decoder.{k}": v for k, v in heads.items()}
    return made | twice


def test_every_key_has_its_place(official: dict[str, torch.Tensor]) -> None:
    dialect = dialect_of(official)
    assert dialect is not None
    assert dialect.repository == "H-DETR and Teach-DETR"
    conversion = convert_h_detr(official, 4)
    assert conversion.unused == ()
    assert all(k.startswith("transformer.decoder.") for k in conversion.dropped)
    parts = build_empty(compose_experiment(NAME, 91, SMALL))
    expected = {f"detector.{k}": v.shape for k, v in parts["detector"].state_dict().items()}
    expected |= {f"schemes.{k}": v.shape for k, v in parts["schemes"].state_dict().items()}
    found = {name: value.shape for name, value in conversion.state.items()}
    assert found == {k: v for k, v in expected.items() if not k.endswith("num_batches_tracked")}


def test_the_first_queries_are_the_main_ones(official: dict[str, torch.Tensor]) -> None:
    state = convert_h_detr(official, 4).state
    table = official["query_embed.weight"]
    assert torch.equal(state["detector.query_init.content"], table[:4])
    assert torch.equal(state["schemes.hybrid.queries.content"], table[4:])
    whole = convert_h_detr(official, 10).state
    assert torch.equal(whole["detector.query_init.content"], table)
    assert "schemes.hybrid.queries.content" not in whole


def test_unknown_keys_are_told(official: dict[str, torch.Tensor]) -> None:
    more = {**official, "transformer.more.weight": torch.zeros(1)}
    assert convert_h_detr(more, 4).unused == ("transformer.more.weight",)


def test_rows_of_the_classes_are_taken_by_category_id(official: dict[str, torch.Tensor]) -> None:
    state = only_coco_rows(official)
    for i, category in enumerate(COCO.category_ids):
        row = state["class_embed.0.weight"][i]
        assert torch.equal(row, official["class_embed.0.weight"][category])
    proposals = state["class_embed.6.bias"]
    assert len(proposals) == 80
    assert proposals[0] == official["class_embed.6.bias"][0]  # what proposals are ranked by
    assert torch.equal(state["query_embed.weight"], official["query_embed.weight"])


def test_a_file_becomes_a_checkpoint_of_80_classes(
    official: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": official}, path)
    content, report = convert_file(path, NAME, SMALL)
    report.require_complete(path)
    assert content.record.classes == COCO
    assert content.weights["head.classify.0.weight"].shape == (80, 32)
    assert set(content.schemes) == {"hybrid.queries.content"}
    with pytest.raises(UserError, match="does not fit"):
        convert_file(path, NAME, (*SMALL, "supervision.hybrid_queries=5"))[1].require_complete(path)
