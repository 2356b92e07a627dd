// The list of keys: a window of the key space that moves with the scroll position, page by page, in both directions.
//
// At most WINDOW_MAX keys are held, whatever the store holds; what leaves at one end is asked for again when one scrolls back.

import { json } from "./api.js";
import { byId, el, marked } from "./dom.js";
import { count, decode, encode, fromBase64, keyPieces, pieces, same, shortKey, size, toBase64 } from "./format.js";

const PAGE = 100;
const WINDOW_MAX = 500;
const NEAR_PX = 400;
const TYPING_MS = 120;

export class KeyList {
  /** `choose(key)` is called when the user picks a key. */
  constructor(choose) {
    this.choose = choose;
    this.list = byId("list");
    this.note = byId("list-note");
    this.prefix = new Uint8Array();
    this.rows = []; // { bytes, size, type, node }
    this.selected = null;
    this.active = -1;
    this.atStart = this.atEnd = true;
    this.loading = null;
    this.filling = -1;
    this.turn = 0;
    this.list.addEventListener("scroll", () => this.fill(), { passive: true });
    this.list.addEventListener("click", (event) => {
      const at = this.rows.findIndex((row) => row.node === event.target.closest("li"));
      if (at >= 0) this.pick(at);
    });
    this.list.addEventListener("keydown", (event) => this.key(event));
    // only for the keyboard: a mark scrolls, and between the two halves of a click the rows must stay where they are
    this.list.addEventListener("focus", () => { if (this.active < 0 && this.list.matches(":focus-visible")) this.mark(this.firstSeen()); });
    const field = byId("prefix");
    field.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.show(encode(field.value)), TYPING_MS);
    });
    field.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" && this.rows.length) {
        event.preventDefault();
        this.list.focus();
        if (this.active < 0) this.mark(this.firstSeen());
      } else if (event.key === "Enter" && this.rows.length) {
        event.preventDefault();
        this.pick(0);
      }
    });
  }

  /** Show the keys with a prefix, from the first on (or with `fromEnd` from the last). */
  async show(prefix = this.prefix, { fromEnd = false, again = false } = {}) {
    const turn = ++this.turn;
    this.prefix = prefix;
    let page;
    try {
      page = await this.ask(null, fromEnd);
    } catch (error) {
      if (turn === this.turn) this.note.textContent = error.message;
      return;
    }
    if (turn !== this.turn) return;
    if (fromEnd) page.keys.reverse();
    const marked = again ? this.rows[this.active]?.bytes : undefined;
    this.put(page.keys);
    this.atStart = fromEnd ? page.next === null : true;
    this.atEnd = fromEnd || page.next === null;
    this.list.scrollTop = fromEnd ? this.list.scrollHeight : 0;
    this.markAgain(marked);
    this.fill();
    this.total();
  }

  /** Hold these entries and no others; what is still being loaded for the others is dropped. */
  put(entries) {
    this.turn += 1;
    this.rows = entries.map((entry) => this.row(entry));
    this.list.replaceChildren(...this.rows.map((row) => row.node));
    this.loading = null;
    this.unmark();
    this.tell();
  }

  /** Load again what is shown now. The first key that is seen, or the one after it when it has gone, stays where it is. */
  async refresh() {
    const at = this.firstSeen();
    if (at < 0 || (this.atStart && this.list.scrollTop === 0)) return this.show(this.prefix, { again: true });
    const turn = ++this.turn;
    const { bytes, node } = this.rows[at];
    let before, after;
    try {
      [before, after] = await Promise.all([this.ask(toBase64(bytes), true, PAGE + 1), this.ask(toBase64(bytes), false)]);
    } catch (error) {
      if (turn === this.turn) this.note.textContent = error.message;
      return;
    }
    if (turn !== this.turn) return;
    if (!node.isConnected) return this.refresh(); // one has scrolled far away meanwhile
    const marked = this.rows[this.active]?.bytes;
    const above = before.keys.filter((entry) => !same(fromBase64(entry.key_base64), bytes)).reverse();
    const offset = this.offsetOf(node); // not sooner: one may have scrolled meanwhile
    this.put([...above, ...after.keys]);
    this.atStart = before.next === null;
    this.atEnd = after.next === null;
    const anchor = this.rows[Math.min(above.length, this.rows.length - 1)];
    if (anchor) this.list.scrollTop += this.offsetOf(anchor.node) - offset;
    this.markAgain(marked);
    this.fill();
    this.total();
  }

  /** How far below the upper edge of the list a row is. */
  offsetOf(node) {
    return node.getBoundingClientRect().top - this.list.getBoundingClientRect().top;
  }

  /** The first row of which more is seen than half; -1 when there is none. */
  firstSeen() {
    return this.rows.findIndex((row) => this.offsetOf(row.node) + row.node.offsetHeight / 2 >= 0);
  }

  ask(start, reverse, limit = PAGE) {
    const query = new URLSearchParams({ prefix_base64: toBase64(this.prefix), limit });
    if (start !== null) query.set("start_base64", start);
    if (reverse) query.set("reverse", "true");
    return json(`/api/keys?${query}`);
  }

  async total() {
    const turn = this.turn;
    this.count = null;
    try {
      const found = await json(`/api/count?${new URLSearchParams({ prefix_base64: toBase64(this.prefix) })}`);
      if (turn !== this.turn) return;
      this.count = found;
    } catch { /* the list itself says what is wrong */ }
    this.tell();
  }

  tell() {
    const of = this.prefix.length ? ` begin with ${shortKey(this.prefix)}` : "";
    byId("delete-all").disabled = this.rows.length === 0;
    if (!this.rows.length) this.note.textContent = this.prefix.length ? `No keys${of}.` : "The store is empty. Make a key, or drop a file here.";
    else if (this.count) this.note.textContent = `${this.count.complete ? "" : "More than "}${count(this.count.count)} key${this.count.count === 1 ? "" : "s"}${of}`;
    else this.note.textContent = "";
    byId("empty-text").textContent = this.rows.length || this.prefix.length ? "Choose a key to see its value, or make a new one." : "This store is empty. Make a first key, or drop a file.";
  }

  row(entry) {
    const bytes = fromBase64(entry.key_base64);
    const text = decode(bytes);
    const begin = decode(this.prefix);
    const name = el("span", { class: "name", title: shortKey(bytes) });
    if (begin && text?.startsWith(begin)) {
      const rest = text.slice(begin.length);
      name.append(el("mark", {}, ...marked(pieces(begin, { tail: !rest }))), ...marked(pieces(rest, { head: false })));
    } else name.append(...marked(keyPieces(bytes)));
    const chosen = this.selected !== null && same(bytes, this.selected);
    const node = el("li", { role: "option", id: "key-" + toBase64(bytes), "aria-selected": String(chosen), title: `${entry.content_type}` }, name, el("span", { class: "size" }, size(entry.size)));
    return { bytes, node };
  }

  /**
   * Load pages until the scroll position is near no end of the window that has more behind it. One page may not do: the server ends it early
   * when its values are large, and a list that has nothing to scroll asks for nothing more by itself.
   */
  async fill() {
    const turn = this.turn;
    if (this.filling === turn) return;
    this.filling = turn;
    for (let gained = true; gained && turn === this.turn;) {
      const { scrollTop, clientHeight, scrollHeight } = this.list;
      if (!this.atEnd && scrollTop + clientHeight > scrollHeight - NEAR_PX) gained = await this.load(1);
      else if (!this.atStart && scrollTop < NEAR_PX) gained = await this.load(-1);
      else gained = false;
    }
    if (this.filling === turn) this.filling = -1;
  }

  /** Load the next page at an end of the window. Gives whether there is more in it now. */
  async load(direction) {
    if (this.loading || !this.rows.length) return this.loading ?? false;
    const turn = this.turn;
    this.loading = (async () => {
      const edge = direction > 0 ? this.rows.at(-1) : this.rows[0];
      const others = (page) => page.keys.filter((entry) => !same(fromBase64(entry.key_base64), edge.bytes));
      let page = await this.ask(toBase64(edge.bytes), direction < 0, PAGE + 1);
      // the value at the edge may be so large that a page holds nothing besides
      if (!others(page).length && page.next !== null) page = await this.ask(page.next, direction < 0);
      if (turn !== this.turn) return false;
      const entries = others(page);
      const rows = entries.map((entry) => this.row(entry));
      if (direction > 0) {
        this.list.append(...rows.map((row) => row.node));
        this.rows.push(...rows);
        this.atEnd = page.next === null;
        this.trim(this.rows.splice(0, Math.max(0, this.rows.length - WINDOW_MAX)), true);
      } else {
        rows.reverse();
        const before = this.list.scrollHeight;
        this.list.prepend(...rows.map((row) => row.node));
        this.list.scrollTop += this.list.scrollHeight - before;
        this.rows.unshift(...rows);
        if (this.active >= 0) this.active += rows.length;
        this.atStart = page.next === null;
        this.trim(this.rows.splice(WINDOW_MAX), false);
      }
      return rows.length > 0;
    })();
    try {
      return await this.loading;
    } catch (error) {
      if (turn === this.turn) this.note.textContent = error.message;
      return false;
    } finally {
      if (turn === this.turn) this.loading = null;
    }
  }

  trim(gone, above) {
    if (!gone.length) return;
    const before = this.list.scrollHeight;
    for (const row of gone) row.node.remove();
    if (above) {
      this.list.scrollTop -= before - this.list.scrollHeight;
      this.atStart = false;
      if (this.active < gone.length) this.unmark();
      else this.active -= gone.length;
    } else {
      this.atEnd = false;
      if (this.active >= this.rows.length) this.unmark();
    }
  }

  async key(event) {
    const page = Math.max(1, Math.floor(this.list.clientHeight / 34) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
    if (event.key in steps) {
      event.preventDefault();
      if (this.active < 0) return this.mark(this.firstSeen());
      const wanted = this.active + steps[event.key];
      if (wanted >= this.rows.length && !this.atEnd) await this.load(1);
      if (wanted < 0 && !this.atStart) await this.load(-1);
      this.mark(Math.min(this.rows.length - 1, Math.max(0, this.active + steps[event.key])));
    } else if (event.key === "Home" || event.key === "End") {
      event.preventDefault();
      const toEnd = event.key === "End";
      if (toEnd ? !this.atEnd : !this.atStart) await this.show(this.prefix, { fromEnd: toEnd });
      this.mark(toEnd ? this.rows.length - 1 : 0);
    } else if ((event.key === "Enter" || event.key === " ") && this.active >= 0) {
      event.preventDefault();
      this.pick(this.active);
    }
  }

  mark(at, scroll = true) {
    this.unmark();
    const row = this.rows[at];
    if (!row) return;
    this.active = at;
    row.node.classList.add("active");
    if (scroll) row.node.scrollIntoView({ block: "nearest" });
    this.list.setAttribute("aria-activedescendant", row.node.id);
  }

  unmark() {
    this.rows[this.active]?.node.classList.remove("active");
    this.active = -1;
    this.list.removeAttribute("aria-activedescendant");
  }

  /** Mark a key that was marked before its row was made anew, without scrolling. */
  markAgain(bytes) {
    const at = bytes === undefined ? -1 : this.rows.findIndex((row) => same(row.bytes, bytes));
    if (at >= 0) this.mark(at, false);
  }

  /** Take the focus, with the mark on a key where it is held. */
  focus(bytes) {
    const at = bytes === null ? -1 : this.rows.findIndex((row) => same(row.bytes, bytes));
    if (at >= 0) this.mark(at);
    this.list.focus({ preventScroll: true });
  }

  pick(at) {
    this.mark(at);
    this.choose(this.rows[at].bytes);
  }

  /** Show which key is open; null for none. */
  select(bytes) {
    this.selected = bytes;
    for (const row of this.rows) row.node.setAttribute("aria-selected", String(bytes !== null && same(row.bytes, bytes)));
  }
}
