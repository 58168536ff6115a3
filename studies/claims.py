"""Runs the findings of a study: modules with a claim, whose results are stored on disk.

A finding is a module with TITLE, SOURCE, CLAIM, ABOUT, CHART and `measure(harness)`, which returns
its rows and its `statistics.Inequality` tests.
"""

import datetime
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

from studies import statistics, training_runs
from studies.study_config import StudyConfig
from unclip_jax.evaluation import protocol_folder


class StudyHarness(Protocol):
    """The models and captions that a finding measures."""

    @property
    def config(self) -> StudyConfig:
        """The configuration of the study."""
        ...


def measure_missing(
    findings: Mapping[str, ModuleType],
    names: Sequence[str],
    harness: StudyHarness,
    *,
    write: Callable[[], dict[str, Any]],
) -> None:
    """Measures findings without a result, in order, and writes the report after each.

    Args:
        findings: all modules by name.
        names: names of the findings to measure.
        harness: argument of their `measure`.
        write: writes the page from all results so far, and returns the report.
    """
    for number, name in enumerate(names, 1):
        path = harness.config.result_file(name)
        if path.is_file():
            sys.stderr.write(f"{name}: measured already\n")
            continue
        sys.stderr.write(f"\n{name} ({number} of {len(names)})\n")
        finding = measure(findings[name], harness)
        path.parent.mkdir(parents=True, exist_ok=True)
        protocol_folder.write(path, json.dumps(finding, indent=1) + "\n")
        write()
    for name, finding in write()["findings"].items():
        sys.stdout.write(f"{findings[name].TITLE}: {finding['verdict']}\n")
    sys.stdout.write(f"wrote {harness.config.out}\n")


def measure(module: ModuleType, harness: StudyHarness) -> dict[str, Any]:
    """Measures a finding; returns its JSON-ready result with date and minutes without training."""
    work = harness.config.work
    trained_before = sum(training_runs.minutes(work).values())
    started = time.monotonic()
    finding = module.measure(harness)
    trained = sum(training_runs.minutes(work).values()) - trained_before
    finding["minutes"] = (time.monotonic() - started) / 60 - trained
    finding["date"] = datetime.date.today().isoformat()
    return statistics.as_json(finding)


def read(findings: Mapping[str, ModuleType], config: StudyConfig) -> dict[str, Any]:
    """Reads the results so far, with their verdicts."""
    paths = {name: config.result_file(name) for name in findings}
    results = {name: json.loads(p.read_text()) for name, p in paths.items() if p.is_file()}
    for finding in results.values():
        finding["verdict"] = statistics.verdict_of(finding)
    return results
