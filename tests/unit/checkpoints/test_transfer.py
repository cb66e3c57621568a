"""A checkpoint in a model with other classes."""

import pytest
import torch
from rich.console import Console
from tiny_official import tiny_config, tiny_model
from torch import nn

from codetr.checkpoints.experiment import build_record
from codetr.checkpoints.files import DetectorFile
from codetr.checkpoints.transfer import Transfer, load_weights
from codetr.classes import ClassList
from codetr.errors import UserError
from codetr.structures import Images

OLD = ClassList(names=("cat", "dog", "cow"), category_ids=(1, 2, 3))
NEW = ClassList(names=("emu", "Cow", "cat", "ant", "elk"), category_ids=(5, 6, 7, 8, 9))
PAIRS = ((1, 2), (2, 0))
"""(new, old) places of the classes that both have."""


def content(model: nn.ModuleDict) -> DetectorFile:
    record = build_record(tiny_config(len(OLD), "data.root=x"), OLD)
    return DetectorFile.from_state(model.state_dict(), record)


@pytest.fixture(scope="module")
def models() -> tuple[nn.ModuleDict, nn.ModuleDict, nn.ModuleDict, Transfer]:
    """Of the old classes, of the new ones after the transfer, the same before it, the report."""
    torch.manual_seed(0)
    old, new = tiny_model(len(OLD)), tiny_model(len(NEW))
    before = tiny_model(len(NEW))
    before.load_state_dict(new.state_dict())
    done = load_weights(content(old), "a.ckpt", new["detector"], NEW, new["schemes"])
    return old.eval(), new.eval(), before, done


def images() -> Images:
    padding = torch.zeros(2, 64, 64, dtype=torch.bool)
    padding[1, :, 48:] = True
    sizes = torch.tensor([[64, 64], [64, 48]])
    pixels = torch.randn(2, 3, 64, 64) * ~padding[:, None]
    return Images(pixels=pixels, padding=padding, sizes=sizes, padded_sizes=sizes)


def test_logits_of_kept_classes_are_what_they_were(models: tuple) -> None:
    old, new, *_ = models
    pictures = images()
    with torch.no_grad():
        memory = old["detector"].encode(pictures)
        again = new["detector"].encode(pictures)
        pyramids = [m["schemes"]["collaborative"].auxiliary_pyramid(memory) for m in (old, new)]
        tokens = torch.randn(2, 9, 32)
        regions = torch.randn(4, 32, 5, 5)
        torch.testing.assert_close(again.tokens, memory.tokens)
        results = {}
        for name, model, pyramid in (("old", old, pyramids[0]), ("new", new, pyramids[1])):
            heads = model["schemes"]["collaborative"].heads
            results[name] = [
                *(layer(tokens) for layer in model["detector"].head.classify),
                heads["atss"].predictions(pyramid).logits,
                heads["rcnn"].box_head(regions)[0],
                heads["rcnn"].box_head(regions)[1].transpose(1, 2),
                model["schemes"]["denoising"].label_embedding.weight.T,
            ]
    for mine, theirs in zip(results["new"], results["old"], strict=True):
        for place, origin in PAIRS:
            torch.testing.assert_close(mine[..., place], theirs[..., origin])
    background = (results["new"][-3][:, -1], results["old"][-3][:, -1])
    torch.testing.assert_close(*background)


def test_new_rows_keep_their_initialisation(models: tuple) -> None:
    _, new, before, done = models
    rows = {name for name in done.rows if "box_head" not in name}
    assert len(rows) == 3 * 2 + 2 + 1  # two layers and proposals, ATSS, denoising
    for name in rows:
        mine, initial = new.state_dict()[name], before.state_dict()[name]
        for place in (0, 3, 4):
            assert torch.equal(mine[place], initial[place]), name


def test_report_has_classes_and_modules(models: tuple) -> None:
    done = models[3]
    console = Console(width=140)
    with console.capture() as captured:
        for table in done.tables():
            console.print(table)
    text = captured.get()
    for line in ("│ copied  │ 2 ", "│ new     │ 3 ", "│ dropped │ 1 ", "Cow, cat", "emu, ant, elk"):
        assert line in text
    for module in ("head.classify.0", "rcnn.box_head.cls", "atss.cls", "denoising.label_embedding"):
        assert module in text
    assert (done.missing, done.unknown, dict(done.misfits)) == ((), (), {})


def test_the_same_classes_just_load() -> None:
    old, new = tiny_model(3), tiny_model(3)
    other_ids = ClassList(names=OLD.names, category_ids=(7, 8, 9))
    done = load_weights(content(old), "a.ckpt", new["detector"], other_ids, new["schemes"])
    assert done.tables() == []
    for name, value in new.state_dict().items():
        assert torch.equal(value, old.state_dict()[name]), name


def test_row_of_objectness_stays_where_it_is() -> None:
    """Where proposals are ranked by the first logit, that row is no class's."""
    ranked = "model.query_init.stage.rank_by=objectness"
    old, new = tiny_model(3, ranked), tiny_model(5, ranked)
    load_weights(content(old), "a.ckpt", new["detector"], NEW)
    mine, theirs = new["detector"].head.classify, old["detector"].head.classify
    assert torch.equal(mine[2].weight[0], theirs[2].weight[0])
    assert torch.equal(mine[0].weight[2], theirs[0].weight[0])


def test_schemes_may_differ_and_it_is_said() -> None:
    old = tiny_model(3)
    new = tiny_model(3, "aux_heads=[atss,retinanet]", "supervision.regions.fc_dim=24")
    before = {k: v.clone() for k, v in new.state_dict().items()}
    done = load_weights(content(old), "a.ckpt", new["detector"], OLD, new["schemes"])
    new_head = [name for name in done.missing if ".heads.retinanet." in name]
    assert new_head
    assert any(".heads.rcnn." in name for name in done.unknown)
    for name in new_head:
        assert torch.equal(new.state_dict()[name], before[name])
    assert "new: not in the checkpoint" in done.tables()[0].columns[0]._cells
    assert "dropped: not in the model" in done.tables()[0].columns[0]._cells


def test_a_detector_that_does_not_fit_is_an_error() -> None:
    old = tiny_model(3)
    with pytest.raises(UserError, match=r"a\.ckpt: does not fit the model: .*1 other shape") as got:
        load_weights(content(old), "a.ckpt", tiny_model(3, "model.num_queries=9")["detector"], OLD)
    assert "query_init.content (12, 32) instead of (9, 32)" in str(got.value)
    with pytest.raises(UserError, match=r"\d+ unknown \(.*decoder\.layers\.1"):
        load_weights(
            content(old), "a.ckpt", tiny_model(3, "model.decoder_layers=1")["detector"], OLD
        )
