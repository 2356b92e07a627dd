// Puts the page together: views, theme, the health of the server, dropping files.
//
// The address says what is shown: #/ the keys, #/key/PERCENT-ENCODED one of them, #/live the figures.

import { events } from "./api.js";
import { deleteAll, newKey, uploadFiles } from "./actions.js";
import { byId, toast } from "./dom.js";
import { fromPath, same, toPath } from "./format.js";
import { KeyList } from "./list.js";
import { Live } from "./live.js";
import { ValuePanel } from "./value.js";

const THEMES = ["system", "light", "dark"];

const list = new KeyList((key) => { location.hash = `#/key/${toPath(key)}`; });
const panel = new ValuePanel(() => list.refresh(), () => { location.hash = "#/"; });
const live = new Live(byId("live"));
let shown = location.hash;
let leaving = false;

async function route() {
  if (leaving) return; // the question is still there; what the address says then counts
  const hash = location.hash;
  if (hash.startsWith("#/live")) {
    view("live");
  } else {
    view("keys");
    const key = hash.startsWith("#/key/") ? fromPath(hash.slice(6)) : null;
    if (key === null ? panel.key !== null : panel.key === null || !same(key, panel.key)) {
      if (panel.dirty) {
        leaving = true;
        const left = await panel.leave();
        leaving = false;
        if (left) return route();
        history.replaceState(null, "", shown);
        return;
      }
      const last = panel.key;
      list.select(key);
      if (key === null) {
        panel.close();
        list.focus(last);
      } else panel.open(key);
    }
  }
  shown = location.hash;
}

function view(name) {
  for (const each of ["keys", "live"]) {
    byId(`${each}-view`).hidden = each !== name;
    byId(`tab-${each}`).toggleAttribute("aria-current", each === name);
    if (each === name) byId(`tab-${each}`).setAttribute("aria-current", "page");
  }
}

function theme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  const text = name[0].toUpperCase() + name.slice(1);
  byId("theme-text").textContent = text;
  byId("theme").setAttribute("aria-label", `Theme: ${text}. Change it`);
  localStorage.setItem("keyva-theme", name);
}

function health(state, text, banner = "") {
  byId("health").className = `health ${state}`;
  if (byId("health-text").textContent !== text) byId("health-text").textContent = text;
  byId("banner").hidden = !banner;
  if (byId("banner").textContent !== banner) byId("banner").textContent = banner;
}

async function files(chosen) {
  const key = await uploadFiles(chosen, list.prefix, () => list.refresh());
  if (key) location.hash = `#/key/${toPath(key)}`;
}

theme(THEMES.includes(localStorage.getItem("keyva-theme")) ? localStorage.getItem("keyva-theme") : "system");
byId("theme").addEventListener("click", () => theme(THEMES[(THEMES.indexOf(localStorage.getItem("keyva-theme")) + 1) % THEMES.length]));
byId("first").addEventListener("click", () => list.show(list.prefix));
byId("last").addEventListener("click", () => list.show(list.prefix, { fromEnd: true }));
byId("new").addEventListener("click", async () => {
  const key = await newKey(list.prefix);
  await list.refresh(); // after Cancel, too: it may be there
  if (key === null) return;
  location.hash = `#/key/${toPath(key)}`;
});
byId("upload").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", async (event) => {
  const chosen = [...event.target.files];
  event.target.value = "";
  await files(chosen);
});
byId("delete-all").addEventListener("click", async () => {
  if (!(await panel.leave())) return;
  try {
    if (await deleteAll(list.prefix)) location.hash = "#/";
    await list.refresh(); // after Cancel, too: some may be gone
  } catch (error) {
    toast(error.message);
  }
});
window.addEventListener("hashchange", route);
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, textarea, select") || document.querySelector("dialog");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    location.hash.startsWith("#/live") && (location.hash = "#/");
    byId("prefix").focus();
  } else if (event.key === "Escape" && !document.querySelector("dialog") && !byId("keys-view").hidden && document.body.classList.contains("open")) {
    location.hash = "#/";
  }
});

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
let over = 0;
document.addEventListener("dragenter", (event) => { if (carriesFiles(event)) { over += 1; byId("drop").hidden = false; } });
document.addEventListener("dragleave", (event) => { if (carriesFiles(event) && --over <= 0) { over = 0; byId("drop").hidden = true; } });
document.addEventListener("dragover", (event) => { if (carriesFiles(event)) event.preventDefault(); });
document.addEventListener("drop", async (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  over = 0;
  byId("drop").hidden = true;
  if (!document.querySelector("dialog")) await files([...event.dataTransfer.files]);
});

let away = false;
let stop = null;

function shows(event) {
  const writer = event.processes.find((found) => found.role === "writer");
  if (event.available) health("good", "Running");
  else health("bad", writer && writer.state !== "running" ? `Writer ${writer.state}` : "Writer away", "The writer does not answer; it is started again if it has to be. Reading goes on, writes wait.");
  live.show(event);
  if (away) {
    away = false;
    list.refresh();
  }
}

function lost() {
  away = true;
  health("bad", "Not connected", "The server cannot be reached. Trying again every second.");
}

// A stream takes one of the six connections that browsers make to a server: only a page that is seen has one
function connect() {
  const wanted = document.visibilityState === "visible";
  if (wanted && stop === null) stop = events("/api/stats/stream", shows, lost);
  else if (!wanted) disconnect();
}

function disconnect() {
  stop?.();
  stop = null;
}

document.addEventListener("visibilitychange", connect);
window.addEventListener("pageshow", connect);
window.addEventListener("pagehide", disconnect);
connect();

await list.show(new Uint8Array());
await route();
