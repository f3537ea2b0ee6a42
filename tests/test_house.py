"""The house stays as it is drawn: imports go one way, the README's tree is whole, no file names an index's host."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def imports(path: Path) -> set[str]:
    """Modules of this project that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in tracked("*.py")}
    return found & modules


def test_imports_go_one_way():
    for path in tracked("recipe/**/*.py", "recipe/*.py", "data_prep/*.py", "jobs/*.py"):
        room = path.parent.name
        own = {name for name in imports(path) if not name.startswith(room)}
        if room == "data_prep":
            # The upload shares the Hub's rights, retries and commits with the run's; neither room imports torch.
            allowed = {"recipe.hub", "recipe.commits"} if path.name == "upload.py" else set()
            assert {name for name in own if name.count(".") == 1} <= {"recipe.schema"} | allowed, path
        elif room == "jobs":
            assert not any(name.startswith("data_prep") for name in own), path
        elif path.name == "train.py":
            assert own <= {"data_prep.sample", "data_prep.shards"}, path  # the pilot's built-in data
        else:
            assert not own, path
    assert imports(ROOT / "recipe/hub.py") | imports(ROOT / "recipe/commits.py") <= {
        "recipe.schema",
        "recipe.hub",
    }
    for name in ("schema", "config"):
        assert not imports(ROOT / "recipe" / f"{name}.py"), name


def test_data_prep_never_imports_torch():
    for path in tracked("data_prep/*.py"):
        assert not re.search(r"^\s*(import|from) (torch|transformers)\b", path.read_text(), re.MULTILINE), path


def test_the_readmes_tree_names_every_file():
    readme = (ROOT / "README.md").read_text()
    for path in tracked("recipe/**/*.py", "recipe/*.py", "data_prep/*.py", "jobs/*.py", "benchmarks/*.py"):
        if path.name != "__init__.py":
            assert re.search(rf"^\s+{re.escape(path.name)}\s+\S", readme, re.MULTILINE), path.relative_to(ROOT)


def test_no_file_names_the_host_of_a_package_index():
    hosts = ("pypi" + ".org", "python" + "hosted", "download." + "pytorch")
    for path in tracked():
        if path.suffix not in (".png", ".jpg"):
            text = path.read_text(errors="ignore")
            assert not any(host in text for host in hosts), path.relative_to(ROOT)


def test_no_product_file_grows_out_of_one_noun():
    for path in tracked("recipe/**/*.py", "recipe/*.py", "data_prep/*.py", "jobs/*.py"):
        assert len(path.read_text().splitlines()) <= 330, path.relative_to(ROOT)


PIP = """#!/bin/sh
case "$*" in *--no-index*) exec test -e wheels/torch-1-py3-none-any.whl ;; esac
touch wheels/torch-1-py3-none-any.whl
"""


def test_setup_says_that_it_fetches_only_where_a_wheel_is_missing(tmp_path):
    (tmp_path / "pip").write_text(PIP)
    (tmp_path / "pip").chmod(0o755)
    said = []
    for lock in ("torch==1\n", "torch==1 --hash=sha256:0\n"):
        (tmp_path / "requirements.lock").write_text(lock)
        (tmp_path / "wheels" / ".ready").unlink(missing_ok=True)
        make = ["make", "-C", str(tmp_path), "-f", str(ROOT / "Makefile"), "wheels/.ready", "PYTHON=./pip"]
        said.append(subprocess.run(make, check=True, capture_output=True, text=True).stdout)
    assert ["fetching" in words for words in said] == [True, False]


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)", makefile, re.MULTILINE)[1].split()
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert [line.split()[0] for line in shown.splitlines()] == targets


def test_every_test_that_the_readme_names_is_there():
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", (ROOT / "README.md").read_text())
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}" in (ROOT / "tests" / file).read_text(), (file, name)
