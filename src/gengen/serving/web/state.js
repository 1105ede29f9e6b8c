// What a page shows is in its address, #page?key=value: a reload, a link and the back button all restore it.

export class State {
  constructor(hash = location.hash) {
    const [page, query] = split(hash);
    this.page = page;
    this.values = new URLSearchParams(query);
    this.timer = null;
    this.kept = false; // whether the address is one to come back to
  }

  get(key, fallback = "") {
    return this.values.get(key) ?? fallback;
  }

  /** The number of a key; `fallback` where there is none, or no number. */
  number(key, fallback = null) {
    const given = this.values.get(key);
    return given === null || given === "" || !Number.isFinite(Number(given)) ? fallback : Number(given);
  }

  /** Change keys, null or "" to remove one. The address follows soon: browsers allow few changes of it a second. */
  set(changes) {
    for (const [key, value] of Object.entries(changes)) {
      if (value === null || value === "") this.values.delete(key);
      else this.values.set(key, value);
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => (this.kept ? this.push(false) : this.save()), 200);
  }

  /** Write the address now, in place of the one before. */
  save() {
    clearTimeout(this.timer);
    history.replaceState(null, "", this.hash);
  }

  /** Write the address as a new one, so that the back button returns to what was shown before; and, if it is `kept`,
   *  to this one too: the next change begins another. */
  push(kept = true) {
    clearTimeout(this.timer);
    if (this.hash !== location.hash) history.pushState(null, "", this.hash);
    this.kept = kept;
  }

  get hash() {
    const query = this.values.toString();
    return `#${this.page}${query ? `?${query}` : ""}`;
  }
}

function split(hash) {
  const [page, ...query] = hash.replace(/^#/, "").split("?");
  return [page, query.join("?")];
}
