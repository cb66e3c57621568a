"""Looking at a data set before training on it: errors now are cheaper than zero AP tomorrow."""

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
from codetr.data.box_formats import AUTO, other_convention, similar_names
from codetr.data.sources import MAX_LOST, share_above
from codetr.errors import UserError

log = logging.getLogger(__name__)

_EXAMPLES = 3
_OUTSIDE_PX = 1.0  # annotation tools round: less than this beyond the border is not worth a line


@dataclass(frozen=True, kw_only=True)
class Finding:
    """How many boxes have a flaw, and the first of them as text."""

    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What was found in one annotation file.

    ``boxes`` counts the usable targets; ``degenerate`` boxes (no area within the image) are
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
    """The reports of all splits; prints as a table with rich."""

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
    """Count what is in a split. Raises UserError for no boxes, for more than the share ``max_lost``
    without area in their images, and for missing image files, which are only named in the log with
    ``tolerate_broken``; with the ``box_format`` ``auto`` also where boxes can only be of another
    format.
    """
    _require_files(annotations, images, tolerate_broken)
    if box_format == AUTO:
        _require_own_format(annotations)
    _require_boxes(annotations, max_lost)
    boxes, usable = annotations.boxes, annotations.usable
    beyond = (boxes - annotations.clipped).abs().amax(dim=1) > _OUTSIDE_PX
    counts = torch.bincount(annotations.labels[usable], minlength=len(annotations.classes))
    with_boxes = annotations.image_of_box[usable].unique()
    return SplitReport(
        path=annotations.path,
        images=len(annotations),
        images_without_boxes=len(annotations) - len(with_boxes),
        boxes=int(usable.sum()),
        crowd=int(annotations.crowd.sum()),
        degenerate=_finding(annotations, annotations.degenerate & ~annotations.crowd),
        outside=_finding(annotations, beyond & usable),
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
    """Check both splits, each given as annotations and image folder, as ``check_split`` does.

    Raises UserError for missing image files, splits without boxes, and differing class lists.
    """
    require_same_classes(train[0], val[0])
    for line in similar_names(train[0].classes.names):
        log.warning("%s: %s", train[0].path, line)
    reports = tuple(
        check_split(*part, tolerate_broken, max_lost, box_format) for part in (train, val)
    )
    return DataReport(splits=reports)


def require_class_count(annotations: CocoAnnotations, expected: int | None) -> None:
    """Raises UserError where the class list has not the length that the data set should have."""
    found = len(annotations.classes)
    if expected is not None and found != expected:
        raise UserError(
            f"annotation file {annotations.path} has {found} classes, not {expected}: take the "
            "official file, or set data.source.num_classes=null"
        )


def require_same_classes(train: CocoAnnotations, val: CocoAnnotations) -> None:
    """Raises UserError with the first difference of the two class lists."""
    ours = dict(zip(train.classes.category_ids, train.classes.names, strict=True))
    theirs = dict(zip(val.classes.category_ids, val.classes.names, strict=True))
    for i in sorted(ours.keys() | theirs.keys()):
        if ours.get(i) != theirs.get(i):
            raise UserError(
                f"class lists differ: category {i} is {ours.get(i, 'missing')!r} in {train.path} "
                f"and {theirs.get(i, 'missing')!r} in {val.path}: give both the same categories"
            )


def _require_own_format(annotations: CocoAnnotations) -> None:
    for wrong in conventions(annotations):
        raise UserError(f"annotation file {annotations.path}: {wrong}")


def conventions(annotations: CocoAnnotations) -> list[str]:
    """A line where all boxes of a split are written in another way than COCO's."""
    sizes = annotations.sizes.flip(1)[annotations.image_of_box].numpy()
    wrong = other_convention(annotations.boxes_xywh_px, sizes)
    return [wrong] if wrong else []


def _require_boxes(annotations: CocoAnnotations, max_lost: float) -> None:
    count, crowd = len(annotations.boxes), int(annotations.crowd.sum())
    flaws = _finding(annotations, annotations.degenerate & ~annotations.crowd)
    if not annotations.usable.any():
        reason = "nothing is annotated: annotate some images"
        if count:
            reason = f"{crowd} are crowd regions, {flaws.count} have no area within their image"
            reason += f", such as {flaws.examples[0]}" if flaws.count else ""
            reason += ": correct them, nothing can be learned or measured"
        raise UserError(
            f"annotation file {annotations.path} has no usable box among {count} annotations of "
            f"{len(annotations)} images: {reason}"
        )
    if flaws.count > max_lost * (count - crowd):
        raise UserError(
            f"{flaws.count} of {count - crowd} boxes of {annotations.path} have no area within "
            f"their image, such as {flaws.examples[0]}: correct them, or accept the loss with "
            f"data.source.max_lost={share_above(flaws.count, count - crowd)}"
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
