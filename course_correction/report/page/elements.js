// Build DOM nodes. Data becomes DOM as text nodes and attributes only, never as markup.
export const byId = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) node.append(child); // Strings become text nodes.
  }
  return node;
}

export const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

export const svgText = (x, y, content, attributes) => svg("text", { x, y, ...attributes }, content);

// Characters that are invisible or change the reading direction are shown by their number.
// eslint-disable-next-line no-control-regex
const INVISIBLE =
  /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/;
const EACH_INVISIBLE = new RegExp(`(${INVISIBLE.source})`);

export function addText(parent, text) {
  if (!INVISIBLE.test(text)) {
    parent.append(text);
    return parent;
  }
  for (const part of text.split(EACH_INVISIBLE)) {
    if (part.length === 1 && INVISIBLE.test(part)) {
      const code = part.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
      parent.append(el("span", { class: "control" }, `U+${code}`));
    } else if (part) {
      parent.append(part);
    }
  }
  return parent;
}
