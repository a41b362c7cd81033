"""What is published: the wheel, the source archive, their metadata, and what must be filled in before."""

import re
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from lapinfer import __version__
from lapinfer.checkpoint.shipped import SHIPPED

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
TEXTS = [path for name in ("*.md", "*.cff", "*.toml", "*.yml", "docs/**/*.md") for path in ROOT.glob(name)]


def builder(name: str, root: Path):
    pytest.importorskip("hatchling")
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    return {"sdist": SdistBuilder, "wheel": WheelBuilder}[name](str(root))


def contents(name: str, root: Path) -> dict[str, Path]:
    """Files of an archive, by where they stand in it; nothing is compressed for that."""
    return {file.distribution_path: Path(file.path) for file in builder(name, root).recurse_included_files()}


def test_the_wheel_holds_the_package_alone(tmp_path):
    (wheel,) = builder("wheel", ROOT).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = {Path(name).name: archive.read(name) for name in names if ".dist-info/" in name}
    assert "lapinfer/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "lapinfer/checkpoint/popular.toml" in names
    assert {f"lapinfer/report/{name}" for name in ("passage.txt", "style.css", "marks.js", "whatif.js")} <= set(names)
    for model in SHIPPED:
        for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"):
            assert f"lapinfer/weights/{model}/{file}" in names
    assert Path(wheel).stat().st_size < 25e6
    assert all(name.startswith(("lapinfer/", "lapinfer-")) for name in names)
    assert not [name for name in names if "test" in name or "__pycache__" in name]

    metadata = message_from_bytes(about["METADATA"])
    assert (metadata["Version"], metadata["License-Expression"]) == (__version__, "MIT")
    assert about["LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert b"lapinfer = lapinfer.__main__:main" in about["entry_points.txt"]
    assert b"Root-Is-Purelib: true" in about["WHEEL"]
    assert Path(wheel).name.endswith("-py3-none-any.whl")


def test_the_wheel_of_the_source_archive_is_that_of_the_checkout(tmp_path):
    packed = contents("sdist", ROOT) | {"pyproject.toml": ROOT / "pyproject.toml"}  # which is always in it
    for place, source in packed.items():
        target = tmp_path / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.absolute())
    assert contents("wheel", tmp_path).keys() == contents("wheel", ROOT).keys()
    tests = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")]
    assert {*tests, "bench/__init__.py", "SECURITY.md", "CITATION.cff", "LICENSE", "CHANGELOG.md"} <= packed.keys()


def test_pythons_are_those_of_the_classifiers():
    named = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)]
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert named == [f"3.{minor}" for minor in range(11, 11 + len(named))]
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in named


def test_the_citation_is_of_this_version():
    lines = dict(re.findall(r'^([\w-]+): *"?(.+?)"?$', (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE))
    assert lines["version"] == PROJECT["version"] == __version__
    assert (lines["title"], lines["license"]) == (PROJECT["name"], PROJECT["license"])
    assert lines["repository-code"] == PROJECT["urls"]["Source"]


def test_one_repository_is_named_everywhere():
    """A placeholder until there is one (CONTRIBUTING.md): one that is left behind then would lead nowhere."""
    owners = {
        owner
        for path in TEXTS
        for owner in re.findall(r"github(?:usercontent)?\.com/([\w-]+)/lapinfer\b", path.read_text("utf-8"))
    }
    assert len(owners) == 1
