// The part of MQTT that a viewer needs, over a WebSocket: publish and subscribe, with QoS 1 or 0.
//
// It uses version 5 if the broker supports it (RabbitMQ 4), because that gives reasons for refusals, and
// 3.1.1 otherwise.

const CONNECT = 0x10, MENTION = 0x30, PUBLISH = 0x32, PUBACK = 0x40, SUBSCRIBE = 0x82, PINGREQ = 0xc0, DISCONNECT = 0xe0;
const KEEPALIVE = 30; // seconds
const PATIENCE = 15_000; // milliseconds for each answer
const NO_SUBSCRIBERS = 0x10, FAILURE = 0x80;

/** Connects, by version 5 or else 3.1.1. The session outlives the connection: results wait there. */
export async function connect(options) {
  try {
    return await new Client(options, 5).ready;
  } catch (error) {
    if (!error.unversed) throw error;
    return await new Client(options, 4).ready;
  }
}

class Client {
  #socket;
  #version;
  #onMessage;
  #bytes = new Uint8Array();
  #answers = new Map(); // packet id, or "connect" -> { resolve, reject }
  #nextId = 1;
  #pinged = false;

  constructor({ url, clientId, username, password, onMessage }, version) {
    this.#version = version;
    this.#onMessage = onMessage;
    this.#socket = new WebSocket(url, "mqtt");
    this.#socket.binaryType = "arraybuffer";
    let met = false;
    this.closed = new Promise((resolve) => {
      this.#socket.onclose = () => {
        clearInterval(this.#timer);
        const error = new Error("the connection was lost");
        // RabbitMQ 3.10 closes the connection if it does not know the version.
        error.unversed = version === 5 && met;
        for (const { reject } of this.#answers.values()) reject(error);
        resolve();
      };
    });
    this.#socket.onmessage = ({ data }) => this.#receive(new Uint8Array(data));
    this.#socket.onopen = () => {
      met = true;
      const flags = 0xc0; // user name and password; no clean start
      const expiry = version === 5 ? [5, 0x11, 0xff, 0xff, 0xff, 0xff] : [];
      this.#send(CONNECT, text("MQTT"), [version, flags, 0, KEEPALIVE, ...expiry],
        text(clientId), text(username), text(password));
    };
    this.ready = this.#answer("connect").then((code) => {
      met = false;
      if (code !== 0) {
        this.#socket.close();
        const error = new Error(code === 1 || code === 0x84 ? "the version is not known" : `login refused (${code})`);
        error.unversed = version === 5 && (code === 1 || code === 0x84);
        throw error;
      }
      return this;
    });
  }

  #timer = setInterval(() => {
    if (this.#pinged) return this.#socket.close();
    this.#pinged = this.#socket.readyState === WebSocket.OPEN;
    if (this.#pinged) this.#send(PINGREQ);
  }, (KEEPALIVE * 1000) / 2);

  /** Whether it is version 5, which tells of a message that reached nobody. */
  get tellsFate() {
    return this.#version === 5;
  }

  async subscribe(topic, qos = 1) {
    const id = this.#id();
    this.#send(SUBSCRIBE, short(id), this.#properties(), text(topic), [qos]);
    if ((await this.#answer(id)) >= FAILURE) throw new Error("the subscription was refused");
  }

  /** Publishes with QoS 1, and returns when the broker has it; throws where it says otherwise. */
  async publish(topic, body) {
    const id = this.#id();
    this.#send(PUBLISH, text(topic), short(id), this.#properties(), new TextEncoder().encode(body));
    const code = await this.#answer(id);
    if (code === NO_SUBSCRIBERS) throw new Error("no queue takes batches");
    if (code >= FAILURE) throw new Error(`the broker refused the batch (${code})`);
  }

  /** Publishes with QoS 0: it may be lost. */
  mention(topic, body) {
    this.#send(MENTION, text(topic), this.#properties(), new TextEncoder().encode(body));
  }

  close() {
    if (this.#socket.readyState === WebSocket.OPEN) this.#send(DISCONNECT);
    this.#socket.close();
  }

  #id() {
    this.#nextId = (this.#nextId % 0xffff) + 1;
    return this.#nextId;
  }

  #properties() {
    return this.#version === 5 ? [0] : [];
  }

  #answer(key) {
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => this.#socket.close(), PATIENCE);
      const settle = (how) => (value) => {
        clearTimeout(late);
        this.#answers.delete(key);
        how(value);
      };
      this.#answers.set(key, { resolve: settle(resolve), reject: settle(reject) });
    });
  }

  #send(head, ...parts) {
    const body = join(parts);
    this.#socket.send(join([[head], length(body.length), body]));
  }

  #receive(data) {
    this.#bytes = join([this.#bytes, data]);
    for (;;) {
      const size = readLength(this.#bytes, 1);
      if (!size || this.#bytes.length < size.next + size.value) return;
      const packet = this.#bytes.slice(size.next, size.next + size.value);
      const head = this.#bytes[0];
      this.#bytes = this.#bytes.slice(size.next + size.value);
      this.#take(head, packet);
    }
  }

  #take(head, packet) {
    switch (head >> 4) {
      case 2: // CONNACK
        this.#answers.get("connect")?.resolve(packet[1]);
        break;
      case 3: // PUBLISH
        this.#deliver((head >> 1) & 3, packet);
        break;
      case 4: // PUBACK; version 5 has a reason, unless all is well
        this.#answers.get(readShort(packet, 0))?.resolve(packet[2] ?? 0);
        break;
      case 9: // SUBACK; the last byte is the only topic's
        this.#answers.get(readShort(packet, 0))?.resolve(packet.at(-1));
        break;
      case 13: // PINGRESP
        this.#pinged = false;
        break;
      case 14: // DISCONNECT
        this.#socket.close();
    }
  }

  async #deliver(qos, packet) {
    let at = 2 + readShort(packet, 0);
    const id = qos > 0 ? packet.slice(at, at + 2) : null;
    if (id) at += 2;
    if (this.#version === 5) {
      const properties = readLength(packet, at);
      at = properties.next + properties.value;
    }
    await this.#onMessage(new TextDecoder().decode(packet.slice(at)));
    // Acknowledge it only now, because an unacknowledged message is delivered again.
    if (id && this.#socket.readyState === WebSocket.OPEN) this.#send(PUBACK, id);
  }
}

function text(string) {
  const bytes = new TextEncoder().encode(string);
  return join([short(bytes.length), bytes]);
}

function short(number) {
  return [number >> 8, number & 0xff];
}

function readShort(bytes, at) {
  return (bytes[at] << 8) | bytes[at + 1];
}

function length(number) {
  const bytes = [];
  do {
    const more = number > 0x7f;
    bytes.push((number & 0x7f) | (more ? 0x80 : 0));
    number >>= 7;
  } while (number > 0);
  return bytes;
}

function readLength(bytes, at) {
  let value = 0;
  for (let place = 0; place < 4; place += 1) {
    const byte = bytes[at + place];
    if (byte === undefined) return null;
    value |= (byte & 0x7f) << (7 * place);
    if (!(byte & 0x80)) return { value, next: at + place + 1 };
  }
  throw new Error("not MQTT");
}

function join(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
