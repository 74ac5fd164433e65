// Functions that the patched lines of OHIF's bundle call (lib/server/ohif/bundle_patches.yaml); loaded before it.
'use strict';

window.organnet = (() => {
  const ORGANS = {}; /* the server inserts the organ table here: name -> [r, g, b] */
  const WAIT_MS = 200;

  // Return the id of this browser; it identifies the reader if users do not log in.
  function clientId() {
    const key = 'organnet.client';
    const stored = window.localStorage.getItem(key);
    if (stored) {
      return stored;
    }
    const id = 'ohif-' + Math.random().toString(16).slice(2, 10);
    window.localStorage.setItem(key, id);
    return id;
  }

  // Return the organ's colour in the panel's form, null for a name that is not in the organ table.
  function colour(name) {
    const rgb = ORGANS[name];
    return rgb ? { r: rgb[0], g: rgb[1], b: rgb[2] } : null;
  }

  function services() {
    return api.panel.props.servicesManager.services;
  }

  function wait() {
    return new Promise(resolve => window.setTimeout(resolve, WAIT_MS));
  }

  // Connect to the server as soon as an image is shown, so that the user need not do it.
  async function connect(panel) {
    api.panel = panel;
    api.opened = { search: window.location.search, index: window.history.state?.idx };
    api.contours.guardUpdates(panel);
    while (!hasImage(panel)) {
      await wait();
      if (api.panel !== panel) {
        return;
      }
    }
    await panel.onInfo(window.location.origin + '/');
  }

  function hasImage(panel) {
    const { viewportGridService, displaySetService, cornerstoneViewportService } =
      panel.props.servicesManager.services;
    const { viewports, activeViewportId } = viewportGridService.getState();
    const uid = viewports.get(activeViewportId)?.displaySetInstanceUIDs?.[0];
    const shown = cornerstoneViewportService.getCornerstoneViewport(activeViewportId);
    return Boolean(uid && displaySetService.getDisplaySetByUID(uid) && shown?.getImageData?.());
  }

  // Return the series of the panel's labelmap; undefined if there is none, or if it is another patient's.
  function seriesOfLabelmap(search = window.location.search) {
    const segmentation = services().segmentationService.getSegmentation(api.contours.LABELMAP);
    const [first] = segmentation?.representationData?.Labelmap?.imageIds ?? [];
    const referenced = first && window.cornerstone.cache.getImage(first)?.referencedImageId;
    const instance = referenced && window.cornerstone.metaData.get('instance', referenced);
    const parameters = new URLSearchParams(search).getAll('StudyInstanceUIDs');
    const open = parameters.flatMap(uids => uids.split(','));
    return open.includes(instance?.StudyInstanceUID) ? instance.SeriesInstanceUID : undefined;
  }

  // Put an empty labelmap on the series that is to be contoured; false if the user keeps the present contours.
  async function prepareLabelmap(seriesUid) {
    const { panel } = api;
    if (!api.contours.confirmDiscard()) {
      return false;
    }
    if (seriesOfLabelmap() !== seriesUid) {
      services().segmentationService.remove(api.contours.LABELMAP);
      await api.panel.onInfo(window.location.origin + '/');
    }
    while (seriesOfLabelmap() !== seriesUid) {
      await wait();
      if (api.panel !== panel) {
        return false;
      }
    }
    api.contours.expect(seriesUid);
    return true;
  }

  // Return the server's error message in place of the panel's "Failed to ...".
  function reason(response, fallback) {
    const data = response?.response?.data ?? response?.data;
    try {
      const text = data instanceof ArrayBuffer ? new TextDecoder().decode(data) : data;
      const answer = typeof text === 'string' ? JSON.parse(text) : text;
      return answer.detail || answer.why || fallback;
    } catch {
      return fallback;
    }
  }

  // Turn an answer without a case into an error, so that the panel shows its reason (`why`).
  function sample(response) {
    return response.status === 200 && !response.data.id ? { status: 0, data: response.data } : response;
  }

  function addressOf(info) {
    return '/ohif/monai-label?StudyInstanceUIDs=' + encodeURIComponent(info.StudyInstanceUID);
  }

  // Sort slices as dcmjs makes frames of them: descending along cross(row, column). In any other order contours
  // are stored on wrong slices without an error.
  function sortLastFirst(images, metaData) {
    const plane = image => metaData.get('imagePlaneModule', image.referencedImageId);
    const [a, b, c, d, e, f] = plane(images[0]).imageOrientationPatient;
    const normal = [b * f - c * e, c * d - a * f, a * e - b * d];
    const height = image =>
      plane(image).imagePositionPatient.reduce((sum, value, axis) => sum + value * normal[axis], 0);
    return images
      .map(image => ({ image, at: height(image) }))
      .sort((one, other) => other.at - one.at)
      .map(({ image }) => image);
  }

  // Store OHIF's SEG of a segmentation, and show the server's message about it (defect 25).
  async function store(dataset, segmentationId, { extensionManager }) {
    const [source] = extensionManager.getActiveDataSource();
    const sent = segmentationId === api.contours.LABELMAP && api.contours.fingerprint();
    const request = withClientId(new XMLHttpRequest());
    window.dispatchEvent(new CustomEvent('organnet:submitting'));
    try {
      await source.store.dicom(dataset, request);
    } catch (error) {
      if (!request.status) {
        throw new Error('the server does not answer; the contours are still on this page, submit them again');
      }
    }
    const { isKept, message } = outcomeOf(request);
    if (isKept && sent !== false) {
      api.contours.markSaved(sent);
    }
    notify((isKept ? 'Label ' : 'Not submitted: ') + message, isKept);
  }

  // Add the browser's id to a request.
  function withClientId(request) {
    const open = request.open.bind(request);
    request.open = (...args) => {
      open(...args);
      request.setRequestHeader('X-OrganNet-Client', clientId());
    };
    return request;
  }

  // Show a message in the OrganNet box, and for a while over the images.
  function notify(message, isGood) {
    window.dispatchEvent(new CustomEvent('organnet:message', { detail: { message, isGood } }));
    services().uiNotificationService.show({
      title: 'OrganNet Label',
      message,
      type: isGood ? 'success' : 'error',
      duration: 12000,
    });
  }

  // Return the outcome in an answer of STOW-RS; messages for users are in a private element (0099,1001).
  function outcomeOf(request) {
    let answer = {};
    try {
      answer = JSON.parse(request.responseText);
    } catch {
      // not JSON: only the status is known
    }
    const items = ['00081198', '0008119A', '00081199'].flatMap(tag => answer[tag]?.Value ?? []);
    const comments = items.map(item => item['00991001']?.Value?.[0]).filter(Boolean);
    const text = comments.join(' ') || answer.detail || `the server answered ${request.status}`;
    // Leave out the SeriesInstanceUID at the beginning, which means nothing to users.
    const message = text.replace(/^[0-9.]{20,64}: /, '');
    return { isKept: request.status === 200, message };
  }

  async function submit() {
    if (!api.contours.isDrawn()) {
      throw new Error('there are no contours yet; run the model or draw contours first');
    }
    if (!seriesOfLabelmap()) {
      throw new Error('the contours are of another patient; open this patient again');
    }
    const { commandsManager, extensionManager } = api.panel.props;
    const options = { SeriesDescription: 'Contours drawn in OHIF' };
    const generated = commandsManager.runCommand('generateSegmentation', { segmentationId: api.contours.LABELMAP, options });
    await store(generated.dataset, api.contours.LABELMAP, { extensionManager });
  }

  const api = {
    addressOf, clientId, colour, connect, notify, prepareLabelmap, reason, sample, seriesOfLabelmap, services,
    sortLastFirst, store, submit,
    contours: null, // contours.js
    opened: {}, // query string and history number of the page when the panel was opened
    panel: null,
  };
  return api;
})();
