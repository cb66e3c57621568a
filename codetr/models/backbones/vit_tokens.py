"""Vision Transformer with detection tokens (YOLOS, arXiv 2106.00666)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from codetr.errors import UserError
from codetr.models.backbones.weights import LoadReport, initial_weights, load_named_weights
from codetr.structures import DetectionTokens, Pyramid

PATCH = 16
"""Pixels per side of a patch."""

_OWN = ("det_token", "mid_pos_embed")
"""Parameters that no image classifier has."""


class TokenVit(nn.Module):
    """Class token, patches and ``num_tokens`` detection tokens in one sequence, pre-norm blocks.

    Learned positions are those of images of ``table`` (height, width) pixels, interpolated for
    other sizes. With ``middle`` there are further ones, added after every block but the last. The
    MLP of a block has ``hidden`` units; ``dropout`` is applied to the outputs of its two branches.
    Parameter names are the official ones.
    """

    def __init__(
        self,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        hidden: int = 1536,
        num_tokens: int = 100,
        table: tuple[int, int] = (512, 864),
        middle: bool = True,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        checkpointed: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.num_tokens, self.checkpointed = dim, num_tokens, checkpointed
        self.grid = (table[0] // PATCH, table[1] // PATCH)
        length = 1 + math.prod(self.grid) + num_tokens
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.det_token = nn.Parameter(torch.empty(1, num_tokens, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, length, dim))
        self.mid_pos_embed = (
            nn.Parameter(torch.empty(depth - 1, 1, length, dim)) if middle else None
        )
        self.patch_embed = PatchEmbed(None, patch_size=PATCH, embed_dim=dim, output_fmt="NHWC")
        self.blocks = nn.ModuleList(
            Block(
                dim,
                heads,
                mlp_ratio=hidden / dim,
                qkv_bias=True,
                proj_drop=dropout,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
                drop_path=drop_path_rate * i / max(depth - 1, 1),
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The original's: normal with standard deviation 0.02, biases 0; the convolution keeps
        that of torch.
        """
        for name, parameter in self.named_parameters():
            if "patch_embed" in name or "norm" in name:
                continue
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) to a map (B, C, H // 16, W // 16) and tokens (B, Q, C)."""
        patches = self.patch_embed(pixels)
        grid = (patches.shape[1], patches.shape[2])
        images = patches.shape[0]
        learned = (self.cls_token, self.det_token)
        first, last = (tokens.expand(images, -1, -1) for tokens in learned)
        positions = self._positions(grid)
        x = torch.cat([first, patches.flatten(1, 2), last], dim=1) + positions[0]
        for i, block in enumerate(self.blocks):
            if i < self.checkpointed and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if i + 1 < len(positions):
                x = x + positions[i + 1]
        x = self.norm(x)
        cells = x[:, 1 : -self.num_tokens].unflatten(1, grid).permute(0, 3, 1, 2)
        return cells, x[:, -self.num_tokens :]

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """(1 or depth, 1, 1 + S + Q, C): before the first block, and after blocks, for patches on
        ``grid``.
        """
        tables: Tensor = self.pos_embed
        if self.mid_pos_embed is not None:
            tables = torch.cat([tables, self.mid_pos_embed[:, 0]])
        # As in the official code, only the number of patches is compared: a portrait image of as
        # many patches as the table's uses its rows without interpolation.
        if not torch.compiler.is_exporting() and grid[0] * grid[1] == math.prod(self.grid):
            return tables[:, None]
        ends = [1, tables.shape[1] - 1 - self.num_tokens, self.num_tokens]
        first, patches, last = tables.split(ends, dim=1)
        patches = resize_grid(patches, self.grid, grid)
        return torch.cat([first, patches, last], dim=1)[:, None]


class TokenVitBackbone(nn.Module):
    """A ``TokenVit`` as a backbone: its patches as one map of stride 16, and its tokens. It takes
    no padding mask, and attends to padding: images of a batch should have the same size.

    Args:
        name: timm's name of the classifier whose weights ``pretrained`` fetches.
        dim, depth, heads, hidden, num_tokens, table, middle, dropout: see ``TokenVit``.
        pretrained: fetch the weights of ``name`` from timm's hub.
        weights: a .safetensors or .pth file instead, with timm's (the official) names.
        drop_path_rate: of stochastic depth, at the last block.
        checkpointed: number of blocks that recompute their activations in the backward pass (less
            memory, more time), from the first; true: all.
        mean, std: see ``TimmBackbone``.

    Raises UserError for a width that the heads do not divide, two sources of weights, and weights
    that do not fit.
    """

    def __init__(
        self,
        name: str = "deit_small_patch16_224.fb_in1k",
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        hidden: int = 1536,
        num_tokens: int = 100,
        table: tuple[int, int] = (512, 864),
        middle: bool = True,
        pretrained: bool = False,
        weights: str | None = None,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        checkpointed: int | bool = 0,
        mean: tuple[float, float, float] = (123.675, 116.28, 103.53),
        std: tuple[float, float, float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(
                f"backbone {name}: the {heads} heads do not divide its width {dim}: change "
                "model.heads or model.dim"
            )
        self.mean, self.std = tuple(mean), tuple(std)
        self.channels: tuple[int, ...] = (dim,)
        self.strides: tuple[int, ...] = (PATCH,)
        count = depth if checkpointed is True else int(checkpointed)
        self.body = TokenVit(
            dim,
            depth,
            heads,
            hidden,
            num_tokens,
            (table[0], table[1]),
            middle,
            dropout,
            drop_path_rate,
            count,
        )
        if initial := initial_weights(name, pretrained, weights):
            load_classifier(self.body, *initial)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of the transformer."""
        return list(self.body.blocks)

    def forward(self, pixels: Tensor, padding: Tensor | None = None) -> Pyramid:
        """(B, 3, H, W) normalised pixels to one map (B, C, H // 16, W // 16) and the tokens."""
        cells, tokens = self.body(pixels)
        return Pyramid(
            maps=(cells,), strides=self.strides, detection=DetectionTokens(content=tokens)
        )


def load_classifier(body: TokenVit, weights: Mapping[str, Tensor], source: str) -> LoadReport:
    """Load an image classifier's ``weights`` into ``body`` in place; its positions are those of a
    square grid of patches, after that of the class token. (Where a distillation token has one too,
    the class token's is left out, as officially.) Positions of detection tokens stay as they are.

    Raises UserError where a tensor is missing or of another shape.
    """
    weights = dict(weights)
    own = body.pos_embed
    table = weights.get("pos_embed")
    if table is not None and table.shape != own.shape:
        if math.isqrt(table.shape[1] - 1) ** 2 != table.shape[1] - 1:
            table = table[:, 1:]
        side = math.isqrt(table.shape[1] - 1)
        if table.ndim != 3 or table.shape[1] != side**2 + 1 or table.shape[2] != body.dim:
            raise UserError(
                f"{source}: pos_embed of shape {tuple(table.shape)} is no table of a square grid "
                f"of width {body.dim}: give weights of the same architecture (see "
                "model.backbone.name)"
            )
        patches = resize_grid(table[:, 1:].float(), (side, side), body.grid)
        tokens = own.detach()[:, -body.num_tokens :].float()
        weights["pos_embed"] = torch.cat([table[:, :1].float(), patches, tokens], dim=1)
    return load_named_weights(body, weights, source, may_lack=_OWN.__contains__)


def resize_grid(tables: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Tables (N, h * w, C) of one grid (h, w) of patches to those of another, bicubic."""
    grids = tables.unflatten(1, old).permute(0, 3, 1, 2)
    resized = F.interpolate(grids, size=new, mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2)
