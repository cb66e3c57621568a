"""The configuration is found and composes wherever codetr is installed from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

COMPOSE = """
from codetr.checkpoints.experiment import compose_train
from codetr.conf_folder import conf_folder
cfg = compose_train(["experiment=co_dino_5scale_r50_1x_coco", "data.root=FOLDER"])
print(conf_folder(), cfg.model.num_queries)
"""


def build(source: Path, kind: str, out: Path) -> Path:
    """The sdist or wheel (``kind``) of the tree in ``source``, built in place."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    out.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (made,) = out.iterdir()
    return made


def compose_in(folder: Path, *path: Path) -> tuple[Path, int]:
    """(conf folder, queries) as a process in ``folder`` sees them, with ``path`` to import from."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, "-c", COMPOSE], cwd=folder, env=env, check=True, capture_output=True
    )
    found, queries = done.stdout.decode().strip().rsplit(" ", 1)
    return Path(found), int(queries)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the tree: the files that are committed or about to be."""
    clone = tmp_path_factory.mktemp("clone") / "codetr"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name.startswith(("codetr/", "conf/")) or ("/" not in name and (ROOT / name).is_file()):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    return clone


@pytest.mark.parametrize("through", ["wheel", "sdist"])
def test_installed_packages_bring_the_options(tree: Path, through: str, tmp_path: Path) -> None:
    source = tree
    if through == "sdist":
        with tarfile.open(build(tree, "sdist", tmp_path / "sdist")) as archive:
            archive.extractall(tmp_path, filter="data")
        (source,) = tmp_path.glob("codetr-*")
    site = tmp_path / "site"
    with zipfile.ZipFile(build(source, "wheel", tmp_path / "wheel")) as wheel:
        wheel.extractall(site)
    own = {p.relative_to(tree / "conf") for p in (tree / "conf").rglob("*.yaml")}
    assert {p.relative_to(site / "codetr/conf") for p in site.rglob("*.yaml")} == own
    assert (site / "codetr/py.typed").is_file()
    assert not (site / "tools").exists()
    assert compose_in(tmp_path, site) == (site / "codetr" / "conf", 900)


def test_clones_and_editable_installs_read_the_folder_beside_the_package(tree: Path) -> None:
    assert compose_in(tree.parent, tree) == (tree / "conf", 900)
