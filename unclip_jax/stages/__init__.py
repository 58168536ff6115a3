"""stages: what is trained on its own, as records of pure functions.

Each file marries one network (models) with one objective (diffusion, or a contrastive loss) and
says which batch it eats: clip, the two priors, decoder, upsampler. No files, no loops, no devices:
who feeds and saves a stage is not its business. Start at base.py, then prior.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "diffusion", "models")
