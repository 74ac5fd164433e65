// OHIF's managers, which the extension gets when it is registered, and the libraries that OHIF puts on the window.

/** @type {{ servicesManager: any, commandsManager: any, extensionManager: any } | undefined} */
let managers;

/** @param {any} given What OHIF passes to an extension. */
export function setManagers(given) {
  managers = given;
}

/** @returns {any} OHIF's services by name. */
export function services() {
  return managers?.servicesManager.services;
}

/**
 * Run a command of OHIF.
 * @param {string} name
 * @param {object} [options]
 * @returns {any}
 */
export function run(name, options = {}) {
  return managers?.commandsManager.runCommand(name, options);
}

/** @returns {any} Cornerstone: images, volumes and viewports. */
export const cornerstone = () => /** @type {any} */ (window).cornerstone;

/** @returns {any} Cornerstone's tools and segmentations. */
export const tools = () => /** @type {any} */ (window).cornerstoneTools;

/** @returns {string[]} Ids of the viewports on the page. */
export function viewportIds() {
  return [...services().viewportGridService.getState().viewports.keys()];
}

/**
 * @param {string} id
 * @returns {any} Cornerstone's viewport; undefined before it is drawn.
 */
export const viewport = id => services().cornerstoneViewportService.getCornerstoneViewport(id);

/**
 * Show a message over the images for a while.
 * @param {string} message
 * @param {'success' | 'error' | 'info' | 'warning'} type
 */
export function notify(message, type = 'info') {
  services().uiNotificationService.show({ title: 'OrganNet Label', message, type, duration: 12000 });
}
