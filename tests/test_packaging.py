"""Packaging: one version everywhere, true bounds and pins, make, hooks, and what no file may name."""

import ast
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import oldest
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML
from test_pages import notebook, study  # noqa: F401

import lthlab
from lthlab import pages

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]

# Things of one machine: addresses of package registries, and absolute paths.
OF_ONE_MACHINE = re.compile(
    r"index[-]url|/simple\b|python[h]osted|find[-]links|file:///|(?<![\w.~})$-])/(?:work|root|home|Users)\b"
)


def read_yaml(name: str) -> dict:
    return YAML(typ="safe").load((ROOT / name).read_text())


def tracked_files() -> list[Path]:
    """What git tracks, and what it would once it is added."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def pins() -> dict[str, str]:
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    found = dict(line.split("==") for line in lines)
    return {canonicalize_name(name): version for name, version in found.items()}


def make(*targets: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", *targets]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_one_version():
    assert importlib.metadata.version("lthlab") == lthlab.__version__
    assert str(read_yaml("CITATION.cff")["version"]) == lthlab.__version__
    newest = re.search(r"^## (\d\S*?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest[1] == lthlab.__version__


def test_no_file_names_a_registry_or_a_path_of_one_machine():
    found = []
    for path in tracked_files():
        if path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="ignore").splitlines(), start=1):
            found += [f"{path.relative_to(ROOT)}:{number}: {match[0]}" for match in OF_ONE_MACHINE.finditer(line)]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "/" + "work/x",
        '"/' + 'root"',
        "a=/" + "home/me",
        "--index-" + "url a.b",
        "a.b/sim" + "ple/",
        "file:" + "///opt/x",
    ],
)
def test_the_search_for_machine_paths_finds(text):
    assert OF_ONE_MACHINE.search(text)


@pytest.mark.parametrize("text", ["framework/x", "../work/x", "$(HOME)/work", "at home", "root/x", "notebooks/home"])
def test_the_search_for_machine_paths_leaves_alone(text):
    assert not OF_ONE_MACHINE.search(text)


def test_constraints_pin_every_direct_dependency_within_its_bounds():
    pinned = pins()
    wrong = []
    for requirement in oldest.direct(PROJECT):
        version = pinned.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version):
            wrong.append(f"{requirement}: pinned to {version}")
    assert wrong == []


def test_constraints_are_plain_pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    names = [canonicalize_name(line.partition("==")[0]) for line in lines]
    assert len(set(names)) == len(names)
    assert "lthlab" not in names


def test_constraints_pin_everything_that_an_install_brings():
    """Follow the requirements of what is installed here; markers decide what this machine needs."""
    pinned, missing, seen = pins(), set(), set()
    if importlib.metadata.version("torch") != pinned["torch"]:
        pytest.skip("this environment was not made from constraints.txt")
    todo = [("lthlab", extra) for extra in ("", *PROJECT["optional-dependencies"])]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        if name != "lthlab" and name not in pinned:
            missing.add(name)
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = canonicalize_name(requirement.name)
                todo += [(needed, ""), *((needed, wanted) for wanted in requirement.extras)]
    assert missing == set()


def test_oldest_takes_the_lower_bound_of_each_direct_dependency():
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "oldest.py", ROOT / "pyproject.toml"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert {"torch==2.11", "torchvision==0.26", "nbconvert==7.17.1"} <= set(lines)
    assert len(lines) == len(oldest.direct(PROJECT))


@pytest.mark.parametrize("line", ["numpy", "numpy<3", "numpy>=2,>=2.1"])
def test_oldest_refuses_a_dependency_without_one_lower_bound(line):
    with pytest.raises(ValueError, match=r"pyproject\.toml: numpy.* lower bounds"):
        oldest.lowest(Requirement(line))


def test_imports_of_the_package_are_declared():
    distributions = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(requirement.name) for requirement in oldest.direct(PROJECT)}
    undeclared = set()
    for path in sorted((ROOT / "lthlab").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"lthlab"}:
                candidates = [name, *distributions.get(name, [])]
                if not declared & {canonicalize_name(candidate) for candidate in candidates}:
                    undeclared.add(f"{path.name}:{node.lineno}: {name}")
    assert undeclared == set()


def test_environment_yml_agrees_with_pyproject():
    dependencies = read_yaml("environment.yml")["dependencies"]
    pip_lines = next(entry["pip"] for entry in dependencies if isinstance(entry, dict))
    names = [entry for entry in dependencies if isinstance(entry, str)]
    assert pip_lines[0] == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[(.*)\]", pip_lines[1])
    assert extras is not None and set(extras[1].split(",")) == set(PROJECT["optional-dependencies"])
    assert len(pip_lines) == 2 and "pip" in names and len(names) == 2

    pythons = SpecifierSet(next(name for name in names if name.startswith("python")).removeprefix("python"))
    versions = [f"3.{minor}" for minor in range(8, 20)]
    classifiers = [entry.rpartition(" ")[2] for entry in PROJECT["classifiers"] if ":: Python :: " in entry]
    assert [version for version in versions if pythons.contains(version)] == classifiers
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(version) for version in classifiers)
    assert not SpecifierSet(PROJECT["requires-python"]).contains("3.10")


def test_make_help_lists_every_target():
    listed = re.findall(r"^make ([a-z-]+) +(\S.*)$", make(), re.MULTILINE)
    assert {target for target, _ in listed} == make_targets()
    assert {"demo", "test", "lint", "gallery", "lab", "test-oldest", "mutants", "clean", "help"} <= make_targets()
    assert make("help") == make()
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None and set(phony[1].split()) == make_targets()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md"])
def test_pages_name_make_targets_that_exist(page):
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE))
    assert named and named <= make_targets()


def test_git_keeps_products_out():
    """What the Makefile, the tests and the laboratory write is ignored, what a study needs is not."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    products = [".venv/x", ".venv-oldest/x", "build/x", "runs/k/manifest.json", "reports/demo/index.html"]
    products += ["reports/mine/index.html", "reports/gallery/demo/.a.html.7.aside"]
    kept = ["params/demo.yaml", "notebooks/explore.ipynb", "lthlab/data.py", "reports/gallery/demo/index.html"]
    command = ["git", "check-ignore", "--no-index", *products, *kept]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == products


def test_publishing_leaves_git_status_clean_but_for_the_gallery(study, tmp_path):  # noqa: F811
    folder = tmp_path / "clone"
    folder.mkdir()
    shutil.copy(ROOT / ".gitignore", folder)

    def git(*arguments: str) -> list[str]:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "begin")
    config, notebooks = study()
    shutil.copytree(notebooks, folder / "runs" / "notebooks" / config.name)
    pages.publish_study(config, folder / "runs" / "notebooks" / config.name, folder / "reports" / "demo")
    assert git("status", "--porcelain") == []
    pages.publish_study(config, notebooks, folder / "reports" / "gallery" / config.name)
    assert git("status", "--porcelain") == ["?? reports/"]


def test_the_gallery_has_a_page_of_every_report_and_is_small_enough_to_be_kept():
    pages = [page for name in ("gallery", "cifar10") for page in (ROOT / "reports" / name).rglob("*.html")]
    others = {"find_tickets", "evaluate_tickets", "explore", "findings", "own_network"}
    assert (ROOT / "reports" / "findings.html").is_file()
    reports = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} - others
    assert len(reports) >= 7 and reports <= {path.stem for path in pages}
    assert sum(path.stat().st_size for path in pages) < 25e6


def test_exported_results_are_few_small_files():
    folders = [path for path in (ROOT / "reports" / "data").iterdir() if path.is_dir()]
    assert folders
    for folder in folders:
        files = [path for path in folder.iterdir() if path.name != "checkpoints.tar"]
        assert len(files) <= 8 and sum(path.stat().st_size for path in files) <= 3e6, folder
    everything = [path for path in (ROOT / "reports" / "data").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in everything if path.name != "checkpoints.tar") <= 20e6


def test_only_make_gallery_writes_the_gallery():
    recipes = {target: make("--dry-run", "--always-make", target) for target in make_targets() - {"clean", "help"}}
    assert {target for target, commands in recipes.items() if "gallery" in commands} == {"gallery"}
    assert recipes["gallery"].count("reports/gallery") == 2 and "lthlab run params/demo.yaml" in recipes["demo"]
    named = [path for path in tracked_files() if path.suffix in (".py", ".ipynb", ".yaml")]
    named = [path for path in named if path.parent != ROOT / "tests"]
    assert [path for path in named if "reports/gallery" in path.read_text(encoding="utf-8")] == []


def test_hook_strips_notebooks_and_keeps_the_parameters_tag(tmp_path):
    hooks = {hook["id"]: hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}
    program, *arguments = shlex.split(hooks["nbstripout"]["entry"])
    output = {"output_type": "stream", "name": "stdout", "text": ["7\n"]}
    ran = {"papermill": {"duration": 1.5, "status": "completed"}, "tags": ["parameters"]}
    cell = {
        "cell_type": "code", "execution_count": 3, "id": "d2f1", "metadata": ran, "outputs": [output],
        "source": ["study = 7"],
    }  # fmt: skip
    metadata = {"language_info": {"name": "python", "version": "3.11.7"}, "papermill": {"duration": 2.5}}
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"cells": [cell], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    subprocess.run([Path(sys.executable).with_name(Path(program).name), *arguments, path], check=True)
    stripped = json.loads(path.read_text())
    assert stripped["cells"][0]["metadata"] == {"tags": ["parameters"]}
    assert stripped["cells"][0]["outputs"] == [] and stripped["cells"][0]["execution_count"] is None
    assert stripped["cells"][0]["source"] == ["study = 7"]
    assert stripped["metadata"] == {"language_info": {"name": "python"}}


def test_gpu_tests_are_skipped_and_listed_where_there_is_no_gpu(tmp_path):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    body = "import pytest\n\n@pytest.mark.gpu\ndef test_a():\n    assert False\n\ndef test_b():\n    pass\n"
    (tmp_path / "test_it.py").write_text(body)
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, tmp_path]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "1 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    assert re.search(r"no CUDA device \(1\):\n  \S*test_it.py::test_a\n", done.stdout)
