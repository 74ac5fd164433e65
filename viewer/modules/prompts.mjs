// Correction of the chosen organ by clicks, which the server computes (docs/prompts.md).

import { openCase } from './case.mjs';
import { notify } from './context.mjs';
import { gridOf, indexOf, minus, plus, times } from './geometry.mjs';
import * as server from './server.mjs';

/** @typedef {import('./geometry.mjs').Grid} Grid */
/** @typedef {import('./labelmap.mjs').Labelmap} Labelmap */
/** @typedef {{ start: number[], size: number[], bits: string }} Mask One bit for each voxel of a box, first axis fastest. */

/** @type {Map<string, Grid>} The server's grid of a series, once it has told it. */
const grids = new Map();

/**
 * Have the server correct the chosen organ of the open case at a click.
 * @param {number[]} at Position in LPS mm.
 * @param {boolean} isAdded Whether the position belongs to the organ.
 */
export async function correctAt(at, isAdded) {
  const open = openCase();
  const organ = open?.labelmap.organs.find(({ value }) => value === open.labelmap.activeValue());
  if (!open || !organ) {
    return;
  }
  const before = open.labelmap.fingerprint();
  const body = { organ: organ.name, prompts: [{ add: isAdded, points_mm: [at] }] };
  try {
    const told = grids.get(open.series) ?? gridIn(await server.prompt(open.series, body));
    grids.set(open.series, told);
    const drawn = maskOf(open.labelmap, organ.value, told);
    const answer = await server.prompt(open.series, drawn ? { ...body, drawn } : body);
    if (!open.isOpen() || open.labelmap.fingerprint() !== before) {
      notify('The correction came too late: the contours have changed meanwhile. Click again.', 'warning');
      return;
    }
    set(open.labelmap, organ.value, answer.mask, told);
  } catch (error) {
    notify(`Not corrected: ${/** @type {Error} */ (error).message}`, 'error');
  }
}

/** @param {any} answer @returns {Grid} */
const gridIn = ({ grid }) => ({ sizes: grid.shape, origin: grid.origin_mm, directions: grid.axes_mm });

/**
 * @param {Grid} from
 * @param {Grid} to A grid with the same voxels, in any order of its axes.
 * @returns {{ start: number[], steps: number[][] }} Index in `to` of the first voxel of `from`, and of a step along each axis.
 */
export function indexMap(from, to) {
  const index = indexOf(to);
  const first = index(from.origin);
  const steps = from.directions.map(step => minus(index(plus(from.origin, step)), first).map(value => Math.round(value) + 0));
  return { start: first.map(value => Math.round(value) + 0), steps };
}

/**
 * @param {Labelmap} labelmap
 * @param {number} value
 * @param {Grid} grid
 * @returns {Mask | undefined} The organ in its bounding box; undefined if it has no voxel.
 */
function maskOf(labelmap, value, grid) {
  const { start, steps } = indexMap(gridOf(labelmap.slices), grid);
  /** @type {number[][]} */
  const voxels = [];
  labelmap.slices.forEach((slice, number) =>
    labelmap.pixels(slice).forEach((pixel, at) => {
      if (pixel === value) {
        const own = [at % slice.columns, Math.floor(at / slice.columns), number];
        voxels.push(own.reduce((sum, count, axis) => plus(sum, times(steps[axis], count)), start));
      }
    })
  );
  return voxels.length ? packed(voxels) : undefined;
}

/** @param {number[][]} voxels @returns {Mask} */
export function packed(voxels) {
  const low = voxels.reduce((best, voxel) => best.map((value, axis) => Math.min(value, voxel[axis])));
  const high = voxels.reduce((best, voxel) => best.map((value, axis) => Math.max(value, voxel[axis])));
  const size = minus(high, low).map(value => value + 1);
  const bytes = new Uint8Array(Math.ceil((size[0] * size[1] * size[2]) / 8));
  for (const voxel of voxels) {
    const [i, j, k] = minus(voxel, low);
    const bit = i + size[0] * (j + size[1] * k);
    bytes[bit >> 3] |= 1 << (bit & 7);
  }
  return { start: low, size, bits: btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join('')) };
}

/**
 * @param {Mask} mask
 * @returns {Generator<[number[], boolean]>} Each voxel of the box, and whether it is set.
 */
export function* unpacked({ start, size, bits }) {
  const bytes = Uint8Array.from(atob(bits), character => character.charCodeAt(0));
  let bit = 0;
  for (let k = 0; k < size[2]; k += 1) {
    for (let j = 0; j < size[1]; j += 1) {
      for (let i = 0; i < size[0]; i += 1, bit += 1) {
        yield [plus(start, [i, j, k]), Boolean(bytes[bit >> 3] & (1 << (bit & 7)))];
      }
    }
  }
}

/**
 * Draw the organ in a box as the mask says, as one step that can be undone.
 * @param {Labelmap} labelmap
 * @param {number} value
 * @param {Mask} mask
 * @param {Grid} grid
 */
function set(labelmap, value, mask, grid) {
  const { start, steps } = indexMap(grid, gridOf(labelmap.slices));
  const changed = new Map();
  for (const [voxel, isSet] of unpacked(mask)) {
    const [column, row, number] = voxel.reduce((sum, count, axis) => plus(sum, times(steps[axis], count)), start);
    const slice = labelmap.slices[number];
    if (!changed.has(slice)) {
      changed.set(slice, labelmap.pixels(slice).slice());
    }
    const pixels = changed.get(slice);
    const at = row * slice.columns + column;
    if (isSet && !labelmap.isProtected(pixels[at])) {
      pixels[at] = value;
    } else if (!isSet && pixels[at] === value) {
      pixels[at] = 0;
    }
  }
  labelmap.replace(changed);
}
