"""The kind of each setting, by its name.

A name is the end of a key: ``dim`` matches ``model.dim`` and ``model.neck.dim``, ``body.dim`` only
``model.backbone.body.dim``, and ``.seed`` the whole key ``seed``. The longest match applies.
Settings without a rule follow the annotations of their constructor.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from codetr.settings.kinds import (
    AUTO,
    COUNT,
    FLAG,
    GROUP,
    INDEX,
    NULL,
    PART,
    PATH,
    PIXELS,
    POSITIVE,
    SHARE,
    TEXT,
    WEIGHT,
    Each,
    FolderName,
    Kind,
    Matching,
    OneOf,
    Real,
    Whole,
)

LAYERS = Whole(1, 1000)
WIDTH = Whole(1, 100_000)
SEED = Whole(0, 2**32 - 1)
COLOUR = Each(Real(0, 255), length=3)
SPREAD = Each(Real(0, 255, above=True), length=3)
SIDES = Each(PIXELS, least=1)
TURN = Real(-0.5, 0.5)
BELOW_ONE = Real(0, 1, below=True)
BATCHES = Whole(0) | Real(0, 1)
"""Batches per epoch: an integer is a number, a float a share of the epoch."""
ACCELERATOR = Matching("auto|cpu|gpu|cuda", "auto, cpu, gpu or cuda")
OTHER_SPLIT = (
    "; to evaluate another split, give data.source.val=NAME (data=custom) or "
    "data.source.val_annotations=FILE and data.source.val_images=FOLDER (data=coco)"
)
METRIC = Matching(
    r"val/(mask_)?A[PR](\d+|[smlrcf])?|loss(/.+)?", "val/AP or another metric such as val/AP50"
)

RULES: Mapping[str, tuple[tuple[Kind, str], ...]] = {
    "commands": (
        (FolderName(), ".name"),
        (SEED, "seed"),
        (FLAG, ".trust .pictures .fixed .share .strict"),
        (PATH | NULL, ".checkpoint .ckpt_path .source .out"),
        (OneOf("plain", "ema"), ".weights"),
        (Each(PIXELS, length=2) | NULL, ".size"),
        (COUNT, ".repeats"),
        (Whole(1, 100_000) | NULL, "num_classes"),
        (Each(TEXT | WEIGHT), ".tags"),
        (OneOf("auto", "triton", "numba", "torch"), ".ops.msda"),
        (OneOf("auto", "image", "level", "fixed_point"), ".ops.nms"),
        (PATH, ".paths.data .paths.runs .output"),
        (TEXT, ".device .host"),
        (Whole(1, 65535), ".port"),
        (BELOW_ONE, ".threshold"),
        (COUNT, ".batch"),
        (COUNT | NULL, ".images"),
        (Whole(0, 1000), ".shown"),
        (PART, ".analysis"),
        (OneOf(32, "32", "bf16"), ".precision"),
        (OneOf("onnx", "pt2"), ".format"),
        (COUNT | NULL, ".top_k .views.tile"),
        (SHARE, ".min_score"),
        (Each(Each(PIXELS, length=3), least=1), ".cases"),
        (Each(Real(0, 100, above=True), least=1), ".views.scales"),
        (BELOW_ONE, ".views.overlap"),
        (FLAG, ".views.flip"),
        (GROUP, ".data .model .supervision .augmentation .evaluation .optimizer .schedule"),
        (GROUP, ".trainer .paths .callbacks .checkpointing .logger .scheme .aux_heads .ops"),
        (GROUP, ".swept .views .finder"),
        (OneOf("lr", "batch_size"), ".tune"),
        (Real(0, 1000, above=True), ".finder.lr_min .finder.lr_max"),
        (Whole(10, 100_000), ".finder.steps"),
        (Real(1, 1000, above=True), ".finder.divergence"),
        (COUNT | NULL, ".finder.largest_batch"),
        (COUNT, ".finder.trial_steps"),
    ),
    "models": (
        (LAYERS, "decoder_layers encoder_layers num_layers body.depth"),
        (Whole(0, 1000), "model.encoder_layers encoder.num_layers neck.extra num_convs"),
        (WIDTH, "dim hidden channels normalized_shape embed_dim fc_dim stem_width"),
        (WIDTH, "query_init.width position_width last_width"),
        (Whole(1, 100_000) | NULL, "head.classification.background"),
        (Each(WIDTH, least=1), "model_args.channels"),
        (Whole(1, 64), "output_stride"),
        (Whole(0, 64), "num_patterns"),
        (Whole(1, 1000), "heads levels aux_levels num_levels points roi_size window bins"),
        (Each(Whole(1, 1000), least=1), "backbone.depths"),
        (Whole(1, 1000) | Each(Whole(1, 1000), least=1), "backbone.heads"),
        (Each(PIXELS, length=2), "backbone.table"),
        (Whole(1, 1000), "backbone.body.heads backbone.body.positions"),
        (COUNT, "num_queries denoising_queries positive_queries hybrid_queries max_queries"),
        (COUNT, "samples anchor_samples proposals_per_level proposals sampler.size"),
        (INDEX, "skip min_queries"),
        (BELOW_ONE, "dropout drop_path drop_path_rate"),
        (Whole(0, 1000), "checkpointed"),
        (Whole(0, 1000) | FLAG, "backbone.checkpointed"),
        (Whole(-1, 100), "frozen_stages"),
        (Each(Whole(0, 100), least=1, ascending=True), "out_indices"),
        (Each(Whole(0, 1000), ascending=True), "global_blocks"),
        (FLAG, "one_pass pretrained frozen_norm bias look_forward_twice refine two_stage"),
        (FLAG, "query_init.mixed per_query.content per_query.position per_query.anchors"),
        (TEXT, "backbone.name"),
        (PATH | NULL, "weights"),
        (COLOUR, "mean"),
        (SPREAD, "std"),
        (Real(0, 1, above=True), "eps"),
        (POSITIVE, "temperature"),
        (Real(-100, 100), "offset size_logit"),
        (OneOf("any_class", "objectness"), "rank_by"),
        (PART, "backbone neck encoder query_init decoder head decoder.layer encoder.layer"),
    ),
    "supervision": (
        (WEIGHT, "cls l1 giou cls_weight bbox_weight centerness_weight dfl_weight iou_weight"),
        (WEIGHT, "weight lambda_1 lambda_2 gamma reach teacher.background"),
        (SHARE, "alpha label_noise positive negative low_quality positive_share overlap score"),
        (WEIGHT, "box_noise"),
        (SHARE, "iou threshold assigner.share iou_threshold min_score"),
        (POSITIVE, "finest_side"),
        (COUNT, "groups repeats k per_level limit"),
        (Each(POSITIVE, length=4), "stds"),
        (INDEX | NULL, "head.classification.background"),
        (WEIGHT, "criterion.classification.background"),
        (OneOf("classes", "objectness"), "proposal_labels"),
        (GROUP, "collaborative.heads"),
        (PART, ".scheme.* .aux_heads.*"),
        (PART, "criterion matcher classification assigner selection sampler box_head rpn"),
    ),
    "data": (
        (PIXELS, "short long crop_long canvas source.size"),
        (SIDES, "shorts crop_shorts"),
        (Each(PIXELS, length=2, ascending=True), "crop_range"),
        (Each(Real(0, 100, above=True), length=2, ascending=True), "ratio"),
        (SHARE, "flip crop_probability"),
        (WEIGHT | Each(WEIGHT, length=2), "brightness contrast saturation"),
        (TURN | Each(TURN, length=2), "hue"),
        (FLAG, "antialias group_by_aspect data.cache scaled_decoding tolerate_broken"),
        (WEIGHT, "min_box_px min_visible_px max_shift_px"),
        (INDEX, "max_pasted"),
        (SHARE, "mix.probability"),
        (POSITIVE, "mix.alpha"),
        (INDEX | NULL, "mix.epochs"),
        (Each(Real(0, 1, above=True, below=True), length=2, ascending=True), "mix.centre"),
        (COUNT, "batch_size eval_batch_size size_divisor num_train num_val"),
        (Whole(0, 1000), "num_workers"),
        (COUNT | NULL, "num_images name_parts teacher_boxes.top_k"),
        (OneOf("equal_size", "padded"), "eval_batches"),
        (OneOf("train", "val", note=OTHER_SPLIT), "eval_split"),
        (PATH, "train_annotations val_annotations train_images val_images"),
        (PATH, "data.derived source.cache source.train source.val"),
        (Real(0, 1, above=True, below=True), "val_share"),
        (Each(PATH), "teachers"),
        (PATH | NULL, ".data.root"),
        (OneOf("auto", "upright", "stored", "scaled"), ".data.boxes"),
        (OneOf("auto", "xywh", "xyxy", "cxcywh"), "source.box_format"),
        (POSITIVE, ".data.max_megapixels .max_megapixels"),
        (Whole(8, 32) | NULL, ".data.grey_bits"),
        (GROUP, ".data.classes"),
        (Each(TEXT | FLAG | WEIGHT) | NULL, ".data.classes.keep"),
        (GROUP | NULL, ".data.classes.merge .data.classes.rename"),
        (PART, "data.source train_augmentation eval_augmentation augmentation.train"),
        (PART, "augmentation.eval ground_truth"),
    ),
    "evaluation": (
        (COUNT, "postprocess.max_detections"),
        (Each(COUNT, least=1, ascending=True) | COUNT | NULL, ".evaluation.max_detections"),
        (COUNT | NULL, "pre_nms"),
        (PART | NULL, "nms .panel"),
        (PART, "postprocess evaluator"),
        (TEXT, ".evaluation.branch"),
        (FLAG, ".evaluation.masks"),
    ),
    "optimizer": (
        (WEIGHT, "lr"),
        (SHARE, "weight_decay"),
        (Each(BELOW_ONE, length=2), "betas"),
        (FLAG, "decay_vectors scale_lr_with_batch"),
        (COUNT, "base_batch"),
        (Real(0, 1000), "lr_mult"),
        (Real(0, 1, above=True), "lr_decay"),
        (Whole(0, 1000), "depth"),
        (TEXT, "pattern"),
        (GROUP | NULL, "rules.*"),
    ),
    "schedule": (
        (Whole(1, 100_000) | PART, ".schedule.epochs"),
        (Whole(1, 100_000), "at_least at_most"),
        (Whole(1, 10**12), "images_seen"),
        (Each(POSITIVE, ascending=True), "milestones"),
        (SHARE, "schedule.gamma flat final warmup_start"),
        (Whole(0, 10_000_000), "warmup_steps"),
    ),
    "trainer": (
        (Whole(1, 100_000) | PART, ".trainer.max_epochs"),
        (COUNT | NULL, ".trainer.effective_batch"),
        (AUTO | FLAG, ".trainer.tf32 .trainer.channels_last"),
        (Each(OneOf("backbone", "encoder", "decoder")), ".trainer.compile"),
        (ACCELERATOR, ".trainer.accelerator"),
        (AUTO | Whole(-1, 100_000) | Each(Whole(0, 1000), least=1) | TEXT, ".trainer.devices"),
        (Whole(1, 100_000), ".trainer.num_nodes"),
        (TEXT | PART, ".trainer.strategy"),
        (POSITIVE, ".trainer.strategy.timeout.minutes"),
        (WEIGHT | NULL, ".trainer.gradient_clip_val"),
        (COUNT, ".trainer.log_every_n_steps"),
        (COUNT | NULL, ".trainer.check_val_every_n_epoch"),
        (Real(0, 1, above=True) | COUNT, ".trainer.val_check_interval"),
        (Whole(-1), ".trainer.num_sanity_val_steps"),
        (Real(0, 1, above=True) | COUNT, ".trainer.limit_train_batches"),
        (BATCHES, ".trainer.limit_val_batches .trainer.limit_test_batches"),
        (BATCHES, ".trainer.overfit_batches"),
        (FLAG | OneOf("warn"), ".trainer.deterministic"),
        (FLAG, ".trainer.benchmark .trainer.enable_model_summary"),
        (FLAG, ".trainer.use_distributed_sampler broadcast_buffers gradient_as_bucket_view"),
        (OneOf(None, "simple", "advanced", "pytorch") | PART, ".trainer.profiler"),
    ),
    "callbacks": (
        (PART | NULL, "callbacks.* checkpointing.* logger.*"),
        (METRIC, "monitor"),
        (OneOf("max", "min"), "mode"),
        (Whole(-1), "save_top_k"),
        (OneOf(1), ".checkpointing.best.save_top_k"),  # more would share the name best.ckpt
        (COUNT | NULL, "every_n_steps"),
        (POSITIVE | NULL, "every_minutes"),
        (WEIGHT, "checkpointing.last.seconds_apart"),
        (COUNT, "refresh_rate images patience length"),
        (Real(0, 1, below=True), "ema.decay"),
        (SHARE, "min_delta"),
        (FLAG, "check_on_train_epoch_end save_on_train_epoch_end verbose enable_version_counter"),
        (FLAG | NULL, "wandb.offline"),
        (FLAG, "wandb.per_layer wandb.checkpoints wandb.datasets"),
        (TEXT, "wandb.project"),
    ),
}


@cache
def _by_name() -> Mapping[tuple[str, ...], Kind]:
    return {
        tuple(name.split(".")): kind
        for rows in RULES.values()
        for kind, names in rows
        for name in names.split()
    }


def rule_for(key: tuple[str, ...]) -> Kind | None:
    """The kind of a setting by the parts of its key; None if no rule matches."""
    rules, parts = _by_name(), ("", *key)
    for start in range(len(parts)):
        ending = parts[start:]
        found = rules.get(ending) or rules.get((*ending[:-1], "*"))
        if found is not None and ending != ("*",):
            return found
    return None


def is_own(key: tuple[str, ...]) -> bool:
    """Whether a rule names the whole key: a setting, even if no constructor takes it."""
    return ("", *key) in _by_name()
