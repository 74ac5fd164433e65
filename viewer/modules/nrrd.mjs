// NRRD files with one volume of 8-bit labels (teem.sourceforge.net/nrrd/format.html), as this server sends and reads them.

/**
 * @typedef {object} Volume
 * @property {number[]} sizes Voxels along x, y and z; x is fastest.
 * @property {number[]} origin Centre of the first voxel, in LPS mm.
 * @property {number[][]} directions Steps between voxel centres along x, y and z, in LPS mm.
 * @property {Uint8Array} values
 */

const END = [10, 10];

/**
 * @param {ArrayBuffer} buffer
 * @returns {Promise<Volume>}
 */
export async function readNrrd(buffer) {
  const bytes = new Uint8Array(buffer);
  const end = bytes.findIndex((byte, at) => byte === END[0] && bytes[at + 1] === END[1]);
  const fields = headerFields(new TextDecoder().decode(bytes.subarray(0, Math.max(end, 0))));
  const sizes = numbers(fields.sizes);
  if (end < 0 || !['unsigned char', 'uchar', 'uint8', 'uint8_t'].includes(fields.type) || sizes.length !== 3) {
    throw new Error('the received contours are not a label volume with 8 bits a voxel');
  }
  const data = bytes.subarray(end + END.length);
  const values = fields.encoding === 'raw' ? data.slice() : await through(new DecompressionStream('gzip'), data);
  if (values.length !== sizes[0] * sizes[1] * sizes[2]) {
    throw new Error(`the received contours have ${values.length} voxels, expected ${sizes.join(' x ')}`);
  }
  const inLps = fields.space === 'left-posterior-superior' ? [1, 1, 1] : [-1, -1, 1];
  const toLps = (/** @type {number[]} */ vector) => vector.map((value, axis) => value * inLps[axis]);
  return {
    sizes,
    origin: toLps(vectors(fields['space origin'])[0]),
    directions: vectors(fields['space directions']).map(toLps),
    values,
  };
}

/**
 * @param {Volume} volume
 * @returns {Promise<Blob>} A gzip-compressed file.
 */
export async function writeNrrd({ sizes, origin, directions, values }) {
  const vector = (/** @type {number[]} */ numbers_) => `(${numbers_.join(',')})`;
  const header = [
    'NRRD0004',
    'type: unsigned char',
    'dimension: 3',
    'space: left-posterior-superior',
    `sizes: ${sizes.join(' ')}`,
    `space directions: ${directions.map(vector).join(' ')}`,
    'kinds: domain domain domain',
    'encoding: gzip',
    `space origin: ${vector(origin)}`,
  ];
  const packed = await through(new CompressionStream('gzip'), values);
  return new Blob([header.join('\n') + '\n\n', /** @type {any} */ (packed)], { type: 'application/octet-stream' });
}

/** @param {string} text @returns {Record<string, string>} */
function headerFields(text) {
  const lines = text.split('\n').filter(line => /^[^#].*?:=? /.test(line));
  return Object.fromEntries(lines.map(line => line.split(/:=? /, 2).map(part => part.trim())));
}

/** @param {string} [text] @returns {number[]} */
const numbers = (text = '') => text.trim().split(/[ ,]+/).map(Number);

/** @param {string} [text] @returns {number[][]} */
const vectors = (text = '') => [...text.matchAll(/\(([^)]*)\)/g)].map(([, inside]) => numbers(inside));

/**
 * @param {CompressionStream | DecompressionStream} stream
 * @param {Uint8Array} bytes
 * @returns {Promise<Uint8Array>}
 */
async function through(stream, bytes) {
  const piped = new Blob([/** @type {any} */ (bytes)]).stream().pipeThrough(/** @type {any} */ (stream));
  return new Uint8Array(await new Response(/** @type {any} */ (piped)).arrayBuffer());
}
