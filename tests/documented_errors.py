"""What makes each error that docs/troubleshooting.md quotes: files in an empty folder, and the
command that is given there.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch
from commands import SMALL, write_coco
from hydra.utils import instantiate
from PIL import Image
from planted import File
from tiny_checkpoint import TINY, save_tiny
from tiny_official import TINY as OFFICIAL
from tiny_zoo import write_table

from codetr.checkpoints.experiment import build_record, compose_train
from codetr.checkpoints.files import DetectorFile, write_detector_file
from codetr.classes import ClassList

CO_DINO = "co_dino_5scale_r50_1x_coco"
INSPECT = ("scripts/inspect_data.py",)
PREDICT = ("scripts/predict.py", "source=pictures")
TRAIN = ("train.py", "data.num_workers=0", "trainer=cpu", "logger=[csv]")
BUILT_IN = ("train.py", *SMALL)
CONVERT = (
    *("scripts/convert.py", "checkpoint=official:model.pth", "out=out.safetensors"),
    f"experiment={CO_DINO}",
)
EVAL = ("eval.py", "data.num_workers=0", "trainer=cpu")
CUSTOM = ("data=custom", "data.root=pictures")
COCO = ("data=coco", "data.root=pictures")
ANNOTATIONS = {
    "a.json": "pictures/annotations/instances_train2017.json",
    "panoptic_train2017.json": "pictures/annotations/instances_train2017.json",
    "train.json": "pictures/annotations/instances_train2017.json",
    "val.json": "pictures/annotations/instances_val2017.json",
}

NO_NETWORK = """
import socket
def refuse(*args, **options):
    raise TimeoutError("timed out")
socket.create_connection = refuse
"""


def without(*packages: str) -> str:
    """Packages that are installed, as if they were not."""
    return "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in packages)


@dataclass(frozen=True, kw_only=True)
class Row:
    """``make`` writes the files; what it returns is closed when the command has ended. Each of
    ``commands`` must then say the error. ``differs``: words of the page that are other words
    here, as regular expressions. ``simulated``: run by the command's process before the command,
    for what a test cannot have. ``status``: of its end.
    """

    make: Callable[[Path], TextIO | None]
    commands: tuple[tuple[str, ...], ...]
    differs: Mapping[str, str] = field(default_factory=dict)
    simulated: str = ""
    status: int = 2


def nothing(folder: Path) -> None:
    """No files are needed."""


def pictures(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (64, 64)).save(folder / name)


def no_annotations(folder: Path) -> None:
    pictures(folder / "pictures", "a.png", "b.png")
    (folder / "pictures/notes.md").touch()


def boxes(folder: Path) -> None:
    write_coco(folder / "pictures", {"a.png": [[1, 1, 20, 20]], "b.png": [[5, 5, 20, 20]]})


def two_formats(folder: Path) -> None:
    boxes(folder)
    (folder / "pictures/train2017/a.txt").write_text("0 0.5 0.5 0.1 0.1\n")


def no_names(folder: Path) -> None:
    pictures(folder / "pictures", "a.png")
    (folder / "pictures/a.txt").write_text("0 0.5 0.5 0.1 0.1\n")


def yolo(folder: Path, line: str = "", count: int = 0) -> None:
    """Ten images a split; ``count`` of them have this line in place of a box."""
    root = folder / "pictures"
    for split in ("train", "val"):
        pictures(root / split, *(f"{i}.png" for i in range(10)))
        for i in range(10):
            text = line if i < count else "0 0.5 0.5 0.1 0.1\n"
            (root / split / f"{i}.txt").write_text(text)
    (root / "classes.txt").write_text("cup\n")


def broken_images(folder: Path) -> None:
    yolo(folder)
    for i in range(6):
        (folder / f"pictures/train/{i}.png").write_bytes(b"no image")


def lost_boxes(folder: Path) -> None:
    yolo(folder, "5 0.5 0.5 0.1 0.1\n", 9)


def other_tool(folder: Path) -> None:
    pictures(folder / "pictures", "a.png")
    text = "<annotations><version>1.1</version></annotations>"
    (folder / "pictures/annotations.xml").write_text(text)


def changed(change: Callable[[dict], object], *splits: str) -> Callable[[Path], None]:
    """COCO JSON with a mistake."""

    def make(folder: Path) -> None:
        boxes(folder)
        for split in splits or ("train2017",):
            path = folder / f"pictures/annotations/instances_{split}.json"
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))

    return make


def category(name: str) -> Callable[[dict], object]:
    """All objects are of category 3."""

    def change(content: dict) -> None:
        content["categories"] = [{"id": 3, "name": name}]
        for annotation in content["annotations"]:
            annotation["category_id"] = 3

    return change


def other_classes(folder: Path) -> None:
    changed(category("dog"), "train2017", "val2017")(folder)
    path = folder / "pictures/annotations/instances_train2017.json"
    path.write_text(path.read_text().replace('"dog"', '"cat"'))


def other_sizes(folder: Path) -> None:
    changed(lambda c: [i.update(width=128, height=128) for i in c["images"]])(folder)


def checkpoint(folder: Path) -> None:
    save_tiny(folder / "model.safetensors")


def recorded(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """A file of a detector with something planted in its record."""

    def make(folder: Path) -> None:
        pictures(folder / "pictures", "a.png")
        file = File(save_tiny(folder / "model.safetensors"))
        change(file.record)
        file.write(folder / "model.safetensors", file.record)

    return make


def dogs(folder: Path) -> None:
    """A detector of one class, and pictures of another."""
    changed(category("cat"), "train2017", "val2017")(folder)
    options = ("num_classes=1", "scheme=[one_to_one,collaborative]", "aux_heads=[atss]")
    cfg = compose_train([*TINY, *options])
    record = build_record(cfg, ClassList(names=("dog",), category_ids=(3,)))
    weights = instantiate(cfg.model.detector).state_dict()
    content = DetectorFile(weights=weights, record=record)
    write_detector_file(folder / "model.safetensors", content)


def cats(folder: Path) -> None:
    """A detector and pictures of its class."""
    dogs(folder)
    for path in (folder / "pictures/annotations").iterdir():
        path.write_text(path.read_text().replace('"cat"', '"dog"'))


def tensors(*names: str) -> Callable[[Path], None]:
    """An official checkpoint of these tensors."""
    return lambda folder: torch.save(
        {"state_dict": {name: torch.zeros(3, 4) for name in names}}, folder / "model.pth"
    )


def dangerous(folder: Path) -> None:
    (folder / "model.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")


def published(folder: Path) -> None:
    """A file of the zoo, which is another than at its first use."""
    home = folder / ".cache/codetr"
    write_table(home, mine={"url": "https://example.org/mine.pth", "experiment": CO_DINO})
    (home / "zoo/mine.pth").write_bytes(b"other")
    (home / "zoo/mine.pth.sha256").write_text(f"{'0' * 64}  mine.pth\n")


def damaged_run(folder: Path) -> None:
    (folder / "runs/mine").mkdir(parents=True)
    (folder / "runs/mine/last.ckpt").write_bytes(b"no checkpoint")


def other_job(folder: Path) -> None:
    job = folder / "runs/sweeps/k/0"
    job.mkdir(parents=True)
    (job / "job.json").write_text(json.dumps({"fingerprint": "x", "overrides": ["aux_heads=[]"]}))


def running_job(folder: Path) -> TextIO:
    job = folder / "runs/sweeps/k/0"
    job.mkdir(parents=True)
    lock = (job / "job.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def photographs(folder: Path) -> None:
    (folder / "pictures").mkdir()
    for name in "abc":
        (folder / f"pictures/{name}.heic").touch()


def video(folder: Path) -> None:
    (folder / "a.mp4").touch()


def looked_at(*words: str) -> tuple[tuple[str, ...], ...]:
    """The same data, looked at and trained on."""
    return ((*INSPECT, *words), (*TRAIN, *words))


ROWS: dict[str, Row] = {
    # words that only this error of the page has
    "data.root is not set": Row(make=nothing, commands=looked_at("data=custom")),
    "pictures does not exist": Row(make=nothing, commands=looked_at(*CUSTOM)),
    "but no annotations in COCO JSON": Row(make=no_annotations, commands=looked_at(*CUSTOM)),
    "this is CVAT's own format": Row(make=other_tool, commands=looked_at(*CUSTOM)),
    "have another size than their annotations say": Row(
        make=other_sizes, commands=((*INSPECT, *COCO),)
    ),
    "choose one with data.source.format=": Row(make=two_formats, commands=looked_at(*CUSTOM)),
    "has no images for the split": Row(
        make=boxes,
        commands=looked_at(*CUSTOM, "data.source.val=dev"),
        differs={"'val'": "'dev'", "train, test": "train, val"},
    ),
    "has YOLO labels but no class names": Row(make=no_names, commands=looked_at(*CUSTOM)),
    "images of a split of": Row(
        make=broken_images,
        commands=looked_at(*CUSTOM),
    ),
    "boxes of a split of": Row(
        make=lost_boxes, commands=looked_at(*CUSTOM), differs={"labels/a.txt": r"train/\d.txt"}
    ),
    "nothing is annotated: annotate some images": Row(
        make=changed(lambda c: c["annotations"].clear()),
        commands=((*TRAIN, *COCO),),
        differs=ANNOTATIONS,
    ),
    "COCO's panoptic segments": Row(
        make=changed(lambda c: c["annotations"][0].update(segments_info=[])),
        commands=looked_at(*COCO),
        differs=ANNOTATIONS,
    ),
    "class lists differ": Row(make=other_classes, commands=((*TRAIN, *COCO),), differs=ANNOTATIONS),
    "which 'categories' does not have": Row(
        make=changed(lambda c: c["annotations"][0].update(category_id=9)),
        commands=((*TRAIN, *COCO),),
        differs=ANNOTATIONS,
    ),
    "it must be four finite numbers": Row(
        make=changed(lambda c: c["annotations"][0].update(bbox=[1, 2, 3])),
        commands=((*TRAIN, *COCO),),
        differs=ANNOTATIONS,
    ),
    "has no usable segmentation": Row(
        make=changed(lambda c: c["annotations"][0].update(segmentation=[])),
        commands=((*TRAIN, *COCO, "augmentation=lsj_1024"),),
        differs=ANNOTATIONS,
    ),
    "is not a multiple of": Row(
        make=nothing,
        commands=(
            (
                *BUILT_IN,
                "data.batch_size=3",
                "trainer.effective_batch=16",
                "trainer.devices=2",
            ),
        ),
    ),
    "Triton needs a CUDA device": Row(make=nothing, commands=((*BUILT_IN, "ops.msda=triton"),)),
    "NaN or infinite loss": Row(
        make=nothing,
        commands=((*BUILT_IN, "optimizer.lr=1e6", "trainer.gradient_clip_val=null"),),
        differs={"loss/one_to_one/layer0/cls": "loss.*"},
    ),
    "leave out experiment= and model=": Row(
        make=nothing,
        commands=((*EVAL, "checkpoint=best.ckpt", f"experiment={CO_DINO}", *COCO),),
    ),
    "give the experiment it belongs to": Row(
        make=tensors("query_head.cls_branches.0.weight"),
        commands=((*EVAL, "checkpoint=official:model.pth", *COCO),),
    ),
    "no published weights of that name": Row(
        make=nothing, commands=((*EVAL, "checkpoint=zoo:co_dino_r50", *COCO),)
    ),
    "cannot be downloaded from": Row(
        make=nothing,
        commands=(
            (*EVAL, f"checkpoint=zoo:{CO_DINO}", *COCO),
            ("scripts/zoo.py", f"checkpoint=zoo:{CO_DINO}"),
        ),
        differs={"https://example.org/a.pth": r"https://\S+", "~": ".*"},
        simulated=NO_NETWORK,
    ),
    "has changed since its first use": Row(
        make=published, commands=(("scripts/zoo.py", "checkpoint=zoo:mine"),), differs={"~": ".*"}
    ),
    "names are not those of a supported repository": Row(
        make=tensors("some.weight"),
        commands=(CONVERT,),
    ),
    "does not fit the model key by key": Row(
        make=tensors("query_head.cls_branches.0.weight"),
        commands=((*CONVERT, *OFFICIAL),),
        differs={"1 missing (detector.head.classify.0.bias)": ".* missing .*"},
    ),
    "which no checkpoint needs": Row(
        make=dangerous,
        commands=(CONVERT,),
    ),
    "asks to build 'mine.Head'": Row(
        make=recorded(lambda r: r["config"]["model"]["detector"].update(_target_="mine.Head")),
        commands=((*PREDICT, "checkpoint=model.safetensors"),),
    ),
    "is never resolved": Row(
        make=recorded(lambda r: r["config"]["data"].update(root="${oc.env:HOME}")),
        commands=((*PREDICT, "checkpoint=model.safetensors"),),
    ),
    "the checkpoint has no class": Row(
        make=dogs,
        commands=((*EVAL, "checkpoint=model.safetensors", *COCO),),
        differs=ANNOTATIONS,
    ),
    "holds no weights of that head": Row(
        make=cats,
        commands=((*EVAL, "checkpoint=model.safetensors", "evaluation.branch=atss", *COCO),),
    ),
    "cannot be resumed from": Row(
        make=damaged_run,
        commands=((*BUILT_IN, "name=mine", "ckpt_path=last"),),
        differs={"runs/mine": ".*/runs/mine"},
    ),
    "no pretrained weights for backbone": Row(
        make=nothing,
        commands=((*BUILT_IN, "model=deformable_detr", "scheme=[one_to_one]", "aux_heads=[]"),),
        differs={"swin_large_patch4_window12_384.ms_in22k": "resnet50.*"},
        simulated=NO_NETWORK,
    ),
    "holds another job": Row(
        make=other_job,
        commands=(("train.py", "-m", *SMALL, "name=k", "aux_heads=[],[atss]"),),
        differs={"runs/sweeps": ".*/runs/sweeps"},
    ),
    "another process is running this job": Row(
        make=running_job,
        commands=(("train.py", "-m", *SMALL, "name=k"),),
        differs={"runs/sweeps": ".*/runs/sweeps"},
        status=1,
    ),
    "holds no image that Pillow opens": Row(
        make=photographs,
        commands=((*PREDICT, "checkpoint=best.ckpt"),),
        simulated=without("pillow_heif"),
    ),
    "videos need PyAV": Row(
        make=video,
        commands=(("scripts/predict.py", "source=a.mp4", "checkpoint=best.ckpt"),),
        simulated=without("av"),
    ),
    "format=onnx needs": Row(
        make=checkpoint,
        commands=(
            ("scripts/export.py", "checkpoint=model.safetensors", "format=onnx", "out=a.onnx"),
        ),
        simulated=without("onnxruntime"),
    ),
    "brings its own settings": Row(
        make=nothing, commands=((*PREDICT, "checkpoint=best.ckpt", "data.root=pictures"),)
    ),
    "matches no parameter": Row(
        make=nothing, commands=((*BUILT_IN, "optimizer.rules.backbone={pattern: backbones}"),)
    ),
    "Could not find 'experiment/finetun'": Row(
        make=nothing, commands=(("train.py", "experiment=finetun"),)
    ),
    "there is no setting schedule.epoch": Row(
        make=nothing, commands=(("train.py", "schedule.epoch=3"),)
    ),
}
