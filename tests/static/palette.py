"""Pictures with at most 256 colours: a third of the bytes, and nobody sees it on a page of text."""

import base64
import struct
import zlib

from playwright.sync_api import Page

# The colours of a picture, at most 256, and for each pixel the number of its colour. Those chosen lie as near
# to each other as their number allows.
_FEW_COLOURS = """
async (data) => {
  const blob = await (await fetch('data:image/png;base64,' + data)).blob();
  const bitmap = await createImageBitmap(blob);
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height).getContext('2d');
  canvas.drawImage(bitmap, 0, 0);
  const pixels = new Uint32Array(canvas.getImageData(0, 0, width, height).data.buffer);
  const counts = new Map();
  for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
  const colours = [...counts].sort((a, b) => b[1] - a[1]).map(([pixel]) => pixel);
  const apart = (a, b, bits) => Math.abs(((a >> bits) & 255) - ((b >> bits) & 255));
  const far = (a, b) => Math.max(apart(a, b, 0), apart(a, b, 8), apart(a, b, 16));
  const nearest = (colour, palette) => {
    let best = 0, distance = 999;
    for (let at = 0; at < palette.length && distance > 0; at++) {
      const here = far(colour, palette[at]);
      if (here < distance) [best, distance] = [at, here];
    }
    return { best, distance };
  };
  let palette = [];
  for (let step = 0; ; step += 1) {
    // Grounds stay as they are.
    palette = colours.filter((colour) => counts.get(colour) > pixels.length / 1000);
    for (const colour of colours) {
      if (palette.length <= 256 && nearest(colour, palette).distance > step) palette.push(colour);
    }
    if (palette.length <= 256) break;
  }
  const numbers = new Map(colours.map((colour) => [colour, nearest(colour, palette).best]));
  const indices = Uint8Array.from(pixels, (pixel) => numbers.get(pixel));
  let text = '';
  for (let at = 0; at < indices.length; at += 8192) {
    text += String.fromCharCode(...indices.subarray(at, at + 8192));
  }
  return { width, height, palette, indices: btoa(text) };
}
"""


def small(page: Page, picture: bytes) -> bytes:
    """The same picture as a PNG with a palette. `page` is any page without a policy."""
    made = page.evaluate(_FEW_COLOURS, base64.b64encode(picture).decode())
    width, height = made["width"], made["height"]
    indices = base64.b64decode(made["indices"])
    rows = b"".join(b"\0" + indices[at : at + width] for at in range(0, width * height, width))
    palette = b"".join(struct.pack("<I", colour & 0xFFFFFFFF)[:3] for colour in made["palette"])
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # eight bits a pixel, by palette
    parts = ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
