"""From an official checkpoint to one of ours, with an account of every key."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from codetr.checkpoints.class_rows import match_classes
from codetr.checkpoints.experiment import build_empty, build_record
from codetr.checkpoints.files import DetectorFile, read_detector_file
from codetr.checkpoints.huggingface import HUGGINGFACE, read_huggingface
from codetr.checkpoints.mmdet_swin import is_mmdet_swin
from codetr.checkpoints.official_file import OfficialFile, read_official_file
from codetr.checkpoints.renaming import Conversion
from codetr.checkpoints.transfer import short, transfer
from codetr.checkpoints.zoo import ZOO, find_entry
from codetr.checkpoints.zoo_files import local_file
from codetr.errors import UserError
from codetr.overrides import key_of

log = logging.getLogger(__name__)

OFFICIAL = "official:"
"""What stands before the name of an official file, where ours could be meant."""
FOREIGN = (OFFICIAL, HUGGINGFACE)
"""Sources that describe no model of ours: the experiment does."""
OF_CONVERSION = ("out", "strict", "weights")
"""Keys of conf/convert.yaml that say nothing of the model."""


_SWIN = "a Swin Transformer of mmdetection: its keys are told under the original Swin's names"


@dataclass(frozen=True, kw_only=True)
class KeyReport:
    """Of the official keys: ``used`` ones with our names, those ``dropped`` on purpose (counters,
    tables that are computed, a second set of weights), ``unused`` ones; ``missing`` names of ours
    that the file does not fill, ``misfits`` of other shapes. ``remarks`` on how the file was read.
    """

    used: Mapping[str, str]
    dropped: tuple[str, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    misfits: Mapping[str, str]
    remarks: tuple[str, ...]

    def lines(self) -> list[str]:
        """Remarks and counts, then every key."""
        kinds = {
            "used": [f"{key} -> {ours}" for key, ours in self.used.items()],
            "dropped on purpose": self.dropped,
            "unused": self.unused,
            "missing": self.missing,
            "of another shape": [f"{key}: {shapes}" for key, shapes in self.misfits.items()],
        }
        counts = [f"{len(keys):6d} {kind}" for kind, keys in kinds.items()]
        listed = [f"{kind}: {key}" for kind, keys in kinds.items() for key in keys]
        return [*self.remarks, *counts, *listed]

    def require_complete(self, path: str | Path) -> None:
        """Raise UserError, with the keys, where one is unused, missing or of another shape."""
        kinds = {"unused": self.unused, "missing": self.missing, "of another shape": self.misfits}
        problems = [f"{len(k)} {kind} ({short(list(k), 10)})" for kind, k in kinds.items() if k]
        if problems:
            raise UserError(
                f"{path}: does not fit the model key by key: {'; '.join(problems)}. Choose the "
                "experiment that the file belongs to, or convert it with strict=false"
            )


def convert(cfg: DictConfig, given: Sequence[str]) -> tuple[DetectorFile, KeyReport]:
    """The official file of ``cfg`` (conf/convert.yaml) as a checkpoint of the experiment that is
    among ``given``, the overrides that ``cfg`` was made with; see ``as_checkpoint``.

    Raises UserError for an unusable file, and where no experiment is given.
    """
    if not cfg.checkpoint.startswith(OFFICIAL):
        raise UserError(f"checkpoint={cfg.checkpoint}: give an official file: {OFFICIAL}FILE")
    file = read_official_file(cfg.checkpoint.removeprefix(OFFICIAL), cfg.weights)
    if not any(key_of(override) == "experiment" for override in given):
        raise _no_experiment(cfg.checkpoint, file)
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in OF_CONVERSION])
    own.checkpoint = None  # the experiment's record does not begin with a file
    return as_checkpoint(file, own)


def as_checkpoint(file: OfficialFile, cfg: DictConfig) -> tuple[DetectorFile, KeyReport]:
    """The official file as a checkpoint of ``cfg``, with the number of classes that the file has:
    the weights that fit, and a report on the rest.
    """
    cfg = deepcopy(cfg)
    cfg.num_classes = len(file.classes)
    content, conversion = _as_ours(file, cfg)
    names = file.classes.names
    fit = transfer(content.state, build_empty(cfg).state_dict(), match_classes(names, names))
    fitting = {
        name: value
        for name, value in content.state.items()
        if name not in fit.unknown and name not in fit.misfits
    }
    homeless = set(fit.unknown)
    report = KeyReport(
        used={k: ours for k, ours in conversion.used.items() if not homeless & {*ours.split(", ")}},
        dropped=conversion.dropped + file.other,
        unused=conversion.unused
        + tuple(k for k, ours in conversion.used.items() if homeless & {*ours.split(", ")}),
        missing=fit.missing,
        misfits=fit.misfits,
        remarks=(*file.remarks, _SWIN) if is_mmdet_swin(file.weights) else file.remarks,
    )
    return DetectorFile.from_state(fitting, content.record), report


def open_checkpoint(
    source: str, cfg: DictConfig | None = None, trust: bool = False
) -> DetectorFile:
    """Read a file of a run of ours; an ``official:FILE`` or a ``huggingface:FOLDER``, which become
    checkpoints of the configuration ``cfg`` with their own classes; or ``zoo:NAME``, published
    weights of that name, which bring their own configuration. ``trust``: see ``local_file``.

    Raises UserError for an unusable file, an official one without a model in ``cfg``, one with
    keys that are not known, and published weights that cannot be had.
    """
    if source.startswith(ZOO):
        entry = find_entry(source)
        file = read_official_file(local_file(entry, trust))
        return _completely(source, file, entry.config(len(file.classes)))
    if source.startswith(HUGGINGFACE):
        if cfg is None or cfg.get("model") is None:
            raise UserError(f"{source}: give the experiment it belongs to: experiment=NAME")
        return _completely(source, read_huggingface(source.removeprefix(HUGGINGFACE), cfg), cfg)
    if not source.startswith(OFFICIAL):
        return read_detector_file(source)
    file = read_official_file(source.removeprefix(OFFICIAL))
    if cfg is None or cfg.get("model") is None:
        raise _no_experiment(source, file)
    return _completely(source, file, cfg)


def _no_experiment(source: str, file: OfficialFile) -> UserError:
    said = f" (the file names its configuration '{file.config}')" if file.config else ""
    return UserError(f"{source}: give the experiment it belongs to{said}: experiment=NAME")


def _completely(source: str, file: OfficialFile, cfg: DictConfig) -> DetectorFile:
    """The file as a checkpoint of ``cfg``. Raises UserError where our rules know not all of it."""
    content, conversion = _as_ours(file, cfg)
    if conversion.unused:
        raise UserError(
            f"{source}: {len(conversion.unused)} unknown keys ({short(conversion.unused)}): "
            "convert what is known: python scripts/convert.py checkpoint=official:FILE "
            "experiment=NAME out=FILE strict=false"
        )
    for remark in file.remarks:
        log.info("%s: %s", file.path, remark)
    return content


def _as_ours(file: OfficialFile, cfg: DictConfig) -> tuple[DetectorFile, Conversion]:
    """All of the file that our rules know, as a checkpoint of ``cfg``."""
    cfg = deepcopy(cfg)
    cfg.num_classes = len(file.classes)
    record = replace(build_record(cfg, file.classes), ids_known=file.ids_known)
    conversion = file.dialect.convert(file.weights, cfg)
    return DetectorFile.from_state(conversion.state, record), conversion
