"""Tests the paper's claims in miniature: trains baselines, measures and reports verdicts.

    source launch/env.sh
    python -m studies.findings --models=runs/shapes --out=docs/findings.md

There is one module per finding (`CLAIM`, `SOURCE`, `measure`). `baseline_runs` trains the
baselines, `harness` samples and scores, `report_page` and `charts` write the report. Verdicts
follow from confidence intervals (`studies.statistics`).
"""
