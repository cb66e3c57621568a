"""Official MS-DETR names: every tensor has its place, in the scheme where it only trains."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_official import convert_file

from codetr.checkpoints.dialects import dialect_of
from codetr.checkpoints.experiment import build_empty, compose_experiment
from codetr.checkpoints.ms_detr import RULES, convert_ms_detr
from codetr.checkpoints.renaming import rename

LAYER = "transformer.decoder.layers.3."
EXAMPLES = {
    LAYER + "linear3.weight": "schemes.mixed.branches.3.feed_forward.expand.weight",
    LAYER + "linear4.bias": "schemes.mixed.branches.3.feed_forward.contract.bias",
    LAYER + "norm4.weight": "schemes.mixed.branches.3.norm.weight",
    LAYER + "norm1.bias": "detector.decoder.layers.3.cross_attention_norm.bias",
    LAYER + "norm2.bias": "detector.decoder.layers.3.self_attention_norm.bias",
    LAYER + "norm3.bias": "detector.decoder.layers.3.feed_forward_norm.bias",
    LAYER + "linear1.weight": "detector.decoder.layers.3.feed_forward.expand.weight",
    "query_embed.weight": "detector.query_init.content",
    "bbox_embed.6.layers.1.bias": "detector.head.regress.6.2.bias",
    "transformer.decoder.bbox_embed.6.layers.1.bias": "",
    "class_embed_o2m.0.weight": None,
}
SMALL = (
    "model/backbone=resnet10_thin",
    "model.dim=32",
    "model.heads=4",
    "model.hidden=32",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
    "model.num_queries=12",
)


@pytest.mark.parametrize(("official", "ours"), EXAMPLES.items())
def test_names(official: str, ours: str | None) -> None:
    assert rename(official, RULES) == ours


def official_names(experiment: str) -> dict[str, torch.Tensor]:
    """An official state dict of the small model, named by hand from ours."""
    state = build_empty(compose_experiment(experiment, 80, SMALL)).state_dict()
    pairs = [
        ("detector.backbone.body.", "backbone.0.body."),
        ("detector.neck.maps.", "input_proj."),
        ("detector.neck.extra.0.", "input_proj.3."),
        ("detector.encoder.level_embed", "transformer.level_embed"),
        ("detector.encoder.", "transformer.encoder."),
        ("detector.decoder.", "transformer.decoder."),
        ("detector.query_init.stage.project.", "transformer.enc_output."),
        ("detector.query_init.stage.norm.", "transformer.enc_output_norm."),
        ("detector.query_init.position.", "transformer.pos_trans."),
        ("detector.query_init.position_norm.", "transformer.pos_trans_norm."),
        ("detector.query_init.content", "query_embed.weight"),
        ("detector.head.classify.", "class_embed."),
        ("detector.head.regress.", "bbox_embed."),
        ("schemes.mixed.branches.", "transformer.decoder.layers."),
    ]
    inside = [
        ("self_attention.in_proj.", "self_attn.in_proj_"),
        ("self_attention.out_proj.", "self_attn.out_proj."),
        ("self_attention_norm", "norm2"),
        ("cross_attention_norm", "norm1"),
        ("cross_attention", "cross_attn"),
    ]
    found = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue  # the official norms have no counter
        old, new = next(pair for pair in pairs if name.startswith(pair[0]))
        key = new + name.removeprefix(old)
        if old == "schemes.mixed.branches.":
            inner = [("feed_forward.expand", "linear3"), ("feed_forward.contract", "linear4")]
            inner.append(("norm", "norm4"))
        elif ".encoder.layers." in key:
            inner = [("feed_forward_norm", "norm2"), ("attention_norm", "norm1")]
            inner += [("feed_forward.expand", "linear1"), ("feed_forward.contract", "linear2")]
            inner.append(("attention.", "self_attn."))
        elif ".decoder.layers." in key:
            inner = [("feed_forward_norm", "norm3"), ("feed_forward.expand", "linear1")]
            inner += [("feed_forward.contract", "linear2"), *inside]
        elif key.startswith("bbox_embed."):
            _, number, place, kind = key.split(".")
            key, inner = f"bbox_embed.{number}.layers.{int(place) // 2}.{kind}", []
        else:
            inner = []
        for ours, theirs in inner:
            if ours in key:
                key = key.replace(ours, theirs)
                break
        found[key] = torch.randn(value.shape)
    return found


def repository(official: dict[str, torch.Tensor]) -> str:
    dialect = dialect_of(official)
    return "" if dialect is None else dialect.repository


@pytest.mark.parametrize("experiment", ["ms_detr_r50_300q_1x_coco", "ms_detr_pp_r50_300q_1x_coco"])
def test_a_whole_file_fits_key_by_key(experiment: str, tmp_path: Path) -> None:
    official = official_names(experiment)
    assert repository(official) == "MS-DETR"
    shared = {f"transformer.decoder.{k}": v for k, v in official.items() if "_embed." in k}
    shared = {k: v for k, v in shared.items() if "query_embed" not in k}
    path = tmp_path / "official.safetensors"
    save_file({k: v.clone() for k, v in (official | shared).items()}, path)
    content, report = convert_file(path, experiment, SMALL)
    report.require_complete(path)
    assert set(report.dropped) == set(shared)
    branch = "branches.1.feed_forward.expand.weight"
    ours = content.schemes[f"mixed.{branch}"]
    assert torch.equal(ours, official["transformer.decoder.layers.1.linear3.weight"])
    assert not any("branches" in name for name in content.weights)


def test_other_two_stage_files_are_told_apart() -> None:
    official = official_names("ms_detr_pp_r50_300q_1x_coco")
    plain = {key: value for key, value in official.items() if "linear3" not in key}
    assert repository(plain) == "H-DETR and Teach-DETR"


def test_unknown_names_are_reported() -> None:
    conversion = convert_ms_detr({"class_embed_o2m.0.weight": torch.zeros(1)})
    assert conversion.unused == ("class_embed_o2m.0.weight",)
    assert not conversion.state
