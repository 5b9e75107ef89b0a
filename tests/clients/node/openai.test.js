// OpenAI's own client for JavaScript.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const SAID = "Hello! How can I help?";
const client = new OpenAI({ baseURL: process.env.EFT_BASE_URL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const parameters = { type: "object", properties: { place: { type: "string" } }, required: ["place"] };

test("whole", async () => {
  const reply = await client.chat.completions.create({ model: "trio", messages, temperature: 0, n: null });
  assert.equal(reply.choices[0].message.content, SAID);
  assert.ok(reply.usage.total_tokens > 0);
});

test("stream with usage", async () => {
  const stream = client.chat.completions.stream({
    model: "trio", messages, temperature: 0, stream_options: { include_usage: true },
  });
  assert.equal(await stream.finalContent(), SAID);
  assert.ok((await stream.totalUsage()).completion_tokens > 0);
});

test("log-probabilities in a stream", async () => {
  const stream = client.chat.completions.stream({ model: "trio", messages, temperature: 0, logprobs: true, top_logprobs: 1 });
  const reply = await stream.finalChatCompletion();
  assert.ok(reply.choices[0].logprobs.content.length > 0);
});

test("developer and system", async () => {
  const said = await client.chat.completions.create({
    model: "tools", messages: [{ role: "developer", content: "brief" }, ...messages],
  });
  assert.match(said.choices[0].message.content, /^hello/);
});

for (const stream of [false, true]) {
  test(`runTools, stream ${stream}`, async () => {
    const look = ({ place }) => `sunny in ${place}`;
    const tool = { type: "function", function: { name: "look", description: "Looks.", parameters, parse: JSON.parse, function: look } };
    const runner = client.chat.completions.runTools({ model: "tools", messages, tools: [tool], stream });
    assert.match(await runner.finalContent(), /^sunny in Paris/);
  });
}

test("parse with zod", async () => {
  const reply = await client.chat.completions.parse({
    model: "trio", messages, response_format: zodResponseFormat(z.object({ x: z.boolean() }), "point"), eft_reward_weights: 0,
  });
  assert.equal(typeof reply.choices[0].message.parsed.x, "boolean");
  assert.deepEqual(reply.eft.reward_weights, { chat: 0 });
});

test("responses, whole and streamed", async () => {
  const reply = await client.responses.create({ model: "trio", input: "hello", temperature: 0 });
  assert.equal(reply.output_text, SAID);
  const stream = client.responses.stream({ model: "trio", input: "hello", temperature: 0 });
  assert.equal((await stream.finalResponse()).output_text, SAID);
});

test("thoughts under the name that the types leave open", async () => {
  const asked = { model: "thinker", messages };
  const whole = await client.chat.completions.create(asked);
  assert.equal(whole.choices[0].message.reasoning_content, "I must look.");
  let streamed = "";
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true }))
    streamed += chunk.choices[0].delta.reasoning_content ?? "";
  assert.equal(streamed, "I must look.");
});

test("thoughts and calls of responses, handed back", async () => {
  const tools = [{ type: "function", name: "look", parameters, strict: false }];
  const asked = { model: "thinker", tools, store: false };
  const first = await client.responses.create({ ...asked, input: "hello" });
  assert.deepEqual(first.output.map((item) => item.type), ["reasoning", "function_call"]);
  assert.equal(first.output[0].content[0].text, "I must look.");
  const result = { type: "function_call_output", call_id: first.output[1].call_id, output: "sunny" };
  const second = await client.responses.create({ ...asked, input: [{ role: "user", content: "hello" }, ...first.output, result] });
  assert.match(second.output_text, /^sunny/);
});

for (const model of ["cut", "late", "unfit"]) {
  test(`no call that is none is run: ${model}`, async () => {
    for (const stream of [false, true]) {
      const ran = [];
      const tool = { type: "function", function: { name: "look", parameters, parse: JSON.parse, function: (given) => ran.push(given) } };
      await client.chat.completions.runTools({ model, messages, tools: [tool], stream }).done().catch(() => null);
      assert.deepEqual(ran, []);
    }
  });
}

test("errors are typed", async () => {
  await assert.rejects(client.chat.completions.create({ model: "nobody", messages }), OpenAI.NotFoundError);
  await assert.rejects(
    client.chat.completions.create({ model: "trio", messages: [{ role: "user", content: "hello ".repeat(5000) }] }),
    (error) => error instanceof OpenAI.BadRequestError && error.code === "context_length_exceeded",
  );
});
