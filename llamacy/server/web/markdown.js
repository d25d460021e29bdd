// Markdown as elements, never as HTML: headings, lists, quotes, tables, code with a copy button; mathematics as text.
import { t } from "./words.js";

const make = (name, ...children) => { const e = document.createElement(name); e.append(...children); return e; };
const INLINE = /(`+)(.+?)\1|\*\*(.+?)\*\*|__(.+?)__|\*([^*\s][^*]*?)\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)|\$\$(.+?)\$\$|\\\((.+?)\\\)|\\\[(.+?)\\\]/s;

/** Return the nodes of a line's text. */
function inline(text) {
  const found = [];
  for (let m; (m = INLINE.exec(text)); text = text.slice(m.index + m[0].length)) {
    if (m.index) found.push(text.slice(0, m.index));
    if (m[1]) found.push(make("code", m[2].trim() || m[2]));
    else if (m[3] ?? m[4]) found.push(make("strong", ...inline(m[3] ?? m[4])));
    else if (m[5]) found.push(make("em", ...inline(m[5])));
    else if (m[6]) {
      const link = make("a", ...inline(m[6]));
      Object.assign(link, { href: m[7], rel: "noreferrer noopener", target: "_blank" });
      found.push(link);
    } else { const e = make("span", m[0]); e.className = "math"; found.push(e); }
  }
  if (text) found.push(text);
  return found;
}

function code(lines) {
  const text = lines.join("\n"), button = make("button", t("copy"));
  button.type = "button";
  button.onclick = async () => { await copy(text); button.textContent = t("copied"); };
  return make("pre", make("code", text), button);
}

/** Put a text on the clipboard, also where the page is no secure one. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const box = make("textarea", text);
  document.body.append(box);
  box.select();
  document.execCommand("copy");
  box.remove();
}

const row = (line, cell) => make("tr", ...line.replace(/^\s*\||\|\s*$/g, "").split("|").map((c) => make(cell, ...inline(c.trim()))));

/** Return the elements of a text. */
export function markdown(text) {
  const lines = text.split("\n"), found = [];
  for (let i = 0; i < lines.length;) {
    const line = lines[i];
    const fence = /^\s*(```+|~~~+)/.exec(line);
    if (fence) {
      const begin = ++i;
      while (i < lines.length && !lines[i].trim().startsWith(fence[1])) i++;
      found.push(code(lines.slice(begin, i++)));
    } else if (!line.trim()) i++;
    else if (/^#{1,6} /.test(line)) {
      const size = line.indexOf(" ");
      found.push(make("h" + Math.min(6, size + 2), ...inline(line.slice(size + 1))));
      i++;
    } else if (/^\s*(---+|\*\*\*+)\s*$/.test(line)) { found.push(make("hr")); i++; }
    else if (line.startsWith(">")) {
      const begin = i;
      while (i < lines.length && lines[i].startsWith(">")) i++;
      found.push(make("blockquote", ...markdown(lines.slice(begin, i).map((l) => l.replace(/^> ?/, "")).join("\n"))));
    } else if (/^\s*([-*+]|\d+[.)]) /.test(line)) {
      const ordered = /^\s*\d/.test(line), list = make(ordered ? "ol" : "ul");
      if (ordered) list.start = parseInt(line, 10);
      for (let m; i < lines.length && (m = /^\s*(?:[-*+]|\d+[.)]) (.*)$/.exec(lines[i])); i++) list.append(make("li", ...inline(m[1])));
      found.push(list);
    } else if (line.includes("|") && /^[\s|:-]+$/.test(lines[i + 1] ?? "") && lines[i + 1].includes("-")) {
      const table = make("table", row(line, "th"));
      for (i += 2; i < lines.length && lines[i].includes("|"); i++) table.append(row(lines[i], "td"));
      found.push(table);
    } else {
      const begin = i++;
      while (i < lines.length && lines[i].trim() && !/^(\s*(```|~~~|[-*+] |\d+[.)] )|#{1,6} |>)/.test(lines[i])) i++;
      const p = make("p");
      lines.slice(begin, i).forEach((l, n) => p.append(...(n ? [make("br")] : []), ...inline(l)));
      found.push(p);
    }
  }
  return found;
}
