"""The page, in a real Chromium: with mouse and keyboard, on a phone, with nothing from elsewhere."""

import base64
import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]
QUESTION = "What colour is the frog?"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--no-proxy-server",
                "--use-fake-ui-for-media-stream",  # a microphone that beeps
                "--use-fake-device-for-media-stream",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def asked():
    """Addresses that the page asked."""
    return []


@pytest.fixture
def problems():
    """What the browser complained of, which is nothing."""
    found = []
    yield found
    assert not found


@pytest.fixture
def page(browser, frogs, asked, problems, request):
    yield from opened(browser, frogs, asked, problems, request)


@pytest.fixture
def guarded_page(browser, guarded, asked, problems, request):
    yield from opened(browser, guarded, asked, problems, request)


def opened(browser, url, asked, problems, request):
    phone = request.node.get_closest_marker("phone") is not None
    context = browser.new_context(viewport={"width": 360, "height": 740} if phone else None, has_touch=phone)
    page = context.new_page()
    page.on("request", lambda one: asked.append(one.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.goto(url + "/")
    playwright.expect(page.locator("#about")).to_contain_text(", bundle")
    yield page
    context.close()


@pytest.fixture
def files(tmp_path, png, wav):
    (tmp_path / "frog.png").write_bytes(png)
    (tmp_path / "frog.wav").write_bytes(wav)
    return tmp_path


def wait(page):
    playwright.expect(page.locator("#ask")).to_be_enabled(timeout=20_000)
    playwright.expect(page.locator("#result")).to_be_visible()


def test_a_question_about_a_picture_and_speech_is_answered(page, files, http, asked):
    page.set_input_files("#picture-file", files / "frog.png")
    page.set_input_files("#speech-file", files / "frog.wav")
    playwright.expect(page.locator("#speech-clear")).to_be_visible()
    before = page.evaluate("document.getElementById('picture').toDataURL()")
    page.fill("#question", QUESTION)
    page.click("#ask")
    wait(page)
    sent = {
        "question": QUESTION,
        "image": base64.b64encode((files / "frog.png").read_bytes()).decode(),
        "speech": base64.b64encode((files / "frog.wav").read_bytes()).decode(),
    }
    expected = http.post("/v1/answer", json=sent).json()
    assert page.text_content("#answer").strip() == expected["answer"]
    shares = [float(text.removesuffix(" %")) for text in page.locator("#weights output").all_text_contents()]
    assert shares == pytest.approx([100 * one for one in expected["weights"].values()], abs=0.06)
    assert page.evaluate("document.getElementById('picture').toDataURL()") != before  # with attention
    near = http.post("/v1/search", json={"image": sent["image"], "top_k": 5}).json()["results"]
    lines = page.locator("#neighbours li").all_text_contents()
    assert [line.split("0.")[0].split("1.")[0] for line in lines] == [one["caption"] for one in near]
    assert page.locator("#timings output").count() == 5
    assert all(url.startswith((str(http.base_url), "data:", "blob:")) for url in asked)


def test_the_verdict_is_shown(guarded_page, files, problems):
    page = guarded_page
    page.fill("#question", QUESTION)
    page.click("#ask")
    wait(page)
    playwright.expect(page.locator("#verdict")).to_have_text("Flagged:")
    playwright.expect(page.locator("#judgements li")).to_contain_text("answer: offensive")
    page.set_input_files("#picture-file", files / "frog.png")
    page.fill("#question", "How do I hurt it?")
    page.click("#ask")
    playwright.expect(page.locator("#problem")).to_contain_text("picture and words together: cruelty")
    assert "400" in problems.pop()


def test_without_moderation_there_is_no_verdict(page):
    page.fill("#question", QUESTION)
    page.click("#ask")
    wait(page)
    playwright.expect(page.locator("#moderation-part")).to_be_hidden()


def test_all_of_it_works_by_keyboard(page, files):
    page.keyboard.press("Tab")
    reached = []
    for _ in range(8):
        reached.append(page.evaluate("document.activeElement.id"))
        page.keyboard.press("Tab")
    assert {"picture-file", "speech-file", "record", "question", "ask"} <= set(reached)
    page.focus("#question")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    wait(page)
    assert page.text_content("#answer").strip()


@pytest.mark.phone
def test_on_a_phone_nothing_is_cut_off(page, files):
    page.set_input_files("#picture-file", files / "frog.png")
    page.fill("#question", QUESTION)
    page.tap("#ask")
    wait(page)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    box = page.locator("#ask").bounding_box()
    assert box["height"] >= 36


def test_speech_is_recorded_in_the_page(page):
    page.click("#record")
    playwright.expect(page.locator("#record")).to_have_text("Stop")
    page.wait_for_timeout(700)
    page.click("#record")
    playwright.expect(page.locator("#speech-clear")).to_be_visible(timeout=10_000)
    page.fill("#question", QUESTION)
    with page.expect_response("**/v1/answer") as answered:
        page.click("#ask")
    wait(page)
    assert answered.value.json()["weights"]["speech"] > 0
    assert answered.value.json()["attention"]["speech"]


def test_a_picture_is_dropped_and_removed(page, png):
    page.evaluate(
        """(data) => {
            const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
            const event = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
            document.getElementById("picture-drop").dispatchEvent(event);
        }""",
        base64.b64encode(png).decode(),
    )
    canvas = page.locator("#picture")
    playwright.expect(canvas).to_have_attribute("aria-label", "The picture dropped.png")
    page.click("#picture-clear")
    playwright.expect(canvas).to_be_hidden()


def test_what_is_wrong_is_said_in_the_page(page, files):
    page.click("#ask")
    playwright.expect(page.locator("#problem")).to_have_text("Type a question, or give a picture or speech.")
    (files / "no.png").write_text("no picture")
    page.set_input_files("#picture-file", files / "no.png")
    playwright.expect(page.locator("#problem")).to_contain_text("no.png is no picture")
    page.fill("#question", QUESTION)
    page.click("#ask")
    wait(page)
    playwright.expect(page.locator("#problem")).to_be_hidden()


def test_nothing_else_may_run_in_the_page(http, page, problems):
    assert "script-src 'sha256-" in http.get("/").headers["content-security-policy"]
    ran = page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            const refused = new Promise((done) =>
                document.addEventListener("securitypolicyviolation", () => done(true), { once: true }));
            document.body.append(script);
            return refused.then(() => window.ran === undefined);
        }"""
    )
    assert ran
    assert "Content Security Policy" in problems.pop()
