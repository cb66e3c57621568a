import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.testing import assert_close

from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.nms import SoftNms
from codetr.structures import ImageInfo, Predictions

FAR = -200.0
"""A logit whose sigmoid underflows to zero."""


def _info(scale: tuple[float, float] = (1.0, 1.0)) -> ImageInfo:
    return ImageInfo(image_id=1, original_size=(100, 200), scale=scale)


def _random(batch: int = 2, queries: int = 20, classes: int = 5) -> Predictions:
    return Predictions(
        logits=torch.randn(batch, queries, classes), boxes=torch.rand(batch, queries, 4)
    )


def test_takes_the_best_query_class_pairs():
    predictions = _random()
    sizes = torch.tensor([[100, 200], [50, 80]])
    found = Postprocess(max_detections=30)(predictions, sizes, (_info(), _info()))
    for image, logits in zip(found, predictions.logits, strict=True):
        # Oracle: sort all pairs in Python.
        pairs = [(float(p), k) for row in logits.sigmoid() for k, p in enumerate(row)]
        best = sorted(pairs, reverse=True)[:30]
        assert_close(image.scores, torch.tensor([p for p, _ in best]))
        assert image.labels.tolist() == [k for _, k in best]


def test_boxes_are_clamped_to_the_valid_size_and_brought_to_the_original_image():
    predictions = Predictions(
        logits=torch.tensor([[[2.0], [1.0]]]),
        boxes=torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.0, 0.9, 0.2, 0.6]]]),
    )
    (found,) = Postprocess()(predictions, torch.tensor([[120, 300]]), (_info((1.5, 1.2)),))
    expected = torch.tensor([[50.0, 25, 150, 75], [0.0, 60, 20, 100]])
    assert_close(found.boxes_xyxy_px, expected)


def test_fewer_pairs_than_detections():
    found = Postprocess(max_detections=300)(
        _random(batch=1, queries=3, classes=2), torch.tensor([[10, 10]]), (_info(),)
    )
    assert len(found[0]) == 6


def test_scores_of_zero_are_dropped_and_nan_is_not_hidden():
    predictions = _random(batch=2, queries=4, classes=1)
    predictions.logits[0, 1:] = FAR
    predictions.logits[1] = float("nan")
    found = Postprocess()(predictions, torch.tensor([[10, 10]] * 2), (_info(), _info()))
    assert [len(image) for image in found] == [1, 4]


def test_half_precision_is_ranked_in_single():
    predictions = _random().to(torch.bfloat16)
    found = Postprocess()(predictions, torch.tensor([[10, 10]] * 2), (_info(), _info()))
    assert found[0].scores.dtype == found[0].boxes_xyxy_px.dtype == torch.float32


def test_the_two_dialects_of_nms_differ_in_numbers_only():
    # Eight queries on one spot push the ninth, elsewhere, out of the best eight.
    boxes = torch.tensor([0.3, 0.3, 0.2, 0.2]).repeat(9, 1)
    boxes[8] = torch.tensor([0.8, 0.8, 0.2, 0.2])
    logits = torch.linspace(4, 1, 9)[:, None]
    predictions = Predictions(logits=logits[None], boxes=boxes[None])
    arguments = (predictions, torch.tensor([[100, 100]]), (_info(),))
    nms = SoftNms(0.8, 1e-3)
    (sense_x,) = Postprocess(max_detections=8, pre_nms=9, nms=nms)(*arguments)
    (mmdet_3,) = Postprocess(max_detections=8, nms=nms)(*arguments)
    best, lone = torch.tensor([4.0, 1.0]).sigmoid()
    assert_close(sense_x.scores, torch.stack([best, lone]))
    assert_close(sense_x.boxes_xyxy_px[1], torch.tensor([70.0, 70, 90, 90]))
    assert_close(mmdet_3.scores, best[None])


def test_max_detections_is_applied_after_nms():
    post = Postprocess(max_detections=5, pre_nms=50, nms=SoftNms())
    found = post(_random(), torch.tensor([[100, 100]] * 2), (_info(), _info()))
    for image in found:
        assert len(image) == 5
        assert (image.scores.diff() <= 0).all()


def test_detections_can_be_filtered_by_score():
    (found,) = Postprocess()(_random(batch=1), torch.tensor([[10, 10]]), (_info(),))
    above = found.above(0.6)
    assert 0 < len(above) < len(found)
    assert (above.scores > 0.6).all()
    assert len(above.boxes_xyxy_px) == len(above.labels) == len(above)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_detections": 0}, "max_detections"),
        ({"pre_nms": 0, "nms": SoftNms()}, "pre_nms"),
        ({"pre_nms": 900}, "pre_nms"),
    ],
)
def test_bad_numbers_are_named(options, name):
    with pytest.raises(UserError, match=name):
        Postprocess(**options)


@pytest.mark.parametrize("name", ["coco", "soft_nms"])
def test_configuration_files_build(name):
    folder = conf_folder() / "evaluation"
    config = OmegaConf.merge(
        OmegaConf.load(folder / "coco.yaml"), OmegaConf.load(folder / f"{name}.yaml")
    )
    post = instantiate(config.postprocess)
    assert post.max_detections == 300
    assert (post.pre_nms, post.nms) == ((None, None) if name == "coco" else (900, SoftNms()))
    assert callable(instantiate(config.evaluator))
