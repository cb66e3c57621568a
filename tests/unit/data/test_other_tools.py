"""Exports of annotation tools as the tools write them, and their own formats, which are answered
with what to export.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from custom_folders import HEIGHT, WIDTH, write_images

from codetr.data.annotations import load_annotations
from codetr.data.custom import CustomFolder
from codetr.errors import UserError

FILES = ("a.png", "b.png", "c.png")
XYWH = [3.0, 4.0, 17.0, 18.0]
SHARES = (11.5 / WIDTH, 13 / HEIGHT, 17 / WIDTH, 18 / HEIGHT)
POLYGON = [3, 4, 20, 4, 20, 22, 3, 22]


def images(folder: Path, names: tuple[str, ...] = FILES) -> None:
    write_images(folder, list(names))


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")


def cvat_coco(root: Path) -> None:
    images(root / "images/default")
    put(
        root / "annotations/instances_default.json",
        {
            "licenses": [{"name": "", "id": 0, "url": ""}],
            "info": {"contributor": "", "date_created": "", "version": "", "year": ""},
            "categories": [{"id": 1, "name": "cup", "supercategory": ""}],
            "images": [
                {
                    **{"id": i, "width": WIDTH, "height": HEIGHT, "file_name": name},
                    **{"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0},
                }
                for i, name in enumerate(FILES, 1)
            ],
            "annotations": [
                {
                    **{"id": i, "image_id": i, "category_id": 1, "segmentation": [], "area": 306.0},
                    **{"bbox": XYWH, "iscrowd": 0},
                    "attributes": {"occluded": False, "rotation": 0.0},
                }
                for i in (1, 2, 3)
            ],
        },
    )


def cvat_voc(root: Path) -> None:
    images(root / "JPEGImages")
    put(root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:::\ncup:::\n")
    put(root / "ImageSets/Main/default.txt", "a\nb\nc\n")
    for name in FILES:
        put(
            root / f"Annotations/{name[0]}.xml",
            "<annotation>\n  <folder/>\n"
            f"  <filename>{name}</filename>\n  <source><database>Unknown</database></source>\n"
            f"  <size><width>{WIDTH}</width><height>{HEIGHT}</height><depth/></size>\n"
            "  <segmented>0</segmented>\n  <object>\n    <name>cup</name>\n"
            "    <truncated>0</truncated><occluded>0</occluded><difficult>0</difficult>\n"
            "    <bndbox><xmin>4.0</xmin><ymin>5.0</ymin><xmax>20.0</xmax><ymax>22.0</ymax>"
            "</bndbox>\n"
            "    <attributes><attribute><name>rotation</name><value>0.0</value></attribute>"
            "</attributes>\n  </object>\n</annotation>\n",
        )


def cvat_yolo(root: Path) -> None:
    images(root / "obj_train_data")
    put(root / "obj.data", "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\n")
    put(root / "obj.names", "cup\n")
    put(root / "train.txt", "".join(f"data/obj_train_data/{name}\n" for name in FILES))
    for name in FILES:
        line = "0 " + " ".join(f"{v:.6f}" for v in SHARES)
        put(root / f"obj_train_data/{name[0]}.txt", line + "\n")


def label_studio_coco(root: Path) -> None:
    names = tuple(f"{i}0c5e8b7-{name}" for i, name in enumerate(FILES))
    images(root / "images", names)
    put(
        root / "result.json",
        {
            "images": [
                {"width": WIDTH, "height": HEIGHT, "id": i, "file_name": f"images\\{name}"}
                for i, name in enumerate(names)
            ],
            "categories": [{"id": 0, "name": "cup"}],
            "annotations": [
                {
                    **{"id": i, "image_id": i, "category_id": 0, "segmentation": [], "bbox": XYWH},
                    **{"ignore": 0, "iscrowd": 0, "area": 306.0},
                }
                for i in range(3)
            ],
            "info": {"year": 2024, "version": "1.0", "contributor": "Label Studio"},
        },
    )


def label_studio_yolo(root: Path) -> None:
    images(root / "images")
    put(root / "classes.txt", "cup")
    put(root / "notes.json", {"categories": [{"id": 0, "name": "cup"}], "info": {"year": 2024}})
    for name in FILES:
        put(root / f"labels/{name[0]}.txt", "0 " + " ".join(map(str, SHARES)))


def roboflow_coco(root: Path) -> None:
    for split, names in (("train", FILES[:2]), ("valid", FILES[2:])):
        images(root / split, names)
        put(
            root / split / "_annotations.coco.json",
            {
                "info": {"year": "2024", "description": "Exported from roboflow.com"},
                "licenses": [{"id": 1, "url": "", "name": "CC BY 4.0"}],
                "categories": [
                    {"id": 0, "name": "cups", "supercategory": "none"},
                    {"id": 1, "name": "cup", "supercategory": "cups"},
                ],
                "images": [
                    {
                        **{"id": i, "license": 1, "file_name": name},
                        **{"height": HEIGHT, "width": WIDTH, "extra": {"name": name}},
                    }
                    for i, name in enumerate(names)
                ],
                "annotations": [
                    {
                        **{"id": i, "image_id": i, "category_id": 1, "bbox": XYWH},
                        **{"area": 306, "segmentation": [], "iscrowd": 0},
                    }
                    for i in range(len(names))
                ],
            },
        )


def roboflow_yolo(root: Path) -> None:
    put(
        root / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\n"
        "nc: 1\nnames: ['cup']\n\nroboflow:\n  workspace: me\n  version: 3\n",
    )
    for split, names in (("train", FILES[:2]), ("valid", FILES[2:]), ("test", ("d.png",))):
        images(root / split / "images", names)
        for name in names:
            put(root / split / f"labels/{name[0]}.txt", "0 " + " ".join(map(str, SHARES)))


def via_coco(root: Path) -> None:
    images(root)
    put(
        root / "via_export_coco.json",
        {
            "info": {"year": 2024, "version": "1.0", "description": "VIA project exported"},
            "images": [
                {
                    **{"id": i, "width": WIDTH, "height": HEIGHT, "file_name": name},
                    **{"license": 0, "flickr_url": name, "coco_url": name, "date_captured": ""},
                }
                for i, name in enumerate(FILES)
            ],
            "annotations": [
                {
                    **{"id": i + 1, "image_id": str(i), "category_id": 1},
                    **{"segmentation": POLYGON, "area": 306, "bbox": XYWH, "iscrowd": 0},
                }
                for i in range(3)
            ],
            "licenses": [{"id": 0, "name": "Unknown License", "url": ""}],
            "categories": [{"supercategory": "type", "id": 1, "name": "cup"}],
        },
    )


def fiftyone_coco(root: Path) -> None:
    images(root / "data")
    put(
        root / "labels.json",
        {
            "info": {"year": "", "version": "", "description": "Exported from FiftyOne"},
            "licenses": [],
            "categories": [{"id": 0, "name": "cup", "supercategory": None}],
            "images": [
                {
                    **{"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH},
                    **{"license": None, "coco_url": None},
                }
                for i, name in enumerate(FILES, 1)
            ],
            "annotations": [
                {
                    **{"id": i, "image_id": i, "category_id": 0, "bbox": XYWH},
                    **{"area": 306.0, "iscrowd": 0},
                }
                for i in (1, 2, 3)
            ],
        },
    )


def fiftyone_voc(root: Path) -> None:
    images(root / "data")
    for name in FILES:
        put(
            root / f"labels/{name[0]}.xml",
            f"<annotation><folder></folder><filename>{name}</filename><path>/x/{name}</path>"
            f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
            "<segmented></segmented><object><name>cup</name><pose></pose><truncated></truncated>"
            "<difficult></difficult><bndbox><xmin>4</xmin><ymin>5</ymin><xmax>20</xmax>"
            "<ymax>22</ymax></bndbox></object></annotation>",
        )


def fiftyone_yolo(root: Path) -> None:
    images(root / "images/train", FILES[:2])
    images(root / "images/val", FILES[2:])
    put(
        root / "dataset.yaml",
        "names:\n  0: cup\npath: /home/me/export\ntrain: ./images/train/\nval: ./images/val/\n",
    )
    for split, names in (("train", FILES[:2]), ("val", FILES[2:])):
        for name in names:
            put(root / f"labels/{split}/{name[0]}.txt", "0 " + " ".join(map(str, SHARES)))


EXPORTS: dict[str, Callable[[Path], None]] = {
    f.__name__: f
    for f in (
        *(cvat_coco, cvat_voc, cvat_yolo, label_studio_coco, label_studio_yolo, roboflow_coco),
        *(roboflow_yolo, via_coco, fiftyone_coco, fiftyone_voc, fiftyone_yolo),
    )
}


@pytest.mark.parametrize("export", EXPORTS)
def test_exports_are_read(export: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    EXPORTS[export](root)
    splits = CustomFolder(cache=tmp_path / "cache")(root)
    assert not splits.problems
    parts = [load_annotations(s.annotations) for s in (splits.train, splits.val)]
    assert sum(map(len, parts)) == 3
    for part in parts:
        assert part.classes.names == ("cup",)
        for i in range(len(part)):
            (box,) = part.targets(i).boxes.tolist()
            assert box == pytest.approx([3, 4, 20, 22], abs=1e-3)


OWN: dict[str, tuple[str, Any, str]] = {
    "Label Studio": (
        "project-1.json",
        [{"id": 1, "annotations": [{"result": []}], "data": {"image": "/data/upload/1/a.png"}}],
        "Label Studio",
    ),
    "Label Studio, small": (
        "project-1.json",
        [{"image": "a.png", "id": 1, "label": [], "annotator": 1, "annotation_id": 1}],
        "Label Studio",
    ),
    "VIA project": (
        "via_project.json",
        {"_via_settings": {}, "_via_img_metadata": {}, "_via_attributes": {}},
        "VIA",
    ),
    "VIA annotations": (
        "via_region_data.json",
        {"a.png123": {"filename": "a.png", "size": 123, "regions": [], "file_attributes": {}}},
        "VIA",
    ),
    "VIA 3": (
        "via3.json",
        {k: {} for k in ("project", "config", "attribute", "file", "metadata", "view")},
        "VIA",
    ),
    "CVAT": (
        "annotations.xml",
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        '  <meta></meta>\n  <image id="0" name="a.png"></image>\n</annotations>\n',
        "CVAT",
    ),
    "Datumaro": (
        "annotations/default.json",
        {"info": {}, "categories": {"label": {"labels": []}}, "items": []},
        "CVAT",
    ),
    "FiftyOne": ("samples.json", {"samples": [{"filepath": "data/a.png"}]}, "FiftyOne"),
    "FiftyOne detections": ("labels.json", {"classes": ["cup"], "labels": {"a": []}}, "FiftyOne"),
    "FiftyOne without classes": ("labels.json", {"classes": None, "labels": {"a": []}}, "FiftyOne"),
    "Roboflow CreateML": (
        "train/_annotations.createml.json",
        [{"image": "a.png", "annotations": [{"label": "cup", "coordinates": {"x": 1}}]}],
        "Roboflow",
    ),
    "Roboflow CSV": (
        "train/_annotations.csv",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,40,30,cup,3,4,20,22\n",
        "Roboflow",
    ),
    "Supervisely": ("ann/a.png.json", {"size": {"height": 30}, "objects": []}, "Supervisely"),
    "results": (
        "results.json",
        [{"image_id": 1, "category_id": 1, "bbox": XYWH, "score": 0.9}],
        "detections",
    ),
}


@pytest.mark.parametrize("own", OWN)
def test_formats_of_the_tools_themselves_are_answered_with_the_export(
    own: str, tmp_path: Path
) -> None:
    file, content, tool = OWN[own]
    images(tmp_path / "root/images")
    put(tmp_path / "root" / file, content)
    with pytest.raises(UserError, match=r"export|download|give the file") as error:
        CustomFolder(cache=tmp_path / "cache")(tmp_path / "root")
    assert tool in str(error.value)
    assert Path(file).name in str(error.value)
    assert "\n" not in str(error.value)
    if file.endswith(".json"):
        with pytest.raises(UserError, match=r"export|download|give the file") as error:
            load_annotations(tmp_path / "root" / file)
        assert tool in str(error.value)
