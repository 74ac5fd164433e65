// The mode "OrganNet Label": OHIF's mode for segmentation with this project's panel, layout, tools and keys.

import { closeCase } from './case.mjs';
import { fillDrawnContours } from './contour_fill.mjs';
import { guard, unguard } from './guards.mjs';
import { hotkeys } from './hotkeys.mjs';
import { PROTOCOL } from './layout.mjs';
import { initToolGroups } from './tool_groups.mjs';
import { toolbarButtons, toolbarSections } from './toolbar.mjs';
import { presets } from './windows.mjs';

const PANEL = '@organnet/extension.panelModule.organnet';

/** Keys and windows of this mode, in place of OHIF's. */
const customizations = {
  'ohif.hotkeyBindings': { $set: hotkeys },
  'cornerstone.windowLevelPresets': { $set: presets },
};

export default {
  id: '@organnet/mode',
  /** @param {any} parts */
  async modeFactory({ loadModules }) {
    const [segmentation] = await loadModules(['@ohif/mode-segmentation']);
    const base = segmentation.modeInstance;
    const [route] = base.routes;
    const { layoutInstance } = route;
    const props = { ...layoutInstance.props, leftPanelClosed: true, rightPanels: [PANEL], rightPanelClosed: false };
    /** @type {{ unsubscribe: () => void } | undefined} */
    let filling;
    return {
      ...base,
      id: '@organnet/mode',
      routeName: 'organnet',
      displayName: 'OrganNet Label',
      hangingProtocol: PROTOCOL,
      modeModalities: ['CT'],
      toolbarButtons,
      toolbarSections,
      initToolGroups,
      modeCustomizations: customizations,
      routes: [{ ...route, layoutInstance: { ...layoutInstance, props } }],
      /** @param {any} context */
      onModeEnter(context) {
        context.servicesManager.services.measurementService.clearMeasurements();
        base.onModeEnter.call(this, context);
        filling = fillDrawnContours();
        guard();
      },
      /** @param {any} context */
      onModeExit(context) {
        unguard();
        filling?.unsubscribe();
        closeCase();
        base.onModeExit.call(this, context);
      },
    };
  },
};
