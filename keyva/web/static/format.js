// Bytes as people read them: keys, sizes, hexadecimal, base64.

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }); // a byte order mark is a part of the text: three bytes of the value
const encoder = new TextEncoder();

export const encode = (text) => encoder.encode(text);

/** The bytes as text, or null when they are no UTF-8. */
export function decode(bytes) {
  try {
    return strict.decode(bytes);
  } catch {
    return null;
  }
}

export function fromBase64(text) {
  const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(binary, (char) => char.charCodeAt(0));
}

export function toBase64(bytes) {
  let binary = "";
  for (let at = 0; at < bytes.length; at += 8192) binary += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** What cannot be seen, or looks like a blank and is none. */
const UNSEEN = /[\p{Cc}\p{Default_Ignorable_Code_Point}\p{Zl}\p{Zp}\p{Bidi_Control}\ufff9-\ufffb]|(?! )\p{Zs}/u;

function escape(char) {
  const code = char.codePointAt(0).toString(16);
  return code.length > 4 ? `\\u{${code}}` : `\\u${code.padStart(4, "0")}`;
}

/**
 * Text as pieces [kind, text], so that different texts look different: "plain", and "escape" for a character that cannot be seen. Blanks
 * count as such where the text begins (`head`) and where it ends (`tail`).
 */
export function pieces(text, { head = true, tail = true } = {}) {
  const first = head ? /^ */.exec(text)[0].length : 0;
  const last = tail ? text.length - / *$/.exec(text)[0].length : text.length;
  const found = [];
  let at = 0;
  for (const char of text) {
    const kind = UNSEEN.test(char) || (char === " " && (at < first || at >= last)) ? "escape" : "plain";
    if (kind === "plain" && found.at(-1)?.[0] === "plain") found.at(-1)[1] += char;
    else found.push([kind, kind === "plain" ? char : escape(char)]);
    at += char.length;
  }
  return found;
}

/** A key as pieces: also "bytes" for one that is no UTF-8, in hexadecimal, and "none" for the empty key. */
export function keyPieces(bytes) {
  if (bytes.length === 0) return [["none", "(empty key)"]];
  const text = decode(bytes);
  return text === null ? [["bytes", "0x" + hex(bytes)]] : pieces(text);
}

const SHORT_CHARS = 80;

/** Pieces without the middle, where that takes more room than a sentence has. */
export function shorten(found, most = SHORT_CHARS) {
  const length = found.reduce((sum, [, text]) => sum + text.length, 0);
  if (length <= most) return found;
  const head = Math.ceil(most * 0.6), tail = length - (most - head);
  const short = [];
  let at = 0, cut = false;
  for (const [kind, text] of found) {
    // escapes stay whole, and so do pairs of surrogates
    const whole = kind === "escape";
    const begin = whole ? (at + text.length <= head ? text : "") : text.slice(0, Math.max(0, head - at)).replace(/[\ud800-\udbff]$/, "");
    const end = whole ? (at >= tail ? text : "") : text.slice(Math.max(0, tail - at)).replace(/^[\udc00-\udfff]/, "");
    at += text.length;
    if (begin) short.push([kind, begin]);
    if (!cut && at > head) {
      cut = true;
      short.push(["cut", "…"]);
    }
    if (end && at > tail) short.push([kind, end]);
  }
  return short;
}

/** A key in one short line, where there can be no more than text. */
export const shortKey = (bytes) => shorten(keyPieces(bytes)).map(([, text]) => text).join("");

export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Bytes of hexadecimal text; null when it is none. */
export function fromHex(text) {
  const digits = text.replace(/^0x/i, "").replace(/\s+/g, "");
  if (digits.length % 2 || /[^0-9a-f]/i.test(digits)) return null;
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

/** A key for a URL's path: every byte but the unreserved ones percent-encoded, so that "." and ".." stay keys. */
export function toPath(bytes) {
  let path = "";
  for (const byte of bytes) {
    const char = String.fromCharCode(byte);
    path += /[A-Za-z0-9_~-]/.test(char) ? char : "%" + byte.toString(16).toUpperCase().padStart(2, "0");
  }
  return path;
}

export function fromPath(path) {
  const bytes = [];
  for (let at = 0; at < path.length; at++) {
    if (path[at] === "%") {
      bytes.push(parseInt(path.slice(at + 1, at + 3), 16));
      at += 2;
    } else bytes.push(path.charCodeAt(at));
  }
  return Uint8Array.from(bytes);
}

export function size(bytes) {
  if (bytes == null) return "–";
  if (bytes < 1000) return `${bytes} B`;
  for (const unit of ["kB", "MB", "GB", "TB"]) {
    bytes /= 1000;
    if (bytes < 999.5) return `${bytes < 10 ? bytes.toFixed(1) : Math.round(bytes)} ${unit}`;
  }
  return `${Math.round(bytes)} PB`;
}

export const count = (number) => (number == null ? "–" : Math.round(number).toLocaleString("en"));

export function seconds(value) {
  if (value == null) return "–";
  if (value < 0.001) return `≤ ${Math.round(value * 1e6)} µs`;
  return value < 1 ? `≤ ${+(value * 1e3).toPrecision(2)} ms` : `≤ ${value} s`;
}

export function same(a, b) {
  return a.length === b.length && a.every((byte, at) => byte === b[at]);
}

/** Lines of a hex dump: offset, 16 bytes, and their printable characters. */
export function hexDump(bytes, base = 0) {
  const lines = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const part = bytes.subarray(at, at + 16);
    const digits = Array.from(part, (byte) => byte.toString(16).padStart(2, "0"));
    const text = Array.from(part, (byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : "·")).join("");
    lines.push([(base + at).toString(16).padStart(8, "0"), digits.join(" ").padEnd(47), text]);
  }
  return lines;
}
