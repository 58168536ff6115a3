"""The page in a headless browser, on a server in this process."""

import json
import time

import pytest

from tests.serving.browser import Browser, program
from tests.serving.conftest import png, serving
from tests.serving.test_schemas import monster

pytest.importorskip("starlette", reason="needs the extra demo")
from unclip_jax.serving.access import LOCAL_HOSTS, Access

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program() is None, reason="needs Chromium"),
]
HOSTILE = "<img src=x onerror=document.title='run'>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    instance = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield instance
    instance.close()


@pytest.fixture
def page(browser, client):
    """The page, freshly opened."""
    browser.open("about:blank")
    browser.open(f"{client.url}/")
    browser.wait("document.querySelector('#go-text') !== null")
    browser.run("document.querySelectorAll('input[id$=-steps]').forEach(i => i.value = '4')")
    return browser


def status(command):
    return f"document.querySelector('#status-{command}').innerText"


def images(command):
    return f"document.querySelectorAll('#gallery-{command} img').length"


def test_captions_become_images_that_enlarge_and_go_on_to_other_tabs(page, client, run_dir):
    assert run_dir.name in page.text()
    page.run(
        "window.seen = new Set(), setInterval(() => "
        f"window.seen.add({status('text')} + {images('text')}), 5)"
    )
    page.run("document.querySelector('#text-steps').value = '250'")  # long enough to be watched
    page.type("#text-captions", f"a red circle {HOSTILE} 一只黑猫")
    page.click("#go-text")
    page.wait(f"{status('text')}.includes('2 images in')")
    assert page.run("[...window.seen].some(line => /of 2 images|step [0-9]/.test(line))")
    assert HOSTILE in page.text() and page.run("document.title").startswith("unclip_jax")
    assert page.run("location.hash").startswith("#/text?captions=a+red+circle")
    page.click("#gallery-text .tile")
    page.wait("document.querySelector('#viewer').open")
    page.run("[...document.querySelectorAll('#viewer-actions button')]"
             ".find(b => b.innerText.includes('Variations')).click()")  # fmt: skip
    page.wait("document.querySelector('#panel-variations .thumbnails img') !== null")
    page.run("document.querySelector('#variations-num').value = 1")
    page.click("#go-variations")
    page.wait(f"{status('variations')}.includes('3 images in')")
    assert page.run("document.querySelectorAll('#entries button').length") == 2  # the session
    page.run("document.querySelector('#entries button:last-child').click()")
    assert page.run("!document.querySelector('#panel-text').hidden")
    foreign = [url for url in page.requests if not url.startswith((client.url, "data:", "blob:"))]
    assert [url for url in foreign if url != "about:blank"] == []


def test_what_cannot_be_used_is_said(page, tmp_path):
    page.click("#tab-variations")
    for name, data, message in (
        ("monster.png", monster(), "decompression bomb"),
        ("drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported format SVG"),
        ("words.png", b"some words", "not an image"),
    ):
        (tmp_path / name).write_bytes(data)
        page.upload("#variations-image", tmp_path / name)
        page.wait("document.querySelector('#panel-variations .thumbnails figure') !== null")
        page.click("#go-variations")
        page.wait(f"{status('variations')}.includes('{message}')")


def test_a_mask_is_painted_over_the_image(page, tmp_path):
    (tmp_path / "good.png").write_bytes(png())
    page.click("#tab-inpaint")
    page.upload("#inpaint-image", tmp_path / "good.png")
    page.wait("document.querySelector('#panel-inpaint canvas').width === 40")
    page.run("""(() => {
        const canvas = document.querySelector('#panel-inpaint canvas');
        const box = canvas.getBoundingClientRect();
        const event = new PointerEvent('pointerdown',
            {clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, pointerId: 1});
        canvas.setPointerCapture = () => {};
        canvas.dispatchEvent(event);
        document.querySelector('#inpaint-num').value = 1;
        document.querySelector('#inpaint-repeats').value = 1;
        document.querySelector('#inpaint-jump').value = 2;
    })()""")
    page.click("#go-inpaint")
    page.wait(f"/one image in|Error|;/.test({status('inpaint')})")
    assert "one image in" in page.run(status("inpaint"))


def test_stop_ends_a_request_that_waits(page, client, busy_queue):
    page.type("#text-captions", "a red circle")
    page.click("#go-text")
    page.wait(f"{status('text')}.includes('1 before you')")
    page.click("#stop-text")
    page.wait(f"{status('text')}.includes('Stopped.')")
    assert client.get("/api/queue")["waiting"] == 0
    page.click("#go-text")
    page.wait(f"{status('text')}.includes('1 before you')")
    page.open("about:blank")  # leaving the page ends its requests, too
    page.wait("document.body.innerText === ''")
    for _ in range(100):
        if client.get("/api/queue")["waiting"] == 0:
            break
        time.sleep(0.1)
    assert client.get("/api/queue")["waiting"] == 0


def test_a_link_fills_the_form_and_runs_nothing(page, client):
    hostile = f"captions={HOSTILE}%0Aa%20blue%20square&seed=7&__proto__=x&image=/etc/passwd"
    page.open("about:blank")
    page.open(f"{client.url}/#/text?{hostile}")
    page.wait("document.querySelector('#text-captions')?.value.includes('blue')")
    value = page.run("document.querySelector('#text-captions').value")
    assert value == f"{HOSTILE}\na blue square"
    assert page.run("document.querySelector('#text-seed').value") == "7"
    assert page.run("document.title").startswith("unclip_jax")
    assert client.get("/api/queue") == {"running": 0, "waiting": 0, "limit": 3}


def test_links_and_the_history_restore_every_field(page, client):
    """Also those that the form begins with another value than the command, and empty ones."""

    def field(name):
        return page.run(f"document.querySelector('#text-{name}').value")

    page.run("document.querySelector('#text-steps').value = '4'")
    page.run("document.querySelector('#text-num').value = 1")
    page.type("#text-captions", "a red circle")
    page.click("#go-text")
    page.wait(f"{status('text')}.includes('one image in')")
    link = page.run("location.href")
    page.run("document.querySelector('#text-guidance').value = 5")
    page.run("document.querySelector('#text-negative').value = 'x'")
    page.run("document.querySelector('#entries button').click()")
    page.wait("document.querySelector('#text-guidance').value === ''")
    assert (field("negative"), field("num"), field("steps")) == ("", "1", "4")
    page.open("about:blank")
    page.open(link)
    page.wait("document.querySelector('#text-captions')?.value === 'a red circle'")
    assert (field("num"), field("steps")) == ("1", "4")


def test_a_request_during_a_stop_waits_for_its_end(page, client, busy_queue):
    page.type("#text-captions", "a red circle")
    page.click("#go-text")
    page.wait(f"{status('text')}.includes('1 before you')")
    page.click("#stop-text")
    page.run("document.querySelector('#panel-text form').requestSubmit()")  # as Enter does
    page.wait(f"{status('text')}.includes('Stopped.')")
    assert client.get("/api/queue")["waiting"] == 0
    page.click("#go-text")
    page.wait(f"{status('text')}.includes('1 before you')")
    assert page.run("!document.querySelector('#stop-text').disabled")
    page.click("#stop-text")
    page.wait(f"{status('text')}.includes('Stopped.')")


def test_models_are_switched_and_keep_what_they_show(browser, client_of_two):
    browser.open("about:blank")
    browser.open(f"{client_of_two.url}/")
    browser.wait("document.querySelector('#go-text') !== null")
    titles = "[...document.querySelectorAll('#tabs button')].map(tab => tab.innerText).join()"
    assert "Variations" in browser.run(titles)
    browser.run("document.querySelector('#text-steps').value = '4'")
    browser.click("#text-captions + .examples button")
    assert browser.run("document.querySelector('#text-captions').value").startswith("a red circle")
    browser.click("#go-text")
    browser.wait(f"{status('text')}.includes('2 images in')")

    def switch(name):
        browser.run(f"document.querySelector('#model').value = '{name}'")
        browser.run("document.querySelector('#model').dispatchEvent(new Event('change'))")
        browser.wait(f"document.title.endsWith('{name}')")

    switch("b")
    assert browser.run(titles) == "Text to image,Completion"
    assert browser.run(images("text")) == 0 and browser.run("location.hash") == "#/b/text"
    browser.type("#text-captions", "three pink rings")
    browser.click("#go-text")
    browser.wait(f"{status('text')}.includes('2 images in')")
    assert '"path": "b"' in browser.run("document.querySelector('#panel-text pre').textContent")
    browser.run("document.querySelector('#entries button:last-child').click()")  # of the others
    browser.wait("document.title.endsWith('a')")
    assert '"path": "a"' in browser.run("document.querySelector('#panel-text pre').textContent")
    switch("b")
    assert browser.run("document.querySelector('#text-captions').value") == "three pink rings"
    assert browser.run(images("text")) == 2


def test_a_link_names_the_models_and_unknown_ones_are_reported(browser, client_of_two):
    for name, title in (("b", "b"), ("nobody", "a"), ("__proto__", "a"), ("%E0", "a")):
        browser.open("about:blank")
        browser.open(f"{client_of_two.url}/#/{name}/text?captions=three+pink+rings")
        browser.wait("document.querySelector('#text-captions')?.value === 'three pink rings'")
        assert browser.run("document.title") == f"unclip_jax · {title}"
        if name in ("nobody", "__proto__"):
            assert f"no models '{name}'; this server has a, b" in browser.run(status("text"))


def test_the_page_asks_for_the_token_and_works_below_a_path(browser, service):
    access = Access(token="s3cret", hosts=LOCAL_HOSTS, root_path="/unclip")
    with serving(service, access=access) as token_client:
        browser.open(f"{token_client.url}/unclip")
        browser.wait("document.querySelector('#token')?.open")
        browser.type("#token-value", "wrong")
        browser.click("#token button")
        browser.wait("document.querySelector('#token').open")
        browser.run("document.querySelector('#token-value').value = 's3cret'")
        browser.click("#token button")
        browser.wait("document.querySelector('#go-text') !== null")
        browser.open("about:blank")
        browser.open(f"{token_client.url}/unclip/#token=s3cret")
        browser.wait("document.querySelector('#go-text') !== null")
        assert "s3cret" not in browser.run("location.href")


def test_the_theme_is_kept_and_a_phone_shows_one_column(page, client):
    before = page.run("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    after = page.run("getComputedStyle(document.body).backgroundColor")
    assert before != after
    page.send("Emulation.setDeviceMetricsOverride",
              width=390, height=800, deviceScaleFactor=2, mobile=True)  # fmt: skip
    try:
        page.open("about:blank")
        page.open(f"{client.url}/")
        page.wait("document.querySelector('#go-text') !== null")
        assert page.run("getComputedStyle(document.body).backgroundColor") == after
        assert page.run("document.documentElement.scrollWidth") <= 390
        columns = page.run(
            "getComputedStyle(document.querySelector('#panel-text')).gridTemplateColumns"
        )
        assert len(columns.split()) == 1, json.dumps(columns)
    finally:
        page.send("Emulation.setDeviceMetricsOverride",
                  width=1200, height=900, deviceScaleFactor=1, mobile=False)  # fmt: skip
