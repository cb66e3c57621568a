"""The configuration is found and composes wherever codetr is installed from."""

from __future__ import annotations

import os
import shlex
import shutil
import site
import subprocess
import sys
import tarfile
import venv
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


LOOK = """
from hydra.core.plugins import Plugins
names = Plugins.instance().class_name_to_class
print(*sorted(name for name in names if "codetr" in name))
"""
LAUNCHERS = [
    f"hydra_plugins.codetr_launchers.{name}" for name in ("ProcessLauncher", "SubmititLauncher")
]


def launchers_of(python: list[str], folder: Path, *path: Path) -> list[str]:
    """Those of ours that Hydra discovers by itself in a process in ``folder``."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path:
        env["PYTHONPATH"] = os.pathsep.join(map(str, path))
    line = [*python, "-P", "-c", LOOK]
    done = subprocess.run(line, cwd=folder, env=env, check=True, capture_output=True, text=True)
    return done.stdout.split()


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
        if name.startswith(("codetr/", "conf/", "hydra_plugins/")) or (
            "/" not in name and (ROOT / name).is_file()
        ):
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
    place = tmp_path / "site"
    with zipfile.ZipFile(build(source, "wheel", tmp_path / "wheel")) as wheel:
        wheel.extractall(place)
    own = {p.relative_to(tree / "conf") for p in (tree / "conf").rglob("*.yaml")}
    assert {p.relative_to(place / "codetr/conf") for p in place.rglob("*.yaml")} == own
    assert (place / "codetr/py.typed").is_file()
    assert not (place / "tools").exists()
    assert compose_in(tmp_path, place) == (place / "codetr" / "conf", 900)
    assert launchers_of([sys.executable], tmp_path, place) == LAUNCHERS


def test_clones_and_editable_installs_read_the_folder_beside_the_package(tree: Path) -> None:
    assert compose_in(tree.parent, tree) == (tree / "conf", 900)
    assert launchers_of([sys.executable], tree.parent, tree) == LAUNCHERS


@pytest.mark.parametrize("beside", [False, True])
def test_hydra_finds_the_launchers_of_an_editable_install(
    tree: Path, beside: bool, tmp_path: Path
) -> None:
    """``beside``: another plugin is installed, whose part of the namespace is a folder."""
    python, packages = environment(tmp_path)
    if beside:
        (packages / "hydra_plugins/other").mkdir(parents=True)
        (packages / "hydra_plugins/other/__init__.py").touch()
    install_editable(python, tree)
    assert launchers_of([str(python)], tmp_path) == LAUNCHERS


def environment(place: Path) -> tuple[Path, Path]:
    """An environment with our dependencies alone: its interpreter and its site-packages."""
    venv.create(place / "env", symlinks=True)
    (packages,) = (place / "env").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return place / "env/bin/python", packages


def install_editable(python: Path, source: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    pip += ["--no-index", "--no-build-isolation", "--editable", str(source)]
    subprocess.run(pip, check=True, capture_output=True)


def test_the_image_installs_what_it_copies_first(tree: Path, tmp_path: Path) -> None:
    """The environment is made before the code is there, and finds it afterwards."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [shlex.split(line)[1:] for line in lines if line.startswith("COPY ")]
    image = tmp_path / "image"
    for *names, to in copied[: copied.index([".", "."])]:
        for name in names:
            (image / to).mkdir(parents=True, exist_ok=True)
            if (tree / name).is_dir():
                shutil.copytree(tree / name, image / to, dirs_exist_ok=True)
            else:
                shutil.copy(tree / name, image / to)
    assert not (image / "codetr/data").exists()
    python, _ = environment(tmp_path)
    install_editable(python, image)
    shutil.copytree(tree, image, dirs_exist_ok=True)
    assert launchers_of([str(python)], tmp_path) == LAUNCHERS
    done = subprocess.run(
        [str(python), "-P", "-c", COMPOSE], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(image / "conf"), "900"]
