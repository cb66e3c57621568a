"""Folders of the transformers library's Deformable DETR against the library."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from codetr.checkpoints.coco import COCO
from codetr.checkpoints.convert import open_checkpoint
from codetr.checkpoints.experiment import compose_experiment
from codetr.checkpoints.huggingface import read_huggingface
from codetr.errors import UserError
from codetr.inference.predictor import build_detector
from codetr.structures import Images

SMALL = (
    "model.dim=32",
    "model.heads=2",
    "model.hidden=48",
    "model.num_queries=5",
    "model.encoder_layers=1",
    "model.decoder_layers=3",
    "model.backbone.name=resnet18",
    "model.backbone.pretrained=false",
)
BIAS = "++model.neck.bias=true"
ONE_MAP = (
    "model=deformable_detr",
    BIAS,
    "model.levels=1",
    "model.neck.extra=0",
    "model.backbone.out_indices=[4]",
)
FIVE_MAPS = ("model.levels=5", "model.neck.extra=2")
DILATED = "++model.backbone.model_args.output_stride=16"
REFINED: dict[str, Any] = {"with_box_refine": True}
TWO_STAGE: dict[str, Any] = {"with_box_refine": True, "two_stage": True}
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "one_stage": ({}, ("model=deformable_detr", BIAS)),
    "refined": (REFINED, ("model=deformable_refined",)),
    "two_stage": (TWO_STAGE, ("model=deformable_two_stage",)),
    "single_scale": ({"num_feature_levels": 1}, ONE_MAP),
    "single_scale_dc5": ({"num_feature_levels": 1, "dilation": True}, (*ONE_MAP, DILATED)),
    "five_levels": (
        {**REFINED, "num_feature_levels": 5},
        ("model=deformable_refined", *FIVE_MAPS),
    ),
    "two_stage_of_five_levels": (
        {**TWO_STAGE, "num_feature_levels": 5},
        ("model=deformable_two_stage", *FIVE_MAPS),
    ),
}


def saved(folder: Path, labels: tuple[str, ...] = ("cat", "dog", "bird"), **more: Any) -> nn.Module:
    """A small model of the library, saved in ``folder``; every weight is random."""
    transformers = pytest.importorskip("transformers")
    settings: dict[str, Any] = {
        "use_timm_backbone": True,
        "use_pretrained_backbone": False,
        "backbone": "resnet18",
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "num_queries": 5,
        "two_stage_num_proposals": 5,
        "disable_custom_kernels": True,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    config = transformers.DeformableDetrConfig(**settings | more)
    torch.manual_seed(0)
    model: nn.Module = transformers.DeformableDetrForObjectDetection(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            large = "query_position" in name or re.search(r"bbox_embed.*layers\.2", name)
            parameter.add_(torch.randn_like(parameter) * (0.5 if large else 0.05))
    model.save_pretrained(folder)  # type: ignore[operator]
    return model


def config(*overrides: str) -> Any:
    chosen = [o for o in overrides if o.startswith("model=")]
    rest = [o for o in overrides if not o.startswith("model=")]
    return compose_experiment("deformable_detr_r50_50e_coco", 1, (*chosen, *SMALL, *rest))


@torch.no_grad()
def require_same(model: nn.Module, folder: Path, *overrides: str) -> None:
    """Our predictions of the folder are the library's for a padded batch."""
    content = open_checkpoint(f"huggingface:{folder}", config(*overrides))
    detector = build_detector(content, "small").double()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 96, 128, generator=generator, dtype=torch.float64)
    padding = torch.zeros(2, 96, 128, dtype=torch.bool)
    padding[1, 64:] = True
    padding[1, :, 96:] = True
    pixels[1, :, padding[1]] = 0.0
    sizes = torch.tensor([[96, 128], [64, 96]])
    ours = detector(Images(pixels=pixels, padding=padding, sizes=sizes, padded_sizes=sizes))
    theirs = model.double()(pixels, pixel_mask=(~padding).long())
    assert ours.boxes.std(dim=1).min() > 1e-3  # or all queries say the same
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.boxes, theirs.pred_boxes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    settings, overrides = MODELS[name]
    model = saved(tmp_path, **settings)
    content = open_checkpoint(f"huggingface:{tmp_path}", config(*overrides))
    assert content.record.classes.names == ("cat", "dog", "bird")
    require_same(model, tmp_path, *overrides)


@pytest.mark.parametrize("name", ["one_stage", "refined", "two_stage"])
def test_heads_that_are_written_under_every_name_are_read(name: str, tmp_path: Path) -> None:
    """As in published files, which hold what is tied, or was, once for each name."""
    settings, overrides = MODELS[name]
    model = saved(tmp_path, **settings)
    path = tmp_path / "model.safetensors"
    written = model.state_dict() if name == "one_stage" else own_class_heads(model)
    heads = {k: v for k, v in written.items() if re.search(r"(class|bbox)_embed\.", k)}
    state = load_file(path)
    assert len(heads.keys() - state.keys()) > 2
    save_file({k: v.clone() for k, v in (state | heads).items()}, path)
    require_same(model, tmp_path, *overrides)


def own_class_heads(model: Any) -> dict[str, torch.Tensor]:
    """What ``model`` holds after each layer got a class head of its own, as officially."""
    shared = model.class_embed[0]
    for i in range(len(model.class_embed)):
        own = nn.Linear(shared.in_features, shared.out_features)
        model.class_embed[i] = own
        if model.model.decoder.class_embed is not None:
            model.model.decoder.class_embed[i] = own
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


def test_a_head_of_its_own_in_a_layer_does_not_fit_one_for_all(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    more = {"class_embed.1.bias": torch.zeros(3), "class_embed.1.weight": torch.zeros(3, 32)}
    save_file(state | more, path)
    with pytest.raises(UserError, match=r"2 unknown keys \(class_embed\.1\.bias, class_embed"):
        open_checkpoint(f"huggingface:{tmp_path}", config(*MODELS["one_stage"][1]))


@pytest.mark.parametrize("name", ["one_stage", "refined", "single_scale_dc5"])
def test_official_files_of_one_stage_are_read(name: str, tmp_path: Path) -> None:
    """They have heads under every layer's name, and refinement's once more in the decoder."""
    settings, overrides = MODELS[name]
    model: Any = saved(tmp_path, **settings)
    source = f"huggingface:{tmp_path}"
    expected = open_checkpoint(source, config(*overrides)).weights
    file = read_huggingface(tmp_path, config(*overrides))
    official = {key: value for key, value in file.weights.items() if "_embed." not in key}
    official["query_embed.weight"] = file.weights["query_embed.weight"]
    heads = {"class_embed": model.class_embed, "bbox_embed": model.bbox_embed}
    for prefix, layers in heads.items():
        for key, value in layers.state_dict().items():
            official[f"{prefix}.{key}"] = value.clone()
            if settings.get("with_box_refine") and prefix == "bbox_embed":
                official[f"transformer.decoder.{prefix}.{key}"] = value.clone()
    assert "class_embed.2.bias" in official
    path = tmp_path / "official.pth"
    torch.save({"model": official}, path)
    content = open_checkpoint(f"official:{path}", config(*overrides))
    found = content.weights
    assert found.keys() == expected.keys() == build_detector(content, "one").state_dict().keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_another_head_for_refinement_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, **REFINED)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    save_file({**state, "bbox_embed.1.layers.0.bias": torch.zeros(32)}, path)
    with pytest.raises(UserError, match=r"bbox_embed\.1\.layers\.0\.bias and model\.decoder\.bbox"):
        open_checkpoint(f"huggingface:{tmp_path}", config("model=deformable_refined"))


def test_missing_and_unknown_tensors_are_told(tmp_path: Path) -> None:
    saved(tmp_path, **REFINED)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    save_file({**state, "model.more.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"1 unknown keys \(model\.more\.weight\)"):
        open_checkpoint(f"huggingface:{tmp_path}", config("model=deformable_refined"))
    for name in ("model.query_position_embeddings.weight", "model.decoder.layers.1.fc1.bias"):
        save_file({k: v for k, v in state.items() if k != name}, path)
        content = open_checkpoint(f"huggingface:{tmp_path}", config("model=deformable_refined"))
        with pytest.raises(UserError, match=r"query_init\.position|feed_forward\.expand\.bias"):
            build_detector(content, "small")


def described(folder: Path, **settings: Any) -> str:
    """A folder with a config.json alone."""
    table = {"model_type": "deformable_detr", **settings}
    (folder / "config.json").write_text(json.dumps(table))
    return f"huggingface:{folder}"


@pytest.mark.parametrize(
    ("settings", "page"),
    [({}, "deformable_detr"), (REFINED, "deformable_refined"), (TWO_STAGE, "deformable_two_stage")],
)
@pytest.mark.parametrize("chosen", ["deformable_detr", "deformable_refined", "h_deformable"])
def test_the_page_of_another_model_is_named(
    settings: dict[str, Any], page: str, chosen: str, tmp_path: Path
) -> None:
    if chosen == page or (chosen, page) == ("h_deformable", "deformable_two_stage"):
        return  # the latter has the same flags: its missing tensors are told
    with pytest.raises(UserError, match=rf"config\.json: is another model: add model={page}$"):
        open_checkpoint(described(tmp_path, **settings), config(f"model={chosen}"))


@pytest.mark.parametrize(
    "settings",
    [{"two_stage": True}, {"two_stage": "yes"}, {"with_box_refine": 1}, {"two_stage": [True]}],
    ids=str,
)
def test_unsupported_flags_are_reported(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"models with two_stage=.*, with_box_refine=.* are not"):
        open_checkpoint(described(tmp_path, **settings), config("model=deformable_detr"))


def test_other_settings_are_told_as_what_to_add(tmp_path: Path) -> None:
    source = described(tmp_path, num_feature_levels=1, dilation=True, encoder_n_points=2)
    told = "model.points=2 model.levels=1 model.neck.extra=0 model.backbone.out_indices=[4]"
    expected = f"{DILATED} {told} {BIAS}"
    with pytest.raises(UserError) as seen:
        open_checkpoint(source, config("model=deformable_detr"))
    assert str(seen.value).endswith(f"add {expected}")
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        open_checkpoint(source, config("model=deformable_detr", *expected.split()))
    source = described(tmp_path, encoder_n_points=2, decoder_n_points=4)
    with pytest.raises(UserError, match=r"decoder_n_points is 4, .* of ours has to be 2"):
        open_checkpoint(source, config("model=deformable_detr"))


def test_rows_by_category_id_become_coco_classes(tmp_path: Path) -> None:
    labels = [f"N/A {i}" for i in range(91)]
    for name, category in zip(COCO.names, COCO.category_ids, strict=True):
        labels[category] = name
    model = saved(tmp_path, tuple(labels), **TWO_STAGE)
    source = f"huggingface:{tmp_path}"
    content = open_checkpoint(source, config("model=deformable_two_stage"))
    assert content.record.classes == COCO
    bias = model.class_embed[0].bias  # type: ignore[index, union-attr]
    assert torch.equal(content.weights["head.classify.0.bias"], bias[list(COCO.category_ids)])
