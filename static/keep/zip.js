/** Reads the files of a ZIP archive, as llama.cpp's page makes them: no encryption, no parts, below 4 GB. */

const END = 0x06054b50;
const ENTRY = 0x02014b50;
const END_LENGTH = 22;
const LONGEST_COMMENT = 0xffff;

/** @param {Uint8Array} bytes */
export function isZip(bytes) {
  return bytes[0] === 0x50 && bytes[1] === 0x4b && (bytes[2] === 3 || bytes[2] === 5);
}

/**
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @param {number} most bytes that all files may have together
 * @returns {Promise<{name: string, text: string}[]>}
 * @throws {RangeError} where it is damaged or too large
 */
export async function unzip(bytes, most) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const end = endOf(view);
  const files = [];
  let at = view.getUint32(end + 16, true);
  let left = most;
  for (let count = view.getUint16(end + 10, true); count > 0; count--) {
    if (view.getUint32(at, true) !== ENTRY) throw new RangeError("damaged list of files");
    const nameLength = view.getUint16(at + 28, true);
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + nameLength));
    if (!name.endsWith("/")) {
      const content = await inflated(view, bytes, at, left);
      left -= content.length;
      files.push({ name, text: new TextDecoder().decode(content) });
    }
    at += 46 + nameLength + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  return files;
}

/** Where the list of files ends, behind which only a comment may come. @param {DataView} view */
function endOf(view) {
  const first = Math.max(0, view.byteLength - END_LENGTH - LONGEST_COMMENT);
  for (let at = view.byteLength - END_LENGTH; at >= first; at--) {
    if (view.getUint32(at, true) === END) return at;
  }
  throw new RangeError("no list of files");
}

/**
 * @param {DataView} view @param {Uint8Array<ArrayBuffer>} bytes @param {number} entry @param {number} most
 * @returns {Promise<Uint8Array>}
 */
async function inflated(view, bytes, entry, most) {
  const method = view.getUint16(entry + 10, true);
  const local = view.getUint32(entry + 42, true);
  const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
  const packed = bytes.subarray(start, start + view.getUint32(entry + 20, true));
  if (method === 0 && packed.length <= most) return packed;
  if (method !== 8) throw new RangeError("an unknown compression");
  const chunks = [];
  let length = 0;
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  for (let reader = stream.getReader(), part = await reader.read(); !part.done; part = await reader.read()) {
    chunks.push(part.value);
    length += part.value.length;
    if (length > most) throw new RangeError("too large");
  }
  const content = new Uint8Array(length);
  let to = 0;
  for (const chunk of chunks) {
    content.set(chunk, to);
    to += chunk.length;
  }
  return content;
}
