"""From a checkpoint and images to annotated images: what ``scripts/predict.py`` does."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from codetr.checkpoints.convert import FOREIGN, OFFICIAL, open_checkpoint
from codetr.checkpoints.files import DetectorFile
from codetr.checkpoints.trusted import build_trusted
from codetr.data.images import ImageError
from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.inference.grouping import grouped
from codetr.inference.prediction import Prediction
from codetr.inference.predictor import Predictor, build_predictor
from codetr.inference.results import Writer, writers
from codetr.inference.sources import Broken, Frame, Source, open_source
from codetr.models.detectors.protocol import MAIN
from codetr.overrides import is_within, key_of
from codetr.settings import check_settings
from codetr.settings.check import instead, require_taken

log = logging.getLogger(__name__)

POSTPROCESS = "evaluation.postprocess"
ALWAYS = frozenset({"checkpoint", "trust", "name", "paths", "hydra"})
OF_PREDICTION = ALWAYS | {
    *("source", "threshold", "batch", "device", "precision", "pictures", "views"),
    *(POSTPROCESS, "evaluation.branch", "max_megapixels"),
}
"""Keys and groups that ``predict`` looks at."""
OF_EXPORT = ALWAYS | {"format", "out", "top_k", "fixed", "cases"}
OF_EXPERIMENT = frozenset(
    {
        *("experiment", "model", "scheme", "supervision", "aux_heads"),
        *("data", "augmentation", "num_classes"),
    }
)
"""What the model of an official file is made of, and the images that it was made for."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What became of a source: images looked at, boxes found, what could not be read."""

    images: int
    boxes: int
    broken: tuple[Broken, ...]

    def line(self) -> str:
        """For the terminal."""
        skipped = f"; {len(self.broken)} could not be read" if self.broken else ""
        return f"{self.images} images, {self.boxes} boxes{skipped}"


def predict(cfg: DictConfig, given: Sequence[str] = ()) -> Summary:
    """Run the checkpoint of ``cfg`` (conf/predict.yaml) over its source and write the results to
    ``cfg.paths.run_dir``. What cannot be read is reported and skipped. ``given`` are the overrides
    that ``cfg`` was made with, so that none is ignored.

    Raises UserError for whatever a user can correct, and where nothing could be read.
    """
    check_settings(cfg, given, nulls=True)
    if cfg.evaluation.branch != MAIN:
        raise UserError(
            f"evaluation.branch={cfg.evaluation.branch}: auxiliary heads can be evaluated, by "
            "codetr-eval, but not codetr-predict: leave it out"
        )
    require_used(given, OF_PREDICTION, cfg.checkpoint)
    opened = open_source(str(cfg.source))
    content = open_chosen(cfg)
    predictor = build_predictor(
        content,
        cfg.checkpoint,
        device=cfg.device,
        precision=cfg.precision,
        batch=cfg.batch,
        views=instantiate(OmegaConf.to_container(cfg.views, resolve=True)),
        postprocess=_postprocess(cfg, content, given),
        trust=cfg.trust,
        max_megapixels=cfg.max_megapixels,
    )
    source = replace(opened, rules=predictor.rules)
    folder = Path(cfg.paths.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    outputs = writers(folder, source, predictor.record.classes, cfg.pictures)
    summary = run(predictor, source, outputs, cfg.batch, cfg.threshold)
    log.info("%s: see %s", summary.line(), folder)
    if summary.images == 0:
        raise UserError(f"source={cfg.source}: none of its images could be read")
    return summary


def _postprocess(
    cfg: DictConfig, content: DetectorFile, given: Sequence[str]
) -> Postprocess | None:
    """What ``evaluation=`` chooses, the checkpoint's own with the single settings of ``cfg``, or
    None: its own. Raises UserError for a setting that nothing reads.
    """
    chosen = cfg.evaluation.get("postprocess")
    if chosen is None:
        return None
    if "_target_" not in chosen:
        own = content.record.part(cfg.checkpoint, "evaluation", "postprocess")
        for key in chosen:
            if key not in own:
                raise UserError(
                    f"evaluation.postprocess.{key}: nothing reads this setting: "
                    f"{instead(str(key), list(own))}"
                )
        chosen = OmegaConf.merge(own, chosen)
        plain = {"evaluation": {"postprocess": OmegaConf.to_container(chosen)}}
        require_taken(plain, [k for k in map(key_of, given) if k.startswith(POSTPROCESS)])
        return build_trusted(  # type: ignore[no-any-return]
            plain["evaluation"]["postprocess"], cfg.checkpoint, cfg.trust
        )
    return instantiate(chosen)  # type: ignore[no-any-return]


def require_used(given: Sequence[str], used: frozenset[str], checkpoint: str | None) -> None:
    """Raise UserError for an override of anything but ``used``, and for an official file what its
    experiment is made of: it would be ignored.
    """
    foreign = checkpoint is not None and checkpoint.startswith(FOREIGN)
    known = used | OF_EXPERIMENT if foreign else used
    where = "" if checkpoint is None else f", where {checkpoint} brings its own settings"
    for override in given:
        key = key_of(override)
        chosen = key == "evaluation" and is_within(POSTPROCESS, known)
        if not (chosen or is_within(key, known)):
            raise UserError(
                f"{override.removeprefix('++')}: changes nothing here{where}: leave it out"
            )


def open_chosen(cfg: DictConfig) -> DetectorFile:
    """The checkpoint of ``cfg``, an official one as that of its experiment. Raises UserError."""
    if cfg.model is not None and not cfg.checkpoint.startswith(FOREIGN):
        raise UserError(
            f"{cfg.checkpoint}: brings its own model: leave out experiment= and model=, which are "
            f"for checkpoint={OFFICIAL}FILE"
        )
    return open_checkpoint(cfg.checkpoint, cfg, cfg.trust)


def run(
    predictor: Predictor, source: Source, outputs: Sequence[Writer], batch: int, threshold: float
) -> Summary:
    """Look at everything in ``source`` and hand it to ``outputs``, with a progress bar."""
    broken: list[Broken] = []
    images = boxes = 0
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    try:
        with Progress(*columns, TimeRemainingColumn()) as progress:
            task = progress.add_task("predicting", total=len(source) or None)
            for frames in grouped(counted(source, progress, task, broken), batch):
                for frame, seen in found_in(predictor, frames, threshold, broken):
                    for output in outputs:
                        output.add(frame, seen)
                    images, boxes = images + 1, boxes + len(seen)
    finally:
        for output in outputs:
            output.close()
    return Summary(images=images, boxes=boxes, broken=tuple(broken))


def found_in(
    predictor: Predictor, frames: Sequence[Frame], threshold: float, broken: list[Broken]
) -> Iterator[tuple[Frame, Prediction]]:
    """The frames with what is found in them. Those of large files may turn out to be damaged only
    here: they are reported and noted in ``broken``.
    """
    try:
        found = predictor.predict([frame.image for frame in frames], threshold)
    except ImageError as error:
        if len(frames) == 1:
            log.warning("skipped: %s", error)
            broken.append(Broken(name=frames[0].name, reason=str(error)))
            return
        for frame in frames:
            yield from found_in(predictor, [frame], threshold, broken)
    else:
        yield from zip(frames, found, strict=True)  # type: ignore[arg-type]


def counted(
    source: Source, progress: Progress, task: object, broken: list[Broken]
) -> Iterator[Frame]:
    """The images that can be read; the others are reported and noted in ``broken``."""
    for item in source:
        if isinstance(item, Broken):
            log.warning("skipped: %s", item.reason)
            broken.append(item)
        else:
            yield item
        progress.advance(task)  # type: ignore[arg-type]
