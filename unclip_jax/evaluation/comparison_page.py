"""The static page of a comparison: all prompts by category, read without a server.

It shows only what raters may see: sides instead of models. Pictures are beside it.
"""

import html
from collections.abc import Iterator

from unclip_jax.evaluation.comparison_folder import PICTURES, SIDES, ComparedPrompt, Comparison

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 0 auto; padding: 16px; max-width: 1180px; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; } h3 { font-size: 1em; margin: 1.6em 0 .4em; }
nav { display: flex; flex-wrap: wrap; gap: .4em 1.2em; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 32px; }
figure { margin: 0; } figcaption { color: gray; }
.set { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: 6px; }
img { width: 100%; display: block; border-radius: 4px; }
"""


def page(comparison: Comparison) -> str:
    """Returns the page as HTML."""
    return "\n".join(_lines(comparison)) + "\n"


def _lines(comparison: Comparison) -> Iterator[str]:
    categories: dict[str, list[ComparedPrompt]] = {}
    for prompt in comparison.prompts:
        categories.setdefault(prompt.category, []).append(prompt)
    numbers = {category: number for number, category in enumerate(categories, 1)}
    yield from ("<!doctype html>", '<html lang="en">', '<meta charset="utf-8">')
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Two models side by side</title>\n<style>{_STYLE}</style>"
    yield "<h1>Two models side by side</h1>"
    yield (
        f"<p>{len(comparison.prompts)} prompts, {comparison.images} images of each model. The side "
        "of a model is random for every prompt.</p>"
    )
    links = (f'<a href="#c{numbers[name]}">{html.escape(name)}</a>' for name in categories)
    yield f"<nav>{' '.join(links)}</nav>"
    for name, prompts in categories.items():
        yield f'<h2 id="c{numbers[name]}">{html.escape(name)}</h2>'
        for prompt in prompts:
            yield from _prompt(prompt, comparison.images)


def _prompt(prompt: ComparedPrompt, images: int) -> Iterator[str]:
    yield f"<h3>{prompt.number}. {html.escape(prompt.text)}</h3>"
    yield '<div class="sides">'
    for side in SIDES:
        pictures = "".join(
            f'<img loading="lazy" src="{PICTURES}/{name}" alt="{side} {index}">'
            for index, name in enumerate(prompt.pictures(side, images), 1)
        )
        yield f'<figure><figcaption>{side}</figcaption><div class="set">{pictures}</div></figure>'
    yield "</div>"
