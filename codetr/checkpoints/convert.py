"""Conversion of an official checkpoint to ours, with a report on every key."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from codetr.checkpoints.class_rows import match_classes
from codetr.checkpoints.experiment import build_empty, build_record
from codetr.checkpoints.files import DetectorFile, read_detector_file
from codetr.checkpoints.huggingface import HUGGINGFACE, read_huggingface
from codetr.checkpoints.mmdet_swin import is_mmdet_swin
from codetr.checkpoints.official_file import OfficialFile, read_official_file
from codetr.checkpoints.renaming import Conversion
from codetr.checkpoints.transfer import transfer
from codetr.checkpoints.zoo import ZOO, find_entry
from codetr.checkpoints.zoo_files import fetched_file
from codetr.errors import UserError, abbreviated
from codetr.overrides import key_of

log = logging.getLogger(__name__)

OFFICIAL = "official:"
"""Prefix of the name of an official file, which tells it from ours."""
FOREIGN = (OFFICIAL, HUGGINGFACE)
"""Prefixes of sources without a configuration of ours: the experiment provides it."""
OF_CONVERSION = ("out", "strict", "weights")
"""Keys of conf/convert.yaml that do not describe the model."""


_SWIN = "a Swin Transformer of mmdetection: its keys are listed under the original Swin's names"


@dataclass(frozen=True, kw_only=True)
class KeyReport:
    """What became of the official keys: ``used`` ones with our names, those ``dropped`` on purpose
    (counters, computed tables, a second set of weights), and ``unused`` ones; ``missing``: our
    names that the file does not provide; ``misfits``: names whose shapes differ. ``remarks`` say
    how the file was read.
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
        """Raise UserError with the keys that are unused, missing or of another shape, if any."""
        kinds = {"unused": self.unused, "missing": self.missing, "of another shape": self.misfits}
        problems = [
            f"{len(k)} {kind} ({abbreviated(list(k), 10)})" for kind, k in kinds.items() if k
        ]
        if problems:
            raise UserError(
                f"{path}: does not fit the model key by key: {'; '.join(problems)}. Choose the "
                "experiment that the file belongs to, or convert it with strict=false"
            )


def convert(cfg: DictConfig, given: Sequence[str]) -> tuple[DetectorFile, KeyReport]:
    """Convert the official file of ``cfg`` (conf/convert.yaml) to a checkpoint of the experiment
    in ``given``, the overrides that ``cfg`` was composed with; see ``as_checkpoint``.

    Raises UserError for an unusable file, and if no experiment is given.
    """
    if not cfg.checkpoint.startswith(OFFICIAL):
        raise UserError(f"checkpoint={cfg.checkpoint}: give an official file: {OFFICIAL}FILE")
    file = read_official_file(cfg.checkpoint.removeprefix(OFFICIAL), cfg.weights)
    if not any(key_of(override) == "experiment" for override in given):
        raise _no_experiment(cfg.checkpoint, file)
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in OF_CONVERSION])
    own.checkpoint = None  # the record is that of the experiment, which starts from no file
    return as_checkpoint(file, own)


def as_checkpoint(file: OfficialFile, cfg: DictConfig) -> tuple[DetectorFile, KeyReport]:
    """The official file as a checkpoint of ``cfg`` with the file's number of classes: the weights
    that fit, and a report on all keys.
    """
    cfg = deepcopy(cfg)
    cfg.num_classes = len(file.classes)
    content, conversion = _converted(file, cfg)
    names = file.classes.names
    fit = transfer(content.state, build_empty(cfg).state_dict(), match_classes(names, names))
    fitting = {
        name: value
        for name, value in content.state.items()
        if name not in fit.unknown and name not in fit.misfits
    }
    unplaced = set(fit.unknown)
    report = KeyReport(
        used={k: ours for k, ours in conversion.used.items() if not unplaced & {*ours.split(", ")}},
        dropped=conversion.dropped + file.other,
        unused=conversion.unused
        + tuple(k for k, ours in conversion.used.items() if unplaced & {*ours.split(", ")}),
        missing=fit.missing,
        misfits=fit.misfits,
        remarks=(*file.remarks, _SWIN) if is_mmdet_swin(file.weights) else file.remarks,
    )
    return DetectorFile.from_state(fitting, content.record), report


def open_checkpoint(
    source: str, cfg: DictConfig | None = None, trust: bool = False
) -> DetectorFile:
    """Open a checkpoint: a file of one of our runs; an ``official:FILE`` or ``huggingface:FOLDER``,
    which become checkpoints of the configuration ``cfg`` with their own classes; or ``zoo:NAME``,
    published weights with a configuration of their own. ``trust``: see ``fetched_file``.

    Raises UserError for an unusable file, an official one without a model in ``cfg`` or with
    unknown keys, and published weights that are not available.
    """
    if source.startswith(ZOO):
        entry = find_entry(source)
        file = read_official_file(fetched_file(entry, trust))
        return _converted_completely(source, file, entry.config(len(file.classes)))
    if source.startswith(HUGGINGFACE):
        if cfg is None or cfg.get("model") is None:
            raise UserError(f"{source}: give the experiment it belongs to: experiment=NAME")
        return _converted_completely(
            source, read_huggingface(source.removeprefix(HUGGINGFACE), cfg), cfg
        )
    if not source.startswith(OFFICIAL):
        return read_detector_file(source)
    file = read_official_file(source.removeprefix(OFFICIAL))
    if cfg is None or cfg.get("model") is None:
        raise _no_experiment(source, file)
    return _converted_completely(source, file, cfg)


def _no_experiment(source: str, file: OfficialFile) -> UserError:
    said = f" (the file names its configuration '{file.config}')" if file.config else ""
    return UserError(f"{source}: give the experiment it belongs to{said}: experiment=NAME")


def _converted_completely(source: str, file: OfficialFile, cfg: DictConfig) -> DetectorFile:
    """The file as a checkpoint of ``cfg``. Raises UserError for keys that no rule matches."""
    content, conversion = _converted(file, cfg)
    if conversion.unused:
        raise UserError(
            f"{source}: {len(conversion.unused)} unknown keys ({abbreviated(conversion.unused)}): "
            "convert the others: codetr-convert checkpoint=official:FILE "
            "experiment=NAME out=FILE strict=false"
        )
    for remark in file.remarks:
        log.info("%s: %s", file.path, remark)
    return content


def _converted(file: OfficialFile, cfg: DictConfig) -> tuple[DetectorFile, Conversion]:
    """The file as a checkpoint of ``cfg``, and what became of its keys."""
    cfg = deepcopy(cfg)
    cfg.num_classes = len(file.classes)
    conversion = file.dialect.convert(file.weights, cfg)
    record = build_record(cfg, file.classes)
    return DetectorFile.from_state(conversion.state, record), conversion
