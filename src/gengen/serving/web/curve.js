// The rows of one metrics.csv, as they come.

export class Curve {
  constructor() {
    this.columns = Object.create(null); // a column may be called __proto__
    this.last = -1;
    this.writing = null;
    this.unreadable = 0;
    this.complete = true;
  }

  get names() {
    return Object.keys(this.columns);
  }

  /** After which step to ask: the last row may have gained columns since. */
  get after() {
    return this.last < 0 ? -1 : this.last - 1;
  }

  /** Take an answer; false where the file was begun anew, and all of it is needed. */
  add({ columns, last, writing, complete, unreadable }) {
    if (this.writing !== null && (writing !== this.writing || last < this.last)) {
      Object.assign(this, new Curve());
      return false;
    }
    const from = columns.step?.[0] ?? Infinity;
    const kept = (this.columns.step ?? []).filter((step) => step < from).length;
    for (const [name, values] of Object.entries(columns)) {
      const before = (this.columns[name] ?? []).slice(0, kept);
      this.columns[name] = [...before, ...values.map((value) => (typeof value === "string" ? NaN : value))];
    }
    Object.assign(this, { last, writing, unreadable });
    this.complete = this.complete && complete;
    return true;
  }

  points(name, across) {
    const [x, y] = [this.columns[across] ?? [], this.columns[name] ?? []];
    return y.map((value, i) => [x[i], value]).filter(([a, b]) => a !== null && b !== null);
  }

  latest(name) {
    return (this.columns[name] ?? []).findLast((value) => value !== null) ?? null;
  }

  /** What a curve does not show. */
  remarks() {
    const rows = this.columns.step ?? [];
    const infinite = rows.filter((_, i) => this.names.some((name) => Number.isNaN(this.columns[name][i]))).length;
    return [
      infinite && `${infinite} rows with a number that is not finite`,
      this.unreadable && `${this.unreadable} lines cannot be read`,
      !this.complete && "only the newest rows",
    ].filter(Boolean).join("; ");
  }
}
