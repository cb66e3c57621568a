"""How to build, run and inspect our counterpart of an official head, and rename its weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from codetr.checkpoints.official import convert_official
from codetr.errors import UserError
from codetr.nms import ClasswiseNms
from codetr.structures import Batch, Pyramid
from codetr.supervision.aux_heads.atss import AtssHead
from codetr.supervision.aux_heads.fcos import FcosHead
from codetr.supervision.aux_heads.gfl import GflHead
from codetr.supervision.aux_heads.paa import PaaHead
from codetr.supervision.aux_heads.rcnn import RcnnHead
from codetr.supervision.aux_heads.retinanet import RetinaNetHead
from codetr.supervision.aux_heads.selection import DenseSelection, VotedSelection
from tools.parity.head_inputs import STRIDES
from tools.parity.head_values import (
    HeadRun,
    atss_values,
    by_class,
    dense_values,
    fcos_values,
    gfl_values,
    paa_values,
    retinanet_values,
    run_dense,
)
from tools.parity.recorded import Recorded
from tools.parity.region_values import rcnn_values, run_regions
from tools.parity.values import Values


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How our counterpart of one official class is built, run and inspected."""

    build: Callable[[dict[str, Any]], nn.Module]
    values: Callable[[HeadRun], Values]
    rename: Callable[[str], str]
    run: Callable[[nn.Module, Pyramid, Batch], HeadRun] = run_dense


def kind_of(recorded: Recorded) -> Kind:
    """Chosen by info.json. Raises UserError if the head is unknown."""
    if "roi_head" in recorded.info:
        return REGIONS
    name = recorded.info.get("head_config", {}).get("type")
    if name not in DENSE:
        known = ", ".join(DENSE)
        raise UserError(
            f"{recorded.folder}/info.json: head_config.type is {name}: give a folder with a "
            f"roi_head, or one of {known}"
        )
    return DENSE[name]


def _dense_name(key: str) -> str:
    """Our name of an official parameter of a dense head."""
    key = key.removeprefix("bbox_head.0.").removesuffix(".scale")
    key = re.sub(r"^(retina|conv|atss|gfl)_", "", key)
    key = re.sub(r"^(cls|reg)_convs", r"\1_tower", key)
    return key.replace(".gn.", ".norm.")


def _paa_name(key: str) -> str:
    return _dense_name(key).replace("centerness", "iou")


def _co_detr_name(key: str) -> str:
    """As in checkpoints: the part after ``schemes.collaborative.heads.HEAD.``."""
    (name,) = convert_official({key: torch.zeros(())}).state
    return name.split(".", 4)[-1]


def _settings(info: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments that dense heads share."""
    config = info["head_config"]
    test = config["test_cfg"]
    choice = VotedSelection if config.get("score_voting") else DenseSelection
    return {
        "num_classes": config["num_classes"],
        "channels": config["in_channels"],
        "num_convs": config["stacked_convs"],
        "selection": choice(
            nms=ClasswiseNms(iou=test["nms"]["iou_threshold"], limit=test["max_per_img"]),
            per_level=test["nms_pre"],
            threshold=test["score_thr"],
        ),
    }


def _scaled(head: Callable[..., nn.Module]) -> Callable[[dict[str, Any]], nn.Module]:
    """Builder of a head with one learned factor per level."""
    return lambda info: head(**_settings(info), num_levels=len(STRIDES))


DENSE = {
    "ATSSHead": Kind(
        build=_scaled(AtssHead),
        values=partial(dense_values, quality="ctr", assignments=atss_values),
        rename=_co_detr_name,
    ),
    "RetinaHead": Kind(
        build=lambda info: RetinaNetHead(**_settings(info)),
        values=partial(dense_values, quality="", assignments=retinanet_values),
        rename=_dense_name,
    ),
    "FCOSHead": Kind(
        build=_scaled(FcosHead),
        values=partial(dense_values, quality="ctr", assignments=fcos_values),
        rename=_dense_name,
    ),
    "PAAHead": Kind(
        build=_scaled(PaaHead),
        values=partial(dense_values, quality="iou", assignments=paa_values, arrange=by_class),
        rename=_paa_name,
    ),
    "GFLHead": Kind(
        build=_scaled(GflHead),
        values=partial(dense_values, quality="", assignments=gfl_values),
        rename=_dense_name,
    ),
}
"""Dense heads by their official class."""

REGIONS = Kind(
    build=lambda info: RcnnHead(
        num_classes=info["roi_head"]["bbox_head"]["num_classes"],
        channels=info["roi_head"]["bbox_head"]["in_channels"],
        num_levels=len(STRIDES),
    ),
    values=rcnn_values,
    rename=_co_detr_name,
    run=run_regions,
)
"""The two-stage head, whose info.json has a ``roi_head``."""
