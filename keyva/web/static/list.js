// The list of keys: a window of the key space that moves with the scroll position, page by page, in both directions.
//
// At most WINDOW_MAX keys are held, whatever the store holds; what leaves at one end is asked for again when one scrolls back.

import { json } from "./api.js";
import { byId, el } from "./dom.js";
import { count, decode, encode, fromBase64, same, showKey, size, toBase64 } from "./format.js";

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
    this.turn = 0;
    this.list.addEventListener("scroll", () => this.fill(), { passive: true });
    this.list.addEventListener("click", (event) => {
      const at = this.rows.findIndex((row) => row.node === event.target.closest("li"));
      if (at >= 0) this.pick(at);
    });
    this.list.addEventListener("keydown", (event) => this.key(event));
    this.list.addEventListener("focus", () => { if (this.active < 0 && this.rows.length) this.mark(0); });
    const field = byId("prefix");
    field.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.show(encode(field.value)), TYPING_MS);
    });
    field.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" && this.rows.length) {
        event.preventDefault();
        this.list.focus();
        this.mark(Math.max(0, this.active));
      } else if (event.key === "Enter" && this.rows.length) {
        event.preventDefault();
        this.pick(0);
      }
    });
  }

  /** Show the keys with a prefix, from the first on (or with `fromEnd` from the last). */
  async show(prefix = this.prefix, { fromEnd = false, start = null } = {}) {
    const turn = ++this.turn;
    this.prefix = prefix;
    let page;
    try {
      page = await this.ask(start, fromEnd);
    } catch (error) {
      if (turn === this.turn) this.note.textContent = error.message;
      return;
    }
    if (turn !== this.turn) return;
    if (fromEnd) page.keys.reverse();
    this.rows = page.keys.map((entry) => this.row(entry));
    this.list.replaceChildren(...this.rows.map((row) => row.node));
    this.active = -1;
    this.atStart = fromEnd ? page.next === null : start === null;
    this.atEnd = fromEnd ? start === null : page.next === null;
    this.list.scrollTop = fromEnd ? this.list.scrollHeight : 0;
    this.loading = null;
    this.tell();
    if (start !== null) await this.load(-1); // so that one can scroll up from there at once
    this.fill();
    this.total(turn);
  }

  /** Load again what is shown now, where it is. */
  async refresh() {
    const first = this.rows[0]?.bytes;
    const top = this.list.scrollTop;
    const turn = this.turn;
    if (this.atStart || first === undefined) await this.show(this.prefix);
    else await this.show(this.prefix, { start: toBase64(first) });
    if (this.turn === turn + 1) this.list.scrollTop = top;
  }

  ask(start, reverse, limit = PAGE) {
    const query = new URLSearchParams({ prefix_base64: toBase64(this.prefix), limit });
    if (start !== null) query.set("start_base64", start);
    if (reverse) query.set("reverse", "true");
    return json(`/api/keys?${query}`);
  }

  async total(turn) {
    this.count = null;
    try {
      const found = await json(`/api/count?${new URLSearchParams({ prefix_base64: toBase64(this.prefix) })}`);
      if (turn !== this.turn) return;
      this.count = found;
    } catch { /* the list itself says what is wrong */ }
    this.tell();
  }

  tell() {
    const of = this.prefix.length ? ` begin with ${showKey(this.prefix)}` : "";
    byId("delete-all").disabled = this.rows.length === 0;
    if (!this.rows.length) this.note.textContent = this.prefix.length ? `No keys${of}.` : "The store is empty. Make a key, or drop a file here.";
    else if (this.count) this.note.textContent = `${this.count.complete ? "" : "More than "}${count(this.count.count)} key${this.count.count === 1 ? "" : "s"}${of}`;
    else this.note.textContent = "";
    byId("empty-text").textContent = this.rows.length || this.prefix.length ? "Choose a key to see its value, or make a new one." : "This store is empty. Make a first key, or drop a file.";
  }

  row(entry) {
    const bytes = fromBase64(entry.key_base64);
    const shown = showKey(bytes);
    const name = el("span", { class: "name", title: shown });
    const begin = this.prefix.length && decode(bytes) !== null ? showKey(this.prefix) : "";
    if (begin && shown.startsWith(begin)) name.append(el("mark", {}, begin), shown.slice(begin.length));
    else name.textContent = shown;
    const chosen = this.selected !== null && same(bytes, this.selected);
    const node = el("li", { role: "option", id: "key-" + toBase64(bytes), "aria-selected": String(chosen), title: `${entry.content_type}` }, name, el("span", { class: "size" }, size(entry.size)));
    return { bytes, node };
  }

  /** Load the next page where the scroll position is near an end of the window. */
  async fill() {
    const { scrollTop, clientHeight, scrollHeight } = this.list;
    if (!this.atEnd && scrollTop + clientHeight > scrollHeight - NEAR_PX) await this.load(1);
    else if (!this.atStart && scrollTop < NEAR_PX) await this.load(-1);
  }

  async load(direction) {
    if (this.loading || !this.rows.length) return this.loading;
    const turn = this.turn;
    this.loading = (async () => {
      const edge = direction > 0 ? this.rows.at(-1) : this.rows[0];
      const page = await this.ask(toBase64(edge.bytes), direction < 0, PAGE + 1);
      if (turn !== this.turn) return;
      const entries = page.keys.filter((entry) => !same(fromBase64(entry.key_base64), edge.bytes));
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
    })();
    try {
      await this.loading;
    } catch (error) {
      this.note.textContent = error.message;
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
      this.active = this.active < gone.length ? -1 : this.active - gone.length;
    } else {
      this.atEnd = false;
      if (this.active >= this.rows.length) this.active = -1;
    }
  }

  async key(event) {
    const page = Math.max(1, Math.floor(this.list.clientHeight / 34) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
    if (event.key in steps) {
      event.preventDefault();
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

  mark(at) {
    this.rows[this.active]?.node.classList.remove("active");
    this.active = at;
    const row = this.rows[at];
    if (!row) return;
    row.node.classList.add("active");
    row.node.scrollIntoView({ block: "nearest" });
    this.list.setAttribute("aria-activedescendant", row.node.id);
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
