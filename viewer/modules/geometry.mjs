// Slices of a DICOM series in the patient, and voxels of a volume on them. All positions are in LPS mm.

/**
 * @typedef {object} Slice
 * @property {string} id
 * @property {number} columns
 * @property {number} rows
 * @property {number[]} origin Centre of the first pixel: Image Position (Patient), PS3.3 C.7.6.2.1.1.
 * @property {number[]} alongRow Step from a pixel to the next in its row.
 * @property {number[]} alongColumn Step from a pixel to the next in its column.
 */

/** @typedef {import('./nrrd.mjs').Volume} Volume */
/** @typedef {Omit<Volume, 'values'>} Grid */

const TOLERANCE_VOX = 0.05;

/** @param {number[]} a @param {number[]} b */
export const dot = (a, b) => a.reduce((sum, value, axis) => sum + value * b[axis], 0);
/** @param {number[]} a @param {number[]} b */
export const minus = (a, b) => a.map((value, axis) => value - b[axis]);
/** @param {number[]} a @param {number[]} b */
export const plus = (a, b) => a.map((value, axis) => value + b[axis]);
/** @param {number[]} a @param {number} factor */
export const times = (a, factor) => a.map(value => value * factor);
/** @param {number[]} a @param {number[]} b */
export const cross = (a, b) => [
  a[1] * b[2] - a[2] * b[1],
  a[2] * b[0] - a[0] * b[2],
  a[0] * b[1] - a[1] * b[0],
];

/**
 * @param {string} id
 * @param {any} plane Cornerstone's imagePlaneModule of an image.
 * @returns {Slice}
 */
export function sliceOf(id, plane) {
  const [a, b, c, d, e, f] = plane.imageOrientationPatient;
  return {
    id,
    columns: plane.columns,
    rows: plane.rows,
    origin: [...plane.imagePositionPatient],
    // Pixel Spacing has the distance between rows first.
    alongRow: times([a, b, c], plane.columnPixelSpacing),
    alongColumn: times([d, e, f], plane.rowPixelSpacing),
  };
}

/**
 * @param {Slice[]} slices
 * @returns {Slice[]} Along the normal of the slices: row direction x column direction.
 */
export function sorted(slices) {
  const [{ alongRow, alongColumn }] = slices;
  const normal = cross(alongRow, alongColumn);
  return [...slices].sort((a, b) => dot(a.origin, normal) - dot(b.origin, normal));
}

/**
 * @param {Slice[]} slices Sorted.
 * @param {number} thicknessMm Used if there is one slice only.
 * @returns {Grid} The grid of their pixels.
 */
export function gridOf(slices, thicknessMm = 1) {
  const [first] = slices;
  const last = slices[slices.length - 1];
  const normal = cross(first.alongRow, first.alongColumn);
  const alone = times(normal, thicknessMm / Math.hypot(...normal));
  const step = slices.length > 1 ? times(minus(last.origin, first.origin), 1 / (slices.length - 1)) : alone;
  return {
    sizes: [first.columns, first.rows, slices.length],
    origin: first.origin,
    directions: [first.alongRow, first.alongColumn, step],
  };
}

/**
 * @param {Slice[]} slices Sorted.
 * @param {Uint8Array[]} pixels Of each slice.
 * @param {number} thicknessMm Used if there is one slice only.
 * @returns {Volume} The pixels as one volume.
 */
export function volumeOf(slices, pixels, thicknessMm = 1) {
  const grid = gridOf(slices, thicknessMm);
  const size = grid.sizes[0] * grid.sizes[1];
  const values = new Uint8Array(size * slices.length);
  pixels.forEach((slice, number) => values.set(slice, number * size));
  return { ...grid, values };
}

/**
 * @param {Grid} grid
 * @returns {(at: number[]) => number[]} Position -> voxel index, not rounded.
 */
export function indexOf({ origin, directions: [x, y, z] }) {
  const volume = dot(cross(x, y), z);
  const inverse = [cross(y, z), cross(z, x), cross(x, y)].map(row => times(row, 1 / volume));
  return at => inverse.map(row => dot(row, minus(at, origin)));
}

/**
 * Take the pixels of a slice out of a volume that lies on the same voxels, in any order of its axes.
 * @param {Volume} volume
 * @param {Slice} slice
 * @returns {Uint8Array}
 * @throws {Error} If the volume lies on another grid, or does not contain the slice.
 */
export function pixelsOf(volume, slice) {
  const index = indexOf(volume);
  const start = index(slice.origin);
  const right = minus(index(plus(slice.origin, slice.alongRow)), start);
  const down = minus(index(plus(slice.origin, slice.alongColumn)), start);
  const end = plus(start, plus(times(right, slice.columns - 1), times(down, slice.rows - 1)));
  const strides = [1, volume.sizes[0], volume.sizes[0] * volume.sizes[1]];
  const isWhole = (/** @type {number} */ value) => Math.abs(value - Math.round(value)) < TOLERANCE_VOX;
  const isOnGrid = [start, right, down, end].every(vector => vector.every(isWhole));
  const isInside = [start, end].every(vector =>
    vector.every((value, axis) => Math.round(value) >= 0 && Math.round(value) < volume.sizes[axis])
  );
  if (!isOnGrid || !isInside) {
    throw new Error('the contours lie on other voxels than the scan that is open');
  }
  const [first, perColumn, perRow] = [start, right, down].map(vector => dot(vector.map(Math.round), strides));
  const pixels = new Uint8Array(slice.columns * slice.rows);
  for (let row = 0, at = 0; row < slice.rows; row += 1) {
    let from = first + row * perRow;
    for (let column = 0; column < slice.columns; column += 1, from += perColumn) {
      pixels[at++] = volume.values[from];
    }
  }
  return pixels;
}
