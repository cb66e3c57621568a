"""Settings that a command would ignore, and the error for a user who gives one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from codetr.errors import UserError
from codetr.overrides import is_within, key_of

TRAINING_PARTS = ("optimizer", "schedule", "callbacks", "checkpointing")
"""Groups of training that an experiment sets."""
MODEL_KEYS = ("scheme", "supervision", "aux_heads", "num_classes")
"""Keys recorded in our checkpoints; for an official file, the experiment sets them."""
PREPROCESSING_KEYS = ("data.mean", "data.std", "data.size_divisor")
"""Keys of the preprocessing that the weights were trained with, recorded in our checkpoints."""
_TRAINER = (
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "effective_batch"),
    *("gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches"),
    *("log_every_n_steps", "check_val_every_n_epoch", "val_check_interval"),
    *("num_sanity_val_steps", "limit_train_batches", "overfit_batches"),
)
_DATA = (
    *("batch_size", "train_augmentation", "group_by_aspect", "scaled_decoding"),
    *("mix", "repeat", "teachers", "teacher_boxes", "masks", "ground_truth"),
)
TRAINING = (
    *TRAINING_PARTS,
    *(f"trainer.{name}" for name in _TRAINER),
    *(f"data.{name}" for name in _DATA),
    *("augmentation.train", "augmentation.mix"),
)
"""Keys that only training uses."""
REPORTED = ("panel", "logger", "evaluation.evaluator", "evaluation.max_detections")
"""Keys of evaluation metrics, for a command that computes none."""
NOT_RECORDED = (*TRAINING_PARTS, "trainer", "logger", "ops", "debug", "sweep")
"""Keys that affect neither the model nor the evaluation of a converted file."""
REMEDY = {
    "trainer.limit_val_batches": "give trainer.limit_test_batches, which limits evaluation",
    "data.batch_size": "give data.eval_batch_size",
    "augmentation.train": "give augmentation.eval",
}


def require_effect(
    given: Sequence[str],
    ignored: Iterable[str],
) -> None:
    """Raise UserError for the first override of a key in ``ignored`` or below one of these."""
    names = tuple(ignored)
    for override in given:
        key = key_of(override)
        if is_within(key, names):
            remedy = REMEDY.get(key, "leave it out")
            raise UserError(f"{override.removeprefix('++')}: changes nothing here: {remedy}")


def ignored_in_evaluation(checkpoint: str, foreign: tuple[str, ...]) -> tuple[str, ...]:
    """The keys that the evaluation of a checkpoint ignores. One with a ``foreign`` prefix has no
    record, so that settings describe its model.
    """
    recorded = () if checkpoint.startswith(foreign) else (*MODEL_KEYS, *PREPROCESSING_KEYS)
    return (*TRAINING, *recorded, "trainer.limit_val_batches")
