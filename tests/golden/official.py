"""Building our experiments with the weights and inputs of the recorded official runs."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn

from codetr.boxes import xyxy_to_cxcywh
from codetr.checkpoints.official import convert_official
from codetr.structures import Batch, Images, Targets

CONF = Path(__file__).resolve().parents[2] / "conf"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recorded run: its numbers, and our model with its weights and inputs, in float64."""

    detector: nn.Module
    schemes: nn.ModuleDict
    batch: Batch
    arrays: Any
    strides: dict[str, int]
    losses: dict[str, Any]
    rules: ModuleType

    def difference(self, key: str, value: Tensor) -> float:
        """Largest |ours - recorded| over the recorded values; infinite where one is not finite."""
        recorded = self.arrays[key].reshape(-1)
        ours = value.detach().numpy().reshape(-1)[:: self.strides[key]]
        assert ours.shape == recorded.shape
        finite = np.isfinite(recorded)
        assert (np.isfinite(ours) == finite).all()
        return float(np.abs(ours[finite] - recorded[finite]).max())


def load_case(folder: Path) -> Case:
    """The case of ``folder``, whose info.json names the official configuration."""
    info = json.loads((folder / "info.json").read_text())
    rules = _load_rules(folder.parent / "weights.py")
    detector, schemes = build(Path(info["config"]).stem)
    root = nn.ModuleDict({"detector": detector, "schemes": schemes})
    entries = json.loads((folder / "keys.json").read_text())["entries"]
    made = {key: rules.make_tensor(key, shape) for key, shape, *_ in entries}
    official = {k: torch.from_numpy(np.asarray(v)) for k, v in made.items() if v is not None}
    conversion = convert_official(official)
    assert not conversion.unused
    root.load_state_dict(conversion.state, strict=True)
    root.double()
    stats = json.loads((folder / "stats.json").read_text())
    return Case(
        detector=detector,
        schemes=schemes,
        batch=_inputs(info, rules),
        arrays=np.load(folder / "io.npz"),
        strides={key: entry["stride"] for key, entry in stats.items()},
        losses=json.loads((folder / "losses.json").read_text()),
        rules=rules,
    )


def build(experiment: str) -> tuple[nn.Module, nn.ModuleDict]:
    """Detector and schemes of one of our experiments, without pretrained weights."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "train",
            overrides=[
                f"experiment={experiment}",
                "num_classes=80",
                "model.backbone.pretrained=false",
            ],
        )
    schemes = nn.ModuleDict({name: instantiate(part) for name, part in cfg.scheme.items()})
    return instantiate(cfg.model.detector), schemes


def official_permutation(n: int) -> Tensor:
    """What the recorded runs had in place of ``torch.randperm``."""
    keys = (np.arange(1, n + 1, dtype=np.uint64) * 2654435761) % 2**32
    return torch.from_numpy(np.argsort(keys, kind="stable"))


def official_name(name: str, num_layers: int = 6) -> str:
    """The official name of one of our losses (heads: rcnn is number 0, atss number 1)."""
    scheme, *place, term = name.split("/")
    number = {"rcnn": "0", "atss": "1"}
    if scheme == "collaborative" and len(place) == 1:
        head = place[0]
        if term.startswith("rpn_"):
            return f"loss_{term}"
        return f"loss_{term}{number[head]}"
    term = {"cls": "loss_cls", "bbox": "loss_bbox", "giou": "loss_iou"}[term]
    if place == ["encoder"]:
        return f"enc_{term}"
    index = int(place[-1].removeprefix("layer"))
    layer = "" if index == num_layers - 1 else f"d{index}."
    if scheme == "denoising":
        return f"{layer}dn_{term}"
    if scheme == "collaborative":
        return f"{layer}{term}_aux{number[place[0].removeprefix('positive_')]}"
    return f"{layer}{term}"


def _load_rules(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_rules", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _inputs(info: dict[str, Any], rules: ModuleType) -> Batch:
    pixels, boxes, labels = rules.make_inputs(
        info["seeds"], info["sizes"], info["num_gts"], keep=info.get("keep")
    )
    sizes = torch.tensor(info["sizes"])
    padding = torch.ones(len(sizes), *pixels.shape[2:], dtype=torch.bool)
    for mask, (height, width) in zip(padding, info["sizes"], strict=True):
        mask[:height, :width] = False
    images = Images(
        pixels=torch.from_numpy(pixels).double(), padding=padding, sizes=sizes, padded_sizes=sizes
    )
    targets = []
    for own, label, size in zip(boxes, labels, sizes.flip(1).double(), strict=True):
        relative = xyxy_to_cxcywh(torch.from_numpy(own).double() / size.repeat(2))
        weights = torch.ones(len(label), dtype=torch.float64)
        targets.append(
            Targets(boxes=relative, labels=torch.from_numpy(label), weights=weights, size=size)
        )
    return Batch(images=images, targets=tuple(targets))
