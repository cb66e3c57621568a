"""Denoising queries against recorded ones of the official generator."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from codetr.boxes import xyxy_to_cxcywh
from codetr.models.detectors.grouping import attention_mask
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Queries, QueryGroup, Targets
from codetr.supervision.criteria import QualityClassification, SetCriterion
from codetr.supervision.schemes.denoising import Denoising, Noise

CLASSES = 80


def scheme(**options: float) -> Denoising:
    return Denoising(SetCriterion(QualityClassification()), CLASSES, dim=8, **options).double()


def targets(recorded: "np.lib.npyio.NpzFile", case: int, sizes: list[list[int]]) -> list[Targets]:
    made = []
    for i, (height, width) in enumerate(sizes):
        size = torch.tensor([width, height], dtype=torch.float64)
        boxes = torch.from_numpy(recorded[f"case{case}/gt{i}_boxes"]).double().reshape(-1, 4)
        made.append(
            Targets(
                boxes=xyxy_to_cxcywh(boxes / size.repeat(2)),
                labels=torch.from_numpy(recorded[f"case{case}/gt{i}_labels"]).long(),
                weights=torch.ones(len(boxes), dtype=torch.float64),
                size=size,
            )
        )
    return made


def noise(recorded: "np.lib.npyio.NpzFile", case: int, counts: list[int], label: float) -> Noise:
    """The recorded draws, laid out as (image, group, positive | negative, slot)."""
    total, slots = sum(counts), max(counts)
    flip = torch.from_numpy(recorded[f"case{case}/draw_label_p"]).double()
    groups = len(flip) // (2 * total)
    new = torch.zeros(len(flip), dtype=torch.int64)
    replaced = torch.from_numpy(recorded[f"case{case}/draw_new_label"]).long()
    new[flip < label * 0.5] = replaced
    signs = torch.from_numpy(recorded[f"case{case}/draw_box_sign01"]).double() * 2 - 1
    shifts = torch.from_numpy(recorded[f"case{case}/draw_box_part"]).double()

    def laid_out(flat: torch.Tensor) -> torch.Tensor:
        copies = flat.view(groups, 2, total, *flat.shape[1:])
        out = flat.new_zeros(len(counts), groups, 2, slots, *flat.shape[1:])
        start = 0
        for image, count in enumerate(counts):
            out[image, :, :, :count] = copies[:, :, start : start + count]
            start += count
        return out

    return Noise(
        flip=laid_out(flip), labels=laid_out(new), signs=laid_out(signs), shifts=laid_out(shifts)
    )


@pytest.mark.golden
@pytest.mark.parametrize("case", [0, 1])
def test_recorded_queries(shared: Path, case: int) -> None:
    folder = shared / "golden" / "dn_query"
    recorded = np.load(folder / "io.npz")
    info = json.loads((folder / "cases.json").read_text())[case]
    part = scheme(num_queries=info["num_dn"], label_noise=info["label"], box_noise=info["box"])
    group = part.group(
        targets(recorded, case, info["sizes"]), noise(recorded, case, info["gts"], info["label"])
    )
    assert len(group) == info["pad_size"]

    known = torch.from_numpy(recorded[f"case{case}/label_plus1"]).long()
    table = torch.cat([torch.zeros(1, 8).double(), part.label_embedding.weight.detach()])
    torch.testing.assert_close(group.queries.content.detach(), table[known])
    ours = torch.logit(group.queries.anchors)
    expected = torch.from_numpy(recorded[f"case{case}/bbox_logit"]).double()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)

    count = info["nq"]
    main = QueryGroup(
        name=MAIN,
        queries=Queries(
            content=torch.zeros(len(known), count, 8), anchors=torch.zeros(len(known), count, 4)
        ),
    )
    allowed = attention_mask([group, main])
    assert allowed is not None
    assert (~allowed.numpy() == recorded[f"case{case}/attn_mask"]).all()


@pytest.mark.golden
def test_recorded_number_of_groups(shared: Path) -> None:
    for info in json.loads((shared / "golden" / "dn_query" / "cases.json").read_text()):
        most = max(info["gts"])
        if most:
            assert max(1, info["num_dn"] // most) == info["num_dn_group"]


def test_slots_and_assignment() -> None:
    part = scheme(num_queries=6)
    made = [
        Targets(
            boxes=torch.full((n, 4), 0.5, dtype=torch.float64),
            labels=torch.arange(n),
            weights=torch.ones(n, dtype=torch.float64),
            size=torch.tensor([8.0, 8.0]),
        )
        for n in (2, 3)
    ]
    group = part.group(made, part.draw(2, 2, 3, like=made[0].boxes))
    assert len(group) == 2 * 2 * 3
    assert group.assignment is not None
    pairs = torch.stack([group.assignment.image, group.assignment.query, group.assignment.target])
    assert pairs.T.tolist() == [
        [0, 0, 0], [0, 1, 1], [0, 6, 0], [0, 7, 1],
        [1, 0, 2], [1, 1, 3], [1, 2, 4], [1, 6, 2], [1, 7, 3], [1, 8, 4],
    ]  # fmt: skip
    unused = group.queries.content[0, [2, 5, 8, 11]]
    assert (unused == 0).all()
