"""Checks of a data set before training on it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from codetr.data.annotations import CocoAnnotations
from codetr.data.box_formats import AUTO, convention_error, similar_names
from codetr.data.sources import MAX_LOST, rounded_up_share
from codetr.errors import UserError

log = logging.getLogger(__name__)

_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Number of boxes with a flaw, and descriptions of the first ones."""

    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """Statistics of one annotation file.

    ``boxes``: number of usable targets; ``degenerate`` boxes (no area within the image) are
    dropped, ``outside`` ones clipped.
    """

    path: Path
    images: int
    images_without_boxes: int
    boxes: int
    crowd: int
    degenerate: Finding
    outside: Finding
    classes: int
    classes_without_boxes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The reports of all splits, printed as a table by rich."""

    splits: tuple[SplitReport, ...]

    def __rich__(self) -> Table:
        table = Table(title="data", title_justify="left")
        table.add_column("")
        for split in self.splits:
            table.add_column(escape(split.path.name), overflow="fold")
        rows = [
            ("images", [str(s.images) for s in self.splits]),
            ("… without boxes", [str(s.images_without_boxes) for s in self.splits]),
            ("boxes", [str(s.boxes) for s in self.splits]),
            ("crowd regions (ignored)", [str(s.crowd) for s in self.splits]),
            ("boxes without area (dropped)", [_text(s.degenerate) for s in self.splits]),
            ("boxes beyond the image (clipped)", [_text(s.outside) for s in self.splits]),
            ("classes", [str(s.classes) for s in self.splits]),
            ("… without boxes", [_names(s.classes_without_boxes) for s in self.splits]),
        ]
        for name, cells in rows:
            table.add_row(name, *map(escape, cells))
        return table


def _text(finding: Finding) -> str:
    examples = "".join(f"\n{example}" for example in finding.examples)
    return f"{finding.count}{examples}"


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_EXAMPLES]) + (", …" if len(names) > _EXAMPLES else "")
    return f"{len(names)}" + (f" ({shown})" if names else "")


def check_split(
    annotations: CocoAnnotations,
    images: Path,
    tolerate_broken: bool = False,
    max_lost: float = MAX_LOST,
    box_format: str = AUTO,
) -> SplitReport:
    """Check a split and gather its statistics. Raises UserError if there are no boxes, if more than
    the share ``max_lost`` of them have no area in their images, and for missing image files, which
    with ``tolerate_broken`` are only logged; with the ``box_format`` ``auto`` also if boxes must be
    in another format.
    """
    _require_files(annotations, images, tolerate_broken)
    if box_format == AUTO and (wrong := split_convention_error(annotations)):
        raise UserError(f"annotation file {annotations.path}: {wrong}")
    degenerate, usable = _finding(annotations, annotations.without_area), annotations.usable
    _require_boxes(annotations, degenerate, max_lost)
    counts = torch.bincount(annotations.labels[usable], minlength=len(annotations.classes))
    with_boxes = annotations.image_of_box[usable].unique()
    return SplitReport(
        path=annotations.path,
        images=len(annotations),
        images_without_boxes=len(annotations) - len(with_boxes),
        boxes=int(usable.sum()),
        crowd=int(annotations.crowd.sum()),
        degenerate=degenerate,
        outside=_finding(annotations, annotations.outside),
        classes=len(annotations.classes),
        classes_without_boxes=tuple(
            name
            for name, count in zip(annotations.classes.names, counts.tolist(), strict=True)
            if count == 0
        ),
    )


def check_dataset(
    train: tuple[CocoAnnotations, Path],
    val: tuple[CocoAnnotations, Path],
    tolerate_broken: bool = False,
    max_lost: float = MAX_LOST,
    box_format: str = AUTO,
) -> DataReport:
    """Check both splits, given as annotations and image folder. Raises UserError as ``check_split``
    does, and for differing class lists.
    """
    require_same_classes(train[0], val[0])
    for line in similar_names(train[0].classes.names):
        log.warning("%s: %s", train[0].path, line)
    reports = tuple(
        check_split(*part, tolerate_broken, max_lost, box_format) for part in (train, val)
    )
    return DataReport(splits=reports)


def require_class_count(annotations: CocoAnnotations, expected: int | None) -> None:
    """Raise UserError if the number of classes is not the expected one."""
    found = len(annotations.classes)
    if expected is not None and found != expected:
        raise UserError(
            f"annotation file {annotations.path} has {found} classes, not {expected}: take the "
            "official file, or set data.source.num_classes=null"
        )


def require_same_classes(train: CocoAnnotations, val: CocoAnnotations) -> None:
    """Raise UserError with the first difference between the two class lists, if any."""
    ours = dict(zip(train.classes.category_ids, train.classes.names, strict=True))
    theirs = dict(zip(val.classes.category_ids, val.classes.names, strict=True))
    for i in sorted(ours.keys() | theirs.keys()):
        if ours.get(i) != theirs.get(i):
            raise UserError(
                f"class lists differ: category {i} is {ours.get(i, 'missing')!r} in {train.path} "
                f"and {theirs.get(i, 'missing')!r} in {val.path}: give both the same categories"
            )


def split_convention_error(annotations: CocoAnnotations) -> str | None:
    """An error message if the boxes of a split are not in COCO's format; None otherwise."""
    sizes = annotations.sizes.flip(1)[annotations.image_of_box].numpy()
    return convention_error(annotations.boxes_xywh_px, sizes)


def _require_boxes(annotations: CocoAnnotations, flaws: Finding, max_lost: float) -> None:
    count, crowd = len(annotations.boxes), int(annotations.crowd.sum())
    if not annotations.usable.any():
        reason = "nothing is annotated: annotate some images"
        if count:
            reason = f"{crowd} are crowd regions, {flaws.count} have no area within their image"
            reason += f", such as {flaws.examples[0]}" if flaws.count else ""
            reason += ": correct them"
        raise UserError(
            f"annotation file {annotations.path} has no usable box among {count} annotations of "
            f"{len(annotations)} images: {reason}"
        )
    if flaws.count > max_lost * (count - crowd):
        raise UserError(
            f"{flaws.count} of {count - crowd} boxes of {annotations.path} have no area within "
            f"their image, such as {flaws.examples[0]}: correct them, or accept the loss with "
            f"data.source.max_lost={rounded_up_share(flaws.count, count - crowd)}"
        )


def _require_files(annotations: CocoAnnotations, images: Path, tolerate_broken: bool) -> None:
    if not os.path.isdir(images):
        raise UserError(
            f"image folder {images} of {annotations.path} does not exist: check data.root and the "
            "image folders under data.source"
        )
    missing = [name for name in annotations.file_names if not os.path.isfile(images / name)]
    if not missing:
        return
    message = (
        f"{len(missing)} of {len(annotations)} image files are missing, the first is "
        f"{images / missing[0]}: restore them or remove them from {annotations.path}"
    )
    if not tolerate_broken or len(missing) == len(annotations):
        raise UserError(message)
    log.warning("%s", message)


def _finding(annotations: CocoAnnotations, flawed: Tensor) -> Finding:
    rows = flawed.nonzero().flatten().tolist()
    image_of_box = annotations.image_of_box
    examples = (
        f"{annotations.file_names[int(image_of_box[row])]}: annotation "
        f"{annotations.annotation_ids[row]}, xyxy {_rounded(annotations.boxes[row])}"
        for row in rows[:_EXAMPLES]
    )
    return Finding(count=len(rows), examples=tuple(examples))


def _rounded(box: Tensor) -> str:
    return "(" + ", ".join(f"{value:.1f}" for value in box.tolist()) + ")"
