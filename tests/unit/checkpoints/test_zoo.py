"""Tables of published weights: read, completed, and refused with a place and a remedy."""

from pathlib import Path

import pytest
from tiny_zoo import write_table

from codetr.checkpoints.zoo import (
    ByHand,
    HubFile,
    Url,
    find_entry,
    home,
    read_table,
    read_zoo,
)
from codetr.checkpoints.zoo_files import local_path
from codetr.checkpoints.zoo_table import LEGEND, zoo_tables
from codetr.errors import UserError

URL = "https://example.org/a/file-0123abcd.pth"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CODETR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_home_is_the_users_choice(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home() == own_home
    monkeypatch.delenv("CODETR_HOME")
    assert home() == Path.home() / ".cache/codetr"


def test_own_tables_join_the_published_ones(own_home: Path) -> None:
    published = read_zoo()
    write_table(
        own_home,
        mine={"url": URL, "sha256": "0123abcd", "ap": 50, "experiment": "e", "overrides": ["a=1"]},
        hub={"hub": {"repo": "u/r", "file": "f.pth"}},
        page={"page": "https://example.org", "bytes": 12},
        safe={"url": "https://example.org/model.safetensors"},
    )
    entries = read_zoo()
    assert set(entries) == {*published, "mine", "hub", "page", "safe"}
    mine, hub, page = (entries[name] for name in ("mine", "hub", "page"))
    assert (mine.place, mine.file) == (Url(url=URL), "mine.pth")
    assert (mine.experiment, mine.overrides, mine.ap, mine.source) == ("e", ("a=1",), 50, "me")
    assert (hub.place, hub.file) == (HubFile(repo="u/r", file="f.pth"), "hub.pth")
    assert hub.experiment == "hub"
    assert entries["safe"].file == "safe.safetensors"
    assert (page.place, page.file, page.bytes) == (
        ByHand(page="https://example.org"),
        "page.pth",
        12,
    )


def test_what_pins_an_entry(own_home: Path) -> None:
    place = {"repo": "u/r", "file": "f.pth"}
    write_table(
        own_home,
        url={"url": URL},
        branch={"hub": place},
        named={"hub": place | {"revision": "v1"}},
        commit={"hub": place | {"revision": "a" * 40}},
        hashed={"hub": place, "sha256": "ab"},
    )
    pinned = {name for name, entry in read_zoo().items() if entry.source == "me" and entry.pinned}
    assert pinned == {"url", "commit", "hashed"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "give one of url, hub and page"),
        ({"url": URL, "page": URL}, "give one of url, hub and page"),
        ({"url": "file:///etc/passwd"}, "give an http or https URL"),
        ({"url": 3}, "give an http or https URL"),
        ({"hub": "user/model"}, "give repo, file"),
        ({"hub": {"repo": "u/r"}}, "give repo, file"),
        ({"url": URL, "shasum": "ab"}, "shasum is not a known key"),
        ({"url": URL, "sha256": "AB"}, "sha256 is 'AB'"),
        ({"url": URL, "sha256": 12}, "sha256 is 12"),
        ({"url": URL, "overrides": "a=1"}, "overrides is 'a=1'"),
        ({"url": URL, "ap": "52.1"}, "ap is '52.1'"),
        (URL, "is not a table"),
    ],
)
def test_mistakes_in_a_table_are_named(own_home: Path, entry: object, said: str) -> None:
    path = write_table(own_home, bad=entry)  # type: ignore[arg-type]
    with pytest.raises(UserError) as caught:
        read_zoo()
    assert str(caught.value).startswith(f"{path}: models.bad")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [1", "- 1", "models: 3", "", "\x00"])
def test_no_table_at_all(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.yaml: (not valid YAML|has no table)") as caught:
        list(read_table(path))
    assert "\n" not in str(caught.value)


def test_a_name_stands_once(own_home: Path) -> None:
    name = next(iter(read_zoo()))
    path = write_table(own_home, **{name: {"url": URL}})
    with pytest.raises(UserError, match=f"{path}: {name} is also in another table"):
        read_zoo()


def test_wrong_names_get_the_nearest_right_ones() -> None:
    with pytest.raises(UserError, match=r"did you mean co_dino_5scale_r50_1x_coco\b"):
        find_entry("zoo:co_dino_5scale_r50_1x")
    with pytest.raises(UserError, match=r"^zoo:\?: no published weights of that name: codetr-zoo"):
        find_entry("zoo:?")


def test_listing_says_ap_size_and_how_each_is_got(own_home: Path) -> None:
    path = write_table(
        own_home,
        a={"url": URL, "ap": 50.04, "bytes": 2_500_000},
        b={"page": "https://example.org", "ap": 51},
        c={"hub": {"repo": "u/r", "file": "f.pth"}},
        d={"hub": {"repo": "u/r", "file": "f.pth"}, "sha256": "ab"},
    )
    entries = {entry.name: entry for entry in read_table(path)}
    (table,) = zoo_tables(entries.values())
    rows = dict(zip(*(list(table.columns[i].cells) for i in (0, 3)), strict=True))
    assert rows == {"a": "download", "b": "by hand", "c": "trust=true", "d": "Hub"}
    assert list(table.columns[0].cells) == ["c", "d", "a", "b"]
    assert list(table.columns[1].cells) == ["", "", "50.0", "51.0"]
    assert list(table.columns[2].cells) == ["", "", "2", ""]
    (own_home / "zoo/b.pth").write_bytes(bytes(3_000_000))
    assert local_path(entries["b"]) == own_home / "zoo/b.pth"
    (table,) = zoo_tables([entries["b"]])
    assert [list(column.cells) for column in table.columns] == [["b"], ["51.0"], ["3"], ["here"]]
    told = {line.split("  ")[0] for line in LEGEND.splitlines()}
    assert told == {*rows.values(), "here"}


def test_listing_names_publisher_and_license() -> None:
    titles = [table.title for table in zoo_tables(read_zoo().values())]
    assert "HDETR/H-Deformable-DETR, README\nthe repository is under MIT" in titles
    assert len(set(titles)) == len(titles)


def test_a_table_is_plain_yaml(own_home: Path) -> None:
    path = write_table(own_home)
    path.write_text("models: !!python/object/apply:os.system ['true']")
    with pytest.raises(UserError, match="not valid YAML"):
        read_zoo()
