import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from warm import run_ranks

from codetr.evaluation import detection_metric
from codetr.evaluation.detection_metric import DetectionMetric, EncodedMasks
from codetr.structures import Detections, ImageInfo


class Everything(DetectionMetric):
    """Of every image its rows and masks, as plain values."""

    def update(self, number: int, count: int, with_masks: bool = True) -> None:
        scores = torch.linspace(0.9, 0.1, count) + number / 1024
        found = Detections(
            boxes_xyxy_px=torch.tensor([[1.0, 2, 4, 8]]).repeat(count, 1) + number,
            scores=scores,
            labels=torch.arange(count),
        )
        info = ImageInfo(image_id=number, original_size=(30 + number, 40), scale=(1.0, 1.0))
        masks = EncodedMasks(
            counts=[bytes([number % 256, k, 0] * k) for k in range(count)],  # one without bytes
            scores=scores.double() / 2,
            size=info.original_size,
        )
        self.add(found, info, masks if with_masks else None)

    def compute(self) -> dict[int, tuple]:
        masks = self.masks_by_image()
        return {
            number: (
                rows.tolist(),
                [list(counts) for counts in masks[number].counts],
                masks[number].scores.tolist(),
                list(masks[number].size),
            )
            for number, rows in self.rows_by_image().items()
        }


def collected(images: Sequence[tuple[int, int]]) -> dict[int, tuple]:
    metric = Everything()
    for image in images:
        metric.update(*image)
    return metric.compute()


IMAGES = [(5, 3), (2**60, 0), (7, 1), (3, 4)]


def test_rows_and_masks_of_an_image_come_back() -> None:
    rows, counts, scores, size = collected(IMAGES)[7]
    assert rows == [[0, pytest.approx(0.9 + 7 / 1024), 8, 9, 3, 6]]
    assert counts == [[]]
    assert scores == [pytest.approx(0.45 + 7 / 2048)]
    assert size == [37, 40]
    assert collected(IMAGES)[3][1] == [[], [3, 1, 0], [3, 2, 0] * 2, [3, 3, 0] * 3]
    assert list(collected(IMAGES)) == [5, 2**60, 7, 3]


def test_the_first_detections_of_an_image_count() -> None:
    assert collected([*IMAGES, (7, 6), (5, 0)]) == collected(IMAGES)


def test_masks_are_of_every_image_or_of_none() -> None:
    metric = Everything()
    metric.update(5, 3, with_masks=False)
    assert metric.masks_by_image() == {}
    assert list(metric.rows_by_image()) == [5]
    metric.update(6, 2)
    with pytest.raises(RuntimeError, match="split"):
        metric.masks_by_image()


def test_reset_leaves_typed_states_without_rows() -> None:
    metric = Everything()
    metric.update(5, 3)
    metric.reset()
    assert metric.compute() == {}
    states = {name: torch.cat(state) for name, state in metric.metric_state.items()}
    assert {name: (tuple(s.shape), s.dtype) for name, s in states.items()} == {
        "images": ((0, 4), torch.int64),
        "rows": ((0, 6), torch.float64),
        "masks": ((0, 2), torch.float64),
        "mask_bytes": ((0,), torch.uint8),
    }


def test_states_keep_device_and_dtype_when_the_module_is_moved() -> None:
    parent = nn.ModuleDict({"metric": Everything(), "other": nn.Linear(2, 2)})
    metric = parent["metric"]
    metric.update(5, 3)
    expected = metric.compute()
    parent.to("meta", torch.float16).half()
    assert parent["other"].weight.is_meta
    assert metric.compute() == expected
    metric.update(6, 1)
    assert list(metric.compute()) == [5, 6]
    assert not parent["metric"].state_dict()


SHARES = {
    "uneven": (IMAGES[:1], IMAGES[1:]),
    "repeated to fill up": (IMAGES[:2], [*IMAGES[2:], IMAGES[0]]),
    "last rank empty": (IMAGES, []),
    "first rank empty": ([], IMAGES),
    "an image without detections on one rank": (IMAGES[:1] + IMAGES[2:], [IMAGES[1]]),
    "no image": ([], []),
}


def _collect(rank: int, folder: Path) -> None:
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    results = {name: collected(share[rank]) for name, share in SHARES.items()}
    metric = Everything()
    metric.update(*IMAGES[rank])
    metric.compute()
    results["own again"] = metric.rows_by_image()[IMAGES[rank][0]].tolist()
    (folder / f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def test_two_ranks_see_what_one_process_sees(tmp_path: Path) -> None:
    run_ranks(_collect, (tmp_path,), 2)
    for rank in range(2):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        own = results.pop("own again")
        assert len(own) == IMAGES[rank][1]  # after compute the states are the rank's own again
        for name, (first, last) in SHARES.items():
            expected = json.loads(json.dumps(collected([*first, *last])))
            assert results[name] == expected, name
            assert list(results[name]) == list(expected), name


@pytest.mark.parametrize(
    ("backend", "expected"), [("nccl", torch.device("cuda", 3)), ("gloo", torch.device("cpu"))]
)
def test_nccl_takes_tensors_of_the_device_of_its_process(
    backend: str, expected: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_backend", lambda group: backend)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: (tensor, device))
    seen = []

    def gather(moved: tuple[torch.Tensor, torch.device], group: object) -> list[torch.Tensor]:
        seen.append(moved[1])
        return [moved[0], moved[0]]

    monkeypatch.setattr(detection_metric, "gather_all_tensors", gather)
    assert len(detection_metric.gather_by_way_of_the_device(torch.zeros(2, 6))) == 2
    assert seen == [expected]
