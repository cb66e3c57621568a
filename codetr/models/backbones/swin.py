"""Swin Transformer (Liu et al., ICCV 2021), as detectors use it: images of any size.

The arithmetic and the parameter names are those of the original Swin code, which the official
Co-DETR has as ``SwinTransformerV1`` (projects/models/swin_transformer.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from codetr.errors import UserError
from codetr.models.backbones.swin_stages import (
    PATCH,
    PatchEmbedding,
    initialise,
    swin_stages,
)
from codetr.models.backbones.swin_weights import load_swin_weights
from codetr.models.backbones.weights import initial_weights
from codetr.structures import Pyramid


class SwinTransformer(nn.Module):
    """The trunk: pixels to one layer-normalised map per stage of ``out_indices``.

    ``depths``, ``heads``: blocks and attention heads of each stage; the width starts at
    ``embed_dim`` and doubles from stage to stage. The rate of stochastic depth grows linearly from
    0 in the first block to ``drop_path_rate`` in the last. The first ``checkpointed`` blocks
    recompute their activations in the backward pass. Stages after the last output are not built.
    """

    def __init__(
        self,
        embed_dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        out_indices: Sequence[int],
        drop_path_rate: float = 0.0,
        checkpointed: int = 0,
    ) -> None:
        super().__init__()
        self.out_indices = tuple(out_indices)
        self.patch_embed = PatchEmbedding(embed_dim)
        count = self.out_indices[-1] + 1
        self.layers = swin_stages(
            embed_dim, depths, heads, window, drop_path_rate, checkpointed, count
        )
        for i in self.out_indices:
            self.add_module(f"norm{i}", nn.LayerNorm(embed_dim * 2**i))
        self.apply(initialise)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to maps (B, C_i, H_i, W_i); H_0 = ceil(H / 4), H_i+1 = ceil(H_i / 2)."""
        maps = []
        cells = self.patch_embed(pixels)
        for i, stage in enumerate(self.layers):
            output, cells = stage(cells)
            if i in self.out_indices:
                maps.append(self.get_submodule(f"norm{i}")(output).permute(0, 3, 1, 2))
        return tuple(maps)


class SwinBackbone(nn.Module):
    """Feature maps of a Swin Transformer, equal to the official ones for images of any size.

    Args:
        name: timm's name of the pretrained weights, tag included.
        embed_dim, depths, heads, window: the architecture, see ``SwinTransformer``.
        out_indices: which stages to give, ascending; stage i has stride 4 * 2**i.
        pretrained: fetch the weights of ``name`` from timm's hub.
        weights: a file instead; see ``load_swin_weights`` for its kinds.
        drop_path_rate: of stochastic depth, at the last block.
        checkpointed: number of blocks that recompute their activations in the backward pass (less
            memory, more time), from the first; true: all.
        frozen_stages: numbered as officially: 0 freezes the patch embedding, k > 1 the first
            k - 1 stages too (1 adds nothing: it stands for the absolute positions that no recipe
            uses); -1 nothing. What is frozen stays in evaluation mode.
        mean, std: see ``TimmBackbone``.

    Raises UserError for stages that are not there, two sources of weights, and weights that do
    not fit.
    """

    def __init__(
        self,
        name: str,
        embed_dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrained: bool = False,
        weights: str | None = None,
        drop_path_rate: float = 0.0,
        checkpointed: int | bool = 0,
        frozen_stages: int = -1,
        mean: tuple[float, float, float] = (123.675, 116.28, 103.53),
        std: tuple[float, float, float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)
        indices = tuple(out_indices)
        check_architecture(name, embed_dim, depths, heads)
        _check_stages(name, len(depths), indices, frozen_stages)
        self.channels = tuple(embed_dim * 2**i for i in indices)
        self.strides = tuple(PATCH * 2**i for i in indices)
        count = sum(depths) if checkpointed is True else int(checkpointed)
        self.body = SwinTransformer(
            embed_dim, depths, heads, window, indices, drop_path_rate, count
        )
        if initial := initial_weights(name, pretrained, weights):
            load_swin_weights(self.body, *initial)
        frozen = [self.body.patch_embed, *self.body.layers[: max(frozen_stages - 1, 0)]]
        self._frozen = frozen if frozen_stages >= 0 else []
        for module in self._frozen:
            module.requires_grad_(False)
        self.train()

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of all stages."""
        stages: Any = self.body.layers
        return [block for stage in stages for block in stage.blocks]

    def forward(self, pixels: Tensor, padding: Tensor | None = None) -> Pyramid:
        """(B, 3, H, W) normalised pixels to maps (B, C_l, H_l, W_l)."""
        return Pyramid(maps=self.body(pixels), strides=self.strides)

    def train(self, mode: bool = True) -> SwinBackbone:
        """As ``nn.Module.train``, but frozen stages drop no paths."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def check_architecture(
    name: str, embed_dim: int, depths: Sequence[int], heads: Sequence[int]
) -> None:
    """Raises UserError unless every stage has a depth and a number of heads that divides its
    width.
    """
    if len(depths) != len(heads):
        raise UserError(
            f"backbone {name}: model.backbone.depths={list(depths)} and "
            f"model.backbone.heads={list(heads)} differ in length: give one number "
            "per stage in each"
        )
    for i, count in enumerate(heads):
        if embed_dim * 2**i % count:
            raise UserError(
                f"backbone {name}: the {count} heads of stage {i} do not divide its width "
                f"{embed_dim * 2**i}: change model.backbone.heads or model.backbone.embed_dim"
            )


def _check_stages(name: str, stages: int, indices: tuple[int, ...], frozen_stages: int) -> None:
    if not indices or list(indices) != sorted(set(indices) & set(range(stages))):
        raise UserError(
            f"backbone {name}: model.backbone.out_indices={list(indices)}: give stages from 0 to "
            f"{stages - 1}, ascending"
        )
    if frozen_stages > indices[-1] + 2:
        raise UserError(
            f"backbone {name}: model.backbone.frozen_stages={frozen_stages}, but its "
            f"{indices[-1] + 1} stages are frozen at {indices[-1] + 2}: choose at most that, or -1"
        )
