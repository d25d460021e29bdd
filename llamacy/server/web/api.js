// What the server is asked.
import { headers } from "./settings.js";
import { t } from "./words.js";

export async function get(path) {
  const response = await fetch(path, { headers: headers() });
  const data = await response.json();
  if (!response.ok) throw Object.assign(new Error(data.error.message), { status: response.status });
  return data;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks)
      if (block.startsWith("data: ") && block !== "data: [DONE]") yield JSON.parse(block.slice(6));
  }
}

/** Write an answer into `variant`, telling `changed()` of each piece; the state says how it ended. */
export async function answer(body, variant, changed, signal) {
  const before = variant.content;
  Object.assign(variant, { state: "failed", note: "" });
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), signal,
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    }).catch((error) => { throw error.name === "AbortError" ? error : new Error(t("silent")); });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const one = event.choices[0];
      variant.content += one?.delta.content ?? "";
      variant.thought = (variant.thought ?? "") + (one?.delta.reasoning_content ?? "");
      if (one?.finish_reason) variant.state = one.finish_reason === "length" ? "cut" : "whole";
      if (event.timings && one?.finish_reason)
        variant.note = `${event.timings.predicted_n} ${t("tokens")}, ${event.timings.predicted_per_second.toFixed(1)} ${t("per_second")}`;
      if (event.usage) variant.used = event.usage.total_tokens;
      changed();
    }
  } catch (error) {
    if (error.name === "AbortError") variant.state = "stopped";
    else variant.note = error.message;
    if (!variant.content) variant.content = before;
  }
  changed();
}
