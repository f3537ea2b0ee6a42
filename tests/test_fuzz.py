"""A short `make fuzz`, and that it sees what it looks for; and what `make audit` makes of the lock."""

from __future__ import annotations

import json

import audit
import fuzz
import kills
import pytest

from data_prep.example import Labels


@pytest.mark.parametrize(("what", "count"), {"labels": 1000, "images": 100, "yaml": 100, "flags": 25}.items())
def test_no_case_of_another_seed_does_harm(what, count):
    assert fuzz.run_cases(what, range(count), seed=1) == []


def test_a_killed_pack_ends_as_if_never_killed():
    assert kills.many_kills(2, seed=1, only=("pack",)) == {"kills in pack": (2, [])}


@pytest.mark.parametrize("harm", fuzz.HARMS)
def test_the_fuzzer_sees_each_harm_and_says_which_case_it_was(harm, monkeypatch, capsys):
    def read_labels(*args, original=fuzz.read_labels, **options) -> Labels:
        if harm == "tracebacks":
            raise KeyError("a fault of ours")
        if harm == "hangs":
            raise fuzz.Hang
        found = original(*args, **options)
        if harm == "unaccounted":
            return found._replace(boxes_in=found.boxes_in + 1)
        return found._replace(bbox_xywh=found.bbox_xywh + 1000)

    monkeypatch.setattr(fuzz, "read_labels", read_labels)
    harms = fuzz.run_cases("labels", range(5), seed=0)
    assert {kind for _, (kind, _) in harms} == {harm}
    assert fuzz.show({"labels": (5, harms)}) == 1
    assert f"labels/{harms[0][0]}: {harm}" in capsys.readouterr().out


def test_the_audit_knows_every_package_of_the_lock(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["audit.py", "--out", str(tmp_path / "sbom.json")])
    monkeypatch.setattr("shutil.which", lambda name: None)
    audit.main()
    found = {each["name"]: each for each in json.loads((tmp_path / "sbom.json").read_text())["components"]}
    assert len(found) == audit.LOCK.read_text().count("==")
    assert found["numpy"]["purl"] == f"pkg:pypi/numpy@{found['numpy']['version']}"
    assert all(len(each["hashes"]) > 0 for each in found.values())
    assert "BSD" in found["numpy"]["licenses"][0]["license"]["name"]
    assert "vulnerabilities: not asked, pip-audit is not installed" in capsys.readouterr().out
