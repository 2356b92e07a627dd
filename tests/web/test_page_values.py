"""What the page does to values: nothing that was not asked for, and nothing is lost when something goes wrong."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import Page
from nodes import RunningNode
from selenium.webdriver.common.keys import Keys

import keyva


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with RunningNode(tmp_path_factory.mktemp("values"), "--http=127.0.0.1:0", "--readers=0") as running:
        yield running


@contextmanager
def network(page: Page, *, offline: bool = False, upload: int = -1) -> Iterator[None]:
    """Let the browser have no network, or a slow one (bytes a second)."""
    page.command("Network.enable")
    usual = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.command("Network.emulateNetworkConditions", **{**usual, "offline": offline, "uploadThroughput": upload})
    try:
        yield
    finally:
        page.command("Network.emulateNetworkConditions", **usual)


def delete(page: Page, name: str) -> None:
    page.click("#first")
    page.choose(name)
    page.click("#delete")
    page.dialog("delete")
    page.find(".toast button")


class TestUndo:
    def test_an_undo_that_fails_can_be_tried_again(self, page: Page, db: keyva.Client) -> None:
        db.put("dear", "precious", content_type="text/x-dear")
        delete(page, "dear")
        with network(page, offline=True):
            for _ in range(2):
                page.click(".toast button")
                page.wait_text(".toast.lasting", "dear is not back: The server cannot be reached.")
        assert not db.exists("dear")
        page.click(".toast.lasting button")
        page.wait(lambda: db.get_typed("dear") == keyva.Typed(b"precious", "text/x-dear"), "it is back")
        page.wait_text("#toasts", "dear is back.")
        page.wait(lambda: page.has("#health.good"), "it is connected")
        assert all("net::ERR_" in text for text in page.complaints())

    def test_an_undo_that_was_made_without_an_answer_is_no_conflict(self, page: Page, db: keyva.Client) -> None:
        db.put("k", "same", content_type="text/plain")
        delete(page, "k")
        db.put("k", "same", content_type="text/plain")
        page.click(".toast button")
        page.wait_text("#toasts", "k is back.")

    def test_what_cannot_be_put_back_can_be_downloaded(self, page: Page, db: keyva.Client) -> None:
        db.put("k.txt", "old")
        delete(page, "k.txt")
        db.put("k.txt", "new")
        page.click(".toast button")
        page.wait_text(".toast.lasting", "exists again already")
        page.click(".toast.lasting button")
        target = page.downloads / "k.txt"
        page.wait(lambda: target.exists() and target.read_bytes() == b"old", "the file is there")

    def test_a_type_that_was_not_kept_is_not_kept_afterwards(self, page: Page, db: keyva.Client) -> None:
        db.put("plain", "hello")
        delete(page, "plain")
        page.click(".toast button")
        page.wait(lambda: db.get_typed("plain") == keyva.Typed(b"hello", None), "it is the same entry again")
        page.choose("plain")
        page.find("#text").send_keys("!")
        page.click("#save")
        page.wait(lambda: db.get_typed("plain") == keyva.Typed(b"hello!", None), "saving keeps none either")
        page.wait(lambda: not page.find("#save").is_enabled(), "saved")
        page.fill("#type", "text/x-mine")
        page.click("#retype")
        page.wait(lambda: db.get_typed("plain") == keyva.Typed(b"hello!", "text/x-mine"), "a type that was given is kept")
        page.wait(lambda: page.value("#type") == "text/x-mine", "and shown")
        page.fill("#type", "")
        page.click("#retype")
        page.wait(lambda: db.get_typed("plain") == keyva.Typed(b"hello!", None), "and forgotten when it is cleared")


class TestCancel:
    def test_a_cancelled_upload_writes_nothing(self, page: Page, db: keyva.Client, tmp_path: Path) -> None:
        db.put("file", "old")
        (tmp_path / "file").write_bytes(b"x" * 1_000_000)
        with network(page, upload=200_000):
            page.driver.find_element("id", "file").send_keys(str(tmp_path / "file"))
            page.click("#upload-over")
            page.dialog("upload")
            page.wait(lambda: page.script("return document.querySelector('progress').value") > 0, "a part is sent")
            page.dialog("cancel")
            page.wait_no_dialog()
            page.wait_text("#toasts", "Cancelled while it was being written: file may have the new value.")
        (tmp_path / "other").write_bytes(b"y" * 1_000_000)
        page.driver.find_element("id", "file").send_keys(str(tmp_path / "other"))
        page.dialog("upload")
        page.wait(lambda: page.text("#open-key") == "other", "another upload is through")
        assert db.get("file") == b"old"
        assert "Uploaded file" not in page.text("#toasts")

    def test_a_new_key_that_is_cancelled_may_be_there_and_the_page_says_so(self, node: RunningNode, page: Page, db: keyva.Client) -> None:
        page.click("#new")
        page.fill("#new-key", "perhaps")
        pid = node.pid_of("writer")
        os.kill(pid, signal.SIGSTOP)
        try:
            page.dialog("make")
            sent = "return performance.getEntriesByType('resource').length"
            assert page.script(sent) >= 0
            page.find("dialog").send_keys(Keys.ESCAPE)
            page.wait_no_dialog()
            page.wait_text("#toasts", "perhaps may have the new value")
            assert page.text("#open-key") == ""
        finally:
            os.kill(pid, signal.SIGCONT)
        page.wait(lambda: page.has("#health.good"), "the writer is back")

    def test_a_file_goes_without_its_type_when_that_is_cleared(self, page: Page, db: keyva.Client) -> None:
        page.drop({"picture.png": ("image/png", "no picture")})
        page.fill("#upload-type", "")
        page.dialog("upload")
        page.wait(lambda: db.exists("picture.png") and db.get_typed("picture.png") == keyva.Typed(b"no picture", None), "none is kept")


class TestText:
    def test_a_byte_order_mark_is_kept(self, page: Page, db: keyva.Client) -> None:
        db.put("bom", b"\xef\xbb\xbfhello", content_type="text/plain")
        page.click("#first")
        page.choose("bom")
        page.find("#text").send_keys("!")
        page.click("#save")
        page.wait(lambda: db.get("bom") == b"\xef\xbb\xbfhello!", "the mark is there")

    def test_typing_goes_on_after_saving_by_the_keyboard(self, page: Page, db: keyva.Client) -> None:
        db.put("note", "ad")
        page.click("#first")
        page.choose("note")
        page.find("#text").send_keys(Keys.HOME, Keys.ARROW_RIGHT, "b", Keys.CONTROL, "s")
        page.wait(lambda: db.get("note") == b"abd", "it is saved")
        page.wait(lambda: not page.find("#save").is_enabled() and page.focused("#text"), "the text has the focus again")
        page.driver.switch_to.active_element.send_keys("c")
        assert page.value("#text") == "abcd", "at the same place"

    @pytest.mark.parametrize(
        ("text", "laid_out"),
        [
            ('{"id":12345678901234567890,"x":1.0,"a":1,"a":2}', '{\n  "id": 12345678901234567890,\n  "x": 1.0,\n  "a": 1,\n  "a": 2\n}\n'),
            (
                '[1E400, -0, "\\u00e9 { \\" , ]", [ ], { }, [[null]]]',
                '[\n  1E400,\n  -0,\n  "\\u00e9 { \\" , ]",\n  [],\n  {},\n  [\n    [\n      null\n    ]\n  ]\n]\n',
            ),
            ("\ufeff[true]", "\ufeff[\n  true\n]\n"),
            (' "a  b" ', '"a  b"\n'),
        ],
    )
    def test_json_is_laid_out_without_changing_a_token(self, page: Page, db: keyva.Client, text: str, laid_out: str) -> None:
        db.put("doc", text, content_type="application/json")
        page.click("#first")
        page.choose("doc")
        page.click("#format")
        page.wait(lambda: page.value("#text") == laid_out, "it is laid out")
        page.click("#format")
        assert page.value("#text") == laid_out, "once more changes nothing"

    def test_deep_json_is_laid_out_within_reason(self, page: Page) -> None:
        deep = "[" * 5000 + "]" * 5000
        laid_out = page.script("return import('/static/json.js').then((module) => module.layOut(arguments[0]))", deep)
        assert json.loads(laid_out[: laid_out.index("]")].replace("\n", "").replace(" ", "").replace("[", "") or "0") == 0
        assert "".join(laid_out.split()) == deep
        assert len(laid_out) < 250 * len(deep)


class TestLongKeys:
    @pytest.mark.parametrize("width", [1280, 390])
    @pytest.mark.parametrize("length", [100, 3000, 60_000])
    def test_the_panel_the_question_and_undo_are_in_sight(self, page: Page, db: keyva.Client, width: int, length: int) -> None:
        name = "L" * length
        db.put(name, "long", content_type="text/plain")
        page.resize(width, 800)
        page.open(f"#/key/{name}")
        page.wait(lambda: page.text("#open-key") == name and page.has("#text"), "it is open")
        assert page.inside("#delete") and page.inside("#text") and page.inside("#save")
        page.click("#delete")
        page.find("dialog")
        assert page.inside("dialog h2") and page.inside("dialog p") and page.inside("dialog [data-action=delete]")
        assert page.script("const d = document.querySelector('dialog'); return d.scrollWidth <= d.clientWidth")
        page.dialog("delete")
        page.find(".toast button")
        assert page.inside(".toast") and page.inside(".toast button")
        page.click(".toast button")
        page.wait(lambda: db.get(name) == b"long", "it is back")
        page.open(f"#/key/{name}")
        page.wait(lambda: page.has("#text"), "it is open again")
        page.find("#text").send_keys("!")
        page.click("#save")
        page.find(".toast")
        assert page.inside("#save") and page.inside("#text"), "a message covers nothing that is pressed"


class TestLeaving:
    def test_one_question_is_asked_however_often_one_goes_back(self, page: Page, db: keyva.Client) -> None:
        db.put_many({"a": "1", "b": "2", "c": "3"})
        page.click("#first")
        for name in ("a", "b", "c"):
            page.choose(name)
        page.fill("#text", "typed")
        page.script("history.back()")
        page.find("dialog")
        page.script("history.back()")
        page.wait(lambda: page.driver.current_url.endswith("#/key/a"), "the address is two behind")
        assert page.script("return document.querySelectorAll('dialog').length") == 1
        page.dialog("cancel")
        page.wait_no_dialog()
        page.wait(lambda: page.driver.current_url.endswith("#/key/c"), "the address is that of the key that is shown")
        assert page.value("#text") == "typed"
        page.go("#/key/b")
        page.find("dialog")
        page.dialog("discard")
        page.wait(lambda: page.text("#open-key") == "b" and page.value("#text") == "2", "the other is open")

    def test_escape_stays_with_the_figures(self, page: Page, db: keyva.Client) -> None:
        db.put("a", "1")
        page.open("#/key/a")
        page.wait(lambda: page.has("#text"), "it is open")
        page.go("#/live")
        page.find("#live table")
        page.find("body").send_keys(Keys.ESCAPE)
        page.go("#/key/a")
        page.wait(lambda: page.has("#text") and page.driver.current_url.endswith("#/key/a"), "the key is still open")

    def test_at_phone_width_the_focus_goes_along(self, page: Page, db: keyva.Client) -> None:
        db.put_many({"a": "1", "b": "2"})
        page.resize(390, 844)
        page.open()
        page.wait(lambda: page.keys() == ["a", "b"], "keys are shown")
        page.find("#list").send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ENTER)
        page.wait(lambda: page.text("#open-key") == "b" and page.focused("#open-key"), "the key has the focus")
        page.click(".back")
        page.wait(lambda: page.focused("#list") and page.text("#list li.active .name") == "b", "its row has it again")
