import assert from 'node:assert/strict';
import { test } from 'node:test';
import { interpolated, signedDistance } from '../modules/interpolation.mjs';

/** @param {number} columns @param {number} rows @param {(x: number, y: number) => boolean} isInside */
const mask = (columns, rows, isInside) =>
  Uint8Array.from({ length: columns * rows }, (_, at) => Number(isInside(at % columns, Math.floor(at / columns))));

test('the signed distance is that of a search over all pixels', () => {
  const [columns, rows, spacing] = [9, 7, [1.5, 2.5]];
  const shape = mask(columns, rows, (x, y) => (x - 3) ** 2 + (y - 3) ** 2 <= 5 || (x === 8 && y === 0));
  const found = signedDistance(shape, columns, spacing);
  shape.forEach((value, at) => {
    const others = [...shape.keys()].filter(one => Boolean(shape[one]) !== Boolean(value));
    const nearest = Math.min(
      ...others.map(one => Math.hypot((one % columns - at % columns) * 1.5, (Math.floor(one / columns) - Math.floor(at / columns)) * 2.5))
    );
    assert.ok(Math.abs(found[at] - (value ? nearest : -nearest)) < 1e-9, String(at));
  });
});

test('between two discs are discs with radii between theirs', () => {
  const side = 61;
  const disc = (/** @type {number} */ radius) => mask(side, side, (x, y) => Math.hypot(x - 30, y - 30) <= radius);
  const empty = mask(side, side, () => false);
  const filled = interpolated([empty, disc(8), empty, empty, empty, disc(24), empty], side, [1, 1]);
  assert.deepEqual([...filled.keys()], [2, 3, 4]);
  [12, 16, 20].forEach((radius, number) => {
    const area = filled.get(number + 2)?.reduce((sum, value) => sum + value, 0) ?? 0;
    assert.ok(Math.abs(Math.sqrt(area / Math.PI) - radius) < 0.7, `${area} for ${radius}`);
  });
});

test('a shape that is drawn twice is repeated exactly, and nothing is filled outside', () => {
  const shape = mask(10, 8, (x, y) => x > 2 && x < 7 && y > 1 && y < 5);
  const empty = new Uint8Array(80);
  const filled = interpolated([empty, shape, empty, shape, empty], 10, [1, 3]);
  assert.deepEqual([...filled], [[2, shape]]);
  assert.equal(interpolated([shape, shape, empty], 10, [1, 3]).size, 0);
});
