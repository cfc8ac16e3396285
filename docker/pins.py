"""Writes what an image installs as pip's requirement files, one for each layer: torch.txt and ablate.txt.

Beside them torch-constraints.txt, with what torch and torchvision need themselves.

Read from pyproject.toml, pinned by requirements.lock: a layer is built again only where its own packages change.
"""

import re
import sys
import tomllib
from pathlib import Path

EXTRAS = ("s3",)
APART = ("torch", "torchvision")
"""The largest by far, and the ones whose build (CPU, CUDA) a build argument chooses."""

NEEDED_BY_TORCH = {
    *("filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "numpy", "pillow", "setuptools"),
    *("sympy", "typing-extensions"),
}


def name(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def main(source: Path, target: Path) -> None:
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    pins = {
        name(line): line for line in (source / "requirements.lock").read_text().splitlines() if "==" in line
    }
    wanted = list(project["dependencies"])
    for extra in EXTRAS:
        wanted += project.get("optional-dependencies", {}).get(extra, [])
    unpinned = sorted(name(one) for one in wanted if name(one) not in pins)
    if unpinned:
        sys.exit(f"pins.py: requirements.lock has no pin of {', '.join(unpinned)}")
    (target / "torch.txt").write_text("".join(pins[one] + "\n" for one in APART))
    needed = sorted(NEEDED_BY_TORCH & pins.keys())
    (target / "torch-constraints.txt").write_text("".join(pins[one] + "\n" for one in needed))
    (target / "ablate.txt").write_text("".join(one + "\n" for one in wanted if name(one) not in APART))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
