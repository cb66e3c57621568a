"""Taps into decoder layers: what they hold, and that reading them is like reading the layer."""

import pytest
import torch
from test_decoder import inputs, parts
from torch.testing import assert_close

from codetr.structures import CROSS_ATTENTION, Predictions


@pytest.mark.parametrize("norm", [True, False])
def test_reading_a_layers_own_content_gives_the_layers_predictions(norm: bool) -> None:
    decoder, head = parts(norm=norm)
    contents = []
    for layer in decoder.layers:
        layer.register_forward_hook(lambda module, given, output: contents.append(output.content))
    answer = decoder(*inputs(), head, None)
    assert len(answer.taps[CROSS_ATTENTION]) == len(answer.layers) == len(contents)
    for layer, tap, content in zip(
        answer.layers, answer.taps[CROSS_ATTENTION], contents, strict=True
    ):
        found = tap.read(content, tap.anchors)
        assert isinstance(found, Predictions)
        assert_close(found.logits, layer.logits)
        assert_close(found.boxes, layer.boxes)


def test_taps_hold_what_left_the_cross_attention() -> None:
    decoder, head = parts()
    seen = []
    for layer in decoder.layers:
        layer.cross_attention_norm.register_forward_hook(lambda m, given, out: seen.append(out))
    answer = decoder(*inputs(), head, None)
    for tap, expected in zip(answer.taps[CROSS_ATTENTION], seen, strict=True):
        assert torch.equal(tap.hidden, expected)


@pytest.mark.parametrize("twice", [True, False])
def test_tapped_boxes_reach_the_previous_layer_under_look_forward_twice(twice: bool) -> None:
    decoder, head = parts(look_forward_twice=twice)
    tap = decoder(*inputs(), head, None).taps[CROSS_ATTENTION][2]
    boxes = tap.read(tap.hidden.detach(), tap.anchors).boxes
    weights = [regress[-1].weight for regress in head.regress]
    grads = torch.autograd.grad(boxes.sum(), weights, allow_unused=True)
    reached = [i for i, grad in enumerate(grads) if grad is not None and grad.any()]
    assert reached == ([1, 2] if twice else [2])
