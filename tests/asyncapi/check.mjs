// Reads an AsyncAPI document as its users' tools do, and prints what they would say of it; exits with 1
// on an error or a warning. First it shows, on the same document broken in a few places, that it would.
//
//     node tests/asyncapi/check.mjs FILE
import { readFileSync } from 'node:fs';
import { DiagnosticSeverity } from '@stoplight/types';
import jsYaml from 'js-yaml';
import asyncapi from '@asyncapi/parser';

// What is elsewhere is not read, neither from the network nor from a file. The parser's own resolvers
// would be tried where one of these threw: they answer with nothing instead, which no reference fits.
const nothing = (schema) => ({ schema, order: 1, canRead: true, read: () => 'null' });
const resolver = { resolvers: ['http', 'https', 'file'].map(nothing) };
const parser = new asyncapi.Parser({ __unstable: { resolver } });

// References that leave the document, as paths.
function remote(value, path = '') {
  if (value === null || typeof value !== 'object') return [];
  return Object.entries(value).flatMap(([key, inner]) =>
    key === '$ref' && typeof inner === 'string' && !inner.startsWith('#')
      ? [`${path}/$ref: ${inner} is not in this document`]
      : remote(inner, `${path}/${key}`),
  );
}

async function problems(text) {
  const elsewhere = remote(jsYaml.load(text));
  if (elsewhere.length > 0) return elsewhere;
  const { document, diagnostics } = await parser.parse(text);
  const found = diagnostics.map(({ severity, path, range, code, message }) => ({
    line: `${DiagnosticSeverity[severity]}: line ${range.start.line + 1}, ${path.join('/')}: ${message} (${code})`,
    counts: severity <= DiagnosticSeverity.Warning,
  }));
  for (const { line, counts } of found) if (!counts) console.log(line);
  const serious = found.filter(({ counts }) => counts).map(({ line }) => line);
  return document || serious.length > 0 ? serious : ['the parser has no document'];
}

const file = process.argv[2];
const text = readFileSync(file, 'utf8');

const broken = {
  'a reference to another host': [`'#/components/schemas/Id'`, `'http://127.0.0.1:1/schemas.json'`],
  'a reference to a file': [`'#/components/schemas/Id'`, `'./schemas.yaml#/Id'`],
  'a reference to nothing': [`'#/components/schemas/Id'`, `'#/components/schemas/Nobody'`],
  'an action that there is not': ['action: receive', 'action: whisper'],
  'an example that is no such message': ['has_more: false', 'has_more: 7'],
  'a schema that is none': ['type: integer', 'type: number-like'],
};
let failed = false;
for (const [what, [from, to]] of Object.entries(broken)) {
  const changed = text.replaceAll(from, to).replaceAll(from.replaceAll(`'`, `"`), to);
  if (changed === text || (await problems(changed)).length === 0) {
    console.error(`${file} with ${what} would not be found wrong`);
    failed = true;
  }
}
for (const problem of await problems(text)) {
  console.error(`${file}: ${problem}`);
  failed = true;
}
if (failed) process.exit(1);
const { document } = await parser.parse(text);
const { length } = document.allMessages().all();
console.log(`${file}: AsyncAPI ${document.version()}, ${length} messages, nothing wrong`);
