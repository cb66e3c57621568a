"""Suggestions for misspelled names on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf

from codetr.conf_folder import conf_folder
from codetr.overrides import key_of

_MOST = 12  # options that a message lists
FROM_OTHER_TOOLS = {
    "amp": "trainer.precision",
    "batch": "data.batch_size",
    "conf": "threshold",
    "dataset_dir": "data.root",
    "device": "trainer.accelerator",
    "grad_accum_steps": "trainer.effective_batch",
    "image_size": "augmentation",
    "img_size": "augmentation",
    "imgsz": "augmentation",
    "load_from": "checkpoint",
    "lr0": "optimizer.lr",
    "output_dir": "name",
    "patience": "callbacks.early_stopping.patience",
    "pretrained": "checkpoint",
    "project": "paths.runs",
    "resolution": "augmentation",
    "resume": "ckpt_path",
    "save_dir": "name",
    "score_thr": "threshold",
    "weights": "checkpoint",
    "work_dir": "name",
}
"""Settings of mmdetection, Ultralytics, RF-DETR and DINO, and what is set here instead."""

_OVERRIDDEN = re.compile(r"Could not override '(?P<key>[^']+)'")


def explain(error: HydraException, overrides: Sequence[str], command: str = "train") -> str:
    """One line for an error in composing ``command`` (a file of conf/) with ``overrides``: the
    option or key that does not exist and the most similar one; Hydra's own message for other
    errors.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _option(error.missing_cfg_file)
    found = _OVERRIDDEN.search(str(error))
    if found:
        return _key(found["key"], overrides, command)
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        return (
            f"{error.override}: is no setting, which is KEY=VALUE: put quotes around a value that "
            "contains spaces"
        )
    return " ".join(f"{error} {error.__cause__ or ''}".split())


def _option(file: str) -> str:
    group, _, name = file.removesuffix(".yaml").rpartition("/")
    folder = conf_folder() / group
    path = file.removeprefix("data/")
    if path != file and "/" in path:
        return f"data={path}: is a path: give data=custom data.root=FOLDER, the folder of your data"
    options = sorted(path.stem for path in folder.glob("*.yaml"))
    near = get_close_matches(name, options, 3, 0.4)
    meant = f"did you mean {' or '.join(f'{group}={one}' for one in near)}? " if near else ""
    listed = ", ".join(options) if len(options) <= _MOST else f"{len(options)}, in {_shown(folder)}"
    return f"Could not find '{group}/{name}': {meant}Options of {group}: {listed}"


def _shown(folder: Path) -> Path:
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _key(key: str, overrides: Sequence[str], command: str) -> str:
    rest = [o for o in overrides if "=" in o and key_of(o) != key_of(key)]
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            cfg = compose(command, rest)
        known = list(_names(OmegaConf.to_container(cfg, resolve=False)))
    except HydraException:
        known = []
    finally:
        GlobalHydra.instance().clear()
        if running is not None:
            GlobalHydra.instance().initialize(running)
    above, _, last = key.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == above}
    near = [other for other in (FROM_OTHER_TOOLS.get(key),) if other in known]
    near = near or [beside[name] for name in get_close_matches(last, beside, 1, 0.6)]
    near = near or [name for name in known if name.endswith(f".{last}")][:1]
    near = near or get_close_matches(key, known, 1, 0.6)
    if above:  # few settings, so that even the least similar one may be meant
        near = near or [beside[name] for name in get_close_matches(last, beside, 1, 0.0)]
    meant = f": did you mean {near[0]}?" if near else "."
    return (
        f"Key '{last}' is not in struct: there is no setting {key}{meant} A new one needs +{key}="
    )


def _names(node: Any, name: str = "") -> Iterator[str]:
    """Dotted names of all settings and groups below ``node``."""
    for key, value in node.items() if isinstance(node, dict) else ():
        full = f"{name}.{key}".lstrip(".")
        yield full
        yield from _names(value, full)
