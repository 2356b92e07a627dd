"""The page in a real browser, on a real node: every action, both widths, both themes."""

from __future__ import annotations

import io
import os
import signal
import struct
import wave
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, axe_source, opened
from nodes import RunningNode, eventually
from selenium.webdriver.common.keys import Keys

import keyva


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with RunningNode(tmp_path_factory.mktemp("page"), "--http=127.0.0.1:0", "--readers=0") as running:
        yield running


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x20\x60\xff" * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def wav() -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(bytes(16000))
    return target.getvalue()


class TestKeys:
    def test_an_empty_store_says_what_to_do_and_a_first_key_is_made(self, page: Page, db: keyva.Client) -> None:
        page.wait_text("#list-note", "The store is empty")
        page.click("#new")
        page.fill("#new-key", "first/key")
        page.fill("#new-value", "hello")
        page.dialog("make")
        page.wait(lambda: page.text("#open-key") == "first/key" and page.value("#text") == "hello", "the new key is open")
        assert page.keys() == ["first/key"]
        assert db.get_typed("first/key") == keyva.Typed(b"hello", None)
        page.wait_text("#list-note", "1 key")

    def test_a_key_that_exists_is_not_made_again(self, page: Page, db: keyva.Client) -> None:
        db.put("a", "1")
        page.click("#new")
        page.fill("#new-key", "a")
        page.dialog("make")
        page.wait_text("dialog .problem", "a exists already")
        page.fill("#new-key", "zz")
        page.click("#new-hex")
        page.dialog("make")
        page.wait_text("dialog .problem", "not hexadecimal")
        page.fill("#new-key", "00 ff")
        page.dialog("make")
        page.wait_no_dialog()
        page.wait(lambda: db.get(b"\x00\xff") == b"", "the key of two bytes is there")
        assert db.get("a") == b"1"

    def test_keys_are_found_by_prefix_as_one_types(self, page: Page, db: keyva.Client) -> None:
        db.put_many({"user/1": "a", "user/2": "b", "üser": "c", "visit": "d"})
        page.click("#first")
        page.wait(lambda: page.keys() == ["user/1", "user/2", "visit", "üser"], "all keys are shown")
        page.fill("#prefix", "us")
        page.wait(lambda: page.keys() == ["user/1", "user/2"], "those with the prefix are shown")
        page.wait_text("#list-note", "2 keys begin with us")
        page.fill("#prefix", "nobody")
        page.wait_text("#list-note", "No keys begin with nobody")
        page.fill("#prefix", "ü")
        page.wait(lambda: page.keys() == ["üser"], "letters of more bytes work too")
        page.fill("#prefix", "")
        page.wait(lambda: len(page.keys()) == 4, "all are shown again")

    def test_thousands_of_keys_pass_by_in_both_directions_and_few_are_held(self, page: Page, db: keyva.Client) -> None:
        names = [f"{number:06d}" for number in range(3000)]
        db.put_many((name, "v") for name in names)
        page.click("#first")
        page.wait_text("#list-note", "3,000 keys")
        seen: set[str] = set()

        def scroll(to: str, until: str) -> None:
            def step() -> bool:
                shown = page.keys()
                seen.update(shown)
                at = names.index(shown[0])
                assert shown == names[at : at + len(shown)], "no key is missing or twice"
                assert len(shown) <= 500
                page.script(f"document.querySelector('#list').scrollTop = {to}")
                return until in shown

            page.wait(step, f"{until} has come")

        scroll("1e9", names[-1])
        assert seen == set(names)
        seen.clear()
        scroll("0", names[0])
        assert seen == set(names)
        page.click("#last")
        page.wait(lambda: page.keys()[-1:] == names[-1:], "the last keys are shown")
        assert len(page.keys()) <= 500
        page.click("#first")
        page.wait(lambda: page.keys()[:1] == names[:1], "the first keys are shown")

    def test_the_keyboard_does_it_all(self, page: Page, db: keyva.Client) -> None:
        db.put_many((f"{number:04d}", f"value {number}") for number in range(300))
        page.click("#first")
        page.wait(lambda: len(page.keys()) >= 100, "keys are shown")
        body = page.find("body")
        body.send_keys("/")
        page.wait(lambda: page.script("return document.activeElement.id") == "prefix", "the search has the focus")
        active = page.driver.switch_to.active_element
        active.send_keys(Keys.ARROW_DOWN)
        listbox = page.find("#list")
        listbox.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ENTER)
        page.wait(lambda: page.value("#text") == "value 2", "the third key is open")
        listbox.send_keys(Keys.END)
        page.wait(lambda: page.text("#list li.active .name") == "0299", "the last key is marked")
        listbox.send_keys(Keys.ENTER)
        page.wait(lambda: page.value("#text") == "value 299", "it is open")
        listbox.send_keys(Keys.HOME)
        page.wait(lambda: page.text("#list li.active .name") == "0000", "the first key is marked")
        listbox.send_keys(Keys.ESCAPE)
        page.wait(lambda: not page.has("#text"), "it is closed")

    def test_names_and_values_are_never_markup(self, page: Page, db: keyva.Client) -> None:
        evil = "<img src=x onerror=\"document.title='bad'\">"
        names = [evil, "..", ".", "a/../b", "line\nbreak", "per%cent?#"]
        db.put_many({name: f"<script>document.title = 'bad'</script>{name}" for name in names})
        db.put(b"\xff\x00", b"raw")
        page.click("#first")
        page.wait(lambda: len(page.keys()) == 7, "all are shown")
        for name in names:
            page.choose(name.replace("\n", "\\u000a"))
            page.wait(lambda name=name: page.value("#text").endswith(name), f"the value of {name!r} is shown as text")
        page.choose("0xff00")
        page.wait(lambda: page.value("#text") == "raw", "a key of any bytes is opened")
        assert page.driver.title == "keyva"


class TestValues:
    def test_text_is_edited_and_saved(self, page: Page, db: keyva.Client) -> None:
        db.put("note", "first\nsecond", content_type="text/markdown")
        page.click("#first")
        page.choose("note")
        assert not page.find("#save").is_enabled()
        page.fill("#text", "changed")
        page.click("#save")
        page.wait(lambda: db.get_typed("note") == keyva.Typed(b"changed", "text/markdown"), "the value was saved")
        page.wait(lambda: page.value("#text") == "changed" and not page.find("#save").is_enabled(), "there is nothing left to save")
        page.find("#text").send_keys("!")
        page.find("#text").send_keys(Keys.CONTROL, "s")
        page.wait(lambda: db.get("note") == b"changed!", "the keyboard saves too")

    def test_leaving_what_was_not_saved_asks(self, page: Page, db: keyva.Client) -> None:
        db.put_many({"a": "1", "b": "2"})
        page.click("#first")
        page.choose("a")
        page.fill("#text", "typed")
        page.script("document.querySelectorAll('#list li')[1].click()")
        page.find("dialog")
        page.find("body").send_keys(Keys.ESCAPE)
        page.wait_no_dialog()
        assert page.value("#text") == "typed"
        page.script("document.querySelectorAll('#list li')[1].click()")
        page.dialog("discard")
        page.wait(lambda: page.value("#text") == "2", "the other key is open")

    def test_json_is_checked_and_formatted(self, page: Page, db: keyva.Client) -> None:
        db.put("doc", '{"a": [1, 2]}', content_type="application/json")
        page.click("#first")
        page.choose("doc")
        page.click("#format")
        page.wait(lambda: page.value("#text") == '{\n  "a": [\n    1,\n    2\n  ]\n}\n', "it is laid out")
        page.fill("#text", '{"a": 1,}')
        page.wait_text("#text-problem", "Not valid JSON")
        page.wait_text("#text-problem", "line 1")
        assert page.find("#text").get_attribute("aria-invalid") == "true"
        page.click("#save")
        page.find("dialog")
        page.find("body").send_keys(Keys.ESCAPE)
        page.wait_no_dialog()
        page.fill("#text", '{"a": 2}')
        page.click("#save")
        page.wait(lambda: db.get("doc") == b'{"a": 2}', "it was saved")

    def test_images_are_seen_and_audio_is_played(self, page: Page, db: keyva.Client) -> None:
        db.put("picture", png(40, 30), content_type="image/png")
        db.put("sound", wav(), content_type="audio/wav")
        page.click("#first")
        page.choose("picture")
        page.wait(
            lambda: (
                page.script("const i = document.querySelector('.media img'); return i && [i.naturalWidth, i.naturalHeight]") == [40, 30]
            ),
            "shown",
        )
        page.choose("sound")
        page.wait(lambda: page.script("return document.querySelector('audio')?.duration") == 1, "its length is known")
        page.script("document.querySelector('audio').play()")
        page.wait(lambda: page.script("return document.querySelector('audio').currentTime") > 0, "it plays")
        page.click("#as-hex")
        page.wait_text("#hex", "52 49 46 46")

    def test_other_bytes_are_hexadecimal_and_large_ones_come_in_parts(self, page: Page, db: keyva.Client) -> None:
        data = bytes(range(256)) * 80_000  # 20 MB
        db.put("large", data)
        page.click("#first")
        page.choose("large")
        page.wait_text("#hex", "00000010  10 11 12 13")
        page.wait_text(".foot", "16 kB of 20 MB shown")
        assert page.script("return performance.getEntriesByType('resource').every((entry) => entry.encodedBodySize < 100000)")
        page.click("#more")
        page.wait_text("#hex", "00004000  00 01 02 03")
        page.wait_text(".foot", "33 kB of 20 MB shown")

    def test_the_content_type_is_shown_and_changed(self, page: Page, db: keyva.Client) -> None:
        db.put("t", '{"a": 1}')
        page.click("#first")
        page.choose("t")
        assert page.value("#type").startswith("text/plain")
        page.fill("#type", "application/json")
        page.click("#retype")
        page.wait(lambda: db.get_typed("t") == keyva.Typed(b'{"a": 1}', "application/json"), "the type was changed")
        page.find("#format")

    def test_a_value_is_downloaded(self, page: Page, db: keyva.Client) -> None:
        db.put("reports/2026.bin", os.urandom(100_000))
        page.click("#first")
        page.choose("reports/2026.bin")
        page.click("#download")
        target = page.downloads / "2026.bin"
        page.wait(lambda: target.exists() and target.read_bytes() == db.get("reports/2026.bin"), "the file is there")


class TestUploads:
    def test_chosen_files_become_keys(self, page: Page, db: keyva.Client, tmp_path: Path) -> None:
        (tmp_path / "one.txt").write_text("one")
        (tmp_path / "two.png").write_bytes(png(3, 3))
        page.fill("#prefix", "up/")
        page.wait_text("#list-note", "No keys begin with up/")
        page.script("document.querySelector('#file').hidden = false")
        page.driver.find_element("id", "file").send_keys(f"{tmp_path}/one.txt\n{tmp_path}/two.png")
        page.wait(lambda: page.value("#new-key") == "up/one.txt", "the first is asked for")
        page.dialog("upload")
        page.wait(lambda: page.value("#new-key") == "up/two.png", "the second is asked for")
        page.dialog("upload")
        page.wait(lambda: db.get_typed("up/two.png") == keyva.Typed(png(3, 3), "image/png"), "both are there")
        assert db.get_typed("up/one.txt") == keyva.Typed(b"one", "text/plain")
        page.find(".media img")

    def test_a_dropped_file_replaces_a_key_only_when_told(self, page: Page, db: keyva.Client) -> None:
        db.put("data.csv", "old")
        page.drop({"data.csv": ("text/csv", "a,b\n1,2\n")})
        page.wait(lambda: page.value("#new-key") == "data.csv", "its name is proposed")
        page.dialog("upload")
        page.wait_text("dialog .problem", "data.csv exists already")
        assert db.get("data.csv") == b"old"
        page.click("#upload-over")
        page.dialog("upload")
        page.wait(lambda: db.get_typed("data.csv") == keyva.Typed(b"a,b\n1,2\n", "text/csv"), "it was replaced")
        page.wait(lambda: page.value("#text") == "a,b\n1,2\n", "it is open")


class TestDeleting:
    def test_a_delete_asks_and_can_be_undone(self, page: Page, db: keyva.Client) -> None:
        db.put("dear", b"\x00\x01", content_type="application/x-dear")
        page.click("#first")
        page.choose("dear")
        page.click("#delete")
        page.find("dialog").send_keys(Keys.ESCAPE)
        page.wait_no_dialog()
        assert db.exists("dear")
        page.click("#delete")
        page.dialog("delete")
        page.wait(lambda: not db.exists("dear"), "it is deleted")
        page.wait(lambda: page.keys() == [], "it has left the list")
        page.click(".toast button")
        page.wait(lambda: db.get_typed("dear") == keyva.Typed(b"\x00\x01", "application/x-dear"), "it is back with its type")
        page.wait(lambda: page.keys() == ["dear"], "it is back in the list")

    def test_undo_does_not_overwrite_what_came_meanwhile(self, page: Page, db: keyva.Client) -> None:
        db.put("k", "old")
        page.click("#first")
        page.choose("k")
        page.click("#delete")
        page.dialog("delete")
        page.wait(lambda: not db.exists("k"), "it is deleted")
        db.put("k", "somebody else's")
        page.click(".toast button")
        page.wait(lambda: "exists again already" in page.text("#toasts"), "the user is told")
        assert db.get("k") == b"somebody else's"

    def test_all_keys_with_a_prefix_go_after_their_number_was_confirmed(self, page: Page, db: keyva.Client) -> None:
        db.put_many({f"tmp/{number}": "x" for number in range(1500)})
        db.put("keep", "1")
        page.fill("#prefix", "tmp/")
        page.wait_text("#list-note", "1,500 keys begin with tmp/")
        page.click("#delete-all")
        page.wait_text("#how-many", "1,500 keys that begin with tmp/")
        page.fill("#confirm", "15")
        page.dialog("delete")
        page.wait_text("dialog .problem", "Type 1500 to confirm")
        db.put("tmp/new", "x")
        page.fill("#confirm", "1500")
        page.dialog("delete")
        page.wait_text("dialog .problem", "has changed meanwhile")
        page.wait_text("#how-many", "1,501 keys")
        assert page.text("#confirm-label") == "Type the number 1501 to confirm"
        assert len(list(db.iterator(prefix="tmp/"))) == 1501
        page.fill("#confirm", "1501")
        page.dialog("delete")
        page.wait(lambda: list(db.iterator(include_value=False)) == [b"keep"], "only they are gone")
        page.wait_text("#list-note", "No keys begin with tmp/")


class TestOthers:
    @pytest.mark.parametrize("width", [1280, 390])
    @pytest.mark.parametrize("choice", ["mine", "theirs"])
    def test_two_versions_are_shown_and_one_is_chosen(self, page: Page, db: keyva.Client, choice: str, width: int) -> None:
        db.put("shared", "base")
        page.resize(width, 800)
        page.click("#first")
        page.choose("shared")
        page.fill("#text", "from here")
        db.put("shared", "from elsewhere")
        page.click("#save")
        page.wait(lambda: "from here" in page.text(".versions") and "from elsewhere" in page.text(".versions"), "both are shown")
        assert db.get("shared") == b"from elsewhere"
        assert page.inside("dialog h2") and page.inside(f"dialog [data-action={choice}]"), "question and buttons are in sight"
        page.dialog(choice)
        wanted = "from here" if choice == "mine" else "from elsewhere"
        page.wait(lambda: db.get("shared") == wanted.encode() and page.value("#text") == wanted, "the chosen one counts")

    def test_a_change_by_others_is_noticed_while_the_key_is_open(self, page: Page, db: keyva.Client) -> None:
        db.put("open", "1")
        page.click("#first")
        page.choose("open")
        db.put("open", "2")
        page.wait(lambda: page.value("#text") == "2", "an untouched value follows")
        page.fill("#text", "typed")
        db.delete("open")
        page.wait_text("#changed", "Somebody else has deleted this key")
        assert page.value("#text") == "typed", "what was typed is left alone"


class TestLive:
    def test_figures_move_and_the_tree_is_drawn(self, page: Page, db: keyva.Client) -> None:
        page.go("#/live")
        page.wait(lambda: page.script("return document.querySelectorAll('#live tbody tr').length") == 5, "the processes are listed")
        db.flush()
        db.put_many({f"{number}": "x" * 1000 for number in range(2000)})
        page.wait(lambda: "2,000 entries, full at 67 MB" in page.text("#live"), "the memtable fills")
        db.flush()
        page.wait(
            lambda: page.script(
                "return [...document.querySelectorAll('.run')].some((run) => run.title.includes('2,000 entries in 1 file'))"
            ),
            "drawn",
        )
        db.compact_range()
        page.wait(
            lambda: page.script("return [...document.querySelectorAll('.level b')].map((b) => b.textContent)")[-1] != "Level 0",
            "it went down",
        )

    def test_a_killed_writer_is_shown_and_reading_goes_on(self, node: RunningNode, page: Page, db: keyva.Client) -> None:
        db.put("still", "here")
        page.click("#first")
        pid = node.pid_of("writer")
        os.kill(pid, signal.SIGSTOP)
        try:
            page.wait(lambda: page.has("#banner") and "Reading goes on" in page.text("#banner"), "the page says so")
            page.choose("still")
            page.wait(lambda: page.value("#text") == "here", "values are read")
        finally:
            os.kill(pid, signal.SIGCONT)
        page.wait(lambda: not page.has("#banner"), "it is over")
        os.kill(node.pid_of("writer"), signal.SIGKILL)
        page.go("#/live")
        page.wait(lambda: page.text('tr[data-role="writer"] td:last-child') != "0", "the restart is counted")
        page.wait(lambda: page.text('tr[data-role="writer"] td:nth-child(2)') == "running", "it runs again")
        db.put("after", "1")

    def test_a_killed_gateway_comes_back_and_so_does_the_page(self, node: RunningNode, page: Page, db: keyva.Client) -> None:
        os.kill(node.pid_of("web"), signal.SIGKILL)
        db.put("meanwhile", "1")
        eventually(lambda: page.keys() == ["meanwhile"], "the list has caught up")
        page.wait(lambda: page.has("#health.good"), "it is connected again")
        assert all("net::ERR_" in text for text in page.complaints())


class TestLooks:
    def test_the_theme_is_chosen_and_kept(self, page: Page) -> None:
        def background() -> str:
            return str(page.script("return getComputedStyle(document.body).backgroundColor"))

        light = background()
        page.resize(1280, 800, dark=True)
        dark = background()
        assert dark != light, "it follows the system"
        page.click("#theme")
        page.wait(lambda: page.text("#theme-text") == "Light" and background() == light, "light")
        page.click("#theme")
        page.resize(1280, 800)
        page.wait(lambda: page.text("#theme-text") == "Dark" and background() == dark, "dark")
        page.open()
        assert background() == dark
        page.click("#theme")
        assert page.text("#theme-text") == "System"

    def test_at_phone_width_one_thing_is_shown_at_a_time(self, page: Page, db: keyva.Client) -> None:
        db.put("k" * 300, "long")
        db.put("a", "1")
        page.resize(390, 844)
        page.open()
        page.choose("a")
        assert not page.has("#list")
        page.click(".back")
        page.find("#list")
        page.choose("k" * 300)
        for place in ("#/", "#/live"):
            page.go(place)
            assert page.script("return document.documentElement.scrollWidth") <= 390

    @pytest.mark.parametrize("width", [1280, 390])
    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    def test_axe_finds_nothing_serious(self, page: Page, db: keyva.Client, axe: str, width: int, dark: bool) -> None:
        db.put("doc", '{"a": 1}', content_type="application/json")
        db.put("picture", png(4, 4), content_type="image/png")
        db.put("bytes", bytes(100))
        page.resize(width, 800, dark=dark)
        page.open()
        page.wait(lambda: len(page.keys()) == 3, "keys are shown")
        found = {"keys": page.axe(axe)}
        for key in ("doc", "picture", "bytes"):
            page.go(f"#/key/{key}")
            page.wait(lambda key=key: page.text("#open-key") == key and page.has("#type"), f"{key} is open")
            found[key] = page.axe(axe)
        page.go("#/key/doc")
        page.wait(lambda: page.has("#format"), "the text is open")
        page.fill("#text", "{")
        found["invalid"] = page.axe(axe)
        page.click("#delete")
        page.find("dialog")
        found["dialog"] = page.axe(axe)
        page.find("body").send_keys(Keys.ESCAPE)
        page.wait_no_dialog()
        page.go("#/live")
        page.wait(lambda: page.has("#live table"), "the figures are there")
        found["live"] = page.axe(axe)
        assert {place: problems for place, problems in found.items() if problems} == {}


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return axe_source(tmp_path_factory.mktemp("axe"))


def test_a_server_with_a_token_asks_for_it_once(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("correct-horse-battery-staple\n")
    token.chmod(0o600)
    with RunningNode(tmp_path / "d", "--http=127.0.0.1:0", f"--http-token-file={token}", "--readers=0") as node:
        for page in opened(node.url):
            with keyva.open(node.directory) as db:
                db.put("secret", "1")
            page.driver.get(f"{node.url}/")
            page.fill("dialog input", "wrong")
            page.dialog("ok")
            page.wait_text("#refused", "The server has refused the token.")
            assert page.value("dialog input") == ""
            page.fill("dialog input", "correct-horse-battery-staple")
            page.dialog("ok")
            page.wait(lambda page=page: page.keys() == ["secret"], "the keys are shown")
            page.choose("secret")
            page.click("#download")
            page.wait(lambda page=page: (page.downloads / "secret").exists(), "downloads have the token, too")
            page.script("sessionStorage.setItem('keyva-token', 'stale')")
            page.drop({"late": ("text/plain", "1")})
            page.dialog("upload")
            page.wait_text("#refused", "The server has refused the token.")
            page.fill("dialog [name=token]", "correct-horse-battery-staple")
            page.dialog("ok")
            page.wait(lambda page=page: page.text("#open-key") == "late", "the upload goes on")
            page.driver.refresh()
            page.wait(lambda page=page: page.keys() == ["late", "secret"], "it is not asked for again")
