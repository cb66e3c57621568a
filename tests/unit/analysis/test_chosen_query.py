"""Where the query of one detection looks, in pixels of the user's image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoint import save_checkpoint, save_tiny

import codetr
from codetr.analysis.attention import (
    ImageResult,
    attention_of_detection,
    attention_picture,
    query_of,
)
from codetr.analysis.sampling import record_samples
from codetr.data.sample import as_sample
from codetr.errors import UserError
from codetr.evaluation.postprocess import in_original_pixels
from codetr.inference.predictor import Predictor

NOISE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 90, 120), dtype=np.uint8))


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """Its images are resized, so that pixels are not those of the network's."""
    path = tmp_path_factory.mktemp("small") / "model.safetensors"
    return codetr.load(save_tiny(path, "augmentation=small"), device="cpu")


@torch.no_grad()
def test_each_detection_has_the_query_whose_box_and_score_it_has(predictor: Predictor) -> None:
    finder = predictor.finder
    batch = finder.collate([finder.resize(as_sample(NOISE))])
    last = predictor.detector(batch.images)
    boxes = in_original_pixels(last.boxes, batch.images.sizes, batch.infos)[0]
    found = predictor.predict(NOISE)
    assert len(found) == 36  # every query with every class
    pairs = set()
    for i in range(len(found)):
        chosen = found.take(slice(i, i + 1))
        (query,) = query_of(chosen, last, batch).tolist()
        torch.testing.assert_close(boxes[query], chosen.boxes_xyxy_px[0])
        score = last.scores()[0, query, chosen.labels[0]]
        torch.testing.assert_close(score, chosen.scores[0])
        pairs.add((query, int(chosen.labels[0])))
    assert len(pairs) == 36


def test_points_are_those_of_the_query_and_the_share_is_of_its_box(predictor: Predictor) -> None:
    chosen = predictor.predict(NOISE).take(slice(0, 1))
    with record_samples(predictor.detector) as all_seen:
        predictor.predict(NOISE)
    decoder = all_seen[-2:]  # of its two layers, after the encoder's one
    seen = attention_of_detection(predictor, NOISE, chosen)
    assert seen.points is not None
    assert seen.weights is not None
    weights = [one.weights[0].flatten(1) for one in decoder]
    assert any(torch.allclose(seen.weights[0], row) for row in weights[-1])
    assert seen.weights.sum().item() == pytest.approx(2.0, abs=1e-4)  # 1 of each head
    left, top, right, bottom = chosen.boxes_xyxy_px[0]
    x, y = seen.points[0].unbind(-1)
    inside = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
    share = (seen.weights[0] * inside).sum() / seen.weights.sum()
    assert seen.shares[-1] == pytest.approx(share.item(), abs=1e-4)
    assert len(seen.shares) == 2


def test_points_grow_with_the_image(predictor: Predictor) -> None:
    """A grey image of twice the size is the same to the network."""
    grey = torch.full((3, 90, 120), 77, dtype=torch.uint8)
    small, large = grey, grey.repeat(1, 2, 2)
    looks = [
        attention_of_detection(predictor, i, predictor.predict(i).take(slice(0, 1)))
        for i in (small, large)
    ]
    for part in ("points", "boxes"):
        a, b = (getattr(seen, part) for seen in looks)
        torch.testing.assert_close(2 * a, b, rtol=1e-3, atol=0.1)
    assert looks[0].shares == pytest.approx(looks[1].shares, abs=1e-3)


def test_the_picture_has_the_points_where_they_are() -> None:
    seen = ImageResult(
        shares=(1.0,),
        picture=torch.full((3, 60, 120), 128, dtype=torch.uint8),
        boxes=torch.tensor([[60.0, 10.0, 110.0, 50.0]]),
        points=torch.tensor([[[90.0, 30.0], [20.0, 15.0]]]),
        weights=torch.tensor([[1.0, 0.5]]),
    )
    drawn = attention_picture(seen)
    assert drawn.size == (800, 400)
    pixels = np.asarray(drawn).astype(int)
    coloured = np.ptp(pixels, axis=2) > 30
    assert coloured[200, 600]  # the middle of (90, 30)
    assert coloured[100, 133]
    assert not coloured[300, 200]
    assert coloured[200, 398:403].any()  # the left edge of the box
    assert coloured[:, :300].sum() < coloured[:, 560:640].sum()  # areas follow weights


def test_a_decoder_without_points_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(
        tmp_path / "model.safetensors",
        [
            *("model=conditional_detr", "model/backbone=resnet10_thin", "model.dim=32"),
            "model.backbone.out_indices=[4]",
            *("model.heads=2", "model.hidden=32", "model.encoder_layers=1"),
            *("model.decoder_layers=1", "model.num_queries=5", "num_classes=3"),
            *("evaluation=coco", "augmentation=none"),
        ],
    )
    predictor = codetr.load(path, device="cpu")
    chosen = predictor.predict(NOISE).take(slice(0, 1))
    with pytest.raises(UserError, match="no deformable attention"):
        attention_of_detection(predictor, NOISE, chosen)
