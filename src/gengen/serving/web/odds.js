// From a model's logits to the distribution that is drawn from: generation/text/sampling.py and stages.py once more,
// so that a page can show what a control does without a request. Computed in fp32 as there, so that ties stay ties.

const f = Math.fround;

/** The logits of /gengen/v1/next: base64 of little-endian fp32. */
export function decoded(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** The indices of numbers, the largest first; of equal ones the first. */
export function ranked(numbers) {
  return Array.from(numbers.keys()).sort((a, b) => (numbers[b] > numbers[a]) - (numbers[b] < numbers[a]));
}

/** Positive logits of tokens that are there are divided by it, negative ones multiplied. there: ids. */
export function penalized(logits, there, repetition) {
  const harder = Float32Array.from(logits);
  const penalty = f(repetition);
  const penalize = (logit) => (logit > 0 ? logit / penalty : logit * penalty);
  for (const token of new Set(there)) harder[token] = penalize(logits[token]);
  return harder;
}

/** As next_token_probabilities: temperature, then top_k, top_p, min_p; null where a control is off. */
export function probabilities(logits, { temperature = 1, top_k = null, top_p = null, min_p = null } = {}) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  if (temperature === 0) {
    const likeliest = logits.indexOf(most);
    return logits.map((_, i) => Number(i === likeliest));
  }
  const scaled = logits.map((logit) => f(logit - most) / f(Math.max(temperature, 1e-30)));
  if (top_k !== null) for (const token of ranked(scaled).slice(top_k)) scaled[token] = -Infinity;
  let found = divided(scaled.map(Math.exp));
  if (top_p !== null && top_p < 1) found = within(found, f(top_p));
  if (min_p !== null) {
    const least = f(f(min_p) * found.reduce((a, b) => Math.max(a, b), 0));
    found = found.map((p) => (p >= least ? p : 0));
  }
  return top_p !== null || min_p !== null ? divided(found) : found;
}

function divided(numbers) {
  const sum = f(numbers.reduce((a, b) => a + b, 0));
  return numbers.map((number) => number / sum);
}

/** Only the fewest of the likeliest that together reach p. */
function within(found, p) {
  const kept = new Float32Array(found.length);
  let mass = 0;
  for (const token of ranked(found)) {
    if (mass > 0 && f(mass) >= p) break;
    kept[token] = found[token];
    mass += found[token];
  }
  return kept;
}

/** The distribution under the model itself and after each control that is on: [[name, probabilities], ...]. */
export function stages(logits, settings, there = []) {
  const found = [["model", probabilities(logits)]];
  if (settings.repetition_penalty !== undefined && settings.repetition_penalty !== 1) {
    logits = penalized(logits, there, settings.repetition_penalty);
    found.push(["penalties", probabilities(logits)]);
  }
  const applied = {};
  for (const [name, neutral] of [["temperature", 1], ["top_k", null], ["top_p", null], ["min_p", null]]) {
    if ((settings[name] ?? neutral) === neutral) continue;
    applied[name] = settings[name];
    found.push([name, probabilities(logits, applied)]);
  }
  return found;
}

/** In nats: how uncertain the next token is. */
export function entropy(found) {
  return found.reduce((sum, p) => (p > 0 ? sum - p * Math.log(p) : sum), 0);
}
