// Small pieces of the page: elements, dialogs, messages.

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

export const byId = (id) => document.getElementById(id);

const TOAST_MS = 12000;

/** Say something at the corner; with an action it has a button. Goes by itself, but not while somebody points at it. */
export function toast(text, action) {
  const made = el("div", { class: "toast" }, el("span", { class: "grow" }, text));
  let timer;
  const close = () => made.remove();
  const wait = () => { timer = setTimeout(close, TOAST_MS); };
  if (action) {
    made.append(el("button", { type: "button", onclick: async (event) => { event.target.disabled = true; close(); await action.run(); } }, action.label));
  }
  made.addEventListener("pointerenter", () => clearTimeout(timer));
  made.addEventListener("pointerleave", wait);
  wait();
  byId("toasts").append(made);
  while (byId("toasts").children.length > 4) byId("toasts").firstChild.remove();
}

/**
 * Show a dialog and wait for its end: gives null when it was dismissed, else the value of the button that was pressed. `build` gets the
 * form to fill; buttons are [value, label, class]. `check` may return a sentence that says why the form cannot be sent yet.
 */
export function ask(title, build, buttons, { wide = false, check = async () => "" } = {}) {
  return new Promise((resolve) => {
    const heading = el("h2", { id: "dialog-title" }, title);
    const problem = el("p", { class: "problem", role: "alert" });
    const form = el("form", { method: "dialog" }, heading);
    const dialog = el("dialog", { "aria-labelledby": "dialog-title", class: wide ? "wide" : undefined }, form);
    build(form);
    const row = el("div", { class: "buttons" });
    row.append(el("button", { type: "button", onclick: () => dialog.close("") }, "Cancel"));
    for (const [value, label, kind] of buttons) row.append(el("button", { type: "submit", value, class: kind, "data-action": value }, label));
    form.append(problem, row);
    let busy = false;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (busy) return;
      const value = event.submitter?.value ?? buttons.at(-1)[0];
      busy = true;
      try {
        problem.textContent = await check(value);
      } catch (error) {
        problem.textContent = error.message;
      }
      busy = false;
      if (!problem.textContent) dialog.close(value);
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue || null);
    });
    document.body.append(dialog);
    dialog.showModal();
    (form.querySelector("[autofocus]") ?? row.lastChild).focus();
  });
}
