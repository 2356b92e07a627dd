// Small pieces of the page: elements, names of keys, dialogs, messages.

import { keyPieces, shorten } from "./format.js";

/** Make an element: el("p", { class: "note", onclick }, "text", child). Text is always text, never markup. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "value") made.value = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** What a key is called in a sentence: shortened in the middle, with all that cannot be seen made visible. */
export const keyName = (bytes) => el("b", { class: "key-name" }, ...marked(shorten(keyPieces(bytes))));

/** Pieces as nodes: those that are not plain text look different from text that reads the same. */
export const marked = (pieces) => pieces.map(([kind, text]) => (kind === "plain" ? text : el("span", { class: kind }, text)));

export const byId = (id) => document.getElementById(id);

const TOAST_MS = 12000;
const TOASTS_MAX = 4;

/**
 * Say something at the corner, text or nodes; with an action it has a button. It goes by itself, but not while somebody points at it or
 * has the focus in it; a `lasting` one stays until it was answered or dismissed, for something would be lost with it.
 */
export function toast(said, action, { lasting = false } = {}) {
  const made = el("div", { class: lasting ? "toast lasting" : "toast" }, el("span", { class: "grow" }, ...[said].flat()));
  let timer;
  const close = () => made.remove();
  const hold = () => clearTimeout(timer);
  const wait = () => {
    hold();
    if (!lasting) timer = setTimeout(close, TOAST_MS);
  };
  if (action) made.append(el("button", { type: "button", onclick: async () => { close(); await action.run(); } }, action.label));
  if (lasting) made.append(el("button", { type: "button", class: "dismiss", onclick: close }, "Dismiss"));
  made.addEventListener("pointerenter", hold);
  made.addEventListener("pointerleave", wait);
  made.addEventListener("focusin", hold);
  made.addEventListener("focusout", wait);
  wait();
  const all = byId("toasts");
  all.append(made);
  while (all.children.length > TOASTS_MAX) (all.querySelector(".toast:not(.lasting)") ?? all.firstChild).remove();
}

let dialogs = 0;

/**
 * Show a dialog and wait for its end: gives null when it was dismissed, else the value of the button that was pressed. `build` gets the
 * form to fill; buttons are [value, label, class]. `check` may return a sentence that says why the form cannot be sent yet; it gets the
 * value and a signal that is aborted when the dialog is dismissed meanwhile.
 */
export function ask(title, build, buttons, { wide = false, check = async () => "" } = {}) {
  return new Promise((resolve) => {
    const id = `dialog-title-${++dialogs}`;
    const heading = el("h2", { id }, title);
    const problem = el("p", { class: "problem", role: "alert" });
    const form = el("form", { method: "dialog" }, heading);
    const dialog = el("dialog", { "aria-labelledby": id, class: wide ? "wide" : undefined }, form);
    build(form);
    const row = el("div", { class: "buttons" });
    row.append(el("button", { type: "button", "data-action": "cancel", onclick: () => dialog.close("") }, "Cancel"));
    for (const [value, label, kind] of buttons) row.append(el("button", { type: "submit", value, class: kind, "data-action": value }, label));
    form.append(problem, row);
    const control = new AbortController();
    let busy = false;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (busy) return;
      const value = event.submitter?.value ?? buttons.at(-1)[0];
      busy = true;
      try {
        problem.textContent = await check(value, control.signal);
      } catch (error) {
        problem.textContent = error.message;
      }
      busy = false;
      if (!problem.textContent && dialog.open) dialog.close(value);
    });
    dialog.addEventListener("close", () => {
      control.abort();
      dialog.remove();
      resolve(dialog.returnValue || null);
    });
    document.body.append(dialog);
    dialog.showModal();
    // what is asked stays in sight, however long it is: the buttons stick to the bottom
    (form.querySelector("[autofocus]") ?? row.lastChild).focus({ preventScroll: true });
  });
}
