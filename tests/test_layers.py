"""The package as a whole: imports only downwards, what each module may import, sizes, what is never called.

The rules read the source (`ast`), so imports inside functions and in branches that no test enters count too.
"""

import ast
import builtins
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "lthlab"

# A module imports modules of lower rows only.
ROWS = [
    ["__init__"],
    ["draws", "errors", "files", "formulas", "machine", "packing", "progress", "provenance"],
    ["datasets"],
    ["parts"],
    ["disk", "images", "layers", "nodes", "sizes", "trees"],
    ["wording"],
    ["jobs", "sections", "values"],
    ["analyses", "pruning"],
    ["probes"],
    ["spec"],
    ["published", "roles"],
    ["catalog", "forms", "kernels", "masks", "nets", "plan", "schema", "store"],
    ["chains", "data", "filters", "gradual", "readers"],
    ["contrasts", "counts", "install", "lanes", "runs", "tickets", "weights"],
    ["feasible", "streams"],
    ["replicas"],
    ["derive", "devices", "engine", "landscape", "studies"],
    ["compact", "curvature", "estimates", "parallel", "portable", "scores"],
    ["measures", "trainer"],
    ["lab"],
    ["results", "verdicts"],
    ["costs", "decoupling", "ratios", "saturation"],
    ["early"],
    ["strokes"],
    ["plots"],
    ["contours", "markup", "profiles", "timelines"],
    ["reports"],
    ["advisor", "correlations", "explore", "findings", "losses", "pairings", "prizes", "transfer"],
    ["evidence", "guidelines"],
    ["predicates"],
    ["comparison"],
    ["ledgers"],
    ["conclusions"],
    ["arguments", "batch", "doctor", "pages", "shelf", "watch"],
    ["stages"],
    ["bills"],
    ["cli"],
    ["__main__"],
]
LAYER = {module: row for row, modules in enumerate(ROWS) for module in modules}
WITHOUT_TORCH = {
    "__init__", "advisor", "analyses", "arguments", "bills", "catalog", "comparison", "conclusions", "contours",
    "contrasts", "correlations", "costs", "datasets", "decoupling", "disk", "draws", "early", "errors", "estimates",
    "evidence", "explore", "files", "findings", "forms", "formulas", "guidelines", "images", "install", "jobs",
    "kernels", "ledgers", "losses", "machine", "markup", "nodes", "packing", "pages", "pairings", "parts", "plan",
    "plots", "predicates", "prizes", "probes", "profiles", "progress", "provenance", "pruning", "published", "ratios",
    "readers", "reports", "results", "roles", "runs", "saturation", "schema", "sections", "shelf", "sizes", "spec",
    "stages", "store", "strokes", "studies", "tickets", "timelines", "transfer", "trees", "values", "verdicts",
    "watch", "wording",
}  # fmt: skip
ONLY_IN_BATCH = {"dask", "dask_jobqueue", "distributed", "papermill"}
NEEDED_BY_NOTEBOOKS = {
    "IPython", "jupyter", "jupyter_client", "jupyterlab", "matplotlib", "nbclient", "nbconvert", "nbformat",
    "scipy", "seaborn", "sklearn", "torchvision", *ONLY_IN_BATCH,
}  # fmt: skip
IMPORT_OUTSIDE_FUNCTIONS = {"batch", "contours", "plots", "profiles", "strokes", "timelines"}
RUN_WITHOUT_NOTEBOOKS = ["spec", "draws", "store", "tickets", "engine", "replicas", "lab", "results", "cli"]
MOST_LINES = 400

UNPICKLING = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "yaml"}
FORBIDDEN_CALLS = {
    "builtins.eval", "builtins.exec", "builtins.__import__", "os.popen", "os.system",
    "pandas.read_pickle", "ruamel.yaml.load", "torch.hub.load", "torch.jit.load", "torch.load", "torch.save",
}  # fmt: skip
FORBIDDEN_KEYWORDS = {("allow_pickle", True), ("shell", True), ("typ", "unsafe"), ("weights_only", False)}


def modules() -> list[str]:
    return sorted(path.stem for path in PACKAGE.glob("*.py"))


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and full dotted name of everything that is imported, also by `import_module` with a constant."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(part for part in ("lthlab" if node.level else "", node.module or "") if part)
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and called_name(node.func).endswith("import_module") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.append((node.lineno, "lthlab" + name.value if name.value[0] == "." else name.value))
    return found


def top_level_imports(tree: ast.Module) -> list[tuple[int, str]]:
    """The imports that run when the module is imported: those outside functions."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {found for function in functions for found in imports(function)}
    return [found for found in imports(tree) if found not in inside]


def own_modules(names: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Line and module of the imports from lthlab itself."""
    parts = [(line, name.split(".")) for line, name in names]
    return [
        (line, name[1] if len(name) > 1 and name[1] in LAYER.keys() | set(modules()) else "__init__")
        for line, name in parts
        if name[0] == "lthlab"
    ]


def root(name: str) -> str:
    return name.partition(".")[0]


def called_name(node: ast.expr) -> str:
    """The dotted name as written, empty if it is not made of names alone."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = called_name(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def aliases(tree: ast.AST) -> dict[str, str]:
    """What each imported local name stands for, and the builtins for themselves."""
    known = {name: f"builtins.{name}" for name in dir(builtins)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {a.asname or root(a.name): a.name if a.asname else root(a.name) for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return known


def used_names(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and full dotted name of every name that is read, aliases resolved."""
    known = aliases(tree)
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Name | ast.Attribute) and isinstance(n.ctx, ast.Load)]
    names = [(node.lineno, called_name(node)) for node in nodes]
    return [(line, ".".join([known.get(root(n), root(n)), *n.split(".")[1:]])) for line, n in names if n]


def code_lines(tree: ast.Module, source: str) -> int:
    """Number of lines that are neither blank nor part of a docstring."""
    skipped = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            value = getattr(statement, "value", None)
            is_text = isinstance(statement, ast.Expr) and isinstance(value, ast.Constant)
            if is_text and isinstance(value.value, str):
                skipped |= set(range(statement.lineno, statement.end_lineno + 1))
    lines = enumerate(source.splitlines(), start=1)
    return sum(1 for number, line in lines if line.strip() and number not in skipped)


def test_package_is_flat_and_every_module_has_a_layer():
    nested = [str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE]
    assert nested == []
    assert set(modules()) <= set(LAYER), f"without a layer: {sorted(set(modules()) - set(LAYER))}"


@pytest.mark.parametrize("module", modules())
def test_imports_go_downwards(module):
    wrong = [
        f"{module}.py:{line} (row {LAYER.get(module)}) imports {other} (row {LAYER.get(other)})"
        for line, other in own_modules(imports(tree_of(module)))
        if LAYER.get(other, len(ROWS)) >= LAYER.get(module, 0)
    ]
    assert wrong == []


def test_init_imports_nothing():
    assert imports(tree_of("__init__")) == []


@pytest.mark.parametrize("module", modules())
def test_imports_of_other_packages(module):
    everywhere = imports(tree_of(module))
    on_import = top_level_imports(tree_of(module))
    wrong = []
    if module in WITHOUT_TORCH:
        wrong += [f"{line}: {name} in a module without torch" for line, name in everywhere if root(name) == "torch"]
        wrong += [
            f"{line}: {other} imports torch" for line, other in own_modules(on_import) if other not in WITHOUT_TORCH
        ]
    if module != "batch":
        wrong += [f"{line}: {name} belongs in batch" for line, name in everywhere if root(name) in ONLY_IN_BATCH]
    if module not in IMPORT_OUTSIDE_FUNCTIONS:
        wrong += [
            f"{line}: import {name} inside the function that needs it"
            for line, name in on_import
            if root(name) in NEEDED_BY_NOTEBOOKS
        ]
    assert wrong == [], f"{module}.py"


@pytest.mark.parametrize("module", modules())
def test_size(module):
    lines = code_lines(tree_of(module), (PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    assert lines <= MOST_LINES, f"{module}.py has {lines} lines without docstrings"


@pytest.mark.parametrize("module", modules())
def test_nothing_is_unpickled_evaluated_or_handed_to_a_shell(module):
    tree = tree_of(module)
    wrong = [f"{line}: {name}" for line, name in imports(tree) if root(name) in UNPICKLING]
    wrong += [f"{line}: {name}" for line, name in imports(tree) + used_names(tree) if name in FORBIDDEN_CALLS]
    wrong += [
        f"{node.value.lineno}: {node.arg}={node.value.value!r}"
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
        and isinstance(node.value, ast.Constant)
        and (node.arg, node.value.value) in FORBIDDEN_KEYWORDS
    ]
    wrong += [
        f"{node.lineno}: .{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"read_pickle", "to_pickle"}
    ]
    assert wrong == [], f"{module}.py"


BLOCK = """
import importlib, sys

blocked, names = {blocked!r}, {names!r}

class Blocked:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}} (made unimportable by the test)")

sys.meta_path.insert(0, Blocked)
for name in names:
    importlib.import_module("lthlab." + name)
"""


def import_without(blocked: set[str], names: list[str]) -> subprocess.CompletedProcess:
    script = BLOCK.format(blocked=blocked, names=names)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent)


def test_computing_needs_no_notebook_packages():
    done = import_without(NEEDED_BY_NOTEBOOKS, RUN_WITHOUT_NOTEBOOKS)
    assert done.returncode == 0, done.stderr


def test_modules_without_torch_import_where_torch_is_missing():
    drawing = {
        "advisor", "comparison", "conclusions", "contours", "correlations", "evidence", "explore", "findings",
        "guidelines", "ledgers", "losses", "markup", "pairings", "plots", "predicates", "prizes", "profiles", "reports",
        "strokes", "timelines", "transfer",
    }  # fmt: skip
    names = WITHOUT_TORCH & set(modules()) - {"__init__"}
    for blocked, chosen in (({"torch", *NEEDED_BY_NOTEBOOKS}, names - drawing), ({"torch"}, drawing)):
        done = import_without(blocked, sorted(chosen))
        assert done.returncode == 0, done.stderr
