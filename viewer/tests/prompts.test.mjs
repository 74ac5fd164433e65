import assert from 'node:assert/strict';
import { test } from 'node:test';
import { indexMap, packed, unpacked } from '../modules/prompts.mjs';

test('a mask has one bit a voxel, the first axis fastest, the lowest bit first', () => {
  const voxels = [[5, 7, 9], [7, 7, 9], [6, 8, 9], [5, 8, 10]];
  const mask = packed(voxels);
  // Bits 0 and 2 of the first row, 1 of the second: 1 + 4 + 16; in the second slice bit 6 + 3 = 9.
  assert.deepEqual(mask, { start: [5, 7, 9], size: [3, 2, 2], bits: Buffer.from([21, 2]).toString('base64') });
  const set = [...unpacked(mask)].filter(([, isSet]) => isSet).map(([voxel]) => voxel);
  assert.deepEqual(set, voxels);
});

test('voxels of two grids are related by whole steps', () => {
  const from = { sizes: [4, 3, 2], origin: [10, 20, 30], directions: [[2, 0, 0], [0, 3, 0], [0, 0, 5]] };
  const to = { sizes: [2, 4, 3], origin: [16, 20, 30], directions: [[0, 0, 5], [-2, 0, 0], [0, 3, 0]] };
  assert.deepEqual(indexMap(from, to), { start: [0, 3, 0], steps: [[0, -1, 0], [0, 0, 1], [1, 0, 0]] });
  assert.deepEqual(indexMap(to, from), { start: [3, 0, 0], steps: [[0, 0, 1], [-1, 0, 0], [0, 1, 0]] });
});
