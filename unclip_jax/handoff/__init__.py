"""handoff: what one independently trained stage gives to the next.

An export is a folder: `params/` (Orbax), `manifest.json` (what they are and what they fit) and
`tokenizer/` (for stages that read text). Here lives writing one so that it is never seen half
done, reading one strictly, and refusing stages that do not belong together. Data only: JSON and
arrays, no pickled code. How a stage is trained or sampled is not known here.
Start at manifest.py, then export.py and load.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core",)
