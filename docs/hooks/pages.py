"""Pages of the site that stand elsewhere in the repository, and links that lead out of docs/.

MkDocs calls `on_files` and `on_page_markdown`. Links are written for those who read the files where they lie; here
they are made to lead to a page of the site where there is one, else to the file in the repository. One to nothing is a
warning, which ends a strict build.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent.parent
ELSEWHERE = {
    "weights.md": "weights/README.md",
    "examples.md": "examples/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages, and the files that they are."""
FENCE_OR_LINK = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`|(?<=\]\()([^)\s]+)(?=\))", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"^<!--.*?-->\n", re.DOTALL | re.MULTILINE)
logger = logging.getLogger("mkdocs.plugins.pages")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    repository = config.extra["repository"]
    source = ELSEWHERE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    pages = {file: uri for uri, file in ELSEWHERE.items()} | {
        f"docs/{file.src_uri}": file.src_uri for file in files if file.src_uri not in ELSEWHERE
    }

    def moved(match: re.Match[str]) -> str:
        link = match[2]
        if link is None or link.startswith("#"):
            return match[0]
        path, _, anchor = link.partition("#")
        anchor = f"#{anchor}" if anchor else ""
        if path.startswith(f"{repository}/blob/main/"):
            target = path.removeprefix(f"{repository}/blob/main/")
        elif re.match(r"[a-z]+:", path):
            return link
        else:
            target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if target in pages:
            return posixpath.relpath(pages[target], posixpath.dirname(page.file.src_uri) or ".") + anchor
        if not (ROOT / target).exists():
            logger.warning("%s links to %s, which does not exist", source, link)
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"{repository}/{kind}/main/{target}{anchor}"

    return FENCE_OR_LINK.sub(moved, COMMENT.sub("", markdown))
