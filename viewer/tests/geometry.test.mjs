import assert from 'node:assert/strict';
import { test } from 'node:test';
import { gridOf, indexOf, pixelsOf, plus, sliceOf, sorted, times, volumeOf } from '../modules/geometry.mjs';

/** Slices of 3 x 2 pixels, turned by 30 degrees about z, the last one first. */
function slices() {
  const [c, s] = [Math.cos(Math.PI / 6), Math.sin(Math.PI / 6)];
  return [2, 1, 0].map(number =>
    sliceOf(`slice ${number}`, {
      imageOrientationPatient: [c, s, 0, -s, c, 0],
      imagePositionPatient: [10, 20, 30 + 4 * number],
      rowPixelSpacing: 2,
      columnPixelSpacing: 0.5,
      columns: 3,
      rows: 2,
    })
  );
}

/** @param {number} number */
const pixels = number => Uint8Array.from([1, 2, 3, 4, 5, 6], value => value + 10 * number);

test('slices are sorted along row x column', () => {
  assert.deepEqual(sorted(slices()).map(({ id }) => id), ['slice 0', 'slice 1', 'slice 2']);
  const turned = slices().map(slice => ({ ...slice, alongColumn: times(slice.alongColumn, -1) }));
  assert.deepEqual(sorted(turned).map(({ id }) => id), ['slice 2', 'slice 1', 'slice 0']);
});

test('pixel spacing is the distance between rows first', () => {
  const [{ alongRow, alongColumn }] = slices();
  assert.ok(Math.abs(Math.hypot(...alongRow) - 0.5) < 1e-12);
  assert.ok(Math.abs(Math.hypot(...alongColumn) - 2) < 1e-12);
});

test('a volume of slices gives its pixels back, also with reversed and exchanged axes', () => {
  const ordered = sorted(slices());
  const volume = volumeOf(ordered, [0, 1, 2].map(pixels));
  assert.deepEqual(volume.sizes, [3, 2, 3]);
  ordered.forEach((slice, number) => assert.deepEqual(pixelsOf(volume, slice), pixels(number)));

  // The same voxels, as a volume with the axes z, x, y, and x reversed.
  const [x, y, z] = volume.directions;
  const other = { sizes: [3, 3, 2], origin: plus(volume.origin, times(x, 2)), directions: [z, times(x, -1), y], values: new Uint8Array(18) };
  for (let i = 0; i < 3; i += 1) {
    for (let j = 0; j < 2; j += 1) {
      for (let k = 0; k < 3; k += 1) {
        other.values[k + 3 * (2 - i) + 9 * j] = volume.values[i + 3 * j + 6 * k];
      }
    }
  }
  ordered.forEach((slice, number) => assert.deepEqual(pixelsOf(other, slice), pixels(number)));
});

test('a volume on other voxels is refused', () => {
  const ordered = sorted(slices());
  const volume = volumeOf(ordered, [0, 1, 2].map(pixels));
  const shifted = { ...volume, origin: plus(volume.origin, [0.1, 0, 0]) };
  assert.throws(() => pixelsOf(shifted, ordered[0]), /other voxels/);
  const shorter = { ...volume, sizes: [3, 2, 2] };
  assert.throws(() => pixelsOf(shorter, ordered[2]), /other voxels/);
});

test('a single slice has the thickness of its series', () => {
  const { directions } = gridOf(slices().slice(0, 1), 2.5);
  assert.deepEqual(directions[2].map(value => Math.round(1000 * value) / 1000 + 0), [0, 0, 2.5]);
});

test('the index of a position is the inverse of the position of an index', () => {
  const volume = volumeOf(sorted(slices()), [0, 1, 2].map(pixels));
  const [x, y, z] = volume.directions;
  const at = plus(volume.origin, plus(times(x, 1.5), plus(times(y, -2), times(z, 0.25))));
  const rounded = indexOf(volume)(at).map(value => Math.round(1e9 * value) / 1e9);
  assert.deepEqual(rounded, [1.5, -2, 0.25]);
});
