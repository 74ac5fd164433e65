// Holes and rough edges of one organ's masks.

/**
 * @param {Uint8Array} mask Of one slice; not 0 where the organ is.
 * @param {number} columns
 * @returns {number[]} Positions of the pixels outside that no path over edges connects with the border of the image.
 */
export function holes(mask, columns) {
  const rows = mask.length / columns;
  const isReached = new Uint8Array(mask.length);
  /** @type {number[]} */
  const next = [];
  const reach = (/** @type {number} */ at) => {
    if (!mask[at] && !isReached[at]) {
      isReached[at] = 1;
      next.push(at);
    }
  };
  for (let column = 0; column < columns; column += 1) {
    reach(column);
    reach((rows - 1) * columns + column);
  }
  for (let row = 0; row < rows; row += 1) {
    reach(row * columns);
    reach(row * columns + columns - 1);
  }
  for (let at = next.pop(); at !== undefined; at = next.pop()) {
    const column = at % columns;
    [column > 0 && at - 1, column < columns - 1 && at + 1, at >= columns && at - columns, at < mask.length - columns && at + columns]
      .filter(neighbour => neighbour !== false)
      .forEach(reach);
  }
  return Array.from(mask.keys()).filter(at => !mask[at] && !isReached[at]);
}

/**
 * @param {Uint8Array[]} masks Of each slice; 1 where the organ is.
 * @param {number} columns
 * @returns {Map<number, Uint8Array>} Slices that change: each voxel as most of the 27 around it are.
 */
export function smoothed(masks, columns) {
  const flat = masks.map(mask => blurred(mask, columns));
  const changed = new Map();
  masks.forEach((mask, number) => {
    const around = [flat[Math.max(0, number - 1)], flat[number], flat[Math.min(masks.length - 1, number + 1)]];
    if (around.some(Boolean)) {
      const result = mask.map((_, at) => Number(around.reduce((sum, one) => sum + (one ? one[at] : 0), 0) > 13));
      if (result.some((value, at) => value !== mask[at])) {
        changed.set(number, result);
      }
    }
  });
  return changed;
}

/**
 * @param {Uint8Array} mask
 * @param {number} columns
 * @returns {Uint8Array | undefined} Sum over 3 x 3 pixels, the border repeated; undefined if the mask is empty.
 */
function blurred(mask, columns) {
  if (!mask.some(Boolean)) {
    return undefined;
  }
  const rows = mask.length / columns;
  const across = mask.map((value, at) => {
    const column = at % columns;
    return value + mask[column > 0 ? at - 1 : at] + mask[column < columns - 1 ? at + 1 : at];
  });
  return across.map((value, at) => {
    const row = Math.floor(at / columns);
    return value + across[row > 0 ? at - columns : at] + across[row < rows - 1 ? at + columns : at];
  });
}
