"""What `mkdocs build` does besides rendering `docs/`: the front page, the pages of the API, links that leave `docs/`.

The README is the front page. The API has a page for each room of `common/` that says what it exports. A link to a file
outside `docs/` leads to the repository.
"""

from __future__ import annotations

import ast
import base64
import json
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/low-rank-cnn/low-rank-cnn/blob/main"
LINK = re.compile(r"(\]\()([^)#\s]*)((?:#[^)\s]*)?\))")
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(<code>)")
BADGE = re.compile(r"""<img(?=[^>]* src="https?://)[^>]* alt="([^"]*)"[^>]*>""")
FENCE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the executed notebooks and the API to the navigation."""
    notebooks = [f"runs/{path.name}" for path in sorted((ROOT / "docs" / "runs").glob("*.ipynb"))]
    rooms = [{room: _page(room)} for room, _ in _exported()]
    config.nav = [
        *(config.nav or []),
        {"Executed notebooks": ["runs/README.md", *notebooks]},
        {"API": ["api/index.md", *rooms]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the front page, the pages of the API, and a picture of each executed notebook."""
    files.append(File.generated(config, "index.md", content=_relinked((ROOT / "README.md").read_text(), _front)))
    rooms = list(_exported())
    for room, names in rooms:
        members = "\n".join(f"        - {name}" for name in names)
        text = f"# {room}\n\n::: {room}\n    options:\n      show_root_heading: false\n      members:\n{members}\n"
        files.append(File.generated(config, _page(room), content=text))
    summary = "\n".join(f"- [{room}]({posixpath.basename(_page(room))})" for room, _ in rooms)
    index = f"# API\n\nWhat each room of `common/` exports, in the order of the alphabet.\n\n{summary}\n"
    files.append(File.generated(config, "api/index.md", content=index))
    for notebook in sorted((ROOT / "docs" / "runs").glob("*.ipynb")):
        if picture := _picture(notebook):
            files.append(File.generated(config, f"runs/{notebook.stem}.png", content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that leave `docs/` to the repository, and show the pictures of the executed notebooks."""
    folder = posixpath.dirname(page.file.src_uri)
    if page.file.src_uri == "runs/README.md":
        markdown += "".join(
            f"\n## {file.name}\n\n[![{file.name}]({file.name}.png){{ width=420 }}]({file.name}.ipynb)\n"
            for file in sorted(files, key=lambda file: file.src_uri)
            if file.src_uri.startswith("runs/") and file.src_uri.endswith(".ipynb")
        )
    if page.file.src_uri.endswith(".ipynb"):
        page.meta["hide"] = ["toc"]
    if page.file.src_uri.endswith(".ipynb") or page.file.generated_by:
        return markdown

    def leave(target: str) -> str:
        place = posixpath.normpath(posixpath.join("docs", folder, target))
        return target if place.startswith("docs/") else f"{REPOSITORY}/{place}"

    return _relinked(markdown, leave)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show a docstring's Sphinx roles as code, and a badge from elsewhere as the text that it stands for."""
    return BADGE.sub(r"\1", ROLE.sub(r"\1", html))


def _page(room: str) -> str:
    return f"api/{room.removeprefix('common.')}.md"


def _front(target: str) -> str:
    """A link of the README as one of the front page."""
    if target.startswith("docs/"):
        inside = target.removeprefix("docs/")
        return f"{inside}README.md" if inside.endswith("/") else inside
    return f"{REPOSITORY}/{target}"


def _relinked(markdown: str, change: Callable[[str], str]) -> str:
    """Change every relative link outside code."""

    def one(found: re.Match[str]) -> str:
        start, target, end = found.groups()
        return found[0] if not target or "://" in target else f"{start}{change(target)}{end}"

    parts = FENCE.split(markdown)
    return "".join(part if place % 2 else LINK.sub(one, part) for place, part in enumerate(parts))


def _exported() -> list[tuple[str, list[str]]]:
    """The rooms of `common/` that say what they export, with these names."""
    found = []
    for path in sorted((ROOT / "common").rglob("__init__.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
                module = path.parent.relative_to(ROOT).as_posix().replace("/", ".")
                found.append((module, [str(name) for name in ast.literal_eval(node.value)]))
    return [*found, ("common.shrink", ["shrink", "Shrunk", "ShrinkSteps", "Step"])]


def _picture(notebook: Path) -> bytes:
    """The picture of the search in an executed notebook, or its first one; empty if it has none."""
    cells = json.loads(notebook.read_text())["cells"]
    cells.sort(key=lambda cell: "steps.search(" not in "".join(cell["source"]))
    for cell in cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                return base64.b64decode("".join(output["data"]["image/png"]))
    return b""
