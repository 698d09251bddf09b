"""The site that ``make docs`` builds."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

pytest.importorskip("mkdocs", reason="requirements-docs.txt is not installed")

from docs import hooks

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in ("script", "iframe", "img") and "src" in values:
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "preconnect", "icon"):
            self.loaded.append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, without a warning."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


def test_every_link_of_the_site_resolves_and_nothing_comes_from_elsewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 20
    for path, page in pages.items():
        assert not [url for url in page.loaded if "://" in url and not url.startswith("data:")], path.name
        for link in page.links if path.name != "404.html" else ():
            target, _, anchor = link.partition("#")
            if "://" in link or link.startswith("mailto:"):
                continue
            linked = (path.parent / unquote(target)).resolve() if target else path
            assert linked.is_file(), f"{path.name}: {link}"
            if anchor and linked in pages:
                assert unquote(anchor) in pages[linked].anchors, f"{path.name}: {link}"


def test_the_site_holds_guides_notebooks_and_api(site: Path) -> None:
    front = (site / "index.html").read_text()
    assert "The evidence comes with it: logs of every trial" in front
    for guide in (ROOT / "docs").glob("*.md"):
        assert f'href="{guide.stem}.html"' in front
    for notebook in (ROOT / "docs" / "runs").glob("*.ipynb"):
        shown = (site / "runs" / f"{notebook.stem}.html").read_text()
        assert "data:image/png;base64" in shown
        assert f'src="{notebook.stem}.png"' in (site / "runs" / "index.html").read_text()
    planning = (site / "api" / "planning.html").read_text()
    assert 'id="common.planning.plan_ranks"' in planning
    assert ":func:" not in planning


@pytest.mark.parametrize(
    ("markdown", "wanted"),
    [
        ("[a](x.md)", "[a](X)"),
        ("![a](x.png) and [b](y.md#part)", "![a](X) and [b](X#part)"),
        ("[a](https://x.org/y) `[b](c.md)` [d](#e)", "[a](https://x.org/y) `[b](c.md)` [d](#e)"),
        ("```\n[a](x.md)\n```\n", "```\n[a](x.md)\n```\n"),
    ],
)
def test_relative_links_outside_code_are_changed(markdown: str, wanted: str) -> None:
    assert hooks._relinked(markdown, lambda _: "X") == wanted
