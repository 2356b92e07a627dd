// What the node is doing right now: rates, latency, memtable, the tree with its compactions, the processes.

import { el, svg } from "./dom.js";
import { count, fromBase64, seconds, shortKey, size } from "./format.js";

const SAMPLES = 90;

export class Live {
  constructor(root) {
    this.root = root;
    this.past = {};
    this.drawn = {};
  }

  /** Show one event of /api/stats/stream. */
  show(event) {
    const { rates, latency, memtable, levels, jobs, processes } = event;
    for (const name of ["writes", "http_reads", "http_writes"]) {
      const past = (this.past[name] ??= []);
      past.push(rates[name] ?? 0);
      if (past.length > SAMPLES) past.shift();
    }
    this.part("tiles", () => el("div", { class: "tiles" },
      tile("Entries written", rates.writes, "a second", spark(this.past.writes, "Entries written a second, the last minute and a half")),
      tile("HTTP reads", rates.http_reads, `a second, p50 ${seconds(latency.read_p50_s)}, p99 ${seconds(latency.read_p99_s)}`, spark(this.past.http_reads, "HTTP reads a second")),
      tile("HTTP writes", rates.http_writes, `a second, p50 ${seconds(latency.write_p50_s)}, p99 ${seconds(latency.write_p99_s)}`, spark(this.past.http_writes, "HTTP writes a second")),
      memtable ? memory(memtable) : el("section", { class: "card" }, el("h3", {}, "Memtable"), el("p", { class: "note" }, "The writer is not there to ask.")),
    ));
    this.part("warnings", () => el("div", { class: "card", hidden: !(event.stall || event.damaged.length) }, el("h3", {}, "Attention"),
      event.stall ? el("p", { class: "problem" }, event.stall.text) : null,
      ...event.damaged.map((found) => el("p", { class: "problem" }, `SST ${found.sst} is damaged: ${found.error}`))));
    this.part("tree", () => tree(levels, jobs, event));
    this.part("processes", () => table(processes, event.time));
  }

  part(name, make) {
    const made = make();
    if (this.drawn[name]) this.drawn[name].replaceWith(made);
    else this.root.append(made);
    this.drawn[name] = made;
  }
}

function tile(title, value, note, picture) {
  const figure = value == null ? "–" : value >= 100 ? count(value) : String(+value.toFixed(1));
  return el("section", { class: "card" }, el("h3", {}, title), el("p", { class: "figure" }, figure), el("p", { class: "note" }, note), picture);
}

function spark(values, label) {
  const top = Math.max(1, ...values);
  const points = values.map((value, at) => `${at ? "L" : "M"}${((at + SAMPLES - values.length) / (SAMPLES - 1)) * 100} ${32 - (value / top) * 30}`);
  return svg("svg", { class: "spark", viewBox: "0 0 100 34", preserveAspectRatio: "none", role: "img", "aria-label": `${label}: now ${count(values.at(-1))}, at most ${count(top)}` }, svg("path", { d: points.join("") }));
}

function memory(memtable) {
  const part = Math.min(1, memtable.bytes / memtable.capacity_bytes);
  const bar = el("div", { class: "meter", role: "img", "aria-label": `Memtable: ${Math.round(part * 100)} % full` }, el("i"));
  bar.firstChild.style.width = `${part * 100}%`; // the CSSOM is not what style-src forbids
  const waiting = memtable.immutable ? `, ${memtable.immutable} waiting to be flushed` : "";
  return el("section", { class: "card" }, el("h3", {}, "Memtable"), el("p", { class: "figure" }, size(memtable.bytes)), bar, el("p", { class: "note" }, `${count(memtable.entries)} entries, full at ${size(memtable.capacity_bytes)}${waiting}; log ${size(memtable.wal_bytes)}`));
}

function tree(levels, jobs, event) {
  const rows = levels.map((level) => {
    const busy = jobs.some((job) => job.from_level === level.level || job.to_level === level.level);
    const largest = Math.max(1, ...levels.map((other) => other.bytes));
    const runs = level.runs.map((run) => {
      const about = `${size(run.bytes)}, ${count(run.entries)} entries in ${run.files} file${run.files === 1 ? "" : "s"}, from ${name(run.smallest)} to ${name(run.largest)}`;
      const box = el("span", { class: busy ? "run busy" : "run", title: about }, size(run.bytes));
      box.style.flex = `0 1 ${Math.max(1, (run.bytes / largest) * 100)}%`;
      return box;
    });
    const capacity = level.capacity_bytes ? ` of ${size(level.capacity_bytes)}` : "";
    return el("div", { class: "level" }, el("b", {}, `Level ${level.level}`), el("div", { class: "runs" }, ...runs), el("span", { class: "about" }, `${size(level.bytes)}${capacity}, ${level.runs.length} run${level.runs.length === 1 ? "" : "s"}`));
  });
  const going = jobs.length ? jobs.map(work).join(", ") : "nothing";
  const rates = event.rates;
  const text = `Going on: ${going}. Flushed ${size(Math.round(rates.flushed_bytes ?? 0))}/s, compaction reads ${size(Math.round(rates.compacted_bytes_read ?? 0))}/s and writes ${size(Math.round(rates.compacted_bytes_written ?? 0))}/s; ${size(event.pending_compaction_bytes ?? 0)} wait to be compacted.`;
  return el("section", { class: "card" }, el("h3", {}, "The tree"), el("div", { class: "tree", role: "group", "aria-label": "Levels of the tree" }, ...rows), el("p", { class: "note" }, text));
}

const work = (job) => (job.kind === "flush" ? `a flush of ${size(job.bytes)}` : `a compaction of ${size(job.bytes)} from level ${job.from_level} to level ${job.to_level}`);

const name = (key) => shortKey(fromBase64(key.key_base64));

function table(processes, now) {
  const head = el("tr", {}, ...["Process", "State", "Id", "For", "Restarts"].map((title) => el("th", { scope: "col" }, title)));
  const rows = processes.map((found) => el("tr", { "data-role": found.role }, el("td", {}, found.role), el("td", { class: `state-${found.state}` }, found.state), el("td", {}, String(found.pid || "–")), el("td", {}, since(now - found.since)), el("td", {}, String(found.restarts))));
  return el("section", { class: "card" }, el("h3", { id: "processes-title" }, "Processes"), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "processes-title" }, el("table", { "aria-labelledby": "processes-title" }, el("thead", {}, head), el("tbody", {}, ...rows))));
}

function since(time) {
  if (time < 90) return `${Math.max(0, Math.round(time))} s`;
  if (time < 5400) return `${Math.round(time / 60)} min`;
  return time < 172800 ? `${Math.round(time / 3600)} h` : `${Math.round(time / 86400)} d`;
}
