// The AI SDK over each of its providers.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const SAID = "Hello! How can I help?";
const THOUGHT = "I must look.";
const at = { baseURL: process.env.EFT_BASE_URL, apiKey: "none" };
const openai = createOpenAI(at);
const compatible = createOpenAICompatible({ ...at, name: "eft", includeUsage: true, supportsStructuredOutputs: true });
const city = { schema: z.object({ city: z.string(), sunny: z.boolean() }), expected: { city: "Paris", sunny: true } };
const place = { schema: z.object({ place: z.string() }), expected: { place: "Paris" } };

// By name: the provider, its options, the object that it is asked for, and whether it reads thoughts.
const providers = {
  "openai-compatible": { of: compatible, object: city, thinks: true },
  "openai chat": { of: openai.chat, object: city, thinks: false },
  "openai responses, kept": { of: openai.responses, object: city, thinks: false },
  "openai responses, not kept": {
    of: openai.responses,
    options: { openai: { store: false, forceReasoning: true, reasoningSummary: "auto" } },
    object: city,
    thinks: true,
  },
  "anthropic, an object by a tool": { of: createAnthropic(at), object: place, thinks: true },
  "anthropic, an object by a format": {
    of: createAnthropic(at),
    options: { anthropic: { structuredOutputMode: "outputFormat" } },
    object: city,
    thinks: true,
  },
};
const tools = {
  look: tool({
    description: "Looks.",
    inputSchema: z.object({ place: z.string() }),
    execute: async ({ place }) => `sunny in ${place}`,
  }),
};
globalThis.AI_SDK_LOG_WARNINGS = false;

for (const [name, { of, options, object, thinks }] of Object.entries(providers)) {
  const asked = (model) => ({ prompt: "hello", maxRetries: 0, maxOutputTokens: 64, model: of(model), providerOptions: options });
  const hello = { ...asked("trio"), providerOptions: {}, temperature: 0 };

  test(`${name}: text`, async () => {
    const whole = await generateText(hello);
    assert.equal(whole.text, SAID);
    assert.ok(whole.usage.inputTokens > 0 && whole.usage.outputTokens > 0);
    assert.equal(whole.finishReason, "stop");
  });

  test(`${name}: stream`, async () => {
    const stream = streamText(hello);
    assert.equal(await stream.text, SAID);
    assert.ok((await stream.usage).outputTokens > 0);
  });

  test(`${name}: tools in several steps`, async () => {
    const looking = { ...asked("thinker"), tools, stopWhen: stepCountIs(3) };
    const whole = await generateText(looking);
    assert.match(whole.text, /^sunny in Paris/);
    assert.deepEqual(whole.steps.map((step) => step.toolCalls.length), [1, 0]);
    assert.match(await streamText(looking).text, /^sunny in Paris/);
  });

  test(`${name}: objects`, async () => {
    const wanted = { ...asked("tools"), schema: object.schema };
    assert.deepEqual((await generateObject(wanted)).object, object.expected);
    const stream = streamObject(wanted);
    let last;
    for await (const partial of stream.partialObjectStream) last = partial;
    assert.deepEqual(last, object.expected);
    assert.deepEqual(await stream.object, object.expected);
  });

  test(`${name}: reasoning`, async () => {
    const told = await generateText(asked("thinker"));
    assert.equal(told.reasoningText || "", thinks ? THOUGHT : "");
    assert.match(told.text, /^hello/);
    const streamed = streamText(asked("thinker"));
    assert.equal((await streamed.reasoningText) || "", thinks ? THOUGHT : "");
    assert.match(await streamed.text, /^hello/);
  });

  test(`${name}: errors`, async () => {
    await assert.rejects(generateText(asked("nobody")), (error) => error.statusCode === 404 && /nobody/.test(error.message));
  });
}
