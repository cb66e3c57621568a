"""The web page behind ``scripts/demo.py``, to try a checkpoint in a browser. Needs Gradio."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image

from codetr.analysis.attention import attention_of_detection, attention_picture
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
"""Keys and groups that this command reads."""
MODEL = "model"
"""Concurrency group of events that run the network: one at a time."""

Found = Mapping[str, Prediction]
"""Predictions of every branch for one image, by name, the main branch first."""


def demo(cfg: DictConfig, given: Sequence[str] = ()) -> None:
    """Serve the page for the checkpoint of ``cfg`` (conf/demo.yaml) until it is stopped. ``given``
    are the overrides that ``cfg`` was composed with: one without effect is an error. Raises
    UserError.
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
    """Predictions of every branch for an image file, with any score. Raises UserError."""
    image = as_image(file, predictors[MAIN].rules)
    return {
        name: branch.predict(image)  # type: ignore[misc]
        for name, branch in predictors.items()
    }


def pictures(found: Found, threshold: float) -> list[tuple[Image.Image, str]]:
    """The annotated image of every branch with its caption."""
    shown = {name: one.take(one.scores > threshold) for name, one in found.items()}
    return [(one.plot(), f"{name}: {len(one)} found") for name, one in shown.items()]


def attention(predictor: Predictor, found: Found, place: int) -> tuple[Image.Image, str]:
    """Picture and caption of the attention of one query: that behind the main branch's detection
    number ``place`` (from 1, by score). Raises UserError if there is no such detection.
    """
    main = found[MAIN]
    if not 1 <= place <= len(main):
        raise UserError(
            f"detection {place}: the main branch found {len(main)}: choose one of these"
        )
    chosen = main.take(slice(place - 1, place))
    image = torch.from_numpy(main.pixels).permute(2, 0, 1)
    attended = attention_of_detection(predictor, image, chosen)
    caption = (
        f"{chosen.names[0]} {chosen.scores.item():.2f}: {attended.shares[-1]:.0%} of the last "
        "layer's attention lies in its box; areas are proportional to weights"
    )
    return attention_picture(attended), caption


def build_page(
    gradio: Any, predictors: Mapping[str, Predictor], source: str, threshold: float
) -> Any:
    """The page for the branches of the checkpoint ``source``; ``gradio`` is the module."""

    def on_image(file: str | None, least: float) -> tuple[Any, ...]:
        found = None if file is None else find(predictors, file)
        return (found, *on_threshold(found, least))

    def on_threshold(found: Found | None, least: float) -> tuple[Any, ...]:
        return ([] if found is None else pictures(found, least), None, "")

    def on_detection(found: Found | None, place: float | None) -> tuple[Any, ...]:
        if found is None or place is None:  # the user can clear both fields
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
                least = gradio.Slider(0, 1, threshold, step=0.01, label="score threshold")
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
                caption = gradio.Markdown()
            with gradio.Column(scale=2):
                looks = gradio.Image(label="attention", interactive=False, height=420)
        results = [gallery, looks, caption]
        alone = {"concurrency_id": MODEL, "concurrency_limit": 1}
        run = partial(_showing_errors, gradio.Error)
        image.change(run(on_image), [image, least], [state, *results], api_name="find", **alone)
        least.release(on_threshold, [state, least], results, api_name=False)
        button.click(
            run(on_detection), [state, place], [looks, caption], api_name="attention", **alone
        )
    return made


def _showing_errors(error: type[Exception], function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, with a UserError raised as ``error``, which Gradio shows to the visitor."""

    @wraps(function)
    def wrapped(*given: Any) -> Any:
        try:
            return function(*given)
        except UserError as cause:
            raise error(str(cause)) from cause

    return wrapped


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise UserError("the page needs Gradio: pip install 'codetr[demo]'") from error
    return gradio
