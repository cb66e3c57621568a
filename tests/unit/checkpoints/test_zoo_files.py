"""The file of an entry: fetched once, checked every time, and never half there."""

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import huggingface_hub.constants
import pytest
from tiny_zoo import Server, served

from codetr.checkpoints import zoo_files
from codetr.checkpoints.zoo import ByHand, HubFile, Url, ZooEntry
from codetr.checkpoints.zoo_files import fetched_file
from codetr.errors import UserError

CONTENT = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    with served() as server:
        server.files["dir/b.pth"] = CONTENT
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files go; no real cache is touched."""
    monkeypatch.setenv("CODETR_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "home/zoo"


def entry(place: Url | HubFile | ByHand, sha256: str | None = None) -> ZooEntry:
    return ZooEntry(name="a", place=place, experiment="e", sha256=sha256)


def refused(entry: ZooEntry, trust: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        fetched_file(entry, trust)
    message = str(caught.value)
    assert "\n" not in message
    return message


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("known", [None, DIGEST[:8], DIGEST])
def test_downloaded_once_and_its_hash_recorded(
    server: Server, folder: Path, known: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    published = entry(Url(url=server.url("dir/b.pth")), known)
    path = fetched_file(published)
    assert path == folder / "a.pth"
    assert path.read_bytes() == CONTENT
    assert "100%" in capsys.readouterr().err
    assert (folder / "a.pth.sha256").read_text() == f"{DIGEST}  a.pth\n"
    asked = len(server.asked)
    server.files.clear()
    assert fetched_file(published) == path
    assert len(server.asked) == asked
    assert capsys.readouterr().err == ""
    assert left_over(folder) == ["a.pth", "a.pth.sha256"]


def test_several_processes_download_it_once(server: Server, folder: Path) -> None:
    published = entry(Url(url=server.url("dir/b.pth")))
    found: list[Path] = []
    threads = [Thread(target=lambda: found.append(fetched_file(published))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [folder / "a.pth"] * 4
    assert server.asked == ["/dir/b.pth"] * 2  # one for the size


def test_another_file_than_published_is_not_kept(server: Server, folder: Path) -> None:
    message = refused(entry(Url(url=server.url("dir/b.pth")), "00000000"))
    assert f"its SHA-256 begins with {DIGEST[:8]} instead of 00000000" in message
    assert message.endswith(f"save it as {folder / 'a.pth'}")
    assert left_over(folder) == []


@pytest.mark.parametrize("known", [None, DIGEST[:8]])
def test_half_a_file_is_not_kept(server: Server, folder: Path, known: str | None) -> None:
    server.cut = len(CONTENT) // 2
    message = refused(entry(Url(url=server.url("dir/b.pth")), known))
    assert f"the connection ended after {len(CONTENT) // 2} of {len(CONTENT)} bytes" in message
    assert left_over(folder) == []
    server.cut = None
    assert fetched_file(entry(Url(url=server.url("dir/b.pth")), known)).read_bytes() == CONTENT


def test_what_is_not_there_is_one_line(server: Server, folder: Path) -> None:
    url = server.url("c.pth")
    message = refused(entry(Url(url=url)))
    assert message == (
        f"zoo:a: cannot be downloaded from {url} (HTTP Error 404: Not Found): download it "
        f"elsewhere and save it as {folder / 'a.pth'}"
    )


def test_no_network_is_one_line(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    message = refused(entry(Url(url=f"http://127.0.0.1:{port}/b.pth")))
    assert "refused" in message
    assert message.endswith(f"save it as {folder / 'a.pth'}")


def test_a_server_that_never_answers_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo_files, "TIMEOUT", 0.2)
    before = socket.getdefaulttimeout()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        message = refused(entry(Url(url=f"http://127.0.0.1:{silent.getsockname()[1]}/b.pth")))
    assert "timed out" in message
    assert socket.getdefaulttimeout() == before


def test_a_file_put_there_by_hand_counts(folder: Path) -> None:
    by_hand = entry(ByHand(page="https://example.org/files"), DIGEST[:8])
    message = refused(by_hand)
    assert "get it from https://example.org/files" in message
    assert message.endswith(f"save it as {folder / 'a.pth'}")
    (folder / "a.pth").write_bytes(b"another")
    assert "is not the published file" in refused(by_hand)
    assert left_over(folder) == ["a.pth"]
    (folder / "a.pth").write_bytes(CONTENT)
    assert fetched_file(by_hand) == folder / "a.pth"
    assert (folder / "a.pth.sha256").is_file()


@pytest.mark.parametrize("known", [None, DIGEST[:8]])
def test_a_file_that_changed_is_refused(folder: Path, known: str | None) -> None:
    folder.mkdir(parents=True)
    by_hand = entry(ByHand(page="https://example.org/files"), known)
    (folder / "a.pth").write_bytes(CONTENT)
    fetched_file(by_hand)
    (folder / "a.pth").write_bytes(CONTENT[:-1])
    message = refused(by_hand)
    assert message.startswith(f"{folder / 'a.pth'}: ")
    assert ("has changed" if known is None else "is not the published file") in message


def hub_cache(tmp_path: Path, revision: str = "c" * 40, content: bytes = CONTENT) -> Path:
    """A folder of the Hub with one file, as its library keeps it."""
    repo = tmp_path / "hub/models--user--model"
    snapshot = repo / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(revision)
    (snapshot / "weights.pth").write_bytes(content)
    return snapshot / "weights.pth"


@pytest.mark.parametrize("revision", [None, "c" * 40])
def test_a_folder_of_the_hub(tmp_path: Path, folder: Path, revision: str | None) -> None:
    path = hub_cache(tmp_path)
    place = HubFile(repo="user/model", file="weights.pth", revision=revision)
    assert fetched_file(entry(place, DIGEST)) == path
    assert (folder / "a.pth.sha256").read_text() == f"{DIGEST}  weights.pth\n"
    assert "is not the published file" in refused(entry(place, "00"))
    path.write_bytes(b"another")
    assert "has changed since its first use" in refused(entry(place))


def test_the_hub_is_not_asked_for_what_nothing_pins(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = HubFile(repo="user/model", file="weights.pth")
    asked = []

    def no_network(url: str, timeout: float) -> None:
        asked.append(url)
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(zoo_files, "get_hf_file_metadata", no_network)
    assert "give trust=true" in refused(entry(place))
    assert asked == []
    url = "https://huggingface.co/user/model/resolve/main/weights.pth"
    message = refused(entry(place), trust=True)
    assert message == (
        f"zoo:a: cannot be downloaded from {url} (no network): download it elsewhere and "
        f"save it as {folder / 'a.pth'}"
    )
    refused(entry(place, DIGEST))
    refused(entry(HubFile(repo="user/model", file="weights.pth", revision="c" * 40)))
    assert asked == [url, url, url.replace("main", "c" * 40)]


def test_a_file_by_hand_stands_for_that_of_the_hub(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "a.pth").write_bytes(CONTENT)
    place = HubFile(repo="user/model", file="weights.pth")
    assert fetched_file(entry(place)) == folder / "a.pth"


def test_a_folder_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CODETR_HOME", str(tmp_path / "file"))
    message = refused(entry(Url(url="http://127.0.0.1:9/a.pth")))
    assert message.startswith(f"{tmp_path / 'file/zoo'}: cannot be used")
    assert "CODETR_HOME" in message


def test_a_shared_folder_may_be_read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    (folder / "a.pth").write_bytes(CONTENT)
    by_hand = entry(ByHand(page="https://example.org/files"))
    fetched_file(by_hand)

    def read_only(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(zoo_files, "FileLock", read_only)
    assert fetched_file(by_hand) == folder / "a.pth"
    (folder / "a.pth.sha256").unlink()
    assert "cannot be used" in refused(by_hand)
