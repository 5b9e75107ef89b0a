// One column: its weights, its conversation, and the answer that is being written.

import { chat, ServerError } from "./api.js";
import { TokenStrip } from "./tokens.js";
import { Weights } from "./weights.js";

const now = () => performance.now() / 1000;
const percent = (share) => `${(100 * share).toFixed(0)} %`;

function part(name, className, text = "") {
  return Object.assign(document.createElement(name), { className, textContent: text });
}

export class Column {
  constructor(number, changed) {
    const copy = document.getElementById("column").content.cloneNode(true);
    this.element = copy.firstElementChild;
    const title = this.element.querySelector("h2");
    title.id = `column-${number}`;
    title.textContent = number === 1 ? "Answer" : "Answer with other weights";
    this.element.setAttribute("aria-labelledby", title.id);
    this.log = this.element.querySelector(".log");
    this.log.setAttribute("aria-label", `Conversation ${number}`);
    this.numbers = this.element.querySelector(".numbers");
    this.weights = new Weights(this.element.querySelector(".weights"), `weight-${number}`, changed);
    this.tokens = new TokenStrip(this.element.querySelector(".tokens"));
    this.messages = [];
  }

  clear() {
    this.messages = [];
    this.log.replaceChildren();
    this.numbers.replaceChildren();
    this.tokens.clear();
  }

  /** Go on from another column's conversation. */
  follow(other) {
    this.clear();
    this.messages = structuredClone(other.messages);
    this.log.replaceChildren(...[...other.log.children].map((own) => own.cloneNode(true)));
  }

  /** Ask, and show the answer as it comes. A turn that got no answer is not part of the conversation. */
  async ask(text, request, signal) {
    this.#show("user", "You", text);
    this.messages.push({ role: "user", content: text });
    const body = request(this);
    const answer = new Answer(this.#show("assistant", "Model", "", this.weights.words), this.numbers);
    this.tokens.clear();
    this.log.setAttribute("aria-busy", "true");
    try {
      for await (const chunk of chat(body, signal)) {
        const atEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 40;
        answer.take(chunk);
        this.tokens.add(chunk.eft?.tokens ?? []);
        if (atEnd) this.log.scrollTop = this.log.scrollHeight;
      }
    } catch (error) {
      answer.end(signal.aborted ? "Stopped." : `Failed: ${error.message}`);
      if (!signal.aborted) throw error instanceof ServerError ? error : new ServerError(error.message);
    } finally {
      this.log.setAttribute("aria-busy", "false");
      if (answer.isEmpty) this.messages.pop();
      else this.messages.push(answer.message);
      this.log.scrollTop = this.log.scrollHeight;
    }
  }

  #show(kind, who, text, weights = "") {
    const message = part("div", `message ${kind}`);
    const title = part("h3", "", who);
    if (weights) title.append(part("span", "at", ` · ${weights}`));
    message.append(title, part("div", "text", text));
    this.log.append(message);
    this.log.scrollTop = this.log.scrollHeight;
    return message;
  }
}

class Answer {
  constructor(element, numbers) {
    this.element = element;
    this.text = element.querySelector(".text");
    this.numbers = numbers;
    this.thought = null;
    this.calls = [];
    this.began = now();
    this.first = null;
    this.numTokens = 0;
    this.progress = null;
  }

  take(chunk) {
    const choice = chunk.choices[0];
    const delta = choice?.delta ?? {};
    const thought = delta.reasoning_content ?? "";
    if (delta.content) this.text.textContent += delta.content;
    if (thought) this.#think(thought);
    (delta.tool_calls ?? []).forEach((piece) => this.#call(piece));
    this.progress = chunk.eft?.progress ?? this.progress;
    const count = chunk.eft?.tokens?.length ?? Number(Boolean(delta.content || thought || delta.tool_calls));
    if (count) this.first ??= now();
    this.numTokens = chunk.usage?.completion_tokens ?? this.progress?.num_tokens ?? this.numTokens + count;
    if (choice?.finish_reason) {
      this.report = chunk.eft?.choices?.[0];
      this.requestId = chunk.eft?.request_id;
      this.reason = choice.finish_reason;
    }
    this.#count();
  }

  end(words) {
    this.element.append(part("p", "ending", words));
  }

  get isEmpty() {
    return this.text.textContent === "" && !this.calls.length && this.thought === null;
  }

  /** As the next request repeats it. Calls stay out: nobody here gives their results. */
  get message() {
    const calls = this.calls.length ? JSON.stringify(this.calls) : "";
    return { role: "assistant", content: this.text.textContent || calls };
  }

  #think(text) {
    if (this.thought === null) {
      const block = part("details", "thought");
      this.thought = part("div", "text");
      block.append(part("summary", "", "Thought"), this.thought);
      this.element.insertBefore(block, this.text);
    }
    this.thought.textContent += text;
  }

  #call(piece) {
    const call = (this.calls[piece.index] ??= { name: "", arguments: "" });
    call.name += piece.function?.name ?? "";
    call.arguments += piece.function?.arguments ?? "";
    this.callText ??= this.element.appendChild(part("pre", "calls"));
    this.callText.textContent = JSON.stringify(this.calls, null, 2);
  }

  #count() {
    const seconds = now() - (this.first ?? this.began);
    const parts = [`${this.numTokens} ${this.numTokens === 1 ? "token" : "tokens"}`];
    if (this.numTokens > 1 && seconds > 0) parts.push(`${((this.numTokens - 1) / seconds).toFixed(1)} tokens/s`);
    const drafts = this.#drafts();
    if (drafts) parts.push(drafts);
    const steered = this.report?.intervention_rate;
    if (steered !== undefined) parts.push(`weights at work in ${percent(steered)} of tokens`);
    if (this.reason) parts.push(this.reason === "length" ? "cut at the most tokens" : "complete");
    if (this.requestId) parts.push(`request ${this.requestId}`);
    this.numbers.replaceChildren(...parts.map((text) => part("li", "", text)));
  }

  /** While the answer comes, by what its pieces tell; a backend that counts nothing tells the share at the end. */
  #drafts() {
    const { num_drafted: drafted, num_accepted: accepted } = this.progress ?? {};
    if (drafted) return `${accepted} of ${drafted} drafts accepted (${percent(accepted / drafted)})`;
    const rate = this.report?.acceptance_rate;
    return rate ? `${percent(rate)} of drafts accepted` : "";
  }
}
