// Bytes as people read them: keys, sizes, hexadecimal, base64.

const strict = new TextDecoder("utf-8", { fatal: true });
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

/** A key as one line: its text with control characters escaped, or its bytes in hexadecimal. */
export function showKey(bytes) {
  if (bytes.length === 0) return "(empty key)";
  const text = decode(bytes);
  if (text === null) return "0x" + hex(bytes);
  // eslint-disable-next-line no-control-regex
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g, (char) => "\\u" + char.charCodeAt(0).toString(16).padStart(4, "0"));
}

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
