import logging
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from lightning.pytorch.utilities import rank_zero_only

from codetr.run_folder import RunFolder
from codetr.training import wandb_logger as module
from codetr.training.wandb_logger import (
    GuardedWandbLogger,
    has_wandb_key,
    in_sections,
    wandb_logger,
)


def test_key_comes_from_the_environment_or_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not has_wandb_key()
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    netrc.chmod(0o600)
    assert has_wandb_key()
    netrc.unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_wandb_key()


class BrokenRun:
    id = "1"

    def log(self, *_: object, **__: object) -> None:
        raise ConnectionError("no network")


def test_failure_of_wandb_is_reported_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = GuardedWandbLogger(experiment=BrokenRun(), folder=RunFolder(tmp_path))
    with caplog.at_level(logging.WARNING):
        logger.log_metrics({"loss": 1.0}, step=0)
        logger.log_metrics({"loss": 1.0}, step=1)
    assert [r.message for r in caplog.records] == [
        "W&B failed (no network): training continues without it; the run folder has metrics.csv "
        "and pictures"
    ]


def test_start_without_network_falls_back_to_offline_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OfflineRun:
        dir = str(tmp_path / "offline-run-1" / "files")
        id = "abc"

        def define_metric(self, *_: object, **__: object) -> None:
            """Noted by W&B."""

    modes: list[str | None] = []

    def init(**options: object) -> OfflineRun:
        modes.append(options.get("mode"))  # type: ignore[arg-type]
        if options.get("mode") != "offline":
            raise ConnectionError("cannot reach the server\nlong story")
        return OfflineRun()

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(module, "require_connection", lambda _: None)
    with caplog.at_level(logging.INFO):
        assert isinstance(wandb_logger(tmp_path, "project").experiment, OfflineRun)
    assert modes == [None, "offline"]
    loud, where = [r.getMessage() for r in caplog.records]
    assert "OFFLINE" in loud
    assert "cannot reach the server" in loud
    assert "long story" not in loud
    assert "wandb leet" in where
    assert "wandb sync" in where


def test_parts_of_a_resumed_offline_run_are_uploaded_together(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    for resumes in (None, "last"):
        with caplog.at_level(logging.INFO, "codetr"):
            logger = wandb_logger(tmp_path, "project", offline=True, resumes=resumes)
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finalize("success")
        time.sleep(1.1)  # W&B names folders by the second
    said = [r.getMessage() for r in caplog.records if r.name == "codetr.training.wandb_logger"]
    first, second = (re.findall("`wandb sync (.*)`", line)[0] for line in said)
    command = [sys.executable, "-m", "wandb", "sync", second, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2 run(s)" in done.stderr
    assert first.rpartition("/")[2] in done.stderr


def test_without_a_server_nothing_is_tried_online(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At an address where nothing listens."""

    class OfflineRun:
        dir = str(tmp_path / "offline-run-1" / "files")
        id = "1"

        def define_metric(self, *_: object, **__: object) -> None:
            """Lightning tells which is the step."""

    modes: list[object] = []

    def init(**options: object) -> OfflineRun:
        modes.append(options.get("mode"))
        assert options["settings"] == {"init_timeout": module.START_TIMEOUT_S}
        return OfflineRun()

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        monkeypatch.setattr(wandb, "init", init)
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(module, "getproxies", dict)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_MODE", "online")
        with caplog.at_level(logging.WARNING):
            assert isinstance(wandb_logger(tmp_path, "project").experiment, OfflineRun)
    assert modes == ["offline"]
    assert "OFFLINE" in caplog.text
    assert "logger.wandb.offline=true" in caplog.text


def test_the_way_through_a_proxy_is_left_to_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "getproxies", lambda: {"https": "http://proxy:3128"})
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    module.require_connection(module.wandb_server())


def test_what_a_sweep_varied_becomes_tags() -> None:
    swept = {"scheme.collaborative.lambda_1": 0.5, "aux_heads": "[" + "atss," * 20 + "]"}
    number, long = module.swept_tags(swept)
    assert number == "lambda_1=0.5"
    assert len(long) == 64, "W&B takes no longer ones"


def test_losses_are_summed_per_scheme_unless_each_term_is_asked_for() -> None:
    metrics = {
        "loss": 3.0,
        "loss_one_to_one": 1.5,
        "loss_denoising": 2.0,
        "loss/one_to_one/layer0/cls": 1.0,
        "loss/one_to_one/layer1/cls": 0.5,
        "loss/denoising/layer0/l1": 2.0,
        "val/AP": 0.25,
        "val/AP_small": -1.0,
        "lr/rest": 1e-4,
        "perf/images_per_second": -1.0,
    }
    summed = {
        "train/loss": 3.0,
        "train/loss_one_to_one": 1.5,
        "train/loss_denoising": 2.0,
        "val/AP": 0.25,
        "lr/rest": 1e-4,
        "perf/images_per_second": -1.0,
    }
    assert in_sections(metrics, per_layer=False) == summed
    terms = {name: value for name, value in metrics.items() if name.startswith("loss/")}
    assert in_sections(metrics, per_layer=True) == summed | terms


def test_other_processes_start_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("W&B was started"))
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = wandb_logger(tmp_path, "project", offline=True)
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_start_at_all_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> SimpleNamespace:
        raise OSError("no space left")

    monkeypatch.setattr(wandb, "init", init)
    with caplog.at_level(logging.WARNING):
        logger = wandb_logger(tmp_path, "project", offline=True)
        logger.log_metrics({"loss": 1.0}, step=1)
        logger.finalize("success")
    assert ["no space left" in record.getMessage() for record in caplog.records] == [True]


def test_wandb_is_switched_off_by_its_own_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise AssertionError("W&B was started")

    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(wandb, "init", fail)
    logger = wandb_logger(tmp_path, "project")
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.experiment.log({"loss": 1.0})
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []
