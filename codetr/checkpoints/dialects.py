"""The repositories whose checkpoints we can read, recognised by the names of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from omegaconf import DictConfig
from torch import Tensor

from codetr.checkpoints import (
    conditional_detr,
    deformable_detr,
    dino,
    h_detr,
    ms_detr,
    official,
    vidt,
    yolos,
)
from codetr.checkpoints.coco import coco_rows
from codetr.checkpoints.official import convert_official
from codetr.checkpoints.renaming import Conversion

State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The tensor names of a repository. ``marks``: names by which it is recognised;
    ``class_embedding``: a tensor with a row per class and ``background`` further ones;
    ``select_coco``: a state dict whose rows are category ids, reduced to COCO's 80 classes (None:
    rows are always classes); ``convert``: to our names, for a configuration.
    """

    repository: str
    marks: tuple[str, ...]
    class_embedding: str
    convert: Callable[[State, DictConfig], Conversion]
    background: int = 0
    select_coco: Callable[[State], dict[str, Tensor]] | None = None

    def matches(self, state: State) -> bool:
        """Whether a state dict has these names."""
        return all(name in state for name in self.marks)

    def classes(self, state: State) -> int:
        """Number of classes, or of category ids."""
        return len(state[self.class_embedding]) - self.background


DIALECTS = (
    Dialect(
        repository="MS-DETR",
        marks=ms_detr.MARKS,
        class_embedding=h_detr.CLASS_EMBEDDING,
        select_coco=h_detr.only_coco_rows,
        convert=lambda state, cfg: ms_detr.convert_ms_detr(state),
    ),
    Dialect(
        repository="DINO",
        marks=dino.MARKS,
        class_embedding=dino.CLASS_EMBEDDING,
        select_coco=lambda state: coco_rows(state, dino.CLASS_ROWS),
        convert=lambda state, cfg: dino.convert_dino(state),
    ),
    Dialect(
        repository="H-DETR and Teach-DETR",
        marks=h_detr.MARKS,
        class_embedding=h_detr.CLASS_EMBEDDING,
        select_coco=h_detr.only_coco_rows,
        convert=lambda state, cfg: h_detr.convert_h_detr(state, cfg.model.num_queries),
    ),
    Dialect(
        repository="one-stage Deformable DETR",
        marks=deformable_detr.MARKS,
        class_embedding=deformable_detr.CLASS_EMBEDDING,
        select_coco=lambda state: coco_rows(state, deformable_detr.CLASS_ROWS),
        convert=lambda state, cfg: deformable_detr.convert_deformable_detr(
            state, tied=not cfg.model.decoder.get("refine", True)
        ),
    ),
    Dialect(
        repository="Conditional DETR, DAB-DETR and DN-DETR",
        marks=conditional_detr.MARKS,
        class_embedding=conditional_detr.CLASS_EMBEDDING,
        select_coco=lambda state: coco_rows(state, conditional_detr.CLASS_ROWS),
        convert=lambda state, cfg: conditional_detr.convert_conditional_detr(state),
    ),
    Dialect(
        repository="YOLOS",
        marks=yolos.MARKS,
        class_embedding=yolos.CLASS_EMBEDDING,
        background=1,
        select_coco=lambda state: coco_rows(state, r"class_embed\.layers\.2\..*"),
        convert=lambda state, cfg: yolos.convert_yolos(state),
    ),
    Dialect(
        repository="ViDT",
        marks=vidt.MARKS,
        class_embedding=vidt.CLASS_EMBEDDING,
        select_coco=lambda state: coco_rows(state, r"class_embed\.\d+\..*"),
        convert=lambda state, cfg: vidt.convert_vidt(state),
    ),
    Dialect(
        repository="Co-DETR and its port in mmdetection 3",
        marks=(official.CLASS_EMBEDDING,),
        class_embedding=official.CLASS_EMBEDDING,
        convert=lambda state, cfg: convert_official(state),
    ),
)
"""In the order in which they are tried."""


def dialect_of(state: State) -> Dialect | None:
    """The first dialect that matches ``state``, if any."""
    return next((dialect for dialect in DIALECTS if dialect.matches(state)), None)
