"""A page to try a checkpoint in a browser: what ``scripts/demo.py`` shows. Needs Gradio."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image

from codetr.analysis.attention import look_from, picture_of
from codetr.analysis.branch_predictors import branch_predictors
from codetr.errors import UserError
from codetr.inference.command import ALWAYS, open_chosen, require_used
from codetr.inference.inputs import as_image
from codetr.inference.prediction import Prediction
from codetr.inference.predictor import THRESHOLD, Predictor, open_content
from codetr.models.detectors.protocol import MAIN
from codetr.settings import check_settings

log = logging.getLogger(__name__)

OF_DEMO = ALWAYS | {"threshold", "device", "max_megapixels", "host", "port", "share"}
"""Keys and groups that count here."""
MODEL = "model"
"""One visitor at a time uses the network."""

Found = Mapping[str, Prediction]
"""Whatever every branch found in an image, by its name; the main branch comes first."""


def demo(cfg: DictConfig, given: Sequence[str] = ()) -> None:
    """Show the page for the checkpoint of ``cfg`` (conf/demo.yaml) until it is stopped. ``given``
    are the overrides that ``cfg`` was made with, so that none is ignored. Raises UserError.
    """
    check_settings(cfg, given, nulls=True)
    require_used(given, OF_DEMO, cfg.checkpoint)
    gradio = _gradio()
    predictors = branch_predictors(
        open_chosen(cfg),
        cfg.checkpoint,
        device=cfg.device,
        trust=cfg.trust,
        max_megapixels=cfg.max_megapixels,
    )
    made = build_page(gradio, predictors, cfg.checkpoint, cfg.threshold)
    made.launch(server_name=cfg.host, server_port=cfg.port, share=cfg.share)


def page(checkpoint: str | Path, *, device: str = "auto", trust: bool = False) -> Any:
    """The page as a ``gradio.Blocks``, for ``page(FILE).launch()`` in a Space's app.py; see
    ``codetr.load`` for the options. Raises UserError.
    """
    gradio, source = _gradio(), str(checkpoint)
    predictors = branch_predictors(
        open_content(source, trust=trust), source, device=device, trust=trust
    )
    return build_page(gradio, predictors, source, THRESHOLD)


def find(predictors: Mapping[str, Predictor], file: str) -> Found:
    """What every branch finds in an image file, whatever the score. Raises UserError."""
    image = as_image(file, predictors[MAIN].rules)
    return {
        name: branch.predict(image)  # type: ignore[misc]
        for name, branch in predictors.items()
    }


def pictures(found: Found, threshold: float) -> list[tuple[Image.Image, str]]:
    """Every branch's picture with its caption."""
    shown = {name: one.take(one.scores > threshold) for name, one in found.items()}
    return [(one.plot(), f"{name}: {len(one)} found") for name, one in shown.items()]


def attention(predictor: Predictor, found: Found, place: int) -> tuple[Image.Image, str]:
    """Where the query of the detection of the main branch at ``place`` (from 1, by score) looks,
    and what is to be said of it. Raises UserError where there is no such detection.
    """
    main = found[MAIN]
    if not 1 <= place <= len(main):
        raise UserError(f"detection {place}: the main branch found {len(main)}: choose one of them")
    chosen = main.take(slice(place - 1, place))
    seen = look_from(predictor, torch.from_numpy(main.pixels).permute(2, 0, 1), chosen)
    said = (
        f"{chosen.names[0]} {chosen.scores.item():.2f}: {seen.shares[-1]:.0%} of the last layer's "
        "attention lies in its box; areas are in proportion to weights"
    )
    return picture_of(seen), said


def build_page(
    gradio: Any, predictors: Mapping[str, Predictor], source: str, threshold: float
) -> Any:
    """The page, from the module ``gradio`` and the branches of the checkpoint ``source``."""

    def looked_at(file: str | None, least: float) -> tuple[Any, ...]:
        found = None if file is None else find(predictors, file)
        return (found, *shown(found, least))

    def shown(found: Found | None, least: float) -> tuple[Any, ...]:
        return ([] if found is None else pictures(found, least), None, "")

    def attended(found: Found | None, place: float | None) -> tuple[Any, ...]:
        if found is None or place is None:  # both fields can be emptied
            return None, ""
        return attention(predictors[MAIN], found, int(place))

    with gradio.Blocks(title="codetr", analytics_enabled=False) as made:
        gradio.Markdown(f"# codetr\n`{Path(source).name}`: `{predictors[MAIN]!r}`")
        state = gradio.State()
        with gradio.Row():
            with gradio.Column(scale=1):
                image = gradio.Image(
                    type="filepath", image_mode=None, sources=["upload", "clipboard"], label="image"
                )
                least = gradio.Slider(0, 1, threshold, step=0.01, label="threshold of scores")
            with gradio.Column(scale=2):
                gallery = gradio.Gallery(
                    label="branches",
                    columns=min(len(predictors), 3),
                    height="auto",
                    object_fit="contain",
                )
        with gradio.Row():
            with gradio.Column(scale=1):
                place = gradio.Number(
                    1, precision=0, minimum=1, label="detection of the main branch, by score"
                )
                button = gradio.Button("Where does its query look?")
                said = gradio.Markdown()
            with gradio.Column(scale=2):
                looks = gradio.Image(label="attention", interactive=False, height=420)
        results = [gallery, looks, said]
        alone = {"concurrency_id": MODEL, "concurrency_limit": 1}
        told = _telling(gradio.Error)
        image.change(told(looked_at), [image, least], [state, *results], api_name="find", **alone)
        least.release(shown, [state, least], results, api_name=False)
        button.click(told(attended), [state, place], [looks, said], api_name="attention", **alone)
    return made


def _telling(error: type[Exception]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What makes a function tell visitors of a UserError."""

    def told(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def answer(*given: Any) -> Any:
            try:
                return function(*given)
            except UserError as wrong:
                raise error(str(wrong)) from wrong

        return answer

    return told


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise UserError("the page needs Gradio: pip install 'codetr[demo]'") from error
    return gradio
