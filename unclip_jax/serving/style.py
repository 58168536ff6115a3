"""The style sheet of the page, and the HTML for which Gradio has no component."""

import html
from collections.abc import Mapping
from typing import Any

from unclip_jax.inference.progress import Progress

FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # of the reader's device
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
WORDS = {
    "embed captions": "captions",
    "embed images": "images",
    "invert": "inversion",
    "decode": "decoder",
    "upsample": "upsampler",
}
CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#head h1 { margin: 0 0 .15em; font-size: 1.5em; letter-spacing: -.01em; }
#head p { margin: 0; opacity: .75; font-size: .92em; }
.work { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: .7em .9em;
        background: var(--block-background-fill); min-height: 4.4em; box-sizing: border-box; }
.work .line { display: flex; justify-content: space-between; gap: 1em; font-size: .92em; }
.work .bar { height: 6px; border-radius: 3px; background: var(--border-color-primary);
             margin-top: .6em; overflow: hidden; }
.work .bar i { display: block; height: 100%; background: var(--color-accent);
               transition: width .25s; }
.work.bad { border-color: #c2410c; color: #c2410c; }
.dark .work.bad { color: #fdba74; }
.work .dim { opacity: .7; }
.images img { image-rendering: pixelated; }
.images .thumbnail-lg { aspect-ratio: auto; height: auto; display: flex;
                          flex-direction: column; }
.images .thumbnail-lg > img { aspect-ratio: 1; height: auto; }
.images .thumbnail-lg .caption-label { position: static; max-width: 100%; border: 0;
                                         opacity: 1; text-align: center; line-height: 1.25;
                                         white-space: normal; }
footer { display: none !important; }
@media (max-width: 640px) {
  .gradio-container { padding: 8px !important; }
  .images .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
}
"""


def head(models: Mapping[str, Any]) -> str:
    """The heading, with the models that the page runs."""
    sizes = " → ".join(str(size) for size in models["sizes"])
    stages = " · ".join(
        f"{html.escape(name)} {_millions(card['parameters'])} (step {card['step']})"
        for name, card in models["stages"].items()
    )
    name = html.escape(str(models["name"]))
    return (
        "<h1>unclip_jax</h1>"
        f"<p>Models <b>{name}</b>, {sizes} px: {stages}.<br>"
        f"CLIP {html.escape(models['clip_id'][:12])} · JSON in, images out at "
        '<a href="/api">/api</a></p>'
    )


def idle() -> str:
    """The status before the first request."""
    return _box('<span class="dim">Progress and messages appear here.</span>')


def waiting(ahead: int) -> str:
    """The status of a job that waits."""
    what = "starting" if not ahead else f"waiting: {ahead} before you"
    return _box(_line(f"{what} …", ""), share=0.0)


def working(state: Progress) -> str:
    """The status of a job that runs."""
    words = WORDS.get(state.stage, state.stage)
    steps = f"step {state.step} of {state.steps}" if state.steps > 1 else ""
    done = f"{state.done} of {state.total} images" if state.total > 1 else ""
    right = " · ".join(part for part in (steps, done) if part)
    return _box(_line(f"<b>{html.escape(words)}</b>", right or "…"), share=state.share)


def finished(count: int, seconds: float) -> str:
    """The status of a job that is done."""
    what = "one image" if count == 1 else f"{count} images"
    return _box(_line(f"{what} in {seconds:.1f} s", "done"), share=1.0)


def stopped() -> str:
    """The status of a cancelled job."""
    return _box(_line("Stopped.", ""))


def problem(message: str) -> str:
    """An error that the reader can mend."""
    return _box(html.escape(message), kind=" bad")


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M"


def _line(left: str, right: str) -> str:
    right = html.escape(right)
    return f'<div class="line"><span>{left}</span><span class="dim">{right}</span></div>'


def _box(inner: str, *, share: float | None = None, kind: str = "") -> str:
    bar = (
        "" if share is None else f'<div class="bar"><i style="width:{100 * share:.0f}%"></i></div>'
    )
    return f'<div class="work{kind}" role="status">{inner}{bar}</div>'
