import csv
from pathlib import Path

from codetr.training.csv_logger import CsvLogger


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
