"""scripts/predict.py on files, folders, patterns and videos; what cannot be read is skipped."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from commands import Command, environment
from hydra import compose, initialize_config_dir
from PIL import Image
from pycocotools.coco import COCO
from tiff_files import Layout, encoded, write_image, write_parts
from tiny_checkpoint import CLASSES, save_tiny
from tiny_official import TINY, save_official, tiny_model, to_official

from codetr.conf_folder import conf_folder
from codetr.data import regions
from codetr.errors import UserError
from codetr.inference import predictor
from codetr.inference.command import OF_EXPORT, OF_PREDICTION, Summary, predict, require_used

CONF = conf_folder()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model.safetensors", "augmentation=none")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images, one of them in a folder below, a broken one and a text."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, shape in (("a.jpg", (80, 120, 3)), ("below/ü.png", (96, 64, 3))):
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    return folder


def write_video(path: Path, frames: int = 3) -> Path:
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for _ in range(frames):
            pixels = random.integers(0, 256, (96, 128, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def predicted(folder: Path, *overrides: str) -> Summary:
    """In this process: a command of its own takes seconds to import everything."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        options = [f"paths.run_dir={folder}", "device=cpu", *overrides]
        cfg = compose("predict", options)
    return predict(cfg, options)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_command_skips_what_is_broken(
    command: Command, tiny: Path, photos: Path, tmp_path: Path
) -> None:
    done = command(
        "scripts/predict.py",
        f"checkpoint={tiny}",
        f"source={photos}",
        "name=mine",
        "threshold=0.4",
        "batch=2",
        "device=cpu",
    )
    assert done.returncode == 0, done.stderr
    assert "broken.jpg" in done.stdout
    assert "2 images" in done.stdout
    assert "1 could not be read" in done.stdout
    run = tmp_path / "runs/mine"
    ground = COCO(str(run / "images.json"))
    results = ground.loadRes(str(run / "predictions.json"))
    assert {image["file_name"] for image in ground.dataset["images"]} == {"a.jpg", "below/ü.png"}
    assert {c["name"]: c["id"] for c in ground.dataset["categories"]} == dict(
        zip(CLASSES.names, CLASSES.category_ids, strict=True)
    )
    rows = table(run)
    assert 0 < len(rows) == len(results.anns)
    assert {row["file"] for row in rows} <= {"a.jpg", "below/ü.png"}
    assert all(float(row["score"]) >= 0.4 for row in rows)
    first = json.loads((run / "predictions.json").read_text())[0]
    x, y, width, height = first["bbox"]
    assert float(rows[0]["x_max"]) == pytest.approx(x + width, abs=0.01)
    assert float(rows[0]["y_max"]) == pytest.approx(y + height, abs=0.01)
    for name in ("a.jpg", "below/ü.png"):
        with Image.open(run / "images" / name) as annotated, Image.open(photos / name) as own:
            factor = -(-480 // max(own.size))
            assert annotated.size == (own.width * factor, own.height * factor)


def test_file_names_that_are_not_utf_8(command: Command, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    good, broken = (os.fsdecode(name) for name in (b"good\xff.png", b"broken\xfe.png"))
    Image.new("RGB", (64, 64)).save(folder / "plain.png")
    try:
        (folder / "plain.png").rename(folder / good)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    (folder / broken).write_bytes(b"no image")
    told = (f"checkpoint={tiny}", f"source={folder}", "name=mine", "device=cpu", "threshold=0")
    done = command("scripts/predict.py", *told)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert r"broken\udcfe.png" in done.stdout
    run = tmp_path / "runs/mine"
    assert r"broken\udcfe.png" in (run / "predict.log").read_text("utf-8")
    assert {row["file"] for row in table(run)} == {r"good\udcff.png"}
    assert json.loads((run / "images.json").read_text("utf-8"))["images"][0]["file_name"] == good
    assert (run / "images" / good).is_file()


def test_nothing_readable_is_an_error(tiny: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"broken\.jpg.*could be read"):
        predicted(tmp_path, f"checkpoint={tiny}", f"source={photos}/broken.jpg")


def test_pattern_and_views(tiny: Path, photos: Path, tmp_path: Path) -> None:
    plain = predicted(
        tmp_path / "a", f"checkpoint={tiny}", f"source='{photos}/**/*.png'", "threshold=0"
    )
    assert (plain.images, plain.broken) == (1, ())
    assert {row["file"] for row in table(tmp_path / "a")} == {"below/ü.png"}
    several = predicted(
        tmp_path / "b",
        f"checkpoint={tiny}",
        f"source='{photos}/**/*.png'",
        "threshold=0",
        "views.flip=true",
        "views.tile=64",
        "views.merge._target_=codetr.nms.SoftNms",
        "pictures=false",
    )
    assert plain.boxes < several.boxes <= 300
    assert not (tmp_path / "b/images").exists()


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A folder with the same image as a TIFF in tiles, which counts as large, and as a PNG."""
    folder = tmp_path / "scan"
    folder.mkdir()
    random = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(random).resize((360, 240))
    image.save(folder / "a.png")
    write_image(folder / "b.tif", image, Layout(chunk=(64, 80)), "tiff_lzw")
    return folder


def test_tiles_of_a_large_file_are_read_alone(
    tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions, "LARGE", 0)
    monkeypatch.setattr(predictor, "PICTURE_SIDE", 120)
    monkeypatch.setattr("codetr.data.resize._BAND_PIXELS", 4000)
    shrinking = save_tiny(tmp_path / "a.safetensors", "augmentation=small")
    told = [f"checkpoint={shrinking}", f"source={scan}", "threshold=0", "views.tile=128"]
    with monkeypatch.context() as patched:
        patched.setattr(predictor, "fitted_size", pytest.fail)  # in what is not read in regions
        patched.setattr(regions, "LARGE", 2**20)
        predicted(tmp_path / "whole", *told)
    told.append("max_megapixels=0.05")  # fewer than the image has, which is not decoded whole
    summary = predicted(tmp_path / "out", *told, "views.flip=true", "batch=3")
    assert (summary.images, len(summary.broken)) == (1, 1)
    assert "a.png has 360x240 pixels" in summary.broken[0].reason
    predicted(tmp_path / "same", *told, "pictures=true")
    rows = [table(tmp_path / name) for name in ("whole", "same")]
    of_png, of_tiff = (
        [{k: v for k, v in row.items() if k != "file"} for row in rows[0] if row["file"] == name]
        for name in ("a.png", "b.tif")
    )
    assert of_png == of_tiff
    assert [{k: v for k, v in row.items() if k != "file"} for row in rows[1]] == of_png
    assert len(of_png) > 5
    (entry,) = json.loads((tmp_path / "same/images.json").read_text())["images"]
    assert (entry["width"], entry["height"]) == (360, 240)
    with Image.open(tmp_path / "same/images/b.tif") as shown:
        assert shown.size == (480, 320), "a small picture, four times as large"


@pytest.mark.parametrize("batch", [1, 2])
def test_a_damaged_tile_is_skipped_with_its_image(
    tmp_path: Path, tiny: Path, scan: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(regions, "LARGE", 0)
    with Image.open(scan / "b.tif") as file:
        start = file.tag_v2[324][5]
    content = bytearray((scan / "b.tif").read_bytes())
    content[start : start + 200] = b"\xff" * 200
    (scan / "b.tif").write_bytes(content)
    told = (f"checkpoint={tiny}", f"source={scan}", "views.tile=128", f"batch={batch}")
    summary = predicted(tmp_path / "out", *told)
    assert summary.images == 1
    assert [(one.name, "cannot decode" in one.reason) for one in summary.broken] == [
        ("b.tif", True)
    ]
    assert [path.name for path in (tmp_path / "out/images").iterdir()] == ["a.png"]


MEASURE = """
import resource, sys
import codetr
from codetr.inference.views import Views
from PIL import Image
predictor = codetr.load(sys.argv[1], device="cpu", views=Views(tile=3000, overlap=0.0))
Image.new("RGB", (3100, 3100)).save(sys.argv[2] + ".png")
predictor.predict(sys.argv[2] + ".png")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = predictor.predict(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_of_a_large_file(tmp_path: Path) -> None:
    """Decoded whole it takes 7 bytes for a pixel, and 3 as a tensor."""
    shrinking = save_tiny(tmp_path / "a.safetensors", "augmentation=small")
    part, coding, _ = encoded(Image.new("RGB", (512, 512), (90, 200, 30)), "tiff_adobe_deflate")
    path = tmp_path / "a.tif"
    write_parts(path, (6000, 6000), Layout(chunk=(512, 512)), [part] * 12**2, coding)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(shrinking), str(path)],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    assert int(done.stdout) * 1024 < 2 * 6000**2


def test_video(tiny: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4")
    out = tmp_path / "out"
    summary = predicted(out, f"checkpoint={tiny}", f"source={video}", "threshold=0.4", "batch=2")
    assert summary.images == 3
    assert {row["frame"] for row in table(out)} == {"0", "1", "2"}
    with av.open(str(out / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 10
        pixels = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pixels) == 3
    assert pixels[0].shape == (384, 512, 3)  # enlarged, so that labels can be read


@pytest.mark.parametrize("place", ["query_head", "query_head.dn_generator"])
def test_official_file_of_either_dialect(tmp_path: Path, photos: Path, place: str) -> None:
    state = to_official(tiny_model(len(CLASSES)).state_dict())
    state[f"{place}.label_embedding.weight"] = state.pop("query_head.label_embedding.weight")
    official = save_official(tmp_path / "official.pth", state, list(CLASSES.names))
    summary = predicted(
        tmp_path / "out",
        f"checkpoint=official:{official}",
        "experiment=co_dino_5scale_r50_1x_coco",
        *TINY,
        "augmentation=small",
        f"source={photos}",
        "threshold=0",
    )
    assert summary.images == 2
    assert summary.boxes > 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("source=/no/such",), "/no/such"),
        (("source=/no/such/*.jpg",), "holds no image"),
        (("threshold=2",), "threshold=2"),
        (("checkpoint=/no/such.ckpt",), "/no/such.ckpt"),
        (("evaluation.branch=atss",), "evaluation.branch=atss"),
        (("evaluation.max_detections=[5]",), "evaluation.max_detections=[5]: changes nothing"),
        (("++evaluation.postprocess.pre_nmss=5",), "did you mean pre_nms?"),
        (("++evaluation.postprocess.pre_nms=some",), "pre_nms=some"),
        (("model=co_dino_tiny", "num_classes=3"), "brings its own settings"),
    ],
)
def test_mistakes_are_named(
    tiny: Path, photos: Path, tmp_path: Path, options: tuple[str, ...], named: str
) -> None:
    with pytest.raises(UserError) as caught:
        predicted(tmp_path, f"checkpoint={tiny}", f"source={photos}", *options)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setting_of_the_postprocessing_leaves_the_checkpoints_others(
    command: Command, tiny: Path, photos: Path, tmp_path: Path
) -> None:
    def found(name: str, *options: str) -> list[dict]:
        plain = [f"checkpoint={tiny}", f"source={photos}", "threshold=0", "pictures=false"]
        done = command(
            "scripts/predict.py", *plain, f"name={name}", f"paths.runs={tmp_path}", *options
        )
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / name / "predictions.json").read_text())

    every = found("every")
    few = found("few", "evaluation.postprocess.max_detections=2")
    assert few
    assert few == [
        box
        for image in {box["image_id"]: None for box in every}
        for box in [b for b in every if b["image_id"] == image][:2]
    ]
    assert len(few) < len(every)


def test_nothing_that_is_given_is_ignored() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        used = [f"{key}=1" for key in OF_PREDICTION & compose("predict", ["source=x"]).keys()]
    plain = ["source=x", "views.flip=true", "evaluation=soft_nms", "paths=y"]
    plain += ["evaluation.postprocess.max_detections=5"]
    require_used([*used, *plain], OF_PREDICTION, "best.ckpt")
    for ignored in ("data.root=x", "augmentation=detr", "trainer=cpu", "ops.msda=torch", "seed=1"):
        with pytest.raises(UserError, match=f"{ignored}: changes nothing"):
            require_used([ignored], OF_PREDICTION, "best.ckpt")
    for ignored in ("evaluation=coco", "threshold=0.5", "~panel"):
        with pytest.raises(UserError, match=f"{ignored}: changes nothing"):
            require_used([ignored], OF_EXPORT, "best.ckpt")
    official = ["experiment=x", "model.dim=3", "data.size_divisor=1", "model/backbone=resnet50"]
    require_used(official, OF_EXPORT, "official:a.pth")
    with pytest.raises(UserError, match="panel=null"):
        require_used(["panel=null"], OF_PREDICTION, "official:a.pth")


def test_the_command_says_what_it_would_ignore(command: Command, tiny: Path) -> None:
    done = command("scripts/predict.py", f"checkpoint={tiny}", "source=x (ü)", "data.root=größe")
    assert done.returncode == 2
    assert done.stderr.startswith("error: data.root='größe': changes nothing here")


def test_a_broken_video_is_named(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(UserError, match=r"clip\.mp4"):
        predicted(tmp_path / "out", f"checkpoint={tiny}", f"source={path}")
