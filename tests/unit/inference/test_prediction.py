"""What a user does with a prediction, and where images may come from."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as rle
from omegaconf import OmegaConf
from PIL import Image
from tiny_checkpoint import save_tiny

import codetr
from codetr.classes import ClassList
from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.inference import inputs, prediction
from codetr.inference.inputs import as_image
from codetr.inference.prediction import Prediction, within
from codetr.inference.predictor import THRESHOLD
from codetr.masks import Masks

CLASSES = ClassList(names=("ant", "bee"), category_ids=(7, 9))
PIXELS = np.full((40, 60, 3), 90, dtype=np.uint8)


@pytest.fixture
def found() -> Prediction:
    return Prediction(
        boxes_xyxy_px=torch.tensor([[10.0, 5.0, 30.0, 25.0], [0.0, 0.0, 4.0, 8.0]]),
        scores=torch.tensor([0.9, 0.4]),
        labels=torch.tensor([1, 0]),
        class_list=CLASSES,
        size=(40, 60),
        pixels=PIXELS,
    )


def test_coco_records_have_the_ids_of_the_training_data(found: Prediction) -> None:
    first, second = found.to_coco(image_id=3)
    assert first["bbox"] == [10, 5, 20, 20]
    assert [r["category_id"] for r in (first, second)] == [9, 7]
    assert {r["image_id"] for r in (first, second)} == {3}
    assert first["score"] == pytest.approx(0.9)


@pytest.fixture
def masked(found: Prediction) -> Prediction:
    cells = torch.zeros(2, 4, 4)
    cells[0, :, :2], cells[1] = 1.0, 1.0  # the left half; all
    return replace(found, cells=Masks(probabilities=cells, scores=torch.tensor([0.5, 0.2])))


def test_masks_are_bitmaps_of_the_image(found: Prediction, masked: Prediction) -> None:
    assert found.masks is None
    assert found.mask_scores is None
    assert "segmentation" not in found.to_coco(image_id=3)[0]
    masks = masked.masks
    assert masks is not None
    assert masks.shape == (2, 40, 60)
    assert masks.dtype == torch.bool
    assert masks[0, 5:25, 11:19].float().mean() > 0.95
    assert 180 < masks[0].sum() < 220
    assert not masks[0, :, 22:].any()
    best = masked.take(masked.scores > 0.5)
    assert best.masks is not None
    assert torch.equal(best.masks, masks[:1])


def test_coco_records_have_run_lengths(masked: Prediction) -> None:
    masks = masked.masks
    assert masks is not None
    for record, mask, score in zip(masked.to_coco(3), masks, (0.5, 0.2), strict=True):
        counts = record["segmentation"]["counts"].encode()
        decoded = rle.decode({"size": record["segmentation"]["size"], "counts": counts})
        assert np.array_equal(decoded.astype(bool), mask.numpy())
        assert record["mask_score"] == pytest.approx(score)


def test_picture_tints_masks(found: Prediction, masked: Prediction) -> None:
    plain, tinted = (np.asarray(one.plot()).astype(int) for one in (found, masked))
    factor = plain.shape[1] // 60
    changed = (plain != tinted).any(axis=2)
    assert changed[20 * factor, 14 * factor]  # within the mask
    assert not changed[20 * factor, 26 * factor]  # within the box, outside the mask
    assert not changed[35 * factor, 50 * factor]


def test_a_smaller_picture_shows_the_same(
    found: Prediction, masked: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an image of 400 x 600 pixels, which is read in regions, there is one of 40 x 60."""
    for one in (found, masked):
        large = replace(one, size=(400, 600), boxes_xyxy_px=one.boxes_xyxy_px * 10)
        assert not np.array_equal(np.asarray(large.plot()), np.asarray(one.plot())), "no labels"
        with monkeypatch.context() as patched:
            patched.setattr(prediction, "LEAST_NAMED", 1.0)
            assert np.array_equal(np.asarray(large.plot()), np.asarray(one.plot()))
        assert repr(large) == repr(one).replace("60 x 40", "600 x 400")
    large = replace(masked, size=(400, 600), boxes_xyxy_px=masked.boxes_xyxy_px * 10)
    assert large.masks is not None
    assert large.masks.shape == (2, 400, 600)


def test_some_of_it_is_still_of_the_same_image(found: Prediction) -> None:
    best = found.take(found.scores > 0.5)
    assert best.names == ("bee",)
    assert best.pixels is PIXELS
    assert repr(best) == "Prediction(1 in 60 x 40 pixels: bee 0.90)"


def test_picture_shows_the_boxes_and_leaves_the_image_alone(
    found: Prediction, tmp_path: Path
) -> None:
    path = found.save(tmp_path / "new/found.png")
    assert np.asarray(Image.open(path)).std() > 0
    assert (PIXELS == 90).all()
    nothing = np.asarray(found.take(slice(0, 0)).plot())
    assert (nothing == 90).all()


def test_formats_that_cannot_be_written_are_named(found: Prediction, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found\.xyz: the picture cannot be written .*\.jpg"):
        found.save(tmp_path / "found.xyz")


def test_supervision_gets_names_and_numbers(
    found: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = ModuleType("supervision")
    pretended.Detections = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", pretended)
    made = found.to_supervision()
    assert made.xyxy.tolist() == found.boxes_xyxy_px.tolist()
    assert made.class_id.tolist() == [1, 0]
    assert made.data["class_name"].tolist() == ["bee", "ant"]
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="pip install supervision"):
        found.to_supervision()


def test_fiftyone_gets_shares_of_the_image_and_masks_within_boxes(
    found: Prediction, masked: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = ModuleType("fiftyone")
    pretended.Detections = pretended.Detection = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fiftyone", pretended)
    first, second = found.to_fiftyone().detections
    assert first.bounding_box == pytest.approx([10 / 60, 5 / 40, 20 / 60, 20 / 40])
    assert (first.label, second.label) == ("bee", "ant")
    assert first.confidence == pytest.approx(0.9)
    assert first.mask is None
    whole = masked.masks
    assert whole is not None
    first, second = masked.to_fiftyone().detections
    assert np.array_equal(first.mask, whole[0, 5:25, 10:30].numpy())
    assert first.mask.base is None, "it keeps no bitmap of the whole image in memory"
    assert second.mask.shape == (8, 4)
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(UserError, match="pip install fiftyone"):
        found.to_fiftyone()


@pytest.mark.parametrize(
    ("box", "shape"),
    [
        ([0.2, 0.5, 0.4, 0.5], (2, 2)),
        ([1.0, 1.0, 0.0, 0.0], (1, 1)),  # at the far corner, without extent
        ([-0.2, -0.5, 1.4, 2.0], (4, 6)),
    ],
)
def test_a_mask_within_its_box_has_a_pixel_at_least(box: list[float], shape: tuple) -> None:
    assert within(torch.ones(4, 6, dtype=torch.bool), box).shape == shape


def test_fiftyone_itself_takes_it(masked: Prediction) -> None:
    """Its classes, without its database; masks come back as they were, within their boxes."""
    fiftyone = pytest.importorskip("fiftyone", reason="needs the fiftyone package")
    corner = torch.rand(50, 2, dtype=torch.float64) * torch.tensor([50.0, 30.0])
    boxes = torch.cat([corner, corner + 1 + 9 * torch.rand(50, 2)], dim=1)
    cells = (torch.rand(50, 7, 7) > 0.5).float()
    many = replace(
        masked,
        boxes_xyxy_px=boxes,
        scores=torch.rand(50),
        labels=torch.arange(50) % 2,
        cells=Masks(probabilities=cells, scores=torch.rand(50)),
    )
    made = many.to_fiftyone()
    assert isinstance(made, fiftyone.Detections)
    assert [one.label for one in made.detections] == ["ant", "bee"] * 25
    assert many.masks is not None
    for one, whole, box in zip(made.detections, many.masks.numpy(), boxes.int(), strict=True):
        drawn = one.to_segmentation(frame_size=(60, 40), target=1).mask.astype(bool)
        left, top, right, bottom = box.tolist()
        assert np.array_equal(drawn[top:bottom, left:right], whole[top:bottom, left:right])
        assert drawn.sum() == drawn[top:bottom, left:right].sum()
    assert not many.take(slice(0, 0)).to_fiftyone().detections


@pytest.mark.filterwarnings("ignore")  # its own
def test_fiftyone_keeps_it(masked: Prediction, tmp_path: Path) -> None:
    """In its database, from which it evaluates and exports."""
    fiftyone = pytest.importorskip("fiftyone", reason="needs the fiftyone package")
    config = importlib.import_module("fiftyone.core.config")
    try:
        dataset = fiftyone.Dataset("codetr-test", overwrite=True)
    except config.FiftyOneConfigError as error:
        pytest.skip(f"needs the database of the fiftyone package: {error}")
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    sample = fiftyone.Sample(filepath=str(path))
    sample["truth"], sample["found"] = masked.to_fiftyone(), masked.to_fiftyone()
    try:
        dataset.add_sample(sample)
        dataset.reload()
        kept = dataset.first()["found"].detections
        assert [one.label for one in kept] == ["bee", "ant"]
        for one, given in zip(kept, masked.to_fiftyone().detections, strict=True):
            assert np.array_equal(one.mask, given.mask)
            assert one.bounding_box == given.bounding_box
        found = dataset.evaluate_detections(
            "found", gt_field="truth", use_masks=True, compute_mAP=True, progress=False
        )
        assert found.mAP() == 1
    finally:
        dataset.delete()


def test_supervision_itself_takes_it(found: Prediction) -> None:
    package = pytest.importorskip("supervision", reason="needs the supervision package")
    if not hasattr(package, "Detections"):
        pytest.skip("needs the supervision package: found the folder of tests of that name")
    made = found.to_supervision()
    assert len(made) == 2
    assert made[made.confidence > 0.5].data["class_name"].tolist() == ["bee"]


def test_call_has_the_threshold_of_the_command(tmp_path: Path) -> None:
    for name in ("predict", "demo"):
        assert OmegaConf.load(conf_folder() / f"{name}.yaml").threshold == THRESHOLD
    detector = codetr.load(
        save_tiny(tmp_path / "m.safetensors", "augmentation=small"), device="cpu"
    )
    everything = detector.predict(PIXELS)
    assert len(detector(PIXELS)) == (everything.scores > THRESHOLD).sum()
    said = repr(detector)
    for part in ("Detr", "M parameters on cpu", "short", "classes"):
        assert part in said


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Not into the test's output."""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a server of files in ``tmp_path``, on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_address_is_an_image(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    assert as_image(f"{address}/a.png").shape == (3, 40, 60)
    with pytest.raises(UserError, match=rf"{address}/c.png: cannot be fetched \(.*404"):
        as_image(f"{address}/c.png")
    with pytest.raises(UserError, match=rf"image {address}/b.png"):
        as_image(f"{address}/b.png")
    with monkeypatch.context() as patch:  # a server that does not speak HTTP
        patch.setattr(Quiet, "do_GET", lambda own: own.wfile.write(b"nonsense\r\n\r\n"))
        with pytest.raises(UserError, match=rf"{address}/a.png: cannot be fetched \(nonsense"):
            as_image(f"{address}/a.png")
    monkeypatch.setattr(inputs, "MAX_BYTES", 10)
    with pytest.raises(UserError, match=rf"^{address}/a\.png: more than 0 MiB"):
        as_image(f"{address}/a.png")
