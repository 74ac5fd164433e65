// Requests to this server. Every refusal becomes a ServerError with the server's own reason.

/** A request that was refused, or not answered. */
export class ServerError extends Error {
  /**
   * @param {string} message
   * @param {number} status HTTP status; 0 if there was no answer.
   * @param {number} retryAfterS Time in s after which the server may accept it; 0 if it named none.
   */
  constructor(message, status = 0, retryAfterS = 0) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

/** @returns {string} Id of this browser; it identifies the reader if users do not log in. */
export function clientId() {
  const key = 'organnet.client';
  const stored = window.localStorage.getItem(key);
  if (stored) {
    return stored;
  }
  const id = 'ohif-' + Math.random().toString(16).slice(2, 10);
  window.localStorage.setItem(key, id);
  return id;
}

/**
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<Response>} A successful answer.
 */
export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) {
      throw error;
    }
    throw new ServerError('the server does not answer; the contours are still on this page, try again');
  }
  if (!answer.ok) {
    const retryAfterS = Number(answer.headers.get('Retry-After') ?? 0);
    throw new ServerError(await reason(answer), answer.status, retryAfterS);
  }
  return answer;
}

/** @param {Response} answer */
async function reason(answer) {
  try {
    const { detail } = await answer.json();
    return typeof detail === 'string' ? detail : detail.map((/** @type {any} */ item) => item.msg).join('; ');
  } catch {
    return `the server answered ${answer.status}`;
  }
}

/**
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<any>}
 */
const json = async (path, options) => (await ask(path, options)).json();

/** @param {object} body @returns {RequestInit} */
const post = body => ({
  method: 'POST',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify(body),
});

const id = encodeURIComponent;

/** @returns {Promise<{name: string, colour: number[]}[]>} All organs in planning order. */
export const organTable = () => json('/ohif/organnet/organs.json');
export const info = () => json('/info/');
export const status = () => json('/organnet/status');
export const startTraining = () => json('/train/organnet25d', post({}));
export const stopTraining = () => json('/train/', { method: 'DELETE' });

/** @param {string} job */
export const queue = job => json(`/organnet/inference?job=${id(job)}`);

/** @param {string} job */
export const cancel = job => json(`/organnet/inference/${id(job)}`, { method: 'DELETE' });

/** @param {string} uid SeriesInstanceUID @returns {Promise<string>} The server's id of the series, or else the UID. */
export const imageOf = uid =>
  json(`/organnet/series/${id(uid)}`).then(
    found => found.image,
    () => uid
  );

/**
 * Have a model contour a series.
 * @param {string} model
 * @param {string} series
 * @param {object} options
 * @param {AbortSignal} signal
 * @returns {Promise<{params: any, file: ArrayBuffer}>}
 */
export async function infer(model, series, options, signal) {
  const body = new FormData();
  const format = { result_extension: '.nrrd', result_dtype: 'uint8', result_compress: false };
  body.append('params', JSON.stringify({ ...format, client_id: clientId(), ...options }));
  const answer = await ask(`/infer/${id(model)}?image=${id(series)}&output=all`, { method: 'POST', body, signal });
  const form = await answer.formData();
  const file = /** @type {Blob} */ (form.get('image'));
  return { params: JSON.parse(String(form.get('params'))), file: await file.arrayBuffer() };
}

/**
 * @param {string} series
 * @returns {Promise<any>} The current version of a series' label; null if there is none.
 */
export const currentLabel = async series =>
  (await json(`/organnet/labels?image=${id(series)}`)).labels[0] ?? null;

/** @param {string} series @returns {Promise<any[]>} */
export const labelHistory = series => json(`/organnet/labels/${id(series)}`);

/** @param {string} series @returns {Promise<ArrayBuffer>} */
export const submittedLabel = async series =>
  (await ask(`/organnet/export/${id(series)}?format=nrrd`)).arrayBuffer();

/**
 * @param {string} series
 * @param {'rtstruct' | 'seg'} format
 * @returns {string} Address of the submitted label as a DICOM object.
 */
export const exportAddress = (series, format) => `/organnet/export/${id(series)}?format=${format}`;

/** @param {string} series @param {'rtstruct' | 'seg'} format Store the submitted label in the PACS now. */
export const sendToPacs = (series, format) =>
  json(`/organnet/export/${id(series)}/pacs?format=${format}`, { method: 'POST' });

/** @param {string} series @param {object} body Clicks on one organ (docs/prompts.md). */
export const prompt = (series, body) => json(`/organnet/prompts/${id(series)}`, post(body));

/**
 * Submit a label of a series.
 * @param {string} series
 * @param {Blob} file
 * @param {object} params
 * @returns {Promise<any>}
 */
export function submit(series, file, params) {
  const body = new FormData();
  body.append('params', JSON.stringify({ ...params, client_id: clientId() }));
  body.append('label', file, 'label.nrrd');
  return json(`/datastore/label?image=${id(series)}&tag=final`, { method: 'PUT', body });
}

/** @param {string} strategy */
export const nextSample = strategy =>
  json(`/activelearning/${id(strategy)}`, post({ client_id: clientId() }));

/** @param {string} series @returns {Promise<any>} This browser's lease of a series; undefined if it has none. */
export const ownLease = async series =>
  (await json('/organnet/leases')).find(
    (/** @type {any} */ lease) => lease.image === series && lease.holder === clientId()
  );

/** @param {string} series */
export const giveBack = series =>
  json(`/organnet/leases/${id(series)}?client_id=${id(clientId())}`, { method: 'DELETE' });

/** @param {string} series Give a case back, and do not get it again for a while. */
export const skip = series =>
  json(`/organnet/leases/${id(series)}/skip?client_id=${id(clientId())}`, { method: 'POST' });

/** @param {string} series @param {string} reason Offer a case to nobody any more. */
export const markUnsuitable = (series, reason) =>
  json(`/organnet/unsuitable/${id(series)}`, post({ reason, client_id: clientId() }));
