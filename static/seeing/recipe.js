/**
 * The exact request of an answer, to be sent again from elsewhere: as a curl command for a POSIX shell, and as
 * a Python program. Neither ever holds the API key, only where to find it.
 */

const PATH = "v1/chat/completions";
const LONG_ARGUMENT = 100_000; // bytes; Linux takes arguments of up to 128 kB

/** Fields that the openai package's `create` has an argument for; it sends others if they are in extra_body. */
const ARGUMENTS = new Set([
  "model", "messages", "frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "metadata",
  "n", "parallel_tool_calls", "presence_penalty", "reasoning_effort", "response_format", "seed", "service_tier", "stop",
  "store", "stream", "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user",
]);

/**
 * Characters that JSON allows as they are, but that a terminal obeys or that make a line look like another
 * one: control characters, line separators, marks of writing direction, characters without width.
 */
const TRICKS = /[\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/**
 * @param {Record<string, unknown>} body as it is sent
 * @param {string} address the page's own, with or without the route behind it
 * @param {{key?: boolean}} [options] key: whether the server asks for one
 */
export function asCurl(body, address, { key = false } = {}) {
  const data = json(body, 2);
  const long = new TextEncoder().encode(data).length > LONG_ARGUMENT;
  const parts = [
    `curl --no-buffer ${quoted(endpoint(address, PATH))}`,
    `--header ${quoted("Content-Type: application/json")}`,
    ...(key ? ['--header "Authorization: Bearer $API_KEY"'] : []),
    // Inside a quoted here-document nothing is special, and no line of JSON is the bare word that ends it.
    long ? "--data-binary @- <<'END'" : `--data-raw ${quoted(data)}`,
  ];
  return `${parts.join(" \\\n  ")}\n${long ? `${data}\nEND\n` : ""}`;
}

/**
 * A program for the `openai` package.
 * @param {Record<string, unknown>} body @param {string} address @param {{key?: boolean}} [options] as above
 */
export function asPython(body, address, { key = false } = {}) {
  const fields = Object.entries(body).filter(([, value]) => value !== undefined);
  const known = fields.filter(([name]) => ARGUMENTS.has(name));
  const extra = Object.fromEntries(fields.filter(([name]) => !ARGUMENTS.has(name)));
  const lines = known.map(([name, value]) => `    ${name}=${python(value, "    ")},\n`);
  if (!("model" in body)) lines.unshift("    model=client.models.list().data[0].id,\n");
  if (Object.keys(extra).length > 0) lines.push(`    extra_body=${python(extra, "    ")},\n`);
  const stream = body.stream === true;
  const secret = key ? 'os.environ["API_KEY"]' : '"none"';
  return [
    ...(key ? ["import os\n\n"] : []),
    "from openai import OpenAI\n\n",
    `client = OpenAI(base_url=${json(endpoint(address, "v1"))}, api_key=${secret})\n`,
    `${stream ? "stream" : "answer"} = client.chat.completions.create(\n`,
    ...lines,
    ")\n",
    stream ? SHOW_STREAM : SHOW_ANSWER,
  ].join("");
}

const SHOW_STREAM = `for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
print()
`;
const SHOW_ANSWER = `for choice in answer.choices:
    print(choice.message.content)
`;

/** @param {string} address @param {string} path */
function endpoint(address, path) {
  const base = new URL(address);
  base.search = base.hash = "";
  if (base.pathname.endsWith(`/${PATH}`)) base.pathname = base.pathname.slice(0, -PATH.length);
  else if (!base.pathname.endsWith("/")) base.pathname = base.pathname.replace(/[^/]*$/, "");
  return new URL(path, base).href;
}

/** @param {unknown} value @param {number} [indent] */
function json(value, indent) {
  /** @param {string} sign */
  const escaped = (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(value, null, indent).replace(TRICKS, escaped);
}

/** One word for the shell, whatever is in it. @param {string} text */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/**
 * A value of JSON as Python writes it; every string of JSON is one of Python too.
 * @param {unknown} value @param {string} indent @returns {string}
 */
function python(value, indent) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return json(value);
  const inner = `${indent}    `;
  const many = Array.isArray(value);
  const parts = many
    ? value.map((each) => `${inner}${python(each, inner)},\n`)
    : Object.entries(value)
        .filter(([, each]) => each !== undefined)
        .map(([name, each]) => `${inner}${json(name)}: ${python(each, inner)},\n`);
  const [open, close] = many ? "[]" : "{}";
  return parts.length === 0 ? open + close : `${open}\n${parts.join("")}${indent}${close}`;
}
