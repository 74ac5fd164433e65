import assert from 'node:assert/strict';
import { test } from 'node:test';
import { holes, smoothed } from '../modules/morphology.mjs';

/** @param {string[]} rows */
const mask = rows => Uint8Array.from([...rows.join('')].map(character => Number(character === '#')));

test('holes are what edges do not connect with the border', () => {
  const rows = ['......', '.####.', '.#..#.', '.###..', '......'];
  assert.deepEqual(holes(mask(rows), 6), [2 * 6 + 2, 2 * 6 + 3], 'a corner does not connect');
  assert.deepEqual(holes(mask(['......', '.####.', '.#....', '.####.', '......']), 6), []);
});

test('smoothing removes single voxels and fills single gaps, and keeps a plane', () => {
  const full = mask(['#####', '#####', '#####', '#####']);
  const gap = mask(['#####', '##.##', '#####', '#####']);
  const empty = new Uint8Array(20);
  const single = mask(['.....', '..#..', '.....', '.....']);
  assert.deepEqual([...smoothed([full, gap, full], 5)], [[1, full]]);
  assert.deepEqual([...smoothed([empty, single, empty], 5)], [[1, empty]]);
  assert.equal(smoothed([full, full, full], 5).size, 0);
  const half = mask(['##...', '##...', '##...', '##...']);
  assert.equal(smoothed([half, half, half], 5).size, 0);
});
