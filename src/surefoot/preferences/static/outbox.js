// Votes that the server has not acknowledged. Each lies in localStorage under a key of its own, so that tabs do not overwrite
// each other's, and is sent in the order of clicks until the server says that it is on its disk. Sent twice, it counts once.
const LONGEST_WAIT = 5000; // ms between two tries

export class Outbox {
  // prefix: of this store and annotator. acknowledged(entry, answer), refused(entry, reason), changed(): what the page does then.
  constructor(prefix, csrf, { acknowledged, refused, changed }) {
    Object.assign(this, { prefix, csrf, acknowledged, refused, changed });
    this.entries = [];
    this.isKept = true; // whether localStorage works
    this.refusal = 0; // the status of the last answer
    this.sending = null;
    this.collect();
  }

  // Signed out (401), or signed in anew in another tab, so that this page's token is an old one (403).
  get isRefused() { return this.refusal === 401 || this.refusal === 403; }

  // What earlier pages left behind.
  collect() {
    try {
      const known = new Set(this.entries.map((entry) => entry.id));
      for (let i = 0; i < localStorage.length; i++) {
        const id = localStorage.key(i);
        if (id.startsWith(this.prefix) && !known.has(id)) this.entries.push({ ...JSON.parse(localStorage.getItem(id)), id });
      }
    } catch {
      this.isKept = false;
    }
    this.entries.sort((one, other) => (one.id < other.id ? -1 : 1));
  }

  add(path, body) {
    const id = `${this.prefix}${String(Date.now()).padStart(15, "0")}-${String(performance.now()).padStart(12, "0")}-${body.key}`;
    const entry = { id, path, body };
    try {
      localStorage.setItem(id, JSON.stringify({ path, body }));
    } catch {
      this.isKept = false;
    }
    this.entries.push(entry);
    this.changed();
    this.flush();
  }

  // Sends all that waits, one after the other; resolves when nothing waits any more.
  flush() {
    this.sending ??= this.sendAll().finally(() => { this.sending = null; });
    return this.sending;
  }

  async sendAll() {
    let wait = 200;
    while (this.entries.length) {
      const entry = this.entries[0];
      const { status, answer } = await post(entry.path, entry.body, this.csrf);
      this.refusal = status;
      if (status === 200 || status === 409 || status === 422) {
        this.drop(entry);
        if (status === 200) this.acknowledged(entry, answer);
        else this.refused(entry, answer.error ?? String(status));
        wait = 200;
      } else {
        this.changed();
        await new Promise((done) => setTimeout(done, wait));
        wait = Math.min(2 * wait, LONGEST_WAIT);
      }
    }
    this.changed();
  }

  drop(entry) {
    this.entries = this.entries.filter((other) => other !== entry);
    try {
      localStorage.removeItem(entry.id);
    } catch {
      this.isKept = false;
    }
  }
}

// The answer to a post, with status 0 where none came.
export async function post(path, body, csrf) {
  try {
    const headers = { "content-type": "application/json", "x-csrf-token": csrf };
    const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
    return { status: response.status, answer: await response.json() };
  } catch {
    return { status: 0, answer: {} };
  }
}
