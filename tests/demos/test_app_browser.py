"""The page of `demos/app.py`, used in a browser."""

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from tokenprune.eval import shapes

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'tokenprune-vlm[test]'")

ROOT = Path(__file__).parents[2]
SAMPLES = shapes.CHECKPOINT.parent / "samples"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT = 90_000  # ms, for models that load while other tests run


@pytest.fixture(scope="module")
def address():
    """Of the running app."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "demos" / "app.py"), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as app:
        url = f"http://127.0.0.1:{port}"
        for _ in range(1200):
            assert app.poll() is None, app.stdout.read()
            try:
                urllib.request.urlopen(url).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
        app.terminate()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tools:
        found = next(filter(None, map(shutil.which, BROWSERS)), None) or tools.chromium.executable_path
        if not Path(found).exists():
            pytest.skip("needs Chromium: playwright install chromium, or the system's package")
        with tools.chromium.launch(executable_path=found, args=["--no-sandbox"]) as browser:
            yield browser


@pytest.fixture
def opened(browser, address):
    """Opens the page as a new visitor, who loads nothing from anywhere else; closes it behind the test."""
    visits, foreign = [], []

    def visit(width=1440, height=1000):
        context = browser.new_context(viewport={"width": width, "height": height})
        visits.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on(
            "request", lambda request: request.url.startswith((address, "data:", "blob:")) or foreign.append(request)
        )
        page.goto(address)
        page.wait_for_selector("#fastv-layer", state="attached")  # what fields there are is asked of the server
        return page

    yield visit
    for context in visits:
        context.close()
    assert not foreign


@pytest.fixture
def pictured(request):
    """Takes a picture of the page where they are asked for."""
    folder = request.config.getoption("--screenshots")

    def take(page, name):
        if folder is not None:
            page.mouse.move(0, 0)
            page.wait_for_timeout(1500)  # until what moves stands still
            page.screenshot(path=folder / f"app-{name}.png", full_page=True)

    return take


def upload(page, path):
    page.locator("#file input[type=file]").set_input_files(path)
    given(page, path)


def example(page, number, name):
    page.locator("#examples button").nth(number).click()
    given(page, SAMPLES / name)


def given(page, path):
    page.locator("#file").get_by_text(path.stem).wait_for()


def choose(page, identity, option):
    box = page.locator(f"#{identity} input")
    box.click()
    box.fill(option)
    page.get_by_role("option", name=option, exact=True).click()


def share(page, identity, percent):
    box = page.locator(f"#{identity} input[type=number]")
    box.fill(str(percent))
    box.blur()


def ask(page):
    page.locator("#run").click()
    page.locator("#bars .bar").nth(1).wait_for()


def said(page):
    return page.locator("#alert .said").inner_text()


def seen(page, identity):
    """Where a picture that is really there comes from."""
    picture = page.locator(f"#{identity} img")
    picture.wait_for()
    page.wait_for_function("one => one.complete && one.naturalWidth > 100", arg=picture.element_handle())
    return picture.get_attribute("src")


def test_a_picture_is_asked_about(opened, pictured):
    page = opened()
    upload(page, SAMPLES / "scene-10001.png")
    page.locator("#question textarea, #question input").fill("what shape is the orange object?")
    share(page, "keep-layer", 25)
    ask(page)
    assert [page.locator(f"#{name} textarea").input_value() for name in ("dense", "pruned")] == ["ring", "ring"]
    assert "64 of 256 (25.0%)" in page.locator("#pruned-facts").inner_text()
    assert all(
        part in page.locator("#pruned-facts").inner_text() for part in ("tower", "selection", "prefill", "decode")
    )
    assert len({seen(page, name) for name in ("preview", "kept", "heat")}) == 3
    assert page.locator("#scrubber").count() == 0 or not page.locator("#scrubber").is_visible()
    pictured(page, "picture")


def test_a_video_has_a_strip_and_a_scrubber(opened, pictured):
    page = opened()
    example(page, 3, "clip-10057.mp4")
    choose(page, "policy-layer", "off")
    choose(page, "policy-projector", "vidcom2")
    share(page, "keep-projector", 25)
    page.locator("#vidcom2-temperature").wait_for(state="attached")
    ask(page)
    assert "of 512 (25.0%)" in page.locator("#pruned-facts").inner_text()
    seen(page, "strip")
    first = seen(page, "kept")
    share(page, "scrubber", 5)
    page.wait_for_function("first => document.querySelector('#kept img').src != first", arg=first)
    pictured(page, "video")


def test_fields_of_a_policy_are_controls(opened):
    page = opened()
    example(page, 0, "scene-10001.png")
    choose(page, "policy-layer", "off")
    choose(page, "policy-projector", "cdpruner")
    page.get_by_text("Fields of cdpruner").click()
    theta = page.locator("#cdpruner-theta textarea, #cdpruner-theta input")
    assert "weighs relevance against diversity" in page.locator("#cdpruner-theta").inner_text()
    theta.fill("2.5")
    page.locator("#run").click()
    assert said(page) == "theta=2.5 is not in (0, 1): give such a float, or None for off."
    theta.fill("0.5")
    ask(page)
    page.get_by_text("Report", exact=True).click()
    assert "theta=0.5" in page.locator("#report").inner_text()
    assert page.locator("#alert .said").count() == 0


def test_stages_compose(opened):
    page = opened()
    example(page, 0, "scene-10001.png")
    for stage, name, percent in (("vision", "tome", 60), ("projector", "uniform", 50), ("layer", "fastv", 10)):
        choose(page, f"policy-{stage}", name)
        share(page, f"keep-{stage}", percent)
    page.get_by_text("Fields of uniform").wait_for()
    ask(page)
    facts = page.locator("#pruned-facts").inner_text()
    assert re.search(r"patches left in the tower\s+154 of 256", facts)
    assert re.search(r"visual tokens kept\s+26 of 256", facts)
    page.get_by_text("Report", exact=True).click()
    assert "at stage vision + projector + layer" in page.locator("#report").inner_text()


def broken(folder):
    """(file, what is said of it)"""
    (folder / "garbage.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    return [
        (folder / "garbage.png", "garbage.png"),
        (folder / "empty.mp4", "file='empty.mp4' is empty"),
        (folder / "notes.txt", "notes.txt"),
        (folder / "huge.png", "has more than 40 million pixels"),
    ]


def test_bad_input_is_a_message_and_the_page_goes_on(opened, pictured, tmp_path):
    page = opened()
    page.locator("#run").click()
    assert said(page) == "There is no picture and no video yet: upload one, or choose an example."
    for path, words in broken(tmp_path):
        upload(page, path)
        page.wait_for_function("words => document.querySelector('#alert').innerText.includes(words)", arg=words)
        assert str(path.parent) not in said(page)
        page.locator("#run").click()
        page.wait_for_function("words => document.querySelector('#alert').innerText.includes(words)", arg=words)
        if path.name == "huge.png":
            pictured(page, "message")
        page.get_by_label("Clear").first.click()
    example(page, 0, "scene-10001.png")
    question = page.locator("#question textarea, #question input")
    question.fill("  ")
    page.locator("#run").click()
    page.get_by_text("The question is empty").wait_for()
    question.fill("how many objects are there?")
    page.get_by_text("Model", exact=True).first.click()
    page.locator("#model input").fill("no/such/model")
    page.locator("#model input").press("Enter")
    page.locator("#run").click()
    page.get_by_text("model='no/such/model' is neither a folder here").wait_for()
    page.locator("#model input").fill("embedded")
    page.locator("#model input").press("Enter")
    ask(page)
    assert page.locator("#dense textarea").input_value() == "five"


def test_policies_are_compared(opened, pictured):
    page = opened()
    example(page, 0, "scene-10001.png")
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-run").click()
    page.locator("#compare-bars .bar").nth(6).wait_for()
    names = page.locator("#compare-bars .name").all_inner_texts()
    assert [name.partition(":")[0] for name in names] == [
        "dense", "random", "uniform", "divprune", "cdpruner", "covipal", "fastv"
    ]  # fmt: skip
    assert "covipal: ring" in names
    page.locator("#compare-grid .thumbnail-item").nth(5).wait_for()
    assert page.locator("#compare-grid").inner_text().count("28 of 256") == 6
    pictured(page, "compare")


def test_committed_results_are_drawn(opened, pictured):
    page = opened()
    page.get_by_role("tab", name="Pareto").click()
    page.locator(".vega-embed canvas, .vega-embed svg").first.wait_for()
    pictured(page, "pareto")
    choose(page, "front-set", "clips of shapes")
    page.get_by_text("held-out clips of shapes").first.wait_for()


def test_two_visitors_at_once_do_not_meet(opened):
    pages = [opened(), opened()]
    wanted = (("scene-10001.png", "random", 5, "13 of 256"), ("scene-10000.png", "uniform", 50, "128 of 256"))
    for number, (page, (file, policy, percent, _)) in enumerate(zip(pages, wanted, strict=True)):
        example(page, number, file)
        choose(page, "policy-layer", "off")
        choose(page, "policy-projector", policy)
        share(page, "keep-projector", percent)
        page.get_by_text(f"Fields of {policy}").wait_for()
    for page in pages:
        page.locator("#run").click()
    for page, (_, _, _, counts) in zip(pages, wanted, strict=True):
        page.locator("#bars .bar").nth(1).wait_for()
        assert counts in page.locator("#pruned-facts").inner_text()
    assert [page.locator("#dense textarea").input_value() for page in pages] == ["ring", "black"]


def test_a_narrow_window_needs_no_sideways_scrolling(opened, pictured):
    page = opened(width=400, height=860)
    example(page, 0, "scene-10001.png")
    ask(page)
    seen(page, "kept")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    pictured(page, "narrow")
