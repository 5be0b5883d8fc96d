/** The last minutes of some figures: one sample a second, with gaps where nothing was heard. */

/** @typedef {{at: number, values: (number | null)[]}} Sample `at` in milliseconds */

export const SPAN = 300_000; // milliseconds that are kept
const STEP = 1000; // samples closer than this replace one another
const SILENCE = 4000; // longer without a sample is a gap

export class History {
  /** @type {Sample[]} oldest first */
  samples = [];

  /** @param {number} at @param {(number | null)[]} values null where a figure is not known */
  add(at, values) {
    const samples = this.samples;
    const before = samples.at(-2);
    // The newest sample always shows; the one before it stays only if it is a second older than its own.
    if (before !== undefined && samples[samples.length - 1].at - before.at < STEP) samples.pop();
    samples.push({ at, values });
    while (at - samples[0].at > SPAN) samples.shift();
  }

  /** The stretches without a gap in one figure. @param {number} figure @returns {{at: number, value: number}[][]} */
  stretches(figure) {
    /** @type {{at: number, value: number}[][]} */
    const stretches = [];
    let last = -Infinity;
    for (const { at, values } of this.samples) {
      const value = values[figure];
      if (value === null) continue;
      if (at - last > SILENCE) stretches.push([]);
      stretches[stretches.length - 1].push({ at, value });
      last = at;
    }
    return stretches;
  }

  /** The sample nearest to a moment, unless that lies in a gap. @param {number} moment @returns {Sample | null} */
  nearest(moment) {
    /** @type {Sample | null} */
    let found = null;
    for (const sample of this.samples) {
      if (found === null || Math.abs(sample.at - moment) <= Math.abs(found.at - moment)) found = sample;
    }
    return found !== null && Math.abs(found.at - moment) <= SILENCE / 2 ? found : null;
  }
}
