// Shows /openapi.json: routes, fields, answers, and a form that sends a request.

const SHOWN_BYTES = 200_000; // of an answer; /metrics and long streams would fill the page

const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

const headers = (more = {}) => {
  const key = document.getElementById('key').value;
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
};

/** A schema's type and range in a few words. */
export function spelled(schema) {
  if (schema.$ref) return schema.$ref.split('/').pop();
  if (schema.anyOf) return [...new Set(schema.anyOf.map(spelled))].filter((word) => word !== 'null').join(' or ');
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(' or ');
  if ('const' in schema) return JSON.stringify(schema.const);
  const type = Array.isArray(schema.type) ? schema.type.filter((word) => word !== 'null').join(' or ') : schema.type;
  if (type === undefined) return 'anything';
  if (type === 'null') return 'null only';
  if (type === 'array') return `list of ${spelled(schema.items ?? {})}${'maxItems' in schema ? `, at most ${schema.maxItems}` : ''}`;
  return type + range(schema);
}

function range(schema) {
  const low = schema.minimum ?? schema.exclusiveMinimum ?? schema.minLength;
  const high = schema.maximum ?? schema.maxLength;
  if (low === undefined && high === undefined) return '';
  const least = low === undefined ? '' : ` ${'exclusiveMinimum' in schema ? 'above' : 'from'} ${low}`;
  const most = high === undefined ? '' : ` to ${high}`;
  return least + most + (schema.type === 'string' ? ' characters' : '');
}

function rows(head, lines) {
  const table = element('table', {}, element('tr', {}, ...head.map((word) => element('th', { scope: 'col' }, word))));
  for (const line of lines) table.append(element('tr', {}, ...line.map((cell) => element('td', {}, cell))));
  return element('div', { className: 'scroll' }, table);
}

function fields(schema) {
  const required = new Set(schema.required ?? []);
  const lines = Object.entries(schema.properties ?? {}).map(([name, field]) => [
    element('code', {}, name),
    spelled(field) + (required.has(name) ? ', required' : ''),
    field.description ?? '',
  ]);
  return rows(['field', 'type and range', 'what it does'], lines);
}

function answers(responses) {
  const lines = Object.entries(responses).map(([status, response]) => {
    const kinds = Object.entries(response.content ?? {}).map(([type, { schema }]) => (schema ? `${type}: ${spelled(schema)}` : type));
    return [element('code', {}, status), response.description, kinds.join(', ')];
  });
  return rows(['status', 'when', 'body'], lines);
}

/** The address of a route with its parameters filled in; `queries` that are empty are left out. */
function address(path, inputs, queries) {
  const filled = path.replace(/\{(\w+)\}/g, (_, name) => inputs.get(name).value.split('/').map(encodeURIComponent).join('/'));
  const url = new URL(filled.slice(1), document.baseURI);
  for (const name of queries) if (inputs.get(name).value) url.searchParams.set(name, inputs.get(name).value);
  return url;
}

/** Reads an answer into `output` as it arrives. */
async function read(response, output) {
  output.textContent = `${response.status} ${response.headers.get('content-type') ?? ''}\n\n`;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let shown = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    output.append(value);
    shown += value.length;
    if (shown > SHOWN_BYTES) {
      output.append('\n...');
      await reader.cancel();
      return;
    }
  }
}

function attempt(method, path, operation) {
  const inputs = new Map();
  const form = element('form', {}, element('h3', {}, 'Try it'));
  const queries = [], named = [];
  for (const { name, description, required = false, in: place } of operation.parameters ?? []) {
    const input = element('input', { required });
    if (place === 'query') queries.push(name);
    if (place === 'header') named.push(name);
    inputs.set(name, input);
    form.append(element('label', {}, `${name}: ${description} `, input));
  }
  const content = operation.requestBody?.content['application/json'];
  const body = content && element('textarea', { spellcheck: false, value: JSON.stringify(content.example ?? {}, null, 2) });
  if (body) {
    body.setAttribute('aria-label', 'Body');
    form.append(body);
  }
  const output = element('pre', { hidden: true });
  output.setAttribute('role', 'status');
  const button = element('button', { type: 'submit' }, 'Send');
  form.append(element('div', {}, button), output);
  let running = null;
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    if (running) {
      running.abort();
      return;
    }
    running = new AbortController();
    button.textContent = 'Stop';
    output.hidden = false;
    output.textContent = '';
    try {
      const more = body ? { 'content-type': 'application/json' } : {};
      for (const name of named) if (inputs.get(name).value) more[name] = inputs.get(name).value;
      const { signal } = running;
      const request = { method: method.toUpperCase(), headers: headers(more), body: body?.value, signal };
      await read(await fetch(address(path, inputs, queries), request), output);
    } catch (error) {
      output.append(`\n${error.message}`);
    } finally {
      running = null;
      button.textContent = 'Send';
    }
  });
  return form;
}

function route(path, method, operation) {
  const summary = element(
    'summary',
    {},
    element('span', { className: 'method' }, method.toUpperCase()),
    element('code', {}, path),
    element('span', { className: 'about' }, ` ${operation.summary}`),
  );
  const details = element('details', { id: `${method}${path.replace(/[^a-z0-9]+/gi, '-')}` }, summary);
  // Filled when it is first opened: the long tables are many, and few are read.
  details.addEventListener('toggle', () => {
    if (details.childElementCount > 1) return;
    const schema = operation.requestBody?.content['application/json']?.schema;
    if (schema) details.append(element('h3', {}, 'Body'), fields(schema));
    details.append(element('h3', {}, 'Answers'), answers(operation.responses), attempt(method, path, operation));
  });
  return details;
}

function show(description) {
  document.getElementById('version').textContent = description.info.version;
  document.getElementById('about').textContent = description.info.description;
  const list = element('ul');
  const routes = [];
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const section = route(path, method, operation);
      routes.push(section);
      const link = element('a', { href: `#${section.id}` }, `${method.toUpperCase()} ${path}`);
      link.addEventListener('click', () => { section.open = true; });
      list.append(element('li', {}, link));
    }
  }
  const schemas = element('details', { id: 'schemas' }, element('summary', {}, 'Parts of bodies and answers'));
  for (const [name, schema] of Object.entries(description.components.schemas)) {
    schemas.append(element('h3', {}, name), fields(schema));
  }
  document.getElementById('contents').replaceChildren(list);
  document.getElementById('routes').replaceChildren(...routes, schemas);
}

async function load() {
  const problem = document.getElementById('problem');
  const main = document.getElementById('routes');
  try {
    const response = await fetch(new URL('openapi.json', document.baseURI), { headers: headers() });
    const body = await response.json();
    if (!response.ok) throw new Error(body.error?.message ?? `Status ${response.status}`);
    show(body);
    problem.hidden = true;
  } catch (error) {
    problem.hidden = false;
    problem.textContent = `The description could not be loaded: ${error.message}`;
  }
  main.setAttribute('aria-busy', 'false');
}

document.getElementById('access').addEventListener('submit', (event) => event.preventDefault());
document.getElementById('key').addEventListener('change', load);
await load();
