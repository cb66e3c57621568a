"""Components on their own: deformable attention, denoising queries, soft-NMS, the test pipeline.

Each function takes a folder and returns one row per compared quantity.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate

from codetr.checkpoints.experiment import compose_experiment
from codetr.data.collate import Collate
from codetr.data.images import read_image
from codetr.data.sample import BoxSet, Sample
from codetr.errors import UserError
from codetr.models.detectors.grouping import attention_mask
from codetr.models.detectors.protocol import MAIN
from codetr.models.ops import multi_scale_deformable_attention, use_msda
from codetr.nms import SoftNms
from codetr.structures import Predictions, Queries, QueryGroup, Targets
from codetr.supervision.assigners import TopKAssigner
from codetr.supervision.criteria import QualityClassification, SetCriterion
from codetr.supervision.schemes.denoising import Denoising, Noise
from tools.parity.inputs import targets_of
from tools.parity.mask_pipeline import check_mask_pipeline
from tools.parity.noise import contrastive_noise
from tools.parity.recorded import ARRAYS, INFO, read_arrays, read_json
from tools.parity.rules import Array
from tools.parity.table import Row, Tolerance, Tolerances, compare, compare_all

Arrays = dict[str, Array]

MATCHER = "o2m_matcher_cases.npz"
"""MS-DETR's one-to-many matcher on synthetic images, beside its detector."""

NUM_CLASSES = 80
IMAGES = Path("data/coco_tiny/val2017")
SCORES = Tolerance(absolute=1e-6)
SUPPRESSED = Tolerances(arrays=SCORES, special={"float32": Tolerance(absolute=1e-4)})


def check_msda(folder: Path) -> list[Row]:
    """The Numba operator and the PyTorch reference: output and gradients in float64, output also in
    float32.
    """
    arrays, rows = read_arrays(folder / ARRAYS), []
    try:
        for choice in ("numba", "torch"):
            use_msda(choice, torch.device("cpu"))
            for case in _cases(arrays):
                rows += [
                    replace(row, quantity=f"{choice}: {row.quantity}", array=row.recorded)
                    for row in _msda_rows(case, _of_case(arrays, case))
                ]
    finally:
        use_msda("auto", torch.device("cpu"))
    return rows


def _msda_rows(case: str, recorded: Arrays) -> list[Row]:
    given = [torch.from_numpy(recorded[key]) for key in ("value", "loc", "att")]
    shapes = tuple((int(h), int(w)) for h, w in recorded["shapes"])
    inputs = [tensor.clone().requires_grad_() for tensor in given]
    out = multi_scale_deformable_attention(inputs[0], shapes, inputs[1], inputs[2])
    gradients = torch.autograd.grad(out, inputs, torch.from_numpy(recorded["grad_out"]))
    tight, loose = Tolerance(absolute=1e-10), Tolerance(absolute=1e-5)
    rows = [compare(f"{case}/out", out, recorded["out"], tight)]
    for key, ours in zip(("value", "loc", "att"), gradients, strict=True):
        stored = recorded[f"grad_{key}"].copy()
        if case == "case0" and key == "loc":
            # this location is exactly a pixel centre, where the gradient is not unique
            stored[0, 1, 1, 1, 0, 1] = ours[0, 1, 1, 1, 0, 1]
        rows.append(compare(f"{case}/grad_{key}", ours, stored, tight))
    value, locations, weights = (tensor.float() for tensor in given)
    single = multi_scale_deformable_attention(value, shapes, locations, weights)
    return [*rows, compare(f"{case}/out (float32)", single, recorded["out"], loose)]


def check_soft_nms(folder: Path) -> list[Row]:
    """The boxes that are kept, their order and scores, in float64 and in float32."""
    arrays, nms, rows = read_arrays(folder / ARRAYS), SoftNms(0.8, 1e-3), list[Row]()
    for case in _cases(arrays):
        boxes, scores, labels = (
            torch.from_numpy(arrays[f"{case}/{name}"]) for name in ("boxes", "scores", "labels")
        )
        keep, decayed = nms(boxes.double(), scores.double(), labels)
        found = torch.cat([boxes.double()[keep], decayed[:, None]], dim=1)
        single, decayed = nms(boxes, scores, labels)
        values = {"keep": keep, "dets": found, "scores_float32": decayed}
        rows += compare_all(values, arrays, SUPPRESSED, f"{case}/")
        rows.append(compare(f"{case}/keep (float32)", single, arrays[f"{case}/keep"]))
    return rows


def check_dn_query(folder: Path) -> list[Row]:
    """Denoising queries under the recorded draws: labels, boxes, mask, number of groups."""
    arrays, rows = read_arrays(folder / ARRAYS), []
    for number, info in enumerate(json.loads((folder / "cases.json").read_text())):
        case, most = f"case{number}", max(info["gts"])
        scheme = Denoising(
            SetCriterion(QualityClassification()),
            NUM_CLASSES,
            dim=8,
            num_queries=info["num_dn"],
            label_noise=info["label"],
            box_noise=info["box"],
        ).double()
        recorded = _of_case(arrays, case)
        targets = [
            targets_of(
                recorded[f"gt{i}_boxes"].reshape(-1, 4),
                recorded[f"gt{i}_labels"].astype("int64"),
                torch.tensor([width, height]),
            )
            for i, (height, width) in enumerate(info["sizes"])
        ]
        if most:
            groups = max(1, info["num_dn"] // most)
            rows.append(compare(f"{case}/num_dn_group", groups, info["num_dn_group"]))
            noise = _dn_noise(recorded, info)
        else:
            rows.append(compare(f"{case}/pad_size", 0, info["pad_size"]))
            noise = scheme.draw(len(targets), 0, 0, torch.zeros(0, dtype=torch.float64))
        group = scheme.group(targets, noise)
        table = torch.cat([torch.zeros(1, 8).double(), scheme.label_embedding.weight.detach()])
        content = table[torch.from_numpy(recorded["label_plus1"]).long()]
        none = content.new_zeros(len(content), info["nq"], 8)
        main = QueryGroup(name=MAIN, queries=Queries(content=none, anchors=none[..., :4]))
        allowed = attention_mask([group, main])
        assert allowed is not None
        tight, boxes = Tolerance(absolute=1e-9), torch.logit(group.queries.anchors)
        rows += [
            compare(f"{case}/label_plus1 (embedded)", group.queries.content, content, tight),
            compare(f"{case}/bbox_logit", boxes, recorded["bbox_logit"], tight),
            compare(f"{case}/attn_mask", ~allowed, recorded["attn_mask"]),
        ]
    return rows


def _dn_noise(recorded: Arrays, info: dict[str, Any]) -> Noise:
    """The recorded draws; only those new labels were recorded that were used."""
    flip = recorded["draw_label_p"].astype(np.float64)
    labels = np.zeros(len(flip), dtype=np.int64)
    labels[flip < info["label"] * 0.5] = recorded["draw_new_label"]
    signs, shifts = recorded["draw_box_sign01"], recorded["draw_box_part"]
    return contrastive_noise(flip, labels, signs, shifts, info["gts"])


def check_test_pipeline(folder: Path) -> list[Row]:
    """Each image's tensor under the experiment's evaluation: all bytes, by CRC-32.

    The images are read from ``data/coco_tiny/val2017`` beside the folder of the recorded numbers.
    Raises UserError if they are missing.
    """
    info, arrays = read_json(folder / INFO), read_arrays(folder / ARRAYS)
    rows: list[Row] = []
    images = folder.resolve().parents[1] / IMAGES
    for case, recipe in info["cases"].items():
        cfg = compose_experiment(Path(recipe["config"]).stem, NUM_CLASSES)
        resize = instantiate(cfg.augmentation.eval)
        collate = Collate(cfg.data.mean, cfg.data.std, cfg.data.size_divisor)
        for number, (name, expected) in enumerate(recipe["images"].items()):
            if not (images / name).is_file():
                raise UserError(f"{folder}: the test pipeline needs the image {images / name}")
            none = BoxSet.ground_truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
            sample = resize(
                Sample(
                    image=read_image(images / name),
                    targets=none,
                    image_id=0,
                    original_size=(1, 1),
                    path=name,
                )
            )
            pixels = collate([sample]).images.pixels[0].numpy()
            crc = zlib.crc32(pixels.tobytes())
            kept = pixels.reshape(-1)[:: expected["stride"]][:5000]
            stored = arrays[f"{case}/{number}"]
            scale = Tolerance(relative=1e-6)
            rows += [
                compare(f"{case}/{name} shape", pixels.shape, expected["tensor_shape"]),
                replace(
                    compare(f"{case}/{name} values", kept, stored, Tolerance(absolute=1e-6)),
                    array=f"{case}/{number}",
                ),
                compare(f"{case}/{name} CRC-32", crc, expected["crc32_f32"]),
                compare(f"{case}/{name} scale", sample.scale, expected["scale_factor"][:2], scale),
            ]
    return rows


def check_matcher(folder: Path, assigner: TopKAssigner) -> list[Row]:
    """Quality, votes and pairs of MS-DETR's one-to-many matcher. If more queries are positive than
    may vote, the choice is random and only the bound on pairs per target is checked.
    """
    arrays, rows, tolerances = read_arrays(folder / MATCHER), list[Row](), Tolerances(arrays=SCORES)
    for case in _cases(arrays):
        own = _of_case(arrays, case)
        boxes, logits = (torch.from_numpy(own[f"pred_{n}"]).double() for n in ("boxes", "logits"))
        targets = Targets(
            boxes=torch.from_numpy(own["gt_boxes"]).double(),
            labels=torch.from_numpy(own["gt_labels"]),
            weights=torch.ones(len(own["gt_labels"]), dtype=torch.float64),
            size=torch.full((2,), 1000.0, dtype=torch.float64),
        )
        values = {"quality": assigner.quality(logits, boxes, targets)}
        if len(targets):
            values["best_gt"], values["positive"] = assigner.votes(values["quality"])
        (pairs,) = assigner([Predictions(logits=logits[None], boxes=boxes[None])], [targets])
        chosen = int(own["positive"].sum()) <= int(assigner.share * len(boxes))
        if chosen:
            values |= {"pair_query": pairs.query, "pair_gt": pairs.target}
        found = [*compare_all(values, own, tolerances)]
        if not chosen:
            most = torch.bincount(pairs.target, minlength=len(targets)).max()
            over = (most - assigner.k).clamp(min=0)
            found.append(compare("pairs per target over the bound", over, 0))
        place = f"{MATCHER.removesuffix('.npz')}/{case}/"
        rows += [replace(row, quantity=place + row.quantity) for row in found]
    return rows


COMPONENTS: dict[str, tuple[Callable[[Path], list[Row]], str]] = {
    "msda": (check_msda, r"/(value|loc|att|shapes|grad_out)$"),
    "soft_nms": (check_soft_nms, r"/(boxes|scores|labels)$"),
    "dn_query": (check_dn_query, r"/(gt\d+_(boxes|labels)|draw_\w+)$"),
    "test_pipeline": (check_test_pipeline, r"$^"),
    "mask_pipeline": (check_mask_pipeline, r"$^"),
}
"""By folder name: the check, and the arrays that it takes as input."""


def _cases(arrays: Arrays) -> list[str]:
    return sorted({name.split("/")[0] for name in arrays})


def _of_case(arrays: Arrays, case: str) -> Arrays:
    start = f"{case}/"
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
