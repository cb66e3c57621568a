"""One answer for every kind of image; the answer is evaluation's; files of strangers are safe."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import CLASSES, save_tiny

import codetr
from codetr.checkpoints.files import read_detector_file, write_detector_file
from codetr.data.collate import Collate
from codetr.data.sample import as_sample
from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.inference.finder import choose_device
from codetr.inference.predictor import Prediction, Predictor, build_detector
from codetr.inference.views import Views
from codetr.nms import SoftNms

PIXELS = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor(tiny: Path) -> Predictor:
    return codetr.load(tiny, device="cpu")


def same(a: Prediction, b: Prediction) -> None:
    torch.testing.assert_close(a.boxes_xyxy_px, b.boxes_xyxy_px, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(a.scores, b.scores, atol=1e-5, rtol=1e-4)
    assert a.names == b.names


def test_cudnn_computes_no_attention_where_a_model_is_loaded(tiny: Path) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        codetr.load(tiny, device="cpu")
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize("available", [True, False])
def test_auto_takes_a_gpu_where_there_is_one(
    available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device("auto") == torch.device("cuda" if available else "cpu")


def test_every_kind_of_image_gives_the_same(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path)
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    given = [path, str(path), Image.fromarray(PIXELS), PIXELS, tensor]
    found = predictor.predict(given)
    assert len(found) == 5
    assert len(found[0]) == 36
    for one in found[1:]:
        same(one, found[0])
    same(predictor.predict(PIXELS), found[0])


def test_it_is_the_detector_with_its_postprocess(predictor: Predictor, tiny: Path) -> None:
    content = read_detector_file(tiny)
    detector = build_detector(content, "tiny")
    batch = Collate()([as_sample(torch.from_numpy(PIXELS).permute(2, 0, 1))])
    with torch.no_grad():
        expected = Postprocess()(detector(batch.images), batch.images.sizes, batch.infos)[0]
    found = predictor.predict(PIXELS)
    torch.testing.assert_close(found.boxes_xyxy_px, expected.boxes_xyxy_px)
    torch.testing.assert_close(found.scores, expected.scores)
    assert found.names == tuple(CLASSES.names[i] for i in expected.labels)


def test_threshold(predictor: Predictor) -> None:
    everything = predictor.predict(PIXELS)
    middle = everything.scores.median().item()
    found = predictor.predict(PIXELS, threshold=middle)
    assert 0 < len(found) == (everything.scores > middle).sum()
    with pytest.raises(UserError, match="threshold=30: give a score from 0 to 1"):
        predictor(PIXELS, threshold=30)


def test_batches_of_equal_images_change_nothing(tiny: Path, predictor: Predictor) -> None:
    images = [PIXELS, PIXELS[::-1].copy(), PIXELS[:, ::-1].copy()]
    for one, other in zip(
        codetr.load(tiny, device="cpu", batch=2).predict(images),
        predictor.predict(images),
        strict=True,
    ):
        same(one, other)


def test_boxes_are_in_pixels_of_the_original(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model.safetensors", "augmentation=small")
    found = codetr.load(path, device="cpu").predict([PIXELS, PIXELS.repeat(2, 0).repeat(2, 1)])
    size = torch.tensor([128, 96, 128, 96])
    for factor, one in zip((1, 2), found, strict=True):
        assert (one.boxes_xyxy_px <= factor * size + 1e-3).all()
    assert found[1].boxes_xyxy_px.max() > 128


@pytest.mark.parametrize(
    "wrong",
    [
        PIXELS.astype(np.float32),
        PIXELS[..., 0],
        torch.zeros(3, 4, 4),
        torch.zeros(4, 4),
        Image.new("F", (8, 8)),
        3,
        None,
    ],
)
def test_other_things_are_refused(predictor: Predictor, wrong: object) -> None:
    with pytest.raises(UserError) as caught:
        predictor.predict([wrong])
    assert "give" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bf16_is_near(tiny: Path, predictor: Predictor) -> None:
    found = codetr.load(tiny, device="cpu", precision="bf16").predict(PIXELS)
    expected = predictor.predict(PIXELS)
    assert 0 < (found.scores - expected.scores).abs().max() < 0.1


def test_soft_nms_instead_of_its_own_postprocess(tiny: Path, predictor: Predictor) -> None:
    soft = Postprocess(nms=SoftNms(iou_threshold=0.3))
    found = codetr.load(tiny, device="cpu", postprocess=soft).predict(PIXELS)
    assert found.scores.sum() < predictor.predict(PIXELS).scores.sum()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"device": "tpu9"}, "device=tpu9"),
        ({"device": "cuda:77"}, "device=cuda:77"),
        ({"precision": "8"}, "precision=8"),
        ({"batch": 0}, "batch=0"),
        ({"experiment": "x"}, "experiment"),
        ({"views": Views(scales=(0.5,))}, "views.scales"),
    ],
)
def test_bad_options_are_named(tiny: Path, options: dict, named: str) -> None:
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        codetr.load(tiny, **options)


@pytest.mark.parametrize(
    "target", ["os.system", "codetr.inference.hub.json.dumps", "codetr.data.images.read_image"]
)
def test_a_file_cannot_name_functions_to_call(tiny: Path, tmp_path: Path, target: str) -> None:
    content = read_detector_file(tiny)
    config = dict(content.record.config)
    config["evaluation"] = {"postprocess": {"_target_": target, "_args_": ["true"]}}
    path = tmp_path / "bad.safetensors"
    write_detector_file(path, replace(content, record=replace(content.record, config=config)))
    with pytest.raises(UserError, match=target):
        codetr.load(path, device="cpu")


def test_hub_folder_without_network(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "mine"
    predictor.save_pretrained(folder, model_card_kwargs={"name": "Cats and dögs"})
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "# Cats and dögs" in card
    assert "fire truck" in card
    assert "library_name: codetr" in card
    assert (folder / "config.json").is_file()
    again = codetr.Predictor.from_pretrained(folder, device="cpu")
    same(again.predict(PIXELS), predictor.predict(PIXELS))
    content = read_detector_file(folder / "model.safetensors")
    assert content.record.classes == CLASSES
    assert "paths" not in content.record.config
    assert content.record.config["data"]["root"] is None


def test_no_folder_and_no_network_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        codetr.Predictor.from_pretrained("nobody/nothing", local_files_only=True)
    assert "nobody/nothing" in str(caught.value)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        codetr.Predictor.from_pretrained(tmp_path)


def test_the_package_has_nothing_else() -> None:
    assert {"load", "Predictor", "train"} <= set(dir(codetr))
    with pytest.raises(AttributeError, match="nothing"):
        codetr.nothing  # noqa: B018
