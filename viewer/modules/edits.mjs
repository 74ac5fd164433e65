// Changes of whole contours, each one step that can be undone. Organs that are protected stay as they are.

import { gridOf, indexOf } from './geometry.mjs';
import { interpolated } from './interpolation.mjs';
import { holes, smoothed } from './morphology.mjs';

/** @typedef {import('./labelmap.mjs').Labelmap} Labelmap */

/**
 * Fill the slices between drawn ones of the chosen organ.
 * @param {Labelmap} labelmap
 * @returns {number} Number of slices that changed, as of the other functions here.
 */
export function interpolate(labelmap) {
  const [{ columns, alongRow, alongColumn }] = labelmap.slices;
  return add(labelmap, interpolated(masksOf(labelmap), columns, [Math.hypot(...alongRow), Math.hypot(...alongColumn)]));
}

/** @param {Labelmap} labelmap Fill the holes of the chosen organ, slice by slice. */
export function fillHoles(labelmap) {
  const [{ columns }] = labelmap.slices;
  const filled = new Map();
  masksOf(labelmap).forEach((mask, number) => {
    const found = mask.some(Boolean) ? holes(mask, columns) : [];
    if (found.length) {
      found.forEach(at => (mask[at] = 1));
      filled.set(number, mask);
    }
  });
  return add(labelmap, filled);
}

/** @param {Labelmap} labelmap Smooth the chosen organ: each voxel as most of the 27 around it. */
export function smooth(labelmap) {
  const value = labelmap.activeValue();
  if (labelmap.isProtected(value)) {
    return 0;
  }
  const changed = [...smoothed(masksOf(labelmap), labelmap.slices[0].columns)].map(([number, mask]) => {
    const slice = labelmap.slices[number];
    const before = labelmap.pixels(slice);
    const after = drawn(labelmap, before, mask, value).map((pixel, at) => (pixel === value && !mask[at] ? 0 : pixel));
    return /** @type {[typeof slice, Uint8Array]} */ ([slice, after]);
  });
  labelmap.replace(new Map(changed));
  return changed.length;
}

/**
 * Copy the chosen organ from the next slice towards the head or the feet.
 * @param {Labelmap} labelmap
 * @param {number[]} position Point of the slice that gets the copy, in LPS mm.
 * @param {number} towardsHead 1 or -1.
 */
export function copySlice(labelmap, position, towardsHead) {
  const grid = gridOf(labelmap.slices);
  const number = Math.round(indexOf(grid)(position)[2]);
  const source = labelmap.slices[number + towardsHead * (Math.sign(grid.directions[2][2]) || 1)];
  if (!source || !labelmap.slices[number]) {
    return 0;
  }
  const value = labelmap.activeValue();
  const mask = labelmap.pixels(source).map(pixel => Number(pixel === value));
  return mask.some(Boolean) ? add(labelmap, new Map([[number, mask]])) : 0;
}

/** @param {Labelmap} labelmap @returns {Uint8Array[]} Where the chosen organ is, of each slice. */
function masksOf(labelmap) {
  const value = labelmap.activeValue();
  return labelmap.slices.map(slice => labelmap.pixels(slice).map(pixel => Number(pixel === value)));
}

/** @param {Labelmap} labelmap @param {Map<number, Uint8Array>} masks Added to the chosen organ. */
function add(labelmap, masks) {
  const value = labelmap.activeValue();
  const changed = [...masks].map(([number, mask]) => {
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
