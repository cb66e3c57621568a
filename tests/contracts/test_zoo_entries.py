"""What every entry of conf/zoo owes: its experiment, the published AP, and a hash that is true."""

import re

import pytest
from hydra import compose, initialize_config_dir
from tiny import CONF

from codetr.checkpoints.coco import COCO
from codetr.checkpoints.experiment import build_record
from codetr.checkpoints.zoo import ByHand, HubFile, Url, ZooEntry, read_table
from codetr.models.detectors.protocol import MAIN
from codetr.training.recorded_config import as_built, with_run
from tools.docs.recipe_table import publications

ENTRIES = [entry for path in sorted((CONF / "zoo").glob("*.yaml")) for entry in read_table(path)]
PUBLISHED = {publication.name: publication for publication in publications(CONF)}
PORT = {"co_dino_5scale_r50_lsj_8xb2_1x_coco": 52.0}
"""Trained by mmdetection's port itself, which reached another AP than the recipe's author."""
MMDETECTION = "https://download.openmmlab.com/mmdetection/v3.0/codetr/"
OPENMMLAB = {
    "co_dino_5scale_r50_lsj_8xb2_1x_coco/co_dino_5scale_r50_lsj_8xb2_1x_coco-69a72d67.pth": 52.0,
    "co_dino_5scale_r50_1x_coco-7481f903.pth": 52.1,
    "co_dino_5scale_lsj_r50_3x_coco-fe5a6829.pth": 54.8,
    "co_dino_5scale_swin_large_1x_coco-27c13da4.pth": 58.9,
    "co_dino_5scale_lsj_swin_large_1x_coco-3af73af2.pth": 59.3,
    "co_dino_5scale_swin_large_3x_coco-d7a6d8af.pth": 60.0,
    "co_dino_5scale_swin_large_16e_o365tococo-614254c9.pth": 64.1,
}
"""The files of the port's README, each once, and their AP."""


def of(entry: ZooEntry) -> str:
    return entry.name


@pytest.mark.parametrize("entry", ENTRIES, ids=of)
def test_entry_belongs_to_an_experiment_and_has_its_ap(entry: ZooEntry) -> None:
    publication = PUBLISHED[entry.experiment]
    assert entry.name in PORT or entry.name == entry.experiment
    said = re.match(r"([\d.]+) AP", publication.result)
    assert said is not None
    assert entry.ap == PORT.get(entry.name, float(said[1]))
    assert entry.source
    assert entry.license


@pytest.mark.parametrize("entry", ENTRIES, ids=of)
def test_entry_passes_for_a_checkpoint(entry: ZooEntry) -> None:
    """eval.py finds all it needs in the entry's configuration, and builds nothing of strangers."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("eval", ["checkpoint=x", "paths.run_dir=x", "data.root=x"])
    full = with_run(cfg, build_record(entry.config(len(COCO)), COCO))
    as_built(full, cfg)
    assert full.data.root == "x"
    assert full.evaluation.branch == MAIN


@pytest.mark.parametrize("entry", ENTRIES, ids=of)
def test_postprocessing_is_that_of_the_published_ap(entry: ZooEntry) -> None:
    """The port suppresses among its best 300, Sense-X's Co-DINO among as many as it has queries;
    the others do not suppress.
    """
    cfg = entry.config(1)
    postprocess = cfg.evaluation.postprocess
    if "co_dino" in entry.name:
        assert postprocess.nms is not None
        assert postprocess.pre_nms == (300 if entry.name in PORT else cfg.model.num_queries)
    else:
        assert postprocess.nms is None


@pytest.mark.parametrize("entry", ENTRIES, ids=of)
def test_place_is_whole(entry: ZooEntry) -> None:
    place = entry.place
    if isinstance(place, Url):
        assert place.url.endswith(".pth")
        in_name = re.search(r"-([0-9a-f]{8})\.pth$", place.url)
        assert entry.sha256 == (in_name[1] if in_name else None)
    elif isinstance(place, HubFile):
        assert re.fullmatch(r"[\w-]+/[\w.-]+", place.repo)
        assert entry.sha256 is None or len(entry.sha256) == 64
        assert place.revision is None or re.fullmatch("[0-9a-f]{40}", place.revision)
    else:
        assert isinstance(place, ByHand)
        assert entry.bytes is None


def test_no_file_stands_for_two_models() -> None:
    for values in (
        [entry.name for entry in ENTRIES],
        [e.place for e in ENTRIES if not isinstance(e.place, ByHand)],
        [entry.sha256 for entry in ENTRIES if entry.sha256],
    ):
        assert len(values) == len(set(values))


def test_the_port_has_seven_files() -> None:
    urls = {e.place.url: e.ap for e in ENTRIES if isinstance(e.place, Url)}
    found = {u.removeprefix(MMDETECTION): ap for u, ap in urls.items() if u.startswith(MMDETECTION)}
    assert found == OPENMMLAB
    assert "co_dino_5scale_lsj_swin_large_3x_coco" not in {entry.name for entry in ENTRIES}


def test_files_of_h_detr_are_named_after_their_configurations() -> None:
    """``NAME.sh`` in ``12eps`` is released as ``NAME_12eps.pth``; of two runs, the second."""
    for entry in ENTRIES:
        if isinstance(entry.place, Url) and "HDETR" in entry.place.url:
            script = re.search(r"/(\d+)eps/(?:swin/)?(\S+)\.sh", PUBLISHED[entry.experiment].source)
            assert script is not None
            name = f"{script[2]}_{script[1]}eps"
            assert re.fullmatch(rf"{re.escape(name)}(_2)?\.pth", entry.place.url.split("/")[-1])
