"""Every command and every Python block of README and guides runs, as it is written, where the files that it names are.

`smollm2` and `org/name` are names of the hub; here they are small models that come along, in a hub cache of this test.
What a comment before a block says is not run is parsed: its options exist, its Python compiles (doc_blocks.py).
"""

import importlib.util
import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import typer.main
from doc_blocks import Block, blocks_of, lines_of
from typer.testing import CliRunner

from lapinfer.checkpoint.hub import ALIASES
from lapinfer.cli import app

ROOT = Path(__file__).parent.parent
PLACE = "https://github.com/OWNER/lapinfer"
PAGES = [str(path.relative_to(ROOT)) for path in (
    ROOT / "README.md", ROOT / "docs" / "index.md",
    *sorted((ROOT / "docs" / "guides").glob("*.md")), *sorted((ROOT / "docs" / "reference").glob("*.md")),
)]  # fmt: skip
MARKDOWN = [str(path.relative_to(ROOT)) for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")))]
BLOCKS = [block for page in PAGES for block in blocks_of(ROOT / page, page)]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
ON_THE_HUB = {ALIASES["smollm2"]: "austen-dense", "org/name": "austen-moe"}
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant:"
FILES = {
    "notes.txt": "It is a truth universally acknowledged, that a fox in want of a den must look for one.\n" * 6,
    "fox.json": json.dumps({"type": "object", "properties": {"legs": {"type": "integer", "maximum": 9}},
                            "required": ["legs"], "additionalProperties": False}),
    "questions.jsonl": '{"prompt": "It is a truth"}\n"Emma"\n{"text": "a fox"}\n',
}  # fmt: skip
FILES["novel.txt"] = FILES["notes.txt"] * 3
"""What a reader has in the folder where the blocks are typed."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A computer on which the models of the blocks are: LAPINFER_HOME, and a cache of the hub."""
    base = tmp_path_factory.mktemp("reader")
    for name, shipped in ON_THE_HUB.items():
        snapshot = base / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / "0"
        snapshot.mkdir(parents=True)
        (snapshot.parent.parent / "refs").mkdir()
        (snapshot.parent.parent / "refs" / "main").write_text("0")
        for file in ("config.json", "model.safetensors", "tokenizer.json"):
            shutil.copy(ROOT / "weights" / shipped / file, snapshot / file)
        settings = json.loads((ROOT / "weights" / shipped / "tokenizer_config.json").read_text(encoding="utf-8"))
        (snapshot / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAPINFER_HOME", str(base / "home"))
        patch.setenv("HF_HUB_CACHE", str(base / "hub"))
        yield base


@pytest.fixture(scope="module")
def folders(reader):
    """A folder for each page, in which its blocks run one after the other."""
    made: dict[str, Path] = {}

    def folder(page: str) -> Path:
        if page not in made:
            made[page] = reader / page.replace("/", "-")
            made[page].mkdir()
            for name, content in FILES.items():
                (made[page] / name).write_text(content, encoding="utf-8")
        return made[page]

    return folder


@pytest.fixture
def port(tmp_path):
    """The port of a server whose model says something to all."""
    from serving import running, state_of
    from talking_model import talking_model

    model = talking_model(tmp_path, {"": "Hello."})
    with running(state_of({"smollm2": lambda: model}, api_key=None)) as (url, _):
        yield url.rpartition(":")[2]


@pytest.fixture(scope="module")
def done() -> set[tuple[str, ...]]:
    """Commands that have run."""
    return set()


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def test_pages_have_blocks_of_known_languages():
    assert len(of("sh")) > 10
    assert len(of("python")) > 5
    assert {block.language for block in BLOCKS} <= {"sh", "python", "text", "json", "yaml", "toml"}


@pytest.mark.parametrize("block", of("sh"), ids=str)
def test_commands(block, reader, folders, monkeypatch, done):
    monkeypatch.chdir(folders(block.page))
    for pipeline in lines_of(block.code):
        told = None
        for command in pipeline:
            if block.not_run:
                check(command)
                continue
            full = [*command, *block.more]
            if len(pipeline) > 1 or tuple(full) not in done:  # some stand on two pages
                done.add(tuple(full))
                told = run(full, told, {0, block.ends_with})


def run(command: list[str], stdin: str | None, codes: set[int]) -> str:
    """What a command prints that ends with one of these codes. Of other programs some need not run."""
    program, *arguments = command
    if program == "lapinfer":
        result = CliRunner().invoke(app, arguments, input=stdin)
        assert result.exit_code in codes, (command, result.output, result.exception)
        return result.stdout
    if program == "cat":
        return "".join(Path(name).read_text(encoding="utf-8") for name in arguments)
    if program in ("pip", "export"):
        check(command)
        return ""
    raise AssertionError(f"{program}: mark the block with <!-- not run: reason -->")


def check(command: list[str]) -> None:
    """Of a command that is not run: its options exist, and so do the extras that it installs."""
    program, *arguments = command
    if program == "lapinfer":
        name, *rest = arguments
        typer.main.get_command(app).commands[name].make_context(name, rest).close()  # type: ignore[attr-defined]
    for extras in re.findall(r"(?:lapinfer|\.)\[([\w,]+)\]", " ".join(command)):
        assert set(extras.split(",")) <= set(EXTRAS), command


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python(block, reader, folders, monkeypatch, request):
    monkeypatch.chdir(folders(block.page))
    if block.not_run:
        compile(block.code, str(block), "exec")
        return
    for package in block.needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    code = block.code
    if ":8080" in code:
        code = code.replace(":8080", ":" + request.getfixturevalue("port"))
    exec(compile(code, str(block), "exec"), {"__name__": "__main__"})


def test_links_of_the_readme_are_whole_and_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 10
    for link in links:
        path, _, _ = link.removeprefix(PLACE).lstrip("/").partition("#")
        kind, branch, path = path.split("/", 2)
        assert link.startswith(PLACE), link
        assert kind in ("blob", "tree", "raw"), link
        assert branch == "main", link
        assert (ROOT / path).exists(), link


@pytest.mark.parametrize("heading", ["Install, and ask", "Run the tests"])
def test_both_commands_are_where_they_are_looked_for(heading):
    """`.ci/run` takes the block of commands after the line that begins so."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    after = lines[[line.startswith(heading) for line in lines].index(True) :]
    assert after[after.index("```sh") + 1].startswith("python3 -m venv .venv && ")
    assert after.index("```sh") < 6


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", MARKDOWN)
def test_pages_are_read_alike_by_all(page):
    """Python-Markdown, which the site is made with, wants an empty line where CommonMark does without."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"^[^\n]+\n#+ .*", text, re.MULTILINE)
    assert not re.findall(r"^(?!- |\d+\. |#|\s)[^\n]+\n(?:- |\d+\. ).*", text, re.MULTILINE)
