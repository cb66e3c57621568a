"""Numbers of parameters by arithmetic on official shapes, without any of our code.

Frozen batch norms count with weight and bias, as mmdet counts them. Sources: the fact sheets of
the official checkpoints, and the official configurations.
"""

from __future__ import annotations

from collections.abc import Sequence

DIM, HEADS, POINTS, LAYERS = 256, 8, 4, 6
FROZEN_NORM_R50, FROZEN_NORM_R101 = 53120, 105344
"""Weights and biases of the batch norms of ResNets."""


def linear(inputs: int, outputs: int, bias: bool = True) -> int:
    return inputs * outputs + outputs * bias


def conv(inputs: int, outputs: int, kernel: int, bias: bool = False) -> int:
    return kernel * kernel * inputs * outputs + outputs * bias


def norm(width: int) -> int:
    return 2 * width


def resnet50() -> int:
    return resnet((3, 4, 6, 3))


def resnet(depths: Sequence[int]) -> int:
    """With bottlenecks."""
    total = conv(3, 64, 7) + norm(64)
    width = 64
    for blocks, inner in zip(depths, (64, 128, 256, 512), strict=True):
        outer = 4 * inner
        total += conv(width, outer, 1) + norm(outer)  # the shortcut of the first block
        for _ in range(blocks):
            total += conv(width, inner, 1) + conv(inner, inner, 3) + conv(inner, outer, 1)
            total += 2 * norm(inner) + norm(outer)
            width = outer
    return total


def swin(dim: int, depths: Sequence[int], heads: int, window: int, maps: int) -> int:
    """``heads`` of the first stage; the last ``maps`` stages have a norm for their output."""
    total = conv(3, dim, 4, bias=True) + norm(dim)
    for stage, depth in enumerate(depths):
        width = dim * 2**stage
        block = 2 * norm(width) + linear(width, 3 * width) + linear(width, width)
        block += (2 * window - 1) ** 2 * heads * 2**stage  # relative position biases
        block += linear(width, 4 * width) + linear(4 * width, width)
        total += depth * block
        if stage < 3:
            total += norm(4 * width) + linear(4 * width, 2 * width, bias=False)
        if stage >= 4 - maps:
            total += norm(width)
    return total


def eva02_large() -> int:
    dim, hidden, depth = 1024, 2730, 24
    attention = 3 * linear(dim, dim, bias=False) + 2 * dim + linear(dim, dim)
    feed_forward = 2 * linear(dim, hidden) + norm(hidden) + linear(hidden, dim)
    block = attention + feed_forward + 2 * norm(dim)
    positions = (1 + 32 * 32) * dim  # one of them for a class token
    return conv(3, dim, 16, bias=True) + positions + depth * block + norm(dim)


def channel_mapper(channels: Sequence[int], bias: bool = False) -> int:
    levels = sum(conv(c, DIM, 1, bias) + norm(DIM) for c in channels)
    return levels + conv(channels[-1], DIM, 3, bias) + norm(DIM)


def simple_pyramid(width: int = 1024) -> int:
    half, quarter = width // 2, width // 4

    def lateral(channels: int) -> int:
        return conv(channels, DIM, 1) + conv(DIM, DIM, 3) + 2 * norm(DIM)

    double = conv(width, half, 3) + norm(half)
    p2 = double + conv(half, quarter, 3) + norm(quarter) + lateral(quarter)
    p6 = conv(width, width, 3) + norm(width) + lateral(width)
    return p2 + double + lateral(half) + lateral(width) + lateral(width) + p6


def deformable_attention(levels: int) -> int:
    samples = HEADS * levels * POINTS
    return linear(DIM, 2 * samples) + linear(DIM, samples) + 2 * linear(DIM, DIM)


def feed_forward(hidden: int) -> int:
    return linear(DIM, hidden) + linear(hidden, DIM)


def encoder(levels: int, layers: int = LAYERS, hidden: int = 2048) -> int:
    layer = deformable_attention(levels) + feed_forward(hidden) + 2 * norm(DIM)
    return levels * DIM + layers * layer  # with the level embeddings


def decoder(levels: int, hidden: int = 2048) -> int:
    self_attention = linear(DIM, 3 * DIM) + linear(DIM, DIM)
    layer = self_attention + deformable_attention(levels) + feed_forward(hidden) + 3 * norm(DIM)
    return LAYERS * layer


def branch(classes: int) -> int:
    """A class embedding and a box embedding."""
    return linear(DIM, classes) + 2 * linear(DIM, DIM) + linear(DIM, 4)


def proposals() -> int:
    return linear(DIM, DIM) + norm(DIM)


def dino_transformer(levels: int, queries: int, layers: int = LAYERS) -> int:
    anchor_position = linear(2 * DIM, DIM) + linear(DIM, DIM)
    parts = encoder(levels, layers) + proposals() + queries * DIM
    return parts + decoder(levels) + anchor_position + norm(DIM)


def deformable_transformer(queries: int, levels: int = 4) -> int:
    position = linear(2 * DIM, 2 * DIM) + norm(2 * DIM)
    return encoder(levels) + proposals() + queries * DIM + position + decoder(levels)


def auxiliary_heads(classes: int, levels: int, convolutional: bool = False) -> int:
    """RPN, regions and ATSS on ``levels`` maps, the last of which is made for them."""
    rpn = conv(DIM, DIM, 3, bias=True) + conv(DIM, 9, 1, bias=True) + conv(DIM, 36, 1, bias=True)
    regions = linear(49 * DIM, 1024) + linear(1024, classes + 1)
    if convolutional:
        regions += 4 * (conv(DIM, DIM, 3) + norm(DIM)) + linear(1024, 4)
    else:
        regions += linear(1024, 1024) + linear(1024, 4 * classes)
    atss = 2 * (conv(DIM, DIM, 3) + norm(DIM)) + conv(DIM, classes + 4 + 1, 3, bias=True) + levels
    return conv(DIM, DIM, 3, bias=True) + norm(DIM) + rpn + regions + atss


def co_dino(
    trunk: int, classes: int = 80, queries: int = 900, layers: int = 6, convolutional: bool = False
) -> int:
    """``trunk``: backbone and neck."""
    embeddings = 2 * (linear(2 * DIM, DIM) + norm(DIM))  # of the positive queries
    scaffolding = embeddings + classes * DIM + auxiliary_heads(classes, 6, convolutional)
    head = (LAYERS + 1) * branch(classes)
    return trunk + dino_transformer(5, queries, layers) + head + scaffolding


def mask_fcn(classes: int) -> int:
    """Of the region head: four convolutions, a transposed one, a map per class."""
    return 4 * conv(DIM, DIM, 3, True) + conv(DIM, DIM, 2, True) + conv(DIM, classes, 1, True)


def mask_refine(classes: int) -> int:
    """On the detector: three stages that halve the width, and the score of a mask."""
    total = 3 * (conv(DIM, DIM, 3) + norm(DIM))  # of the region, of the whole image twice
    for stage in range(3):
        width = DIM // 2**stage
        total += linear(DIM, width) + linear(2 * width + 1, width)
        total += 3 * conv(width, width, 3, bias=True) + linear(width, width)
        total += linear(width, width // 2 - 1) + linear(width, classes)
    total += linear(DIM // 8, 1)
    scores = conv(DIM + 1, DIM, 3) + conv(DIM, DIM, 3) + 2 * norm(DIM)
    return total + scores + linear(49 * DIM, 1024) + linear(1024, classes)


def deformable_pp(trunk: int, classes: int = 80, queries: int = 300) -> int:
    return trunk + deformable_transformer(queries) + (LAYERS + 1) * branch(classes)


def feature_embedding() -> int:
    return linear(2 * DIM, 2 * DIM) + norm(2 * DIM) + linear(DIM, DIM) + norm(DIM) + 1


def co_deformable(trunk: int, classes: int = 80, queries: int = 300) -> int:
    scaffolding = 2 * feature_embedding() + auxiliary_heads(classes, 5)
    return deformable_pp(trunk, classes, queries) + scaffolding


def deformable_one_stage(trunk: int, classes: int = 80, queries: int = 300) -> int:
    """All decoder layers share one branch; the queries are (queries, 512) and read off points."""
    layers = encoder(4, hidden=1024) + decoder(4, hidden=1024)
    return trunk + layers + queries * 2 * DIM + linear(DIM, 2) + branch(classes)


def dino(trunk: int, levels: int, classes: int = 91) -> int:
    """All decoder layers share one branch, the proposals have another; a label table."""
    transformer = dino_transformer(levels, 900)
    return trunk + transformer + 2 * branch(classes) + classes * DIM


def widths(finest: int, count: int) -> list[int]:
    """Channels of the last ``count`` of four maps."""
    return [finest * 2**i for i in range(4)][4 - count :]


R50_C2 = resnet50() + channel_mapper(widths(256, 4))
R50_C3 = resnet50() + channel_mapper(widths(256, 3))


def swin_trunk(dim: int, depth: int, heads: int, window: int, maps: int) -> int:
    """``depth`` of the third stage."""
    body = swin(dim, (2, 2, depth, 2), heads, window, maps)
    return body + channel_mapper(widths(dim, maps))


SWIN_L = swin_trunk(192, 18, 6, 12, 4)
VIT_L = eva02_large() + simple_pyramid()
COCO, LVIS, OBJECTS365 = 80, 1203, 365

EXPECTED: dict[str, tuple[int, int]] = {
    # experiment: number of classes, number of parameters
    **{
        f"co_dino_5scale_{name}": (COCO, co_dino(R50_C2))
        for name in ("r50_1x_coco", "lsj_r50_1x_coco", "lsj_r50_3x_coco")
    },
    **{
        f"co_dino_5scale_9encoder_lsj_r50_{name}_coco": (COCO, co_dino(R50_C2, layers=9))
        for name in ("1x", "3x")
    },
    **{
        f"co_dino_5scale_{augmentation}swin_large_{n}_coco": (COCO, co_dino(SWIN_L))
        for augmentation in ("", "lsj_")
        for n in ("1x", "2x", "3x")
    },
    "co_dino_5scale_swin_large_16e_o365tococo": (COCO, co_dino(SWIN_L)),
    "co_dino_5scale_r50_1x_lvis": (LVIS, co_dino(R50_C2, LVIS)),
    "co_dino_5scale_lsj_r50_1x_lvis": (LVIS, co_dino(R50_C2, LVIS)),
    "co_dino_5scale_swin_large_3x_lvis": (LVIS, co_dino(SWIN_L, LVIS)),
    "co_dino_5scale_lsj_swin_large_3x_lvis": (LVIS, co_dino(SWIN_L, LVIS)),
    "co_dino_5scale_swin_large_16e_o365tolvis": (LVIS, co_dino(SWIN_L, LVIS)),
    "co_dino_5scale_swin_large_22e_o365": (OBJECTS365, co_dino(SWIN_L, OBJECTS365)),
    "co_dino_5scale_vit_large_coco": (COCO, co_dino(VIT_L, COCO, 1500, convolutional=True)),
    "co_dino_5scale_vit_large_26e_o365": (
        OBJECTS365,
        co_dino(VIT_L, OBJECTS365, 1500, convolutional=True),
    ),
    "co_dino_5scale_lsj_vit_large_lvis": (LVIS, co_dino(VIT_L, LVIS)),
    "co_dino_5scale_vit_large_coco_instance": (
        COCO,
        co_dino(VIT_L, COCO, 1500, convolutional=True) + mask_refine(COCO),
    ),
    "co_dino_5scale_lsj_vit_large_lvis_instance": (LVIS, co_dino(VIT_L, LVIS) + mask_refine(LVIS)),
    "co_deformable_detr_r50_1x_coco": (COCO, co_deformable(R50_C3)),
    "co_deformable_detr_mask_r50_1x_coco": (COCO, co_deformable(R50_C3) + mask_fcn(COCO)),
    **{
        f"co_deformable_detr_swin_{size}_{n}_coco": (COCO, co_deformable(swin_trunk(*shape, 3)))
        for size, shape in {
            "tiny": (96, 6, 3, 7),
            "small": (96, 18, 3, 7),
            "base": (128, 18, 4, 12),
            "large": (192, 18, 6, 12),
        }.items()
        for n in (("1x",) if size == "large" else ("1x", "3x"))
    },
    "co_deformable_detr_swin_large_900q_3x_coco": (
        COCO,
        co_deformable(swin_trunk(192, 18, 6, 12, 3), queries=900),
    ),
    "deformable_detr_pp_r50_1x_coco": (COCO, deformable_pp(R50_C3)),
    **{
        f"deformable_detr_r50_{n}_coco": (COCO, deformable_one_stage(R50_C3))
        for n in ("1x", "3x", "50e")
    },
    **{
        f"co_deformable_detr_one_stage_r50_{n}_coco": (
            COCO,
            deformable_one_stage(R50_C3) + 2 * feature_embedding() + auxiliary_heads(COCO, 5),
        )
        for n in ("1x", "3x")
    },
    "dino_4scale_r50_1x_coco": (91, dino(resnet50() + channel_mapper(widths(256, 3), True), 4)),
    "dino_5scale_r50_1x_coco": (91, dino(resnet50() + channel_mapper(widths(256, 4), True), 5)),
}
