/** What is known of this server's streams: whether and how they are got back when they are lost. */

/**
 * offered: whether the server can resume streams; null while that is not known, and it is not asked for. waits: milliseconds before
 * each attempt to get a lost stream back. patience: how long (milliseconds) to wait for a network that the
 * browser knows to be off: the server keeps a stream that nobody reads for about so long.
 */
export const resumption = {
  offered: /** @type {boolean | null} */ (null),
  waits: [250, 500, 1000, 2000, 4000, 8000],
  patience: 45_000,
};
