"""The page: what it says of files that are not right, and, in a real browser, everything that a person does with it."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from configs.errors import UserError
from examples.app import Page, drawn_spectrogram, localize_all, main, said, told
from examples.localization import Localizer
from tests.conftest import make_clip, numbered_picture, tone, write_wav
from tests.examples.browser import BROWSER, Browser
from tests.examples.small_checkpoints import small_checkpoint

ROOT = Path(__file__).parents[2]
MISSING = "no Chromium or Chrome" if not BROWSER else "" if importlib.util.find_spec("gradio") else "no Gradio"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [small_checkpoint(folder / method, method) for method in ("ez_vsl", "lvs")]


@pytest.fixture(scope="module")
def localizers(runs: list[Path]) -> list[Localizer]:
    return [Localizer(run) for run in runs]


def test_sliders_change_the_overlay_and_the_moment_the_window(localizers: list[Localizer], tmp_path: Path):
    seen = localize_all(localizers, None, None, str(make_clip(tmp_path / "clip.mp4", seconds=3.0)))
    plain, strong = (seen.overlay(0, 1.0, strength, 1.0) for strength in (0.0, 1.0))
    assert plain.shape == (480, 640, 3) and np.abs(plain.astype(int) - strong).mean() > 3
    assert not np.array_equal(seen.overlay(0, 1.0, 0.5, 0.3), seen.overlay(0, 1.0, 0.5, 0.7))
    assert not np.array_equal(seen.overlay(0, 1.0, 0.5, 0.5), seen.overlay(1, 1.0, 0.5, 0.5))
    heard = seen.found[0][0].heard
    early, late = (drawn_spectrogram(heard, heard.start_of(time_s)) for time_s in (0.5, 2.5))
    assert early[:, :200].mean() > 2 * early[:, -200:].mean() and late[:, -200:].mean() > 2 * late[:, :200].mean()
    assert "clip.mp4: 3.0 s, a map for" in told(seen)


def test_what_is_wrong_with_a_file_is_said_without_folders(localizers: list[Localizer], tmp_path: Path):
    bad = tmp_path / "<b>bad.mp4"
    bad.write_text("no video")
    long = write_wav(tmp_path / "long.wav", tone(61.0, 8000), 8000)
    for files, words in (
        ((None, None, bad), "no video, sound or picture format that is read"),
        ((None, None, make_clip(tmp_path / "mute.mp4", audio=False)), "no audio stream"),
        ((bad, long, None), "long.wav lasts longer than 60 s"),
    ):
        given = [None if each is None else str(each) for each in files]
        with pytest.raises(UserError) as raised:
            localize_all(localizers, *given)
        line = said(raised.value, *given)
        assert words in line and str(tmp_path) not in line and "<b>" not in line and "--" not in line


@pytest.mark.skipif(not importlib.util.find_spec("gradio"), reason="Gradio (extra app) is not installed")
def test_the_page_is_for_any_number_of_checkpoints(localizers: list[Localizer], tmp_path: Path):
    page = Page(localizers, tmp_path)
    assert page.draw(None, 0.0, 0.5, 0.5) == [None] * 4


@pytest.mark.parametrize("text", ["99999", "-1", "0", "web"])
def test_a_port_that_is_none_is_named(text: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main(["run", f"--port={text}"])
    assert ended.value.code == 2 and f"'{text}' is no port: 1 to 65535" in capsys.readouterr().err


@pytest.fixture
def address(runs: list[Path], tmp_path: Path) -> Iterator[str]:
    """The address of a page with two checkpoints; its files lie in a folder that is gone behind it."""
    command = [sys.executable, "examples/app.py", *map(str, runs)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert match, line
            yield match[0]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    assert process.returncode == 0 and not list(tmp_path.glob("whence-app-*"))


def seen_picture(browser: Browser, selector: str, before: str = "") -> tuple[str, np.ndarray]:
    """The address and the pixels of a picture, once it is another than `before`."""
    source = browser.wait(
        f"(image => image?.complete && image.naturalWidth && image.src !== {before!r} && image.src)"
        f"(document.querySelector('{selector} img'))"
    )
    data = browser.value(f"fetch({source!r}).then(answer => answer.bytes()).then(bytes => Array.from(bytes))")
    return source, cv2.imdecode(np.array(data, np.uint8), cv2.IMREAD_COLOR)


def slide(browser: Browser, selector: str, value: float) -> None:
    browser.value(
        f"(slider => {{ slider.value = {value}; slider.dispatchEvent(new Event('input', {{bubbles: true}})); }})"
        f"(document.querySelector('{selector} input[type=range]'))"
    )


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} here: the page is not seen by a browser")
def test_a_person_uses_the_page(address: str, tmp_path: Path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=2.0, fps=5)
    wrong = tmp_path / "wrong.mp4"
    wrong.write_text("no video")
    cv2.imwrite(str(tmp_path / "picture.png"), numbered_picture(3, 160, 120))
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    sound = write_wav(tmp_path / "sound.wav", tone(1.5, 16000), 16000)
    browser = Browser(tmp_path / "browser", address)
    try:
        browser.resize(1200, 900)
        # An upload: both checkpoints answer, each beside its sound.
        browser.give("#video input[type=file]", clip)
        shown, overlay = seen_picture(browser, "#overlay-0")
        assert overlay.shape == (480, 640, 3)
        _, other = seen_picture(browser, "#overlay-1")
        assert np.abs(overlay.astype(int) - other).mean() > 1
        assert seen_picture(browser, "#sound-0")[1].shape == seen_picture(browser, "#sound-1")[1].shape == (160, 640, 3)
        assert "clip.mp4: 2.0 s" in browser.value("document.querySelector('#line').innerText")
        # Sliders move the overlay: without colour and edge it is the picture, with all of it the heat.
        slide(browser, "#strength", 1)
        strong, heat = seen_picture(browser, "#overlay-0", shown)
        slide(browser, "#threshold", 0.05)
        assert np.abs(seen_picture(browser, "#overlay-0", strong)[1].astype(int) - heat).mean() > 0.1
        assert np.abs(heat.astype(int) - overlay).mean() > 1
        # The whole video, which plays.
        browser.value("document.querySelector('#make').click()")
        assert 1.8 < browser.wait("document.querySelector('#made-1 video')?.duration") < 2.3
        # Nothing sticks out on a phone, and nothing was asked of others.
        browser.resize(390, 844)
        assert browser.wait("document.documentElement.clientWidth") == 390
        assert browser.value("document.documentElement.scrollWidth") <= 390
        (tmp_path / "phone.png").write_bytes(browser.picture())
        browser.resize(1200, 900)
        # A wrong file, in words; then a picture and a sound.
        browser.value("document.querySelector('#video button[aria-label=Clear]').click()")
        browser.wait("document.querySelector('#line').innerText.startsWith('Waiting')")
        browser.give("#video input[type=file]", wrong)
        browser.wait("document.querySelector('#line').innerText.includes('wrong.mp4')")
        words = browser.value("document.querySelector('#line').innerText")
        assert words.startswith("This did not work: no video, sound or picture format") and str(tmp_path) not in words
        tab = "[...document.querySelectorAll('button[role=tab]')].find(each => each.innerText === 'Picture and sound')"
        browser.wait(tab)
        browser.value(f"{tab}.click()")
        browser.give("#picture input[type=file]", broken)
        browser.wait("document.querySelector('#line').innerText.includes('Waiting for a sound')")
        browser.give("#sound input[type=file]", sound)
        browser.wait("document.querySelector('#line').innerText.includes('broken.png')")
        browser.value("document.querySelector('#picture button[aria-label=\"Remove Image\"]').click()")
        browser.give("#picture input[type=file]", tmp_path / "picture.png")
        browser.wait("document.querySelector('#line').innerText.includes('the middle of the sound')")
        assert seen_picture(browser, "#overlay-0")[1].shape == (120, 160, 3)
        outside = [url for url in browser.requested if not url.startswith((address, "blob:", "data:", "about:"))]
        assert not outside
    finally:
        browser.close()
