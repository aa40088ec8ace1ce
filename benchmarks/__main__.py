"""`python -m benchmarks [--quick] [a b c d e]`."""

import argparse
import os
import time

from benchmarks import report, servers
from benchmarks.figures import Section
from benchmarks.ground import Ground, ground

QUESTIONS = "abcde"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, as ratios.")
    parser.add_argument("questions", nargs="*", choices=[*QUESTIONS, []], help="some of a b c d e; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; writes nothing")
    return parser.parse_args()


def main() -> None:
    """Measure what was asked for; a full run also writes results.json and the page of the docs."""
    arguments = _arguments()
    asked = set(arguments.questions or QUESTIONS)
    os.environ.setdefault("PGAPPNAME", "machinequeue-benchmarks")
    begin = time.monotonic()
    with ground() as made:
        where = report.conditions(servers.versions(made.database_url, made.redis_url))
        sections = _measure(made, asked, quick=arguments.quick)
    seconds = time.monotonic() - begin
    print("\n".join(f"{name}: {value}" for name, value in where.items()))
    print(report.table(sections))
    print(f"\n{seconds:.0f} s")
    if asked == set(QUESTIONS) and not arguments.quick:
        report.write(sections, where, seconds)
        print(f"Written: {report.RESULTS}, {report.PAGE}")


def _measure(made: Ground, asked: set[str], *, quick: bool) -> list[Section]:
    from benchmarks import cold, drain, enqueueing, warm

    sections = []
    if asked & {"a", "b"}:
        found = enqueueing.measure(made, repetitions=3 if quick else 7, calls=200 if quick else 500)
        sections += [section for section in found if section.key in asked]
    if asked & {"c", "d", "e"}:
        made.start_dispatcher()
    if "c" in asked:
        sections.append(cold.measure(made, repetitions=3 if quick else 7))
    if "d" in asked:
        sections.append(warm.measure(made, repetitions=3 if quick else 4, calls=50 if quick else 100))
    if "e" in asked:
        sections.append(drain.measure(made, repetitions=1 if quick else 2, runs=1_000 if quick else 2_000))
    return sections


if __name__ == "__main__":
    main()
