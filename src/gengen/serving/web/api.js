// The server: JSON, and events as they come.

export class ApiError extends Error {
  constructor(status, error) {
    super(error.message);
    Object.assign(this, { status, param: error.param, code: error.code });
  }
}

async function answered(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new ApiError(response.status, body.error ?? { message: `the server answered ${response.status}` });
}

export async function get(path, signal) {
  return (await answered(await fetch(path, { signal }))).json();
}

function request(body, signal) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
}

export async function post(path, body, signal) {
  return (await answered(await fetch(path, request(body, signal)))).json();
}

/** Yield the data of each server-sent event. Ending the loop, or aborting the signal, ends the request. */
export async function* stream(path, body, signal) {
  const response = await answered(await fetch(path, request({ ...body, stream: true }, signal)));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const line = block.split("\n").find((part) => part.startsWith("data: "));
        if (!line || line === "data: [DONE]") continue;
        const data = JSON.parse(line.slice(6));
        if (data.error) throw new ApiError(500, data.error);
        yield data;
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
