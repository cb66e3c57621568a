"""The configuration reference: what is read from YAML, and the pages that it becomes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from tools.docs.config_files import Setting, read_option_file, read_option_files
from tools.docs.config_reference import as_text, page_name, reference_pages

CONF = conf_folder()

EXAMPLE = """\
# First line,
# and second.
defaults:
  - base
  - override /data: coco   # chosen
  - _self_
_target_: some.Thing
lr: 1.0e-4         # of all parts
                   # and more
# above the key
part:              # a section
  _target_: some.Part
  _partial_: true  # called later
  sizes: [1, 2,
          3]       # a list
  empty:
  text: ""
flow: {a: 1, b: null}
"""


def example(tmp_path: Path, text: str = EXAMPLE, name: str = "group/inner/thing.yaml") -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_keys_defaults_and_comments_are_read(tmp_path: Path) -> None:
    file = read_option_file(example(tmp_path), tmp_path)
    assert (file.group, file.name, file.about) == (
        "group/inner",
        "thing",
        "First line, and second.",
    )
    assert file.defaults == (
        Setting(name="", default="base", comment=""),
        Setting(name="data", default="coco", comment="chosen"),
        Setting(name="", default="_self_", comment=""),
    )
    assert file.settings == (
        Setting(name="group.inner._target_", default="some.Thing", comment=""),
        Setting(name="group.inner.lr", default="1.0e-4", comment="of all parts and more"),
        Setting(
            name="group.inner.part",
            default="some.Part",
            comment="above the key a section called later",
        ),
        Setting(name="group.inner.part.sizes", default="[1, 2, 3]", comment="a list"),
        Setting(name="group.inner.part.empty", default="null", comment=""),
        Setting(name="group.inner.part.text", default="", comment=""),
        Setting(name="group.inner.flow", default="{a: 1, b: null}", comment=""),
    )


@pytest.mark.parametrize(
    ("package", "name"), [("_global_", "key"), ("other.place", "other.place.key")]
)
def test_package_decides_the_name(tmp_path: Path, package: str, name: str) -> None:
    path = example(tmp_path, f"# @package {package}\n# About.\nkey: 1\n")
    file = read_option_file(path, tmp_path)
    assert file.about == "About."
    assert [s.name for s in file.settings] == [name]


def test_no_comment_of_conf_is_lost() -> None:
    lost = []
    for file in read_option_files(CONF):
        told = " ".join([file.about, *(s.comment for s in (*file.defaults, *file.settings))])
        for line in (CONF / file.group / f"{file.name}.yaml").read_text().splitlines():
            comment = re.search(r"(?:^|\s)#\s?(.*)$", line)
            if comment and "@package" not in line and comment[1].strip() not in told:
                lost.append(f"{file.group}/{file.name}: {comment[1]}")
    assert lost == []


def test_every_option_has_a_section() -> None:
    pages = reference_pages(CONF)
    for path in CONF.rglob("*.yaml"):
        group = path.parent.relative_to(CONF).as_posix().removeprefix(".")
        assert f"\n## {path.stem}\n" in pages[page_name(group)]


def test_comments_show_as_they_were_written() -> None:
    assert as_text("a_b * [c] | <d> `e_f|` #g") == r"a\_b \* \[c\] \| &lt;d&gt; `e_f|` \#g"


def test_broken_and_unknown_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.yaml"):
        reference_pages(tmp_path)
    example(tmp_path, "key: 1\n", "surprise/a.yaml")
    with pytest.raises(UserError, match="surprise: a new group"):
        reference_pages(tmp_path)
    example(tmp_path, "key: [1\n", "data/a.yaml")
    with pytest.raises(UserError, match=r"a\.yaml: is not valid YAML"):
        reference_pages(tmp_path)
