"""The page of a sweep, from run folders that are made up."""

import base64
import csv
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from codetr.errors import UserError
from tools.sweeps.report import Page, as_html, as_markdown, make_page, write_report
from tools.sweeps.runs import added, read_runs
from tools.sweeps.variants import group_runs, loss_groups
from tools.sweeps.wandb_report import push_report

HEADS = [(), ("atss",), ("atss", "rcnn")]


def write_run(
    folder: Path,
    swept: dict[str, object],
    heads: tuple[str, ...],
    ap: float | None,
    overrides: tuple[str, ...] = (),
    steps: int = 40,
) -> None:
    """A finished run, or with ``ap`` None one that was interrupted."""
    folder.mkdir(parents=True)
    state = {"overrides": [*overrides, "model=m"], "swept": swept, "finished": ap is not None}
    (folder / "job.json").write_text(json.dumps(state))
    entries = "".join(f"  {head}: {{num_convs: 1}}\n" for head in heads)
    (folder / "config.yaml").write_text(
        f"seed: {swept.get('seed', 0)}\naux_heads:{' {}' if not heads else ''}\n{entries}"
    )
    if ap is not None:
        numbers = {"AP": ap, "AP50": ap * 2, "step_time_s": 0.5 + len(heads), "steps": steps}
        more = {"peak_memory_gib": 1.0, "device_hours": 0.25}
        (folder / "metrics.json").write_text(json.dumps(numbers | more))
    names = ["loss/one_to_one/layer0/cls", "loss/one_to_one/layer0/giou"]
    names += [f"loss/collaborative/{head}/cls" for head in heads]
    names += [f"loss/collaborative/positive_{head}/layer0/cls" for head in heads]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "val/AP", *names])
        writer.writeheader()
        for step in range(9, 40, 10):
            row = dict.fromkeys(names, 100 / (step + 1))
            writer.writerow({"step": step, **row, "val/AP": (ap or 0.2) * (step + 1) / 40})


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """K = 0, 1, 2 with two seeds, where K = 2 is better by 0.1 a head; numbered to twelve."""
    number = 0
    for k, heads in enumerate(HEADS):
        for seed in (0, 1):
            swept = {"aux_heads": f"[{','.join(heads)}]", "seed": seed}
            ap = 0.3 + 0.1 * k + 0.02 * seed
            write_run(tmp_path / "k" / str(number), swept, heads, ap, (f"seed={seed}",))
            number += 5
    return tmp_path / "k"


def test_table_has_means_and_spread_over_seeds(sweep: Path) -> None:
    page = make_page("k", group_runs(read_runs(sweep)))
    heading, none, one, two = page.table
    assert heading[:3] == ("K, number of auxiliary heads", "runs", "AP")
    assert none[:3] == ("K = 0 (none)", "2", "0.310 ± 0.014")
    assert none[-1] == "-"
    assert one[0] == "K = 1 (atss)"
    assert two[0] == "K = 2 (atss, rcnn)"
    assert two[-1] == "+0.200 [+0.200, +0.200]", "seeds shift all variants alike"
    assert two[heading.index("s / step")] == "2.500 ± 0.000"
    assert two[heading.index("AP75")] == "-", "what was not measured"
    assert page.facts[0] == "6 runs, 3 variants, seeds 0, 1."
    assert page.facts[1] == "All were told: model=m"
    assert "Optimiser steps: 40." in page.facts


def test_unfinished_and_unequal_runs_are_said_aloud(sweep: Path) -> None:
    (sweep / "25/metrics.json").unlink()
    page = make_page("k", group_runs(read_runs(sweep)))
    assert page.table[-1][:3] == ("K = 2 (atss, rcnn)", "1 of 2", "0.500")
    assert page.table[-1][-1] == "+0.200 (one seed)", "of the seed that both have"
    assert "NOT FINISHED, and not among the numbers: 25." in page.facts
    write_run(sweep / "99", {"aux_heads": "[]", "seed": 2}, (), 0.9, steps=80)
    facts = " ".join(make_page("k", group_runs(read_runs(sweep))).facts)
    assert "differ in their number of steps" in facts


def test_job_without_a_configuration_is_of_the_variant_of_its_command(sweep: Path) -> None:
    """It failed early, or has not begun."""
    (sweep / "20/config.yaml").unlink()
    for name in ("metrics.json", "metrics.csv"):
        (sweep / "20" / name).unlink()
    page = make_page("k", group_runs(read_runs(sweep)))
    assert page.table[-1][:2] == ("K = 2 (atss, rcnn)", "1 of 2")
    assert "NOT FINISHED, and not among the numbers: 20." in page.facts


def test_files_of_the_page(sweep: Path) -> None:
    markdown, web, numbers = write_report(sweep)
    two = json.loads(numbers.read_text())[2]
    assert two["variant"] == "K = 2 (atss, rcnn)"
    assert two["AP_by_seed"] == {"0": 0.5, "1": pytest.approx(0.52)}
    assert two["AP_minus_first"]["mean"] == pytest.approx(0.2)
    assert two["AP75"] is None, "what was not measured"
    text, page = markdown.read_text(), web.read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert pictures == [f"report/{name}.png" for name in ("ap", "cost", "curves")]
    for picture in pictures:
        with Image.open(sweep / picture) as image:
            assert image.width > 400
            assert len(image.convert("L").getcolors(256 * 256) or []) > 20, "something is drawn"
    inside = re.findall(r'src="data:image/png;base64,(.*?)"', page)
    assert [base64.b64decode(data) for data in inside] == [
        (sweep / picture).read_bytes() for picture in pictures
    ]
    assert "http" not in page, "the page needs no network"
    assert "<td>0.310 ± 0.014</td>" in page
    write_report(sweep)
    assert len(read_runs(sweep)) == 6, "the report is no run"


def test_html_is_escaped() -> None:
    page = Page(title="a < b", facts=("c & d",), table=(("<x>",),), figures=())
    assert "<h1>a &lt; b</h1>" in as_html(page)
    assert "<th>&lt;x&gt;</th>" in as_html(page)
    assert as_markdown(page).startswith("# a < b\n\n- c & d\n")


def test_axis_is_a_number_where_one_was_swept(tmp_path: Path, sweep: Path) -> None:
    assert [v.position for v in group_runs(read_runs(sweep)).variants] == [0, 1, 2]
    for number, convs in enumerate((0, 4)):
        write_run(tmp_path / f"c/{number}", {"aux_heads.atss.num_convs": convs}, ("atss",), 0.3)
    found = group_runs(read_runs(tmp_path / "c"))
    assert (found.axis, [v.position for v in found.variants]) == (
        "aux_heads.atss.num_convs",
        [0, 4],
    )
    assert [v.label for v in found.variants] == ["num_convs = 0", "num_convs = 4"]
    for number, first in enumerate((0.5, 1)):
        swept = {"s.lambda_1": first, "s.lambda_2": 2}
        write_run(tmp_path / f"l/{number}", swept, ("atss",), 0.3)
    found = group_runs(read_runs(tmp_path / "l"))
    assert not found.numeric
    assert found.axis == "lambda_1, lambda_2"
    assert found.variants[0].label == "lambda_1 = 0.5, lambda_2 = 2"
    make_page("l", found)


def test_equal_k_with_other_heads_are_names_not_numbers(tmp_path: Path) -> None:
    for number, head in enumerate(("atss", "fcos")):
        write_run(tmp_path / str(number), {"aux_heads": f"[{head}]"}, (head,), 0.3)
    found = group_runs(read_runs(tmp_path))
    assert not found.numeric
    assert found.axis == "auxiliary heads"
    assert [v.label for v in found.variants] == ["K = 1 (atss)", "K = 1 (fcos)"]


def test_a_second_equal_head_has_a_key_of_its_own(tmp_path: Path) -> None:
    for number, heads in enumerate((("atss",), ("atss", "atss_2"))):
        swept: dict[str, object] = {"aux_heads@aux_heads.atss_2": "[atss]" if number else "[]"}
        write_run(tmp_path / str(number), swept, heads, 0.3)
    found = group_runs(read_runs(tmp_path))
    assert [v.label for v in found.variants] == ["K = 1 (atss)", "K = 2 (atss, atss_2)"]
    assert [v.position for v in found.variants] == [1, 2]
    (tmp_path / "1/config.yaml").unlink()
    labels = [v.label for v in group_runs(read_runs(tmp_path)).variants]
    assert labels == ["K = 1 (atss)", "heads [atss]"], "that key alone does not say all heads"


def test_schemes_are_named_by_their_parts(tmp_path: Path) -> None:
    for number, schemes in enumerate(("[one_to_one]", "[one_to_one,mixed]")):
        write_run(tmp_path / str(number), {"scheme": schemes}, ("atss",), 0.3)
    found = group_runs(read_runs(tmp_path))
    assert (found.axis, found.numeric) == ("scheme", False)
    assert [v.label for v in found.variants] == ["one_to_one", "one_to_one + mixed"]


def test_losses_are_grouped_by_scheme_and_head(sweep: Path) -> None:
    found = group_runs(read_runs(sweep))
    assert loss_groups(found) == [
        "one_to_one",
        "collaborative/atss",
        "collaborative/positive_atss",
        "collaborative/rcnn",
        "collaborative/positive_rcnn",
    ]
    first, second = found.variants[0].loss("one_to_one")
    assert first == second == ((10, 20.0), (20, 10.0), (30, pytest.approx(20 / 3)), (40, 5.0))
    assert found.variants[0].loss("collaborative/atss") == []


def test_plain_runs_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, {}, ("atss",), 0.3)
        (tmp_path / name / "wandb/files").mkdir(parents=True)
        (tmp_path / name / "wandb/files/config.yaml").write_text("x: 1")
    assert [v.label for v in group_runs(read_runs(tmp_path)).variants] == ["a", "b"]


def test_curves_are_added_at_the_steps_that_they_share() -> None:
    assert added([((1, 1.0), (2, 2.0)), ((2, 3.0),)]) == ((2, 5.0),)
    assert added([]) == ()


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_runs(tmp_path / "none")
    with pytest.raises(UserError, match="holds no run"):
        read_runs(tmp_path)
    write_run(tmp_path / "0", {}, (), 0.3)
    (tmp_path / "0/metrics.csv").write_text("step,loss\nx,1\n")
    with pytest.raises(UserError, match=r"metrics\.csv: line 2"):
        read_runs(tmp_path)
    (tmp_path / "0/metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json is not valid JSON"):
        read_runs(tmp_path)
    (tmp_path / "0/config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml: is not the configuration"):
        read_runs(tmp_path)


def test_push_without_the_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    page = Page(title="k", facts=(), table=(("a",),), figures=())
    with pytest.raises(UserError, match=r"wandb-workspaces: install codetr\[reports\]"):
        push_report(page, "k", "codetr")


def test_pushed_report_has_the_table_and_the_runs_of_the_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved: list[SimpleNamespace] = []

    class Report(SimpleNamespace):
        url = "there"

        def save(self) -> None:
            saved.append(self)

    def part(**fields: object) -> SimpleNamespace:
        return SimpleNamespace(**fields)

    module = ModuleType("wandb_workspaces.reports.v2")
    vars(module).update(
        Report=Report, MarkdownBlock=part, PanelGrid=part, Runset=part, LinePlot=part
    )
    for name in ("wandb_workspaces", "wandb_workspaces.reports"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(sys.modules["wandb_workspaces.reports"])["v2"] = module
    vars(sys.modules["wandb_workspaces"])["reports"] = sys.modules["wandb_workspaces.reports"]
    page = Page(title="Sweep k", facts=("six runs",), table=(("K", "AP"), ("0", "0.3")), figures=())
    assert push_report(page, "k-1", "codetr", "team") == "there"
    (report,) = saved
    text, grid = report.blocks
    assert "| 0 | 0.3 |" in text.text
    assert (grid.runsets[0].query, grid.runsets[0].entity) == ("k-1", "team")

    def refuse(self: Report) -> None:
        raise ConnectionError("no network\nlong story")

    monkeypatch.setattr(Report, "save", refuse)
    with pytest.raises(UserError, match=r"W&B took no report \(no network\)"):
        push_report(page, "k-1", "codetr")
