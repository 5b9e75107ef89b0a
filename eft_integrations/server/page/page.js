// The page: its settings, one or two columns, and what they send.

import { address, key, models, ServerError } from "./api.js";
import { Column } from "./column.js";
import { curl, python } from "./snippets.js";

const find = (id) => document.getElementById(id);
const columns = [];
let known = [];
let running = null;

function alert(text, { focus = true } = {}) {
  find("alert").textContent = text;
  find("alert").hidden = text === "";
  if (text && focus) find("alert").focus();
}

const words = (error) => (error instanceof ServerError ? error.words : `This page failed: ${error.message}`);

function askForKey(message) {
  find("key-form").hidden = false;
  find("desk").hidden = known.length === 0;
  alert(message, { focus: false });
  find("key").focus();
}

async function load() {
  try {
    known = await models();
  } catch (error) {
    if (error.status === 401) askForKey(key.get() ? "The server does not know this key." : "");
    else alert(error instanceof ServerError ? error.words : `The server cannot be reached: ${error.message}`);
    return;
  }
  alert("");
  find("key-form").hidden = true;
  find("desk").hidden = false;
  const chosen = find("model").value;
  find("model").replaceChildren(...known.map(({ id }) => new Option(id, id, id === chosen, id === chosen)));
  showModel();
}

function model() {
  return known.find(({ id }) => id === find("model").value);
}

function showModel() {
  if (!model()) return;
  columns.forEach((column) => column.weights.show(model(), column.weights.values));
  showSnippets();
}

function compare() {
  if (find("compare").checked) {
    const second = new Column(2, showSnippets);
    second.follow(columns[0]);
    columns.push(second);
    find("columns").append(second.element);
    if (model()) second.weights.show(model(), columns[0].weights.values);
  } else {
    columns.pop().element.remove();
  }
}

/** The body of a column's next request. A field that is empty is left out, so that the server's own choice holds. */
function request(column, messages = column.messages) {
  const system = find("system").value;
  const body = {
    model: find("model").value,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    stream: true,
    stream_options: { include_usage: true },
    eft_progress: true,
  };
  const numbers = { temperature: "temperature", max_tokens: "max-tokens", seed: "seed" };
  for (const [name, id] of Object.entries(numbers)) {
    if (find(id).value !== "") body[name] = Number(find(id).value);
  }
  if (Object.keys(column.weights.asked).length) body.eft_reward_weights = column.weights.asked;
  if (find("rewards").checked) body.eft_token_rewards = true;
  return body;
}

function showSnippets() {
  const text = find("prompt").value || "Hello!";
  const ends = columns[0].messages.at(-1)?.role === "user";
  const body = request(columns[0], [...columns[0].messages, ...(ends ? [] : [{ role: "user", content: text }])]);
  find("curl").textContent = curl(address("v1/chat/completions"), body);
  find("python").textContent = python(address("v1"), body);
}

function invalid() {
  const numbers = ["temperature", "max-tokens", "seed"].map(find).find((field) => !field.checkValidity());
  return numbers ?? columns.map((column) => column.weights.invalid).find(Boolean);
}

async function send() {
  const text = find("prompt").value;
  if (running || !text.trim()) return;
  if (!model()) return load();
  const wrong = invalid();
  if (wrong) {
    wrong.reportValidity();
    return;
  }
  alert("");
  running = new AbortController();
  find("send").disabled = true;
  find("stop").disabled = false;
  find("compare").disabled = true;
  find("prompt").value = "";
  find("status").textContent = "The answer is being written.";
  const asked = columns.map((column) => column.ask(text, request, running.signal));
  showSnippets();
  const failed = (await Promise.allSettled(asked)).find(({ status }) => status === "rejected");
  find("status").textContent = failed || running.signal.aborted ? "" : "The answer is complete.";
  running = null;
  find("send").disabled = false;
  find("stop").disabled = true;
  find("compare").disabled = false;
  showSnippets();
  if (failed) fail(failed.reason, text);
  else find("prompt").focus();
}

/** Tell it, and give back what was written, to be sent again. */
function fail(error, text) {
  find("prompt").value ||= text;
  let further = "";
  if (error.param === "eft_token_rewards") {
    find("rewards").checked = false;
    further = "\nRewards of tokens are switched off now; send the message again.";
  }
  showSnippets();
  if (error.status === 401) askForKey(words(error));
  else alert(words(error) + further);
}

async function copy(id) {
  try {
    await navigator.clipboard.writeText(find(id).textContent);
    find("status").textContent = `Copied: ${id}.`;
  } catch {
    getSelection().selectAllChildren(find(id)); // a page without TLS has no clipboard
    find("status").textContent = "The browser does not let this page copy; the text is selected.";
  }
}

function start() {
  columns.push(new Column(1, showSnippets));
  find("columns").append(columns[0].element);
  find("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key.set(find("key").value.trim());
    find("key").value = "";
    load();
  });
  find("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  find("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  find("stop").addEventListener("click", () => running?.abort());
  find("clear").addEventListener("click", () => {
    running?.abort();
    columns.forEach((column) => column.clear());
    alert("");
    showSnippets();
    find("prompt").focus();
  });
  find("model").addEventListener("change", showModel);
  find("compare").addEventListener("change", compare);
  for (const id of ["settings", "prompt"]) find(id).addEventListener("input", showSnippets);
  for (const button of document.querySelectorAll("[data-copies]")) {
    button.addEventListener("click", () => copy(button.dataset.copies));
  }
  find("sampling").open = !matchMedia("(max-width: 52rem)").matches;
  load();
}

start();
