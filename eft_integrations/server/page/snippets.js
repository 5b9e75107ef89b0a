// The request as text to copy. The key is never part of it.

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curl(url, body) {
  return [
    `curl --no-buffer ${quoted(url)}`,
    `-H 'Content-Type: application/json'`,
    `-H "Authorization: Bearer \${EFT_API_KEY:-none}"`,
    `-d ${quoted(JSON.stringify(body))}`,
  ].join(" \\\n  ");
}

/** A value as Python writes it: texts of JSON are texts of Python. */
function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value)
      .map(([name, own]) => `${literal(name)}: ${literal(own)}`)
      .join(", ")}}`;
  }
  return JSON.stringify(value);
}

export function python(base, body) {
  const entries = Object.entries(body);
  const plain = entries.filter(([name]) => !name.startsWith("eft_"));
  const extra = Object.fromEntries(entries.filter(([name]) => name.startsWith("eft_")));
  const fields = plain.map(([name, value]) => `    ${name}=${literal(value)},`);
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(base)}, api_key=os.environ.get("EFT_API_KEY", "none"))`,
    "stream = client.chat.completions.create(",
    ...fields,
    `    extra_body=${literal(extra)},`,
    ")",
    "for chunk in stream:",
    "    if chunk.choices and chunk.choices[0].delta.content:",
    '        print(chunk.choices[0].delta.content, end="", flush=True)',
    "print()",
    "",
  ].join("\n");
}
