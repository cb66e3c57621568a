"""The W&B logger: falls back to offline mode, and never ends a training run."""

from __future__ import annotations

import logging
import netrc
import os
import socket
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyExperiment
from lightning.pytorch.utilities import rank_zero_only

from codetr.errors import first_line
from codetr.run_folder import RunFolder

log = logging.getLogger(__name__)

TAG_LENGTH = 64
BEST_METRICS = ("val/AP", "val/AP50", "val/AP75")
"""Metrics whose maximum is in W&B's summary."""
EVALUATED = ("val/", "eval/")
UNDEFINED = -1.0
"""COCO's value of a metric without ground truth."""
LOSS = "loss"
SECTION = "train"
"""The section of W&B's charts for losses; a section is the name before the slash."""
CONNECT_TIMEOUT_S = 5.0
START_TIMEOUT_S = 30.0


def wandb_logger(
    folder: str | Path,
    project: str,
    name: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    offline: bool | None = None,
    run_id: str | None = None,
    swept: Mapping[str, Any] | None = None,
    resumes: str | None = None,
    per_layer: bool = False,
    checkpoints: bool = False,
    datasets: bool = False,
) -> GuardedWandbLogger:
    """Start a W&B run, on the first process only, and return a logger on it. The run is offline if
    no key is set or, with a warning, if W&B cannot start online within seconds.
    ``WANDB_MODE=disabled`` starts none.

    ``swept``, the settings that a sweep varies, become tags. The run's id is stored in ``folder``:
    a resumed training (``resumes`` is not None) continues the same W&B run. ``per_layer``,
    ``checkpoints`` and ``datasets``: see ``GuardedWandbLogger``.
    """
    kept = RunFolder(Path(folder))
    if run_id is None and resumes is not None and kept.wandb_id.is_file():
        run_id = kept.wandb_id.read_text().strip() or None
    mode = os.environ.get("WANDB_MODE", "")
    if offline is None:
        offline = mode in ("offline", "dryrun") or (mode != "online" and not has_wandb_key())
    options = {
        "project": project,
        "name": name,
        "dir": os.fspath(folder),
        "id": run_id,
        "group": group,
        "tags": [*(tags or []), *swept_tags(swept or {})],
        "resume": "allow" if run_id else None,
        "settings": {"init_timeout": START_TIMEOUT_S},
    }
    run: Any = None
    if mode != "disabled" and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        run = start_run(options, offline)
    if run is not None:
        kept.wandb_id.parent.mkdir(parents=True, exist_ok=True)
        kept.wandb_id.write_text(f"{run.id}\n")
    return GuardedWandbLogger(
        experiment=DummyExperiment() if run is None else run,  # type: ignore[arg-type]
        project=project,
        save_dir=folder,
        folder=kept,
        per_layer=per_layer,
        checkpoints=checkpoints,
        datasets=datasets,
    )


def start_run(options: Mapping[str, Any], offline: bool) -> Any:
    """A W&B run, online if possible; None, with a warning, where W&B cannot start at all."""
    import wandb  # slow

    try:
        if offline:
            run = wandb.init(**options, mode="offline")
        else:
            run, offline = _online(options)
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        for metric in BEST_METRICS:
            run.define_metric(metric, summary="max")
    except Exception as error:  # training continues whatever W&B raises
        _warn_of_failure(error)
        return None
    folder = Path(run.dir).parent
    state = "offline" if offline else "online"
    # The parts of a resumed offline run must be uploaded together: each alone replaces the others.
    several = len(list(folder.parent.glob(f"offline-run-*-{run.id}"))) > 1
    uploaded = folder.parent if several else folder
    log.info(
        "W&B run (%s): %s - view it with `wandb leet %s`%s",
        state,
        folder,
        folder,
        f", upload it with `wandb sync {uploaded}`" if offline else "",
    )
    return run


def _online(options: Mapping[str, Any]) -> tuple[Any, bool]:
    """A run, and whether it is offline because W&B could not start online."""
    import wandb

    try:
        require_connection(wandb_server())
        return wandb.init(**options), False
    except Exception as error:
        log.warning(
            "W&B cannot start online (%s): this run is logged OFFLINE. Upload it later "
            "with `wandb sync`, or give logger.wandb.offline=true from the start",
            first_line(error),
        )
        return wandb.init(**options, mode="offline"), True


class GuardedWandbLogger(WandbLogger):
    """Lightning's logger, except that an error of W&B never ends a training run: the first one is
    reported as a warning, and nothing more is logged (metrics.csv has the same values).

    Losses are in the section ``train/``: ``train/loss`` and the part of each scheme in it.
    ``per_layer``: log each unweighted term too, as ``loss/<scheme>/<layer>/<name>``.
    ``checkpoints``: upload the best weights when training ends. ``datasets``: upload the annotation
    files when it starts.
    """

    def __init__(
        self,
        *,
        folder: RunFolder,
        per_layer: bool = False,
        checkpoints: bool = False,
        datasets: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.folder = folder
        self.per_layer, self.checkpoints, self.datasets = per_layer, checkpoints, datasets
        self._broken = False

    def _guarded(self, action: Callable[[], Any]) -> None:
        """Run ``action``; warn of the first error and do nothing afterwards."""
        if self._broken:
            return
        try:
            action()
        except Exception as error:  # training continues whatever W&B raises
            self._broken = True
            _warn_of_failure(error)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the values of one optimiser step, without undefined metrics (COCO's -1)."""
        shown = in_sections(metrics, self.per_layer)
        self._guarded(lambda: WandbLogger.log_metrics(self, shown, step))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log the configuration."""
        self._guarded(lambda: WandbLogger.log_hyperparams(self, params))

    @rank_zero_only
    def log_image(
        self, key: str, images: list[Any], step: int | None = None, **kwargs: Any
    ) -> None:
        """Log images."""
        self._guarded(lambda: WandbLogger.log_image(self, key, images, step, **kwargs))

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Log a table."""
        self._guarded(lambda: WandbLogger.log_table(self, key, columns, data, dataframe, step))

    @rank_zero_only
    def log_files(self, kind: str, files: Sequence[Path]) -> None:
        """Upload files as one artifact of a ``kind`` such as ``dataset``."""
        import wandb

        def added() -> None:
            artifact = wandb.Artifact(f"{kind}-{self.version}", type=kind)
            for file in dict.fromkeys(files):
                artifact.add_file(str(file))
            self.experiment.log_artifact(artifact)

        self._guarded(added)

    @rank_zero_only
    def log_datasets(self, files: Sequence[Path]) -> None:
        """Upload the annotation files if ``datasets`` is set."""
        if self.datasets:
            self.log_files("dataset", files)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Upload the best weights if ``checkpoints`` is set, and close the run with its status."""
        kept = next((p for p in (self.folder.best, self.folder.last) if p.is_file()), None)
        if self.checkpoints and kept is not None:
            self.log_files("model", [kept])
        code = 0 if status == "success" else 1
        self._guarded(lambda: self.experiment.finish(exit_code=code))


def in_sections(metrics: Mapping[str, float], per_layer: bool) -> dict[str, float]:
    """``metrics`` by the names that W&B shows: see ``GuardedWandbLogger``."""
    shown: dict[str, float] = {}
    for name, value in metrics.items():
        if name == LOSS or name.startswith(f"{LOSS}_"):
            shown[f"{SECTION}/{name}"] = value
        elif name.startswith(f"{LOSS}/"):
            if per_layer:
                shown[name] = value
        elif not (value == UNDEFINED and name.startswith(EVALUATED)):
            shown[name] = value
    return shown


def wandb_server() -> SplitResult:
    """The URL of the W&B server: WANDB_BASE_URL or the public one."""
    return urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")


def require_connection(server: SplitResult) -> None:
    """Raise OSError if the server does not answer within ``CONNECT_TIMEOUT_S``. Does nothing if a
    proxy is configured.
    """
    if not getproxies():
        port = server.port or {"http": 80}.get(server.scheme, 443)
        socket.create_connection((server.hostname or "", port), timeout=CONNECT_TIMEOUT_S).close()


def has_wandb_key() -> bool:
    """Whether a W&B key is set in WANDB_API_KEY or ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(wandb_server().netloc) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def swept_tags(swept: Mapping[str, Any]) -> list[str]:
    """``seed=1`` for ``{"seed": 1}``, keys without groups; W&B allows at most 64 characters."""
    return [f"{key.rpartition('.')[2]}={value}"[:TAG_LENGTH] for key, value in swept.items()]


def _warn_of_failure(error: Exception) -> None:
    log.warning(
        "W&B failed (%s): training continues without it; the run folder has metrics.csv "
        "and pictures",
        first_line(error),
    )
