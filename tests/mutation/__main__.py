"""Mutation testing: changes one line at a time and counts the changes that no test notices.

    python -m tests.mutation --num=60 --seed=0
    python -m tests.mutation --listed
    python -m tests.mutation --num=40 --package=stages
    python -m tests.mutation --survivors

Works in copies of the tree. Writes one line of JSON per mutant to .mutants/results.jsonl.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import pathlib
import random
import sys
from concurrent import futures

from tests.mutation import runner
from tests.mutation.operators import is_valid
from tests.mutation.runner import Outcome


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    result.add_argument("--num", type=int, default=60, help="number of mutants")
    result.add_argument("--seed", type=int, default=0, help="of the sample")
    names = [name for name in runner.PACKAGES if name not in runner.LISTED_ONLY]
    result.add_argument("--package", action="append", choices=names, help="repeat for several")
    result.add_argument("--file", default="", help="part of the paths to mutate")
    result.add_argument("--tests", default="", help="parts of paths of test files, by commas")
    result.add_argument(
        "--no-record", action="store_true", help="run all of --tests on each mutant"
    )
    result.add_argument("--listed", action="store_true", help="the list in listed.toml")
    result.add_argument(
        "--survivors", action="store_true", help="those of --out that no test has caught yet"
    )
    result.add_argument("--jobs", type=int, default=2, help="mutants that are run at a time")
    result.add_argument("--least", type=float, default=0.0, help="fail below this score")
    result.add_argument("--out", default=".mutants/results.jsonl", help="where results go")
    return result


def choose(args: argparse.Namespace, root: pathlib.Path) -> list[runner.Mutant]:
    """Returns the requested mutants, without those known to be equivalent."""
    if args.listed:
        return [m for m in runner.listed(root) if args.file in m.path]
    names = args.package or parser()._option_string_actions["--package"].choices
    mutants = [m for m in runner.generated(root, names) if args.file in m.path]
    same = runner.equivalents(root)
    if args.survivors:
        if not (root / args.out).is_file():
            parser().error(f"there is no {args.out}; run a sample of mutants first")
        alive = survivors(root / args.out)
        return [m for m in mutants if runner.identity(m, root) in alive - set(same)]
    mutants = random.Random(args.seed).sample(mutants, len(mutants))
    selection = []
    for mutant in mutants:
        if len(selection) >= args.num:
            break
        source = (root / mutant.path).read_text()
        if is_valid(mutant.apply(source)) and runner.identity(mutant, root) not in same:
            selection.append(mutant)
    return selection


def survivors(file: pathlib.Path) -> set[tuple[str, str]]:
    """Returns the identities of the mutants whose last line in a file of results is a survival."""
    status = {}
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        status[entry["mutant"]["path"], entry["diff"]] = entry["status"]
    return {identity for identity, each in status.items() if each in runner.SURVIVED}


def report(outcomes: list[Outcome], root: pathlib.Path) -> str:
    """Returns survivors with their diffs, and the score of each package and of all."""
    lines = []
    for each in outcomes:
        if not each.caught:
            mutant = each.mutant
            diff = mutant.diff((root / mutant.path).read_text())
            lines.append(f"survived ({each.status}): {mutant.path}:{mutant.line}\n{diff}\n")
    counts = collections.defaultdict(list)
    for each in outcomes:
        counts[runner.package(each.mutant.path)].append(each.caught)
        counts["all"].append(each.caught)
    lines.append(f"{'package':<12} {'caught':>7} {'of':>5} {'score':>6}")
    order = [name for name in (*runner.PACKAGES, "all") if name in counts]
    for name in order:
        caught, number = sum(counts[name]), len(counts[name])
        lines.append(f"{name:<12} {caught:>7} {number:>5} {caught / number:>6.2f}")
    return "\n".join(lines)


def _tests(root: pathlib.Path, name: str, parts: list[str]) -> list[str]:
    """Returns the test files of a package whose paths have one of `parts`."""
    return [f for f in runner.tests_of(root, name) if any(part in f for part in parts)]


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main(argv: list[str] | None = None, *, root: pathlib.Path = runner.ROOT) -> int:
    """Runs a sample of mutants; returns 1 if the score is below `--least`."""
    args = parser().parse_args(argv)
    mutants = choose(args, root)
    store = root / args.out
    store.parent.mkdir(parents=True, exist_ok=True)
    reach = runner.Reach(root, root / ".mutants" / "reach.json")
    names = dict.fromkeys(runner.package(m.path) for m in mutants) or args.package or ()
    tests = {name: _tests(root, name, args.tests.split(",")) for name in names}
    files = [file for name in names for file in tests[name]]

    def run(mutant: runner.Mutant) -> Outcome:
        own = tests[runner.package(mutant.path)]
        return runner.outcome(servers, reach, mutant, tests=own, unrecorded=args.no_record)

    outcomes: list[Outcome] = []
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(runner.Servers(root, args.jobs, preload=runner.PRELOADED))
        file = stack.enter_context(store.open("a"))
        pool = stack.enter_context(futures.ThreadPoolExecutor(args.jobs))
        for test, seconds in reach.record(servers, [] if args.no_record else files, apply=pool.map):
            _say(f"recorded {test} in {seconds:.0f} s")
        for number, each in enumerate(pool.map(run, mutants), 1):
            outcomes.append(each)
            path, diff = runner.identity(each.mutant, root)
            entry = {**dataclasses.asdict(each), "diff": diff}
            file.write(json.dumps(entry) + "\n")
            file.flush()
            state = f"{each.seconds:.0f} s {each.test or each.status}"
            _say(f"[{number}/{len(mutants)}] {path}:{each.mutant.line} {state}")
    sys.stdout.write(report(outcomes, root) + "\n")
    score = sum(each.caught for each in outcomes) / max(len(outcomes), 1)
    return int(score < args.least)


if __name__ == "__main__":
    sys.exit(main())
