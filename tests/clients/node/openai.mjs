// OpenAI's client for Node against the server at process.argv[2]; ends with 0 where all is as it has to be.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0, timeout: 60000 });
const model = "any";
const messages = [{ role: "user", content: "What is the capital of France? One sentence." }];
const parameters = { type: "object", properties: { city: { type: "string", maxLength: 20 } }, required: ["city"] };
const tool = { type: "function", function: { name: "get_weather", description: "Weather of a city", parameters } };

const answer = await client.chat.completions.create({ model, messages, max_tokens: 30, temperature: 0 });
assert.match(answer.choices[0].message.content, /Paris/);

const stream = await client.chat.completions.create({
  model, messages, max_tokens: 30, temperature: 0, stream: true, stream_options: { include_usage: true },
});
let text = "", usage = null;
for await (const part of stream) {
  text += part.choices[0]?.delta?.content ?? "";
  usage = part.usage ?? usage;
}
assert.equal(text, answer.choices[0].message.content);
assert.equal(usage.total_tokens, answer.usage.total_tokens);

const City = z.object({
  city: z.string().max(20),
  population: z.int().min(1).max(50_000_000),
  kind: z.enum(["town", "city"]),
  note: z.nullable(z.string().max(10)),
});
const parsed = await client.chat.completions.parse({
  model, messages, max_tokens: 120, temperature: 0, response_format: zodResponseFormat(City, "city"),
});
City.parse(parsed.choices[0].message.parsed);

const question = [{ role: "user", content: "What is the weather in Oslo?" }];
const runner = client.chat.completions.stream({
  model, messages: question, tools: [tool], tool_choice: "required", max_tokens: 60,
});
const final = await runner.finalChatCompletion();
const call = final.choices[0].message.tool_calls[0];
assert.equal(call.function.name, "get_weather");
assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)), ["city"]);
const result = { role: "tool", tool_call_id: call.id, content: "rain, 5 degrees" };
const last = await client.chat.completions.create({
  model, messages: [...question, final.choices[0].message, result], tools: [tool], max_tokens: 20,
});
assert.equal(last.choices[0].message.role, "assistant");

const response = await client.responses.create({
  model, input: messages[0].content, max_output_tokens: 30, temperature: 0,
});
assert.match(response.output_text, /Paris/);

const embeddings = await client.embeddings.create({ model, input: ["a", "b", "c"] });
assert.equal(embeddings.data.length, 3);
assert.ok(embeddings.data[0].embedding.every(Number.isFinite));

await assert.rejects(
  client.chat.completions.create({ model, messages: [{ role: "user", content: "word ".repeat(5000) }] }),
  (error) => error instanceof OpenAI.BadRequestError && error.code === "context_length_exceeded",
);

const controller = new AbortController();
const cut = await client.chat.completions.create(
  { model, messages, max_tokens: 500, stream: true }, { signal: controller.signal },
);
for await (const part of cut) controller.abort();
console.log("all as it has to be");
