"""Every block of Python in docs/python.md runs as it stands there, on a small detector."""

from __future__ import annotations

import re
from pathlib import Path

import packed
import pytest
import torch
from packed import encoded, photograph
from small_detector import save, small_config

from recipe.model.detector import build_detector

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
BLOCKS = re.findall(r"## (.+?)\n.*?```python\n(.+?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the page names: outputs/run, crowd.jpg, photos/ and the packed folder crowd/."""
    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    save(build_detector(small_config()), folder / "outputs" / "run")
    (folder / "photos").mkdir()
    for number, size in enumerate([(60, 90), (90, 60), (60, 90)]):
        (folder / "photos" / f"{number}.jpg").write_bytes(encoded(photograph(*size, seed=number)))
    (folder / "crowd.jpg").write_bytes(encoded(photograph(60, 90)))
    packed.write(folder / "crowd", [*packed.crowd(2), packed.row(9, 60, 90)], "validation")
    return folder


@pytest.mark.parametrize(("title", "code"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_each_block_runs_as_it_stands(place, monkeypatch, capsys, title, code):
    monkeypatch.chdir(place)
    exec(compile(code.replace("threshold=0.4", "threshold=0.1"), title, "exec"), {})
    assert capsys.readouterr().out.strip()
    assert len(code.splitlines()) <= 20


def test_the_page_has_the_three_blocks():
    assert [title for title, _ in BLOCKS] == ["One image", "Many images", "Your own numbers"]
