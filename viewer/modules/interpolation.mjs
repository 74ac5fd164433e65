// Interpolation between drawn slices: the mean of their signed distances (Raya and Udupa, IEEE Trans Med Imaging 1990).
//
// Cornerstone's own interpolation loads a program from another site, so it is not used.

const FAR = 1e12;

/**
 * Fill the slices between drawn ones.
 * @param {Uint8Array[]} masks One for each slice; not 0 where the organ is.
 * @param {number} columns
 * @param {number[]} spacing Distance of columns and of rows, in mm.
 * @returns {Map<number, Uint8Array>} Number of a slice that was empty -> its mask.
 */
export function interpolated(masks, columns, spacing) {
  const drawn = masks.flatMap((mask, number) => (mask.some(Boolean) ? [number] : []));
  const filled = new Map();
  for (let pair = 0; pair + 1 < drawn.length; pair += 1) {
    const [below, above] = [drawn[pair], drawn[pair + 1]];
    if (above - below < 2) {
      continue;
    }
    const [first, second] = [below, above].map(number => signedDistance(masks[number], columns, spacing));
    for (let number = below + 1; number < above; number += 1) {
      const share = (number - below) / (above - below);
      filled.set(number, Uint8Array.from(first, (value, at) => Number((1 - share) * value + share * second[at] > 0)));
    }
  }
  return filled;
}

/**
 * @param {Uint8Array} mask
 * @param {number} columns
 * @param {number[]} spacing
 * @returns {Float64Array} Distance to the nearest pixel outside where inside, and minus that to the nearest inside elsewhere.
 */
export function signedDistance(mask, columns, spacing) {
  const toInside = distance(Array.from(mask, Boolean), columns, spacing);
  const toOutside = distance(Array.from(mask, value => !value), columns, spacing);
  return toOutside.map((value, at) => Math.sqrt(value) - Math.sqrt(toInside[at]));
}

/**
 * Squared distance of each pixel to the nearest one of a set (Felzenszwalb and Huttenlocher, Theory of Computing 2012).
 * @param {boolean[]} isInSet
 * @param {number} columns
 * @param {number[]} spacing
 */
function distance(isInSet, columns, [alongRow, alongColumn]) {
  const rows = isInSet.length / columns;
  const result = Float64Array.from(isInSet, isIn => (isIn ? 0 : FAR));
  for (let column = 0; column < columns; column += 1) {
    lowerEnvelope(result, column, columns, rows, alongColumn);
  }
  for (let row = 0; row < rows; row += 1) {
    lowerEnvelope(result, row * columns, 1, columns, alongRow);
  }
  return result;
}

/**
 * Replace values along one line by the lower envelope of the parabolas that stand on them.
 * @param {Float64Array} values
 * @param {number} start
 * @param {number} stride
 * @param {number} count
 * @param {number} step Distance of neighbours, in mm.
 */
function lowerEnvelope(values, start, stride, count, step) {
  const line = Float64Array.from({ length: count }, (_, at) => values[start + at * stride]);
  const corners = [0];
  const begins = [-Infinity];
  const square = step * step;
  const crossing = (/** @type {number} */ a, /** @type {number} */ b) =>
    (line[b] - line[a] + square * (b * b - a * a)) / (2 * square * (b - a));
  for (let at = 1; at < count; at += 1) {
    while (corners.length && crossing(corners[corners.length - 1], at) <= begins[begins.length - 1]) {
      corners.pop();
      begins.pop();
    }
    begins.push(corners.length ? crossing(corners[corners.length - 1], at) : -Infinity);
    corners.push(at);
  }
  for (let at = 0, part = 0; at < count; at += 1) {
    while (part + 1 < corners.length && begins[part + 1] < at) {
      part += 1;
    }
    values[start + at * stride] = line[corners[part]] + square * (at - corners[part]) ** 2;
  }
}
