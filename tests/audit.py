"""What the lock brings in: `make audit` prints versions and licences, and writes an SBOM (CycloneDX) of the image.

    python tests/audit.py [--out sbom.json]

It asks nobody, and says what it therefore does not know. Known vulnerabilities are asked of `pip-audit` where that is
installed. Exits 1 if a package of the lock is installed in another version, or a vulnerability is known.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements.lock"


class Locked(NamedTuple):
    """A package of the lock: its hashes, and what the installed one says of itself ("" where it is not installed)."""

    name: str
    version: str
    hashes: list[str]
    installed: str
    licence: str


def read_lock(text: str) -> list[Locked]:
    """The packages of a requirements.lock."""
    found = []
    for block in re.split(r"\n(?=[a-z0-9])", text):
        if match := re.match(r"([\w.-]+)==([^\s;\\]+)", block):
            installed, licence = look_up(match[1])
            found.append(Locked(*match.groups(), re.findall(r"--hash=sha256:(\w+)", block), installed, licence))
    return found


def look_up(name: str) -> tuple[str, str]:
    """Version and licence of an installed package: its SPDX expression, else its classifier, else its own words."""
    try:
        about = metadata(name)
    except PackageNotFoundError:
        return "", ""
    classifiers = [line for line in about.get_all("Classifier") or () if line.startswith("License :: ")]
    named = ", ".join(line.rpartition(" :: ")[2] for line in classifiers)
    words = (about.get("License") or "").strip().partition("\n")[0]
    return about["Version"], about.get("License-Expression") or named or words[:60]


def sbom(packages: list[Locked]) -> dict[str, Any]:
    """The lock as a CycloneDX 1.5 document; of the same lock the same bytes."""
    components = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{package.name}@{package.version}",
            "name": package.name,
            "version": package.version,
            "purl": f"pkg:pypi/{package.name}@{package.version}",
            "hashes": [{"alg": "SHA-256", "content": digest} for digest in package.hashes],
            **({"licenses": [{"license": {"name": package.licence}}]} if package.licence else {}),
        }
        for package in packages
    ]
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}


def vulnerabilities() -> int:
    """Print what pip-audit knows of the lock; 1 if that is anything."""
    if not (program := shutil.which("pip-audit")):
        print(f"vulnerabilities: not asked, pip-audit is not installed; `pipx run pip-audit -r {LOCK.name}` asks")
        return 0
    done = subprocess.run([program, "--disable-pip", "--require-hashes", "--requirement", LOCK], check=False)
    return done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "sbom.json")
    options = parser.parse_args()
    packages = read_lock(LOCK.read_text())
    for package in packages:
        other = f" (installed: {package.installed or 'no'})" if package.installed != package.version else ""
        print(f"{package.name:32}{package.version:16}{package.licence or 'unknown'}{other}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(sbom(packages), indent=1) + "\n")
    wrong = [package.name for package in packages if package.installed not in ("", package.version)]
    unknown = [package.name for package in packages if not package.licence]
    print(f"{len(packages)} packages, sbom: {options.out}")
    print(
        f"licence unknown: {', '.join(unknown) or 'none'}; installed in another version: {', '.join(wrong) or 'none'}"
    )
    print("the system packages of the base image are not in the lock: ask `docker sbom` or `syft` for them")
    return int(bool(vulnerabilities() or wrong))


if __name__ == "__main__":
    sys.exit(main())
