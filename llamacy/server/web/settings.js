// What answers are made with: samplers, the system message, the adapter, and one beside it.
import { t } from "./words.js";

// name: [smallest, largest, step]; empty: as the server has it
const NUMBERS = {
  temperature: [0, 5, 0.1], top_k: [0, 1000, 1], top_p: [0, 1, 0.05], min_p: [0, 1, 0.01], typical_p: [0, 1, 0.05],
  top_n_sigma: [-1, 10, 0.1], repeat_penalty: [0, 3, 0.05], repeat_last_n: [-1, 4096, 1], presence_penalty: [-2, 2, 0.1],
  frequency_penalty: [-2, 2, 0.1], dry_multiplier: [0, 5, 0.1], dry_base: [1, 4, 0.05], dry_allowed_length: [0, 100, 1],
  xtc_probability: [0, 1, 0.05], xtc_threshold: [0, 1, 0.05], dynatemp_range: [0, 5, 0.1], mirostat: [0, 2, 1],
  mirostat_tau: [0, 20, 0.5], mirostat_eta: [0, 1, 0.05], seed: [-1, 4294967295, 1], max_tokens: [1, 100000, 1],
};
const box = document.getElementById("settings");
const value = (name) => document.getElementById("s-" + name)?.value ?? "";
let adapters = [];

function field(name, element, wide) {
  element.id = "s-" + name;
  const store = name === "key" ? sessionStorage : localStorage;  // the key is kept for this tab only
  element.value = store.getItem("llamacy." + name) ?? element.value;
  element.addEventListener("change", () => { store.setItem("llamacy." + name, element.value); box.dispatchEvent(new Event("settings")); });
  const label = document.createElement("label");
  label.append(t(name), element);
  if (wide) label.className = "wide";
  box.append(label);
}

const input = (attributes) => Object.assign(document.createElement("input"), attributes);

function picker(name, none) {
  const element = document.createElement("select");
  const add = (key, text) => element.append(Object.assign(document.createElement("option"), { value: key, textContent: text }));
  if (none) add("none", t("nothing"));
  add("usual", t("usual"));
  if (adapters.length) add("base", t("base"));
  for (const one of adapters) add("lora:" + one.name, one.name);
  element.value = none ? "none" : "usual";
  field(name, element);
  if (!element.value) element.value = none ? "none" : "usual";
  field(name + "_scale", input({ type: "number", min: -5, max: 5, step: 0.1, value: 1 }));
  box.lastChild.firstChild.textContent = t("scale");
}

/** Draw the settings; `found`: the server's adapters. */
export function draw(found = adapters) {
  adapters = found;
  box.replaceChildren();
  field("system", Object.assign(document.createElement("textarea"), { rows: 2 }), true);
  picker("with", false);
  picker("beside", true);
  for (const [name, [min, max, step]] of Object.entries(NUMBERS)) field(name, input({ type: "number", min, max, step, placeholder: "–" }));
  field("key", input({ type: "password", autocomplete: "off" }));
}

export const headers = () => {
  const key = value("key").trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: "Bearer " + key }) };
};

/** What to answer with: [{label, fields of a request}], two where they are to stand side by side. */
export function choices() {
  const found = [];
  for (const name of ["with", "beside"]) {
    const which = value(name), scale = Number(value(name + "_scale") || 1);
    if (which === "none" || !which) continue;
    const one = adapters.find((adapter) => "lora:" + adapter.name === which);
    const label = one ? `${one.name} × ${scale}` : which === "base" ? t("base") : "";
    found.push({ label, fields: one ? { lora: [{ id: one.id, scale }] } : which === "base" ? { lora: [] } : {} });
  }
  return found.length ? found : [{ label: "", fields: {} }];
}

/** A request for the answer to messages. */
export function request(messages) {
  const system = value("system").trim(), body = {};
  for (const name of Object.keys(NUMBERS)) if (value(name) !== "") body[name] = Number(value(name));
  return { ...body, messages: [...(system ? [{ role: "system", content: system }] : []), ...messages] };
}
