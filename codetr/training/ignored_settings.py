"""Settings that only training uses: a command that would ignore one refuses it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from codetr.errors import UserError
from codetr.overrides import is_within, key_of

TRAINING_PARTS = ("optimizer", "schedule", "callbacks", "checkpointing")
"""Groups that come with an experiment."""
OF_MODEL = ("scheme", "supervision", "aux_heads", "num_classes")
"""Keys that our checkpoints record, and that the experiment sets for an official file."""
OF_WEIGHTS = ("data.mean", "data.std", "data.size_divisor")
"""Keys of the preprocessing, which our checkpoints record."""
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
"""Keys of evaluation, for a command that evaluates nothing."""
NOT_RECORDED = (*TRAINING_PARTS, "trainer", "logger", "ops", "debug", "sweep")
"""Keys without meaning for a converted file: they affect neither its model nor its evaluation."""
REMEDY = {
    "trainer.limit_val_batches": "give trainer.limit_test_batches, which limits evaluation",
    "data.batch_size": "give data.eval_batch_size",
    "augmentation.train": "give augmentation.eval",
}


def require_effect(
    given: Sequence[str],
    ignored: Iterable[str],
) -> None:
    """Raise UserError for the first override whose key is one of ``ignored`` or below one."""
    names = tuple(ignored)
    for override in given:
        key = key_of(override)
        if is_within(key, names):
            remedy = REMEDY.get(key, "leave it out")
            raise UserError(f"{override.removeprefix('++')}: changes nothing here: {remedy}")


def ignored_in_evaluation(checkpoint: str, foreign: tuple[str, ...]) -> tuple[str, ...]:
    """The keys that evaluation of a checkpoint ignores. A model with a ``foreign`` prefix is
    described by its experiment and further settings.
    """
    of_model = () if checkpoint.startswith(foreign) else (*OF_MODEL, *OF_WEIGHTS)
    return (*TRAINING, *of_model, "trainer.limit_val_batches")
