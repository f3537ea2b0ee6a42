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


# What a folder or file may import of this project, besides its own folder. Everything stands on config and schema,
# which stand on nothing; data, model and evaluation never import each other, nor do training and report.
GROUND = {"recipe.config", "recipe.schema", "recipe.files"}
BELOW = {"recipe.record", "recipe.pace"} | GROUND  # standard library only
LIBRARY = BELOW | {"recipe.hub", "recipe.data.geometry", "recipe.arguments"}
ROOMS = LIBRARY | {"recipe.data", "recipe.model", "recipe.evaluation"}
FLOORS = {
    "recipe/config.py": set(),
    "recipe/schema.py": set(),
    "recipe/files.py": {"recipe.schema"},
    "recipe/record.py": GROUND,
    "recipe/pace.py": GROUND,
    "recipe/arguments.py": GROUND,
    "recipe/hub.py": GROUND,
    "recipe/data/geometry.py": GROUND,
    "recipe/data": LIBRARY,
    "recipe/model": LIBRARY,
    "recipe/evaluation": LIBRARY,
    "recipe/training": ROOMS,
    "recipe/report": ROOMS,
    "recipe/prediction": ROOMS,
    "recipe": ROOMS | {"recipe.training", "recipe.report", "recipe.prediction", "recipe.doctor"},
    "recipe/cli.py": {"recipe"},
    "data_prep": GROUND | {"recipe.data.geometry", "recipe.hub"},
    "jobs": {"recipe", "data_prep.publish"},
}
PILOT = {"data_prep.sample", "data_prep.shards"}  # the pilot makes its own sample, in one place


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


def product() -> list[Path]:
    return [path for path in tracked("recipe/*.py", "data_prep/*.py", "jobs/*.py") if path.name != "__init__.py"]


def test_imports_go_one_way():
    """One table for the house; a file that is named in it has rules of its own."""
    pilot = [path.name for path in product() if imports(path) & PILOT and path.parent.name != "data_prep"]
    assert len(pilot) == 1
    for path in product():
        name = str(path.relative_to(ROOT))
        place = name if name in FLOORS else str(path.parent.relative_to(ROOT))
        own = place.replace("/", ".").removesuffix(".py") if place != "recipe" else "recipe.none"
        for found in imports(path) - (PILOT if path.name in pilot else set()):
            allowed = found.startswith(f"{own}.") or any(
                found == each or found.startswith(f"{each}.") for each in FLOORS[place]
            )
            assert allowed, f"{name} imports {found}"


def test_settings_are_one_object():
    for path in product():
        assert not re.search(r"config: Config, args|\(config, args", path.read_text()), path


def test_data_prep_never_imports_torch():
    for path in tracked("data_prep/*.py"):
        assert not re.search(r"^\s*(import|from) (torch|transformers)\b", path.read_text(), re.MULTILINE), path


def test_the_readmes_tree_names_every_file():
    readme = (ROOT / "README.md").read_text()
    for path in [*product(), *tracked("benchmarks/*.py")]:
        assert re.search(rf"^\s+{re.escape(path.name)}\s+\S", readme, re.MULTILINE), path.relative_to(ROOT)


def test_no_file_names_the_host_of_a_package_index():
    hosts = ("pypi" + ".org", "python" + "hosted", "download." + "pytorch")
    for path in tracked():
        if path.suffix not in (".png", ".jpg"):
            text = path.read_text(errors="ignore")
            assert not any(host in text for host in hosts), path.relative_to(ROOT)


def test_no_product_file_grows_out_of_one_noun():
    for path in product():
        assert len(path.read_text().splitlines()) <= 260, path.relative_to(ROOT)


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
        (found,) = (ROOT / "tests").rglob(file)
        assert f"def {name}" in found.read_text(), (file, name)
