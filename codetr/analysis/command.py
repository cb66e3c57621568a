"""The command behind ``scripts/analyse.py``: run an analysis on one or more checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any, Protocol

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from codetr.analysis.findings import Findings, log_findings, markdown, write_findings
from codetr.analysis.subject import Subject, names_of, open_subject
from codetr.checkpoints.convert import FOREIGN
from codetr.errors import UserError
from codetr.inference.command import ALWAYS, require_used
from codetr.inference.finder import choose_device
from codetr.settings import check_settings
from codetr.structures import Batch
from codetr.training.ignored_settings import ignored_in_evaluation, require_effect
from codetr.training.train import prepare_device, prepare_process

log = logging.getLogger(__name__)

USED = ALWAYS | {
    *("analysis", "images", "shown", "device", "data", "augmentation", "logger", "seed"),
    *("tags", "ops"),
}
"""Keys and groups that this command reads."""
ONE_BY_ONE = ("data.eval_batch_size", "data.eval_batches")
"""Settings without effect: images are analysed one by one, so that none is padded to another's
size."""


class Analysis(Protocol):
    """Analyses images one by one with each checkpoint, then reports on all of them. The output
    files are named after ``title``.
    """

    title: str

    def analyse_image(self, subject: Subject, batch: Batch, with_picture: bool) -> Any:
        """The result for the only image of ``batch``, including what a picture of it needs if
        ``with_picture``.
        """
        ...

    def report(self, found: Mapping[str, Sequence[Any]]) -> Findings:
        """The findings from the results by checkpoint, for the same images in the same order."""
        ...


def analyse(cfg: DictConfig, given: Sequence[str] = ()) -> Findings:
    """Analyse the checkpoints of ``cfg`` (conf/analyse.yaml): print the table, write it and the
    figures to ``cfg.paths.run_dir``, and pass both to the loggers of ``cfg``. ``given`` are the
    overrides that ``cfg`` was composed with: one without effect is an error. Raises UserError for
    whatever a user can correct.
    """
    sources = checkpoints_of(cfg.checkpoint)
    single = [with_checkpoint(cfg, source) for source in sources]
    check_settings(single[0], given, nulls=True)
    for source in sources:
        require_used(given, USED, source)
        require_effect(given, (*ignored_in_evaluation(source, FOREIGN), *ONE_BY_ONE))
    prepare_process(cfg.seed)
    analysis: Analysis = instantiate(cfg.analysis)
    device = choose_device(cfg.device)
    prepare_device(cfg, device)
    names = names_of(sources)
    found = analyse_images(analysis, single, names, device, given)
    findings = analysis.report(found)
    title = analysis.title
    log.info("%s\n\n%s", "\n".join(findings.notes), markdown(findings.columns, findings.rows))
    folder = Path(cfg.paths.run_dir)
    written = write_findings(findings, title, dict(zip(names, sources, strict=True)), folder)
    loggers = [instantiate(part) for part in cfg.logger.values() if part is not None]
    log_findings(findings, title, written, loggers)
    log.info("wrote %s to %s", ", ".join(path.name for path in written), folder)
    return findings


def analyse_images(
    analysis: Analysis,
    configs: Sequence[DictConfig],
    names: Sequence[str],
    device: torch.device,
    given: Sequence[str] = (),
) -> dict[str, list[Any]]:
    """The results for every image by checkpoint, with a progress bar. Raises UserError if the
    checkpoints were trained on different data.
    """
    found: dict[str, list[Any]] = {}
    files: list[Path] = []
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        for cfg, name in zip(configs, names, strict=True):
            subject = open_subject(cfg, name, device, given)
            files.append(subject.data.val_annotations)
            if files[-1] != files[0]:
                raise UserError(
                    f"{cfg.checkpoint}: was trained on other data ({files[-1]}) than "
                    f"{configs[0].checkpoint} ({files[0]}): give data=... for both"
                )
            images = len(subject.data.eval_dataset)
            images = images if cfg.images is None else min(images, cfg.images)
            task = progress.add_task(name, total=images)
            found[name] = []
            with torch.no_grad():
                for i, batch in enumerate(subject.batches(images)):
                    # Heads sample at random: every checkpoint gets the same draws.
                    torch.manual_seed(cfg.seed + i)
                    found[name].append(analysis.analyse_image(subject, batch, i < cfg.shown))
                    progress.advance(task)
    return found


def checkpoints_of(chosen: Any) -> list[str]:
    """The files given by ``checkpoint``: one, a list, or the sorted matches of a pattern. Raises
    UserError if there are none.
    """
    parts = list(chosen) if isinstance(chosen, ListConfig | list) else [chosen]
    if not parts or not all(isinstance(part, str) and part for part in parts):
        raise UserError(f"checkpoint={chosen}: give a FILE, or [A,B,...] to compare several")
    found: list[str] = []
    for part in parts:
        matches = sorted(glob(part)) if "*" in part else [part]
        if not matches:
            raise UserError(f"checkpoint={part}: no file matches: correct it")
        found += matches
    return found


def with_checkpoint(cfg: DictConfig, source: str) -> DictConfig:
    """A copy of ``cfg`` with ``source`` as its checkpoint."""
    one = cfg.copy()
    OmegaConf.update(one, "checkpoint", source, force_add=True)
    return one
