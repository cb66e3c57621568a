"""Any backbone of timm that can give feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import timm
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from codetr.errors import UserError
from codetr.models.backbones.frozen_norm import freeze_batch_norms
from codetr.models.backbones.hub_access import hub_access
from codetr.models.backbones.same_padding import simplify_same_padding
from codetr.models.backbones.weights import load_named_weights, read_weights, require_one_source
from codetr.structures import Pyramid

FETCHING = frozenset({"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"})
"""Arguments of ``timm.create_model`` that say which files it reads."""


class TimmBackbone(nn.Module):
    """Feature maps of a timm model, by ``features_only``.

    Args:
        name: timm's model name, for example ``resnet50`` or ``swin_large_patch4_window12_384``.
        out_indices: which of the model's feature levels to give.
        pretrained: fetch timm's default weights from its hub.
        weights: a .safetensors or .pth file with timm's parameter names instead.
        frozen_norm: batch norm with fixed statistics and affine parameters (the recipes' choice
            when weights are pretrained).
        frozen_stages: everything up to and including this feature level gets no gradient: in a
            ResNet 0 is the stem, 1 the stem and the first stage; -1 freezes nothing.
        model_args: further arguments of the timm model, such as ``drop_path_rate``; none that would
            have timm read weights or other files.
        mean, std: RGB from 0 to 255, the normalisation that the weights expect. For the data
            (``data.mean=${model.backbone.mean}``); the backbone does not use them.

    Raises UserError for a name that timm does not know or that has no feature maps, or that stands
    for a file or a repository, for a feature level that cannot be frozen, and for weights that
    cannot be fetched.
    """

    def __init__(
        self,
        name: str,
        out_indices: tuple[int, ...] = (1, 2, 3, 4),
        pretrained: bool = False,
        weights: str | None = None,
        frozen_norm: bool = True,
        frozen_stages: int = -1,
        model_args: Mapping[str, Any] | None = None,
        mean: tuple[float, float, float] = (123.675, 116.28, 103.53),
        std: tuple[float, float, float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)
        require_one_source(name, pretrained, weights)
        if ":" in name or "/" in name:
            raise UserError(
                f"backbone {name}: is a path, not a timm model: give a name from "
                "timm.list_models(), and model.backbone.weights=FILE"
            )
        for key in sorted(FETCHING.intersection(model_args or {})):
            raise UserError(
                f"backbone {name}: model.backbone.model_args.{key} would make timm fetch a file: "
                "give model.backbone.weights=FILE instead"
            )
        try:
            with hub_access(name) if pretrained else nullcontext():
                body: Any = timm.create_model(
                    name,
                    features_only=True,
                    pretrained=pretrained,
                    out_indices=tuple(out_indices),
                    **(model_args or {}),
                )
        except (RuntimeError, AttributeError) as error:
            raise UserError(
                f"timm cannot build backbone '{name}' with feature maps ({error}): see "
                "timm.list_models() for names"
            ) from error
        self.channels: tuple[int, ...] = tuple(body.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(body.feature_info.reduction())
        # Swin gives (B, H, W, C). The shape alone cannot tell: H may equal C.
        self.channels_last = getattr(body, "output_fmt", None) == "NHWC"
        if weights:
            load_named_weights(body, read_weights(weights), weights)
        if frozen_norm:
            body = freeze_batch_norms(body)
        for module in body.modules():
            if isinstance(module, PatchEmbed):  # Swin: images of any size, padded by zeros
                module.dynamic_img_pad = True  # type: ignore[misc]  # final for TorchScript
        simplify_same_padding(body)
        self.body: nn.Module = body
        if frozen_stages >= 0:
            self._freeze([level["module"] for level in body.feature_info.info], frozen_stages)

    def _freeze(self, levels: list[str], stages: int) -> None:
        """Stop gradients of all modules up to and including feature level ``stages``; ``levels``
        are the names of the modules that end the levels.
        """
        if stages >= len(levels):
            raise UserError(
                f"model.backbone.frozen_stages={stages}, but this backbone has levels 0 to "
                f"{len(levels) - 1}: choose one of them, or -1"
            )
        # features_only may flatten names: blocks.1 becomes blocks_1
        prefixes = (levels[stages] + ".", levels[stages].replace(".", "_") + ".")
        # Modules, not parameters: the stem of a ResNet ends with an activation, which has none
        modules = list(self.body.named_modules())
        inside = [i for i, (key, _) in enumerate(modules) if f"{key}.".startswith(prefixes)]
        if not inside:
            raise UserError(
                f"model.backbone.frozen_stages={stages}: where level {levels[stages]} of this "
                "backbone ends is unknown: set model.backbone.frozen_stages=-1"
            )
        for _, module in modules[: inside[-1] + 1]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def forward(self, pixels: Tensor, padding: Tensor | None = None) -> Pyramid:
        """(B, 3, H, W) normalised pixels to maps (B, C_l, H_l, W_l)."""
        maps = self.body(pixels)
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return Pyramid(maps=tuple(maps), strides=self.strides)
