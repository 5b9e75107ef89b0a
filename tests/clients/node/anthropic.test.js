// Anthropic's own client for JavaScript.
import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { z } from "zod";

const SAID = "Hello! How can I help?";
const client = new Anthropic({ baseURL: process.env.EFT_BASE_URL.replace(/\/v1$/, ""), apiKey: "none", maxRetries: 0 });
const asked = { model: "trio", max_tokens: 64, messages: [{ role: "user", content: "hello" }], temperature: 0 };
const tools = [{ name: "look", description: "Looks.", input_schema: { type: "object", properties: { place: { type: "string" } } } }];

test("whole, counted and streamed", async () => {
  const whole = await client.messages.create(asked);
  assert.equal(whole.content[0].text, SAID);
  const streamed = client.messages.stream(asked);
  assert.equal(await streamed.finalText(), SAID);
  assert.equal((await streamed.finalMessage()).usage.output_tokens, whole.usage.output_tokens);
  const counted = await client.messages.countTokens({ model: "trio", messages: asked.messages });
  assert.equal(counted.input_tokens, whole.usage.input_tokens + whole.usage.cache_read_input_tokens);
});

test("a thought and a call in a stream, and the result of the call", async () => {
  const first = await client.messages.stream({ ...asked, model: "thinker", tools }).finalMessage();
  assert.deepEqual(first.content.map((block) => block.type), ["thinking", "tool_use"]);
  assert.deepEqual(first.content[1].input, { place: "Paris" });
  const result = { type: "tool_result", tool_use_id: first.content[1].id, content: "sunny" };
  const messages = [...asked.messages, { role: "assistant", content: first.content }, { role: "user", content: [result] }];
  const second = await client.messages.create({ ...asked, model: "thinker", tools, messages });
  assert.match(second.content.at(-1).text, /^sunny/);
});

for (const model of ["cut", "late", "unfit"]) {
  test(`no part of a call that is none: ${model}`, async () => {
    const streamed = await client.messages.stream({ ...asked, model, tools }).finalMessage();
    assert.ok(streamed.content.every((block) => block.type !== "tool_use"));
    for (const stream of [false, true]) {
      const ran = [];
      await runner(model, ran, { stream }).runUntilDone();
      assert.deepEqual(ran, []);
    }
  });
}

function runner(model, ran, further) {
  const run = ({ place }) => {
    ran.push(place);
    return `sunny in ${place}`;
  };
  const look = betaZodTool({ name: "look", description: "Looks.", inputSchema: z.object({ place: z.string() }), run });
  return client.beta.messages.toolRunner({ ...asked, ...further, model, tools: [look] });
}

test("tool runner", async () => {
  for (const stream of [false, true]) {
    const ran = [];
    const message = await runner("thinker", ran, { stream }).runUntilDone();
    assert.match(message.content.at(-1).text, /^sunny in Paris/);
    assert.deepEqual(ran, ["Paris"]);
  }
});

test("betas and errors", async () => {
  const reply = await client.beta.messages.create({ ...asked, betas: ["context-management-2025-06-27"] });
  assert.equal(reply.content[0].text, SAID);
  await assert.rejects(
    client.messages.create({ ...asked, model: "nobody" }),
    (error) => error instanceof Anthropic.NotFoundError && Boolean(error.requestID) && error.type === "not_found_error",
  );
  await assert.rejects(client.messages.create({ ...asked, reward_weights: 9 }), Anthropic.PermissionDeniedError);
  await assert.rejects(client.messages.create({ ...asked, max_tokens: "many" }), Anthropic.BadRequestError);
  await assert.rejects(client.withOptions({ apiKey: "unknown" }).messages.create(asked), Anthropic.AuthenticationError);
});
