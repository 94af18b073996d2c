// A viewer that speaks AMQP 1.0: publishes the messages that it reads, and says how each one fared.
//
// Standard input is one JSON object: `connection` (the library's options), `address`, and
// `messages`, each with any of `header`, `properties`, `annotations`, `application` and `body`.
// A value that JSON can't say is an object with one key, its type: {"uuid": "00ff..."} (hex, as
// binary and decimals are), {"ulong": 5}, {"repeat": ["x", 5000]}. A body is {"data": [text, ...]},
// {"sequence": [[...], ...]} or {"value": ...}. Standard output is a JSON list, one outcome for
// each message.

import rhea from 'rhea'

const { message, types } = rhea

const hex = (digits) => Buffer.from(digits, 'hex')
const makers = {
  repeat: ([text, times]) => text.repeat(times),
  bytes: ([text, times]) => Buffer.from(text.repeat(times)),
  binary: (digits) => types.wrap_binary(hex(digits)),
  uuid: (digits) => types.wrap_uuid(hex(digits)),
  decimal32: (digits) => types.Decimal32(hex(digits)),
  decimal64: (digits) => types.Decimal64(hex(digits)),
  decimal128: (digits) => types.Decimal128(hex(digits)),
  list: (items) => types.wrap_list(items.map(made)),
  map: (items) => types.wrap_map(allMade(items))
}

function made (value) {
  if (value === null || typeof value !== 'object') return value
  const [[type, content]] = Object.entries(value)
  return (makers[type] ?? types[`wrap_${type}`])(content)
}

function allMade (values) {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, made(value)]))
}

function sections (body) {
  if (!body) return undefined
  const [[kind, content]] = Object.entries(body)
  if (kind === 'data') return message.data_sections(content.map((text) => Buffer.from(text)))
  if (kind === 'sequence') return message.sequence_sections(content.map((items) => items.map(made)))
  return made(content)
}

function encoded ({ header, properties, annotations, application, body }) {
  const whole = { ...header, ...allMade(properties ?? {}), body: sections(body) }
  if (annotations) whole.message_annotations = allMade(annotations)
  if (application) whole.application_properties = allMade(application)
  return message.encode(whole)
}

async function read () {
  const parts = []
  for await (const part of process.stdin) parts.push(part)
  return JSON.parse(Buffer.concat(parts))
}

const { connection, address, messages } = await read()
const payloads = messages.map(encoded)
const outcomes = messages.map(() => 'unanswered')
const numbers = new Map()
const container = rhea.create_container()
const opened = container.connect({ ...connection, reconnect: false })
const sender = opened.open_sender(address)

container.on('sendable', () => {
  while (sender.sendable() && numbers.size < payloads.length) {
    const number = numbers.size
    numbers.set(sender.send(payloads[number], `${number}`, 0).id, number)
  }
})
let answered = 0
for (const outcome of ['accepted', 'rejected', 'released', 'modified']) {
  container.on(outcome, ({ delivery }) => {
    outcomes[numbers.get(delivery.id)] = outcome
    if (++answered === messages.length) opened.close()
  })
}
for (const trouble of ['sender_error', 'session_error', 'connection_error', 'disconnected']) {
  container.on(trouble, (context) => {
    const error = context.error ?? opened.error ?? sender.error ?? sender.session.error
    console.error(trouble, error?.condition ?? '', error?.description ?? error?.message ?? '')
    opened.close()
  })
}
process.on('exit', () => console.log(JSON.stringify(outcomes)))
