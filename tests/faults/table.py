"""Writes the rows that the fault suite told into the table of docs/reliability.md: `table.py ROWS.json PAGE.md`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

BEGIN, END = "<!-- faults: written by `make faults` -->", "<!-- end of faults -->"


def main(rows: Path, page: Path) -> None:
    lines = ["| fault | what was lost | recovery |", "|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in json.loads(rows.read_text())]
    text = page.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
