// Contours that are not submitted yet, kept in this browser: a page that ends loses nothing.

const DATABASE = 'organnet';
const STORE = 'drafts';

/** @typedef {{ series: string, file: Blob, at: number }} Draft */

/** @returns {Promise<IDBDatabase>} */
function database() {
  return new Promise((resolve, reject) => {
    const opening = window.indexedDB.open(DATABASE, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: 'series' });
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
}

/**
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest<T>} action
 * @returns {Promise<T>}
 */
async function stored(mode, action) {
  const open = await database();
  try {
    return await new Promise((resolve, reject) => {
      const request = action(open.transaction(STORE, mode).objectStore(STORE));
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  } finally {
    open.close();
  }
}

/** @param {string} series @param {Blob} file Replaces an older draft of the series. */
export const keepDraft = (series, file) => stored('readwrite', store => store.put({ series, file, at: Date.now() }));

/** @param {string} series @returns {Promise<Draft | undefined>} */
export const draftOf = series => stored('readonly', store => store.get(series));

/** @param {string} series */
export const removeDraft = series => stored('readwrite', store => store.delete(series));
