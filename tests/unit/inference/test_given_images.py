"""What is given as an image and is none."""

from pathlib import Path
from typing import Any

import pytest

from codetr.errors import UserError
from codetr.inference.inputs import as_image, is_one_image


@pytest.mark.parametrize("value", [3, None, 2.5, b"a.jpg", {"image": "a.jpg"}, object()])
def test_what_is_no_image_is_named_with_what_to_give(value: Any) -> None:
    assert is_one_image(value)
    with pytest.raises(UserError, match=f"type {type(value).__name__}: give a file name") as error:
        as_image(value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["missing.jpg", Path("missing.jpg")])
def test_a_missing_file_is_named_without_advice_for_training(value: Any) -> None:
    with pytest.raises(UserError, match=r"missing\.jpg does not exist") as error:
        as_image(value)
    assert "annotation" not in str(error.value)
