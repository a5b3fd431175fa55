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

// What an editor or a generator of code would object to, and what it would merely remark.
async function judge(text) {
  const elsewhere = remote(jsYaml.load(text));
  if (elsewhere.length > 0) return { problems: elsewhere, remarks: [] };
  const { document, diagnostics } = await parser.parse(text);
  const isProblem = ({ severity }) => severity <= DiagnosticSeverity.Warning;
  const line = ({ severity, path, range, code, message }) =>
    `${DiagnosticSeverity[severity]}: line ${range.start.line + 1}, ${path.join('/')}: ${message} (${code})`;
  const problems = diagnostics.filter(isProblem).map(line);
  const remarks = diagnostics.filter((one) => !isProblem(one)).map(line);
  if (!document && problems.length === 0) problems.push('the parser has no document');
  return { document, problems, remarks };
}

const file = process.argv[2];
const text = readFileSync(file, 'utf8');
let failed = false;

const id = '"#/components/schemas/Id"';
const broken = {
  'a reference to another host': [id, '"http://127.0.0.1:1/schemas.json"'],
  'a reference to a file': [id, '"./schemas.yaml#/Id"'],
  'a reference to nothing': [id, '"#/components/schemas/Nobody"'],
  'an action that there is not': ['action: receive', 'action: whisper'],
  'a schema that is none': ['type: integer', 'type: whole'],
  'a field that AsyncAPI does not know': ['\nchannels:', '\nlines: []\nchannels:'],
  'YAML that is none': ['\nchannels:', '\nchannels: ['],
};
for (const [what, [from, to]] of Object.entries(broken)) {
  const changed = text.replaceAll(from, to);
  const found = changed !== text && (await judge(changed).then(({ problems }) => problems, () => ['no YAML']));
  if (!found || found.length === 0) {
    console.error(`${file}: with ${what} nothing would be found wrong`);
    failed = true;
  }
}

const { document, problems, remarks } = await judge(text);
for (const remark of remarks) console.log(`${file}: ${remark}`);
for (const problem of problems) console.error(`${file}: ${problem}`);
if (failed || problems.length > 0) process.exit(1);
const messages = document.allMessages().all().length;
console.log(`${file}: AsyncAPI ${document.version()}, ${messages} messages, nothing wrong`);
