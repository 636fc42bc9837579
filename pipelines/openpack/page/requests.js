// Requests to the service. Belongs here: sending a video, reading an answer or a stream of lines, and every refusal as
// a plain sentence. What is shown of it does not. XMLHttpRequest, since fetch does not tell how much has been sent.

/** What stands in the way of an answer, as a sentence. `status` is 0 where none came; `retryAfter` is in seconds. */
export class Refusal extends Error {
  constructor(sentence, status = 0, retryAfter = 0) {
    super(sentence);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/**
 * Posts `file` as the form field `video` and resolves with {body, headers}; rejects with a Refusal, or with the
 * signal's reason. `onSent` gets the share that was sent, from 0 to 1; `onLine` each line of a stream as an object.
 */
export function post(path, file, options) {
  const form = new FormData();
  form.append("video", file, file.name);
  return send("POST", path, form, { file, ...options });
}

/** Asks for what needs neither token nor video; resolves and rejects as `post`. */
export function get(path, options) {
  return send("GET", path, null, { file: null, token: null, ...options });
}

function send(method, path, content, { file, token, signal, onSent = () => {}, onLine = null }) {
  signal.throwIfAborted();
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const abort = () => request.abort();
    const stream = onLine && new Lines(onLine);
    const end = (settle, value) => {
      signal.removeEventListener("abort", abort);
      settle(value);
    };
    request.open(method, path);
    if (token) request.setRequestHeader("Authorization", `Bearer ${token}`);
    request.upload.onprogress = (event) => event.lengthComputable && onSent(event.loaded / event.total);
    request.onabort = () => end(reject, signal.reason);
    request.onerror = () => end(reject, new Refusal(unanswered(file)));
    request.onprogress = () => stream && request.status === 200 && stream.read(request.responseText);
    request.onload = () => {
      if (request.status !== 200) return end(reject, refusal(request, token));
      try {
        const body = stream ? stream.end(request.responseText) : JSON.parse(request.responseText);
        end(resolve, { body, headers: (name) => request.getResponseHeader(name) });
      } catch (error) {
        end(reject, error instanceof Refusal ? error : new Refusal("The service answered what this page cannot read."));
      }
    };
    signal.addEventListener("abort", abort);
    request.send(content);
  });
}

/** NDJSON as it arrives: every line to `onLine`, the one with `event: "result"` is what comes of it. */
class Lines {
  constructor(onLine) {
    this.onLine = onLine;
    this.done = 0; // characters
    this.result = null;
  }

  read(text) {
    for (let end = text.indexOf("\n", this.done); end >= 0; end = text.indexOf("\n", this.done)) {
      const line = text.slice(this.done, end).trim();
      this.done = end + 1;
      if (line) this.take(line);
    }
  }

  take(line) {
    let event;
    try {
      event = JSON.parse(line);
    } catch {
      return; // read again, and refused, when the answer has ended
    }
    if (event.event === "result") this.result = event;
    this.error ??= event.event === "error" ? event.error : undefined;
    this.onLine(event);
  }

  end(text) {
    this.read(`${text}\n`);
    if (this.error) throw new Refusal(this.error);
    if (!this.result) throw new Refusal("The answer broke off before its end.");
    return this.result;
  }
}

function unanswered(file) {
  const megabytes = Math.round((file?.size ?? 0) / 2 ** 20);
  if (!navigator.onLine) return "This device is offline. Connect it, then try again.";
  const large = megabytes > 1 ? ` It may also be that ${megabytes} MB are more than the service takes.` : "";
  return `No answer: the connection to the service is gone.${large}`;
}

function refusal(request, token) {
  const { status } = request;
  let said;
  try {
    said = JSON.parse(request.responseText).error;
  } catch {
    said = undefined; // a proxy's page, say; the status tells enough
  }
  const sentences = {
    401: token ? "The service does not accept this token." : "The service asks for a token.",
    429: "Too many videos are waiting for an answer just now.",
    504: said ?? "The service did not finish in time. Try again, or send a shorter video.",
    413: said ?? "The video is larger than the service takes. Cut it, or code it smaller.",
  };
  return new Refusal(sentences[status] ?? said ?? `The service failed (status ${status}).`, status, waiting(request));
}

/** Retry-After in seconds from now, which is a number or a date; 0 for none. */
function waiting(request) {
  const said = request.getResponseHeader("Retry-After");
  if (!said) return 0;
  const seconds = /^\d+$/.test(said) ? Number(said) : (Date.parse(said) - Date.now()) / 1000;
  return Math.max(0, Math.ceil(seconds || 0));
}
