// What Continue does with a model of its configuration (the first argument, as JSON): list, chat, call a tool, complete, read a refusal.
import { constructLlmApi } from "@continuedev/openai-adapters";

const config = JSON.parse(process.argv[2]);
const api = constructLlmApi({ ...config, env: {} });
const signal = new AbortController().signal;
const messages = [{ role: "user", content: "hi" }];
const look = {
  type: "function",
  function: {
    name: "look",
    description: "Look at a place.",
    parameters: { type: "object", properties: { place: { type: "string" } }, required: ["place"] },
  },
};
const told = { text: "", call: "", completion: "" };

told.models = (await api.list()).map((model) => model.id);
for await (const chunk of api.chatCompletionStream({ model: config.model, messages, stream: true, max_tokens: 99 }, signal)) {
  told.text += chunk.choices[0]?.delta?.content ?? "";
  told.usage = chunk.usage ?? told.usage;
}
const whole = await api.chatCompletionNonStream({ model: config.model, messages, stream: false }, signal);
told.whole = whole.choices[0].message.content;
for await (const chunk of api.chatCompletionStream({ model: config.model, messages, stream: true, tools: [look] }, signal)) {
  for (const piece of chunk.choices[0]?.delta?.tool_calls ?? []) told.call += piece.function.arguments ?? "";
}
const prompt = "<fim_prefix>def f():<fim_suffix>\n<fim_middle>";
const completing = { model: config.model, prompt, stream: true, max_tokens: 8, temperature: 0.01, stop: ["<fim_prefix>", "\n\n"] };
for await (const chunk of api.completionStream(completing, signal)) told.completion += chunk.choices[0]?.text ?? "";
try {
  await api.chatCompletionNonStream({ model: "other", messages, stream: false }, signal);
} catch (error) {
  told.refusal = [error.status, error.code];
}
process.stdout.write(`\n${JSON.stringify(told)}\n`, () => process.exit(0));
