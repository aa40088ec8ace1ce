"""Break a copy of the project in each way, and see that the named tests fail. Exits 1 when a mutant survives."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.catalogue import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("machinequeue", "demo_site", "tests", "pyproject.toml", "manage.py")
LONGEST_SECONDS = 300


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="only mutants whose name has one of these words")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="so many at once (%(default)s)")
    options = parser.parse_args()
    words = options.words
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    with ThreadPoolExecutor(options.jobs) as pool:
        caught = sum(pool.map(_is_caught, chosen))
    print(f"{caught} of {len(chosen)} mutants caught")
    return 0 if chosen and caught == len(chosen) else 1


def _is_caught(mutant: Mutant) -> bool:
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / name)
        file = copy / mutant.file
        file.write_text(file.read_text().replace(mutant.before, mutant.after))
        try:
            code, said = _run_tests(copy, mutant)
        except subprocess.TimeoutExpired:
            code, said = -1, f"no verdict within {LONGEST_SECONDS} s"
    # 1 is "some tests failed"; anything else (no such test, an error while collecting) proves nothing.
    caught = code == 1 and " failed" in said
    print(f"{'caught  ' if caught else 'SURVIVED'}  {mutant.name}", flush=True)
    if not caught:
        print("\n".join(said.splitlines()[-15:]), flush=True)
    return caught


def _run_tests(copy: Path, mutant: Mutant) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:randomly", "-p", "no:cacheprovider", *mutant.tests],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
