"""DINO 4-scale, a baseline, against a recorded run of IDEA-Research/DINO (float64)."""

import importlib.util
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from codetr.conf_folder import conf_folder
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Images, QueryGroup

pytestmark = pytest.mark.golden

CONF = conf_folder()
OURS = (
    (r"backbone\.0\.(body\..*)", r"backbone.\1"),
    (r"input_proj\.([012])\.(.*)", r"neck.maps.\1.\2"),
    (r"input_proj\.3\.(.*)", r"neck.extra.0.\1"),
    (r"transformer\.level_embed", r"encoder.level_embed"),
    (r"transformer\.tgt_embed\.weight", r"query_init.content"),
    (r"transformer\.enc_output\.(.*)", r"query_init.stage.project.\1"),
    (r"transformer\.enc_output_norm\.(.*)", r"query_init.stage.norm.\1"),
    (r"transformer\.enc_out_class_embed\.(.*)", r"head.classify.1.\1"),
    (r"transformer\.enc_out_bbox_embed\.layers\.(.*)", r"head.regress.1.<\1"),
    (r"class_embed\.0\.(.*)", r"head.classify.0.\1"),
    (r"bbox_embed\.0\.layers\.(.*)", r"head.regress.0.<\1"),
    (r"transformer\.decoder\.ref_point_head\.layers\.(.*)", r"decoder.anchor_position.mlp.<\1"),
    (r"transformer\.(.*)", r"\1"),
)
PARTS = {
    "encoder": {"self_attn": "attention", "norm1": "attention_norm", "norm2": "feed_forward_norm"},
    "decoder": {
        "self_attn": "self_attention",
        "cross_attn": "cross_attention",
        "norm1": "cross_attention_norm",
        "norm2": "self_attention_norm",
        "norm3": "feed_forward_norm",
    },
}


def our_name(key: str) -> str:
    pattern, replacement = next((p, r) for p, r in OURS if re.fullmatch(p, key))
    name = re.sub(pattern, replacement, key)
    name = re.sub(r"<(\d)", lambda m: str(2 * int(m[1])), name)  # ours count activations too
    stack, dot, rest = name.partition(".layers.")
    for old, new in PARTS.get(stack, {}).items():
        rest = re.sub(rf"\.{old}\.", f".{new}.", rest)
    rest = rest.replace("linear1", "feed_forward.expand").replace(
        "linear2", "feed_forward.contract"
    )
    return (stack + dot + rest).replace("in_proj_", "in_proj.")


def official_weights(content: dict[str, Any], rules: Any) -> dict[str, Tensor]:
    """By the rule of the fixture and its exceptions."""
    state = {}
    for key, shape in content["keys"]:
        value = rules.make_tensor(key, shape)
        for rule in content["weight_overrides"]:
            if re.fullmatch(rule["pattern"], key):
                generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
                s = 2.0 * generator.random(size=tuple(shape)) - 1.0
                gain = rule.get("gain", 0.0) * np.sqrt(3.0 / max(np.prod(shape[1:]), 1))
                value = rule["offset"] + rule["scale"] * s if "offset" in rule else gain * s
                value = np.asarray(value, dtype=np.float32)
                break
        state[key] = torch.from_numpy(value)
    return state


@torch.no_grad()
def test_baseline_equals_the_official_code(shared: Path) -> None:
    folder = shared / "golden" / "dino_4scale_r50"
    spec = importlib.util.spec_from_file_location("rules", folder.parent / "weights_detr.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    content = json.loads((folder / "keys.json").read_text())
    experiment = json.loads((folder / "info.json").read_text())["experiment"]
    overrides = [f"experiment={experiment}", "num_classes=91", "model.backbone.pretrained=false"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        detector = instantiate(compose("train", overrides).model.detector)
    state = {
        our_name(key): value
        for key, value in official_weights(content, rules).items()
        if not key.startswith("label_enc")
    }
    detector.load_state_dict(state, strict=True)
    detector.double().eval()

    pixels, padding, *_ = rules.make_inputs(content["seed"], content["sizes"], content["num_gts"])
    sizes = torch.tensor(content["sizes"])
    images = Images(
        pixels=torch.from_numpy(pixels).double(),
        padding=torch.from_numpy(padding),
        sizes=sizes,
        padded_sizes=sizes,
    )
    memory = detector.encode(images)
    main = QueryGroup(name=MAIN, queries=detector.queries(memory)[0])
    layers = detector.decode(memory, [main])[MAIN].layers

    recorded = np.load(folder / "io.npz")
    boxes = torch.stack([layer.boxes for layer in layers]).numpy()
    assert np.abs(boxes.reshape(-1) - recorded["boxes"].reshape(-1)).max() < 1e-6
    for i, layer in enumerate(layers):
        stride = content["subsampled"][f"logits_l{i}"][1]
        logits = layer.logits.numpy().reshape(-1)[::stride]
        assert np.abs(logits - recorded[f"logits_l{i}"].reshape(-1)).max() < 1e-5
