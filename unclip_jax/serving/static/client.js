// Calls of the HTTP API. Addresses are relative to the page, so a proxy may serve it anywhere.

const KEY = "unclip-token";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The answer of one call: JSON, or with `blob` a Blob. Asks for the token where one is needed. */
export async function call(path, { method = "GET", body, blob = false, keepalive = false } = {}) {
  const headers = {};
  const token = sessionStorage.getItem(KEY);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(new URL(`api${path}`, document.baseURI), {
    method,
    headers,
    keepalive,
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (answer.status === 401) {
    await askToken();
    return call(path, { method, body, blob, keepalive });
  }
  if (!answer.ok) throw new ApiError(answer.status, await message(answer));
  return blob ? answer.blob() : answer.json();
}

async function message(answer) {
  try {
    return (await answer.json()).error;
  } catch {
    return `the server answered ${answer.status} ${answer.statusText}.`;
  }
}

let asking = null;

/** Asks for the token in a dialog; several callers share one. */
function askToken() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("token");
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, document.getElementById("token-value").value.trim());
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

/** Follows a job until its end; `report` gets every state. */
export async function follow(job, report) {
  let revision = -1;
  let failures = 0;
  for (;;) {
    try {
      const state = await call(`/jobs/${job}?revision=${revision}`);
      failures = 0;
      report(state);
      if (!["waiting", "running"].includes(state.state)) return state;
      // A job that waits has no revisions of its own: its place in the queue is asked again.
      if (state.state === "waiting") await pause(400);
      revision = state.state === "waiting" ? -1 : state.revision;
    } catch (error) {
      if (error instanceof ApiError || ++failures > 5) throw error;
      await pause(1000 * failures);
    }
  }
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
