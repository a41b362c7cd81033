"""The shape of the project: what imports what, how long files are, and whose tables pages have."""

import ast
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lapinfer"

LAYERS = [
    ("digits", "errors", "limits", "locks", "outputs", "parallel", "private", "progress", "shown"),
    ("arguments", "home", "interrupts", "machine", "texts"),
    ("spec",),
    ("quant",),
    ("options",),
    ("tensors",),
    ("families",),
    ("checkpoint", "kernels"),
    ("packing",),
    ("runtime",),
    ("model",),
    (
        "text.tokenizer",
        "text.tokenizer_files",
        "text.tokenizer_rules",
        "text.tokenizer_bounds",
        "text.tokenizer_bytes",
        "text.generation_config",
    ),
    ("calibration",),
    ("layers",),
    ("cluster.start", "cluster.shares", "cluster.expert_actor", "cluster.nodes"),
    ("loading",),
    ("text",),
    ("report", "storage"),
    ("train",),
    ("serve",),
    ("batch",),
    ("cluster",),
    ("scale",),
    ("cli", "companions"),
    ("__main__",),
]
"""Parts, lowest first: a part imports its own and lower ones. docs/architecture.md says why."""

LONGEST = 400
LONGER = {"kernels/operands.py": "a line for each operand of each op"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, path


def imports(path):
    """(module, line) of every import, those inside functions and for type checkers included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:  # `from lapinfer.kernels import cache` means a module, too
                member = ROOT / f"{node.module}.{alias.name}".replace(".", "/")
                is_module = member.with_suffix(".py").is_file() or (member / "__init__.py").is_file()
                yield (f"{node.module}.{alias.name}" if is_module else node.module), node.lineno


def rank(module):
    """The layer of a module: that of the longest name that it begins with."""
    inner = module.removeprefix("lapinfer.")
    found = [
        (len(part), level)
        for level, parts in enumerate(LAYERS)
        for part in parts
        if inner == part or inner.startswith(part + ".")
    ]
    assert found, f"{module} belongs to no layer"
    return max(found)[1]


def test_imports_go_one_way():
    wrong = []
    for name, path in modules():
        for imported, line in imports(path):
            if name == "lapinfer" or imported == "lapinfer" or not imported.startswith("lapinfer."):
                continue
            if rank(imported) > rank(name):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {imported}")
    assert not wrong


def test_no_module_imports_itself_in_a_circle():
    """Within a part, too: a package's own __init__ is what its modules are imported through, and does not count."""
    graph = {
        name: {imported for imported, _ in imports(path) if imported != name and not name.startswith(f"{imported}.")}
        for name, path in modules()
        if name != "lapinfer"
    }
    finished, open_modules = set(), []

    def visit(name):
        assert name not in open_modules, " -> ".join([*open_modules[open_modules.index(name) :], name])
        if name in finished or name not in graph:
            return
        open_modules.append(name)
        for imported in sorted(graph[name]):
            visit(imported)
        finished.add(open_modules.pop())

    for name in graph:
        visit(name)


def test_only_kernels_know_numba():
    for name, path in modules():
        compilers = {i for i, _ in imports(path) if i.split(".")[0] in ("numba", "llvmlite")}
        assert not compilers or name.startswith("lapinfer.kernels"), (name, compilers)


def test_only_training_knows_torch():
    for name, path in modules():
        found = {i for i, _ in imports(path) if i.split(".")[0] == "torch"}
        assert not found or name.startswith("lapinfer.train"), (name, found)
    users = {name for name, path in modules() for i, _ in imports(path) if f"{i}.".startswith("lapinfer.train.")}
    assert {name for name in users if not name.startswith("lapinfer.train")} <= {"lapinfer.cli.train"}


def test_only_clusters_know_ray():
    for name, path in modules():
        found = {i for i, _ in imports(path) if i.split(".")[0] == "ray"}
        assert not found or name.startswith("lapinfer.cluster"), (name, found)


def test_the_package_knows_nothing_of_bench():
    wrong = [(name, line) for name, path in modules() for i, line in imports(path) if i.split(".")[0] == "bench"]
    assert not wrong


def test_import_is_quick_and_light():
    code = "import sys, lapinfer; print([m for m in ('numba', 'numpy', 'llvmlite', 'tokenizers') if m in sys.modules])"
    times = []
    for command in (code, "pass") * 5:
        began = time.perf_counter()
        out = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - began)
        assert out.stdout.strip() in ("[]", "")
    assert min(times[::2]) - min(times[1::2]) < 0.15


def test_files_are_short():
    long = {str(path.relative_to(PACKAGE)) for _, path in modules() if len(path.read_text().splitlines()) > LONGEST}
    assert long == set(LONGER)
    assert not [path for path in (ROOT / "bench").rglob("*.py") if len(path.read_text().splitlines()) > LONGEST]


def test_tables_of_the_readme_are_those_of_the_results():
    subprocess.run([sys.executable, str(ROOT / "bench" / "readme_tables.py"), "--check"], check=True)
