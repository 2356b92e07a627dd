"""The page's list of keys, with a real mouse: it stays where it is, and every key can be reached, seen and told from others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Page
from nodes import RunningNode
from selenium.webdriver.common.keys import Keys

import keyva


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with RunningNode(tmp_path_factory.mktemp("list"), "--http=127.0.0.1:0", "--readers=0") as running:
        yield running


def numbered(db: keyva.Client, count: int) -> None:
    db.put_many((f"{number:05d}", f"value {number}") for number in range(count))


def scroll_to(page: Page, name: str) -> None:
    """Scroll the list down until it holds a key, and some way up again, so that there is more above and below."""
    jump = "const list = document.querySelector('#list'); list.scrollTop = list.scrollHeight"
    page.wait(lambda: page.keys()[-1] >= name or page.script(jump), f"{name} has come")
    page.script("document.querySelector('#list').scrollTop -= 1000")
    page.wait(
        lambda: page.script("const l = document.querySelector('#list'); return l.scrollHeight - l.scrollTop > 1500"), "there is more below"
    )


def row_at(page: Page, x: int, y: int) -> str:
    return str(page.script("return document.elementFromPoint(...arguments).closest('li').querySelector('.name').textContent", x, y))


def place_of(page: Page, name: str) -> float:
    """Return where a key's row is in the window, in pixels."""
    rows = "[...document.querySelectorAll('#list li')]"
    row = f"{rows}.find((row) => row.querySelector('.name').textContent === arguments[0])"
    return float(page.script(f"return {row}?.getBoundingClientRect().top ?? -1", name))


class TestMouse:
    def test_the_first_click_in_a_scrolled_list_opens_the_row_under_the_pointer(self, page: Page, db: keyva.Client) -> None:
        numbered(db, 1000)
        page.click("#first")
        page.wait_text("#list-note", "1,000 keys")
        scroll_to(page, "00150")
        wanted = row_at(page, 200, 500)
        page.mouse(200, 500)
        page.wait(lambda: page.text("#open-key") == wanted and page.has("#text"), f"{wanted} is open")
        page.find("#list").send_keys(Keys.ARROW_DOWN, Keys.ENTER)
        page.wait(lambda: page.text("#open-key") == f"{int(wanted) + 1:05d}", "the keyboard goes on from there")
        page.fill("#prefix", "00")
        page.wait(lambda: page.keys()[:1] == ["00000"] and "begin with 00" in page.text("#list-note"), "another search")
        scroll_to(page, "00090")
        wanted = row_at(page, 200, 400)
        page.mouse(200, 400)
        page.wait(lambda: page.text("#open-key") == wanted, f"{wanted} is open")

    def test_the_keyboard_begins_with_the_first_key_that_is_seen(self, page: Page, db: keyva.Client) -> None:
        numbered(db, 300)
        page.click("#first")
        page.wait_text("#list-note", "300 keys")
        scroll_to(page, "00150")
        seen = row_at(page, 200, int(page.script("return document.querySelector('#list').getBoundingClientRect().top")) + 20)
        page.find("#delete-all").send_keys(Keys.TAB)
        page.wait(lambda: page.text("#list li.active .name") != "", "a key is marked")
        assert abs(int(page.text("#list li.active .name")) - int(seen)) <= 1


class TestRefresh:
    @pytest.mark.parametrize("width", [1280, 390])
    def test_the_list_stays_where_it_is_when_a_value_is_saved(self, page: Page, db: keyva.Client, width: int) -> None:
        numbered(db, 2000)
        page.resize(width, 800)
        page.open()
        page.wait(lambda: len(page.keys()) >= 100, "keys are shown")
        scroll_to(page, "01200")
        wanted = row_at(page, 200, 400)
        page.mouse(200, 400)
        page.wait(lambda: page.text("#open-key") == wanted and page.has("#text"), "it is open")
        place = place_of(page, wanted)
        page.find("#text").send_keys(" and more")
        page.click("#save")
        page.wait_text("#list li[aria-selected=true] .size", "19 B")
        assert abs(place_of(page, wanted) - place) <= 2
        page.wait(lambda: page.script("const l = document.querySelector('#list'); return l.scrollTop > 400"), "there is more above")
        page.click("#delete")
        following = f"{int(wanted) + 1:05d}"
        page.dialog("delete")
        page.wait(lambda: wanted not in (keys := page.keys()) and len(keys) > 100, "it has left the list")
        assert abs(place_of(page, following) - place) <= 2, "the next one has come up"

    def test_keys_that_come_above_are_shown_when_the_list_is_at_its_top(self, page: Page, db: keyva.Client) -> None:
        numbered(db, 3)
        page.click("#first")
        page.choose("00001")
        db.put("0", "before all others")
        page.find("#text").send_keys("!")
        page.click("#save")
        page.wait(lambda: page.keys() == ["0", "00000", "00001", "00002"], "all are shown")
        assert page.text("#list li.active .name") == "00001", "the mark stays on its key"


def test_keys_with_large_values_are_all_reached(page: Page, db: keyva.Client) -> None:
    names = [f"large{number}" for number in range(5)]
    for name in names:
        db.put(name, bytes(34_000_000))  # two fill a page of 64 MiB
    db.put("small", "1")
    page.click("#first")
    page.wait(lambda: page.keys() == [*names, "small"], "all are listed without scrolling")
    page.click("#last")
    page.wait(lambda: page.keys() == [*names, "small"], "from the end, too")


class TestStrangeKeys:
    def test_keys_that_read_the_same_look_different(self, page: Page, db: keyva.Client) -> None:
        pairs = {
            b"0xff00": "0xff00",
            b"\xff\x00": "0xff00",
            b"\\u000a": "\\u000a",
            b"\n": "\\u000a",
            b"(empty key)": "(empty key)",
            b"": "(empty key)",
        }
        for key in pairs:
            db.put(key, key)
        page.click("#first")
        page.wait(lambda: sorted(page.keys()) == sorted(pairs.values()), "all are shown")
        rows = page.script("return [...document.querySelectorAll('#list .name')].map((name) => name.innerHTML)")
        assert len(set(rows)) == len(pairs)
        page.go("#/key/%FF%00")
        page.find("#open-key .bytes")
        page.wait(lambda: page.has("#delete"), "it is open")
        page.click("#delete")
        page.find("dialog .key-name .bytes")
        hexadecimal = "getComputedStyle(document.querySelector('dialog .bytes'), '::before').content"
        assert "hex" in page.script(f"return {hexadecimal}")

    @pytest.mark.parametrize(
        ("key", "shown"),
        [
            (" a  b ", "\\u0020a  b\\u0020"),
            ("\ufeffa", "\\ufeffa"),
            ("a\u200bb", "a\\u200bb"),
            ("a\u00adb\u00a0c", "a\\u00adb\\u00a0c"),
            ("tab\there", "tab\\u0009here"),
            ("a\U000e0041", "a\\u{e0041}"),
            ("Grüße, мир, 世界 🙂", "Grüße, мир, 世界 🙂"),
        ],
    )
    def test_what_cannot_be_seen_is_made_visible(self, page: Page, db: keyva.Client, key: str, shown: str) -> None:
        db.put(key, key)
        page.click("#first")
        page.choose(shown)
        page.wait(lambda: page.value("#text") == key, "it is this key")
        assert page.script("return getComputedStyle(document.querySelector('#list .name')).whiteSpace") == "pre"

    def test_the_prefix_is_marked_in_a_key_with_blanks(self, page: Page, db: keyva.Client) -> None:
        db.put(" a  b", "1")
        page.fill("#prefix", " a ")
        page.wait(lambda: page.text("#list mark") == "\\u0020a ", "the prefix")
        assert page.keys() == ["\\u0020a  b"]

    def test_a_name_is_shortened_in_its_middle(self, page: Page) -> None:
        short = "return import('/static/format.js').then((format) => format.shortKey(new TextEncoder().encode(arguments[0])))"
        assert page.script(short, "a" * 80) == "a" * 80
        assert page.script(short, "a" * 500 + "z" * 500) == "a" * 48 + "…" + "z" * 32
        assert page.script(short, "\n" * 100) == "\\u000a" * 8 + "…" + "\\u000a" * 5
        assert page.script(short, "🙂" * 100) == "🙂" * 24 + "…" + "🙂" * 16
        assert len(page.script(short, "x" + "🙂" * 100)) <= 80
