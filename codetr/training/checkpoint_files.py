"""Writing checkpoints atomically, and finding the one to resume from."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from codetr.checkpoints.files import RunRecord
from codetr.errors import UserError, abbreviated, first_line
from codetr.run_folder import RunFolder
from codetr.torch_files import Inflated, materialised, require_archive, require_held
from codetr.writing import replacing

log = logging.getLogger(__name__)

NEEDED = frozenset({"state_dict", "optimizer_states", "lr_schedulers", "loops", RunRecord.KEY})
"""What a run needs to resume."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes each checkpoint to a new file in the same folder, which then replaces the old one.

    Lightning writes to the system's temporary folder; if this is on another file system, the old
    checkpoint is overwritten by a copy, which is not atomic.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Raises UserError if the disk is full or the folder is not writable."""
        with replacing(Path(path)) as file:
            torch.save(materialised(checkpoint), file)


def resume_path(ckpt_path: str | None, folder: RunFolder) -> str | None:
    """The checkpoint to resume from: the file ``ckpt_path``, or for ``last`` the run folder's
    last.ckpt. If this is damaged or missing, it is the newest readable checkpoint of the folder;
    None if there is none.

    Raises UserError if the named file, or every file of the folder, cannot be resumed from.
    """
    if ckpt_path is None:
        return None
    if ckpt_path != "last":
        if not Path(ckpt_path).is_file():
            raise UserError(f"{ckpt_path}: no such checkpoint file: give ckpt_path=last or a .ckpt")
        reason = damage(Path(ckpt_path))
        if reason is not None:
            raise UserError(
                f"{ckpt_path}: cannot be resumed from ({reason}): give ckpt_path=last or another "
                ".ckpt of the run"
            )
        return ckpt_path
    missing = not folder.last.is_file()
    reason = "it is not there yet" if missing else damage(folder.last)
    found = folder.last if reason is None else _newest_other(folder)
    if found is None and missing:
        log.info("ckpt_path=last: no %s yet, starting from the beginning", folder.last)
        return None
    if found is None:
        raise UserError(
            f"{folder.last}: cannot be resumed from ({reason}), nor from any other file of its "
            "folder: move it away to start from the beginning"
        )
    if reason is not None:
        rank_zero_only(log.warning)("%s cannot be resumed from (%s)", folder.last, reason)
    log.info("resuming from %s", found)
    return str(found)


def require_fit(path: str, module: nn.Module) -> None:
    """Raises UserError where names or shapes of the weights of checkpoint ``path``, which a run can
    resume from, are not those of ``module``.
    """
    held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    shapes = [{name: t.shape for name, t in state.items()} for state in (held, module.state_dict())]
    different = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
    if different:
        raise UserError(
            f"{path}: cannot be resumed with these settings, which make another model "
            f"(weights that differ in name or shape: {abbreviated(different)}): give the whole "
            "command that started its run again, with the same ckpt_path"
        )


def damage(path: Path) -> str | None:
    """Why a run cannot resume from the file, in a few words; None if it can. Weights are
    memory-mapped, not loaded, since every process of a run checks.
    """
    try:
        require_archive(path)
        with zipfile.ZipFile(path) as archive:  # torch does not verify its checksums
            whole = archive.testzip() is None
    except OSError as error:
        return error.strerror or str(error)
    except Inflated as error:
        return str(error)
    except Exception:  # not an archive, or a truncated one
        whole = False
    if not whole:
        return "it is cut off, damaged, or no checkpoint"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch's unpickler may raise any error
        reason = first_line(error)
        return f"it is whole, but what it holds cannot be loaded: {reason}"
    try:
        require_held(_tensors(content))
    except Inflated as error:
        return str(error)
    if not isinstance(content, dict) or not content.keys() >= NEEDED:
        return "it has no state of training"
    return None


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested containers, by dotted names."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _tensors(part, f"{name}.{number}".lstrip("."))


def _newest_other(folder: RunFolder) -> Path | None:
    """The newest readable checkpoint beside last.ckpt."""
    others = [path for path in folder.path.glob("*.ckpt") if path != folder.last]
    by_age = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in by_age if damage(path) is None), None)
