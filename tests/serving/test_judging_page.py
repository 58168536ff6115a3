"""The page for raters in a headless browser, by its keys alone."""

import pytest

from tests import comparisons
from tests.serving.browser import Browser, program
from tests.serving.conftest import serving_app
from unclip_jax.evaluation import comparison_folder, questionnaire
from unclip_jax.evaluation.questionnaire import Questionnaire

pytest.importorskip("starlette", reason="needs the extra demo")
from unclip_jax.serving import judging
from unclip_jax.serving.access import Access

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program() is None, reason="needs Chromium"),
]


@pytest.fixture
def browser(tmp_path):
    instance = Browser(tmp_path / "profile")
    yield instance
    instance.close()


def press(browser, key):
    text = {"text": key} if len(key) == 1 else {}
    browser.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
    browser.send("Input.dispatchKeyEvent", type="keyUp", key=key)


def test_a_rater_answers_goes_back_and_continues_after_a_reload(browser, tmp_path):
    folder = comparisons.write_comparison(tmp_path / "compared", rows=comparisons.ROWS[-2:])
    with serving_app(judging.app(Questionnaire(folder), Access())) as client:
        browser.open(client.url)
        browser.wait("document.querySelector('#name')?.hidden === false")
        assert browser.run("getComputedStyle(document.querySelector('#steps')).display") == "none"
        browser.type("#rater", "Anna")
        browser.click("#name button")
        browser.wait("[...document.images].filter(image => image.naturalWidth === 8).length === 4")
        assert 'a sign that says "' in browser.text() and "& <b>" in browser.text()
        question = "document.querySelector('[aria-current] p').innerText"
        press(browser, "1")
        browser.wait(f"{question}.startsWith('Which set of images better')")
        press(browser, "3")
        browser.wait("document.body?.innerText.includes('1 of 2 prompts answered')")
        press(browser, "ArrowLeft")
        choice = "document.querySelector('[aria-current] [aria-pressed=true]')?.innerText"
        assert browser.wait(choice).startswith("I prefer the right set.")
        press(browser, "2")
        browser.wait(f"{question}.startsWith('Which set of images is')")
        browser.open("about:blank")
        browser.open(client.url)  # the name is in the storage of the browser
        browser.wait("document.body?.innerText.includes('anna: 1 of 2 prompts answered')")
        for _ in range(2):
            before = browser.run("document.querySelector('#questions').innerHTML")
            press(browser, "3")
            browser.wait(
                "!document.querySelector('#end').hidden || "
                f"document.querySelector('#questions').innerHTML !== {before!r}"
            )
        browser.wait("document.body?.innerText.includes('All questions are answered')")
        foreign = [url for url in browser.requests if not url.startswith((client.url, "about:"))]
        assert not foreign
    stored, _ = questionnaire.all_answers(folder, comparison_folder.read(folder))
    first, second = (
        {answer.question: answer.answer for answer in stored if answer.prompt == prompt["id"]}
        for prompt in Questionnaire(folder).session("anna")["prompts"]
    )
    assert first == {"fidelity": "left", "alignment": "indifferent"}
    assert second == {"fidelity": "right", "alignment": "right"}
