// The HTTP API: one place that sends requests, with the token when the server wants one, and turns problem documents into errors.

import { ask, el } from "./dom.js";
import { toBase64, toPath } from "./format.js";

const TOKEN = "keyva-token";
let asking = null;

export class Problem extends Error {
  constructor(status, detail, members = {}) {
    super(detail);
    this.status = status;
    this.members = members;
  }
}

/** `send(token)` until its answer is no 401: asks for the token when the server wants one, and anew when it refused that one. */
async function withToken(send) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const answer = await send(token);
    if (answer.status !== 401) return answer;
    if (token === sessionStorage.getItem(TOKEN)) await askToken(token !== null);
  }
}

/** fetch, with the token. Throws `Problem` for what is no success, but not for `allow`, and `AbortError` when its signal was aborted. */
export async function request(path, { allow = [], ...options } = {}) {
  const response = await withToken(async (token) => {
    const headers = new Headers(options.headers);
    if (token) headers.set("authorization", `Bearer ${token}`);
    try {
      return await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw unreachable();
    }
  });
  if (!response.ok && !allow.includes(response.status)) throw await problemOf(response);
  return response;
}

const unreachable = () => new Problem(0, "The server cannot be reached.");

async function problemOf(response) {
  try {
    const found = await response.json();
    return new Problem(response.status, sentence(found.detail ?? found.title), found);
  } catch {
    return new Problem(response.status, `The server answered ${response.status}.`);
  }
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

function askToken(refused) {
  asking ??= (async () => {
    sessionStorage.removeItem(TOKEN);
    let field;
    const build = (form) => {
      field = el("input", { type: "password", autocomplete: "current-password", required: true, autofocus: true, name: "token" });
      if (refused) form.append(el("p", { class: "problem", id: "refused", role: "alert" }, "The server has refused the token."));
      form.append(el("p", {}, "This server wants a token: the content of its http token file."), el("label", {}, "Token", field));
    };
    while (!(await ask("Sign in", build, [["ok", "Sign in", "primary"]]))) { /* nothing works without it */ }
    sessionStorage.setItem(TOKEN, field.value.trim());
  })().finally(() => { asking = null; });
  return asking;
}

export const json = async (path, options) => (await request(path, options)).json();

export const post = (path, body, signal) => json(path, { signal, method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

/** Where a key is. "." and ".." cannot be asked for by name: browsers take them for directories, percent-encoded or not. */
export const urlOf = (key) => (key.length && key.length < 3 && key.every((byte) => byte === 46) ? "/kv-base64/" + toBase64(key) : "/kv/" + toPath(key));

/** What is known of a key without its value: { etag, type, kept, size }, or null when it is absent. `kept`: whether the type is stored, not sniffed. */
export async function head(key, options = {}) {
  const response = await request(urlOf(key), { ...options, method: "HEAD", allow: [404] });
  return response.status === 404 ? null : factsOf(response);
}

function factsOf(response) {
  const range = response.headers.get("content-range");
  const length = range ? range.split("/")[1] : response.headers.get("content-length");
  return { etag: response.headers.get("etag"), type: response.headers.get("content-type") ?? "", kept: response.headers.get("keyva-content-type") !== "sniffed", size: Number(length) };
}

/** The value, or its bytes [start, stop): { bytes, etag, type, kept, size }, or null when the key is absent. */
export async function get(key, { start, stop, etag } = {}) {
  const headers = {};
  if (start !== undefined) headers.range = `bytes=${start}-${stop - 1}`;
  if (etag !== undefined) headers["if-match"] = etag;
  const response = await request(urlOf(key), { headers, allow: [404, 416] });
  if (response.status === 404) return null;
  const bytes = response.status === 416 ? new Uint8Array() : new Uint8Array(await response.arrayBuffer());
  const facts = factsOf(response);
  return { ...facts, bytes, size: response.status === 416 ? 0 : facts.size };
}

/**
 * Write a value. `type`: undefined leaves it to the server to find it out. `etag`: what it must replace; null: the key must be absent;
 * undefined: whatever is there. Gives the new etag.
 */
export async function put(key, body, type, etag, signal) {
  const response = await request(urlOf(key), { method: "PUT", body, headers: conditions(etag, type), signal });
  return response.headers.get("etag");
}

function conditions(etag, type) {
  const headers = {};
  if (type !== undefined) headers["content-type"] = type;
  if (etag === null) headers["if-none-match"] = "*";
  else if (etag !== undefined) headers["if-match"] = etag;
  return headers;
}

export const remove = (key, etag) => request(urlOf(key), { method: "DELETE", headers: conditions(etag) });

/** PUT of a file with progress, which fetch does not tell: calls `progress` with 0 to 1. Aborted like `request`. */
export async function upload(key, file, type, etag, progress, signal) {
  // what would be refused is refused before all of the file is sent
  const there = await head(key, { signal });
  if (etag === null && there !== null) throw new Problem(412, "The key exists already.");
  const sent = await withToken((token) => send(token, key, file, type, etag, progress, signal));
  if (sent.status < 300) return sent.getResponseHeader("etag");
  let found = {};
  try { found = JSON.parse(sent.responseText); } catch { /* no problem document */ }
  throw new Problem(sent.status, sentence(found.detail ?? `The server answered ${sent.status}.`), found);
}

function send(token, key, file, type, etag, progress, signal) {
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest();
    sending.open("PUT", urlOf(key));
    if (token) sending.setRequestHeader("authorization", `Bearer ${token}`);
    for (const [name, value] of Object.entries(conditions(etag, type))) sending.setRequestHeader(name, value);
    sending.upload.onprogress = (event) => progress(event.total ? event.loaded / event.total : 0);
    sending.onload = () => resolve(sending);
    sending.onerror = () => reject(unreachable());
    sending.onabort = () => reject(signal.reason);
    signal.addEventListener("abort", () => sending.abort());
    if (signal.aborted) reject(signal.reason);
    else sending.send(new Blob([file])); // of no type: a file's own would go along where none is wanted
  });
}

const RETRY_MS = 1000;

/** Server-sent events over fetch (EventSource cannot send a token): calls `on(event)` for each, `down()` when the connection is lost. */
export function events(path, on, down) {
  const control = new AbortController();
  (async () => {
    while (!control.signal.aborted) {
      try {
        const response = await request(path, { signal: control.signal, headers: { accept: "text/event-stream" } });
        const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
        let rest = "";
        for (;;) {
          const { value, done } = await reader.read();
          if (done) break;
          rest += value;
          let end;
          while ((end = rest.indexOf("\n\n")) >= 0) {
            const data = rest.slice(0, end).split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
            rest = rest.slice(end + 2);
            if (data) on(JSON.parse(data));
          }
        }
      } catch (error) {
        if (control.signal.aborted) return;
      }
      if (control.signal.aborted) return;
      down();
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  })();
  return () => control.abort();
}
