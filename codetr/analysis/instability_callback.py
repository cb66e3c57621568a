"""Instability of matching, measured during training."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from codetr.analysis.instability import Matched, instability, match_queries
from codetr.analysis.subject import matcher_of
from codetr.errors import UserError
from codetr.models.detectors.protocol import Detector
from codetr.structures import Batch
from codetr.training.log_interval import FIRST_RANK_ONLY


class MatchingInstability(Callback):
    """Logs after every validation but the first how many queries of an image are matched with
    another object than in the previous validation: ``matching/layer0/IS``, and
    ``matching/layer0/order_free_IS`` for models with distinct anchors. The numbers are defined in
    ``codetr.analysis.instability`` and equal those of its analysis of every epoch's checkpoint.

    Uses the validated weights on the first ``images`` images (in total over all ranks, each with
    its own): one more forward pass over them, and their matching.
    """

    def __init__(self, images: int = 64, min_iou: float = 0.5, max_distance: float = 0.05) -> None:
        self.images, self.min_iou, self.max_distance = images, min_iou, max_distance
        self._before: dict[int, Matched] = {}
        self._now: dict[int, Matched] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise UserError if no scheme matches queries one to one."""
        if stage == "fit" and matcher_of(pl_module.schemes) is None:  # type: ignore[arg-type]
            raise UserError(
                "callbacks.instability: no scheme of this training matches queries with objects "
                "one to one: set it to null"
            )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Match the queries of the first images."""
        most = -(-self.images // trainer.world_size)
        if trainer.state.fn != "fit" or trainer.sanity_checking or len(self._now) >= most:
            return
        matcher = matcher_of(pl_module.schemes)  # type: ignore[arg-type]
        assert matcher is not None, "setup() comes first"
        seen = match_queries(pl_module.detector, matcher, batch)  # type: ignore[arg-type]
        ids = (info.image_id for info in batch.infos)
        self._now |= dict(zip(ids, seen, strict=True))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with the previous validation, image by image, and log the means over ranks."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        detector: Detector = pl_module.detector  # type: ignore[assignment]
        layers = detector.num_layers
        sums = torch.zeros(2, 2, layers)  # IS and order-free IS: sum, number of images
        for image in self._before.keys() & self._now.keys():
            pair = self._before[image], self._now[image]
            found = instability(*pair, self.min_iou, self.max_distance)
            sums += torch.stack([found.nan_to_num(), (~found.isnan()).double()], dim=1)
        self._before, self._now = self._now, {}
        on_device = sums.to(trainer.strategy.root_device)
        total = trainer.strategy.reduce(on_device, reduce_op="sum").cpu()  # type: ignore[union-attr]
        means = total[:, 0] / total[:, 1]
        values = {
            f"matching/layer{layer}/{name}": means[which, layer]
            for which, name in enumerate(("IS", "order_free_IS"))
            for layer in range(layers)
            if total[which, 1, layer] > 0
        }
        pl_module.log_dict(values, batch_size=1, **FIRST_RANK_ONLY)

    def state_dict(self) -> dict[str, Any]:
        """The matching that the next validation is compared with, in plain types. A list per key,
        since small images may have fewer queries than others.
        """
        seen = self._before
        if not seen:
            return {}
        return {
            "images": list(seen),
            "objects": [matched.objects for matched in seen.values()],
            "anchors": [matched.anchors for matched in seen.values()],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it from a checkpoint, which has the images of the first rank alone."""
        if not state_dict:
            return
        rows = zip(state_dict["objects"], state_dict["anchors"], strict=True)
        self._before = dict(zip(state_dict["images"], (Matched(*row) for row in rows), strict=True))
