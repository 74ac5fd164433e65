import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pixelsInside } from '../modules/polygon.mjs';

/** @param {number[][]} corners @param {number} columns @param {number} rows */
function drawn(corners, columns, rows) {
  const inside = new Set(pixelsInside(corners, columns, rows));
  return Array.from({ length: rows }, (_, row) =>
    Array.from({ length: columns }, (_, column) => (inside.has(row * columns + column) ? '#' : '.')).join('')
  );
}

test('the pixels whose centre is inside are taken', () => {
  assert.deepEqual(drawn([[0.5, 0.5], [3.5, 0.5], [3.5, 2.5], [0.5, 2.5]], 5, 4), ['.....', '.###.', '.###.', '.....']);
});

test('a concave polygon keeps its bay', () => {
  const u = [[0.5, 0.5], [1.5, 0.5], [1.5, 2.5], [3.5, 2.5], [3.5, 0.5], [4.5, 0.5], [4.5, 3.5], [0.5, 3.5]];
  assert.deepEqual(drawn(u, 6, 5), ['......', '.#..#.', '.#..#.', '.####.', '......']);
});

test('a polygon that reaches out of the image is cut', () => {
  assert.deepEqual(drawn([[-9, -9], [0.5, -9], [0.5, 9], [-9, 9]], 3, 2), ['#..', '#..']);
});

test('two polygons that share an edge share no pixel and leave none out', () => {
  const upper = pixelsInside([[0.5, 0], [3.5, 0], [3.5, 2], [0.5, 2]], 5, 5);
  const lower = pixelsInside([[0.5, 2], [3.5, 2], [3.5, 4], [0.5, 4]], 5, 5);
  assert.equal(new Set([...upper, ...lower]).size, upper.length + lower.length);
  assert.equal(upper.length + lower.length, 12);
  const left = pixelsInside([[0, 0.5], [2, 0.5], [2, 2.5], [0, 2.5]], 5, 5);
  const right = pixelsInside([[2, 0.5], [4, 0.5], [4, 2.5], [2, 2.5]], 5, 5);
  assert.equal(new Set([...left, ...right]).size, 8);
  assert.equal(left.length + right.length, 8);
});
