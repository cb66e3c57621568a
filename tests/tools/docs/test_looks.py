"""Numbers of analyses, kept by setting and seed."""

import json
from pathlib import Path

import pytest

from codetr.errors import UserError
from tools.docs.looks import (
    Look,
    looks_table,
    merge_looks,
    read_looks,
    read_results,
    write_looks,
)

AREA = "encoder: area"


def look(k: int, seed: int, value: float, number: str = AREA) -> Look:
    return Look(number=number, variant=f"K = {k}", seed=seed, value=value)


def write_findings(folder: Path, rows: list[dict[str, object]], run: Path) -> None:
    folder.mkdir(exist_ok=True)
    content = {"analysis": "x", "checkpoints": {"a": str(run / "best.ckpt")}, "rows": rows}
    (folder / "x.json").write_text(json.dumps(content))


def test_findings_are_known_by_the_run_of_their_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "sweep/7"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 3\naux_heads: {atss: {}}\n")
    (run / "job.json").write_text(json.dumps({"swept": {"seed": 3, "aux_heads": "[atss]"}}))
    row = {"checkpoint": "a", "head": "all", "of": "atss", "K": 1, "KL": 0.5, "none": None}
    write_findings(tmp_path / "conflict", [row], run)
    assert read_results(tmp_path / "conflict") == [
        Look(number="conflict: all, atss, KL", variant="K = 1 (atss)", seed=3, value=0.5)
    ]
    write_findings(tmp_path / "conflict", [row], tmp_path / "gone")
    with pytest.raises(UserError, match=r"best\.ckpt: its run is no longer beside it"):
        read_results(tmp_path / "conflict")
    with pytest.raises(UserError, match="holds no results of"):
        read_results(run / "pictures")


def test_a_table_by_hand() -> None:
    looks = [look(k, seed, 0.5 + 0.1 * k + 0.02 * seed) for k in (0, 2) for seed in (0, 1)]
    looks += [look(2, 0, 40.0, "queries: all, positive: nearest %"), look(2, 0, 1.0, "unshown")]
    heading, area, queries = looks_table(looks)
    assert heading == ["number", "K = 0", "K = 2", "last - first, by seed"]
    assert area[1:] == [
        "0.510 ± 0.014 (2)",
        "0.710 ± 0.014 (2)",
        "+0.200 [+0.200, +0.200]",
    ]
    assert queries[1:] == ["-", "40.0 (1)", "-"]


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "looks.json"
    both = merge_looks([look(0, 0, 0.1), look(0, 1, 0.2)], [look(0, 1, 0.3)])
    assert both == [look(0, 0, 0.1), look(0, 1, 0.3)]
    write_looks(both, file)
    assert read_looks(file) == both
    file.write_text('{"looks": [{"number": 1}]}')
    with pytest.raises(UserError, match="holds no analyses"):
        read_looks(file)
