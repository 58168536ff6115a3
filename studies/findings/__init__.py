"""Puts the paper's claims to the test in miniature: trains the baselines, measures, decides.

    source launch/env.sh
    python -m studies.findings --models=runs/shapes --out=docs/findings.md

One module per finding (`CLAIM`, `SOURCE`, `measure`). `baseline_runs` trains the baselines,
`harness` samples and scores, `report_page` and `charts` write the report. The verdicts follow from
confidence intervals (`studies.statistics`).
"""
