// The sliders of one column: one per pair, within what the server allows. A weight that follows the token, a schedule, is shown
// and stays the server's, unless a number is given in its place.

const FREE = [-4, 4];

/** A slider's ends; null: the weight is fixed. A free weight has a slider of the usual range and a field for any number. */
function bounds(rule, own) {
  if (rule === "fixed") return null;
  const [low, high] = rule === "free" ? FREE : rule;
  return [Math.min(low, own), Math.max(high, own)];
}

function words(rule) {
  if (rule === "fixed") return "fixed by the server";
  return rule === "free" ? "any number" : `from ${rule[0]} to ${rule[1]}`;
}

function isSchedule(weight) {
  return typeof weight === "object";
}

/** The largest number, by amount, that a weight can be. */
function peak(weight) {
  if (!isSchedule(weight)) return weight;
  const inside = ["weight", "then", "before", "outside", "otherwise", "start", "end", "most"].filter((name) => name in weight);
  return inside.map((name) => peak(weight[name])).reduce((most, own) => (Math.abs(own) > Math.abs(most) ? own : most), 0);
}

function element(name, fields) {
  return Object.assign(document.createElement(name), fields);
}

export class Weights {
  constructor(fieldset, prefix, changed) {
    this.fieldset = fieldset;
    this.prefix = prefix;
    this.changed = changed;
    this.fields = new Map();
    this.own = {};
  }

  /** Show the pairs of a model; `kept` are weights of before that stay where the server allows them. */
  show(model, kept = {}) {
    this.fields.clear();
    this.own = model.eft?.pairs ?? {};
    this.fieldset.replaceChildren(this.fieldset.querySelector("legend"));
    Object.entries(this.own).forEach(([pair, own], index) => {
      const rule = model.eft.allowed_weights?.[pair] ?? "free";
      this.fieldset.append(this.#row(pair, own, rule, `${this.prefix}-${index}`, kept[pair]));
    });
    this.fieldset.hidden = this.fields.size === 0;
  }

  get values() {
    return Object.fromEntries([...this.fields].map(([pair, field]) => [pair, field.schedule ?? Number(field.value)]));
  }

  /** The weights as one text. */
  get words() {
    return Object.entries(this.values)
      .map(([pair, value]) => `${pair} ${isSchedule(value) ? value.kind : value}`)
      .join(", ");
  }

  /** What a request has to say: weights that the server fixes are left out. */
  get asked() {
    const open = [...this.fields].filter(([, field]) => !field.disabled && !field.schedule);
    return Object.fromEntries(open.map(([pair, field]) => [pair, Number(field.value)]));
  }

  /** The first field with a number that the server does not allow. */
  get invalid() {
    return [...this.fields.values()].find((field) => field.value === "" || !field.checkValidity());
  }

  #row(pair, own, rule, id, kept) {
    const row = element("div", { className: "pair" });
    const label = element("label", { htmlFor: id, textContent: pair });
    const follows = isSchedule(own) ? `${own.kind}, ` : "";
    const hint = element("small", { id: `${id}-hint`, textContent: follows + words(rule) });
    const title = element("span");
    title.append(label, hint);
    const slider = element("input", { type: "range", id });
    const field = element("input", { type: "number", step: "any", required: true });
    field.setAttribute("aria-label", `Weight of ${pair}`);
    const most = peak(own);
    const range = bounds(rule, most);
    for (const input of [slider, field]) {
      input.setAttribute("aria-describedby", hint.id);
      input.disabled = range === null;
    }
    const [low, high] = range ?? [Math.min(most, 0), Math.max(most, 2)];
    Object.assign(slider, { min: low, max: high, step: 0.05 });
    if (range && rule !== "free") Object.assign(field, { min: low, max: high });
    const isKept = range && typeof kept === "number" && kept >= low && kept <= high;
    slider.value = field.value = isKept ? kept : most;
    field.schedule = isSchedule(own) && !isKept ? own : null;
    slider.addEventListener("input", () => {
      field.schedule = null;
      field.value = slider.value;
      this.changed();
    });
    field.addEventListener("input", () => {
      field.schedule = null;
      if (field.value !== "") slider.value = field.value;
      this.changed();
    });
    this.fields.set(pair, field);
    row.append(title, slider, field);
    return row;
  }
}
