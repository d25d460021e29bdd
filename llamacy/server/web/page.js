// The page: what is shown of the conversation, and what its buttons do.
import { answer, get } from "./api.js";
import { copy, markdown } from "./markdown.js";
import * as settings from "./settings.js";
import * as store from "./store.js";
import { languageNow, speak, t } from "./words.js";

const $ = (id) => document.getElementById(id);
let talk = store.all()[0] ?? store.blank();
let running = null;  // the AbortController of the answers that are being written
let nCtx = 0;

const make = (name, className, text = "") => Object.assign(document.createElement(name), { className, textContent: text });
function button(word, action) {
  const e = make("button", "", t(word));
  e.type = "button";
  e.addEventListener("click", action);
  return e;
}

// ---- the list of conversations ----

function drawList() {
  $("list").replaceChildren(...store.all().map((one) => {
    const li = make("li"), title = button("", () => choose(one.id));
    title.className = "title";
    title.textContent = store.titleOf(one);
    li.setAttribute("aria-current", String(one.id === talk.id));
    const rename = button("rename", () => {
      const name = prompt(t("title"), store.titleOf(one));
      if (name !== null) change(one.id, (found) => { found.title = name.trim(); });
    });
    const remove = button("remove", () => {
      if (!confirm(t("sure"))) return;
      store.remove(one);
      if (one.id === talk.id) begin(); else drawList();
    });
    rename.textContent = "✎"; remove.textContent = "×";
    rename.setAttribute("aria-label", t("rename")); remove.setAttribute("aria-label", t("remove"));
    li.append(title, rename, remove);
    return li;
  }));
}

function change(id, function_) {
  const found = id === talk.id ? talk : store.all().find((one) => one.id === id);
  function_(found);
  store.keep(found);
  drawList();
}

function choose(id) {
  running?.abort();
  talk = store.all().find((one) => one.id === id) ?? store.blank();
  $("side").classList.remove("open");
  drawAll();
}

function begin() {
  running?.abort();
  talk = store.blank();
  drawAll();
  $("text").focus();
}

function keep() {
  talk.updated = Date.now();
  store.keep(talk);
  drawList();
}

// ---- the conversation ----

function drawAll() {
  $("talk").replaceChildren(...talk.messages.map((_, i) => turn(i)));
  if (!talk.messages.length) $("talk").append(make("p", "faint", t("welcome")));
  $("text").value = talk.draft;
  fit();
  drawList();
  meter();
  $("view").scrollTop = $("view").scrollHeight;
}

function turn(i) {
  const message = talk.messages[i];
  if (message.role === "user") {
    const box = make("div", "turn user", message.content), tools = make("div", "tools");
    tools.append(button("copy", () => copy(message.content)), button("edit", () => edit(i)));
    box.append(tools);
    return box;
  }
  const boxes = message.variants.map((_, n) => variant(i, n));
  if (boxes.length === 1) return boxes[0];
  const columns = make("div", "columns");
  columns.append(...boxes);
  return columns;
}

function variant(i, n) {
  const message = talk.messages[i], one = message.variants[n], last = i === talk.messages.length - 1;
  const box = make("article", "turn assistant" + (message.variants.length > 1 && message.chosen === n ? " chosen" : ""));
  if (one.with) box.append(make("div", "faint", one.with));
  if (one.thought) {
    const details = make("details", "", ""), summary = make("summary", "", t("thoughts"));
    details.append(summary, one.thought);
    box.append(details);
  }
  const text = make("div", "text");
  text.append(...markdown(one.content));
  const tools = make("div", "tools"), marks = { stopped: "stopped", cut: "cut", failed: "failed" };
  tools.append(button("copy", () => copy(one.content)));
  if (last && !running) {
    tools.append(button("again", () => regenerate()));
    if (one.content && one.state !== "whole") tools.append(button("go_on", () => goOn(n)));
  }
  if (message.variants.length > 1 && message.chosen !== n)
    tools.append(button("use", () => { message.chosen = n; keep(); drawAll(); }));
  if (running && one.state === "running") box.classList.add("busy");
  else if (marks[one.state]) tools.append(make("span", "faint", t(marks[one.state])));
  if (one.note) tools.append(make("span", one.state === "failed" ? "problem" : "faint", one.note));
  box.append(text, tools);
  return box;
}

function redraw(i) {
  const view = $("view"), follow = view.scrollHeight - view.scrollTop - view.clientHeight < 80;
  $("talk").children[i]?.replaceWith(turn(i));
  if (follow) view.scrollTop = view.scrollHeight;
}

function meter() {
  const used = Math.max(0, ...(talk.messages.at(-1)?.variants ?? []).map((one) => one.used ?? 0));
  $("context").hidden = !used || !nCtx;
  $("context").value = nCtx ? used / nCtx : 0;
  $("used").textContent = used && nCtx ? `${used} / ${nCtx}` : "";
}

/** Write the answers at the end of the conversation, one for each choice. */
async function write(i, goesOn = null) {
  const here = talk, message = here.messages[i];
  const before = store.sent(here.messages.slice(0, i));
  running = new AbortController();
  const signal = running.signal;
  $("send").textContent = t("stop");
  const picked = goesOn === null ? message.variants : [message.variants[goesOn]];
  await Promise.all(picked.map((one) => {
    const messages = goesOn === null ? before : [...before, { role: "assistant", content: one.content }];
    let drawn = 0;
    const changed = () => {
      if (one.state === "failed" && !signal.aborted && !one.note) one.state = "running";
      if (performance.now() - drawn > 40 || one.state !== "running") {
        drawn = performance.now();
        if (here === talk) redraw(i);
      }
    };
    return answer({ ...settings.request(messages), ...one.fields }, one, changed, signal);
  }));
  for (const one of picked) if (one.state === "running") one.state = "failed";
  if (running?.signal === signal) { running = null; $("send").textContent = t("send"); }
  here.updated = Date.now();
  store.keep(here);
  if (here === talk) { redraw(i); meter(); }
  drawList();
}

function ask() {
  const variants = settings.choices().map(({ label, fields }) => ({ with: label, fields, content: "", thought: "", state: "running", note: "" }));
  talk.messages.push({ role: "assistant", variants, chosen: 0 });
  keep();
  drawAll();
  return write(talk.messages.length - 1);
}

function send(text) {
  talk.messages.push({ role: "user", content: text });
  talk.draft = "";
  return ask();
}

function regenerate() {
  talk.messages.pop();
  return ask();
}

const goOn = (n) => { const i = talk.messages.length - 1; talk.messages[i].chosen = n; return write(i, n); };

/** Take a question back into the box; the conversation as it was stays in the list. */
function edit(i) {
  running?.abort();
  if (i < talk.messages.length - 1)
    store.keep({ ...structuredClone(talk), id: store.blank().id, title: `${store.titleOf(talk)} (${t("before")})`, draft: "" });
  talk.draft = talk.messages[i].content + (talk.draft ? "\n" + talk.draft : "");
  talk.messages.length = i;
  keep();
  drawAll();
  $("text").focus();
}

// ---- what is typed and clicked ----

function fit() {
  $("text").style.height = "auto";
  $("text").style.height = $("text").scrollHeight + 2 + "px";
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const text = $("text").value.trim();
  if (text) send(text);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) $("form").requestSubmit();
  }
});
$("text").addEventListener("input", () => { fit(); talk.draft = $("text").value; store.keep(talk); });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
$("new").addEventListener("click", begin);
$("menu").addEventListener("click", () => $("menu").setAttribute("aria-expanded", String($("side").classList.toggle("open"))));
$("open").addEventListener("click", () => {
  $("settings").hidden = !$("settings").hidden;
  $("open").setAttribute("aria-expanded", String(!$("settings").hidden));
});
$("export").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([store.exported()], { type: "application/json" }));
  link.download = "llamacy-conversations.json";
  link.click();
  URL.revokeObjectURL(link.href);
});
$("import").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  try { store.imported(await $("file").files[0].text()); } catch { alert(t("bad_file")); }
  $("file").value = "";
  drawList();
});
$("language").addEventListener("change", () => { speak($("language").value); settings.draw(); drawAll(); });

async function connect() {
  try {
    const [models, adapters, props] = await Promise.all(["v1/models", "lora-adapters", "props"].map(get));
    $("model").textContent = models.data[0].id;
    nCtx = props.default_generation_settings.n_ctx;
    settings.draw(adapters);
    meter();
  } catch (error) {
    $("model").textContent = error.status ? error.message : t("silent");
    if (!error.status || error.status === 503) setTimeout(connect, 1000);
  }
}
$("settings").addEventListener("settings", (event) => { if (sessionStorage.getItem("llamacy.key") !== connect.key) { connect.key = sessionStorage.getItem("llamacy.key"); connect(); } });

$("language").value = languageNow();
speak();
settings.draw();
drawAll();
connect();
