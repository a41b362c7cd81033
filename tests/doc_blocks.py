"""Code blocks of Markdown pages, with what a comment before each says about running it.

<!-- not run: needs the network -->     it is only checked: options exist, Python compiles
<!-- run with: -p 16 -n 4 -->           every lapinfer command of the block has these options besides
<!-- ends with: 3 -->                   an exit code that is right besides 0
<!-- needs: openai -->                  skipped where that package is not installed
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

DIRECTIVE = re.compile(r"<!-- (not run|run with|ends with|needs): (.+?) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block: `not_run` is the reason, or None."""

    page: str
    line: int
    language: str
    code: str
    not_run: str | None
    more: tuple[str, ...]
    ends_with: int
    needs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path, page: str) -> list[Block]:
    """All fenced blocks of a page, also those inside lists and quotes."""
    found, said = [], {}
    for token in MarkdownIt("commonmark").parse(path.read_text(encoding="utf-8")):
        if token.type == "html_block":
            said = dict(DIRECTIVE.findall(token.content))
        elif token.type == "fence":
            assert token.map is not None
            found.append(Block(
                page, token.map[0] + 1, token.info.strip(), token.content, not_run=said.get("not run"),
                more=tuple(shlex.split(said.get("run with", ""))), ends_with=int(said.get("ends with", 0)),
                needs=tuple(said.get("needs", "").split()),
            ))  # fmt: skip
            said = {}
        elif token.level == 0:
            said = {}
    return found


def lines_of(code: str) -> list[list[list[str]]]:
    """Pipelines of a shell block, each a list of commands, each a list of words; && ends a pipeline as a line does."""
    pipelines: list[list[list[str]]] = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="|&")
        words.whitespace_split, words.commenters = True, "#"
        pipeline: list[list[str]] = [[]]
        for word in words:
            if word == "|":
                pipeline.append([])
            elif word == "&&":
                pipelines.append(pipeline)
                pipeline = [[]]
            else:
                pipeline[-1].append(word)
        pipelines.append(pipeline)
    return [pipeline for pipeline in pipelines if any(pipeline)]
