import assert from 'node:assert/strict';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { readNrrd, writeNrrd } from '../modules/nrrd.mjs';

/** @param {string[]} header @param {Uint8Array} data */
function file(header, data) {
  const bytes = Buffer.concat([Buffer.from(header.join('\n') + '\n\n'), data]);
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
}

const HEADER = [
  'NRRD0004',
  '# Complete NRRD file format specification at:',
  'type: unsigned char',
  'dimension: 3',
  'space: left-posterior-superior',
  'sizes: 2 1 3',
  'space directions: (1,0,0) (0,-2.5,0) (0,0,3)',
  'kinds: domain domain domain',
];
const VALUES = Uint8Array.from([1, 2, 3, 4, 5, 6]);

test('a volume is read, whether it is compressed or not', async () => {
  for (const [encoding, data] of [['raw', VALUES], ['gzip', gzipSync(VALUES)]]) {
    const volume = await readNrrd(file([...HEADER, `encoding: ${encoding}`, 'space origin: (10,-20.5,30)'], data));
    assert.deepEqual(volume.sizes, [2, 1, 3]);
    assert.deepEqual(volume.origin, [10, -20.5, 30]);
    assert.deepEqual(volume.directions, [[1, 0, 0], [0, -2.5, 0], [0, 0, 3]]);
    assert.deepEqual([...volume.values], [...VALUES]);
  }
});

test('RAS becomes LPS', async () => {
  const ras = HEADER.map(line => line.replace('left-posterior-superior', 'right-anterior-superior'));
  const volume = await readNrrd(file([...ras, 'encoding: raw', 'space origin: (10,-20,30)'], VALUES));
  assert.deepEqual(volume.origin, [-10, 20, 30]);
  assert.deepEqual(volume.directions[1], [-0, 2.5, 0]);
});

test('what is written is read again', async () => {
  const volume = { sizes: [2, 1, 3], origin: [1.25, -2, 1e-7], directions: [[0.9765625, 0, 0], [0, 1, 0.1], [0, 0, -3]], values: VALUES };
  assert.deepEqual(await readNrrd(await (await writeNrrd(volume)).arrayBuffer()), volume);
});

test('other content is refused', async () => {
  await assert.rejects(readNrrd(file(['{"detail": "no"}'], VALUES)), /not a label volume/);
  const short = file([...HEADER, 'encoding: raw', 'space origin: (0,0,0)'], VALUES.subarray(1));
  await assert.rejects(readNrrd(short), /5 voxels, expected 2 x 1 x 3/);
});
