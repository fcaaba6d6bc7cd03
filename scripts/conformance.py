"""Run the conformance checks for deltaw and for PEFT, and write docs/conformance.md.

python scripts/conformance.py            # both libraries, about a minute on one core
python scripts/conformance.py --only M2  # print one row for both, write nothing
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "conformance"), str(ROOT / "tests")]
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")


def measure(library: str, only: list[str]) -> None:
    """Run the rows for one library; one JSON line for each on standard output."""
    import drivers
    import torch
    from rows import load, outcome

    torch.set_num_threads(1)
    driver = getattr(drivers, library)
    if library == "Peft":
        import peft

        assert driver.title == f"PEFT {peft.__version__}", f"the table speaks of {driver.title}"
    for id, row in load().items():
        if not only or id in only:
            end = outcome(driver, row)
            print(json.dumps([driver.title, id, end.status, end.remark]), flush=True)


def main() -> int:
    """Measure each library in a process of its own and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="ID", help="rows to print instead of writing the page")
    parser.add_argument("--library", choices=("Deltaw", "Peft"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.library:
        measure(given.library, given.only)
        return 0
    from page import PAGE, TITLES, page
    from rows import Outcome, load

    found: dict[str, dict[str, Outcome]] = {title: {} for title in TITLES}
    for library in ("Deltaw", "Peft"):
        call = [sys.executable, __file__, "--library", library, "--only", *given.only]
        with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                title, id, status, remark = json.loads(line)
                found[title][id] = Outcome(status, remark)
                print(f"{title:12} {id}  {status:16} {remark}", flush=True)
        if process.returncode:
            return process.returncode
    if not given.only:
        PAGE.write_text(page(load(), found), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
