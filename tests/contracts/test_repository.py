"""What a visitor of the repository finds: licence, citation, workflow, image, hooks."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

import codetr

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKE_TARGETS = re.findall(r"^([\w./$()]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def test_licence_is_the_one_that_the_package_names() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == codetr.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["preferred-citation"]["url"].endswith("2211.12860")


def test_workflow_tests_the_bounds_that_the_package_claims() -> None:
    jobs = read(".github/workflows/checks.yml")["jobs"]
    tested = jobs["tests"]["strategy"]["matrix"]["include"]
    lowest, highest = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    pythons = {entry["python"] for entry in tested}
    assert {f"3.{lowest}", f"3.{int(highest) - 1}"} <= pythons
    bounds = {d.split(">=")[0]: d.split(">=")[1].split(",")[0] for d in PROJECT["dependencies"]}
    steps = "\n".join(step.get("run", "") for step in jobs["tests"]["steps"])
    for name in ("torch", "torchvision"):
        assert f"{name}=={bounds[name]}.*" in steps
    assert "make test" in steps
    assert "test" in MAKE_TARGETS


def test_image_copies_what_exists_and_runs_the_main_job() -> None:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [shlex.split(line)[1:-1] for line in lines if line.startswith("COPY ")]
    assert [name for names in copied for name in names if not (ROOT / name).exists()] == []
    assert 'CMD ["make", "train"]' in lines
    assert "RUN make .venv/.installed" in lines  # before the code is copied: needs what follows
    early = copied[: copied.index(["."])]
    needed = {
        "pyproject.toml",
        "constraints.txt",
        "setup.py",
        "codetr/__init__.py",
        "conf",
        "hydra_plugins",
    }
    assert needed <= {name for names in early for name in names}


@pytest.mark.parametrize("name", ["bug", "parity"])
def test_issue_forms_have_what_forms_need(name: str) -> None:
    form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= form.keys()
    assert all({"type", "id", "attributes"} <= part.keys() for part in form["body"])


def test_hooks_run_tools_of_the_environment() -> None:
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    for hook in hooks:
        program, flag, tool, *rest = shlex.split(hook["entry"])
        assert (program, flag) == ("python", "-m")
        assert any(d.startswith(tool) for d in PROJECT["optional-dependencies"]["dev"])
        assert all((ROOT / word).exists() for word in rest if "/" in word)


def test_console_commands_exist() -> None:
    for target in PROJECT["scripts"].values():
        module, _, function = target.partition(":")
        path = ROOT / f"{module.replace('.', '/')}.py"
        assert f"def {function}(" in path.read_text()
