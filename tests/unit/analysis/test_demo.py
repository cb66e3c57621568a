"""The demo page: its functions without Gradio, and the page itself where that is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import save_tiny
from warm import TIMEOUT_S

import codetr
from codetr.analysis.demo import attention, find, page, pictures
from codetr.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("demo") / "model.safetensors", "augmentation=none")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Stored turned by a quarter, as telephones do."""
    path = tmp_path_factory.mktemp("photo") / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    return str(path)


def test_pictures_are_of_what_is_above_the_threshold(checkpoint: Path, photo: str) -> None:
    predictor = codetr.load(checkpoint, device="cpu")
    found = find({"main": predictor, "atss": predictor}, photo)
    assert found["main"].size == (128, 96)  # upright
    expected = predictor(photo, 0.6)
    assert 0 < len(expected) < len(found["main"])
    shown = pictures(found, 0.6)
    assert [caption for _, caption in shown] == [
        f"main: {len(expected)} found",
        f"atss: {len(expected)} found",
    ]
    assert np.array_equal(np.asarray(shown[0][0]), np.asarray(expected.plot()))


def test_attention_is_of_the_chosen_detection(checkpoint: Path, photo: str) -> None:
    predictor = codetr.load(checkpoint, device="cpu")
    found = find({"main": predictor}, photo)
    for place in (1, 4):
        picture, said = attention(predictor, found, place)
        assert picture.size == (600, 800)
        main = found["main"]
        assert said.startswith(f"{main.names[place - 1]} {main.scores[place - 1]:.2f}: ")
        assert 0 <= int(re.search(r"(\d+)%", said)[1]) <= 100  # type: ignore[index]
    for place in (0, len(found["main"]) + 1):
        with pytest.raises(UserError, match=rf"detection {place}: the main branch found 36"):
            attention(predictor, found, place)


def test_what_to_install_is_said(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'codetr\[demo\]'"):
        page(checkpoint)


def space_app() -> str:
    """The app.py that the documentation gives for a Space."""
    text = (ROOT / "docs/inference.md").read_text("utf-8")
    found = re.search(r"```text\n# app\.py\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def address(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the page that the documented app.py of a Space shows, started as a Space does."""
    for needed in ("gradio", "gradio_client"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip("needs pip install 'codetr[demo]'")
    folder = tmp_path_factory.mktemp("space")
    (folder / "app.py").write_text(space_app().replace("best.ckpt", str(checkpoint)))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {**os.environ, "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env=env, stdout=out, stderr=out
        )
    try:
        end = time.monotonic() + TIMEOUT_S
        while "Running on" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


ASK = """
import json, sys
from gradio_client import Client, handle_file
address, photo, cut_off = sys.argv[1:]
client = Client(address, verbose=False)
gallery, *_ = client.predict(handle_file(photo), 0.6, api_name="/find")
picture, said = client.predict(1, api_name="/attention")
try:
    client.predict(handle_file(cut_off), 0.6, api_name="/find")
    refused = ""
except Exception as error:
    refused = str(error)
print(json.dumps([[one["caption"] for one in gallery], picture, said, refused]))
"""
"""In a process of its own: the client leaves sockets open."""


def test_page_answers(address: str, checkpoint: Path, photo: str, tmp_path: Path) -> None:
    cut_off = tmp_path / "cut.jpg"
    with Image.open(photo) as whole:
        whole.convert("RGB").save(cut_off)
    cut_off.write_bytes(cut_off.read_bytes()[:900])
    done = subprocess.run(
        [sys.executable, "-c", ASK, address, photo, str(cut_off)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    captions, picture, said, refused = json.loads(done.stdout.splitlines()[-1])
    found = codetr.load(checkpoint, device="cpu").predict(photo, 0.6)
    assert captions == [f"main: {len(found)} found"]
    with Image.open(picture) as drawn:
        assert drawn.size == (600, 800)
    assert "attention lies in its box" in said
    assert "cut.jpg" in refused


BROWSE = """
import sys
from playwright.sync_api import sync_playwright
program, address, photo = sys.argv[1:]
asked = []
with sync_playwright() as tools:
    browser = tools.chromium.launch(executable_path=program, args=["--no-sandbox"])
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("text=Where does its query look?")
    page.set_input_files("input[type=file]", photo)
    page.wait_for_selector("text=/main: \\\\d+ found/")
    page.click("text=Where does its query look?")
    page.wait_for_selector("text=/attention lies in its box/")
    browser.close()
print(*(url for url in asked if not url.startswith((address, "data:", "blob:"))))
"""


def test_page_works_in_a_browser_and_asks_no_other_host(address: str, photo: str) -> None:
    program = shutil.which("chromium")
    if program is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs chromium, and pip install playwright")
    done = subprocess.run(
        [sys.executable, "-c", BROWSE, program, address, photo],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
