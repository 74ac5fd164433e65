// Pixels inside a closed polygon.

/**
 * @param {number[][]} corners Column and row of each corner; pixel centres have whole numbers.
 * @param {number} columns
 * @param {number} rows
 * @returns {number[]} Positions (row * columns + column) of the pixels whose centre is inside, by the even-odd rule.
 *     A centre on an edge belongs to the polygon on its right, or below it.
 */
export function pixelsInside(corners, columns, rows) {
  const inside = [];
  for (let row = 0; row < rows; row += 1) {
    const crossings = corners
      .map((corner, number) => crossing(corner, corners[(number + 1) % corners.length], row))
      .filter(at => at !== undefined)
      .sort((a, b) => Number(a) - Number(b));
    for (let pair = 0; pair + 1 < crossings.length; pair += 2) {
      const first = Math.max(0, Math.ceil(Number(crossings[pair])));
      const last = Math.min(columns - 1, Math.ceil(Number(crossings[pair + 1])) - 1);
      for (let column = first; column <= last; column += 1) {
        inside.push(row * columns + column);
      }
    }
  }
  return inside;
}

/**
 * @param {number[]} start
 * @param {number[]} stop
 * @param {number} row
 * @returns {number | undefined} Column in which an edge crosses a row; its lower end belongs to it, its upper does not.
 */
function crossing([startColumn, startRow], [stopColumn, stopRow], row) {
  const isCrossed = startRow <= row !== stopRow <= row;
  return isCrossed ? startColumn + ((row - startRow) / (stopRow - startRow)) * (stopColumn - startColumn) : undefined;
}
