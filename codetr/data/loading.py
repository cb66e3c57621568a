"""Loading a split with boxes in pixels of its upright images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from codetr.classes import ClassList
from codetr.data.annotations import CocoAnnotations, load_annotations
from codetr.data.coco_json import read_categories, read_images, read_objects, require_lists
from codetr.data.derived import read_content, write_derived
from codetr.data.files import resolve_file_names
from codetr.data.images import ImageError, read_geometry
from codetr.data.json_columns import as_identifier
from codetr.data.placement import AUTO, Claim, Placement, place
from codetr.data.sources import Split, Splits
from codetr.errors import UserError

log = logging.getLogger(__name__)

_PROBED = 500  # images whose headers are read to check the declared sizes

Notify = Callable[[str], object]


def load_split(
    splits: Splits,
    name: str,
    boxes: str,
    folder: Path,
    *,
    classes: ClassList | None = None,
    segmentations: bool = False,
    num_images: int | None = None,
    flaws: list[str] | None = None,
    notify: Notify = log.info,
) -> CocoAnnotations:
    """The ``train`` or ``val`` split with resolved file names; see ``load_annotations``. The
    result's ``path`` is the annotation file to use from now on: the user's own, or one below
    ``folder`` if boxes had to be converted (``codetr.data.placement``, with the interpretation
    ``boxes``), which is reported to ``notify``.

    Headers of up to 500 images are read to check the declared sizes; of all images if some are
    wrong. Raises UserError as ``load_annotations`` and ``place`` do.
    """
    split = splits.train if name == "train" else splits.val
    other = splits.val if name == "train" else splits.train

    def load(path: Path, some: int | None) -> CocoAnnotations:
        return _on_disk(
            load_annotations(path, classes, split.name_parts, segmentations, some, flaws), split
        )

    loaded = load(split.annotations, num_images if splits.placed else None)
    if splits.placed:
        return loaded
    path = _placed(loaded, split, other, boxes, folder, notify)
    return loaded if path == loaded.path and num_images is None else load(path, num_images)


def _on_disk(found: CocoAnnotations, split: Split) -> CocoAnnotations:
    """Annotations with resolved file names. Raises UserError if one is outside of the root."""
    names = resolve_file_names(found.file_names, split.images)
    split.require_within(names)
    return replace(found, file_names=names)


def _placed(
    loaded: CocoAnnotations, split: Split, other: Split, boxes: str, folder: Path, notify: Notify
) -> Path:
    """The file of the annotations, or a derived one with converted boxes."""
    step = 1 if boxes != AUTO else max(1, len(loaded) // _PROBED)
    claims = _claims(loaded, split.images, step)
    if not any(_is_open(claim, boxes) for claim in claims.values()):
        return loaded.path
    if step > 1:
        claims = _claims(loaded, split.images)
    try:
        placements, remarks = place(list(claims.values()), boxes)
    except UserError:  # the other split may decide
        if other.annotations == split.annotations or not other.annotations.is_file():
            raise
        found = load_annotations(other.annotations, None, other.name_parts, flaws=[])
        found = _on_disk(found, other)
        evidence = _claims(found, other.images)
        both = [*claims.values(), *evidence.values()]
        placements, remarks = place(both, boxes)
    for remark in remarks:
        notify(f"{split.annotations}: {remark}")
    own = zip(claims.items(), placements[: len(claims)], strict=True)
    by_id = {loaded.image_ids[i]: (claim, placement) for (i, claim), placement in own}
    return write_derived(folder, split.annotations, _moved(split.annotations, by_id))


def _is_open(claim: Claim, boxes: str) -> bool:
    """Whether boxes may have to be converted, or a size corrected."""
    return claim.contradiction is not None or (boxes != AUTO and claim.geometry.orientation != 1)


def _claims(loaded: CocoAnnotations, images: Path, step: int = 1) -> dict[int, Claim]:
    """Claims by image index, without images that cannot be read: these are reported elsewhere."""
    offsets, corners = loaded.offsets.tolist(), loaded.boxes.double().numpy()
    sizes = loaded.sizes.tolist()
    found = {}
    for i in range(0, len(loaded), step):
        try:
            geometry = read_geometry(images / loaded.file_names[i])
        except ImageError:
            continue
        height, width = sizes[i]
        found[i] = Claim(
            file=str(images / loaded.file_names[i]),
            declared_wh=(width, height),
            corners=corners[offsets[i] : offsets[i + 1]],
            geometry=geometry,
        )
    return found


def _moved(path: Path, placed: dict[int, tuple[Claim, Placement]]) -> dict[str, Any]:
    """The content of a file with the sizes of the upright images and boxes in pixels of these, and
    without entries that cannot be used.
    """
    content = require_lists(read_content(path), path)

    def leave_out(_: object) -> None:
        """Flaws were reported when the file was first read."""

    images = read_images(content, path, leave_out, needed=("file_name", "height", "width"))
    objects = read_objects(content, path, images, read_categories(content, path), leave_out)
    sizes = {i: claim.upright_wh for i, (claim, _) in placed.items()}
    raw = {
        as_identifier(e["id"]): e for e in content["images"] if isinstance(e, dict) and "id" in e
    }
    written = dict(zip(images.ids, images.written_ids, strict=True))
    entries = []
    for i, name, (height, width) in zip(
        images.ids, images.file_names, images.sizes.tolist(), strict=True
    ):
        width, height = sizes.get(i, (width, height))
        entries.append(
            {**raw[i], "id": written[i], "file_name": name, "width": width, "height": height}
        )
    annotations = []
    columns = (objects.images.tolist(), objects.boxes_xywh_px, objects.area.tolist())
    flags = zip(objects.crowd.tolist(), objects.categories.tolist(), strict=True)
    for entry, (image, box, area), (crowd, category) in zip(
        objects.entries, zip(*columns, strict=True), flags, strict=True
    ):
        number = images.ids[image]
        new = {**entry, "image_id": written[number], "category_id": category, "iscrowd": int(crowd)}
        new |= {"bbox": box.tolist(), "area": area}
        if number in placed:
            placement = placed[number][1]
            corners = placement.corners(np.concatenate([box[:2], box[:2] + box[2:]])[None])[0]
            new["bbox"] = [*corners[:2].tolist(), *(corners[2:] - corners[:2]).tolist()]
            new["area"] = area * placement.area
            if "segmentation" in new:
                outline = placement.segmentation(new.pop("segmentation"))
                new |= {} if outline is None else {"segmentation": outline}
        annotations.append(new)
    return {**content, "images": entries, "annotations": annotations}
