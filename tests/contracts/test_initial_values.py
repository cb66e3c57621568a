"""Every parameter of every model starts as in the official code.

Each name has one law, and each law is the official formula: for Co-DETR that of mmdet's
``init_weights``; for H-DETR, MS-DETR and DINO that of ``_reset_parameters``, which says the same
about everything with more than one dimension. One difference remains: those three copy a whole
layer before they draw its matrices, so that the biases of its feed-forward block start equal in all
layers; here, as in mmdet, they are drawn one by one.
"""

import math
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hydra.utils import instantiate
from tiny import composed, options
from torch import Tensor, nn

from codetr.supervision.schemes import CoordinateFeatureEmbedding

POINTS = ("deformable_detr", "deformable_refined", "vidt")
"""Models whose first anchors are points: they have no size, and that of the boxes starts small."""
DENSE = ("atss", "fcos", "gfl", "paa", "retinanet")
WIDE = [name for name in options("model") if not name.endswith(("small", "tiny", "yolos"))]
"""Models of published width; the small ones have the same parts and too few numbers to judge. YOLOS
is all backbone, but for its head."""


def uniform(bound: float, values: Tensor) -> None:
    """Fills the range ±``bound`` and no more, with the mean and the variance of its law."""
    count = values.numel()
    assert values.abs().max() <= bound
    if count < 30:  # too few to say more
        assert values.unique().numel() == count
        return
    assert values.abs().max() > bound * (1 - 30 / count)  # missed once in e^30
    assert abs(values.mean()) < 6 * bound / math.sqrt(3 * count)
    assert abs(values.square().mean() * 3 / bound**2 - 1) < 6 * math.sqrt(0.8 / count)


def normal(std: float, values: Tensor) -> None:
    """Has the mean, the variance and the kurtosis of its law."""
    scaled, count = values.double() / std, values.numel()
    assert abs(scaled.mean()) < 6 / math.sqrt(count)
    assert abs(scaled.square().mean() - 1) < 6 * math.sqrt(2 / count)
    assert abs(scaled.pow(4).mean() - 3) < 6 * math.sqrt(96 / count)


def constant(value: float, values: Tensor) -> None:
    assert values.allclose(torch.tensor(value), atol=0, rtol=1e-6)


def xavier(values: Tensor) -> None:
    """Fan in and fan out count the cells of a kernel."""
    fans = sum(values.shape[:2]) * math.prod(values.shape[2:])
    uniform(math.sqrt(6 / fans), values)


def kaiming_fan_out(values: Tensor) -> None:
    normal(math.sqrt(2 / (values.shape[0] * math.prod(values.shape[2:]))), values)


def torch_default(fan_in: int, values: Tensor) -> None:
    """Weights and biases of torch's layers alike."""
    uniform(1 / math.sqrt(fan_in), values)


def ring(heads: int, values: Tensor) -> None:
    """Head h looks along the angle 2 pi h / heads: one step at the first point, four at the last,
    a step being 1 in the larger of both coordinates.
    """
    points = values.view(heads, -1, 4, 2)
    for h in range(heads):
        angle = 2 * math.pi * h / heads
        x, y = math.cos(angle), math.sin(angle)
        step = torch.tensor([x, y]) / max(abs(x), abs(y))
        for p in range(4):
            assert points[h, :, p].allclose(step * (p + 1), atol=1e-5)


PRIOR = partial(constant, -math.log(99))
ZERO = partial(constant, 0.0)
Law = Callable[[Tensor], None]


def laws(width: int, hidden: int, heads: int) -> dict[str, Law]:
    """The law of the names that match, for a model of ``width`` and ``hidden`` units and
    ``heads`` auxiliary heads; the first match counts.
    """
    bias = partial(torch_default, width)
    return {
        r"neck\.project\..*": partial(torch_default, 256),  # channels of the thin ResNet
        # conditional attention, and what says where queries look
        r".*_attention\.(query|key)_\w+\.weight|.*_attention\.value\.weight": xavier,
        r".*_attention\.(query|key)_\w+\.bias|.*_attention\.value\.bias": bias,
        r".*(sine_scale|position_scale|wanted_size|reference_points)\.\d\.weight": xavier,
        r".*(sine_scale|position_scale|wanted_size|reference_points)\.\d\.bias": bias,
        r".*feed_forward\.activation\.weight": partial(constant, 0.25),
        r"decoder\.spatial\.embed\.mlp\.\d\.weight": xavier,
        r"decoder\.spatial\.embed\.mlp\.0\.bias": partial(torch_default, 2 * width),
        r"decoder\.spatial\.embed\.mlp\.2\.bias": bias,
        r"query_init\.(anchors|content\.label)|.*tables\.\d+\.anchors": partial(normal, 1.0),
        r".*norm\.weight|.*scales\.\d|.*extra_level\.1\.weight|neck\..*\.1\.weight": partial(
            constant, 1.0
        ),
        r".*norm\.bias|.*extra_level\.1\.bias|neck\..*\.bias": ZERO,
        r"neck\..*\.weight": xavier,
        # deformable attention, then multi-head attention
        r".*\.sampling_offsets\.bias": partial(ring, 8),
        r".*\.(sampling_offsets|attention_weights)\..*": ZERO,
        r".*\.(value_proj|output_proj|in_proj|out_proj)\.bias": ZERO,
        r".*\.(value_proj|output_proj|in_proj|out_proj)\.weight": xavier,
        r".*feed_forward\.(expand|contract)\.weight": xavier,
        r".*feed_forward\.expand\.bias": bias,
        r".*feed_forward\.contract\.bias": partial(torch_default, hidden),
        # queries
        r"encoder\.level_embed|.*\.content|query_init\.position|.*tables\.\d+\.position": partial(
            normal, 1.0
        ),
        r"(query_)?denoising\.label_embedding\.weight": partial(normal, 1.0),
        r"query_init\.reference_points\.bias": ZERO,
        r"query_init\.(stage\.project|position|reference_points)\.weight": xavier,
        r"query_init\.stage\.project\.bias": bias,
        r"query_init\.position\.bias": partial(torch_default, 2 * width),
        r"decoder\.anchor_position\.mlp\.\d\.weight": xavier,
        r"decoder\.anchor_position\.mlp\.0\.bias": partial(torch_default, 2 * width),
        r"decoder\.anchor_position\.mlp\.2\.bias": bias,
        # class and box embeddings
        r"head\.classify\.\d\.bias": PRIOR,
        r"head\.regress\.\d\.4\.weight": ZERO,
        r"head\.(classify|regress)\..*": bias,
        # auxiliary heads
        rf".*heads\.({'|'.join(DENSE)})\.cls\.bias": PRIOR,
        r".*(heads\.\w+|rpn)\.\w*(conv|cls|reg|centerness|iou|tower\.\d\.conv)\.weight": partial(
            normal, 0.01
        ),
        r".*box_head\.convs\.\d\.conv\.weight": kaiming_fan_out,
        r".*box_head\.fcs\.\d\.weight": xavier,
        r".*box_head\.cls\.weight": partial(normal, 0.01),
        r".*box_head\.reg\.weight": partial(normal, 0.001),
        r".*mask_head\.(convs\.\d\.conv|upsample|classify)\.weight": kaiming_fan_out,
        r".*collaborative\.heads\..*\.bias": ZERO,
        r".*extra_level\.0\..*": partial(torch_default, width * 9),
        # positive queries
        r".*embeddings\.\w+\.project(_feature)?\.weight": xavier,
        r".*embeddings\.\w+\.project\.bias": partial(torch_default, 2 * width),
        r".*embeddings\.\w+\.project_feature\.bias": bias,
        r".*embeddings\.\w+\.head_position": partial(uniform, math.sqrt(6 / (heads + 1))),
    }


def check(module: nn.Module, known: dict[str, Law]) -> set[str]:
    """Holds every parameter to its law, and gives the names that were checked."""
    checked = set()
    for name, values in module.named_parameters():
        law = next((law for pattern, law in known.items() if re.fullmatch(pattern, name)), None)
        assert law is not None, f"{name}: no law says how it starts"
        try:
            law(values.detach())
        except AssertionError as error:
            raise AssertionError(f"{name} does not start as officially") from error
        checked.add(name)
    return checked


def build(model: str, schemes: str, heads: str) -> tuple[nn.Module, nn.ModuleDict]:
    torch.manual_seed(0)
    overrides = [f"model={model}", f"scheme=[{schemes}]", f"aux_heads=[{heads}]", "num_classes=80"]
    cfg = composed([*overrides, "model.backbone.pretrained=false"])
    assert (cfg.model.dim, cfg.model.get("points", 4)) == (256, 4)
    if "num_tokens" in cfg.model.backbone:
        cfg.model.backbone.depths = [1, 1, 1, 1]
    elif "body" not in cfg.model.backbone:
        cfg.model.backbone = composed(["model/backbone=resnet10_thin"]).model.backbone
        count = {1: 1, 4: 3, 5: 4}[cfg.model.levels]
        cfg.model.backbone.out_indices = list(range(5 - count, 5))
    else:
        cfg.model.backbone.body.depth = 1
        cfg.model.backbone.body.global_blocks = [0]
    parts = nn.ModuleDict({name: instantiate(part) for name, part in cfg.scheme.items()})
    detector = instantiate(cfg.model.detector)
    detector.backbone = nn.Identity()  # starts from pretrained weights
    return detector, parts


@pytest.mark.parametrize("model", WIDE)
def test_detectors(model: str) -> None:
    detector, _ = build(model, "one_to_one", "")
    layers = getattr(detector.decoder, "decoder", detector.decoder).layers
    known = laws(256, layers[0].feed_forward.expand.out_features, 1)
    if model == "co_dino_vit":
        known = {r"neck\.levels\.\w+\.\d+\.weight": _pyramid} | known
    if model == "vidt":
        projected = r"query_init\.(content|position)\."
        known |= {projected + r"0\.weight": xavier, projected + r"\d\.bias": ZERO}
        known[projected + r"1\.weight"] = partial(constant, 1.0)
    known = {r"head\.regress\.\d\.4\.bias": ZERO} | known
    if model in POINTS:
        known = {r"head\.regress\.0\.4\.bias": _small_boxes} | known
    assert len(check(detector, known)) > 200


def _pyramid(values: Tensor) -> None:
    xavier(values) if values.dim() > 1 else constant(1.0, values)


def _small_boxes(values: Tensor) -> None:
    assert values.tolist() == [0, 0, -2, -2]


@pytest.mark.parametrize("model", [name for name in WIDE if name not in POINTS])
def test_all_layers_start_with_the_same_class_and_box_embeddings(model: str) -> None:
    """The official code draws one pair and copies it, the proposals' pair included."""
    head = build(model, "one_to_one", "")[0].head
    for first, *others in (
        list(head.classify),
        list(head.regress),
    ):
        for other in others:
            for a, b in zip(first.parameters(), other.parameters(), strict=True):
                assert torch.equal(a, b)


def caffe2_xavier(values: Tensor) -> None:
    uniform(math.sqrt(3 / values.shape[1]), values)


def test_the_mask_branch() -> None:
    overrides = ["model=co_dino", "masks=refine", "num_classes=80"]
    torch.manual_seed(0)
    branch = instantiate(composed(overrides).model.detector.mask_branch)
    known: dict[str, Law] = {
        r".*norm\.weight": partial(constant, 1.0),
        r".*bias": ZERO,
        r"scoring\.fcs\.0\.weight": caffe2_xavier,
        r"scoring\.iou\.weight": partial(normal, 0.01),
        r".*weight": kaiming_fan_out,
    }
    assert len(check(branch, known)) > 50


@pytest.mark.parametrize("head", [*DENSE, "rcnn", "rcnn_4conv1fc", "rcnn_mask"])
@pytest.mark.parametrize("model", ["co_dino", "co_deformable"])
def test_auxiliary_heads_and_positive_queries(model: str, head: str) -> None:
    _, parts = build(model, "collaborative", head)
    assert len(check(parts, laws(256, 2048, heads=1))) > 10


@pytest.mark.parametrize(
    ("model", "scheme"),
    [
        ("co_dino", "denoising"),
        ("ms_detr_pp", "mixed"),
        ("h_deformable", "hybrid"),
        ("dino_4scale", "denoising"),
        ("dn_detr", "query_denoising"),
        ("dab_detr", "group"),
        ("co_dino", "group"),
        ("deformable_detr", "group"),
    ],
)
def test_schemes_with_parameters_of_their_own(model: str, scheme: str) -> None:
    _, parts = build(model, scheme, "")
    assert check(parts, laws(256, 2048, heads=0))


def test_the_scalar_of_each_head_is_a_row_of_one_table() -> None:
    """Xavier's bound for a table of (K, 1): 1.414 for two heads. Many draws fill it."""
    torch.manual_seed(0)
    for heads in (1, 2, 5):
        draws = [CoordinateFeatureEmbedding(8, heads).head_position for _ in range(2000)]
        uniform(math.sqrt(6 / (heads + 1)), torch.cat(draws).detach())
    _, parts = build("co_deformable", "collaborative", "atss,rcnn")
    check(parts, laws(256, 2048, heads=2))
