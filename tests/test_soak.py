"""A short `make soak`, and that it sees what it looks for."""

from __future__ import annotations

import pytest
import soak


def test_a_short_run_leaves_nothing(tmp_path):
    assert soak.soak(60, tmp_path)[1] == []


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (soak.Sample(0, 101, 9, 2, 4, 3), []),
        (soak.Sample(0, 103, 9, 2, 4, 3), ["memory grew from 100 to 103"]),
        (soak.Sample(0, 100, 9, 3, 4, 3), ["sockets grew from 2 to 3"]),
        (soak.Sample(0, 100, 9, 2, 4, 4), ["processes grew from 3 to 4"]),
    ],
)
def test_what_grows_is_named(held, expected):
    early = [soak.Sample(step, 100, 9, 2, 4, 3) for step in range(0, 80, 5)]
    assert soak.grown([*early, *(held._replace(step=step) for step in range(80, 101, 5))]) == expected


def test_what_is_left_is_named(tmp_path, monkeypatch):
    (tmp_path / "tmp" / "pymp-1").mkdir(parents=True)
    (tmp_path / "run" / ".incoming").mkdir(parents=True)
    (tmp_path / "run" / "run.json.partial").touch()
    monkeypatch.setattr(soak, "group", lambda pid: [])
    hub = type("Hub", (), {"port": 1})
    words = " ".join(soak.left(0, tmp_path, hub))
    for name in ("pymp-1", ".incoming", "run.json.partial", "0 checkpoints instead of 3"):
        assert name in words
