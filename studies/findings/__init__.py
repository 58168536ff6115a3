"""The paper's findings in miniature: what is missing is trained, and every claim is put to a test.

    source launch/env.sh
    python -m studies.findings --models=runs/shapes --out=docs/findings.md

One module per finding (`CLAIM`, `SOURCE`, `measure`); `training` has the baselines, `workshop`
draws, `judging` judges, `verdict` decides by intervals, `page` and `charts` write the report.
"""
