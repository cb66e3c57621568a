"""Values of conf/ that a reorganisation of its files must not change.

``tests/golden/resolved_values.json`` has hashes of what every command, model and experiment
resolves to, section by section, and of the names and shapes of all tensors. It was recorded before
each model had a page of its own, under the present names of keys (``codetr/moved_keys.py``). Where
a value is meant to change, record again: ``python tests/resolved_values.py``.
"""

from __future__ import annotations

import json

import pytest
from resolved_values import RECORD, STATE, composed, parameters, summary, values

RECORDED: dict[str, dict[str, str]] = json.loads(RECORD.read_text("utf-8"))
SHAPES = {sections[STATE]: choice for choice, sections in RECORDED.items() if STATE in sections}
"""One choice for each set of names and shapes."""


@pytest.mark.parametrize("choice", RECORDED)
def test_values_are_the_recorded_ones(choice: str) -> None:
    found = summary(values(choice))
    wanted = {name: value for name, value in RECORDED[choice].items() if name != STATE}
    assert {name: found.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("choice", SHAPES.values())
def test_names_and_shapes_of_tensors_are_the_recorded_ones(choice: str) -> None:
    assert parameters(composed(choice)) == RECORDED[choice][STATE]


def test_a_changed_value_is_seen() -> None:
    found = values("train")
    assert summary(found) != summary(found | {"supervision.criterion.cls": "5.0"})
    assert parameters(composed("train")) != parameters(composed("train model.dim=32"))
