// JSON as text: where it is wrong, and how it is laid out. Never by way of values: numbers beyond 2^53, "1.0", and names that come twice
// would be others afterwards.

const TOKEN = /"[^"\\]*(?:\\.[^"\\]*)*"|[[\]{},:]|[^\s[\]{},:"]+/g;
const DEPTH_MAX = 100; // deeper parts are not moved in further: blanks would outweigh all else

/** Why a text is no JSON, with line and column; "" when it is. A byte order mark is let pass. */
export function problemOf(text) {
  const mark = text.startsWith("\ufeff") ? 1 : 0;
  try {
    JSON.parse(text.slice(mark));
    return "";
  } catch (error) {
    const found = /position (\d+)/.exec(error.message);
    if (!found) return error.message;
    const before = text.slice(mark, mark + Number(found[1])).split("\n");
    const what = error.message.split(/ in JSON| \(line/)[0];
    return `${what}, line ${before.length}, column ${before.at(-1).length + 1}`;
  }
}

/** Valid JSON with one member a line. Each token stays as it is. */
export function layOut(text) {
  const out = text.startsWith("\ufeff") ? ["\ufeff"] : [];
  const line = (depth) => "\n" + "  ".repeat(Math.min(depth, DEPTH_MAX));
  let depth = 0, last = "";
  for (const [token] of text.slice(out.length).matchAll(TOKEN)) {
    const opened = last === "{" || last === "[";
    if (token === "}" || token === "]") {
      depth -= 1;
      if (!opened) out.push(line(depth));
    } else if (opened || last === ",") out.push(line(depth));
    out.push(token);
    if (token === "{" || token === "[") depth += 1;
    else if (token === ":") out.push(" ");
    last = token;
  }
  return out.join("") + "\n";
}
