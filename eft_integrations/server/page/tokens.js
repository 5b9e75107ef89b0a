// Tokens of an answer, each marked by its implicit reward: what tuned models give it beyond their references, over all pairs.

const SMALL = 0.1;
const LARGE = 1;

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

export const total = (rewards) => Object.values(rewards).reduce((sum, value) => sum + value, 0);

/** Colour and line: neither stands alone, and the numbers are read out. */
export function mark(reward) {
  if (Math.abs(reward) < SMALL) return "r0";
  if (reward > 0) return reward < LARGE ? "r1" : "r3";
  return reward > -LARGE ? "s1" : "s3";
}

export function describe({ token, logprob, rewards }) {
  const parts = Object.entries(rewards).map(([pair, value]) => `${pair} ${signed(value)}`);
  const sum = parts.length > 1 ? [`together ${signed(total(rewards))}`] : [];
  const told = parts.length ? `reward ${[...parts, ...sum].join(", ")}` : "no reward (its pair was not run)";
  return `“${token}”: ${told}; probability ${(100 * Math.exp(logprob)).toFixed(1)} %`;
}

export class TokenStrip {
  constructor(details) {
    this.details = details;
    this.strip = details.querySelector(".strip");
    this.reading = details.querySelector("[role=status]");
    this.strip.addEventListener("keydown", (event) => this.#move(event));
  }

  clear() {
    this.details.hidden = true;
    this.strip.replaceChildren();
    this.reading.textContent = "";
  }

  add(tokens) {
    if (tokens.length) this.details.hidden = false;
    for (const own of tokens) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = `token ${mark(total(own.rewards))}`;
      button.textContent = own.token === "" ? "∅" : own.token.replaceAll("\n", "⏎\n");
      button.title = describe(own);
      button.setAttribute("aria-label", describe(own));
      button.tabIndex = this.strip.childElementCount ? -1 : 0;
      const tell = () => (this.reading.textContent = describe(own));
      button.addEventListener("focus", tell);
      button.addEventListener("click", tell);
      this.strip.append(button);
    }
  }

  #move(event) {
    const buttons = [...this.strip.children];
    const at = buttons.indexOf(document.activeElement);
    const goals = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 };
    const goal = buttons[goals[event.key]];
    if (!goal) return;
    event.preventDefault();
    buttons.forEach((own) => (own.tabIndex = own === goal ? 0 : -1));
    goal.focus();
  }
}
