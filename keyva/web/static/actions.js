// What begins with a dialog: making keys, uploading files, deleting all keys with a prefix.

import * as api from "./api.js";
import { ask, el, keyName, toast } from "./dom.js";
import { count, decode, encode, fromHex, shortKey, size, toBase64, toPath } from "./format.js";

const KEY_MAX = 65536;

function keyFields(form, initial) {
  const field = el("input", { name: "key", id: "new-key", value: initial, autocomplete: "off", autocapitalize: "off", spellcheck: "false", class: "mono", autofocus: true });
  const asHex = el("input", { type: "checkbox", name: "hex", id: "new-hex" });
  form.append(el("label", {}, "Key", field), el("label", { class: "check" }, asHex, "The key is given in hexadecimal"));
  return () => {
    const key = asHex.checked ? fromHex(field.value) : encode(field.value);
    if (key === null) throw new Error("The key is not hexadecimal: pairs of 0 to 9 and a to f.");
    if (key.length > KEY_MAX) throw new Error(`A key has at most ${KEY_MAX} bytes.`);
    if (key[0] === 255 && key[1] === 255) throw new Error("Keys that begin with FF FF are the store's own.");
    return key;
  };
}

/** Say that a write was cancelled while it was under way: the server may have made it. */
function cancelled(key) {
  toast(["Cancelled while it was being written: ", keyName(key), " may have the new value."], { label: "Look", run: () => { location.hash = `#/key/${toPath(key)}`; } });
}

/** Ask for a new key and value. Gives the key that was made, or null. */
export async function newKey(prefix) {
  let key, read, value, type;
  const build = (form) => {
    read = keyFields(form, decode(prefix) ?? "");
    value = el("textarea", { name: "value", id: "new-value", rows: "6" });
    type = el("input", { name: "type", id: "new-type", list: "new-types", placeholder: "found out from the value", autocomplete: "off" });
    const types = el("datalist", { id: "new-types" }, ...["text/plain; charset=utf-8", "application/json"].map((name) => el("option", { value: name })));
    form.append(el("label", {}, "Value", value), el("label", {}, "Content type", type), types);
  };
  const check = async (_, signal) => {
    key = read();
    try {
      await api.put(key, encode(value.value), type.value.trim() || undefined, null, signal);
    } catch (error) {
      if (signal.aborted) cancelled(key);
      return error.status === 412 ? `${shortKey(key)} exists already.` : error.message;
    }
    return "";
  };
  return (await ask("New key", build, [["make", "Make key", "primary"]], { check })) ? key : null;
}

/** Upload files, one after the other, each under a key that the user may change. Gives the last key, or null. */
export async function uploadFiles(files, prefix, changed) {
  let last = null;
  for (const file of files) {
    const key = await uploadFile(file, (decode(prefix) ?? "") + file.name);
    if (key === null) break;
    last = key;
    changed();
  }
  return last;
}

async function uploadFile(file, name) {
  let key, read, type, bar, over;
  const build = (form) => {
    form.append(el("p", { class: "note" }, `${file.name}, ${size(file.size)}`));
    read = keyFields(form, name);
    type = el("input", { name: "type", id: "upload-type", value: file.type, placeholder: "found out from the value", autocomplete: "off" });
    over = el("input", { type: "checkbox", id: "upload-over" });
    bar = el("progress", { max: "1", value: "0", hidden: true, "aria-label": "Upload" });
    form.append(el("label", {}, "Content type", type), el("label", { class: "check" }, over, "Replace the key if it exists"), bar);
  };
  const check = async (_, signal) => {
    key = read();
    bar.value = 0;
    bar.hidden = false;
    try {
      await api.upload(key, file, type.value.trim() || undefined, over.checked ? undefined : null, (part) => { bar.value = part; }, signal);
    } catch (error) {
      bar.hidden = true;
      if (signal.aborted) cancelled(key);
      return error.status === 412 ? `${shortKey(key)} exists already.` : error.message;
    }
    toast(["Uploaded ", keyName(key), "."]);
    return "";
  };
  return (await ask("Upload a file", build, [["upload", "Upload", "primary"]], { check })) ? key : null;
}

/** Delete all keys with a prefix, after showing how many they are. Gives whether it was done. */
export async function deleteAll(prefix) {
  const named = { prefix_base64: toBase64(prefix) };
  let found = await api.json(`/api/count?${new URLSearchParams(named)}`);
  const which = () => (prefix.length ? [" that begin with ", keyName(prefix)] : [" of this store"]);
  const text = el("p", { id: "how-many" });
  const label = el("span", { id: "confirm-label" });
  const field = el("input", { id: "confirm", autocomplete: "off", autofocus: true, inputmode: "numeric" });
  const tell = () => {
    const number = `${found.complete ? "" : "more than "}${count(found.count)}`;
    text.replaceChildren(el("b", {}, `${number} keys`), ...which(), " will be deleted. This cannot be undone.");
    label.textContent = `Type the number ${found.count} to confirm`;
  };
  tell();
  const check = async (_, signal) => {
    if (field.value.replaceAll(/[,\s]/g, "") !== String(found.count)) return `Type ${found.count} to confirm.`;
    try {
      const done = await api.post("/api/delete-prefix", { ...named, ...found }, signal);
      toast(`Deleted ${count(done.deleted)} keys.`);
      return "";
    } catch (error) {
      if (signal.aborted) toast("Cancelled while keys were being deleted: some of them, or all, may be gone.");
      if (error.status !== 409) return error.message;
      found = await api.json(`/api/count?${new URLSearchParams(named)}`);
      tell();
      return "The number of keys has changed meanwhile. Look at it again.";
    }
  };
  const build = (form) => form.append(text, el("label", {}, label, field));
  return Boolean(await ask("Delete all found keys?", build, [["delete", "Delete them", "primary danger"]], { check }));
}
