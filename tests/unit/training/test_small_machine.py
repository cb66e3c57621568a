import pytest

from codetr.training.small_machine import LARGE, SMALL, for_this_machine


@pytest.mark.parametrize(
    ("given", "gpu", "small"),
    [
        ([LARGE, "data.root=x"], False, True),
        ([LARGE, "data.root=x"], True, False),
        ([LARGE, "trainer=cpu"], True, True),
        ([LARGE, "trainer.accelerator=cpu"], True, True),
        ([LARGE, "model=co_dino"], False, False),
        ([LARGE, "model.num_queries=300"], False, False),
        ([LARGE, "checkpoint=a.ckpt"], False, False),
        (["experiment=dino_4scale_r50_1x_coco"], False, False),
        ([], False, False),
    ],
)
def test_small_recipe_is_chosen_and_said(given: list[str], gpu: bool, small: bool) -> None:
    said: list[str] = []
    found = for_this_machine(given, lambda: gpu, said.append)
    assert (SMALL in found, len(said)) == (small, int(small))
    assert len(found) == len(given)
    assert (LARGE in found) == (LARGE in given and not small)
    assert all("model=co_dino keeps" in line for line in said)
