/** Which tab writes which answer: a lock that the browser gives back when the tab closes or dies. */

/** @param {string} id */
const lockName = (id) => `fastpath-answer-${id}`;

/**
 * Holds the claim on an answer until the returned function is called.
 * @param {string} id @param {boolean} [wait] until another tab that holds it gives it up, or is gone
 * @returns {Promise<(() => void) | null>} null if another tab holds it
 */
export async function claim(id, wait = false) {
  // Locks exist only where the page came over HTTPS or from this machine. Elsewhere two tabs may write the
  // same answer: both write the same text.
  if (navigator.locks === undefined) return () => {};
  return new Promise((done) => {
    navigator.locks
      .request(lockName(id), { ifAvailable: !wait }, (lock) => {
        if (lock === null) return done(null);
        return new Promise((release) => done(() => release(undefined)));
      })
      .catch(() => done(() => {})); // forbidden: as where there are none
  });
}
