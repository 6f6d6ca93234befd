"""The site builds without a warning, links to what is there, and loads nothing from elsewhere."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import tokenprune

for part in ("mkdocs", "material", "mkdocstrings"):
    pytest.importorskip(part, reason="the site is built with pip install '.[docs]'")

ROOT = Path(__file__).parents[2]
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Read(HTMLParser):
    """What a page loads, and what it links to."""

    def __init__(self):
        super().__init__()
        self.loaded, self.linked, self.ids = [], [], set()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids.add(given.get("id"))
        if tag in LOADS and given.get(LOADS[tag]):
            self.loaded.append(given[LOADS[tag]])
        if tag == "a" and given.get("href"):
            self.linked.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    found = {}
    for path in site.rglob("*.html"):
        found[path] = Read()
        found[path].feed(path.read_text())
    return found


def test_every_policy_has_its_page(site):
    missing = [name for name in tokenprune.list_policies() if not (site / "methods" / name / "index.html").exists()]
    assert not missing


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for path, page in pages.items():
        away = [one for one in page.loaded if urlsplit(one).scheme not in ("", "data")]
        assert not away, f"{path.relative_to(site)} loads {away}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:|@import", style.read_text()), f"{style.name} loads from elsewhere"


def test_what_is_loaded_and_linked_is_there(site, pages):
    for path, page in pages.items():
        if path.name == "404.html":  # its links are of the root of the server
            continue
        for one in [*page.loaded, *page.linked]:
            parts = urlsplit(one)
            if parts.scheme or parts.netloc or not parts.path:
                continue
            target = (path.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{path.relative_to(site)} points to {one}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].ids, f"{path.relative_to(site)} points to {one}"


def test_no_script_of_the_pages_is_published(site):
    assert not list(site.rglob("*.py")) + list(site.rglob("*.pyc"))
