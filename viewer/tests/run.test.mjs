import assert from 'node:assert/strict';
import { test } from 'node:test';
import { described, duration, translate } from '../modules/run.mjs';
import { organsOf } from '../modules/session.mjs';

test('a run is described by its place, its stage and the time left', () => {
  assert.deepEqual(described({ position: 3, progress: null }), ['Waiting: 3 before you', undefined]);
  const network = { stage: 'network', done: 3, total: 12, seconds_left: 45.2 };
  assert.deepEqual(described({ position: 0, progress: network }), ['Running: contouring 25 %, about 45 s left', 0.25]);
  const first = { stage: 'prepare', done: 0, total: 1, seconds_left: null };
  assert.deepEqual(described({ position: 0, progress: first }), ['Running: preparing', undefined]);
  assert.deepEqual(described({ position: null, progress: null }), ['Starting', undefined]);
});

test('durations have two units', () => {
  assert.deepEqual([0.2, 89, 90, 3000].map(duration), ['1 s', '89 s', '2 min', '50 min']);
});

test("a model's values become this server's, and unknown organs background", () => {
  const organs = organsOf({ SpinalCord: 7, Brainstem: 2 }, [
    { name: 'Brainstem', colour: [1, 2, 3] },
    { name: 'Brain', colour: [0, 0, 0] },
    { name: 'SpinalCord', colour: [4, 5, 6] },
  ]);
  assert.deepEqual(organs.map(({ name, value }) => [name, value]), [['Brainstem', 2], ['SpinalCord', 7]]);
  const values = Uint8Array.from([0, 1, 2, 3]);
  assert.deepEqual(translate(values, { SpinalCord: 1, Brainstem: 3, Brain: 2 }, organs), ['Brain']);
  assert.deepEqual([...values], [0, 7, 0, 2]);
});
