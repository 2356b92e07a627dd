// One key: its value shown as what it is, edited where that makes sense, saved only over the version that was seen.

import * as api from "./api.js";
import { ask, byId, el, keyName, marked, toast } from "./dom.js";
import { decode, hexDump, keyPieces, shortKey, size } from "./format.js";
import { layOut, problemOf } from "./json.js";

const EDIT_MAX = 1_000_000;
const MEDIA_MAX = 64_000_000;
const HEX_PAGE = 16 * 1024;
const LOOK_MS = 5000;
const TYPES = ["text/plain; charset=utf-8", "application/json", "text/html; charset=utf-8", "text/csv; charset=utf-8", "image/png", "image/jpeg", "audio/mpeg", "application/octet-stream"];

const essence = (type) => type.split(";")[0].trim().toLowerCase();
const isJson = (type) => essence(type) === "application/json" || essence(type).endsWith("+json");

export class ValuePanel {
  /** `changed()` is called after keys were made or deleted here; `closed()` when no key is open any more. */
  constructor(changed, closed) {
    this.changed = changed;
    this.closed = closed;
    this.root = byId("value");
    this.key = null;
    this.found = null;
    this.dirty = false;
    setInterval(() => this.look(), LOOK_MS);
    document.addEventListener("visibilitychange", () => this.look());
    window.addEventListener("beforeunload", (event) => { if (this.dirty) event.preventDefault(); });
  }

  /** Whether the user agrees to leave what was typed and not saved. */
  async leave() {
    if (!this.dirty) return true;
    const text = el("p", {}, "The value of ", keyName(this.key), " was changed here and not saved.");
    const answer = await ask("Leave without saving?", (form) => form.append(text), [["discard", "Discard changes", "primary danger"]]);
    if (answer) this.dirty = false;
    return Boolean(answer);
  }

  close() {
    this.key = this.found = null;
    this.dirty = false;
    this.clear();
    this.root.hidden = true;
    byId("empty").hidden = false;
    document.body.classList.remove("open");
  }

  clear() {
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = null;
    this.root.replaceChildren();
  }

  /** Open a key and show what it holds. */
  async open(key) {
    const focused = this.root.contains(document.activeElement) ? document.activeElement : null;
    const had = focused && (focused.id || "open-key");
    const caret = had === "text" ? [focused.selectionStart, focused.selectionEnd, focused.scrollTop] : null;
    await this.load(key);
    if (this.key !== key) return;
    this.takeFocus(had);
    if (caret && had === document.activeElement.id) {
      this.area.setSelectionRange(caret[0], caret[1]);
      this.area.scrollTop = caret[2];
    }
  }

  /** Give the focus back to what had it before all was drawn anew; at phone width, where the list has gone, to the key. */
  takeFocus(had) {
    const key = byId("open-key");
    key.tabIndex = key.scrollHeight > key.clientHeight ? 0 : -1; // so that one can scroll it by the keyboard
    const lost = document.activeElement === document.body || !document.activeElement.checkVisibility({ visibilityProperty: true });
    if (!lost || document.querySelector("dialog")) return;
    if (had) (byId(had) ?? key).focus({ preventScroll: true });
    else if (!byId("list").checkVisibility({ visibilityProperty: true })) key.focus({ preventScroll: true });
  }

  async load(key) {
    this.key = key;
    this.dirty = false;
    byId("empty").hidden = true;
    this.root.hidden = false;
    document.body.classList.add("open");
    this.clear();
    this.root.append(el("p", { class: "note" }, "Loading"));
    try {
      const facts = await api.head(key);
      if (this.key !== key) return;
      if (facts === null) return this.gone();
      const kind = this.kindOf(facts);
      const whole = kind === "edit" || kind === "media";
      const found = whole ? await api.get(key) : await api.get(key, { start: 0, stop: Math.max(1, HEX_PAGE) });
      if (this.key !== key) return;
      if (found === null) return this.gone();
      this.found = found;
      this.draw(kind);
    } catch (error) {
      if (this.key === key) this.failed(error);
    }
  }

  gone() {
    this.clear();
    this.root.append(this.title(false), el("p", {}, "This key does not exist (any more)."));
  }

  failed(error) {
    this.clear();
    const again = el("button", { type: "button", onclick: () => this.open(this.key) }, "Try again");
    this.root.append(this.title(false), el("p", { class: "problem", role: "alert" }, error.message), el("p", {}, again));
  }

  kindOf({ type, size: bytes }) {
    const name = essence(type);
    if (/^(image|audio|video)\//.test(name) && bytes <= MEDIA_MAX) return "media";
    return bytes <= EDIT_MAX ? "edit" : "hex";
  }

  title(actions = true) {
    const back = el("button", { type: "button", class: "back", onclick: () => this.closed() }, "Back to keys");
    const key = el("div", { class: "key", id: "open-key", role: "heading", "aria-level": "3", tabindex: "-1" }, ...marked(keyPieces(this.key)));
    const row = el("div", { class: "actions" });
    if (actions) {
      row.append(
        el("a", { class: "button", id: "download", href: api.urlOf(this.key), download: fileName(this.key), onclick: (event) => this.download(event) }, "Download"),
        el("button", { type: "button", id: "delete", class: "danger", onclick: () => this.remove() }, "Delete"),
      );
    }
    return el("div", { class: "title" }, back, key, row);
  }

  draw(kind) {
    const { type, bytes } = this.found;
    this.clear();
    const list = el("datalist", { id: "types" }, ...TYPES.map((name) => el("option", { value: name })));
    this.type = el("input", { id: "type", list: "types", value: type, "aria-label": "Content type", spellcheck: "false", autocomplete: "off" });
    const set = el("form", { onsubmit: (event) => { event.preventDefault(); this.retype(); } }, el("label", { for: "type" }, "Type"), this.type, list, el("button", { id: "retype" }, "Change"));
    this.facts = el("div", { class: "facts" }, set, el("span", { id: "size" }, size(this.found.size)), el("span", { class: "mono", title: "Entity tag: changes with the value" }, this.found.etag.slice(1, 9)));
    this.notice = el("div", { role: "alert" });
    this.body = el("div", { class: "body" });
    this.foot = el("div", { class: "foot" });
    this.root.append(this.title(), this.facts, this.notice, this.body, this.foot);
    const text = kind === "edit" && !bytes.includes(0) ? decode(bytes) : null;
    if (kind === "media") this.media(type, bytes);
    else if (text !== null) this.editor(text);
    else this.hex();
  }

  media(type, bytes) {
    this.url = URL.createObjectURL(new Blob([bytes], { type: essence(type) }));
    const name = essence(type).split("/")[0];
    const shown = name === "image"
      ? el("img", { src: this.url, alt: `The value of ${shortKey(this.key)}` })
      : el(name, { src: this.url, controls: true, "aria-label": `The value of ${shortKey(this.key)}` });
    const problem = el("p", { class: "problem", role: "status" });
    shown.addEventListener("error", () => {
      problem.textContent = `This browser cannot show it as ${essence(type)}.`;
      this.hexButton();
    });
    this.body.append(el("div", { class: "media" }, shown), problem);
    this.hexButton();
  }

  hexButton() {
    if (!byId("as-hex")) this.foot.append(el("button", { type: "button", id: "as-hex", onclick: () => { this.body.replaceChildren(); this.foot.replaceChildren(); this.hex(); } }, "Show bytes"));
  }

  editor(text) {
    // a textarea makes "\n" of every line end; what it does not show exactly is not edited
    if (text.includes("\r") && text.replaceAll("\r\n", "").includes("\r")) return this.hex();
    this.crlf = text.includes("\r\n");
    if (this.crlf && text.replaceAll("\r\n", "").includes("\n")) return this.hex();
    const area = this.area = el("textarea", { id: "text", "aria-label": `Value of ${shortKey(this.key)}`, spellcheck: "false", autocomplete: "off", autocapitalize: "off", "aria-describedby": "text-problem" });
    area.value = text;
    this.problem = el("p", { class: "problem", id: "text-problem", role: "status" });
    this.save = el("button", { type: "button", id: "save", class: "primary", disabled: true, onclick: () => this.store() }, "Save");
    const format = el("button", { type: "button", id: "format", onclick: () => this.format() }, "Format JSON");
    area.addEventListener("input", () => this.typed());
    area.addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key === "s") {
        event.preventDefault();
        if (!this.save.disabled) this.store();
      }
    });
    this.type.addEventListener("input", () => this.typed());
    this.format_ = format;
    this.body.append(area, this.problem);
    this.foot.append(this.save, format, el("span", { class: "grow" }), el("button", { type: "button", id: "as-hex", class: "quiet", onclick: async () => { if (await this.leave()) { this.body.replaceChildren(); this.foot.replaceChildren(); this.hex(); } } }, "Show bytes"));
    this.typed();
  }

  typed() {
    if (!this.area?.isConnected) return;
    const json = isJson(this.type.value);
    this.format_.hidden = !json;
    this.problem.textContent = "";
    const wrong = json && this.area.value.trim() ? problemOf(this.area.value) : "";
    if (wrong) this.problem.textContent = `Not valid JSON: ${wrong}`;
    this.area.setAttribute("aria-invalid", String(Boolean(this.problem.textContent)));
    this.dirty = this.text() !== decode(this.found.bytes);
    this.save.disabled = !this.dirty;
  }

  /** The type to write a value with: none where none is kept and none was given, so that it is found out at every read as before. */
  typeToKeep() {
    const type = this.type.value.trim();
    return !type || (!this.found.kept && type === this.found.type) ? undefined : type;
  }

  text() {
    return this.crlf ? this.area.value.replaceAll("\n", "\r\n") : this.area.value;
  }

  format() {
    if (problemOf(this.area.value)) return this.area.focus(); // the problem is said below the text
    this.area.value = layOut(this.area.value);
    this.typed();
  }

  async store() {
    if (this.problem.textContent) {
      const text = el("p", {}, this.problem.textContent, " It can be saved all the same.");
      if (!(await ask("Save what is not valid JSON?", (form) => form.append(text), [["save", "Save anyway", "primary"]]))) return;
    }
    this.save.disabled = true;
    await this.write(new TextEncoder().encode(this.text()), this.typeToKeep(), "Saved.");
  }

  /** Write `bytes` over the version that was seen; on a conflict show both. */
  async write(bytes, type, said, etag = this.found.etag) {
    const key = this.key;
    try {
      const fresh = await api.put(key, bytes, type, etag);
      if (this.key !== key) return true;
      this.dirty = false;
      toast(said);
      await this.open(key);
      if (this.found?.etag !== fresh) this.look();
      this.changed();
      return true;
    } catch (error) {
      if (this.key !== key) return false;
      if (error.status === 412) return this.conflict(bytes, type, said);
      toast(error.message);
      if (this.save) this.save.disabled = false;
      return false;
    }
  }

  /** Somebody else was faster: show both versions and let the user choose. */
  async conflict(bytes, type, said) {
    const theirs = await api.get(this.key);
    const pane = (title, found, kind) => el("section", {}, el("h3", {}, `${title}${kind ? ` (${kind})` : ""}`), el("pre", { tabindex: "0", "aria-label": title }, preview(found)));
    const build = (form) => form.append(
      el("p", {}, theirs ? "Somebody else has changed this key since you opened it." : "Somebody else has deleted this key since you opened it."),
      el("div", { class: "versions" }, pane("Your version", bytes, type), pane("Their version", theirs ? theirs.bytes : null, theirs?.kept ? theirs.type : undefined)),
    );
    const buttons = [["theirs", "Take theirs"], ["mine", "Overwrite with yours", "primary danger"]];
    const answer = await ask("Two versions", build, buttons, { wide: true });
    if (answer === "mine") return this.write(bytes, type, said, theirs ? theirs.etag : null);
    if (answer === "theirs") {
      this.dirty = false;
      await this.open(this.key);
      this.changed();
    } else if (this.save) this.save.disabled = false;
    return false;
  }

  /** Notice changes that others make while the key is open. */
  async look() {
    if (!this.key || !this.found || document.hidden || !this.notice?.isConnected) return;
    const key = this.key, seen = this.found.etag;
    let facts;
    try {
      facts = await api.head(key);
    } catch {
      return; // the banner says that the server is away
    }
    if (this.key !== key || this.found?.etag !== seen) return;
    if (facts?.etag === seen) return this.notice.replaceChildren();
    if (facts && !this.dirty && !document.querySelector("dialog")) return this.open(key);
    if (this.notice.firstChild) return;
    const text = facts ? "Somebody else has changed this value." : "Somebody else has deleted this key.";
    this.notice.append(el("p", { class: "banner info", id: "changed" }, el("span", { class: "grow" }, text), el("button", { type: "button", onclick: async () => { if (await this.leave()) this.open(key); } }, "Show it"), el("button", { type: "button", onclick: () => this.conflict(new TextEncoder().encode(this.area ? this.text() : ""), this.typeToKeep(), "Saved.") , hidden: !this.dirty }, "Compare")));
  }

  async retype() {
    const type = this.typeToKeep();
    if (type === (this.found.kept ? this.found.type : undefined)) return;
    if (this.dirty) return this.store();
    const whole = this.found.bytes.length === this.found.size ? this.found : await api.get(this.key);
    if (whole) await this.write(whole.bytes, type, "Type changed.", this.found.etag);
  }

  hex() {
    const out = el("pre", { class: "hex", id: "hex", tabindex: "0", "aria-label": `Bytes of ${shortKey(this.key)}` });
    let shown = 0;
    const add = (bytes) => {
      for (const [at, digits, text] of hexDump(bytes, shown)) out.append(el("span", { class: "at" }, at), `  ${digits}  ${text}\n`);
      shown += bytes.length;
    };
    const more = el("button", { type: "button", id: "more", onclick: async () => {
      try {
        const part = await api.get(this.key, { start: shown, stop: shown + HEX_PAGE, etag: this.found.etag });
        if (part) add(part.bytes);
      } catch (error) {
        toast(error.status === 412 ? "The value has changed meanwhile." : error.message);
        if (error.status === 412) this.open(this.key);
      }
      tell();
    } }, "Show more");
    const note = el("span", { class: "note", role: "status" });
    const tell = () => {
      more.hidden = shown >= this.found.size;
      note.textContent = more.hidden ? "" : `${size(shown)} of ${size(this.found.size)} shown`;
    };
    add(this.found.bytes.subarray(0, HEX_PAGE));
    this.body.append(out);
    this.foot.append(more, note);
    tell();
  }

  async download(event) {
    if (!sessionStorage.getItem("keyva-token")) return; // the link itself does, and streams
    event.preventDefault();
    const name = event.currentTarget.download;
    const found = await api.get(this.key);
    if (!found) return;
    saveFile(name, found.bytes);
  }

  /** Delete after a question; a message at the corner takes it back. */
  async remove() {
    const key = this.key;
    const text = el("p", {}, "Delete ", keyName(key), `, ${size(this.found.size)}? This can be undone for as long as the message about it is there.`);
    if (!(await ask("Delete this key?", (form) => form.append(text), [["delete", "Delete", "primary danger"]]))) return;
    try {
      const kept = await api.get(key); // what undo puts back is what is deleted, and nothing else
      if (kept) await api.remove(key, kept.etag);
      this.dirty = false;
      this.closed();
      this.changed();
      toast(["Deleted ", keyName(key), "."], kept && this.undo(key, kept));
    } catch (error) {
      toast(error.status === 412 ? "Not deleted: somebody else has just changed it." : error.message);
    }
  }

  undo(key, kept) {
    return { label: "Undo", run: () => this.restore(key, kept) };
  }

  /** Put back what was deleted. It is held nowhere else: unless it is back, the message stays and offers it. */
  async restore(key, kept) {
    try {
      await api.put(key, kept.bytes, kept.kept ? kept.type : undefined, null);
      toast([keyName(key), " is back."]);
    } catch (error) {
      // an undo before this one may have been made without an answer
      const there = error.status === 412 ? await api.head(key).catch(() => null) : null;
      if (there && there.etag === kept.etag) toast([keyName(key), " is back."]);
      else if (error.status !== 412) toast([keyName(key), ` is not back: ${error.message}`], this.undo(key, kept), { lasting: true });
      else {
        const action = { label: "Download the deleted one", run: () => saveFile(fileName(key), kept.bytes) };
        toast([keyName(key), " exists again already, with another value."], action, { lasting: true });
      }
    }
    this.changed();
  }
}

const fileName = (key) => (decode(key) ?? "value").split("/").pop() || "value";

/** Let the browser save bytes as a file. */
function saveFile(name, bytes) {
  const url = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

function preview(bytes) {
  if (bytes === null) return "(deleted)";
  const text = bytes.length <= EDIT_MAX && !bytes.includes(0) ? decode(bytes) : null;
  return text ?? hexDump(bytes.subarray(0, 2048)).map((line) => line.join("  ")).join("\n");
}
