// What the page asks of the server. All addresses are relative to the page, so that a proxy may put it under a prefix.

const KEY = "eft-api-key";

export const address = (path) => new URL(path, new URL(".", document.baseURI)).href;

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

/** An answer that is an error. `status` is 0 where a stream failed after it had begun. */
export class ServerError extends Error {
  constructor(message, { status = 0, requestId = "", param = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
    this.requestId = requestId;
  }

  get words() {
    const what = `${this.status ? `The server answered ${this.status}` : "The answer broke off"}: ${this.message}`;
    return this.requestId ? `${what}\nRequest id: ${this.requestId}` : what;
  }
}

function headers() {
  return key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
}

async function refusal(response) {
  const text = await response.text();
  let told = {};
  try {
    told = JSON.parse(text).error ?? {};
  } catch {
    // Not JSON: a proxy in front of the server has answered, and its own words are shown.
  }
  const requestId = response.headers.get("x-request-id") ?? "";
  const message = told.message ?? (text.slice(0, 500) || response.statusText);
  return new ServerError(message, { status: response.status, requestId, param: told.param });
}

export async function models() {
  const response = await fetch(address("v1/models"), { headers: headers() });
  if (!response.ok) throw await refusal(response);
  return (await response.json()).data;
}

/** Chunks of a streamed answer; aborting the signal closes the connection, and the server ends the answer. */
export async function* chat(body, signal) {
  const response = await fetch(address("v1/chat/completions"), {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers() },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  const requestId = response.headers.get("x-request-id") ?? "";
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message, { requestId });
    yield chunk;
  }
  throw new ServerError("the connection ended.", { requestId });
}

/** The data of server-sent events; comments (pings) and other fields are skipped. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.map((own) => own.replace(/\r$/, ""))) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}
