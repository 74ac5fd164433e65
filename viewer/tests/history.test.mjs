import assert from 'node:assert/strict';
import { test } from 'node:test';
import { difference } from '../modules/history.mjs';

test('a change has the pixels that differ, before and after', () => {
  const [change] = difference('a', Uint8Array.from([0, 1, 2, 3]), Uint8Array.from([0, 5, 2, 0]));
  assert.deepEqual([[...change.at], [...change.before], [...change.after]], [[1, 3], [1, 3], [5, 0]]);
  assert.deepEqual(difference('a', Uint8Array.of(1), Uint8Array.of(1)), []);
});
