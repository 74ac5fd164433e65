// What the cured lines of OHIF's bundle call (lib/server/viewer_cures.py); loaded before the bundle.
'use strict';

window.organnet = (() => {
  const ORGANS = {}; /* the organ table is put here when this is served: name -> [r, g, b] */
  const WAIT_MS = 200;

  function clientId() {
    const key = 'organnet.client';
    const kept = window.localStorage.getItem(key);
    if (kept) {
      return kept;
    }
    const made = 'ohif-' + Math.random().toString(16).slice(2, 10);
    window.localStorage.setItem(key, made);
    return made;
  }

  // The organ table's colour as the panel wants it, null for a name that is not in the table.
  function colour(name) {
    const found = ORGANS[name];
    return found ? { r: found[0], g: found[1], b: found[2] } : null;
  }

  function services() {
    return api.panel.props.servicesManager.services;
  }

  function wait() {
    return new Promise(resolve => window.setTimeout(resolve, WAIT_MS));
  }

  // Connect as soon as there is an image to lay contours on; who opens a patient has no more to do.
  async function connect(panel) {
    api.panel = panel;
    api.opened = { search: window.location.search, index: window.history.state?.idx };
    api.contours.watch(panel);
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

  // The series that the panel's labelmap lies on; undefined where there is no labelmap, or another patient's.
  function seriesOfLabelmap(search = window.location.search) {
    const found = services().segmentationService.getSegmentation(api.contours.LABELMAP);
    const [first] = found?.representationData?.Labelmap?.imageIds ?? [];
    const drawnOn = first && window.cornerstone.cache.getImage(first)?.referencedImageId;
    const instance = drawnOn && window.cornerstone.metaData.get('instance', drawnOn);
    const asked = new URLSearchParams(search).getAll('StudyInstanceUIDs');
    const open = asked.flatMap(uids => uids.split(','));
    return open.includes(instance?.StudyInstanceUID) ? instance.SeriesInstanceUID : undefined;
  }

  // Lay the labelmap on the series that is about to be contoured; false where its contours are to stay.
  async function layOn(seriesUid) {
    const { panel } = api;
    if (!api.contours.mayGo()) {
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

  // What the server said, in place of the panel's "Failed to ...".
  function reason(response, otherwise) {
    const data = response?.response?.data ?? response?.data;
    try {
      const text = data instanceof ArrayBuffer ? new TextDecoder().decode(data) : data;
      const told = typeof text === 'string' ? JSON.parse(text) : text;
      return told.detail || told.why || otherwise;
    } catch {
      return otherwise;
    }
  }

  // A next sample without an id is none: `why` says so, and the panel shows that.
  function sample(response) {
    return response.status === 200 && !response.data.id ? { status: 0, data: response.data } : response;
  }

  function addressOf(info) {
    return '/ohif/monai-label?StudyInstanceUIDs=' + encodeURIComponent(info.StudyInstanceUID);
  }

  // Slices in the order in which dcmjs makes frames of them: down along cross(row, column), whatever the
  // order that they came in. In any other order each contour lands on another slice, and nothing says so.
  function lastFirst(images, metaData) {
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

  // Store what OHIF made of a segmentation, and tell what the server made of it (DESIGN's defect 25).
  async function store(dataset, segmentationId, { extensionManager }) {
    const [source] = extensionManager.getActiveDataSource();
    const sent = segmentationId === api.contours.LABELMAP && api.contours.fingerprint();
    const request = signed(new XMLHttpRequest());
    window.dispatchEvent(new CustomEvent('organnet:submitting'));
    try {
      await source.store.dicom(dataset, request);
    } catch (error) {
      if (!request.status) {
        throw new Error('the server does not answer; the contours are still here, submit them again');
      }
    }
    const { isKept, message } = outcomeOf(request);
    if (isKept && sent !== false) {
      api.contours.settle(sent);
    }
    say((isKept ? 'Label ' : 'Not submitted: ') + message, isKept);
  }

  // The request says which browser it comes from: who reads a case is known by it where nobody logs in.
  function signed(request) {
    const open = request.open.bind(request);
    request.open = (...how) => {
      open(...how);
      request.setRequestHeader('X-OrganNet-Client', clientId());
    };
    return request;
  }

  // Tell a person something: in our box, and over the images, where it goes after a while.
  function say(message, isGood) {
    window.dispatchEvent(new CustomEvent('organnet:told', { detail: { message, isGood } }));
    services().uiNotificationService.show({
      title: 'OrganNet Label',
      message,
      type: isGood ? 'success' : 'error',
      duration: 12000,
    });
  }

  // The answer of STOW-RS; the sentences for people are in our private element.
  function outcomeOf(request) {
    let answer = {};
    try {
      answer = JSON.parse(request.responseText);
    } catch {
      // no JSON: the status is all there is
    }
    const items = ['00081198', '0008119A', '00081199'].flatMap(tag => answer[tag]?.Value ?? []);
    const told = items.map(item => item['00991001']?.Value?.[0]).filter(Boolean);
    const said = told.join(' ') || answer.detail || `the server answered ${request.status}`;
    // A series' number tells nobody which patient he looks at.
    const message = said.replace(/^[0-9.]{20,64}: /, '');
    return { isKept: request.status === 200, message };
  }

  async function submit() {
    if (!api.contours.isDrawn()) {
      throw new Error('there are no contours yet; run the model, or draw some');
    }
    if (!seriesOfLabelmap()) {
      throw new Error('the contours are of another patient; open this one again');
    }
    const { commandsManager, extensionManager } = api.panel.props;
    const options = { SeriesDescription: 'Contours drawn in OHIF' };
    const made = commandsManager.runCommand('generateSegmentation', { segmentationId: api.contours.LABELMAP, options });
    await store(made.dataset, api.contours.LABELMAP, { extensionManager });
  }

  const api = {
    addressOf, clientId, colour, connect, lastFirst, layOn, reason, sample, say, seriesOfLabelmap, services,
    store, submit,
    contours: null, // contours.js
    opened: {}, // the patient's address where the panel appeared, and its number in the browser's history
    panel: null,
  };
  return api;
})();
