"""Branches that can be evaluated: the detector, or an auxiliary head on its encoder, as in Table 11
of the Co-DETR paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from omegaconf import OmegaConf
from torch import nn

from codetr.conf_folder import conf_folder
from codetr.data.regions import Regions
from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.evaluation.detect import detect
from codetr.models.detectors.protocol import MAIN, Detector
from codetr.structures import Batch, Detections, ImageInfo
from codetr.supervision.schemes import Collaborative

OPTIONS = conf_folder() / "aux_heads"


def branch_key(name: str, heads: Mapping[str, Any]) -> str:
    """The key of ``name`` among the configured ``heads``. A variant such as ``rcnn_mask`` is stored
    under the key of its base head, and recognised by the classes of its parts. Returns ``name`` if
    there is no such head.
    """
    key, *variant = name.split("_")
    known = [path.stem for path in OPTIONS.glob("*.yaml")]
    if name in heads or not variant or name not in known or not heads.get(key):
        return name
    parts: Any = OmegaConf.to_container(OmegaConf.load(OPTIONS / f"{name}.yaml"))
    own = {k: v["_target_"] for k, v in parts.items() if isinstance(v, dict) and "_target_" in v}
    same = all((heads[key].get(part) or {}).get("_target_") == own[part] for part in own)
    return key if same else name


class Branch(Protocol):
    """A module that predicts with ``detector``; detections are in pixels of the original images."""

    detector: nn.Module

    def __call__(self, batch: Batch) -> tuple[Detections, ...]:
        """Detections of every image."""
        ...


class MainBranch(nn.Module):
    """The detector as deployed."""

    def __init__(self, detector: nn.Module, postprocess: Postprocess) -> None:
        super().__init__()
        self.detector, self.postprocess = detector, postprocess

    def forward(self, batch: Batch) -> tuple[Detections, ...]:
        """See ``Branch``."""
        return detect(self.detector, self.postprocess, batch.images, batch.infos)


class Finder(Protocol):
    """Detects objects in uint8 RGB images (3, H, W), as ``codetr.inference.views`` does."""

    def __call__(self, images: Sequence[Regions]) -> tuple[Detections, ...]:
        """Detections of every image, on the CPU."""
        ...


@dataclass(frozen=True)
class BranchFinder:
    """A ``Finder`` that runs a branch on ``device``, one image at a time; ``prepare`` turns an
    image into a batch.
    """

    branch: Branch
    prepare: Callable[[Regions], Batch]
    device: torch.device

    def __call__(self, images: Sequence[Regions]) -> tuple[Detections, ...]:
        """See ``Finder``."""
        return tuple(
            self.branch(self.prepare(image).to(self.device))[0].to("cpu") for image in images
        )


class ViewedBranch(nn.Module):
    """``branch`` on several views of each image. Each function of ``prepare`` turns a uint8 image
    (3, H, W) into a batch of one; ``compose`` merges their finders into one. Input batches hold
    images as read from files, with values from 0 to 255 in original size.
    """

    def __init__(
        self,
        branch: Branch,
        prepare: Sequence[Callable[[Regions], Batch]],
        compose: Callable[[Sequence[Finder]], Finder],
    ) -> None:
        super().__init__()
        self.branch, self.prepare, self.compose = branch, prepare, compose
        self.detector = branch.detector

    def forward(self, batch: Batch) -> tuple[Detections, ...]:
        """See ``Branch``."""
        pixels = batch.images.pixels
        finders = [BranchFinder(self.branch, prepare, pixels.device) for prepare in self.prepare]
        images = [
            image[:, :height, :width].to("cpu", torch.uint8)
            for image, (height, width) in zip(pixels, batch.images.sizes.tolist(), strict=True)
        ]
        return self.compose(finders)(images)


class AuxiliaryBranch(nn.Module):
    """Head ``name`` of ``scheme`` on the detector's encoder, with the head's own NMS. Raises
    UserError if there is no such head.
    """

    def __init__(self, detector: nn.Module, scheme: Collaborative, name: str) -> None:
        super().__init__()
        if name not in scheme.heads:
            raise unknown_branch(name, tuple(scheme.heads))
        self.detector, self.scheme, self.name = detector, scheme, name

    def forward(self, batch: Batch) -> tuple[Detections, ...]:
        """See ``Branch``."""
        detector: Detector = self.detector  # type: ignore[assignment]
        pyramid = self.scheme.auxiliary_pyramid(detector.encode(batch.images))
        found = self.scheme.head(self.name).predict(pyramid, batch.images)
        return in_original(found, batch.infos)


def in_original(found: Sequence[Detections], infos: Sequence[ImageInfo]) -> tuple[Detections, ...]:
    """Convert boxes from pixels of the network's input to pixels of the original images."""
    return tuple(
        replace(
            one,
            boxes_xyxy_px=one.boxes_xyxy_px / torch.tensor(info.scale * 2).to(one.boxes_xyxy_px),
        )
        for one, info in zip(found, infos, strict=True)
    )


def auxiliary_branch(
    name: str, detector: nn.Module, schemes: Mapping[str, nn.Module], held: Sequence[str]
) -> AuxiliaryBranch:
    """The branch of head ``name``; ``held``: the names of the tensors in the checkpoint. Raises
    UserError if no scheme has such a head or the checkpoint lacks its weights.
    """
    found = {k: s for k, s in schemes.items() if isinstance(s, Collaborative)}
    key = next((k for k, s in found.items() if name in s.heads), None)
    if key is None:
        raise unknown_branch(name, tuple(head for s in found.values() for head in s.heads))
    scheme = found[key]
    if not needed_tensors(key, scheme, name) <= set(held):
        raise UserError(
            f"evaluation.branch={name}: the checkpoint holds no weights of that head: give the "
            "run's best.ckpt or last.ckpt (model.safetensors has the detector alone)"
        )
    return AuxiliaryBranch(detector, scheme, name)


def needed_tensors(key: str, scheme: Collaborative, name: str) -> set[str]:
    """The names in a checkpoint of the tensors of head ``name`` of the scheme under ``key``."""
    parts = {f"heads.{name}": scheme.heads[name], "extra_level": scheme.extra_level}
    return {
        f"{key}.{part}.{tensor}" for part, module in parts.items() for tensor in module.state_dict()
    }


def unknown_branch(name: str, heads: Sequence[str]) -> UserError:
    """The error for an unknown branch."""
    known = ", ".join([MAIN, *heads])
    return UserError(f"evaluation.branch={name}: the checkpoint's run had only {known}")
