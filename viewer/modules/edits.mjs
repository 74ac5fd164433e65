// Changes of whole contours, each one step that can be undone. Organs that are protected stay as they are.

import { interpolated } from './interpolation.mjs';

/** @typedef {import('./labelmap.mjs').Labelmap} Labelmap */

/**
 * Fill the slices between drawn ones of the chosen organ.
 * @param {Labelmap} labelmap
 * @returns {number} Number of slices that were filled.
 */
export function interpolate(labelmap) {
  const value = labelmap.activeValue();
  const masks = labelmap.slices.map(slice => labelmap.pixels(slice).map(pixel => Number(pixel === value)));
  const [{ columns, alongRow, alongColumn }] = labelmap.slices;
  const filled = interpolated(masks, columns, [Math.hypot(...alongRow), Math.hypot(...alongColumn)]);
  const changed = [...filled].map(([number, mask]) => {
    const slice = labelmap.slices[number];
    return /** @type {[typeof slice, Uint8Array]} */ ([slice, drawn(labelmap, labelmap.pixels(slice), mask, value)]);
  });
  labelmap.replace(new Map(changed));
  return changed.length;
}

/**
 * @param {Labelmap} labelmap
 * @param {Uint8Array} pixels
 * @param {Uint8Array} mask
 * @param {number} value
 * @returns {Uint8Array} A copy of the pixels with a value where the mask is set and no organ is protected.
 */
function drawn(labelmap, pixels, mask, value) {
  return pixels.map((before, at) => (mask[at] && !labelmap.isProtected(before) ? value : before));
}
