"""The tables of docs/recipes.md against the files of conf/experiment."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from tools.docs.parameters import read_official_counts
from tools.docs.recipe_table import (
    BEGIN,
    END,
    Publication,
    publications,
    recipe,
    recipe_tables,
    remark_table,
    with_tables,
)

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs/recipes.md"
ROW = re.compile(r"^\| \[(\w+)\]", flags=re.MULTILINE)
SAMPLE = ("co_dino_5scale_r50_1x_coco", "teach_dino_4scale_swin_large_3x_coco")


OURS = ("finetune", "finetune_small")


def parameters() -> dict[str, int]:
    counts = read_official_counts(ROOT / "tests/golden/official_parameters.json")
    return {name: count.parameters for name, count in counts.items()}


def test_every_experiment_is_in_the_page_once() -> None:
    names = sorted(path.stem for path in (ROOT / "conf/experiment").glob("*.yaml"))
    assert sorted([*ROW.findall(PAGE.read_text("utf-8")), *OURS]) == names


def test_committed_rows_say_what_the_files_say() -> None:
    rows = {ROW.match(r)[1]: r for r in PAGE.read_text("utf-8").splitlines() if ROW.match(r)}  # type: ignore[index]
    for published in publications(conf_folder()):
        assert f") | {published.result} | " in rows[published.name]
    for name in SAMPLE:
        published = next(p for p in publications(conf_folder()) if p.name == name)
        assert rows[name] in recipe_tables([recipe(published)], parameters())


def test_the_page_says_what_differs() -> None:
    table = remark_table(publications(conf_folder()))
    assert table in PAGE.read_text("utf-8")
    for path in (ROOT / "conf/experiment").glob("*.yaml"):
        assert (f"`{path.stem}`" in table) == (path.stem not in OURS)


@pytest.mark.slow
def test_script_changes_nothing(tmp_path: Path) -> None:
    page = tmp_path / PAGE.name
    page.write_text(PAGE.read_text("utf-8"), encoding="utf-8")
    script = str(ROOT / "scripts/recipe_tables.py")
    subprocess.run([sys.executable, script, "--page", str(page)], check=True)
    assert page.read_text("utf-8") == PAGE.read_text("utf-8")


def write(folder: Path, line: str) -> Path:
    path = folder / "experiment/mine.yaml"
    path.parent.mkdir()
    path.write_text(f"# @package _global_\n{line}\n")
    return folder


def test_a_first_line_is_taken_apart(tmp_path: Path) -> None:
    line = (
        "# python train.py experiment=mine trainer=ddp; published with 8 GPUs x 2 images: 50.1 AP "
        "(val2017; 50.2 with more); Some/Repo, file.py; no known difference."
    )
    assert publications(write(tmp_path, line)) == [
        Publication(
            name="mine",
            hardware="8 GPUs x 2 images",
            result="50.1 AP (val2017; 50.2 with more)",
            source="Some/Repo, file.py; no known difference",
        )
    ]
    assert publications(tmp_path)[0].origin == "Some/Repo"
    assert publications(tmp_path)[0].remarks == "no known difference"


def test_another_first_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml: its first comment"):
        publications(write(tmp_path, "# fast"))


def test_tables_stand_between_their_marks() -> None:
    page = with_tables(f"before\n{BEGIN}\nold\n{END}\nafter\n", "new", PAGE)
    assert page == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert with_tables(page, "new", PAGE) == page
    with pytest.raises(UserError, match="put both"):
        with_tables("no marks", "new", PAGE)
