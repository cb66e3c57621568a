"""Records of sweeps, and the pages made of them."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from tools.docs.looks import read_looks
from tools.docs.records import Kept, merge, read_record, write_record
from tools.docs.study import (
    BESIDE,
    NOT_RUN,
    figure_path,
    study_figures,
    study_text,
    with_looks,
    with_study,
    with_study_in_short,
)
from tools.sweeps.runs import Run, read_runs

ROOT = Path(__file__).resolve().parents[3]
RECORDS = {path.stem: read_record(path) for path in (ROOT / "benchmarks/study").glob("*.json")}


def kept(heads: tuple[str, ...], seed: int, ap: float | None) -> Kept:
    metrics = None if ap is None else {"AP": ap, "steps": 10, "step_time_s": 0.5}
    swept = {"aux_heads": f"[{','.join(heads)}]"}
    run = Run(folder=Path(), swept=swept, seed=seed, heads=heads, metrics=metrics)
    return Kept(run=run) if ap is None else Kept(run=run, commit="abc", hardware="chip")


def k_sweep() -> list[Kept]:
    """K = 0, 1, 2 with three seeds; K = 1 is better by 0.1 in all, K = 2 has one run."""
    runs = [kept(("atss",) * k, s, 0.3 + 0.1 * k + 0.02 * s) for s in range(3) for k in (0, 1)]
    later = [kept(("atss", "rcnn"), s, None) for s in (1, 2)]
    return [*runs, kept(("atss", "rcnn"), 0, 0.5), *later]


@pytest.mark.parametrize(
    ("page", "write"), [("docs/study.md", with_study), ("README.md", with_study_in_short)]
)
def test_pages_say_what_the_records_say(page: str, write: object) -> None:
    path = ROOT / page
    text = path.read_text("utf-8")
    assert write(text, RECORDS, path) == text, "run python scripts/study.py"  # type: ignore[operator]


def test_the_page_says_what_the_analyses_found() -> None:
    path, file = ROOT / "docs/study.md", ROOT / "benchmarks/study/analyses/study_k.json"
    text = path.read_text("utf-8")
    assert with_looks(text, read_looks(file), path) == text, "run python scripts/study.py"


def test_every_record_is_of_a_sweep_and_has_its_figure() -> None:
    page = (ROOT / "docs/study.md").read_text("utf-8")
    for name, runs in RECORDS.items():
        assert (conf_folder() / f"sweep/{name}.yaml").is_file()
        assert len({one.key for one in runs}) == len(runs)
        if any(one.run.metrics for one in runs):
            assert (ROOT / "docs" / figure_path(name)).is_file()
    shown = re.findall(r"<!-- study: (\S+) -->", page)
    assert all((conf_folder() / f"sweep/{name}.yaml").is_file() for name in shown)


def test_a_table_by_hand() -> None:
    text = study_text("study_k", k_sweep())
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert [row[:3] for row in rows[2:]] == [
        ["K = 0 (none)", "3", "0.320 ± 0.020"],
        ["K = 1 (atss)", "3", "0.420 ± 0.020"],
        ["K = 2 (atss, rcnn)", "1 of 3", "0.500"],
    ]
    assert [row[-1] for row in rows[2:]] == [
        "-",
        "+0.100 [+0.100, +0.100]",
        "+0.200 (one seed)",
    ]
    assert "7 of 9 runs are finished, of 10 steps each." in text
    assert "Hardware: chip; commit abc." in text
    assert "K = 2 (atss, rcnn) above K = 1 (atss): +0.100 (one seed)." in text
    assert "is reached by" not in text, "there are no curves"


def test_how_much_sooner_a_setting_is_as_good() -> None:
    def curved(heads: tuple[str, ...], seed: int, values: list[float]) -> Kept:
        one = kept(heads, seed, max(values))
        curve = tuple((10 * (i + 1), value) for i, value in enumerate(values))
        return replace(one, run=replace(one.run, curves={"val/AP": curve}))

    none = [curved((), 0, [0.1, 0.2, 0.3]), curved((), 1, [0.1, 0.2, 0.4])]
    one = [curved(("atss",), 0, [0.3, 0.4, 0.5]), curved(("atss",), 1, [0.2, 0.4, 0.5])]
    told = (
        "The best AP of K = 0 (none) is reached by K = 1 (atss) after 15 steps (mean over seeds)."
    )
    assert told in study_text("study_k", [*none, *one])
    never = curved(("atss",), 1, [0.2, 0.3, 0.3])
    assert "is reached by" not in study_text("study_k", [*none, one[0], never])


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "study_k.json"
    write_record(k_sweep(), file)
    assert study_text("study_k", read_record(file)) == study_text("study_k", k_sweep())
    assert len(file.read_text().splitlines()) == len(k_sweep()) + 2, "one line per run"
    for text in ("[]", "{", '{"runs": [1]}', '{"runs": [{}]}'):
        file.write_text(text)
        with pytest.raises(UserError, match=r"study_k\.json: is no record"):
            read_record(file)


def test_a_later_run_is_added_and_a_finished_one_stays() -> None:
    one, other = kept((), 0, 0.3), kept((), 1, None)
    again = replace(other, run=replace(other.run, metrics={"AP": 0.4}))
    assert merge([one, other], [again]) == (one, again)
    assert merge([one], [kept((), 0, None), other]) == (one, other)
    assert merge([], [other, one]) == (other, one)


def test_a_run_that_had_not_begun_is_known_again_by_what_was_swept() -> None:
    """Its label is made of its heads, which it writes when it begins."""
    swept = {"aux_heads@aux_heads.atss_2": "[atss]"}
    waiting, other = (Kept(run=Run(folder=Path(), swept=swept, seed=n)) for n in (0, 1))
    heads = ("atss", "atss_2")
    done = Run(folder=Path(), swept=swept, seed=0, heads=heads, metrics={"AP": 0.5, "steps": 10})
    assert merge([waiting, other], [Kept(run=done)]) == (other, Kept(run=done))


def test_marks_without_a_record_and_records_without_marks() -> None:
    page = "<!-- study: a -->\nold\n<!-- end of a -->\n"
    assert NOT_RUN in with_study(page, {}, Path("page.md"))
    with pytest.raises(UserError, match=r"page\.md: has no <!-- study: b -->"):
        with_study(page, {"b": k_sweep()}, Path("page.md"))


def test_figures_are_of_what_has_run() -> None:
    none = [kept((), 0, None)]
    assert study_figures({"bccd": none}) == {}
    assert set(study_figures({name: k_sweep() for name in BESIDE})) == {
        "study_k.png",
        "study_k_denoising.png",
        "study.png",
    }


def test_the_command_adds_a_sweep_and_writes_the_pages(tmp_path: Path) -> None:
    for name in ("docs/study.md", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"), encoding="utf-8")
    (tmp_path / "docs/images").mkdir()
    for seed in (0, 1):
        folder = tmp_path / f"sweep/{seed}"
        folder.mkdir(parents=True)
        state = {"swept": {"seed": seed, "aux_heads": "[]"}, "overrides": []}
        (folder / "job.json").write_text(json.dumps(state))
    (tmp_path / "sweep/0/metrics.json").write_text('{"AP": 0.125, "steps": 10}')
    assert len(read_runs(tmp_path / "sweep")) == 2
    script = [sys.executable, str(ROOT / "scripts/study.py"), "--root", str(tmp_path)]
    more = ["--commit", "abc", f"study_k={tmp_path / 'sweep'}"]
    done = subprocess.run([*script, *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 runs" in done.stdout
    assert "| K = 0 (none) | 1 of 2 | 0.125 |" in (tmp_path / "docs/study.md").read_text("utf-8")
    assert "| K = 0 (none) | 0.125 | 1 | - |" in (tmp_path / "README.md").read_text("utf-8")
    assert (tmp_path / "docs/images/study_k.png").stat().st_size > 1000
    done = subprocess.run([*script, "nonsense=here"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "give NAME=DIR" in done.stderr
