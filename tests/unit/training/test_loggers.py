import csv
import logging
import os
import socket
from pathlib import Path

import pytest

from codetr.training import loggers
from codetr.training.loggers import CsvLogger, SafeWandbLogger, has_wandb_key


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_a_step_are_merged_and_new_names_become_columns(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=4)
    logger.log_metrics({"lr": 0.5}, step=4)
    logger.log_metrics({"loss": 2.0}, step=9)
    logger.log_metrics({"val/AP": 0.25}, step=9)
    logger.finalize("success")
    assert rows(tmp_path) == [
        {"step": "4", "loss": "1.0", "lr": "0.5", "val/AP": ""},
        {"step": "9", "loss": "2.0", "lr": "", "val/AP": "0.25"},
    ]


def test_resumed_run_continues_the_file_and_replaces_what_it_repeats(tmp_path: Path) -> None:
    first = CsvLogger(tmp_path)
    for step in range(4):
        first.log_metrics({"loss": float(step)}, step=step)
    first.save()
    second = CsvLogger(tmp_path)
    second.log_metrics({"loss": 10.0, "new": 1.0}, step=2)
    second.finalize("success")
    assert [(r["step"], r["loss"]) for r in rows(tmp_path)] == [
        ("0", "0.0"),
        ("1", "1.0"),
        ("2", "10.0"),
    ]


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
    def log(self, *_: object, **__: object) -> None:
        raise ConnectionError("no network")


def test_failure_of_wandb_is_reported_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = SafeWandbLogger(tmp_path, "project", offline=True)
    logger._experiment = BrokenRun()
    with caplog.at_level(logging.WARNING):
        logger.log_metrics({"loss": 1.0}, step=0)
        logger.log_metrics({"loss": 1.0}, step=1)
    assert [r.message for r in caplog.records] == [
        "W&B failed (no network): training continues without it; the run folder has metrics.csv "
        "and pictures"
    ]


def test_start_without_network_falls_back_to_offline_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

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
    monkeypatch.setattr(wandb, "run", None)
    monkeypatch.setenv("WANDB_MODE", "online")  # restored afterwards, Lightning changes it
    monkeypatch.setattr(loggers, "require_connection", lambda _: None)
    logger = SafeWandbLogger(tmp_path, "project")
    with caplog.at_level(logging.INFO):
        assert isinstance(logger.experiment, OfflineRun)
    assert modes == [None, "offline"]
    loud, where = [r.getMessage() for r in caplog.records]
    assert "OFFLINE" in loud
    assert "cannot reach the server" in loud
    assert "long story" not in loud
    assert "wandb leet" in where
    assert "wandb sync" in where


def test_without_a_server_nothing_is_tried_online(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At an address where nothing listens."""
    import wandb

    class OfflineRun:
        dir = str(tmp_path / "offline-run-1" / "files")
        id = "1"

        def define_metric(self, *_: object, **__: object) -> None:
            """Lightning tells which is the step."""

    modes: list[object] = []

    def init(**options: object) -> OfflineRun:
        modes.append(options.get("mode"))
        assert options["settings"] == {"init_timeout": loggers.START}
        return OfflineRun()

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        monkeypatch.setattr(wandb, "init", init)
        monkeypatch.setattr(wandb, "run", None)
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(loggers, "getproxies", dict)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_MODE", "online")
        with caplog.at_level(logging.WARNING):
            assert isinstance(SafeWandbLogger(tmp_path, "project").experiment, OfflineRun)
    assert modes == ["offline"]
    assert "OFFLINE" in caplog.text
    assert "logger.wandb.offline=true" in caplog.text


def test_the_way_through_a_proxy_is_left_to_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "getproxies", lambda: {"https": "http://proxy:3128"})
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    loggers.require_connection(loggers.wandb_server())


def test_a_step_is_one_row_however_often_it_is_saved(tmp_path: Path) -> None:
    """Lightning saves after each call."""
    logger = CsvLogger(tmp_path)
    for step, values in enumerate([{"loss": 1.0}, {"lr": 2.0}, {"loss": 3.0}, {"val/AP": 0.5}]):
        logger.log_metrics(values, step=step // 2)
        logger.save()
        logger.save()
    logger.finalize("success")
    expected = [
        {"step": "0", "loss": "1.0", "lr": "2.0", "val/AP": ""},
        {"step": "1", "loss": "3.0", "lr": "", "val/AP": "0.5"},
    ]
    assert rows(tmp_path) == expected
    resumed = CsvLogger(tmp_path)
    for values in ({"loss": 4.0}, {"lr": 5.0}, {"loss": 6.0}):
        resumed.log_metrics(values, step=1)
        resumed.save()
    resumed.log_metrics({"loss": 7.0}, step=2)
    resumed.finalize("success")
    again = [(row["step"], row["loss"], row["lr"]) for row in rows(tmp_path)]
    assert again == [("0", "1.0", "2.0"), ("1", "6.0", "5.0"), ("2", "7.0", "")]


def test_what_a_sweep_varied_becomes_tags(tmp_path: Path) -> None:
    swept = {"scheme.collaborative.lambda_1": 0.5, "aux_heads": "[" + "atss," * 20 + "]"}
    logger = SafeWandbLogger(tmp_path, "project", offline=True, tags=["mine"], swept=swept)
    mine, number, long = logger._wandb_init["tags"]
    assert (mine, number) == ("mine", "lambda_1=0.5")
    assert len(long) == 64, "W&B takes no longer ones"


def test_wandb_is_switched_off_by_its_own_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def fail(**_: object) -> None:
        raise AssertionError("W&B was started")

    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(wandb, "init", fail)
    logger = SafeWandbLogger(tmp_path, "project")
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.experiment.log({"loss": 1.0})
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []
    assert os.environ["WANDB_MODE"] == "disabled"
