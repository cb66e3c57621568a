import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from codetr.errors import UserError
from codetr.training.sweeps.jobs import Job, earlier, plan, require_own_folders, swept_values

OVERRIDES = [
    ["lr=1", "aux_heads=[]", "name=k"],
    ["lr=1", "aux_heads=[atss]", "name=k"],
]


def jobs(tmp_path: Path) -> list[Job]:
    return plan(OVERRIDES, 0, tmp_path / "k")


def test_job_is_a_plain_command_in_its_own_folder(tmp_path: Path) -> None:
    command = jobs(tmp_path)[1].command(Path("train.py"), ["--config-name=train"])
    assert command[:2] == [sys.executable, "train.py"]
    assert "-m" not in command
    assert command[2:] == [
        "--config-name=train",
        "lr=1",
        "aux_heads=[atss]",
        "name=k_1",
        "+swept={aux_heads:'[atss]'}",
        f"hydra.run.dir='{tmp_path / 'k' / '1'}'",
    ]


def test_job_resumes_from_its_checkpoint_unless_told_otherwise(tmp_path: Path) -> None:
    job = jobs(tmp_path)[0]
    job.folder.mkdir(parents=True)
    (job.folder / "last.ckpt").touch()
    assert "ckpt_path=last" in job.command(Path("train.py"), ["--config-name=train"])
    (told,) = plan([["ckpt_path=other.ckpt"]], 0, tmp_path / "k")
    assert "ckpt_path=last" not in told.command(Path("train.py"), ["--config-name=train"])


def test_only_what_differs_between_jobs_is_swept(tmp_path: Path) -> None:
    assert [job.swept for job in jobs(tmp_path)] == [("aux_heads=[]",), ("aux_heads=[atss]",)]
    assert [job.swept for job in plan([["lr=1"]], 3, tmp_path, ["lr=1"])] == [()]


def test_swept_values_are_what_hydra_reads_back() -> None:
    overrides = ["seed=1", "aux_heads=[atss,rcnn]", "a.b={c:0.5,d:true}", r"note='it\'s'"]
    values = swept_values(overrides)
    assert values == {
        "seed": 1,
        "aux_heads": "[atss,rcnn]",
        "a.b.c": 0.5,
        "a.b.d": True,
        "note": "it's",
    }
    job = Job(number=0, folder=Path("k/0"), overrides=(), swept=tuple(overrides))
    assert job.label == "seed=1 aux_heads=[atss,rcnn] c=0.5 d=True note=it's"
    (literal,) = [o for o in job.command(Path("t.py"), "train") if o.startswith("+swept=")]
    assert OverridesParser.create().parse_override(literal).value() == values


def test_job_is_finished_once_it_says_so_and_has_metrics(tmp_path: Path) -> None:
    first, second = jobs(tmp_path)
    assert not first.finished()
    first.note(finished=True)
    assert not first.finished(), "its metrics were deleted"
    (first.folder / "metrics.json").write_text("{}")
    assert first.finished()
    second.note(finished=False)
    (second.folder / "metrics.json").write_text("{}")
    assert not second.finished()


def test_folder_of_another_job_is_not_taken(tmp_path: Path) -> None:
    first, _ = jobs(tmp_path)
    first.note(finished=True)
    require_own_folders(jobs(tmp_path))
    others = plan([["lr=2"]], 0, tmp_path / "k")
    assert not others[0].finished()
    with pytest.raises(UserError, match=r"k/0 holds another job \(lr=1 'aux_heads=\[\]'\)"):
        require_own_folders(others)


def test_damaged_state_is_named(tmp_path: Path) -> None:
    first, _ = jobs(tmp_path)
    first.note(finished=True)
    first.run.job.write_text("{")
    with pytest.raises(UserError, match=r"job\.json is not valid JSON"):
        first.finished()


def test_a_single_job_is_labelled_by_overrides_not_in_the_command(
    tmp_path: Path,
) -> None:
    """As in a search, whose jobs come one at a time."""
    told = ["lr=interval(0,1)", "aux_heads=[atss]", "name=k"]
    (job,) = plan([["lr=0.25", "aux_heads=[atss]", "name=k"]], 3, tmp_path / "k", told)
    assert job.swept == ("lr=0.25",)
    assert job.label == "lr=0.25"


def test_jobs_of_earlier_steps_are_read_from_their_folders(tmp_path: Path) -> None:
    folder = tmp_path / "k"
    first, second = plan([["lr=1", "heads=[a, b]"], ["lr=2", "heads=[c]"]], 0, folder)
    first.note(finished=True)
    second.note(finished=False)
    again = earlier(folder, 3)  # the third was never begun
    assert [job.number for job in again] == [0, 1]
    assert [job.label for job in again] == [first.label, second.label]
    assert [job.fingerprint for job in again] == [first.fingerprint, second.fingerprint]
