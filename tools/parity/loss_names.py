"""Official names of our losses."""

from __future__ import annotations

DETR_TERMS = {"cls": "ce", "bbox": "bbox", "giou": "giou"}
PATTERNS = {
    "one_to_one": "{{}}{}",
    "mixed": "{{}}{}_o2m",
    "hybrid": "{{}}{}_one2many",
    "teacher": "{{}}{}_ensemble",
    "denoising": "{{}}_dn{}",
    "query_denoising": "tgt_{{}}{}",
}
"""Official name of a quantity ``{{}}`` of a scheme at a place ``{}``."""

CO_DETR_TERMS = {"cls": "loss_cls", "bbox": "loss_bbox", "giou": "loss_iou"}
HEAD_NUMBERS = {"rcnn": "0", "atss": "1"}


def pattern(scheme: str, place: str, num_layers: int, encoder: str = "_enc") -> str:
    """The official name of a quantity ``{}`` of our ``scheme`` at our ``place``: ``layer0`` and so
    on, or ``encoder``, whose official suffix is ``encoder``.
    """
    if place == f"layer{num_layers - 1}":
        where = ""
    else:
        where = encoder if place == "encoder" else f"_{int(place.removeprefix('layer'))}"
    return PATTERNS[scheme].format(where)


def detr_loss(name: str, num_layers: int, encoder: str = "_enc") -> str:
    """The official name of one of our losses in repositories of DETR's family."""
    scheme, *place, term = name.split("/")
    return pattern(scheme, place[-1], num_layers, encoder).format(f"loss_{DETR_TERMS[term]}")


def co_detr_loss(name: str, num_layers: int) -> str:
    """The official name of one of our losses in Co-DETR."""
    scheme, *place, term = name.split("/")
    if scheme == "masks":
        return f"loss_{term}"
    if scheme == "collaborative" and len(place) == 1:
        return f"loss_{term}" if term.startswith("rpn_") else f"loss_{term}{_number(place[0])}"
    term = CO_DETR_TERMS.get(term, term)
    if place == ["encoder"]:
        return f"enc_{term}"
    index = int(place[-1].removeprefix("layer"))
    layer = "" if index == num_layers - 1 else f"d{index}."
    if scheme == "denoising":
        return f"{layer}dn_{term}"
    if scheme == "collaborative":
        return f"{layer}{term}_aux{_number(place[0].removeprefix('positive_'))}"
    return f"{layer}{term}"


def _number(head: str) -> str:
    return HEAD_NUMBERS.get(head, f"_{head}")
