"""Building objects from the configuration in a file, which may not be trustworthy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

from codetr.checkpoints.plain import plain
from codetr.errors import UserError, user_error

PARTS: Mapping[str, str] = {
    "codetr.classification": "Sigmoid Softmax",
    "codetr.supervision.assigners": (
        "AnchorMatcher FocalCost HungarianMatcher ProbabilityCost TopKAssigner"
    ),
    "codetr.supervision.assigners.atss": "AtssAssigner",
    "codetr.supervision.assigners.max_iou": "MaxIouAssigner",
    "codetr.supervision.assigners.paa": "PaaAssigner",
    "codetr.supervision.assigners.sampling": "RandomSampler",
    "codetr.supervision.aux_heads.anchors": "AnchorGrid DeltaCoder PointGrid",
    "codetr.supervision.aux_heads.atss": "AtssHead",
    "codetr.supervision.aux_heads.fcos": "FcosHead",
    "codetr.supervision.aux_heads.gfl": "GflHead",
    "codetr.supervision.aux_heads.layers": "SingleScaleAdapter",
    "codetr.supervision.aux_heads.paa": "PaaHead",
    "codetr.supervision.aux_heads.rcnn": "RcnnHead",
    "codetr.supervision.aux_heads.retinanet": "RetinaNetHead",
    "codetr.supervision.aux_heads.roi_heads": "ConvFcBoxHead FcnMaskHead SharedFcBoxHead",
    "codetr.supervision.aux_heads.rpn": "ProposalSelection Rpn",
    "codetr.supervision.aux_heads.selection": "DenseSelection VotedSelection",
    "codetr.models.backbones": (
        "Eva02Backbone SwinBackbone TimmBackbone TokenSwinBackbone TokenVitBackbone"
    ),
    "codetr.models.backbones.eva02": "Eva02Trunk",
    "codetr.supervision.criteria": (
        "FederatedClassification FocalClassification QualityClassification SetCriterion "
        "SoftmaxClassification"
    ),
    "codetr.data.augment": (
        "Apply Chain Choice DetrAugmentation EvalResize FlipOnly KeepVisible LsjAugmentation "
        "LsjEval PadToCanvas RandomCrop RandomShortSide ResizeAndCrop ScaleJitter"
    ),
    "codetr.data.copy_paste": "CopyPaste",
    "codetr.data.custom": "CustomFolder",
    "codetr.data.datamodule": "CocoDataModule",
    "codetr.data.mixing": "Mosaic MixUp",
    "codetr.data.ground_truth": "DetrFilter MmdetFilter",
    "codetr.data.repeat": "RepeatFactor image_counts",
    "codetr.data.sources": "CocoFolder",
    "codetr.data.synthetic": "SyntheticScenes",
    "codetr.data.teachers": "Parallel Suppression TeacherBoxes",
    "codetr.models.detectors": "Detr",
    "codetr.evaluation": "CocoEvaluator Postprocess lvis_evaluator",
    "codetr.nms": "ClasswiseNms Nms SoftNms",
    "codetr.models.heads": "DetectionHead PerceptronHead TiedDetectionHead",
    "codetr.models.masks": "MaskBranch MaskIouHead RefineMaskHead",
    "codetr.models.necks": "ChannelMapper IdentityNeck Projection SimpleFeaturePyramid",
    "codetr.supervision.schemes": (
        "Collaborative CoordinateEmbedding CoordinateFeatureEmbedding Denoising Group Hybrid "
        "InstanceMasks Mixed OneToOne QueryDenoising Teacher"
    ),
    "codetr.supervision.schemes.mixed": "Branch",
    "codetr.models.transformers": (
        "AnchorPosition AnchorQueries AnchorSpatial ConditionalDecoder ConditionalDecoderLayer "
        "CrossFirstDecoderLayer DeformableDecoder DeformableDecoderLayer DeformableEncoder "
        "DeformableEncoderLayer DenseEncoder DenseEncoderLayer IdentityDecoder IdentityEncoder "
        "LearnedQueries MixedQueries Patterns PointQueries PointSpatial PositionedQueries "
        "ProjectedTokenQueries ProposalStage QueryTable ReadFirstDecoder TokenQueries "
        "UnknownLabel"
    ),
    "codetr.models.layers": "ScaleMlp",
    "codetr.supervision.overlaps": "PixelGiou RelativeGiou",
    "torch.nn": "BatchNorm2d GELU GroupNorm Identity LayerNorm PReLU ReLU SiLU",
    "torchvision.transforms.v2": (
        "ColorJitter GaussianBlur RandomGrayscale RandomHorizontalFlip "
        "RandomPhotometricDistort RandomVerticalFlip"
    ),
}
"""Classes that a file may instantiate, by module: parts of a model, its data and its evaluation.
None of them calls, imports or builds what its arguments name.
"""
NAMES = frozenset(f"{module}.{name}" for module in PARTS for name in PARTS[module].split())

Path = tuple[str | int, ...]
"""Keys and indices from the root of a configuration."""


def build_trusted(config: Any, source: str, trust: bool = False) -> Any:
    """Instantiate a part of a file's configuration: exactly the values that ``require_trusted`` has
    checked, which ``trust`` skips. Interpolations are rejected in any case.

    ``source`` is the file's name in messages. Raises UserError.
    """
    checked = plain(config, source, "configuration")
    if not trust:
        require_trusted(checked, source)
    return build_part(checked, source)


def build_part(checked: Any, source: str) -> Any:
    """Instantiate a configuration that was checked. Any exception of a constructor becomes a
    UserError of one line.
    """
    try:
        return instantiate(checked)
    except Exception as error:  # arguments from a file may cause any exception
        found = user_error(error)
        if found is not None:
            raise found from error
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(
            f"{source}: describes something that cannot be built ({reason[:300]}): check what was "
            "changed on the command line, or download the file again"
        ) from error


def require_trusted(config: Any, source: str, chosen: DictConfig | None = None) -> None:
    """Check every class that a ``plain`` configuration names, at any depth.

    A checkpoint names the classes to build its model from; one from a stranger could name any
    Python function. Allowed are the names of ``PARTS`` and those that the user's own configuration
    ``chosen`` has at the same place. ``source`` is the file's name in messages. Raises UserError
    for other names.
    """
    for path, target in targets(config):
        if isinstance(target, str) and target in NAMES:
            continue
        if chosen is None or _named_at(chosen, path) != target:
            raise UserError(
                f"{source}: asks to build '{str(target)[:200]}', which is not a part of codetr "
                "that a file may name: it could run any code. Give trust=true if it is a class of "
                "your own"
            )


def targets(config: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every ``_target_`` at any depth of dicts and lists, with its path."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield path, config["_target_"]
        for key, value in config.items():
            yield from targets(value, (*path, key))
    elif isinstance(config, list):
        for i, value in enumerate(config):
            yield from targets(value, (*path, i))


def _named_at(config: Any, path: Path) -> Any:
    """The ``_target_`` at a path of the user's configuration; None if it has none."""
    try:
        for key in (*path, "_target_"):
            if not isinstance(config, DictConfig | ListConfig):
                return None
            config = config[key]  # type: ignore[index]
    except (OmegaConfBaseException, KeyError, IndexError, TypeError):
        return None
    return config
