"""A checkpoint ready for use: ``codetr.load(path)(image)``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin
from omegaconf import OmegaConf
from torch import Tensor, nn

from codetr.checkpoints.convert import FOREIGN, OFFICIAL, open_checkpoint
from codetr.checkpoints.experiment import compose_experiment, without_initial_weights
from codetr.checkpoints.files import DetectorFile, RunRecord, write_detector_file
from codetr.checkpoints.transfer import load_weights
from codetr.checkpoints.trusted import build_trusted
from codetr.data.collate import Collate
from codetr.data.images import DEFAULT_RULES, PixelRules
from codetr.data.regions import Regions
from codetr.data.resize import fitted_size, resize_regions
from codetr.errors import UserError, abbreviated
from codetr.evaluation import Postprocess
from codetr.inference import hub
from codetr.inference.finder import DetectorFinder, choose_device, choose_precision
from codetr.inference.inputs import ImageLike, as_image, is_one_image
from codetr.inference.model_card import RunResults, model_card, run_results
from codetr.inference.prediction import Prediction
from codetr.inference.views import Finder, Views
from codetr.models.ops import avoid_cudnn_attention, use_msda

log = logging.getLogger(__name__)


THRESHOLD = 0.3
"""Default score threshold of calls, the same as in conf/predict.yaml."""
PICTURE_SIDE = 2048
"""Longer side in pixels of pictures of images that are read in regions."""


class Predictor(ModelHubMixin):
    """Detects objects in images of any type. ``load`` builds one from a checkpoint.

    ``finder`` processes uint8 tensors with the network ``detector``; ``record`` is the metadata of
    the checkpoint, ``results`` are the metrics of its run; ``rules`` say how image files are
    decoded. For the Hugging Face Hub: ``save_pretrained``, ``push_to_hub``, ``from_pretrained``.
    """

    def __init__(
        self,
        finder: Finder,
        detector: nn.Module,
        record: RunRecord,
        rules: PixelRules = DEFAULT_RULES,
        results: RunResults | None = None,
    ) -> None:
        self.finder, self.detector, self.record, self.rules = finder, detector, record, rules
        self.results = results or RunResults()

    def predict(
        self, images: ImageLike | Sequence[ImageLike], threshold: float = 0.0
    ) -> Prediction | list[Prediction]:
        """Detections with a score above ``threshold``, on the CPU: one ``Prediction`` for an image,
        a list for several. Images are file names, http(s) URLs, Pillow images, uint8 arrays
        (H, W, 3) or uint8 tensors (3, H, W), all RGB. Raises UserError for other values and for
        files that cannot be read.
        """
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold={threshold}: give a score from 0 to 1")
        one = is_one_image(images)
        given: Sequence[Any] = [images] if one else list(images)  # type: ignore[arg-type]
        looked_at = [as_image(image, self.rules) for image in given]
        found = [
            Prediction(
                boxes_xyxy_px=seen.boxes_xyxy_px,
                scores=seen.scores,
                labels=seen.labels,
                cells=seen.cells,
                class_list=self.record.classes,
                pixels=picture(image).permute(1, 2, 0).numpy(),
                size=(image.shape[-2], image.shape[-1]),
            ).take(seen.scores > threshold)
            for image, seen in zip(looked_at, self.finder(looked_at), strict=True)
        ]
        return found[0] if one else found

    def __call__(
        self, images: ImageLike | Sequence[ImageLike], threshold: float = THRESHOLD
    ) -> Prediction | list[Prediction]:
        """``predict`` with the threshold of ``scripts/predict.py``."""
        return self.predict(images, threshold)

    def __repr__(self) -> str:
        names = self.record.classes.names
        parameters = list(self.detector.parameters())
        network = (
            f"{type(self.detector).__name__} of {sum(map(Tensor.numel, parameters)) / 1e6:.1f} M"
        )
        sides = {k: v for k, v in self.record.preprocessing["resize"].items() if type(v) is int}
        size = ", ".join(f"{side} {pixels}" for side, pixels in sides.items()) or "as they are"
        return (
            f"{type(self).__name__}({network} parameters on {parameters[0].device}; "
            f"images: {size}; {len(names)} classes: {abbreviated(names)})"
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        record = hub.published(self.record)
        content = DetectorFile(weights=dict(self.detector.state_dict()), record=record)
        write_detector_file(save_directory / hub.WEIGHTS_FILE, content)
        hub.write_config(save_directory / hub.CONFIG_FILE, record)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **options: Any,
    ) -> Predictor:
        """From a folder that ``save_pretrained`` wrote, or USER/MODEL of the Hub.

        See ``huggingface_hub.hf_hub_download`` for ``revision`` to ``token``, and ``load`` for
        further ``options``, such as ``device``. Raises UserError where there is no such model.
        """
        path = hub.fetch(
            str(model),
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return load(path, **options)

    def generate_model_card(self, **details: Any) -> ModelCard:
        """The card that ``save_pretrained`` writes where there is none yet; see ``model_card`` for
        ``details``, its ``model_card_kwargs``.
        """
        return model_card(self.record, self.results, details)


def load(
    checkpoint: str | Path,
    *,
    experiment: str | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    precision: str | int = "32",
    batch: int = 1,
    views: Views | None = None,
    postprocess: Postprocess | None = None,
    trust: bool = False,
    max_megapixels: float = 180.0,
) -> Predictor:
    """A checkpoint ready for use.

    Args:
        checkpoint: a run's best.ckpt, last.ckpt or model.safetensors; ``official:FILE``; or
            ``zoo:NAME``, published weights (``codetr-zoo`` lists them).
        experiment: of conf/experiment, which an official file belongs to.
        overrides: to that experiment, as for train.py.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        precision: ``32`` or ``bf16``.
        batch: number of images per batch.
        views: test-time augmentation; by default none.
        postprocess: by default the one that the checkpoint was evaluated with.
        trust: build whatever classes the file names, not only those of ``codetr``: classes of your
            own. Never for files of strangers, which could run any code. Also: download published
            weights that neither a revision nor a hash pins.
        max_megapixels: larger image files are refused; with ``views.tile``, TIFF files that can be
            read in regions may be larger, but not their regions.

    Raises UserError for whatever a user can correct.
    """
    source = str(checkpoint)
    return build_predictor(
        open_content(source, experiment, overrides, trust),
        source,
        device=device,
        precision=precision,
        batch=batch,
        views=views or Views(),
        postprocess=postprocess,
        trust=trust,
        max_megapixels=max_megapixels,
    )


def build_predictor(
    content: DetectorFile,
    source: str,
    *,
    device: str,
    precision: str | int,
    batch: int,
    views: Views,
    postprocess: Postprocess | None,
    trust: bool = False,
    max_megapixels: float = 180.0,
) -> Predictor:
    """As ``load``, from what was read from a file that messages call ``source``."""
    if batch < 1:
        raise UserError(f"batch={batch}: give 1 or more images")
    chosen, autocast = choose_device(device), choose_precision(precision)
    detector = build_detector(content, source, trust).to(chosen)
    log.info("deformable attention: %s", use_msda("auto", chosen))
    avoid_cudnn_attention()
    record = content.record
    preprocessing = record.preprocessing
    collate = Collate(*(preprocessing[key] for key in ("mean", "std", "size_divisor")))
    if postprocess is None:
        part = record.part(source, "evaluation", "postprocess")
        postprocess = build_trusted(part, source, trust)
        if not callable(postprocess) or not hasattr(postprocess, "max_detections"):
            raise UserError(
                f"{source}: its evaluation.postprocess is no Postprocess but a "
                f"{type(postprocess).__name__}: export it again, or download the file again"
            )
    finders = [
        DetectorFinder(
            detector=detector,
            resize=build_trusted(resize, source, trust),
            collate=collate,
            postprocess=postprocess,
            device=chosen,
            autocast=autocast,
            batch=batch,
        )
        for resize in views.resizes(preprocessing["resize"], source)
    ]
    data = record.config.get("data")
    rules = PixelRules(
        max_megapixels=max_megapixels,
        grey_bits=data.get("grey_bits") if isinstance(data, Mapping) else None,
        in_regions=views.tile is not None,
        remedy="give max_megapixels=",
    )
    finder = views.compose(finders, postprocess.max_detections, batch)
    return Predictor(finder, detector, record, rules, run_results(source))


def open_content(
    source: str,
    experiment: str | None = None,
    overrides: Sequence[str] = (),
    trust: bool = False,
) -> DetectorFile:
    """The content of a checkpoint; an official one as that of ``experiment``. Raises UserError."""
    if source.startswith(FOREIGN):
        # one class stands for the file's own, whose number only reading it tells
        cfg = None if experiment is None else compose_experiment(experiment, 1, overrides)
        return open_checkpoint(source, cfg)
    if experiment is not None or overrides:
        raise UserError(
            f"{source}: brings its own model: leave out experiment and overrides, which are for "
            f"{OFFICIAL}FILE"
        )
    return open_checkpoint(source, trust=trust)


def build_detector(content: DetectorFile, source: str, trust: bool = False) -> nn.Module:
    """The detector of a checkpoint with its weights, on the CPU, in eval mode; see ``load`` for
    ``trust``.

    Raises UserError where the file's configuration and weights do not make one.
    """
    content.record.require_preprocessing(source)
    content.record.part(source, "model", "detector", "backbone")
    part = OmegaConf.create(content.record.part(source, "model", "detector"))
    plain_part = OmegaConf.to_container(without_initial_weights(part))
    detector = build_trusted(plain_part, source, trust)
    if not isinstance(detector, nn.Module):
        raise UserError(
            f"{source}: its model.detector is not a module but a {type(detector).__name__}: export "
            "it again, or download the file again"
        )
    load_weights(content, source, detector, content.record.classes)
    return detector.eval().requires_grad_(False)


def picture(image: Regions) -> Tensor:
    """``image`` or, if it is read in regions, a copy (3, h, w) reduced to ``PICTURE_SIDE``."""
    if isinstance(image, Tensor):
        return image
    size = image.shape[-2], image.shape[-1]
    side = min(PICTURE_SIDE, max(size))
    return resize_regions(image, fitted_size(size, side, side), antialias=True)
